"""Loss functions over small outputs (classes, scores). Those over the vocabulary are in
``bort.masked_lm.losses``."""

from __future__ import annotations

from typing import Any

import numpy as np

from bort.backend.mxnet import nd
from bort.probabilities import log_softmax


def hard_loss(scores: Any, labels: Any) -> Any:
    """Cross-entropy of every example.

    Args:
        scores: (B, C) logits.
        labels: (B,) class indices as float32.

    Returns:
        (B,) float32.
    """
    return -nd.pick(nd.log_softmax(scores, axis=-1), labels, axis=-1)


def regression_loss(scores: Any, targets: Any) -> Any:
    """Squared error of every example (STS-B, section 5.1); ``scores`` (B, 1), ``targets`` (B,); returns
    (B,)."""
    return nd.square(scores.reshape((-1,)) - targets)


def soft_loss(scores: Any, teacher_scores: Any, temperature: float) -> Any:
    """Distillation of every example: T^2 CE(softmax(teacher / T), softmax(student / T)).

    T^2 keeps the gradient's size as T varies (Hinton et al., 2015). ``scores`` and ``teacher_scores`` are (B,
    C) logits; no gradient flows to the teacher's. For C = 1 (regression) it is the squared error to the
    teacher's score. Returns (B,) float32.
    """
    if scores.shape[-1] == 1:
        return nd.square(scores - teacher_scores).reshape((-1,))
    target = nd.softmax(nd.BlockGrad(teacher_scores) / temperature, axis=-1)
    return -(target * nd.log_softmax(scores / temperature, axis=-1)).sum(axis=-1) * temperature**2


def mean_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross-entropy of logits (N, C) to classes (N,), in nats; of values (N, 1) the mean squared
    error. Computed in float64."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape[1] == 1:
        return float(np.mean((scores[:, 0] - labels) ** 2))
    logs = log_softmax(scores)
    return float(-np.mean(logs[np.arange(len(logs)), np.asarray(labels, dtype=np.int64)]))
