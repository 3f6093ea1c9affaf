"""The points of D: how they are balanced, ordered and stored."""
from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bort.agora.points import Addition, Queue, level, level_what_comes
from bort.errors import BortError


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=2, max_size=6),
       st.integers(0, 120))
def test_additions_level_the_labels_within_the_budget(pairs, budget):
    counts, offered = (np.array(column) for column in zip(*pairs))
    accepted = level(counts, offered, budget)
    assert (accepted >= 0).all() and (accepted <= offered).all() and accepted.sum() <= budget
    before, after = counts.max() - counts.min(), (counts + accepted).max() - (counts + accepted).min()
    assert after <= max(before, 1)
    # nobody was left behind while another one went ahead of him by more than one
    for stratum in range(len(counts)):
        if accepted[stratum] < offered[stratum]:
            lifted = (counts + accepted)[accepted > 0]
            assert not len(lifted) or lifted.max() <= (counts + accepted)[stratum] + 1
    enough = np.full(len(counts), budget + 60)
    assert level(counts, enough, budget).sum() == budget


def test_a_class_that_never_comes_does_not_hold_up_the_others():
    counts, offered = np.array([10, 10, 12]), np.array([0, 30, 30])
    assert level(counts, offered, 20).tolist() == [0, 2, 0]
    assert level_what_comes(counts, offered, 20, offered > 0).tolist() == [0, 11, 9]
    offered = np.array([0, 30, 0])  # one class alone cannot be balanced with anything but what is there
    assert level_what_comes(counts, offered, 20, offered > 0).tolist() == [0, 2, 0]


def test_a_class_that_comes_rarely_is_taken_whole_and_holds_up_nobody():
    counts, offered = np.array([39, 40, 5]), np.array([200, 200, 1])
    assert level(counts, offered, 168).tolist() == [1, 0, 1]  # CB, before: 2 points instead of 168
    assert level_what_comes(counts, offered, 168, offered > 0).tolist() == [84, 83, 1]
    assert level_what_comes(counts, np.array([50, 200, 1]), 168, offered > 0).tolist() == [50, 49, 1]
    # of two classes the other one is all there is to be level with
    two, offered = np.array([40, 40]), np.array([200, 3])
    assert level_what_comes(two, offered, 168, offered > 0).tolist() == [3, 3]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=2, max_size=6),
       st.integers(0, 120))
def test_what_comes_is_levelled_among_what_is_left(pairs, budget):
    counts, offered = (np.array(column) for column in zip(*pairs))
    accepted = level_what_comes(counts, offered, budget, offered > 0)
    assert (accepted >= 0).all() and (accepted <= offered).all() and accepted.sum() <= budget
    assert accepted.sum() >= level(counts, offered, budget).sum()
    left = accepted < offered
    if left.sum() > 1:  # more was offered of several classes: the budget is spent, or they stand on one level
        heights = (counts + accepted)[left & (accepted > 0)]
        assert accepted.sum() == budget or not len(heights) or heights.max() - heights.min() <= 1


def test_the_queue_begins_with_what_was_wrong():
    labels = np.array([0, 0, 1, 0, 1, 0])
    queue = Queue.of([3, 4], labels, np.random.default_rng(0))
    zeros = queue.take(0, 6)
    assert zeros[0] == (3, 0) and {point for point, _ in zeros[:4]} == {0, 1, 3, 5} and zeros[4] == (3, 1)
    assert queue.take(0, 1) == [(zeros[2][0], 1)] and queue.take(1, 1) == [(4, 0)] and queue.take(2, 5) == []
    allowed = np.array([True, False, True, False, False, True])
    some = Queue.of([3, 4], labels, np.random.default_rng(0), allowed)
    assert {point for point, _ in some.take(0, 4)} == {0, 5} and some.take(1, 2) == [(2, 0), (2, 1)]


def test_an_addition_survives_its_line():
    addition = Addition(1, 0, "train/3", "mlm", np.array([0, 7, 2], np.int32), 1, 0.75,
                        np.array([0.1, 0.3], np.float32))
    again = Addition.from_row(json.loads(json.dumps(addition.row(["x"], "yes"))))
    assert again.row(["x"], "yes") == addition.row(["x"], "yes") and again.scores.dtype == np.float32
    with pytest.raises(BortError, match="additions.jsonl"):
        Addition.from_row({"round": 1})
