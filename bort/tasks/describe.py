"""What is in a task's files, as a table: ``python -m bort.tasks describe``."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

import numpy as np

from bort.files import PathLike
from bort.tasks.base import Split, Task
from bort.tasks.encoding import token_lengths
from bort.text.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    import pandas


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


def summary(task: Task, data_dir: PathLike, tokenizer: Optional[Tokenizer] = None, max_length: int = 512,
            splits: Optional[Sequence[str]] = None) -> pandas.DataFrame:
    """What a task's folder holds: a row for each split that is there.

    Columns: split, rows, bad, examples; with a tokenizer the tokens of an example, special ones included,
    before truncation (mean, median, 95%, longest) and the share of examples over ``max_length``; labels.

    Raises:
        BortError: no split is there, or one cannot be read.

    Example::

        bort.tasks.summary(bort.tasks.get_task("CoLA"), "data/glue")
    """
    import pandas  # not at the top: it takes 0.2 s, and only tables need it

    there = [split for split in splits or task.splits if task.available(data_dir, split)]
    if not there or splits:
        for split in splits or task.splits:
            task.files(data_dir, split)  # says what is missing and where it was looked for
    rows: List[Dict[str, Any]] = []
    for name in there:
        found = task.read(data_dir, name)
        row: Dict[str, Any] = {"split": name, "rows": found.rows, "bad": found.bad_rows,
                               "examples": len(found)}
        if tokenizer is not None:
            lengths = token_lengths(found, tokenizer)
            row.update({"tokens: mean": lengths.mean(), "median": np.median(lengths),
                        "95%": np.percentile(lengths, 95), "longest": lengths.max(),
                        f"over {max_length}": np.mean(lengths > max_length)})
        units = ", ".join(f"{count} {unit}" for unit, count in found.counts.items())
        rows.append({**row, "labels": label_counts(task, found) + (f" ({units})" if units else "")})
    return pandas.DataFrame(rows)


def describe(task: Task, data_dir: PathLike, tokenizer: Optional[Tokenizer] = None, max_length: int = 512,
             splits: Optional[Sequence[str]] = None) -> str:
    """:func:`summary` as text, with what is not there.

    Raises:
        BortError: no split is there, or one cannot be read.
    """
    found = summary(task, data_dir, tokenizer, max_length, splits)
    forms = {"tokens: mean": "{:.1f}", "median": "{:.0f}", "95%": "{:.0f}", f"over {max_length}": "{:.2%}"}
    cells = [[forms.get(column, "{}").format(value) for column, value in zip(found.columns, row)]
             for row in found.itertuples(index=False)]
    absent = [split for split in task.splits if split not in set(found["split"])]
    note = f"\nnot there: {', '.join(absent)}" if absent and not splits else ""
    encoding = "" if task.encoding == "paper" else f", encoding {task.encoding}"
    return f"{task.name} ({task.suite}{encoding})\n{table(list(found.columns), cells)}{note}"
