"""Batches of pre-training: one global batch however it is shared, fresh masks, labels."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bort.errors import BortError
from bort.masked_lm.batches import BatchPlan, BatchStream, make_batch, shuffled_token_batches
from tests.pretraining.common import BOS, EOS, MASK, PAD, MemoryCorpus, corpus
from tests.tiny import MAX_LENGTH


def stream(size=1, rank=0, **settings):
    data = corpus(50)
    settings = {"batch_size": 4, **settings}
    return BatchStream(data.train, data.policy, PAD, MAX_LENGTH, BatchPlan(seed=3, **settings), rank, size)


def content(batches):
    """Every sequence of some batches with its masked inputs and labels."""
    found = {}
    for batch in batches:
        width = batch.token_ids.shape[1]
        for member, example in enumerate(batch.examples):
            mine = batch.rows // width == member
            length = int(batch.valid_length[member])
            found[int(example)] = (
                batch.token_ids[member, :length].tolist(),
                (batch.rows[mine] % width).tolist(),
                batch.labels[mine].tolist(),
            )
    return found


@pytest.mark.parametrize("settings", [{"batch_size": 4}, {"max_tokens": 96}], ids=str)
def test_ranks_and_micro_batches_share_one_global_batch(settings):
    whole = stream(**{key: value * 4 for key, value in settings.items()})
    ranks = [stream(2, rank, accumulate=2, **settings) for rank in range(2)]
    for _ in range(8):  # into the second epoch
        expected = content(whole.next())
        parts = [part for rank in ranks for part in rank.next()]
        if settings.get("batch_size"):
            assert content(parts) == expected
        else:
            assert all(part.token_ids.size <= 96 for part in parts)


def test_an_epoch_has_every_sequence_once_and_fresh_masks():
    batches = stream()
    epochs = [
        content([part for _ in range(batches.steps_per_epoch()) for part in batches.next()]) for _ in range(3)
    ]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({json.dumps(epoch) for epoch in epochs}) == 3
    tokens = {json.dumps(sorted(epoch.items())) for epoch in epochs}
    assert len(tokens) == 3  # sorted, so it is the masks that differ
    repeating = stream(mask_passes=2)
    epochs = [
        content([part for _ in range(repeating.steps_per_epoch()) for part in repeating.next()])
        for _ in range(3)
    ]
    assert sorted(epochs[0].items()) == sorted(epochs[2].items()) != sorted(epochs[1].items())
    assert list(epochs[0]) != list(epochs[2])
    groups = shuffled_token_batches(np.arange(1, 60), 64, 2, np.random.default_rng(0))
    assert sorted(np.concatenate(groups)) == list(range(59))


def test_a_mask_seed_decides_the_masks_alone():
    def masks(**settings):
        data = corpus(50)
        batches = BatchStream(
            data.train, data.policy, PAD, MAX_LENGTH, BatchPlan(**{"batch_size": 4, **settings})
        )
        return content([part for _ in range(batches.steps_per_epoch()) for part in batches.next()])

    three, four, same = masks(seed=3), masks(seed=4, mask_seed=3), masks(seed=3, mask_seed=3)
    assert sorted(three.items()) == sorted(four.items()) and list(three) != list(four)
    assert same == three and list(same) == list(three)
    assert sorted(masks(seed=4).items()) != sorted(four.items())


def test_labels_are_the_tokens_that_were_there():
    data = corpus()
    batch = make_batch(data.train, np.array([3, 7, 20]), data.policy, 1, 2, PAD, MAX_LENGTH)
    original = [data.train[index] for index in (3, 7, 20)]
    width = batch.token_ids.shape[1]
    assert [original[row // width][row % width] for row in batch.rows] == batch.labels.tolist()
    assert set(batch.labels).isdisjoint({BOS, EOS, PAD, MASK}) and batch.tokens == sum(map(len, original))
    assert (batch.token_ids.ravel()[batch.rows] == MASK).any()


@pytest.mark.parametrize("longest, message", [(MAX_LENGTH + 9, "--max-length 24"), (0, "no sequences")])
def test_a_corpus_that_does_not_fit_is_refused(longest, message):
    data = MemoryCorpus(30 if longest else 0, 0, longest or 10)
    with pytest.raises(BortError, match=message):
        BatchStream(data, corpus().policy, PAD, MAX_LENGTH, BatchPlan(seed=0))
