"""What ``bort.predict`` reads and writes: lines, TSV or JSON lines in, TSV or JSON lines out, one after the
other."""
from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import (
    IO,
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from bort.errors import BortError
from bort.tasks.base import Example, Split, Task
from bort.tasks.jsonl import JsonlTask, is_idx
from bort.tasks.race import RaceTask
from bort.tasks.reading import MAX_LINE_BYTES, BadRow, parse_record, shorten

FORMATS = ("auto", "lines", "tsv", "jsonl")
_SUFFIXES = {".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".txt": "lines"}
GENERIC = (("sentence",), ("sentence1", "sentence2"))
"""Columns and members that any task of one or two texts takes, beside the names of its own files."""
Texts = Union[str, Sequence[str], Mapping[str, Any]]


class PlainTask(Task):
    """A model whose task is not known: one or two texts, and its own labels or the numbers of its outputs."""

    def __init__(self, labels: Optional[Sequence[str]], num_outputs: int) -> None:
        self.name, self.suite = "plain", "plain"
        known = tuple(labels) if labels else tuple(map(str, range(num_outputs)))
        if len(known) != num_outputs:
            raise BortError(f"the model has {num_outputs} outputs and the labels {', '.join(known[:8])}")
        self.labels = None if num_outputs == 1 else known


class Record(NamedTuple):
    """One line of input: its number from 1, and either its examples (as a split) or what is wrong with it."""

    line: int
    split: Optional[Split]
    error: Optional[str] = None


def text_names(task: Task) -> List[Tuple[str, ...]]:
    """The names under which a task's texts may come, best first; empty where its rows have a structure of
    their own."""
    own = tuple(getattr(task, "text_columns", ()) or getattr(task, "text_keys", ()))
    if own:
        return [own, *(names for names in GENERIC if len(names) == len(own) and names != own)]
    return list(GENERIC) if isinstance(task, PlainTask) else []


def example_split(task: Task, texts: Texts, idx: Any) -> Split:
    """One input of the Python interface, or one JSON value, as a split of its examples.

    Args:
        texts: a string; a pair of strings; or a mapping with the task's own members (an official JSON
            record), or ``sentence``, or ``sentence1`` and ``sentence2``.

    Raises:
        BadRow: it does not suit the task.
    """
    if isinstance(texts, Mapping):
        return _mapping_split(task, dict(texts), idx)
    segments = (texts,) if isinstance(texts, str) else tuple(texts)
    names = text_names(task)
    if not names:
        raise BadRow(f"expected a JSON object as in {task.name}'s official files, found plain text")
    if len(segments) not in {len(choice) for choice in names}:
        raise BadRow(f"expected {' or '.join(sorted({_texts(len(choice)) for choice in names}))}, found "
                     f"{_texts(len(segments))}")
    if not all(isinstance(segment, str) for segment in segments):
        raise BadRow(f"expected texts, found {shorten(segments)!r}")
    segments = tuple(task.segment(segment) for segment in segments)
    if not any(map(str.strip, segments)):
        raise BadRow("expected some text, found none")
    return Split("test", [Example(idx, segments)])


def _texts(count: int) -> str:
    return "one text" if count == 1 else f"{count} texts"


def _mapping_split(task: Task, record: Dict[str, Any], idx: Any) -> Split:
    idx = next((record[key] for key in ("idx", "index", "id") if is_idx(record.get(key))), idx)
    for names in text_names(task):
        if all(name in record for name in names):
            return example_split(task, tuple(record[name] for name in names), idx)
    split = Split("test", [])
    if isinstance(task, JsonlTask):
        split.examples = task.examples(record, idx, "test", split)
    elif isinstance(task, RaceTask):
        split.examples = task.passage(record, str(idx), "test")
    else:
        wanted = " or ".join(", ".join(names) for names in text_names(task))
        raise BadRow(f"expected the members {wanted}, found "
                     f"{', '.join(map(shorten, list(record)[:8])) or 'none'}")
    return split


def _lines(stream: IO[bytes]) -> Iterator[Tuple[int, Union[str, BadRow]]]:
    """``(number, text)`` of every line, ended by LF alone; what cannot be a line is a BadRow. Memory is
    bounded."""
    number = 0
    while True:
        raw = stream.readline(MAX_LINE_BYTES + 1)
        if not raw:
            return
        number += 1
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_LINE_BYTES)
            yield number, BadRow(f"expected a line of at most {MAX_LINE_BYTES:,} bytes")
            continue
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield number, BadRow(f"expected UTF-8 text, found byte 0x{raw[error.start]:02x}")
            continue
        text = text[:-1] if text.endswith("\n") else text
        yield number, text[:-1] if text.endswith("\r") else text


class _TsvReader:
    """Cells to texts: by a header's names if the first line is one, else by position."""

    def __init__(self, task: Task) -> None:
        self.choices = text_names(task)
        self.headerless = tuple(getattr(task, "headerless", ()))
        self.columns: Optional[List[int]] = None
        self.width = 0

    def header(self, line: str) -> bool:
        """Whether ``line`` is a header, which is then followed."""
        cells = line.split("\t")
        for names in self.choices:
            if all(name in cells for name in names):
                self.columns, self.width = [cells.index(name) for name in names], len(cells)
                return True
        return False

    def texts(self, line: str) -> List[str]:
        cells = line.split("\t")
        if self.columns is not None:
            if len(cells) != self.width:
                raise BadRow(f"expected {self.width} tab-separated fields, found {len(cells)}")
            return [cells[column] for column in self.columns]
        if len(cells) > 2 and len(cells) == len(self.headerless):
            return [cells[self.headerless.index(name)] for name in self.choices[0]]
        return cells


def guess_format(name: str, first: str) -> str:
    """The format of an input by its name, else by its first line."""
    known = _SUFFIXES.get(Path(name).suffix.lower())
    if known:
        return known
    return "jsonl" if first.lstrip().startswith("{") else "tsv" if "\t" in first else "lines"


def read_records(stream: IO[bytes], task: Task, form: str = "auto", name: str = "-") -> Iterator[Record]:
    """Every line of a binary stream as a :class:`Record`, in order; a TSV header is no record.

    Args:
        form: "lines" (a text each), "tsv" (the texts in columns), "jsonl", or "auto" by ``name`` and the
            first line.
    """
    reader: Optional[_TsvReader] = None
    for number, line in _lines(stream):
        try:
            if isinstance(line, BadRow):
                raise line
            if form == "auto":
                form = guess_format(name, line)
            if form == "tsv" and reader is None:
                reader = _TsvReader(task)
                if number == 1 and reader.header(line):
                    continue
            if not line.strip():
                raise BadRow("expected some text, the line is empty")
            value: Any = parse_record(line) if form == "jsonl" else reader.texts(line) if reader else line
            if form == "jsonl" and not isinstance(value, dict):
                raise BadRow(f"expected a JSON object, found {shorten(value)!r}")
            yield Record(number, example_split(task, value, number - 1))
        except BadRow as error:
            yield Record(number, None, str(error))


def given_records(task: Task, inputs: Iterable[Texts]) -> Iterator[Record]:
    """The inputs of the Python interface as records, numbered from 1."""
    for number, texts in enumerate(inputs, start=1):
        try:
            yield Record(number, example_split(task, texts, number - 1))
        except (BadRow, TypeError) as error:
            yield Record(number, None, str(error))


@contextmanager
def open_input(name: str) -> Iterator[IO[bytes]]:
    """A binary stream of the file ``name``, or of standard input for "-".

    Raises:
        BortError: the file cannot be opened.
    """
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = open(name, "rb")
    except OSError as error:
        raise BortError(f"{name}: cannot be read ({error.strerror})") from error
    with stream:
        try:
            yield stream
        except IsADirectoryError as error:
            raise BortError(f"{name}: a folder, not a file") from error


class TsvWriter:
    """Rows of predictions as columns: line, label or score, then the probability of each label."""

    def __init__(self, stream: IO[str], task: Task) -> None:
        self.stream = stream
        self.names = [] if task.labels is None else [str(task.spell(index))
                                                     for index in range(len(task.labels))]
        self.value = "score" if task.is_regression else "label"
        stream.write("\t".join(["line", self.value, *self.names, "error"]) + "\n")

    def write(self, row: Dict[str, Any]) -> None:
        if "predictions" in row:
            raise BortError("this task asks several things of one record, which columns cannot hold: use "
                            "JSON output")
        cells = [str(row["line"]), str(row.get(self.value, "")),
                 *(f"{row['probabilities'][name]:.6f}" if "probabilities" in row else ""
                   for name in self.names), " ".join(str(row.get("error", "")).split())]
        self.stream.write("\t".join(cells) + "\n")


class JsonWriter:
    """Rows of predictions as JSON lines."""

    def __init__(self, stream: IO[str], task: Task) -> None:
        self.stream = stream

    def write(self, row: Dict[str, Any]) -> None:
        self.stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def in_windows(records: Iterable[Record], size: int) -> Iterator[List[Record]]:
    """Consecutive records with about ``size`` examples together; never fewer than one record."""
    window: List[Record] = []
    count = 0
    for record in records:
        window.append(record)
        count += len(record.split.examples) if record.split else 0
        if count >= size or len(window) >= size:
            yield window
            window, count = [], 0
    if window:
        yield window


def write_rows(rows: Iterable[Dict[str, Any]], writer: Union[TsvWriter, JsonWriter], where: str,
               strict: bool) -> Tuple[int, int]:
    """Write answers as they come, and say on stderr which lines of ``where`` were bad.

    Returns:
        How many lines were bad, and how many there were.

    Raises:
        BortError: a line is bad and ``strict`` is set.
    """
    bad = lines = 0
    for row in rows:
        lines += 1
        if "error" in row:
            bad += 1
            message = f"{where}:{row['line']}: {row['error']}"
            if strict:
                raise BortError(message)
            print(message, file=sys.stderr)
        writer.write(row)
    return bad, lines
