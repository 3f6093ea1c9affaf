"""The step that every training shares: sums, means, skipped steps, divergence and the loss scale."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bort.backend.mxnet import mx, nd
from bort.engines import mxnet_compiled
from bort.errors import BortError
from bort.training.optimizer import Sgd
from bort.training.step import (
    FLOAT16_LOSS_SCALE,
    GOOD_STEPS_BEFORE_DOUBLING,
    Diverged,
    StepOptions,
    StepState,
    TrainingStep,
    check_dtype,
    dropout_seed,
    initial_loss_scale,
)


def weight(*values):
    parameter = mx.gluon.Parameter("w", shape=(len(values),))
    parameter.initialize(init="zeros")
    parameter.set_data(nd.array(values))
    return parameter


def stepping(parameter, clip=0.0, figures=("loss",), state=None, **options):
    """Steps at rate 0.5, and a ``backward`` that adds a part, an array, to the gradient."""
    state = state or StepState()
    update = TrainingStep(
        Sgd([parameter], clip), lambda step: 0.5, StepOptions(seed=0, **options), figures, state
    )

    def backward(part):
        gradient = parameter.grad()
        gradient[:] = gradient + nd.array(part) * state.loss_scale
        return {"loss": float(sum(part)), "count": 1}

    return update, backward


def test_parts_add_up_and_are_divided_by_what_they_count():
    parameter = weight(1.0, 1.0)
    update, backward = stepping(parameter)
    done = update([[1.0, 0.0], [0.0, 2.0]], backward)
    assert parameter.data().asnumpy().tolist() == [0.5, 0.0] and done.figures == {"loss": 3.0}
    assert done.norm == pytest.approx(math.sqrt(5)) and done.finite
    mean = weight(1.0, 1.0)
    update, backward = stepping(mean, figures=("loss", "count"), mean_over="count")
    assert update([[1.0, 0.0], [0.0, 2.0]], backward).norm == pytest.approx(math.sqrt(5) / 2)
    assert mean.data().asnumpy().tolist() == [0.75, 0.5]
    clipped = weight(0.0, 0.0)
    update, backward = stepping(clipped, clip=1.0)
    update([[3.0, 4.0]], backward)
    np.testing.assert_allclose(clipped.data().asnumpy(), [-0.3, -0.4], rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_changes_nothing_and_too_much_of_it_ends_the_training(bad):
    parameter = weight(1.0)
    update, backward = stepping(parameter, max_skipped=3, advice="use a smaller --lr")
    for part in ([1.0], [bad], [bad], [1.0], [bad], [bad]):
        before = parameter.data().asscalar()
        assert update([part], backward).finite == (parameter.data().asscalar() != before) == (part == [1.0])
    assert (update.state.step, update.state.skipped, update.state.skipped_in_a_row) == (6, 4, 2)
    with pytest.raises(Diverged, match=r"3 steps in a row \(up to step 7\).*; use a smaller --lr"):
        update([[bad]], backward)
    # A loss that is not finite is enough, whatever the gradients are.
    update, backward = stepping(parameter)
    before = parameter.data().asscalar()
    assert not update([[1.0]], lambda part: {**backward(part), "loss": bad}).finite
    assert parameter.data().asscalar() == before


def test_a_rank_without_a_part_starts_from_zero_and_reports_nothing():
    parameter = weight(1.0)
    parameter.grad()[:] = 7.0
    update, backward = stepping(parameter, accumulates=False)
    assert update([], backward) == (0.0, {"loss": 0.0}) and parameter.data().asscalar() == 1.0


def test_the_loss_scale_halves_and_doubles_and_leaves_the_update_alone():
    assert initial_loss_scale("float32") == 1.0
    parameter = weight(0.0)
    state = StepState(loss_scale=initial_loss_scale("float16"), good_steps=GOOD_STEPS_BEFORE_DOUBLING - 2)
    update, backward = stepping(parameter, state=state, dtype="float16")
    scales = []
    for value in (1.0, 1.0, math.inf, 1.0):
        update([[value]], backward)
        scales.append(state.loss_scale / FLOAT16_LOSS_SCALE)
    assert scales == [1, 2, 1, 1] and parameter.data().asscalar() == -1.5


def test_dropout_differs_by_seed_step_rank_and_stream():
    seeds = [dropout_seed(*key) for key in ((0, 1, 2), (1, 0, 2), (0, 2, 1), (0, 1, 2, (5,)))]
    assert len(set(seeds)) == 4 and seeds[0] == dropout_seed(0, 1, 2)


def test_types_that_cannot_be_trained_in_are_refused():
    with pytest.raises(BortError, match="float32 or bfloat16 or float16"):
        check_dtype("float64")
    check_dtype("float32")


@pytest.mark.skipif(mx.context.num_gpus() > 0, reason="there is a GPU")
def test_bfloat16_is_refused_where_it_would_be_emulated(monkeypatch):
    monkeypatch.setattr(mxnet_compiled, "cpu_flags", lambda: frozenset({"avx2", "avx512f"}))
    reason = "^--dtype bfloat16 needs a CPU with avx512_bf16 or amx_bf16"
    with pytest.raises(BortError, match=reason) as refusal:
        check_dtype("bfloat16")
    assert "\n" not in str(refusal.value)
    monkeypatch.setattr(mxnet_compiled, "cpu_flags", lambda: frozenset({"avx512f", "avx512_bf16"}))
    check_dtype("bfloat16")
