"""Streams of inputs through an engine: order, batches of like length, no pause between windows, ends."""
from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from bort.engines.base import Engine
from bort.predict import pipeline
from bort.predict.pipeline import Ahead, Batching, Window, scored


class Sums(Engine):
    """Outputs (B, 2): the sum and the number of a sequence's tokens. It asks for ``ahead`` batches before it
    gives out the first outputs, as engines with several requests do."""

    length_multiple = 1
    max_length = 64

    def __init__(self, ahead=1):
        self.ahead, self.shapes, self.calls = ahead, [], []

    def __call__(self, token_ids, valid_length, positions=None):
        self.calls.append("one")
        return self.compute(token_ids, valid_length)

    def compute(self, token_ids, valid_length):
        self.shapes.append(token_ids.shape)
        real = np.arange(token_ids.shape[1]) < valid_length[:, None]
        return np.stack([(token_ids * real).sum(1), valid_length], axis=1).astype("float32")

    def map(self, batches):
        self.calls.append("many")
        begun = []
        for batch in batches:
            begun.append(batch)
            if len(begun) > self.ahead:
                yield self.compute(*begun.pop(0))
        for batch in begun:
            yield self.compute(*batch)


def windows(counts, seed=0):
    rng = np.random.default_rng(seed)
    return [Window([], [rng.integers(1, 100, rng.integers(1, 60)) for _ in range(count)]) for count in counts]


def run(given, engine, batch_size=4):
    return list(scored(iter(given), engine, Batching(batch_size, 0, 64)))


@pytest.mark.parametrize("ahead", [0, 1, 3, 50])
def test_outputs_are_each_sequences_own_in_the_order_given(ahead):
    given = windows([13, 0, 1, 20, 0])
    found = run(given, Sums(ahead))
    assert len(found) == len(given)
    for (window, outputs), expected in zip(found, given):
        assert window is expected
        assert outputs[:, 0].tolist() == [sequence.sum() for sequence in window.sequences]


def test_batches_are_of_like_length_and_bounded(monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_TOKENS", 128)
    engine, given = Sums(), windows([200])
    run(given, engine, batch_size=8)
    tokens = sum(len(sequence) for sequence in given[0].sequences)
    assert sum(rows * length for rows, length in engine.shapes) < 1.12 * tokens
    assert all(rows <= 8 and rows * length <= 128 + length for rows, length in engine.shapes)


def test_an_engine_that_takes_any_batch_gets_hardly_any_padding(monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_TOKENS", 128)
    engine, given = Sums(), windows([200, 30])
    engine.any_batch = True
    found = run(given, engine, batch_size=8)
    for window, outputs in found:
        assert outputs[:, 0].tolist() == [sequence.sum() for sequence in window.sequences]
    tokens = sum(len(sequence) for window in given for sequence in window.sequences)
    assert sum(rows * length for rows, length in engine.shapes) < 1.03 * tokens
    assert all(rows <= 8 and rows * length <= 128 for rows, length in engine.shapes)


def test_the_next_window_follows_without_a_pause_while_one_is_at_hand():
    engine = Sums(ahead=2)
    run(windows([8, 8, 8]), engine)
    assert engine.calls.count("many") < 3  # otherwise requests would run out at the end of each window
    alone = Sums()
    run(windows([3]), alone)
    assert alone.calls == ["one"]


def test_no_window_is_begun_before_it_is_needed():
    begun = []

    def endless():
        for window in windows([8] * 50):
            begun.append(window)
            yield window

    rows = scored(endless(), Sums(ahead=20), Batching(4, 0, 64))
    next(rows)
    assert len(begun) <= pipeline.OPEN_WINDOWS


def test_what_is_at_hand_is_given_out_before_the_next_is_waited_for():
    go_on = threading.Event()

    def slow():
        yield 1
        go_on.wait(10)
        yield 2

    with Ahead(slow(), 2) as items:
        every = iter(items)
        assert next(every) == 1
        assert list(items.at_hand()) == []
        go_on.set()
        assert next(every) == 2 and next(every, "end") == "end" and list(items.at_hand()) == []


def test_an_error_comes_after_what_was_read_before_it_and_the_thread_ends():
    def broken():
        yield 1
        yield 2
        raise RuntimeError("disk gone")

    with Ahead(broken(), 5) as items:
        every = iter(items)
        first = [next(every)]
        deadline = time.monotonic() + 10
        while len(first) < 2 and time.monotonic() < deadline:
            first += items.at_hand()
        assert first == [1, 2]
        with pytest.raises(RuntimeError, match="disk gone"):
            next(every)
    before = threading.active_count()
    with Ahead(iter(int, 1), 1):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_an_interruption_in_the_middle_ends_stream_and_thread():
    class Interrupted(Sums):
        def compute(self, token_ids, valid_length):
            if len(self.shapes) == 5:
                raise KeyboardInterrupt
            return super().compute(token_ids, valid_length)

    before, found = threading.active_count(), []
    with pytest.raises(KeyboardInterrupt), Ahead(iter(windows([8] * 20)), 2) as items:
        for window, _ in scored(iter(items), Interrupted(ahead=0), Batching(4, 0, 64)):
            found.append(window)
    assert len(found) == 2 and threading.active_count() == before
