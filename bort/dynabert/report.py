"""Score, parameters, FLOPs and latency of every sub-network: ``table.md``, ``table.csv``, ``pareto.png``."""
from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import numpy as np
import pandas as pd

from bort.architecture import Architecture
from bort.dynabert.grid import Multipliers
from bort.files import atomic_write
from bort.training.figures import pyplot_for, save_figure
from bort.training.tables import markdown, write_csv


def row_of(chosen: Multipliers, full: Architecture, metrics: Dict[str, float], vocab_size: int,
           max_length: int, length: int) -> Dict[str, Any]:
    """What the table says of a sub-network.

    Args:
        metrics: in the task's units, a share of 1.
        length: tokens of the sequence whose FLOPs are counted.
    """
    small = chosen.architecture(full)
    return {"width": chosen.width, "depth": chosen.depth, "architecture": small.display,
            **{name: float(value) for name, value in metrics.items()},
            "parameters": small.parameters(vocab_size, max_length)["body"],
            "flops": small.flops(length, vocab_size)}


def measure(engines: Sequence[Callable[[np.ndarray, np.ndarray], Any]], vocab_size: int, length: int,
            trials: int, seed: int = 0) -> List[float]:
    """Median seconds of a forward pass over one sequence, the networks in turn so that all meet
    the same conditions.

    Args:
        engines: each called with token ids (1, length) int32 and valid lengths (1,) float32.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, vocab_size, (1, length)).astype(np.int32)
    valid = np.array([length], dtype=np.float32)
    for engine in engines:
        engine(ids, valid)
        engine(ids, valid)
    seconds: List[List[float]] = [[] for _ in engines]
    for _ in range(trials):
        for taken, engine in zip(seconds, engines):
            started = time.perf_counter()
            engine(ids, valid)
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in seconds]


def frame_of(rows: Sequence[Dict[str, Any]]) -> pd.DataFrame:
    """The table in the units people read: percent, millions, GFLOP, milliseconds."""
    frame = pd.DataFrame(rows)
    for name in frame.columns:
        if name == "parameters":
            frame[name] = frame[name] / 1e6
        elif name == "flops":
            frame[name] = frame[name] / 1e9
        elif name == "seconds":
            frame[name] = frame[name] * 1e3
        elif name not in ("width", "depth", "architecture", "W", "error", "size", "speed", "loss"):
            frame[name] = frame[name] * 100
    return frame.rename(columns={"parameters": "parameters (M)", "flops": "GFLOP", "seconds": "ms"})


def front(rows: Sequence[Dict[str, Any]], cost: str, metric: str) -> List[int]:
    """Indices of the Pareto front: no other row costs no more and scores better,
    or costs less and scores no worse."""
    return [index for index, own in enumerate(rows)
            if not any(other[cost] <= own[cost] and other[metric] >= own[metric]
                       and (other[cost] < own[cost] or other[metric] > own[metric]) for other in rows)]


def write_table(folder: Path, rows: Sequence[Dict[str, Any]], metric: str, title: str,
                extra: Sequence[str] = ()) -> str:
    """Write ``table.md``, ``table.csv`` and ``pareto.png`` into ``folder``; returns the Markdown."""
    frame = frame_of(rows)
    text = "\n".join([f"# {title}", "", *extra, "" if extra else None or "", markdown(frame), ""])
    with atomic_write(folder / "table.md") as stream:
        stream.write(text)
    write_csv(folder / "table.csv", frame)
    plot(folder / "pareto.png", rows, metric, title)
    return markdown(frame)


def plot(path: Path, rows: Sequence[Dict[str, Any]], metric: str, title: str) -> bool:
    """Score over every cost that was counted or measured, a line for each depth, the Pareto front ringed;
    False where matplotlib is not installed."""
    pyplot = pyplot_for(path)
    if pyplot is None:
        return False
    costs = [(name, label, factor) for name, label, factor in (
        ("parameters", "parameters of the body (M)", 1e-6), ("flops", "GFLOP a sequence", 1e-9),
        ("seconds", "latency (ms)", 1e3)) if all(name in row for row in rows)]
    figure, axes = pyplot.subplots(1, len(costs), figsize=(5 * len(costs), 4), squeeze=False,
                                   constrained_layout=True)
    for axis, (name, label, factor) in zip(axes[0], costs):
        for depth in sorted({row["depth"] for row in rows}, reverse=True):
            own = sorted((row for row in rows if row["depth"] == depth), key=lambda row: row["width"])
            axis.plot([factor * row[name] for row in own], [100 * row[metric] for row in own], marker="o",
                      markersize=4, label=f"depth {depth:g}")
        best = [rows[index] for index in front(rows, name, metric)]
        axis.scatter([factor * row[name] for row in best], [100 * row[metric] for row in best], s=90,
                     facecolors="none", edgecolors="black", label="Pareto front")
        axis.set_xlabel(label)
        axis.set_ylabel(f"{metric} (%)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save_figure(figure, path, title)
    return True
