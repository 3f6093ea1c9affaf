"""Parameters by name, before they become a network: do they fit, are they finite, is there an MLM head."""
from __future__ import annotations

from typing import Collection, Dict, List, Mapping, Tuple

import numpy as np

from bort.errors import BortError
from bort.models.initial_values import initial_value

SHOWN = 8
"""Names of each kind that an error about parameters shows."""


def differences(wanted: Mapping[str, Tuple[int, ...]], found: Mapping[str, Tuple[int, ...]],
                optional: Collection[str] = ()) -> str:
    """What is missing, extra or of another shape, in one line; "" where nothing is.

    Each of the three kinds is shown, however many there are of the others.

    Args:
        optional: wanted names that may be missing.
    """
    kinds = {"missing": [f"missing {name} {shape}" for name, shape in wanted.items()
                         if name not in found and name not in optional],
             "extra": [f"extra {name} {shape}" for name, shape in found.items() if name not in wanted],
             "of another shape": [f"{name} is {found[name]} instead of {shape}"
                                  for name, shape in wanted.items()
                                  if name in found and tuple(found[name]) != tuple(shape)]}
    parts: List[str] = []
    for kind, items in kinds.items():
        parts += items[:SHOWN]
        parts += [f"{len(items) - SHOWN} more {kind}"] if len(items) > SHOWN else []
    return "; ".join(parts)


def check_finite(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse weights that no network can be used with.

    Raises:
        BortError: an array holds NaN or infinity; the first is named.
    """
    broken = not_finite(arrays)
    if broken:
        others = f" and in {len(broken) - 1} more arrays" if len(broken) > 1 else ""
        raise BortError(f"{where}: NaN or infinity in {broken[0]}{others}: the training that wrote it "
                        "diverged, or the file was damaged; take an earlier checkpoint")


def not_finite(arrays: Mapping[str, np.ndarray]) -> List[str]:
    """Names of the arrays that hold NaN or infinity."""
    return [name for name, array in arrays.items() if not np.isfinite(array).all()]


def random_mlm_head(vocab_size: int, hidden: int, seed: int = 0) -> Dict[str, np.ndarray]:
    """The parameters, float32, of an MLM head as it is initialized: for a body that came without one."""
    shapes = {"decoder.0.weight": (hidden, hidden), "decoder.0.bias": (hidden,), "decoder.2.gamma": (hidden,),
              "decoder.2.beta": (hidden,), "decoder.3.bias": (vocab_size,)}
    return {name: initial_value(name, shape, seed) for name, shape in shapes.items()}
