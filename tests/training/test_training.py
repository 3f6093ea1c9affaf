"""Schedules and the optimizer against hand-computed values; run folders that survive kills and damage."""

from __future__ import annotations

import math
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bort.backend import distributed, numpy_views
from bort.backend.mxnet import autograd, gluon, mx, nd
from bort.batching import cheapest_groups, pad_batch, share, shuffled_batches, token_groups
from bort.errors import BortError
from bort.finetuning import losses
from bort.training.figures import plot_curves
from bort.training.optimizer import BertAdam
from bort.training.schedules import linear, make_schedule, noam, released_pretraining


def test_schedules_follow_their_formulas():
    rate = linear(1.0, 10, 0.25)  # int(10 * 0.25) = 2 warmup steps
    assert [rate(step) for step in (0, 1, 2, 6, 9)] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.125])
    assert linear(1e-6, 10, 0.0)(10) == 1e-7
    rate = noam(2.0, 100, 0.04)
    assert [rate(step) for step in (0, 3, 15, 99)] == pytest.approx([0.5, 2.0, 1.0, 0.4])
    rate = released_pretraining(1.0, 10, 0.2)
    assert [rate(step) for step in (0, 1, 2, 4, 9)] == pytest.approx([0.5, 1.0, 0.7, 0.5, 0.0])
    rate = make_schedule("released", 1e-3, 8, 0.25)  # the step where the warmup ends belongs to it
    assert [rate(step) for step in (0, 1, 2, 7)] == pytest.approx([5e-4, 1e-3, 6.25e-4, 0.0])
    assert released_pretraining(1.0, 4, 0.0)(0) == 0.75
    for wrong in (
        ("cosine", 1, 1, 0),
        ("linear", 0, 1, 0),
        ("linear", 1, 1, 1.0),
        ("linear", float("nan"), 1, 0),
    ):
        with pytest.raises(BortError):
            make_schedule(*wrong)


def parameters(*shapes):
    net = gluon.nn.HybridSequential()
    made = {
        f"layer{i}.{'bias' if len(shape) == 1 else 'weight'}": net.params.get(
            f"p{i}", shape=shape, init="zeros"
        )
        for i, shape in enumerate(shapes)
    }
    rng = np.random.default_rng(0)
    for parameter in made.values():
        parameter.initialize()
        parameter.set_data(nd.array(rng.normal(size=parameter.shape)))
    return made


