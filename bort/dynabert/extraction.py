"""One sub-network cut out of an adaptive network, as a model of its own."""
from __future__ import annotations

import re
from typing import Any, Dict, Mapping

import numpy as np

from bort.architecture import Architecture
from bort.dynabert.grid import Multipliers
from bort.dynabert.importance import CELL, PROJECTIONS

_LAYER = re.compile(r"encoder\.transformer_cells\.\d+\.")


def cut(arrays: Mapping[str, np.ndarray], full: Architecture, chosen: Multipliers) -> Dict[str, np.ndarray]:
    """The parameters of a sub-network under the names that a network of its own size has for them.

    Args:
        arrays: parameters of the rewired network by their names in model files.

    Returns:
        Copies; parameters outside the layers (embeddings, heads) as they are.
    """
    small = chosen.architecture(full)
    units, inner = small.heads * small.head_size, small.intermediate
    taken = {name: array for name, array in arrays.items() if not _LAYER.match(name)}
    for new, layer in enumerate(chosen.layers(full)):
        old_cell, new_cell = CELL.format(layer), CELL.format(new)
        for name, array in arrays.items():
            if name.startswith(old_cell):
                taken[new_cell + name[len(old_cell):]] = array
        for name in PROJECTIONS:
            for part in ("weight", "bias"):
                key = f"{new_cell}{name}.{part}"
                taken[key] = taken[key][:units]
        taken[f"{new_cell}proj.weight"] = taken[f"{new_cell}proj.weight"][:, :units]
        for part in ("weight", "bias"):
            taken[f"{new_cell}ffn.ffn_1.{part}"] = taken[f"{new_cell}ffn.ffn_1.{part}"][:inner]
        taken[f"{new_cell}ffn.ffn_2.weight"] = taken[f"{new_cell}ffn.ffn_2.weight"][:, :inner]
    return {name: np.array(array) for name, array in taken.items()}


def description_of(description: Mapping[str, Any], full: Architecture, chosen: Multipliers) -> Dict[str, Any]:
    """The members of ``config.json`` of the sub-network, out of the full network's."""
    return {**description, "architecture": chosen.architecture(full).to_dict()}
