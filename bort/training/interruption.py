"""Ctrl-C and SIGTERM during a training: a checkpoint where that is quick, and how to go on in a line."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from types import FrameType
from typing import Any, Dict, Iterator, Optional

from bort.backend import distributed
from bort.errors import Interrupted
from bort.training.run_folder import RunFolder

PATIENCE_SECONDS = 2.0
CHECKPOINT_BYTES_PER_SECOND = 150e6
"""At least: written, flushed to the disk and read again for the checksum."""


class Interruption:
    """Holds a signal back until the present step has ended and can be saved, if that takes at most about two
    seconds by what the last step took; lets it through at once otherwise, and whenever it comes again.

        with Interruption(run, elements) as interruption:
            while ...:
                with interruption.step():
                    ...                     # one update of the parameters
                if interruption.requested:
                    save(...)
                    raise interruption.saved(step)

    Args:
        run: where checkpoints go; without one, signals are left alone.
        elements: parameters of the network; a checkpoint holds three numbers of four bytes for each.
    """

    def __init__(self, run: Optional[RunFolder], elements: int) -> None:
        self._run = run
        self._saving = 12 * elements / CHECKPOINT_BYTES_PER_SECOND
        self._expected = math.inf
        self._in_step = False
        self._number: Optional[int] = None
        self._before: Dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal is being held back."""
        return self._number is not None

    def __enter__(self) -> Interruption:
        # With several ranks, a signal reaches them at different steps; the last checkpoint has to do.
        if (
            self._run is not None
            and distributed.size() == 1
            and threading.current_thread() is threading.main_thread()
        ):
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, _: Optional[FrameType]) -> None:
        if self._in_step and self._expected <= PATIENCE_SECONDS and not self.requested:
            self._number = number
        else:
            raise Interrupted(number=number)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around one step."""
        began = time.monotonic()
        self._in_step = True
        try:
            yield
        finally:
            self._in_step = False
        self._expected = time.monotonic() - began + self._saving

    def saved(self, step: int) -> Interrupted:
        """What to raise once the checkpoint of ``step`` is written."""
        return Interrupted(
            f"interrupted: a checkpoint of step {step} is written; the same command with --resume "
            "goes on from there",
            self._number or signal.SIGINT,
        )

    def __exit__(self, _: Any, error: Optional[BaseException], *__: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._run is not None and isinstance(error, KeyboardInterrupt) and not str(error):
            steps = self._run.steps()
            where = f"from the checkpoint of step {steps[-1]}" if steps else "from the beginning"
            raise Interrupted(
                f"interrupted: the same command with --resume goes on {where}",
                getattr(error, "number", signal.SIGINT),
            ) from None
