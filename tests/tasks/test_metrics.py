"""Metrics against values computed by hand; the libraries that compute them are not asked twice."""
from __future__ import annotations

import math

import numpy as np
import pytest

from bort.errors import BortError
from bort.tasks import metrics


def test_accuracy_and_mcc_by_hand():
    predictions, labels = [1, 1, 1, 0, 0, 1], [1, 1, 0, 0, 1, 1]
    assert metrics.accuracy(predictions, labels) == pytest.approx(4 / 6)
    # TP 3, TN 1, FP 1, FN 1
    assert metrics.mcc(predictions, labels) == pytest.approx((3 * 1 - 1 * 1) / math.sqrt(4 * 4 * 2 * 2))
    assert metrics.mcc([1, 1, 1], [0, 1, 1]) == 0.0  # one predicted class


def test_multiclass_mcc_by_hand():
    # Gorodkin's R3: 4 samples, 3 right; predicted classes 2,1,1 and true classes 1,1,2 times
    value = (3 * 4 - (2 * 1 + 1 * 1 + 1 * 2)) / math.sqrt((16 - 6) * (16 - 6))
    assert metrics.mcc([0, 0, 1, 2], [0, 2, 1, 2]) == pytest.approx(value)


def test_f1_of_the_positive_class():
    assert metrics.f1([1, 1, 0, 0], [1, 0, 1, 0]) == pytest.approx(0.5)
    assert metrics.f1([0, 0], [0, 0]) == 0.0


def test_macro_f1_counts_absent_classes():
    # class 0: 2*1/(1+2), class 1: 2*1/(2+1), class 2 never occurs
    assert metrics.macro_f1([0, 1, 1], [0, 0, 1]) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert metrics.macro_f1([0, 1, 2], [0, 1, 2]) == 1.0


def test_correlations_by_hand():
    assert metrics.pearson([1.0, 2.0, 3.0], [2.0, 4.0, 9.0]) == pytest.approx(7 / math.sqrt(2 * 26))
    assert metrics.spearman([1.0, 2.0, 3.0], [2.0, 4.0, 9.0]) == pytest.approx(1.0)
    # ranks 1, 2.5, 2.5 against 1, 2, 3
    assert metrics.spearman([1.0, 2.0, 2.0], [1.0, 2.0, 3.0]) == pytest.approx(1.5 / math.sqrt(1.5 * 2))
    assert metrics.pearson([3.0, 3.0, 3.0], [1.0, 2.0, 3.0]) == 0.0


def test_rounded_accuracy_clips_and_rounds_halves_up():
    assert metrics.rounded_accuracy([-1.0, 2.5, 3.49, 9.0], [0.0, 3.0, 4.0, 5.0]) == pytest.approx(3 / 4)
    assert metrics.rounded_accuracy([2.5, 3.5], [2.6, 3.6]) == 1.0


def test_multirc_metrics_by_hand():
    predictions, labels, questions = [1, 0, 1, 1, 0], [1, 0, 0, 1, 1], ["a", "a", "b", "b", "c"]
    assert metrics.f1(predictions, labels) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert metrics.multirc_em(predictions, labels, questions) == pytest.approx(1 / 3)


def test_squad_normalisation():
    assert metrics.normalize_answer(" The  U.S. Army's a-Team, an act ") == "us armys ateam act"
    assert metrics.normalize_answer("A the") == ""


def test_record_scores_take_the_best_answer():
    # "big red dog" against "red dog": 2 common of 3 and 2; against "cat": none
    assert metrics.answer_f1("The big red dog", "a red dog") == pytest.approx(2 * 2 / 5)
    scores = metrics.record_scores(["The big red dog", "Paris", "x"], [["cat", "red dog"], ["paris!", "Rome"],
                                                                       []])
    assert scores["f1"] == pytest.approx((0.8 + 1 + 0) / 3)
    assert scores["em"] == pytest.approx(1 / 3)
    assert metrics.answer_f1("dog dog", "dog") == pytest.approx(2 * 1 / 3)  # bags, not sets


def test_gender_parity_ignores_the_labels():
    assert metrics.gender_parity([0, 0, 1, 0, 1, 1]) == pytest.approx(2 / 3)
    with pytest.raises(BortError, match="even number"):
        metrics.gender_parity([0, 1, 1])


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_lengths_must_match(name):
    with pytest.raises(BortError, match="equally many"):
        metrics.METRICS[name](np.zeros(3), np.zeros(4))
    with pytest.raises(BortError, match="at least one"):
        metrics.METRICS[name]([], [])
