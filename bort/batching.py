"""Ragged token sequences into padded batches, with as little padding and as
few shapes as possible. No MXNet."""
from __future__ import annotations

from typing import Any, Iterator, List, Optional, Sequence, Tuple

import numpy as np

LENGTH_MULTIPLE = 8
"""Batches are padded to a multiple of this, so that few shapes are compiled and vector units are filled."""

BATCH_OVERHEAD = 20
"""Tokens that a batch counts for besides its own: 20 gave Bort's stream a few more sentences a second than
60."""


def padded_length(longest: int, max_length: int, multiple: int = LENGTH_MULTIPLE) -> int:
    """``longest`` rounded up to ``multiple``, but beyond ``max_length`` only if it is itself."""
    return max(longest, min(-(-longest // multiple) * multiple, max_length))


def pad_batch(sequences: Sequence[np.ndarray], pad_id: int, max_length: int,
              multiple: int = LENGTH_MULTIPLE) -> Tuple[np.ndarray, np.ndarray]:
    """Pad sequences to their longest member, rounded up to ``multiple`` but never beyond ``max_length``.

    Returns:
        ``token_ids`` (B, T) int32 and ``valid_length`` (B,) float32.
    """
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    width = padded_length(int(lengths.max()), max_length, multiple)
    token_ids = np.full((len(sequences), width), pad_id, dtype=np.int32)
    for row, sequence in enumerate(sequences):
        token_ids[row, :len(sequence)] = sequence
    return token_ids, lengths.astype(np.float32)


def token_groups(lengths: np.ndarray, order: np.ndarray, max_tokens: int, parts: int = 1,
                 most: Optional[int] = None) -> Iterator[np.ndarray]:
    """``order`` in groups of similar length, longest first (so that memory is claimed once).

    Sizes depend on the padded length alone, so that batches come in few shapes.

    Args:
        order: indices of ``lengths``.
        max_tokens: padded tokens of each of the ``parts`` shares of a group, or one sequence.
        most: sequences of a share.
    """
    lengths = np.asarray(lengths)
    order = order[np.argsort(-lengths[order], kind="stable")]
    start = 0
    while start < len(order):
        padded = -(-max(1, int(lengths[order[start]])) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        count = max(1, max_tokens // padded)
        count = parts * (count if most is None else min(most, count))
        yield order[start:start + count]
        start += count


def cheapest_groups(lengths: np.ndarray, max_tokens: int, most: int, overhead: int = BATCH_OVERHEAD
                    ) -> List[np.ndarray]:
    """Groups of similar length with the least padding that few batches allow, longest first: of all ways to
    cut the sorted lengths into groups the one with the fewest padded tokens plus ``overhead`` for each group
    (by dynamic programming, in O(N ``most``)).

    Sizes are whatever comes out, so this suits engines that take any shape alike.

    Args:
        lengths: (N,), as batches pad them.
        max_tokens: padded tokens of a group, or one sequence.
        most: sequences of a group.
    """
    order = np.argsort(lengths, kind="stable")
    widths = np.maximum(1, np.asarray(lengths, dtype=np.int64)[order])
    cost, start = np.zeros(len(widths) + 1, dtype=np.int64), np.zeros(len(widths) + 1, dtype=np.int64)
    sizes = np.arange(most, 0, -1)
    for end, width in enumerate(widths.tolist(), 1):
        largest = min(most, end, max(1, max_tokens // width))
        costs = cost[end - largest:end] + width * sizes[most - largest:]
        chosen = int(costs.argmin())
        cost[end], start[end] = costs[chosen] + overhead, end - largest + chosen
    groups, end = [], len(widths)
    while end:
        groups.append(order[start[end]:end])
        end = int(start[end])
    return groups


def shuffled_batches(lengths: np.ndarray, batch_size: int, rng: np.random.Generator,
                     window: int = 32) -> List[np.ndarray]:
    """One epoch of training batches: shuffled, then sorted by length within windows of ``window`` batches.

    Every index is in exactly one batch. All batches but one hold ``batch_size`` indices. The order of the
    batches is shuffled again, so that the training sees no curriculum of lengths.
    """
    order = rng.permutation(len(lengths))
    span = batch_size * window
    batches: List[np.ndarray] = []
    for start in range(0, len(order), span):
        part = order[start:start + span]
        part = part[np.argsort(np.asarray(lengths)[part], kind="stable")]
        batches.extend(part[begin:begin + batch_size] for begin in range(0, len(part), batch_size))
    return [batches[index] for index in rng.permutation(len(batches))]


def share(batch: np.ndarray, part: int, parts: int) -> np.ndarray:
    """The members of ``batch`` that ``part`` of ``parts`` handles:
    strided, so that lengths stay alike everywhere."""
    return batch[part::parts]


def token_types(F: Any, token_ids: Any, separator_id: Optional[int], count: int) -> Any:
    """The type of every token of ``[CLS] A [SEP] B [SEP]``: 0 up to the first separator and with it, then 1.

    Args:
        F: ``numpy``, ``mx.nd`` or ``mx.sym``, whichever ``token_ids`` (B, T) belong to.
        separator_id: None gives every token type 0.
        count: the types that there are; further segments have the last one.

    Returns:
        (B, T) integers below ``count``.
    """
    separators = (token_ids == (-1 if separator_id is None else separator_id)) * 1
    return F.minimum(F.cumsum(separators, axis=1) - separators, count - 1)


def chunks(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive pieces of at most ``size``."""
    for start in range(0, len(indices), size):
        yield indices[start:start + size]
