"""Logits into probabilities, over the last axis. Plain numpy: an exported model runs without scipy."""
from __future__ import annotations

import numpy as np


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities (..., C) of logits (..., C), in their dtype; equal to ``scipy.special.softmax``."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """The logarithms of :func:`softmax`, exact also where a probability underflows."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
