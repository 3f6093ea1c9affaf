"""What is in a task's files, as a table: ``python -m bort.tasks describe``."""
from __future__ import annotations

from typing import List, Optional, Sequence

import numpy as np

from bort.files import PathLike
from bort.tasks.base import Split, Task
from bort.tasks.encoding import token_lengths
from bort.text.tokenizers.base import Tokenizer


def label_counts(task: Task, split: Split) -> str:
    """``entailment 12, neutral 3``; the range and mean in regression; "none" for a split without labels."""
    labels = [example.label for example in split.examples if example.label is not None]
    if not labels:
        return "none"
    if task.labels is None:
        values = np.asarray(labels, dtype=np.float64)
        return f"{values.min():g} to {values.max():g}, mean {values.mean():.2f}"
    counts = np.bincount(np.asarray(labels), minlength=len(task.labels))
    return ", ".join(f"{name} {count}" for name, count in zip(task.labels, counts.tolist()))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, aligned: numbers to the right, the rest to the left."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    numeric = [all(cell.rstrip("%").replace(".", "", 1).isdigit() for cell in cells) for cells in zip(*rows)]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [cell.rjust(width) if right else cell.ljust(width) for cell, width,
                 right in zip(row, widths, numeric)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def describe(task: Task, data_dir: PathLike, tokenizer: Optional[Tokenizer] = None, max_length: int = 512,
             splits: Optional[Sequence[str]] = None) -> str:
    """A table with one row per split that is there: rows, bad rows, examples, labels, and with a tokenizer
    the lengths.

    Lengths are in tokens, special tokens included, before truncation to ``max_length``.

    Raises:
        BortError: no split is there, or one cannot be read.
    """
    wanted = list(splits or task.splits)
    there = [split for split in wanted if task.available(data_dir, split)]
    if not there or splits:
        for split in wanted:
            task.files(data_dir, split)  # says what is missing and where it was looked for
    header = ["split", "rows", "bad", "examples",
              *(["tokens: mean", "median", "95%", "longest", f"over {max_length}"] if tokenizer else []),
              "labels"]
    rows: List[List[str]] = []
    for name in there:
        found = task.read(data_dir, name)
        cells = [name, str(found.rows), str(found.bad_rows), str(len(found))]
        if tokenizer is not None:
            lengths = token_lengths(found, tokenizer)
            cells += [f"{lengths.mean():.1f}", f"{np.median(lengths):.0f}",
                      f"{np.percentile(lengths, 95):.0f}", str(lengths.max()),
                      f"{100 * np.mean(lengths > max_length):.2f}%"]
        units = ", ".join(f"{count} {unit}" for unit, count in found.counts.items())
        rows.append([*cells, label_counts(task, found) + (f" ({units})" if units else "")])
    absent = [split for split in task.splits if split not in there]
    note = f"\nnot there: {', '.join(absent)}" if absent and not splits else ""
    encoding = "" if task.encoding == "paper" else f", encoding {task.encoding}"
    return f"{task.name} ({task.suite}{encoding})\n{table(header, rows)}{note}"
