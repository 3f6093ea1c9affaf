"""What a search leaves for people and for the next command: Table 1 beside the paper's, ``best.json``, a
picture."""
from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

import numpy as np
import pandas as pd

from bort.architecture import Architecture
from bort.errors import BortError
from bort.files import atomic_write
from bort.json_files import read_sealed, write_json
from bort.paper import TABLE_1, TABLE_1_TRIALS
from bort.search.fptas import SPACE_FILE
from bort.search.lines import LINES_FILE
from bort.search.settings import SearchSettings
from bort.search.timing import SUMMARY_FILE
from bort.training.figures import pyplot_for, save_figure
from bort.training.tables import markdown, write_csv

Row = Mapping[str, Any]


BORT = TABLE_1[0].architecture


def architecture_of(row: Row) -> Architecture:
    """The tuple of a row of ``candidates.jsonl``."""
    return Architecture.from_dict(row["architecture"], "candidates.jsonl")


def pareto(rows: Sequence[Row], keys: Sequence[str] = ("size", "speed", "error")) -> List[int]:
    """Indices of the rows that no other row beats: none is at most as large in every key and smaller in
    one."""
    values = np.array([[row[key] for key in keys] for row in rows], dtype="float64").reshape(len(rows),
                                                                                             len(keys))
    return [index for index, own in enumerate(values)
            if not ((values <= own).all(axis=1) & (values < own).any(axis=1)).any()]


def table1(rows: Sequence[Row], space: Sequence[Row], top: int) -> List[Dict[str, Any]]:
    """Our first ``top`` rows, then the paper's rows as far as this search knows their tuples.

    Args:
        rows: ranked, the largest W first.
        space: every tuple's row of ``space.json``, T's included.
    """
    known = {architecture_of(row): row for row in [*space, *rows]}  # a trained one has more to say
    places = {architecture_of(row): number for number, row in enumerate(rows, start=1)}
    paper = {row.architecture: row for row in TABLE_1}
    table = []
    first = [architecture_of(row) for row in rows[:top]]
    for xi in dict.fromkeys([*first, *(xi for xi in paper if xi in known)]):
        ours, theirs = known.get(xi, {}), paper.get(xi)
        table.append({
            "rank": places.get(xi), "paper": theirs.name if theirs else None, "⟨D,A,H,I⟩": xi.display,
            "W": ours.get("W"), "paper's W": theirs.w if theirs else None, "error": ours.get("error"),
            "parameters (M)": ours["parameters"] / 1e6 if ours else None,
            "Lemma 2 (M)": ours["lemma2_parameters"] / 1e6 if ours else None,
            "paper's (M)": theirs.parameters_millions if theirs else None,
            "GFLOP/line": ours["flops"] / 1e9 if ours else None, "s/sample": ours.get("seconds_per_sample"),
            "paper's s/sample": theirs.seconds if theirs else None})
    return table


def write_table(folder: Path, rows: Sequence[Row], space: Mapping[str, Any], settings: SearchSettings) -> str:
    """Write ``table1.md`` and ``table1.csv``; returns the Markdown."""
    table = table1(rows, space["tuples"], settings.top)
    frame = pd.DataFrame(table, dtype=object)
    drawn = folder / "lines" / LINES_FILE
    facts = read_sealed(drawn) if drawn.is_file() else {}
    length = facts.get("max_length", settings.max_length)
    error = {"ce": "cross-entropy to T", "kl": "divergence from T"}[settings.error]
    lines = ["# Table 1, searched again", "",
             f"{len(rows)} of {len(settings.space)} tuples were "
             f"{'trained' if settings.steps else 'looked at'} (ε = {settings.epsilon}, n = {settings.steps} "
             f"steps of {settings.batch_size} lines of {settings.max_length} tokens"
             + (f", of which the shards give at most {length}" if length < settings.max_length else "")
             + f", V = {space['vocab_size']:,}, seed {settings.seed}). Maximum point "
             f"{space['maximum']}{', random weights' if space['weights'] == 'random' else ''}. Error: "
             f"{error if settings.steps else '1 for all, as nothing was trained'}. Sizes and FLOPs by "
             f"{settings.counts} counts; W takes the speed {settings.speed}.", ""]
    speed = folder / SUMMARY_FILE
    if settings.speed == "measured" and speed.is_file():
        facts = read_sealed(speed)
        lines += [f"Seconds per sample: medians of {facts['passes']:,} trials (the paper: means of "
                  f"{TABLE_1_TRIALS:,}; our means are in {SUMMARY_FILE}), each a pass over "
                  f"{facts['batch_size']} x {facts['length']} tokens, in {facts['rounds']} interleaved "
                  f"rounds, {facts['threads']} threads ({facts['wait_policy']} waiting).", ""]
    lines += [markdown(frame.dropna(axis="columns", how="all"))]
    lines += ["", *_absent(rows, space["tuples"]),
              "Ranks count the tuples above. The paper's figures are those it prints, on its machines."]
    with atomic_write(folder / "table1.md") as stream:
        stream.write("\n".join(lines) + "\n")
    write_csv(folder / "table1.csv", frame)
    return "\n".join(lines)


