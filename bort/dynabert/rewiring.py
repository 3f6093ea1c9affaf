"""Network rewiring (DynaBERT, section 2.1): in every layer the important heads and neurons come first.

Heads are summed by the output projection and neurons by the second linear layer, so their order is free: a
permutation changes no output of the full network, and a narrower network is then a slice.
"""
from __future__ import annotations

from typing import Dict, Mapping

import numpy as np

from bort.architecture import Architecture
from bort.dynabert.importance import CELL, PROJECTIONS, Importance


def head_units(heads: np.ndarray, head_size: int) -> np.ndarray:
    """The units (A*d,) of the heads in the order given."""
    return (heads[:, None] * head_size + np.arange(head_size)).reshape(-1)


def rewire(arrays: Mapping[str, np.ndarray], architecture: Architecture,
           importance: Importance) -> Dict[str, np.ndarray]:
    """Parameters with every layer's heads and neurons sorted by importance, descending; ties
    keep their order.

    Args:
        arrays: parameters of a body by their names in model files; those of other parts pass through.

    Returns:
        All arrays; the permuted ones are copies.
    """
    rewired = dict(arrays)
    for layer in range(architecture.depth):
        cell = CELL.format(layer)
        units = head_units(np.argsort(-importance.heads[layer], kind="stable"), architecture.head_size)
        neurons = np.argsort(-importance.neurons[layer], kind="stable")
        for name in PROJECTIONS:
            for part in ("weight", "bias"):
                rewired[f"{cell}{name}.{part}"] = arrays[f"{cell}{name}.{part}"][units]
        rewired[f"{cell}proj.weight"] = np.ascontiguousarray(arrays[f"{cell}proj.weight"][:, units])
        for part in ("weight", "bias"):
            rewired[f"{cell}ffn.ffn_1.{part}"] = arrays[f"{cell}ffn.ffn_1.{part}"][neurons]
        rewired[f"{cell}ffn.ffn_2.weight"] = np.ascontiguousarray(
            arrays[f"{cell}ffn.ffn_2.weight"][:, neurons])
    return rewired
