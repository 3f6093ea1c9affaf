"""Step 3 of the search: training on the teacher's outputs, and the error."""
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bort.architecture import Architecture
from bort.backend.mxnet import nd
from bort.checkpoints.model_folder import parameter_arrays
from bort.models import Bert, initialize
from bort.search.candidate import InitialValues, error, train
from tests.search.tiny_search import (
    CANDIDATE,
    INITIAL,
    SETTINGS,
    outputs_of,
    probabilities_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:the teacher .* has no weights")


def test_error_is_the_cross_entropy_on_the_held_out_lines_and_kl_is_less_the_teachers_entropy(lines,
                                                                                              tmp_path):
    model, outputs, _ = outputs_of(lines, tmp_path, scale=4.0)
    candidate, _ = train(CANDIDATE, lines, outputs, SETTINGS, INITIAL)
    first, last = SETTINGS.steps * SETTINGS.batch_size, SETTINGS.lines
    target, own = (probabilities_of(network, lines, first, last) for network in (model, candidate))
    found = error(candidate, lines, outputs, SETTINGS)
    assert found["ce"] == pytest.approx(-(target * np.log(own)).sum(axis=1).mean(), rel=1e-5)
    assert found["kl"] == pytest.approx((target * np.log(target / own)).sum(axis=1).mean(), rel=1e-4)
    # A candidate that is T itself diverges from it by rounding only.
    assert abs(error(model, lines, outputs, SETTINGS)["kl"]) < 1e-5


def test_a_step_follows_the_gradient_of_the_cross_entropy(lines, teacher):
    """The loss that training reports before the second step is what a step along the finite differences
    predicts."""
    settings = replace(SETTINGS, steps=2, lr=0.1, clip=0.0)
    model, losses = train(CANDIDATE, lines, teacher, settings, INITIAL)
    again = Bert(CANDIDATE, lines.vocab_size, settings.positions, 0.0)
    initialize(again, settings.seed)
    one, _ = train(CANDIDATE, lines, teacher, replace(settings, steps=1), INITIAL)
    def loss_of(network: Bert, start: int) -> float:
        part = SimpleNamespace(steps=1, batch_size=start, lines=start + 6, micro_batch=4)
        return error(network, lines, teacher, part)["ce"]

    assert losses[0] == pytest.approx(loss_of(again, 0), rel=1e-6)
    # `one` took the step at the full rate, as the first of two steps does.
    assert losses[1] == pytest.approx(loss_of(one, 6), rel=1e-6)
    moved = {name: (a.data().asnumpy().astype("float64") - b.data().asnumpy()) / settings.lr for (name, a),
             b in zip(again._collect_params_with_prefix().items(),
                      one._collect_params_with_prefix().values())}
    name = "encoder.transformer_cells.1.ffn.ffn_1.weight"
    parameter = again._collect_params_with_prefix()[name]
    value, direction = parameter.data().copy(), nd.array(np.sign(moved[name]))
    slopes = []
    for step in (1e-2, -1e-2):
        parameter.set_data(value + step * direction)
        slopes.append(loss_of(again, 0))
    assert (slopes[0] - slopes[1]) / 2e-2 == pytest.approx(np.abs(moved[name]).sum(), rel=0.02)


def test_clipping_bounds_how_far_n_steps_can_move_a_candidate(lines, teacher):
    start = Bert(CANDIDATE, lines.vocab_size, SETTINGS.positions, 0.0)
    initialize(start, SETTINGS.seed)

    def moved(clip: float) -> float:
        model, _ = train(CANDIDATE, lines, teacher, replace(SETTINGS, clip=clip), INITIAL)
        pairs = zip(*({id(p): p for p in network.collect_params().values()}.values() for network in (start,
                                                                                                     model)))
        return float(np.sqrt(sum(((a.data() - b.data()) ** 2).sum().asscalar() for a, b in pairs)))

    # Rates 1, 2/3 and 1/3 of the peak: int(0.05 * 3) = 0 warmup steps. The steps point nearly, not quite, the
    # same way.
    bound = SETTINGS.lr * 2 * 1e-4
    assert 0.6 * bound < moved(1e-4) < 1.001 * bound
    assert moved(0.0) > 100 * bound


def test_initial_values_are_those_of_initialize_with_and_without_room_to_keep_them():
    for limit in (0, 5000, 1 << 20):
        initial = InitialValues(3, limit)
        for xi in [*SETTINGS.space, *SETTINGS.space]:
            found, expected = Bert(xi, 50, 16), Bert(xi, 50, 16)
            initial.fill(found)
            initialize(expected, 3)
            values = parameter_arrays(expected)
            assert all(np.array_equal(array, values[name]) for name, array in parameter_arrays(found).items())


def test_micro_batches_change_nothing(lines, teacher):
    reference, losses = train(CANDIDATE, lines, teacher, SETTINGS, INITIAL)
    expected = error(reference, lines, teacher, SETTINGS)["ce"]
    for size in (1, 6):
        settings = replace(SETTINGS, micro_batch_size=size)
        other, others = train(CANDIDATE, lines, teacher, settings, INITIAL)
        assert others == pytest.approx(losses, rel=1e-5)
        assert error(other, lines, teacher, settings)["ce"] == pytest.approx(expected, rel=1e-5)


def test_a_candidate_is_the_same_whatever_was_trained_before_it(lines, teacher):
    settings = replace(SETTINGS, dropout=0.2)

    def rate(xi: Architecture, initial: InitialValues) -> float:
        return error(train(xi, lines, teacher, settings, initial)[0], lines, teacher, settings)["ce"]

    space = settings.space
    forwards, backwards = InitialValues(0), InitialValues(0)
    first = {xi: rate(xi, forwards) for xi in space}
    assert {xi: rate(xi, backwards) for xi in reversed(space)} == first and len(set(first.values())) == len(
                                                                                                            space)
    other = replace(settings, seed=1)
    assert error(train(space[0], lines, teacher, other, InitialValues(1))[0], lines, teacher, other)["ce"] \
        not in first.values()


def test_training_lowers_the_error(lines, teacher):
    settings = replace(SETTINGS, clip=0.0, lr=0.5)
    untrained, _ = train(CANDIDATE, lines, teacher, replace(settings, steps=3, lr=1e-9), INITIAL)
    trained, losses = train(CANDIDATE, lines, teacher, settings, INITIAL)
    assert losses[-1] < losses[0]
    assert error(trained, lines, teacher, settings)["ce"] < error(untrained, lines, teacher,
                                                                  settings)["ce"] - 0.01