def test_bert_adam_equals_the_formula_and_gluonnlps():
    import gluonnlp  # noqa: F401  registers the optimizer "bertadam"

    made = parameters((3, 4), (5,))
    ours = {name: p.data().asnumpy().astype("float64") for name, p in made.items()}
    theirs = {name: p.data().copy() for name, p in made.items()}
    reference = mx.optimizer.create("bertadam", learning_rate=1.0, wd=0.1, epsilon=1e-6)
    states = {name: reference.create_state(0, weight) for name, weight in theirs.items()}
    mean = {name: np.zeros(p.shape) for name, p in made.items()}
    variance = {name: np.zeros(p.shape) for name, p in made.items()}
    optimizer = BertAdam(made, weight_decay=0.1, clip=1.0)
    rng = np.random.default_rng(1)
    for step in range(4):
        rate = 0.01 * (step + 1)
        gradients = {name: rng.normal(size=p.shape) * (3 if step % 2 else 0.01) for name, p in made.items()}
        norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
        for name, p in made.items():
            p.grad()[:] = nd.array(gradients[name])
        assert optimizer.step(rate) == pytest.approx(norm, rel=1e-5)
        reference.lr = rate
        for name in made:
            g = gradients[name] * min(1.0, 1.0 / norm)
            mean[name] = 0.9 * mean[name] + 0.1 * g
            variance[name] = 0.999 * variance[name] + 0.001 * g * g
            decay = 0.0 if name.endswith("bias") else 0.1
            ours[name] -= rate * (mean[name] / (np.sqrt(variance[name]) + 1e-6) + decay * ours[name])
            reference.wd = decay
            reference.update(0, theirs[name], nd.array(g), states[name])
    for name, p in made.items():
        np.testing.assert_allclose(p.data().asnumpy(), ours[name], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(p.data().asnumpy(), theirs[name].asnumpy(), rtol=1e-4, atol=1e-5)


def test_bad_gradients_change_nothing_and_state_round_trips():
    made = parameters((3, 4), (5,))
    optimizer = BertAdam(made, 0.1)
    for value in (1.0, float("nan"), float("inf")):
        before = {name: p.data().asnumpy() for name, p in made.items()}
        for p in made.values():
            p.grad()[:] = value
        norm = optimizer.step(0.1)
        same = all((before[name] == p.data().asnumpy()).all() for name, p in made.items())
        assert same == (not math.isfinite(norm)) == (value != 1.0)
    twin = BertAdam(made, 0.1)
    twin.load_state_arrays(optimizer.state_arrays())
    assert all((twin.state_arrays()[name] == array).all() for name, array in optimizer.state_arrays().items())
    assert any(array.any() for array in twin.state_arrays().values())


def test_float16_parameters_are_updated_through_float32():
    made = parameters((3, 4))
    exact = made["layer0.weight"].data().asnumpy().astype("float16").astype("float64")
    made["layer0.weight"].cast("float16")
    optimizer = BertAdam(made, clip=0.0)
    for _ in range(50):  # steps of 1e-4, each smaller than float16 resolves at most of these weights
        made["layer0.weight"].grad()[:] = 1.0
        optimizer.step(1e-5)
    moved = exact - made["layer0.weight"].data().asnumpy().astype("float64")
    assert np.abs(moved - 50 * 1e-5 * 5).max() < 5e-3 and moved.mean() > 1e-3


def test_numpys_update_equals_mxnets_whatever_the_threads(monkeypatch):
    monkeypatch.setattr("bort.training.optimizer.PIECE", 7)
    monkeypatch.setattr("bort.training.optimizer.MIN_FOR_THREADS", 0)
    results = []
    for way in ("mxnet", "one thread", "three threads"):
        with monkeypatch.context() as patch:
            if way == "mxnet":
                patch.setattr("bort.backend.numpy_views._on_host", lambda _: False)
            patch.setenv("OMP_NUM_THREADS", "3,1" if way == "three threads" else "")
            made = parameters((5, 4), (3,))
            optimizer = BertAdam(made, weight_decay=0.1)
            rng = np.random.default_rng(4)
            for _ in range(5):
                for p in made.values():
                    p.grad()[:] = nd.array(rng.normal(size=p.shape))
                optimizer.step(0.05)
        results.append({**{name: p.data().asnumpy() for name, p in made.items()}, **optimizer.state_arrays()})
    for name, array in results[1].items():
        # MXNet takes 1 - b2 in float32, which is off by 5e-5.
        np.testing.assert_allclose(array, results[0][name], rtol=6e-5, atol=1e-5)
        np.testing.assert_array_equal(array, results[2][name])


def test_updates_in_place_wait_for_readers_and_reach_compiled_graphs():
    dense = gluon.nn.Dense(300, in_units=300, use_bias=False)
    dense.initialize("zeros")
    dense.hybridize(static_alloc=True, static_shape=True)
    x = nd.ones((64, 300))
    optimizer = BertAdam(dense._collect_params_with_prefix(), clip=0.0)
    weight = dense.weight.data()
    expected = 0.0
    for _ in range(20):
        # asked for, not yet computed
        before = [nd.dot(weight, weight).sum() + weight.sum() for _ in range(20)]
        with autograd.record():
            loss = dense(x).sum()
        loss.backward()
        optimizer.step(0.01)
        # All elements are equal, so one tells what every reader must have seen.
        np.testing.assert_allclose(
            [value.asscalar() for value in before], 300**3 * expected**2 + 300**2 * expected, rtol=1e-4
        )
        expected = weight.asnumpy()[0, 0].astype(np.float64)
        np.testing.assert_allclose(dense(x).asnumpy(), 300 * expected, rtol=1e-4)
    assert expected < -0.1


def test_means_of_absent_words_never_leave_the_ordinary_floats():
    made = parameters((4, 3))
    optimizer = BertAdam(made, clip=0.0)
    made["layer0.weight"].grad()[:] = 1.0
    optimizer.step(0.01)
    made["layer0.weight"].grad()[:] = 0.0
    for step in range(2, 1000):
        optimizer.step(0.01)
        mean = optimizer.state_arrays()["mean/layer0.weight"]
        assert mean == pytest.approx(0.1 * 0.9 ** (step - 1), rel=1e-4, abs=1e-20)
    assert ((mean == 0) | (mean > np.finfo(np.float32).tiny)).all() and mean.max() < 1e-26


def test_losses_equal_hand_computed_values():
    scores, teacher = (
        np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]]),
        np.array([[0.5, 0.1, 2.0], [1.0, 1.0, 1.0]]),
    )

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    np.testing.assert_allclose(
        losses.hard_loss(nd.array(scores), nd.array([2, 0])).asnumpy(),
        -np.log(softmax(scores))[[0, 1], [2, 0]],
        rtol=1e-5,
    )
    expected = -(softmax(teacher / 2) * np.log(softmax(scores / 2))).sum(-1) * 4
    soft = losses.soft_loss(nd.array(scores), nd.array(teacher), 2.0)
    np.testing.assert_allclose(soft.asnumpy(), expected, rtol=1e-5)
    squares = losses.regression_loss(nd.array([[1.0], [3.0]]), nd.array([0.5, 1.0]))
    np.testing.assert_allclose(squares.asnumpy(), [0.25, 4])
    x = nd.array(scores)
    x.attach_grad()
    with autograd.record():
        loss = losses.soft_loss(x, nd.array(teacher), 2.0).sum()
    loss.backward()
    np.testing.assert_allclose(
        x.grad.asnumpy(), 2 * (softmax(scores / 2) - softmax(teacher / 2)), rtol=1e-4, atol=1e-6
    )


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=200),
    st.integers(1, 17),
    st.integers(1, 4),
    st.integers(0, 9),
)
def test_batches_hold_every_example_once(lengths, batch_size, parts, seed):
    lengths = np.array(lengths)
    batches = shuffled_batches(lengths, batch_size, np.random.default_rng(seed), window=3)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(len(batch) <= batch_size for batch in batches)
    assert len(batches) == -(-len(lengths) // batch_size)
    shares = [share(batches[0], part, parts) for part in range(parts)]
    assert sorted(np.concatenate(shares)) == sorted(batches[0])
    evaluation = list(token_groups(lengths, np.arange(len(lengths)), 100))
    assert sorted(np.concatenate(evaluation)) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= 100 for batch in evaluation)


