"""Dynamic masking: how many, which, replaced by what, and reproducible from (seed, epoch, example)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bort.errors import BortError
from bort.masked_lm.masking import MaskingPolicy

V, MASK = 200, 199
SPECIAL = frozenset({0, 1, 2, 3, 198, MASK})
STARTS = np.arange(V) % 3 != 0


def batch_of(lengths, width, seed=0, specials=True):
    """Padded rows ``<s> ... </s>`` with random ordinary tokens; padding is filled with garbage on purpose."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, 198, (len(lengths), width)).astype(np.int32)
    for row, length in enumerate(lengths):
        if specials and length:
            ids[row, 0] = 0
            ids[row, length - 1] = 2
    return ids, np.asarray(lengths)


def rows_of(masked, row):
    keep = masked.weights[row] > 0
    return list(zip(masked.positions[row][keep].tolist(), masked.labels[row][keep].tolist()))


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    extra=st.integers(0, 9),
    seed=st.integers(-9, 2**70),
    epoch=st.integers(0, 10**6),
    whole=st.booleans(),
    ratio=st.sampled_from([0.01, 0.15, 0.5, 1.0]),
)
def test_invariants(lengths, extra, seed, epoch, whole, ratio):
    ids, valid = batch_of(lengths, max(lengths) + extra + 1, seed % 1000)
    before = ids.copy()
    policy = MaskingPolicy(V, MASK, SPECIAL, ratio=ratio, word_starts=STARTS if whole else None)
    masked = policy.mask_batch(ids, valid, seed, epoch, np.arange(len(lengths)) * 7 + 1)
    assert np.array_equal(ids, before), "the batch itself is left alone"
    assert [array.dtype for array in masked] == [np.int32, np.int32, np.int32, np.float32]
    assert (
        masked.inputs.shape == ids.shape
        and masked.positions.shape == masked.labels.shape == masked.weights.shape
    )
    assert masked.positions.shape[1] >= 1 and set(np.unique(masked.weights)) <= {0.0, 1.0}
    for row, length in enumerate(lengths):
        pairs = rows_of(masked, row)
        places = [place for place, _ in pairs]
        ordinary = [place for place in range(length) if ids[row, place] not in SPECIAL]
        assert places == sorted(set(places)) and set(places) <= set(ordinary)
        assert [label for _, label in pairs] == ids[row, places].tolist()
        untouched = np.setdiff1d(np.arange(ids.shape[1]), places)
        assert np.array_equal(masked.inputs[row, untouched], ids[row, untouched])
        assert not set(masked.inputs[row, places].tolist()) & (SPECIAL - {MASK})
        if not whole:
            assert len(places) == (max(1, int(ratio * len(ordinary) + 0.5)) if ordinary else 0)
        elif ordinary:
            assert places and (ratio < 1 or places == ordinary)
        unused = masked.weights[row] == 0
        assert not masked.positions[row][unused].any() and not masked.labels[row][unused].any()


def test_distribution_of_counts_actions_and_replacements():
    ids, valid = batch_of([128] * 400, 128, seed=5)
    policy = MaskingPolicy(V, MASK, SPECIAL)
    masked = policy.mask_batch(ids, valid, 1, 0, np.arange(400))
    assert (masked.weights.sum(axis=1) == round(0.15 * 126)).all()
    rows, places = np.repeat(np.arange(400), masked.positions.shape[1]), masked.positions.ravel()
    after, labels = masked.inputs[rows, places], masked.labels.ravel()
    total = len(after)
    is_mask, kept = after == MASK, after == labels
    random = ~is_mask & ~kept
    for observed, expected in ((is_mask, 0.8), (random, 0.1 * (1 - 1 / 194)), (kept, 0.1 * (1 + 1 / 194))):
        assert abs(observed.mean() - expected) < 4.5 * np.sqrt(expected * (1 - expected) / total)
    drawn = np.bincount(after[random], minlength=V)
    assert drawn[sorted(SPECIAL)].sum() == 0
    ordinary = np.setdiff1d(np.arange(V), sorted(SPECIAL))
    expected = random.sum() / len(ordinary)
    chi_square = ((drawn[ordinary] - expected) ** 2 / expected).sum()
    assert abs(chi_square - (len(ordinary) - 1)) < 5 * np.sqrt(2 * len(ordinary))
    where = np.bincount(places, minlength=128)
    assert where[0] == where[127] == 0
    chi_square = ((where[1:127] - total / 126) ** 2 / (total / 126)).sum()
    assert chi_square < 125 + 5 * np.sqrt(250), "every position is as likely"


