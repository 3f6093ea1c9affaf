"""What a person sees of a run: a progress bar, the console, and curves as a picture."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Iterable, List, Mapping, Optional, Sequence

from tqdm import tqdm

from bort.backend import distributed
from bort.files import atomic_write

SECONDS_BETWEEN_LINES = 600
"""Of a progress bar that goes to a file or pipe."""


class _Lines(tqdm):
    """A progress bar where nothing can be drawn over: a line at its end, and one every ten minutes."""

    _printed: Optional[float] = None

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


def say(text: str) -> None:
    """Print a line on the root rank, without tearing a progress bar apart."""
    if distributed.is_root():
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def plot_curves(path: Path, panels: Sequence[Mapping[str, Any]], title: str) -> bool:
    """Draw line plots side by side and save them as PNG.

    Args:
        panels: each ``{"x": label, "y": label, "lines": {name: (xs, ys)}}``; points that are None are left
            out, and ``"log": True`` makes the y axis logarithmic.

    Returns:
        Whether a file was written; it is not when matplotlib (extra ``plots``) is not installed.

    Raises:
        BortError: the folder cannot be written to, or the disk is full.
    """
    try:
        import matplotlib
    except ImportError:
        say(f"no {path.name}: install matplotlib (pip install 'bort[plots]') to get it")
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.8), squeeze=False)
    for axis, panel in zip(axes[0], panels):
        for name, (xs, ys) in panel["lines"].items():
            points: List = [(x, y) for x, y in zip(xs, ys) if x is not None and y is not None]
            if points:
                axis.plot(*zip(*points), marker="o" if len(points) < 30 else None, markersize=3, label=name)
        # steps and rounds are whole
        if all(isinstance(x, int) for xs, _ in panel["lines"].values() for x in xs):
            axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel(panel["x"])
        axis.set_ylabel(panel["y"])
        if panel.get("log"):
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    try:
        with atomic_write(path, "wb") as stream:
            figure.savefig(stream, dpi=120, format="png")
    finally:
        pyplot.close(figure)
    return True
