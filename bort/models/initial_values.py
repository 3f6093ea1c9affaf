"""The values that a network's parameters begin with, drawn from a seed and each parameter's name."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np

from bort.backend.mxnet import gluon, mx

INITIAL_DEVIATION, INITIAL_DEVIATION_HIDDEN = 0.02, 1024
"""BERT's standard deviation of the initial weights, and the width it is meant for:
that of BERT-large and of Bort."""


def initialize(block: gluon.Block, seed: int, only_missing: bool = False) -> None:
    """Draw every parameter from ``seed``: matrices normal, cut at two deviations, biases 0, gammas 1.

    The deviation is 0.02 at a width of 1024 and 0.02 sqrt(1024 / H) at others. What a matrix makes of a unit
    vector is then the same at every width; with 0.02 at H = 128, Adam's first steps are so large beside the
    weights that networks of three layers often forget everything but how frequent each word is.

    The draw depends on the seed and on the parameter's name alone, so two networks that share a part share
    its values.

    Args:
        only_missing: leave parameters that already hold values as they are.
    """
    for name, parameter in sorted(block._collect_params_with_prefix().items()):
        if parameter._data is not None and (only_missing or name == "decoder.3.weight"):
            continue
        value = initial_value(name, parameter.shape, seed)
        if parameter._data is None:
            parameter.initialize(init="zeros")
        parameter.set_data(mx.nd.array(value, dtype=parameter.dtype))


def initial_value(name: str, shape: Any, seed: int) -> np.ndarray:
    """What :func:`initialize` gives the parameter ``name``: float32 of ``shape``."""
    if name.endswith(("beta", "bias")):
        return np.zeros(shape, dtype="float32")
    if name.endswith("gamma"):
        return np.ones(shape, dtype="float32")
    hidden = shape[0] if name.endswith(("ffn_2.weight", ".proj.weight")) else shape[1]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return _truncated_normal(rng, shape) * np.float32(initial_deviation(hidden))


def initial_deviation(hidden: int) -> float:
    """Standard deviation (before it is cut) of the initial weights of a network of width H."""
    return INITIAL_DEVIATION * math.sqrt(INITIAL_DEVIATION_HIDDEN / hidden)


def _truncated_normal(rng: np.random.Generator, shape: Any) -> np.ndarray:
    value = rng.standard_normal(shape, dtype="float32")
    outside = np.abs(value) > 2
    while outside.any():
        value[outside] = rng.standard_normal(int(outside.sum()), dtype="float32")
        outside = np.abs(value) > 2
    return value
