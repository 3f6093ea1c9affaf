"""Which heads, neurons and layers of the full network each sub-network keeps (DynaBERT, section 2)."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Sequence, Tuple

from bort.architecture import Architecture
from bort.errors import BortError

WIDTHS = (1.0, 0.75, 0.5, 0.25)
DEPTHS = (1.0, 0.75, 0.5)


def _part(whole: int, multiplier: float) -> int:
    """``whole`` times ``multiplier`` to the nearest whole number, halves up, and never none."""
    return max(1, math.floor(whole * multiplier + 0.5))


@dataclass(frozen=True, order=True)
class Multipliers:
    """One sub-network: the share of heads and neurons, and the share of layers, that it keeps."""

    width: float = 1.0
    depth: float = 1.0

    def __post_init__(self) -> None:
        for name in ("width", "depth"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
                raise BortError(f"a {name} is a share above 0 and at most 1, not {value!r}")

    def __str__(self) -> str:
        return f"width {self.width:g}, depth {self.depth:g}"

    def layers(self, full: Architecture) -> Tuple[int, ...]:
        """Indices of the layers that stay: floor(i / depth) for the first round(depth * D) i."""
        return tuple(min(full.depth - 1, math.floor(index / self.depth + 1e-9))
                     for index in range(_part(full.depth, self.depth)))

    def matched(self, full: Architecture) -> Tuple[int, ...]:
        """Which of the teacher's D + 1 hidden states (embeddings first) each of the n + 1 of the sub-network
        learns: the input of the same layer, and for the last one the last."""
        return (*self.layers(full), full.depth)

    def architecture(self, full: Architecture) -> Architecture:
        """The sub-network as a member of the family; H and the size of a head are the full network's."""
        return Architecture(len(self.layers(full)), _part(full.heads, self.width), full.hidden,
                            _part(full.intermediate, self.width), head_size=full.head_size)


def grid(widths: Sequence[float], depths: Sequence[float], full: Architecture) -> List[Multipliers]:
    """Every pair of a width and a depth, the largest first; one of those that come to the same network.

    Raises:
        BortError: a share is out of range, or the full network (1, 1) is not among them.
    """
    found, seen = [], set()
    for depth in sorted(set(depths), reverse=True):
        for width in sorted(set(widths), reverse=True):
            candidate = Multipliers(width, depth)
            if (candidate.architecture(full), candidate.layers(full)) not in seen:
                seen.add((candidate.architecture(full), candidate.layers(full)))
                found.append(candidate)
    if Multipliers(1.0, 1.0) not in found:
        raise BortError("--widths and --depths must both contain 1: the full network is the largest of them")
    return found
