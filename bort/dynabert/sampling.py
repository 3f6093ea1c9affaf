"""Which sub-networks a step trains, and a count of what every one of them has computed.

As published, every step trains all sub-networks of its stage. The sandwich rule of slimmable networks (Yu and
Huang, arXiv 1903.05134) trains the largest, the smallest and N others drawn at random, of which the two are
bounds: those between share their parameters and improve with them. The gradients are summed as they are. To
keep the expected sum of all, those of the N drawn out of M would have to be multiplied by M / N, ten for one
of ten; that one's noise would then fill the norm to which the sum is clipped, and the largest network, which
begins at its teacher, would lose what holds it there. So the two ends weigh more than as published.
"""
from __future__ import annotations

from typing import Any, Dict, List, Sequence

import numpy as np

from bort.architecture import Architecture
from bort.dynabert.grid import Multipliers

Passes = List[Dict[str, Any]]
"""Rows with ``stage``, ``width``, ``depth``, ``role`` ("student" or "teacher"), ``forward`` and ``backward``
(passes over the batch of one step, on all ranks together), ``sequences`` (of all those batches) and ``flops``
(of the padded batches; a backward pass counts two forward ones)."""


def draw(networks: Sequence[Multipliers], sampled: int, seed: int, stage: int,
         step: int) -> List[Multipliers]:
    """The networks that a step trains, in the order given; the same on every rank and after a resumption.

    Args:
        networks: of the stage, the largest first and the smallest last, as :func:`bort.dynabert.grid.grid`
            gives them.
        sampled: how many to draw besides those two; 0 takes all.
    """
    between = len(networks) - 2
    if not sampled or sampled >= between:
        return list(networks)
    drawn = np.random.default_rng([seed, 0x44524157, stage, step]).choice(between, sampled, replace=False) + 1
    return [networks[index] for index in sorted({0, *drawn.tolist(), len(networks) - 1})]


def count_passes(passes: Passes, stage: str, role: str, chosen: Multipliers, flops: int,
                 sequences: int) -> None:
    """Add one step's pass of a network to ``passes``.

    Args:
        flops: of its forward pass over the batch.
    """
    key = {"stage": stage, "role": role, "width": chosen.width, "depth": chosen.depth}
    row = next((row for row in passes if all(row[name] == value for name, value in key.items())), None)
    if row is None:
        row = {**key, "forward": 0, "backward": 0, "sequences": 0, "flops": 0}
        passes.append(row)
    backward = role == "student"
    row["forward"] += 1
    row["backward"] += backward
    row["sequences"] += sequences
    row["flops"] += flops * (3 if backward else 1)


def batch_flops(chosen: Multipliers, full: Architecture, sequences: int, length: int) -> int:
    """FLOPs of a forward pass over a batch, padding included."""
    return sequences * chosen.architecture(full).flops(length)
