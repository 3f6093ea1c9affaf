"""Attention that is narrower than the hidden states, for transformers, whose heads always fill them.

Heads of zeros are added until H / d of them stand there. Their values are 0 and the output projection takes
nothing from them, so that every output is the narrow network's own.
"""
from __future__ import annotations

from typing import Any, Callable, Dict, Mapping, Tuple

import numpy as np

from bort.architecture import Architecture
from bort.errors import BortError
from bort.huggingface.tensors import Makers

_ROWS = tuple(f"attention_cell.proj_{name}.{part}" for name in ("query", "key", "value")
              for part in ("weight", "bias"))


def fill_heads(makers: Makers, shapes: Dict[str, Tuple[int, ...]], config: Mapping[str, Any],
               where: str) -> Dict[str, Any]:
    """Pad a narrow network in place; a network whose heads fill its hidden states is left alone.

    Args:
        makers: what makes each array, by its name in model files; ``shapes`` their shapes.
        config: the model's configuration.
        where: names the model in errors.

    Returns:
        The configuration with the filled architecture.

    Raises:
        BortError: whole heads of this size do not fill the hidden states.
    """
    narrow = Architecture.from_dict(config["architecture"], where)
    units, hidden = narrow.attention_units, narrow.hidden
    if units == hidden:
        return dict(config)
    if hidden % narrow.head_size:
        raise BortError(f"{where}: its {narrow.heads} heads of {narrow.head_size} units cannot be expressed "
                        f"at Hugging Face: {hidden} hidden units are no whole number of such heads")
    for name in [name for name in makers if ".transformer_cells." in name]:
        if name.endswith(_ROWS):
            makers[name] = _padded(makers[name], 0, hidden - units)
            shapes[name] = (hidden, *shapes[name][1:])
        elif name.endswith(".proj.weight"):
            makers[name] = _padded(makers[name], 1, hidden - units)
            shapes[name] = (shapes[name][0], hidden)
    full = Architecture(narrow.depth, hidden // narrow.head_size, hidden, narrow.intermediate)
    return {**config, "architecture": full.to_dict()}


def _padded(maker: Callable[[], np.ndarray], axis: int, more: int) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        array = maker()
        return np.pad(array, [(0, more if number == axis else 0) for number in range(array.ndim)])
    return make