def _absent(rows: Sequence[Row], space: Sequence[Row]) -> List[str]:
    """Why tuples of the paper's table have no W here."""
    found, known = {architecture_of(row) for row in rows}, {architecture_of(row) for row in space}
    elsewhere = [theirs.name for theirs in TABLE_1[:-1] if theirs.architecture not in known]
    represented = [theirs.name for theirs in TABLE_1[:-1]
                   if theirs.architecture in known and theirs.architecture not in found]
    reasons = [f"Not in this search space: {', '.join(elsewhere)}."] if elsewhere else []
    if represented:
        reasons.append(f"Represented by another member of their interval: {', '.join(represented)}.")
    return [" ".join(reasons), ""] if reasons else []


def write_best(folder: Path, rows: Sequence[Row], space: Mapping[str, Any], settings: SearchSettings) -> None:
    """Write ``best.json``, which ``run_pretrain.py --architecture`` reads.

    Raises:
        BortError: every candidate's training diverged.
    """
    if not rows or rows[0]["W"] is None:
        raise BortError(f"{folder}: the training of every candidate diverged, so there is no best one; lower "
                        "--lr")
    kept = [{key: row[key] for key in ("architecture", "W", "error", "ce", "kl", "size", "speed",
                                       "parameters", "lemma2_parameters", "flops", "lemma1_flops",
                                       "seconds_per_sample")} for row in rows[:settings.top]]
    write_json(folder / "best.json", {
        "architecture": rows[0]["architecture"], "W": rows[0]["W"], "top": kept, "candidates": len(rows),
        "search_space": len(settings.space), "vocab_size": space["vocab_size"],
        "maximum_point": space["maximum"], "weights": space["weights"], "settings": asdict(settings)})


def plot(path: Path, rows: Sequence[Row], space: Sequence[Row], settings: SearchSettings) -> bool:
    """Draw W over size and speed and, after training, over size and error; False where matplotlib is not
    installed.

    Bort's own tuple is marked where it lies in size and speed even when another member of its interval was
    trained.
    """
    pyplot = pyplot_for(path)
    if pyplot is None:
        return False
    rows = [row for row in rows if row["W"] is not None]
    front = [rows[index] for index in pareto(rows)]
    bort = [row for row in [*rows, *space] if architecture_of(row) == BORT][:1]
    panels = [("speed", *_speed_unit(settings))]
    if settings.steps:
        panels.append(("error", 1.0, "cross-entropy to T" if settings.error == "ce"
                       else "KL divergence from T"))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(1.5 + 5.5 * len(panels), 4.8), squeeze=False,
                                   constrained_layout=True)
    for axis, (key, scale, label) in zip(axes[0], panels):
        def place(some: Sequence[Row], key: str = key, scale: float = scale) -> Any:
            some = [row for row in some if row.get(key) is not None]
            return [row["size"] / 1e6 for row in some], [row[key] / scale for row in some]

        axis.scatter(*place(front), s=90, facecolors="none", edgecolors="black", linewidths=0.8,
                     label=f"Pareto front in size, speed, error ({len(front)} of {len(rows)})")
        points = axis.scatter(*place(rows), c=[row["W"] for row in rows], s=26, cmap="viridis", zorder=2)
        axis.scatter(*place(rows[:1]), s=230, marker="*", facecolors="none", edgecolors="tab:red",
                     linewidths=1.5, zorder=3, label=f"largest W: {architecture_of(rows[0]).display}")
        if bort:
            axis.scatter(*place(bort), s=80, marker="D", facecolors="none", edgecolors="tab:red",
                         linewidths=1.5, zorder=4, label=f"Bort {BORT.display}"
                         + ("" if "W" in bort[0] else ", not trained"))
        axis.set_xlabel("parameters (millions)")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.colorbar(points, ax=list(axes[0]), label="W")
    save_figure(figure, path, f"{len(rows)} candidates, ε = {settings.epsilon}, n = {settings.steps}, seed "
                              f"{settings.seed}")
    return True


def _speed_unit(settings: SearchSettings) -> Any:
    if settings.speed == "measured":
        return 1e-3, "ms per line"
    return (1e6, "MFLOP per token (Lemma 1)") if settings.counts == "lemma" else (1e9, "GFLOP per line")


def report(folder: Path, rows: Sequence[Row], settings: SearchSettings) -> str:
    """Write everything above into the run's folder; returns the table."""
    space = read_sealed(folder / SPACE_FILE)
    write_best(folder, rows, space, settings)
    plot(folder / "search.png", rows, space["tuples"], settings)
    return write_table(folder, rows, space, settings)
