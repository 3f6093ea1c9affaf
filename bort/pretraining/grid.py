"""The grid search before a training: short runs on the same few sequences, best first.

Section 4.2: "over a smaller subset of our training data to tune the batch size, learning rate, and warmup
proportion".
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Sequence

from bort.errors import BortError
from bort.json_files import write_json
from bort.training.run_folder import finite, on_root

NAMES: Dict[str, Callable[[str], Any]] = {"lr": float, "warmup-ratio": float, "total-batch-size": int}
MAX_RUNS = 1000

Point = Dict[str, Any]
"""A member of a grid: option name, without dashes in front, to value."""


def parse_grid(words: Sequence[str]) -> List[Point]:
    """``lr=1e-4,3e-4 total-batch-size=256,1024`` as all combinations, the last one varying fastest.

    Raises:
        BortError: a name is unknown or stands twice, a value is no number or stands twice, or there are more
            than :data:`MAX_RUNS` combinations.
    """
    columns: Dict[str, List[Any]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        if name not in NAMES or not equals:
            raise BortError(f"--grid {word}: give NAME=VALUE,VALUE with one of {', '.join(NAMES)}")
        if name in columns:
            raise BortError(f"--grid: {name} stands twice")
        try:
            columns[name] = [NAMES[name](value) for value in values.split(",")]
        except ValueError as error:
            raise BortError(f"--grid {word}: {error}") from error
        if len(set(columns[name])) < len(columns[name]):
            raise BortError(f"--grid {word}: a value stands twice")
    count = math.prod(map(len, columns.values()))
    if count > MAX_RUNS:
        raise BortError(f"--grid: {count} combinations are more than {MAX_RUNS}")
    return [dict(zip(columns, values)) for values in itertools.product(*columns.values())]


def name_of(point: Point) -> str:
    """The folder of a point: ``lr-0.0001,warmup-ratio-0.01``."""
    return ",".join(f"{name}-{value:g}" for name, value in point.items())


def search_grid(
    points: Sequence[Point], run: Callable[[Point, Path], Mapping[str, Any]], output: Path
) -> List[Dict[str, Any]]:
    """Train every point, rank them by their evaluation loss, and write ``output/grid.json``.

    Args:
        run: trains a point in a folder, or takes the results of one that has ended; returns them.

    Returns:
        A row for each point, the best first; those without a finite loss come last.
    """
    rows = []
    for point in points:
        results = run(point, output / name_of(point))
        rows.append(
            {
                **point,
                **{
                    name: results.get(name)
                    for name in ("eval_mlm_loss", "eval_mlm_accuracy", "tokens", "seconds", "skipped")
                },
            }
        )
    rows.sort(key=_loss)
    on_root(lambda: write_json(output / "grid.json", [finite(row) for row in rows]))
    return rows


def _loss(row: Mapping[str, Any]) -> float:
    loss = row["eval_mlm_loss"]
    return loss if loss is not None and math.isfinite(loss) else math.inf


def table(rows: Sequence[Mapping[str, Any]]) -> List[str]:
    """The rows of :func:`search_grid` as lines for the console, and the options of the best one."""
    names = [name for name in NAMES if name in rows[0]]
    lines = ["  ".join([*(f"{name:>16}" for name in names), f"{'loss':>8}", f"{'accuracy':>8}"])]
    for row in rows:
        loss, accuracy = (
            math.nan if row[name] is None else row[name] for name in ("eval_mlm_loss", "eval_mlm_accuracy")
        )
        lines.append(
            "  ".join([*(f"{row[name]:>16g}" for name in names), f"{loss:>8.4f}", f"{accuracy:>8.2%}"])
        )
    best = " ".join(f"--{name} {rows[0][name]:g}" for name in names)
    return [*lines, f"best: {best}"]
