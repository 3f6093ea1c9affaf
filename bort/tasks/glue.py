"""GLUE: tab-separated files without quoting, each task one row of a table (paper, section 5.1 and Table 4).

Every file but CoLA's starts with a header, by whose names columns are found; CoLA's train and dev have none. Fields may
hold quotation marks, which mean nothing. A row whose number of fields differs from the header's is a bad row.
"""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from bort.tasks.base import Example, Label, Split, Task
from bort.tasks.reading import BadRow, column_positions, numbered_lines, read_rows, shorten
from bort.tasks.submission import Tsv
from bort.tasks.text import clean

ENTAILMENT = ("entailment", "not_entailment")
MNLI_LABELS = ("entailment", "neutral", "contradiction")
BINARY = ("0", "1")
MAX_INDEX_DIGITS = 12


class TsvTask(Task):
    """A GLUE task whose splits are one TSV file each."""

    suite = "glue"

    def __init__(self, name: str, text: Sequence[str], labels: Optional[Tuple[str, ...]] = BINARY, *,
                 label: str = "label", metrics: Tuple[str, ...] = ("accuracy",), headerless: int = 0,
                 columns: Sequence[str] = (), test_text: Sequence[str] = (), names: Optional[Dict[str, Any]] = None,
                 folders: Sequence[str] = (), counts: Sequence[int] = (), suite: str = "glue", **attributes: Any) -> None:
        self.name, self.suite, self.labels, self.metrics = name, suite, labels, metrics
        self.text_columns, self.label_column = tuple(text), label
        self.test_text_columns = tuple(test_text) or self.text_columns
        self.columns, self.headerless = tuple(columns), headerless
        self.names = names or {}
        self.folders = tuple(folders)
        self.submission = f"{name}.tsv"
        self.submission_kind = Tsv(labels)
        for attribute, value in attributes.items():
            setattr(self, attribute, value)
        self.official_counts = {split: {"rows": rows} for split, rows in zip(self.splits, counts)}

    def file_names(self, split: str) -> List[Tuple[str, ...]]:
        return [tuple(self.names.get(split, (f"{split}.tsv",)))]

    def _read(self, files: List[Path], split: str) -> Split:
        path = files[0]
        reader = _RowReader(self, path, split)
        examples, bad = read_rows(path, reader.parse, reader.header)
        return Split(split, examples, rows=len(examples), bad_rows=bad, files=(path,))

    def class_of(self, text: str) -> Label:
        """The label a field spells. Raises BadRow when it spells none."""
        if self.labels is None:
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not 0.0 <= value <= 5.0:
                raise BadRow(f"expected a score from 0 to 5 in {self.label_column}, found {shorten(text)!r}")
            return value
        if text not in self.labels:
            raise BadRow(f"expected {' or '.join(self.labels)} in {self.label_column}, found {shorten(text)!r}")
        return self.labels.index(text)


class _RowReader:
    """Parses the rows of one file of a :class:`TsvTask`; knows where its columns are."""

    def __init__(self, task: TsvTask, path: Path, split: str) -> None:
        self.task, self.path, self.split = task, path, split
        self.header: Optional[Callable[[str], None]] = self.take_header
        self.seen = set()
        # A file without a header is known by the number of its fields: CoLA has four in train and dev, two in test.
        if task.headerless:
            first = next(numbered_lines(path, None), (1, ""))[1]
            if first.count("\t") == task.headerless - 1:
                self.header = None
                self._place(list(task.columns))

    def take_header(self, line: str) -> None:
        self._place(line.split("\t"))

    def _place(self, header: List[str]) -> None:
        task = self.task
        texts = task.test_text_columns if self.split.startswith("test") else task.text_columns
        labelled = task.label_column in header
        needed = [*texts] if labelled or self.split.startswith("test") else [*texts, task.label_column]
        self.width = len(header)
        self.texts = column_positions(self.path, header, needed)[: len(texts)]
        self.label = header.index(task.label_column) if labelled else None
        self.index = next((header.index(name) for name in ("index", "id") if name in header), None)

    def parse(self, line: str, position: int) -> Example:
        cells = line.split("\t")
        if len(cells) != self.width:
            raise BadRow(f"expected {self.width} tab-separated fields, found {len(cells)}")
        segments = tuple(clean(cells[column]) for column in self.texts)
        if not any(segments):
            raise BadRow("expected some text, found none")
        label = None if self.label is None else self.task.class_of(cells[self.label].strip())
        idx = position
        if self.index is not None and self.split.startswith("test"):
            text = cells[self.index].strip()
            if not (text.isascii() and text.isdigit() and len(text) <= MAX_INDEX_DIGITS):
                raise BadRow(f"expected a number as the index, found {shorten(text)!r}")
            idx = int(text)
            if idx in self.seen:
                raise BadRow(f"expected every index once, found {idx} again")
            self.seen.add(idx)
        return Example(idx, segments, label)


COLA = TsvTask("CoLA", ["sentence"], metrics=("mcc", "accuracy"), headerless=4,
               columns=("source", "label", "mark", "sentence"), head="linear_extra", counts=(8551, 1043, 1063))
SST2 = TsvTask("SST-2", ["sentence"], counts=(67349, 872, 1821))
RTE = TsvTask("RTE", ["sentence1", "sentence2"], ENTAILMENT, counts=(2490, 277, 3000))

GLUE_TASKS: List[Task] = [COLA, SST2, RTE]
