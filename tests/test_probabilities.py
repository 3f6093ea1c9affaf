"""Softmax and its logarithm against scipy's."""
from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from bort.probabilities import log_softmax, softmax


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 7)])
def test_they_are_scipys(shape, dtype):
    scores = (np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)
    for ours, theirs in ((softmax, special.softmax), (log_softmax, special.log_softmax)):
        assert ours(scores).dtype == np.dtype(dtype)
        np.testing.assert_allclose(ours(scores), theirs(scores, axis=-1), rtol=1e-6)


def test_large_and_hopeless_scores_stay_finite():
    scores = np.array([[1e4, 0.0, -1e4]])
    np.testing.assert_array_equal(softmax(scores), [[1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(log_softmax(scores), [[0.0, -1e4, -2e4]])
