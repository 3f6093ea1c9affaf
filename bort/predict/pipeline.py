"""A stream of inputs through an engine: read ahead by a thread, batched by length within windows of inputs.

The batches of a window follow those of the one before without a pause, as long as the next window is at hand.
When it is not (a pipe that is slower than the network), the answers that are under way are given out first.
"""
from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections import deque
from types import TracebackType
from typing import Any, Deque, Generic, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Type, TypeVar

import numpy as np

from bort.batching import LENGTH_MULTIPLE, cheapest_groups, pad_batch, padded_length, token_groups
from bort.engines.base import Batch, Engine
from bort.predict.records import Record

MAX_TOKENS = 4096
"""Padded tokens of a batch at most: cores are busy with these, and 32 long texts would take gigabytes."""
OPEN_WINDOWS = 2
"""Windows whose batches are under way at a time."""
Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """``items``, read by a thread up to ``size`` of them ahead; a context manager, which ends the thread.

    What the thread raises is raised in place of the next item.
    """

    def __init__(self, items: Iterable[Item], size: int) -> None:
        self._queue: "queue.Queue[Any]" = queue.Queue(size)
        self._stop = threading.Event()
        self._end: Any = None
        self._thread = threading.Thread(target=self._read, args=(items,), daemon=True)

    def __enter__(self) -> "Ahead[Item]":
        self._thread.start()
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self._stop.set()
        # Not for ever: the thread may be waiting for a line of a pipe that nobody writes to.
        self._thread.join(timeout=2.0)

    def __iter__(self) -> Iterator[Item]:
        """All items, each waited for."""
        while True:
            item = self._end or self._queue.get()
            if isinstance(item, _End):
                self._end = item
                if item.error is not None:
                    raise item.error
                return
            yield item[0]

    def at_hand(self) -> Iterator[Item]:
        """Items for as long as none has to be waited for."""
        while self._end is None:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, _End):
                self._end = item  # for __iter__, after what came before it was given out
            else:
                yield item[0]

    def _read(self, items: Iterable[Item]) -> None:
        try:
            for item in items:
                if not self._put((item,)):
                    return
            self._put(_End())
        except BaseException as error:  # raised again where the items are asked for
            self._put(_End(error))

    def _put(self, item: Any) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return True
        return False


class _End(NamedTuple):
    error: Optional[BaseException] = None


class Window(NamedTuple):
    """Consecutive records, and the token sequences of their examples."""

    records: List[Record]
    sequences: List[np.ndarray]


class Batching(NamedTuple):
    """How sequences become batches: at most ``batch_size`` in one, padded with ``pad_id``, none longer than
    ``max_length``."""

    batch_size: int
    pad_id: int
    max_length: int


class _Running:
    """A window of which outputs are still missing; ``groups`` are indices of its sequences, one a batch."""

    def __init__(self, window: Window, batching: Batching, engine: Engine, longest_first: bool) -> None:
        lengths = np.array([len(sequence) for sequence in window.sequences], dtype=np.int64)
        if engine.any_batch:
            finest = engine.length_multiple
            padded = np.array([padded_length(length, batching.max_length, _rounding(length, finest))
                               for length in lengths.tolist()])
            groups = cheapest_groups(padded, MAX_TOKENS, batching.batch_size)
        else:
            groups = list(token_groups(lengths, np.arange(len(lengths)), MAX_TOKENS,
                                       most=batching.batch_size))
        self.window, self.groups = window, groups if longest_first else groups[::-1]
        self.outputs: List[np.ndarray] = []

    def batches(self, batching: Batching, multiple: int) -> Iterator[Batch]:
        for group in self.groups:
            sequences = [self.window.sequences[index] for index in group]
            yield pad_batch(sequences, batching.pad_id, batching.max_length,
                            _rounding(max(map(len, sequences)), multiple))

    @property
    def complete(self) -> bool:
        return len(self.outputs) == len(self.groups)

    def result(self) -> Tuple[Window, np.ndarray]:
        if not self.groups:
            return self.window, np.zeros((0, 1), dtype=np.float32)
        found = np.concatenate(self.outputs)
        result = np.empty_like(found)
        result[np.concatenate(self.groups)] = found
        return self.window, result


def _rounding(longest: int, finest: int) -> int:
    """What to round the length ``longest`` of a batch up to a multiple of: a 16th to a 32nd of it, between
    ``finest`` and ``LENGTH_MULTIPLE``, so that there is little padding in few shapes."""
    return max(finest, min(LENGTH_MULTIPLE, 1 << max(0, longest.bit_length() - 5)))


def scored(windows: Iterable[Window], engine: Engine, batching: Batching
           ) -> Iterator[Tuple[Window, np.ndarray]]:
    """Every window with the engine's outputs (N, C) for its N sequences, in the order of both.

    Args:
        windows: read only while fewer than :data:`OPEN_WINDOWS` of them are under way.
    """
    waiting = iter(windows)
    running: Deque[_Running] = deque()
    many = ended = longest_first = False

    def batches() -> Iterator[Batch]:
        nonlocal ended, longest_first
        while len(running) < OPEN_WINDOWS:
            window = next(waiting, None)
            if window is None:
                ended = True
                return
            # In turns, so that a window begins with the shapes that the last one ended with.
            longest_first = not longest_first
            running.append(_Running(window, batching, engine, longest_first))
            yield from running[-1].batches(batching, engine.length_multiple)

    def complete() -> Iterator[Tuple[Window, np.ndarray]]:
        while running and running[0].complete:
            yield running.popleft().result()

    while not ended:
        upcoming = batches()
        first = list(itertools.islice(upcoming, 2))
        many = many or len(first) == 2
        # One batch as soon as it can be had; several in the least time together.
        rest = itertools.chain(first, upcoming)
        for values in engine.map(rest) if many else (engine(*batch) for batch in rest):
            yield from complete()
            running[0].outputs.append(values)
            yield from complete()
        yield from complete()
