"""What a person sees of a run: a progress bar, the console, and curves as a picture."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Iterable, Optional

from tqdm import tqdm

from bort.backend import distributed

logger = logging.getLogger("bort.training")

SECONDS_BETWEEN_LINES = 600
"""Of a progress bar that goes to a file or pipe."""


class _Lines(tqdm):
    """A progress bar where nothing can be drawn over: a line at its end, and one every ten minutes."""

    _printed: Optional[float] = None

    disable: bool

    def display(self, msg: Optional[str] = None, pos: Optional[int] = None) -> None:
        now = time.monotonic()
        if self._printed is None:  # where tqdm draws an empty bar
            self._printed = now
        elif now - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = now
            self._print()

    def _print(self) -> None:
        print(str(self), file=self.fp, flush=True)

    def close(self) -> None:
        if not self.disable:
            if self.leave:
                self._print()
            self.disable = True


def progress(iterable: Optional[Iterable] = None, **settings: Any) -> tqdm:
    """A tqdm bar on standard error, shown by the root rank only; a file or pipe gets one line for each bar
    (none for those that would vanish, ``leave=False``), and a line every ten minutes of a long one."""
    settings = {"file": sys.stderr, "disable": not distributed.is_root(), **settings}
    if sys.stderr.isatty():
        return tqdm(iterable, **{"mininterval": 0.2, "dynamic_ncols": True, **settings})
    return _Lines(iterable, **settings)


def warn(text: str) -> None:
    """Log a warning on the root rank; a command prints it as a line ``WARNING: ...``."""
    if distributed.is_root():
        logger.warning("%s", text)


def say(text: str) -> None:
    """Print a line on the root rank, without tearing a progress bar apart."""
    if distributed.is_root():
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
