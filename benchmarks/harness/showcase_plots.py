"""The pictures of ``benchmarks.showcase``: ranks over steps, distillation's curves, scores of the tasks."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from bort.json_files import read_jsonl
from bort.training.figures import pyplot_for, save_figure

Rows = Sequence[Mapping[str, Any]]
LABELS = {"mlm": "masked LM alone", "kd": "distillation", "scratch": "distillation, random start"}
COLOURS = dict(zip(LABELS.values(), ("tab:gray", "tab:blue", "tab:orange")))
METHODS = ("teacher", "plain", "plain, equal compute", "distillation, equal compute", "Agora")


def plot_all(output: Path, tables: Mapping[str, Rows], folder: Path, name: str) -> List[str]:
    """Draw what there is; the names of the files written to ``folder``."""
    search = next((rows for heading, rows in tables.items() if heading.startswith("Search")), ())
    settings = {
        label: tables[f"Agora with {label} data"]
        for label in ("scarce", "all")
        if f"Agora with {label} data" in tables
    }
    drawn = {
        f"{name}-search.png": lambda path: plot_ranks(path, search),
        f"{name}-distillation.png": lambda path: plot_distillation(path, output),
        f"{name}-tasks.png": lambda path: plot_tasks(path, settings),
    }
    return [file for file, draw in drawn.items() if draw(folder / file)]


def plot_ranks(path: Path, rows: Rows) -> bool:
    """Rank of every tuple by W, and by error alone, as candidates are trained for more steps."""
    counts = sorted({int(key[10:]) for row in rows for key in row if key.startswith("rank, n = ")})
    if len(counts) < 2:
        return False
    pyplot = pyplot_for(path)
    if pyplot is None:
        return False
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True, constrained_layout=True)
    by_error: Dict[str, List[int]] = {row["⟨D,A,H,I⟩"]: [] for row in rows}
    for count in counts:
        order = sorted(rows, key=lambda row: row[f"error, n = {count}"])
        for rank, row in enumerate(order, start=1):
            by_error[row["⟨D,A,H,I⟩"]].append(rank)
    colours = pyplot.get_cmap("viridis")
    sizes = sorted(row["parameters (M)"] for row in rows)
    for row in rows:
        label = row["⟨D,A,H,I⟩"]
        colour = colours(sizes.index(row["parameters (M)"]) / max(1, len(sizes) - 1))
        axes[0].plot(counts, [row[f"rank, n = {count}"] for count in counts], "o-", color=colour, label=label)
        axes[1].plot(counts, by_error[label], "o-", color=colour, label=label)
    for axis, title in zip(axes, ("by W (size, speed and error)", "by error alone")):
        axis.set(xscale="log", xlabel="training steps of a candidate", title=title)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("rank (1 is best)")
    axes[0].invert_yaxis()
    axes[1].legend(
        fontsize=7,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        title="dark: few\nparameters",
        title_fontsize=7,
    )
    save_figure(figure, path, "Where the FPTAS ranks the tuples")
    return True


def plot_distillation(path: Path, output: Path) -> bool:
    """MLM accuracy of distillation and of the masked LM alone over steps and over core-hours: a thin line a
    seed, a thick one their median."""
    curves: Dict[str, List[List[Mapping[str, Any]]]] = {}
    for method, label in LABELS.items():
        for results in sorted(output.glob(f"{method}-[0-9]*/results.json")):
            rows = read_jsonl(results.parent / "metrics.jsonl")
            curves.setdefault(label, []).append([row for row in rows if "eval_mlm_accuracy" in row])
    if len(curves) < 2:
        return False
    pyplot = pyplot_for(path)
    if pyplot is None:
        return False
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.8), sharey=True, constrained_layout=True)
    for label, seeds in curves.items():
        for axis, key, factor in ((axes[0], "step", 1.0), (axes[1], "seconds", 1 / 3600)):
            points = list(zip(*seeds))
            for seed in seeds:
                axis.plot(*_curve(seed, key, factor), color=COLOURS[label], alpha=0.3, linewidth=0.8)
            xs = [statistics.median(row[key] * factor for row in rows) for rows in points]
            ys = [statistics.median(100 * row["eval_mlm_accuracy"] for row in rows) for rows in points]
            axis.plot(xs, ys, color=COLOURS[label], label=f"{label}, seeds: {len(seeds)}")
    axes[0].set(xlabel="step", ylabel="MLM accuracy, held-out text (%)")
    axes[1].set_xlabel("hours (the teacher's answers included)")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend()
    save_figure(figure, path, "Pre-training the student")
    return True


def _curve(rows: Rows, key: str, factor: float) -> "tuple[List[float], List[float]]":
    return [row[key] * factor for row in rows], [100 * row["eval_mlm_accuracy"] for row in rows]


def plot_tasks(path: Path, settings: Mapping[str, Rows]) -> bool:
    """Dev scores of every method: bars are medians, dots are seeds."""
    if not settings:
        return False
    pyplot = pyplot_for(path)
    if pyplot is None:
        return False
    figure, axes = pyplot.subplots(
        len(settings), 1, figsize=(9, 3.4 * len(settings)), squeeze=False, constrained_layout=True
    )
    for axis, (setting, rows) in zip(axes[:, 0], settings.items()):
        tasks = list(dict.fromkeys(row["task"] for row in rows))
        for place, method in enumerate(METHODS):
            found = {row["task"]: row for row in rows if row["method"] == method and "median" in row}
            xs = [tasks.index(task) + (place - 2) * 0.16 for task in found]
            axis.bar(xs, [row["median"] for row in found.values()], 0.15, label=method, alpha=0.75)
            for x, row in zip(xs, found.values()):
                values = [float(value) for value in row["all"].split()]
                axis.plot([x] * len(values), values, ".", color="black", markersize=3)
        metrics = {row["task"]: row["metric"] for row in rows}
        axis.set_xticks(range(len(tasks)), [f"{task} ({metrics[task]})" for task in tasks])
        axis.set(ylabel="dev set (%)", title=f"{setting} data")
        axis.grid(alpha=0.3, axis="y")
    axes[0, 0].legend(fontsize=7, ncol=len(METHODS))
    save_figure(figure, path, "Agora beside what it is compared with")
    return True
