"""The sandwich rule: who is trained at a step, what that computes, and that nobody else changes the sum."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bort.dynabert.grid import DEPTHS, WIDTHS, Multipliers, grid
from bort.dynabert.sampling import draw
from bort.finetuning.loop import TrainingData
from tests.dynabert.test_importance import FULL, examples
from tests.dynabert.test_training import OPTIONS, SETTINGS, training
from tests.tiny import VOCAB

NETWORKS = grid(WIDTHS, DEPTHS, FULL)


def test_the_ends_are_always_drawn_and_the_others_alike():
    counts = dict.fromkeys(NETWORKS, 0)
    for step in range(600):
        drawn = draw(NETWORKS, 2, 7, 1, step)
        assert len(set(drawn)) == 4 and drawn == sorted(drawn, key=NETWORKS.index)
        for one in drawn:
            counts[one] += 1
    assert counts[Multipliers(1, 1)] == counts[Multipliers(0.25, 0.5)] == 600
    between = [counts[one] for one in NETWORKS[1:-1]]
    assert sum(between) == 1200 and min(between) > 80 and max(between) < 160  # 120 expected


def test_a_draw_depends_on_seed_stage_and_step_alone():
    assert draw(NETWORKS, 3, 0, 1, 5) == draw(NETWORKS, 3, 0, 1, 5)
    several = {tuple(draw(NETWORKS, 3, *key)) for key in ((0, 1, 5), (1, 1, 5), (0, 2, 5), (0, 1, 6))}
    assert len(several) == 4
    for sampled in (0, len(NETWORKS) - 2, 99):
        assert draw(NETWORKS, sampled, 0, 0, 0) == NETWORKS
    assert draw(NETWORKS[:1], 1, 0, 0, 0) == NETWORKS[:1]


def test_passes_are_counted_as_they_were_run(tmp_path):
    rows = np.random.default_rng(0).integers(6, VOCAB, (10, 12)).astype(np.int32)
    data = TrainingData(list(rows), np.zeros(10, int))  # 12 tokens are padded to 16
    loop, run = training(tmp_path, data, replace(OPTIONS, sampled=1),
                         replace(SETTINGS, epochs=1, batch_size=4))
    with run:
        loop.train(pad_id=1)
    found = {(row["stage"], row["role"], row["width"], row["depth"]): row for row in loop.position.passes}
    every = {"forward": 3, "backward": 3, "sequences": 10}
    for stage, one in (("width", (1, 1)), ("width", (0.5, 1)), ("depth", (1, 1)), ("depth", (0.5, 0.5)),
                       ("finetune", (1, 1)), ("finetune", (0.5, 0.5))):
        row = found[(stage, "student", *one)]
        assert {name: row[name] for name in every} == every
        assert row["flops"] == 3 * 10 * Multipliers(*one).architecture(FULL).flops(16)
    # One of the two others at each of three steps.
    for stage in ("depth", "finetune"):
        assert sum(found[key]["backward"] for key in ((stage, "student", 0.5, 1), (stage, "student", 1, 0.5))
                   if key in found) == 3
    # The fixed network teaches the width stage; then each width its own depths, asked once a step.
    assert found["width", "teacher", 1, 1] == {
        "stage": "width", "role": "teacher", "width": 1, "depth": 1, "forward": 3, "backward": 0,
        "sequences": 10, "flops": 10 * FULL.flops(16)}
    assert [found["depth", "teacher", width, 1]["forward"] for width in (1, 0.5)] == [3, 3]
    assert not any(role == "teacher" and stage == "finetune" for stage, role, *_ in found)


def test_who_is_not_drawn_adds_nothing_to_the_gradient(tmp_path, monkeypatch):
    """Gradients are summed as they are, without a factor for those that were not drawn."""
    data, wanted = examples(4), {}
    settings = replace(SETTINGS, epochs=1, batch_size=4, warmup=0.0)
    options = replace(OPTIONS, stages=("depth",))

    def gradients(folder, drawn):
        monkeypatch.setattr("bort.dynabert.training.draw", lambda *_: drawn)
        loop, run = training(folder, data, options, settings)
        with run:
            loop.train(pad_id=1)
        return {name: parameter.grad().asnumpy() for name, parameter
                in loop.model._collect_params_with_prefix().items() if parameter.grad_req != "null"}

    first, second = Multipliers(1, 1), Multipliers(0.5, 0.5)
    monkeypatch.setattr("tests.dynabert.test_training.classifier", without_dropout)
    for name, drawn in (("a", [first]), ("b", [second]), ("ab", [first, second])):
        wanted[name] = gradients(tmp_path / name, drawn)
    assert any(np.abs(array).max() > 1e-4 for array in wanted["b"].values())
    for name, array in wanted["ab"].items():
        np.testing.assert_allclose(array, wanted["a"][name] + wanted["b"][name], rtol=1e-4, atol=1e-6,
                                   err_msg=name)


def without_dropout(seed=0, **settings):
    from tests.dynabert.test_importance import classifier

    return classifier(seed)


@pytest.mark.parametrize("sampled", [0, 1])
def test_the_metrics_of_the_best_epoch_are_not_computed_again(tmp_path, sampled):
    loop, run = training(tmp_path, examples(8), replace(OPTIONS, stages=("width",), sampled=sampled))
    with run:
        loop.train(pad_id=1)
        evaluate, asked = loop.evaluate, []
        loop.evaluate = lambda network: asked.append(network.chosen) or evaluate(network)
        found = loop.metrics()
    assert asked == [Multipliers(1, 0.5), Multipliers(0.5, 0.5)]  # which the width stage has not judged
    assert {one: evaluate(network) for one, network in loop.networks.items()} == found