def test_padding_is_bounded():
    ids, valid = pad_batch([np.arange(3), np.arange(11)], pad_id=9, max_length=12)
    assert (
        ids.shape == (2, 12)
        and valid.tolist() == [3, 11]
        and (ids[0, 3:] == 9).all()
        and ids.dtype == np.int32
    )


@pytest.mark.parametrize("value, expected", [("2,1", 2), (" 3 ", 3), ("", 1), ("many", 1), ("0", 1)])
def test_threads_of_this_process(monkeypatch, value, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert numpy_views.threads() == expected


def test_a_picture_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    panels = [{"x": "step", "y": "loss", "lines": {"a": ([1, 2], [0.5, None])}}]
    with pytest.raises(BortError, match="cannot be written"):
        plot_curves(tmp_path / "file" / "curves.png", panels, "title")
    assert plot_curves(tmp_path / "curves.png", panels, "title")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("long_steps", [False, True])
@pytest.mark.parametrize("told", [None, "1.5"])
def test_horovod_asks_seldom_unless_told_otherwise(monkeypatch, told, long_steps):
    seen = []
    fake = SimpleNamespace(init=lambda: seen.append(os.environ.get("HOROVOD_CYCLE_TIME")), size=lambda: 1)
    monkeypatch.setitem(sys.modules, "horovod", SimpleNamespace(mxnet=fake))
    monkeypatch.setitem(sys.modules, "horovod.mxnet", fake)
    monkeypatch.setattr(distributed, "_horovod", None)
    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_CYCLE_TIME", told or "")
    if told is None:
        monkeypatch.delenv("HOROVOD_CYCLE_TIME")
    monkeypatch.setattr(distributed, "_cycle_milliseconds", None)
    if long_steps:
        distributed.expect_long_steps()
    seldom = distributed.LONG_STEP_CYCLE_MILLISECONDS if long_steps else distributed.CYCLE_MILLISECONDS
    assert distributed.size() == 1 and seen == [told or seldom]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=9), st.integers(1, 30), st.integers(1, 5), st.integers(0, 9))
def test_no_other_cut_of_sorted_lengths_is_cheaper(lengths, max_tokens, most, overhead):
    groups = cheapest_groups(np.array(lengths, dtype=int), max_tokens, most, overhead)
    assert sorted(np.concatenate(groups).tolist() if groups else []) == list(range(len(lengths)))
    parts = [[lengths[index] for index in group] for group in groups]
    assert all(len(part) == 1 or len(part) <= most and len(part) * max(part) <= max_tokens for part in parts)

    def cheapest(rest):
        """Over all ways to cut."""
        if not rest:
            return 0
        sizes = range(1, min(most, len(rest)) + 1)
        return min(
            size * rest[size - 1] + overhead + cheapest(rest[size:])
            for size in sizes
            if size == 1 or size * rest[size - 1] <= max_tokens
        )

    assert sum(len(part) * max(part) + overhead for part in parts) == cheapest(sorted(lengths))
