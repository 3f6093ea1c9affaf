"""The stages of DynaBERT: losses against an independent computation, learning, kill and resume."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bort.agora import token_edits
from bort.checkpoints.model_folder import parameter_arrays
from bort.dynabert.grid import Multipliers
from bort.dynabert.losses import LossWeights, Outputs, StepSize, batch_loss
from bort.dynabert.options import KINDS, AdaptiveOptions, DynabertOptions
from bort.dynabert.subnetworks import SubNetwork
from bort.dynabert.training import AdaptiveTraining
from bort.errors import BortError
from bort.finetuning.loop import Settings, TrainingData
from bort.training.run_folder import RunFolder
from tests.dynabert.test_importance import FULL, batch, classifier, examples
from tests.tiny import needs_bfloat16

OPTIONS = AdaptiveOptions(widths=(1.0, 0.5), depths=(1.0, 0.5), stages=("width", "depth", "finetune"))
SETTINGS = Settings(lr=5e-3, weight_decay=0.01, warmup=0.1, batch_size=4, epochs=2)


def training(folder, data, options=OPTIONS, settings=SETTINGS, dropout=0.1, resume=False):
    model, teacher = classifier(3, dropout=dropout), classifier(3)
    run = RunFolder(folder, {"x": 1}, resume)
    from bort.finetuning.scoring import score

    def evaluate(network):
        scores = score(network, data.token_ids, 1)
        return {"accuracy": float((scores.argmax(axis=1) == data.labels).mean())}

    return AdaptiveTraining(model, teacher, dict.fromkeys(options.stages, data), evaluate, settings,
                            options, run), run


def test_the_loss_is_the_published_one_by_hand():
    from bort.backend.mxnet import nd

    rng = np.random.default_rng(0)
    logits, wanted = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    states = [rng.normal(size=(3, 5, 2)) for _ in range(2)]
    teacher = [rng.normal(size=(3, 5, 2)) for _ in range(3)]
    valid = np.array([5, 2, 3])
    softmax = np.exp(wanted) / np.exp(wanted).sum(axis=1, keepdims=True)
    expected = -(softmax * (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))).sum() / 3
    for own, place in zip(states, (0, 2)):
        squares = [(own[row, :count] - teacher[place][row, :count]) ** 2 for row, count in enumerate(valid)]
        expected += 0.1 * sum(part.sum() for part in squares) / (10 * 2)
    array = lambda value: nd.array(value, dtype="float32")  # noqa: E731
    found = batch_loss(Outputs(array(logits), [array(own) for own in states]),
                       Outputs(array(wanted), [array(one) for one in teacher]), (0, 2), None,
                       array(valid), LossWeights(1.0, 0.1), StepSize(examples=3, tokens=10))
    assert float(found.asscalar()) == pytest.approx(expected, rel=1e-5)


def test_the_losses_of_two_ranks_add_up_to_that_of_one():
    from bort.backend.mxnet import nd

    model, teacher, chosen = classifier(5), classifier(6), Multipliers(0.5, 0.5)
    ids, valid = batch(2, 6, 8)
    sub, whole, tokens = SubNetwork(model, chosen), SubNetwork(teacher,
                                                               Multipliers()), int(valid.asnumpy().sum())

    def loss(rows):
        part = nd.array(ids.asnumpy()[rows], dtype="int32"), nd.array(valid.asnumpy()[rows])
        states, taught = sub.states(*part), whole.states(*part)
        return float(batch_loss(Outputs(sub.logits(states), states), Outputs(whole.logits(taught), taught),
                                chosen.matched(FULL), None, part[1], LossWeights(1, 1),
                                StepSize(6, tokens)).asscalar())

    assert loss(slice(0, 6)) == pytest.approx(loss(slice(0, 6, 2)) + loss(slice(1, 6, 2)), rel=1e-5)


def test_gradients_of_a_sub_network_equal_pytorch():
    torch = pytest.importorskip("torch")
    from bort.backend.mxnet import autograd
    from tests.dynabert.reference import reference_loss

    model, teacher = classifier(5, scale=2.0), classifier(6, scale=2.0)
    for parameter in model._collect_params_with_prefix().values():
        parameter.grad_req = "add"
    ids, valid = batch(2, 4, 8)
    for chosen in (Multipliers(0.5, 0.5), Multipliers(0.75, 1)):
        for parameter in model._collect_params_with_prefix().values():
            parameter.zero_grad()
        sub, whole = SubNetwork(model, chosen), SubNetwork(teacher, Multipliers())
        taught = whole.states(ids, valid)
        with autograd.record():
            states = sub.states(ids, valid)
            loss = batch_loss(Outputs(sub.logits(states), states), Outputs(whole.logits(taught), taught),
                              chosen.matched(FULL), None, valid, LossWeights(1.0, 1.0),
                              StepSize(4, int(valid.asnumpy().sum())))
        loss.backward()
        own, gradients = reference_loss(torch, parameter_arrays(model), parameter_arrays(teacher), FULL,
                                        chosen, ids.asnumpy(), valid.asnumpy())
        assert float(loss.asscalar()) == pytest.approx(own, rel=1e-4)
        found = {name: parameter.grad().asnumpy()
                 for name, parameter in model._collect_params_with_prefix().items()}
        for name, gradient in gradients.items():
            np.testing.assert_allclose(found[name], gradient, rtol=2e-3, atol=2e-5, err_msg=name)


def test_small_networks_learn_what_the_teacher_knows(tmp_path):
    data = examples(48, seed=5)
    teacher = classifier(3)
    ids = list(data.token_ids)
    from bort.finetuning.scoring import score
    labels = score(teacher, ids, 1).argmax(axis=1)
    data = TrainingData(ids, labels)
    loop, run = training(tmp_path / "run", data, replace(OPTIONS, stages=("width", "depth")),
                         replace(SETTINGS, epochs=3, lr=3e-3))
    with run:
        untrained = {one: loop.evaluate(network)["accuracy"] for one, network in loop.networks.items()}
        history = loop.train(pad_id=1)
        after = {one: loop.evaluate(network)["accuracy"] for one, network in loop.networks.items()}
    assert [row["stage"] for row in history] == ["width"] * 3 + ["depth"] * 3
    assert untrained[Multipliers(1, 1)] == 1.0 and after[Multipliers(1, 1)] >= 0.9
    assert sum(after.values()) > sum(untrained.values()) + 0.1
    assert history[2]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("kill_after, sampled", [(3, 0), (9, 1), (14, 1)])
def test_a_killed_run_goes_on_to_the_same_parameters(tmp_path, kill_after, sampled):
    data, settings = examples(12), replace(SETTINGS, epochs=1, batch_size=2)  # 6 steps a stage
    options = replace(OPTIONS, sampled=sampled)
    loop, run = training(tmp_path / "whole", data, options, settings)
    with run:
        expected_history = loop.train(pad_id=1, checkpoint_interval=2)
    loop_two, run = training(tmp_path / "killed", data, options, settings)
    steps = iter(range(1, 1000))
    with run, pytest.raises(KeyboardInterrupt):
        loop_two.train(1, checkpoint_interval=2, stop_when=lambda: next(steps) >= kill_after)
    loop_three, run = training(tmp_path / "killed", data, options, settings, resume=True)
    with run:
        history = loop_three.train(1, checkpoint_interval=2)
    assert history == expected_history and loop_three.position.passes == loop.position.passes
    expected = parameter_arrays(loop.model)
    for name, array in parameter_arrays(loop_three.model).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_only_dropout_moves_the_full_network_from_its_teacher(tmp_path, dropout):
    """By itself it begins at the minimum of its loss, where the gradient is zero but for the masks' noise."""
    for stage in ("width", "depth"):
        loop, run = training(tmp_path / stage, examples(12),
                             replace(OPTIONS, widths=(1.0,), depths=(1.0,), stages=(stage,)),
                             replace(SETTINGS, epochs=1, batch_size=12), dropout)
        with run:
            loop.train(pad_id=1)  # one step
        gradients = [parameter.grad() for parameter in loop.model._collect_params_with_prefix().values()
                     if parameter.grad_req != "null"]
        norm = sum(float((gradient ** 2).sum().asscalar()) for gradient in gradients) ** 0.5
        assert norm < 1e-4 if dropout == 0 else norm > 0.05


