"""Files, folders and streams as :class:`~bort.predict.records.Record` objects: lines, TSV, CSV, JSON lines,
and RACE's folders of passages."""
from __future__ import annotations

import csv
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Iterable, Iterator, List, Optional, Tuple, Union

from bort.errors import BortError
from bort.json_files import shown
from bort.predict.records import PlainTask, Record, example_split, text_names
from bort.tasks.base import Task
from bort.tasks.race import RaceTask, passage_files, read_passage
from bort.tasks.reading import MAX_LINE_BYTES, BadRow, parse_record
from bort.text.compressed import inner_name, named_faults, open_text_file
from bort.text.reading import Line, numbered_lines

FORMATS = ("auto", "lines", "tsv", "csv", "jsonl")
_SUFFIXES = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".txt": "lines"}
Cells = List[str]


class Columns:
    """Cells to texts: by a header's names if the first row is one, else by position."""

    def __init__(self, task: Task) -> None:
        self.choices = text_names(task)
        self.headerless = tuple(getattr(task, "headerless", ()))
        self.columns: Optional[List[int]] = None
        self.width = 0

    def header(self, cells: Cells) -> bool:
        """Whether ``cells`` are a header, which is then followed."""
        for names in self.choices:
            if all(name in cells for name in names):
                self.columns, self.width = [cells.index(name) for name in names], len(cells)
                return True
        return False

    def texts(self, cells: Cells) -> List[str]:
        """The texts of a row. Raises BadRow when it has another number of cells than the header."""
        if self.columns is not None:
            if len(cells) != self.width:
                raise BadRow(f"expected {self.width} fields, found {len(cells)}")
            return [cells[column] for column in self.columns]
        if len(cells) > 2 and len(cells) == len(self.headerless):
            return [cells[self.headerless.index(name)] for name in self.choices[0]]
        return cells


def guess_format(name: str, first: str, task: Optional[Task] = None) -> str:
    """The format of an input by its name, else by its first line; a task whose rows are no plain texts has
    JSON."""
    if task is not None and not text_names(task):
        return "jsonl"
    known = _SUFFIXES.get(Path(inner_name(name)).suffix.lower())
    if known == "lines" and task is not None and Columns(task).header(first.split("\t")):
        return "tsv"  # such as MRPC's msr_paraphrase_test.txt
    if known:
        return known
    return "jsonl" if first.lstrip().startswith("{") else "tsv" if "\t" in first else "lines"


def read_records(stream: IO[bytes], task: Task, form: str = "auto", name: str = "-") -> Iterator[Record]:
    """Every row of a binary stream as a :class:`Record`, in order; a header is no record.

    Args:
        form: "lines" (a text each), "tsv" or "csv" (texts in columns), "jsonl", or "auto" by ``name`` and the
            first line.
    """
    lines = numbered_lines(stream, MAX_LINE_BYTES)
    first = next(lines, None)
    if first is None:
        return
    if form == "auto":
        form = guess_format(name, first.text, task)
    columns = Columns(task)
    for number, row in _rows(_chained(first, lines), form):
        try:
            if isinstance(row, BadRow):
                raise row
            if isinstance(row, list) and number == 1 and columns.header(row):
                continue
            if not any(cell.strip() for cell in row):
                raise BadRow("expected some text, the line is empty")
            value = columns.texts(row) if isinstance(row, list) else _value(row, form)
            yield Record(number, example_split(task, value, number - 1))
        except BadRow as error:
            yield Record(number, None, str(error))


def _chained(first: Line, lines: Iterator[Line]) -> Iterator[Line]:
    yield first
    yield from lines


def _value(text: str, form: str) -> Any:
    if form != "jsonl":
        return text
    value = parse_record(text)
    if not isinstance(value, dict):
        raise BadRow(f"expected a JSON object, found {shown(value)}")
    return value


def _rows(lines: Iterator[Line], form: str) -> Iterator[Tuple[int, Union[str, Cells, BadRow]]]:
    """Every row with the number of its first line: a text, cells, or what is wrong with it."""
    if form == "csv":
        yield from _csv_rows(lines)
        return
    for line in lines:
        if line.problem is not None:
            yield line.number, BadRow(line.problem)
        else:
            yield line.number, line.text.split("\t") if form == "tsv" else line.text


def _csv_rows(lines: Iterator[Line]) -> Iterator[Tuple[int, Union[Cells, BadRow]]]:
    """Rows of comma-separated values, whose quoted fields may hold line ends."""
    taken: List[Line] = []

    def texts() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line.text + "\n"

    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(texts())
    while True:
        taken.clear()
        row: Union[Cells, BadRow]
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            row = BadRow(f"expected comma-separated values ({error})")
        problem = next((line.problem for line in taken if line.problem is not None), None)
        yield taken[0].number, row if problem is None else BadRow(problem)


def passage_records(folders: Iterable[Any], task: RaceTask) -> Iterator[Record]:
    """RACE's passages as records, numbered from 1 in the order in which the task reads them."""
    paths = [path for folder in folders for path in passage_files(folder)]
    for number, path in enumerate(paths, start=1):
        folder, name = os.path.split(path)
        try:
            record = read_passage(path)
            if not isinstance(record, dict):
                raise BadRow(f"expected a JSON object, found {shown(record)}")
            yield Record(number, example_split(task, record, os.path.basename(folder) + name))
        except BadRow as error:
            yield Record(number, None, f"{name}: {error}")


@contextmanager
def open_records(name: str, task: Task, form: str = "auto") -> Iterator[Iterator[Record]]:
    """The records of a file, of standard input ("-"), or of a folder: of the task's official test files, or
    of RACE's passages. Files that end in .gz, .bz2, .xz or .lzma are unpacked.

    Raises:
        BortError: it cannot be opened, is no regular file, or (while the records are taken) is damaged.
    """
    if name == "-":
        yield read_records(sys.stdin.buffer, task, form)
        return
    if os.path.isdir(name) and not isinstance(task, PlainTask):
        if isinstance(task, RaceTask):
            yield passage_records([name] if passage_files(name) else task.files(name, "test"), task)
            return
        name = str(task.files(name, "test")[0])
    if os.path.exists(name) and not os.path.isfile(name) and not os.path.isdir(name):
        raise BortError(f"{name}: is not a regular file; give a stream as --input -")
    with open_text_file(name) as stream:
        yield named_faults(read_records(stream, task, form, name), name)
