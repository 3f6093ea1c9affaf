"""What every picture needs: Matplotlib where it is installed, and a file that appears whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence

from bort.files import atomic_write
from bort.training.console import say


def pyplot_for(path: Path) -> Optional[Any]:
    """``matplotlib.pyplot`` without a display; None, and a line that says so, where the extra ``plots`` is
    not installed."""
    try:
        import matplotlib
    except ImportError:
        say(f"no {path.name}: install matplotlib (pip install 'bort[plots]') to get it")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path, title: str) -> None:
    """Write a figure as PNG and close it.

    Raises:
        BortError: the folder cannot be written to, or the disk is full.
    """
    from matplotlib import pyplot

    figure.suptitle(title)
    try:
        with atomic_write(path, "wb") as stream:
            figure.savefig(stream, dpi=120, format="png")
    finally:
        pyplot.close(figure)


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
    pyplot = pyplot_for(path)
    if pyplot is None:
        return False
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.8), squeeze=False,
                                   constrained_layout=True)
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
    save_figure(figure, path, title)
    return True
