"""The official metrics of GLUE, SuperGLUE and RACE, always over a whole set.

Functions take ``(predictions, labels)``: integer class arrays of shape (N,), or float arrays of shape (N,)
for regression. They return Python floats between -1 and 1. Where scikit-learn or SciPy computes the metric,
they do.
"""
from __future__ import annotations

import re
import string
import warnings
from collections import Counter
from typing import Callable, Dict, Hashable, Iterable, List, Sequence, Union

import numpy as np

from bort.errors import BortError

Values = Union[Sequence[int], Sequence[float], np.ndarray]


def _arrays(predictions: Values, labels: Values) -> List[np.ndarray]:
    pair = [np.asarray(predictions), np.asarray(labels)]
    if pair[0].ndim != 1 or pair[0].shape != pair[1].shape or not len(pair[0]):
        raise BortError("metrics need equally many predictions and labels, at least one: found shapes "
                        f"{pair[0].shape} and {pair[1].shape}")
    return pair


def accuracy(predictions: Values, labels: Values) -> float:
    """Share of equal entries."""
    predicted, gold = _arrays(predictions, labels)
    return float(np.mean(predicted == gold))


def mcc(predictions: Values, labels: Values) -> float:
    """Matthews correlation of two or more classes; 0 when either side has only one class."""
    from sklearn.metrics import matthews_corrcoef

    predicted, gold = _arrays(predictions, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(matthews_corrcoef(gold, predicted))


def f1(predictions: Values, labels: Values) -> float:
    """F1 of class 1; 0 when nothing is predicted or labelled 1."""
    from sklearn.metrics import f1_score

    predicted, gold = _arrays(predictions, labels)
    return float(f1_score(gold, predicted, labels=[1], average="macro", zero_division=0))


def macro_f1(predictions: Values, labels: Values, num_classes: int = 3) -> float:
    """Unweighted mean of the F1 of ``num_classes`` classes (CB); a class that never occurs counts as 0."""
    from sklearn.metrics import f1_score

    predicted, gold = _arrays(predictions, labels)
    return float(f1_score(gold, predicted, labels=list(range(num_classes)), average="macro", zero_division=0))


def _correlation(function: Callable, predictions: Values, labels: Values) -> float:
    predicted, gold = (values.astype(np.float64) for values in _arrays(predictions, labels))
    if len(gold) < 2 or np.ptp(predicted) == 0 or np.ptp(gold) == 0:
        return 0.0  # undefined for a constant; a collapsed model has learned nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = float(function(predicted, gold)[0])
    return value if np.isfinite(value) else 0.0


def pearson(predictions: Values, labels: Values) -> float:
    """Pearson's correlation; 0 when a side is constant."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, labels)


def spearman(predictions: Values, labels: Values) -> float:
    """Spearman's rank correlation; 0 when a side is constant."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, labels)


def rounded_accuracy(predictions: Values, labels: Values) -> float:
    """Agora's view of STS-B (paper, section 5.1): share of predictions that round to the same integer
    as the label.

    Predictions are clipped to the scale (0-5) first. Halves round up, so that 2.5 and 3.5 are treated alike.
    """
    predicted, gold = (values.astype(np.float64) for values in _arrays(predictions, labels))
    return float(np.mean(np.floor(np.clip(predicted, 0, 5) + 0.5) == np.floor(gold + 0.5)))


def multirc_em(predictions: Values, labels: Values, questions: Sequence[Hashable]) -> float:
    """MultiRC's exact match: share of questions all of whose answers are right. ``questions[i]`` is answer
    i's key."""
    predicted, gold = _arrays(predictions, labels)
    if len(questions) != len(gold):
        raise BortError(f"multirc_em needs a question key for each of the {len(gold)} answers, found "
                        f"{len(questions)}")
    right: Dict[Hashable, bool] = {}
    for key, equal in zip(questions, (predicted == gold).tolist()):
        right[key] = right.get(key, True) and equal
    return float(np.mean(list(right.values())))


def gender_parity(predictions: Values) -> float:
    """AX-g: share of minimal pairs (entries 0 and 1, 2 and 3, ...) that got the same prediction,
    whatever the label."""
    predicted = np.asarray(predictions)
    if predicted.ndim != 1 or len(predicted) < 2 or len(predicted) % 2:
        raise BortError("gender parity needs an even number of predictions, at least two: found "
                        f"{predicted.shape}")
    return float(np.mean(predicted[0::2] == predicted[1::2]))


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no English articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of token precision and recall between two normalised answers (bags of tokens)."""
    predicted, gold = normalize_answer(prediction).split(), normalize_answer(answer).split()
    common = sum((Counter(predicted) & Counter(gold)).values())
    return 2.0 * common / (len(predicted) + len(gold)) if common else 0.0


def record_scores(predictions: Sequence[str], answers: Sequence[Iterable[str]]) -> Dict[str, float]:
    """ReCoRD: ``f1`` and ``em``, each the mean over queries of the maximum over that query's answers."""
    if not predictions or len(predictions) != len(answers):
        raise BortError(f"ReCoRD needs the answers of every prediction: found {len(predictions)} predictions "
                        f"and {len(answers)} sets of answers")
    f1s: List[float] = []
    matches: List[float] = []
    for prediction, golds in zip(predictions, answers):
        golds = list(golds)
        f1s.append(max((answer_f1(prediction, gold) for gold in golds), default=0.0))
        matches.append(max((float(normalize_answer(prediction) == normalize_answer(gold)) for gold in golds),
                           default=0.0))
    return {"f1": float(np.mean(f1s)), "em": float(np.mean(matches))}


METRICS: Dict[str, Callable[[Values, Values], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1a": f1,  # MultiRC: over all answers of all questions together
    "macro_f1": macro_f1,
    "mcc": mcc,
    "pearson": pearson,
    "rounded_accuracy": rounded_accuracy,
    "spearman": spearman,
}
"""Metrics of one prediction and one label per example, by the names tasks use."""