def test_positions_of_different_examples_and_epochs_are_independent():
    ids, valid = batch_of([128] * 200, 128, seed=6)
    policy = MaskingPolicy(V, MASK, SPECIAL)
    one, two = (policy.mask_batch(ids, valid, 3, epoch, np.arange(200)) for epoch in (0, 1))
    overlap = [len(set(a) & set(b)) for a, b in zip(one.positions.tolist(), two.positions.tolist())]
    expected = 19 * 19 / 126
    assert abs(np.mean(overlap) - expected) < 0.6
    neighbours = [
        len(set(a) & set(b)) for a, b in zip(one.positions[:-1].tolist(), one.positions[1:].tolist())
    ]
    assert abs(np.mean(neighbours) - expected) < 0.6


def test_an_example_is_masked_the_same_in_any_company_and_with_any_padding():
    ids, valid = batch_of([9, 30, 21], 30, seed=7)
    for starts in (None, STARTS):
        policy = MaskingPolicy(V, MASK, SPECIAL, word_starts=starts)
        together = policy.mask_batch(ids, valid, 11, 4, np.array([5, 6, 7]))
        wide = np.concatenate([ids, np.full((3, 17), 1, np.int32)], axis=1)
        padded = policy.mask_batch(wide[::-1], valid[::-1], 11, 4, np.array([7, 6, 5]))
        for row in range(3):
            length = valid[row]
            alone = policy.mask_batch(
                ids[row : row + 1, :length], valid[row : row + 1], 11, 4, np.array([5 + row])
            )
            assert rows_of(alone, 0) == rows_of(together, row) == rows_of(padded, 2 - row)
            assert np.array_equal(alone.inputs[0], together.inputs[row, :length])
            assert np.array_equal(alone.inputs[0], padded.inputs[2 - row, :length])


def test_seed_epoch_and_example_each_matter():
    ids, valid = batch_of([60], 60)
    policy = MaskingPolicy(V, MASK, SPECIAL)
    results = {
        tuple(policy.mask_batch(ids, valid, seed, epoch, np.array([example])).inputs[0].tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
        for example in (0, 1)
    }
    assert len(results) == 8
    again = policy.mask_batch(ids, valid, 1, 1, np.array([1])).inputs[0]
    assert tuple(again.tolist()) in results


def test_whole_words_are_masked_whole_and_in_the_right_number():
    ids, valid = batch_of([128] * 300, 128, seed=8)
    policy = MaskingPolicy(V, MASK, SPECIAL, word_starts=STARTS)
    masked = policy.mask_batch(ids, valid, 0, 0, np.arange(300))
    for row in range(300):
        places = {place for place, _ in rows_of(masked, row)}
        for place in range(1, 126):
            if not STARTS[ids[row, place + 1]]:
                assert (place in places) == (place + 1 in places)
    assert abs(masked.weights.sum(axis=1).mean() - 19) < 0.35


def test_only_masks_or_only_kept_tokens():
    ids, valid = batch_of([50] * 20, 50)
    examples = np.arange(20)
    every = MaskingPolicy(V, MASK, SPECIAL, mask_prob=1, random_prob=0).mask_batch(ids, valid, 0, 0, examples)
    assert (np.take_along_axis(every.inputs, every.positions, axis=1) == MASK).all()
    none = MaskingPolicy(V, MASK, SPECIAL, mask_prob=0, random_prob=0).mask_batch(ids, valid, 0, 0, examples)
    assert np.array_equal(none.inputs, ids) and none.weights.sum() == every.weights.sum()


@pytest.mark.parametrize(
    "settings_",
    [
        {"ratio": 0},
        {"ratio": 1.1},
        {"mask_prob": 0.9, "random_prob": 0.2},
        {"random_prob": -0.1},
        {"word_starts": STARTS[:-1]},
        {"vocab_size": 100},
        {"special_ids": range(V)},
    ],
)
def test_impossible_settings_are_refused(settings_):
    with pytest.raises(BortError):
        MaskingPolicy(**{"vocab_size": V, "mask_id": MASK, "special_ids": SPECIAL, **settings_})


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": np.array([[5, V]])},
        {"token_ids": np.array([[5, -1]])},
        {"token_ids": np.array([[5.0, 6.0]])},
        {"valid_length": np.array([3])},
        {"valid_length": np.array([1, 1])},
        {"example_ids": np.array([[1]])},
    ],
)
def test_batches_that_do_not_fit_are_refused(change):
    batch = {
        "token_ids": np.array([[5, 6]]), "valid_length": np.array([2]), "example_ids": np.array([0]),
        **change,
    }
    with pytest.raises(BortError):
        MaskingPolicy(V, MASK, SPECIAL).mask_batch(seed=0, epoch=0, **batch)
