"""The evaluation set: scores, classes, ties and the goal."""
from __future__ import annotations

import numpy as np
import pytest

from bort.agora.classes import LabelClasses
from bort.agora.evaluation import MAX_LOSS, TIE_BREAKER, selection
from bort.agora.points import Points
from bort.errors import BortError
from bort.tasks.registry import get_task
from tests.agora.simulated import evaluation_of


def test_scores_in_classification():
    evaluation = evaluation_of(Points([], np.array([0, 1, 1, 0]), []), "CoLA")
    right = np.array([[2, 0], [0, 1], [0, 3], [1, 0]], float)
    assert evaluation.metric == "mcc" and evaluation.scores(right).score == 1
    assert evaluation.scores(-right).accuracy == 0 and evaluation.scores(right).accuracy == 1
    surer = evaluation.scores(right * 3).selection
    assert evaluation.scores(right).selection < surer < 1 and evaluation.scores(-right).selection < -0.9
    assert evaluation.scores(np.where(right > 2, np.nan, right)).loss is None


def test_a_tie_is_broken_by_the_loss_even_when_it_is_0():
    assert selection(0.5, 0.0) == 0.5 > selection(0.5, 1e-3) > selection(0.5, 5.0)
    assert selection(0.5, None) == selection(0.5, 1e9) == 0.5 - TIE_BREAKER * MAX_LOSS
    assert selection(None, None) < -1e299


def test_regression_by_fifths_as_in_raffel_et_al():
    """Their values, rounded to the nearest multiple of 0.2; halves of two go up."""
    classes = LabelClasses(get_task("STS-B"))
    assert classes.count == 26 and classes.names[:3] == ["0", "0.2", "0.4"] and classes.names[25] == "5"
    values = [0.0, 0.09, 0.1, 0.3, 0.7, 2.57, 2.62, 3.8, 4.95, 7.0, -1.0]
    wanted = [0.0, 0.0, 0.2, 0.4, 0.8, 2.6, 2.6, 3.8, 5.0, 5.0, 0.0]
    for dtype in (np.float32, np.float64):
        found = classes.of(np.array(values, dtype)) / 5
        np.testing.assert_allclose(found, wanted)
    evaluation = evaluation_of(Points([], np.array([0.2, 2.5, 4.4, 5.0]), []), "STS-B")
    assert evaluation.metric == "accuracy_by_fifths"
    assert evaluation.scores(np.array([[0.25], [2.7], [4.6], [9.0]])).score == 0.5


def test_regression_by_whole_numbers():
    values = np.array([0.2, 2.5, 4.4, 5.0])
    evaluation = evaluation_of(Points([], values, []), "STS-B", "whole")
    assert evaluation.scores(np.array([[0.4], [3.4], [4.6], [9.0]])).score == 0.75
    assert evaluation.metric == "rounded_accuracy"
    assert evaluation.classes.balance(values) == {"0": 1, "1": 0, "2": 0, "3": 1, "4": 1, "5": 1}
    np.testing.assert_array_equal(evaluation.classes.of(np.array([-1.0, 0.5, 4.5])), [0, 1, 5])
    with pytest.raises(BortError, match="--rounding"):
        LabelClasses(get_task("STS-B"), "halves")


def test_what_a_constant_answer_is_right_on():
    assert evaluation_of(Points([[0]] * 4, np.array([0, 1, 1, 1]), [])).constant_accuracy == 0.75
