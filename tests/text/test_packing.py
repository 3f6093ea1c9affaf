"""Packing sentences into sequences."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bort.text.shards.packing import pack_sentences


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), max_size=25),
    opens=st.lists(st.booleans(), min_size=25, max_size=25),
    max_length=st.integers(8, 24),
    order=st.randoms(use_true_random=False),
)
def test_packing_keeps_every_token_in_order(lengths, opens, max_length, order):
    tokens = np.arange(10, 10 + sum(lengths), dtype=np.uint16)
    starts = np.cumsum([0] + lengths)[:-1]
    shuffled = list(range(len(lengths)))
    order.shuffle(shuffled)
    starts, sizes = starts[shuffled].astype(np.int64), np.array(lengths, dtype=np.int64)[shuffled]
    opened = np.array(opens[: len(lengths)], dtype=bool)
    packed, offsets = pack_sentences(tokens, starts, sizes, opened, max_length, bos_id=0, eos_id=2)
    assert offsets[0] == 0 and offsets[-1] == len(packed) and packed.dtype == np.uint16
    expected = [
        token for start, size in zip(starts, sizes) for token in tokens[start : start + size].tolist()
    ]
    assert [token for token in packed.tolist() if token >= 10] == expected
    sequences = [packed[a:b].tolist() for a, b in zip(offsets[:-1].astype(int), offsets[1:].astype(int))]
    sentence_at = {
        int(tokens[start]): (int(size), bool(flag))
        for start, size, flag in zip(starts, sizes, opened)
        if size
    }
    for number, sequence in enumerate(sequences):
        assert sequence[0] == 0 and sequence[-1] == 2 and 3 <= len(sequence) <= max_length
        for place, token in enumerate(sequence[2:-1], start=2):
            # A separator stands inside exactly where a document begins.
            if token in sentence_at:
                assert (sequence[place - 1] == 2) == sentence_at[token][1]
        assert sequence.count(0) == 1
        if number:
            # The sequence before had no room for this one's first sentence.
            size, flag = sentence_at.get(sequence[1], (max_length, False))
            assert len(sequences[number - 1]) + min(size, max_length - 2) + flag > max_length


def test_a_sentence_longer_than_a_sequence_is_cut():
    packed, offsets = pack_sentences(
        np.arange(10, 30, dtype=np.uint32), np.array([0]), np.array([20]), np.array([True]), 10, 0, 2
    )
    assert offsets.tolist() == [0, 10, 20, 26]
    assert packed[10:20].tolist() == [0, *range(18, 26), 2]
