"""Sentences to sequences of a bounded length."""

from __future__ import annotations

from typing import List, Tuple

import numpy as np

OFFSETS = np.dtype("<u8")


def pack_sentences(
    tokens: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    opens: np.ndarray,
    max_length: int,
    bos_id: int,
    eos_id: int,
) -> Tuple[np.ndarray, np.ndarray]:
    """Fill sequences with whole sentences, as RoBERTa's FULL-SENTENCES does (Liu et al., 2019, section 4.2).

    A sequence is ``<s>``, sentences as long as they fit, ``</s>``. It may go on into the next document, with
    another ``</s>`` between. A sentence that is longer than a sequence is cut.

    Args:
        tokens: ids, any number of dimensions 1.
        starts, lengths: (n,) where each sentence is in ``tokens``, in the order in which they are packed.
        opens: bool (n,), whether a separator stands before the sentence when it is not the first
            of its sequence.
        max_length: of a sequence, with ``<s>`` and ``</s>``.

    Returns:
        The ids of all sequences in a row (dtype of ``tokens``), and the uint64 (sequences + 1,) offsets.
    """
    room = max_length - 2
    pieces: List[Tuple[int, int, bool]] = []  # begin, size, separator before
    ends: List[int] = []  # for each sequence, the number of pieces up to its end
    used = 0
    for start, size, opened in zip(starts.tolist(), lengths.tolist(), opens.tolist()):
        end = start + size
        while start < end:
            part = min(room, end - start)
            extra = 1 if opened and used else 0
            if used and used + extra + part > room:
                ends.append(len(pieces))
                used = extra = 0
            pieces.append((start, part, bool(extra)))
            used += extra + part
            start += part
            opened = False
    if used:
        ends.append(len(pieces))
    total = sum(size + separated for _, size, separated in pieces) + 2 * len(ends)
    packed = np.full(total, eos_id, dtype=tokens.dtype)
    offsets = np.zeros(len(ends) + 1, dtype=OFFSETS)
    place = piece = 0
    for number, end in enumerate(ends):
        packed[place] = bos_id
        place += 1
        for begin, size, separated in pieces[piece:end]:
            place += separated
            packed[place : place + size] = tokens[begin : begin + size]
            place += size
        place += 1
        piece = end
        offsets[number + 1] = place
    return packed, offsets