def test_teachers_answer_without_dropout(tmp_path):
    """That of the depth stage was a student with dropout before."""
    from bort.backend.mxnet import autograd

    loop, run = training(tmp_path, examples(4), replace(OPTIONS, stages=("depth",)), dropout=0.5)
    with run:
        taught_by = loop._teachers_of("depth")
    ids, valid = batch(2, 4, 8)
    for chosen, teacher in taught_by.items():
        assert teacher.chosen == Multipliers(chosen.width, 1)
        alike = SubNetwork(classifier(3, dropout=0.0), teacher.chosen).states(ids, valid)
        for own, other in zip(teacher.states(ids, valid), alike):
            np.testing.assert_allclose(own[:, :2].asnumpy(), other[:, :2].asnumpy(), rtol=1e-5, atol=1e-6)
    with autograd.record():  # the student's masks are those of training
        assert np.abs(loop.networks[Multipliers()].states(ids, valid)[0].asnumpy()
                      - alike[0].asnumpy()).max() > 0.1


@needs_bfloat16
def test_bfloat16_learns_what_float32_does(tmp_path):
    data, seen, found = examples(12), set(), {}
    for dtype in ("float32", "bfloat16"):
        loop, run = training(tmp_path / dtype, data, settings=replace(SETTINGS, epochs=1, dtype=dtype))
        evaluate = loop.evaluate

        def asked(network, evaluate=evaluate):
            seen.add(network._encoder.cells[0].ffn.ffn_1.product_dtype)
            return evaluate(network)

        loop.evaluate = asked
        step, loop._step = loop._step, lambda *args, loop=loop: products.append(
            loop.networks[Multipliers(0.5, 1)]._encoder.cells[0].proj.product_dtype) or step(*args)
        products = []
        with run:
            found[dtype] = [row["loss"] for row in loop.train(pad_id=1)]
        assert set(products) == {dtype} and seen == {"float32"}
    assert found["bfloat16"] != found["float32"]
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=2e-2)


def test_options_are_checked():
    with pytest.raises(BortError, match="their order is"):
        AdaptiveOptions(stages=("depth", "width"))
    with pytest.raises(BortError, match="at most once"):
        AdaptiveOptions(stages=("width", "length"))
    with pytest.raises(BortError, match="--sampled"):
        AdaptiveOptions(sampled=-1)
    for settings, message in (({"widths": (0.5,)}, "must both contain 1"),
                              ({"depths": (1, 2)}, "a share above")):
        with pytest.raises(BortError, match=message):
            AdaptiveOptions(**settings)
    assert set(KINDS) == set(token_edits.KINDS)
    for settings, message in (({"tau": ("none",), "copies": 1}, "--augment none: name each"),
                              ({"copies": -1}, "--augment-copies"), ({"tau": ("mlm",)}, "go together"),
                              ({"tau": ("mlm",), "copies": 1, "tau_rate": 2.0}, "--augment-rate")):
        with pytest.raises(BortError, match=message):
            DynabertOptions(AdaptiveOptions(), **settings)
