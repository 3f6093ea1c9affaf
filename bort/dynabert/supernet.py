"""The FPTAS's choice among the sub-networks of one trained network, with their real errors.

    W(xi) = (p(T) - p(xi)) (i(T) - i(xi)) / (p(T) i(T) e(xi))             (equation 2 of the Bort paper)

T is the full network, p counts parameters and i floating-point operations as in ``bort.search``. e, which
there is the error after a few steps of training, is here that of a network which is trained already: its
mean loss (or its share of wrong answers) on examples that the training left out. Every sub-network is
evaluated, so there is no interval and no representative.

Widths are the same in every layer: a member of the family has one number of heads and one intermediate size.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Sequence

from bort.architecture import Architecture
from bort.dynabert.grid import Multipliers, grid
from bort.dynabert.report import row_of
from bort.errors import BortError
from bort.search.fptas import Surrogates, w_coefficient

ERRORS = ("loss", "wrong")


@dataclass(frozen=True)
class SupernetSettings:
    """What determines the result of the search.

    Attributes:
        widths, depths: shares to look at; not only those that were trained.
        error: "loss", the mean cross-entropy (squared error in regression) on the kept examples, or "wrong",
            1 less the task's first metric there.
        length: tokens of the sequence whose FLOPs are counted.
    """

    widths: Sequence[float]
    depths: Sequence[float]
    error: str = "loss"
    length: int = 128

    def __post_init__(self) -> None:
        if self.error not in ERRORS:
            raise BortError(f"--error {self.error}: a supernet's sub-networks have {' or '.join(ERRORS)}")
        if self.length < 1:
            raise BortError(f"--max-length must be at least 1, not {self.length}")


def search_supernet(full: Architecture, vocab_size: int, max_length: int, settings: SupernetSettings,
                    score: Callable[[Multipliers], Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Every sub-network with its W, the largest first.

    Args:
        full: T's architecture.
        score: ``{"loss": float, "metrics": {name: share}, "dev": {name: share}}`` of a sub-network; ``dev``
            may be empty and decides nothing.

    Returns:
        Rows as of :func:`bort.dynabert.report.row_of` with ``size``, ``speed``, ``error`` and ``W``. The full
        network has W = 0 by definition.
    """
    limit = Surrogates(full.parameters(vocab_size, max_length)["total"],
                       full.flops(settings.length, vocab_size))
    rows = []
    for chosen in grid(settings.widths, settings.depths, full):
        small, found = chosen.architecture(full), score(chosen)
        cost = Surrogates(small.parameters(vocab_size, max_length)["total"],
                          small.flops(settings.length, vocab_size))
        metrics = {f"kept {name}": float(value) for name, value in found["metrics"].items()}
        dev = {f"dev {name}": float(value) for name, value in found["dev"].items()}
        wrong = 1 - next(iter(found["metrics"].values()))
        error = float(found["loss"] if settings.error == "loss" else wrong)
        rows.append({**row_of(chosen, full, {**metrics, **dev}, vocab_size, max_length, settings.length),
                     "loss": float(found["loss"]), "size": cost.size, "speed": cost.speed, "error": error,
                     "W": w_coefficient(cost, limit, error)})
    return sorted(rows, key=lambda row: (-row["W"], row["size"], row["speed"]))
