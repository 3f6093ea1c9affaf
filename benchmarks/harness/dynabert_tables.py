"""The figures of ``benchmarks.dynabert``: scores, compute, and the picture of score over FLOPs."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from bort.architecture import Architecture
from bort.dynabert.grid import Multipliers
from bort.errors import BortError
from bort.training.figures import pyplot_for, save_figure

Key = Tuple[float, float]
STYLES = {
    "ours": {"color": "tab:blue", "marker": "o"},
    "cut": {"color": "tab:gray", "marker": "x"},
    "alone": {"color": "tab:orange", "marker": "s"},
}


def scores(results: Mapping[str, Any]) -> Dict[Key, float]:
    """The first dev metric of every sub-network."""
    name = metric_of(results)
    return {(row["width"], row["depth"]): row[name] for row in results["subnetworks"]}


def metric_of(results: Mapping[str, Any]) -> str:
    """The first dev metric."""
    return next(iter(results["metrics"]["dev"]))


def dev_score(results: Mapping[str, Any]) -> float:
    """The first dev metric of a network of one size."""
    return results["metrics"]["dev"][metric_of(results)]


def steps_of(results: Mapping[str, Any], one: Multipliers) -> int:
    """Optimizer steps of the stages that a sub-network belongs to: those of widths, and at all depths."""
    last = {row["stage"]: row["step"] for row in results["history"]}
    return sum(count for stage, count in last.items() if stage != "width" or one.depth == 1)


class Cost(NamedTuple):
    """FLOPs of trainings.

    Attributes:
        adaptive: what the adaptive training has computed, teachers included.
        alone: of training every sub-network by itself, for as many steps as its stages had.
        each: the same of every sub-network.
    """

    adaptive: float
    alone: float
    each: Dict[Key, float]


def cost(results: Mapping[str, Any], networks: Sequence[Multipliers], full: Architecture) -> Cost:
    """The compute of the adaptive training from the passes that it noted, and that of training alone.

    A network alone takes its mean FLOPs of a step in each of its stages at every step of that stage, and the
    fixed teacher answers every training example once for it. Evaluations are left out on both sides.

    Raises:
        BortError: the run noted no passes, or the full network took part in none.
    """
    passes = results.get("passes")
    if not passes:
        raise BortError(
            "a run has no record of its passes: it was trained by an earlier version; choose another --output"
        )
    steps = {row["stage"]: row["step"] for row in results["history"]}
    trained = {(row["stage"], row["width"], row["depth"]): row for row in passes if row["role"] == "student"}
    largest = {stage: trained[stage, 1.0, 1.0] for stage in steps}  # which takes part in every step
    asked = (
        sum(row["flops"] for row in largest.values())
        / sum(3 * row["sequences"] for row in largest.values())
        * results["rows"]
    )
    each = {}
    for one in networks:
        total = asked
        for stage, count in steps.items():
            if stage != "width" or one.depth == 1:
                row = trained.get((stage, one.width, one.depth))
                # Who was never drawn takes the full network's share by its size.
                total += count * (
                    row["flops"] / row["forward"]
                    if row
                    else (
                        largest[stage]["flops"]
                        / largest[stage]["forward"]
                        * one.architecture(full).flops(32)
                        / full.flops(32)
                    )
                )
        each[one.width, one.depth] = total
    return Cost(float(sum(row["flops"] for row in passes)), sum(each.values()), each)


def percent(values: Sequence[Optional[float]]) -> Optional[float]:
    """The median in percent, of those that are there."""
    known = [value for value in values if value is not None]
    return round(100 * statistics.median(known), 2) if known else None


def aims(rows: Sequence[Mapping[str, Any]]) -> str:
    """How far a task's table is from the aims of the adaptive network, as far as it was measured."""
    parts, teacher = [], rows[0].get("cut")
    for name, width, least in (("full size", 1, -0.5), ("half width", 0.5, -2.0)):
        found = [row["ours"] for row in rows if (row["width"], row["depth"]) == (width, 1)]
        if teacher is not None and found:
            parts.append(f"{name} {found[0] - teacher:+.2f} points from the teacher (aim: {least:g} at most)")
    for kind, others, aim in (("cut", rows[1:], "all"), ("alone", rows, "most")):
        compared = [row["ours"] > row[kind] for row in others if row.get(kind) is not None]
        if compared:
            parts.append(f"{sum(compared)} of {len(compared)} above {kind} (aim: {aim})")
    return "; ".join(parts)


def plot(path: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
    """Score over FLOPs, a panel for each table: ours with its Pareto front as a line, cut, alone, and the
    teacher's score; False where matplotlib is not installed."""
    pyplot = pyplot_for(path)
    if pyplot is None:
        return False
    figure, axes = pyplot.subplots(
        1, len(tables), figsize=(5.5 * len(tables), 4.2), squeeze=False, constrained_layout=True
    )
    for axis, (heading, rows) in zip(axes[0], tables.items()):
        teacher = rows[0].get("cut")
        shown = [row[kind] for row in rows for kind in ("ours", "alone") if row.get(kind) is not None]
        lowest = min(shown) - 0.25 * max(1.0, max([*shown, teacher or 0]) - min(shown))
        for kind, style in STYLES.items():
            points = [(row["GFLOP"], row[kind]) for row in rows if row.get(kind) is not None]
            if points:
                axis.plot(*zip(*pareto(points)), color=style["color"], linewidth=1, alpha=0.6)
                axis.scatter(*zip(*points), label=kind, zorder=3, **style)
            below: Dict[float, List[float]] = {}  # networks cut without training are often near guessing
            for x, y in points:
                if y < lowest:
                    below.setdefault(round(x, 1), []).append(y)
            for x, values in below.items():
                text = ", ".join(f"{value:.3g}" for value in sorted(values))
                axis.annotate(
                    f"{text} ↓",
                    (x, lowest),
                    (0, 3),
                    textcoords="offset points",
                    fontsize=7,
                    ha="center",
                    color=style["color"],
                )
        axis.set_ylim(bottom=lowest)
        if teacher is not None:
            axis.axhline(teacher, color="black", linewidth=0.8, linestyle="--", label="teacher")
        axis.set(title=heading, xlabel="GFLOP of a sequence", ylabel="dev (%)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save_figure(figure, path, "Score over operations (lines: Pareto fronts)")
    return True


def pareto(points: Sequence[Tuple[float, float]]) -> List[Tuple[float, float]]:
    """The (cost, score) points that no other beats at no more cost, by rising cost."""
    front: List[Tuple[float, float]] = []
    for cost_of, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost_of, value))
    return front
