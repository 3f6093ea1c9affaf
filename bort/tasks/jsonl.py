"""SuperGLUE's files: one JSON object per line, its fields checked one by one."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

from bort.json_files import shorten, shown
from bort.tasks.base import Example, Label, Split, Task
from bort.tasks.reading import BadRow, parse_record, read_rows
from bort.tasks.text import clean, sanitize

Record = Dict[str, Any]
MAX_ID_LENGTH = 200


def is_idx(value: Any) -> bool:
    """Whether a JSON value can be an official idx: a whole number, or a short text (AX-b)."""
    return type(value) is int or (isinstance(value, str) and 0 < len(value) <= MAX_ID_LENGTH)


def take(record: Any, key: str, kind: type, what: str) -> Any:
    """``record[key]`` if it is exactly of that JSON type. Raises BadRow naming what was expected."""
    if not isinstance(record, dict):
        raise BadRow(f"expected a JSON object, found {shown(record)}")
    value = record.get(key)
    if type(value) is not kind:
        found = f"found {shown(value)}" if key in record else "there is none"
        raise BadRow(f"expected {what} in {key!r}, {found}")
    return value


def take_text(record: Any, key: str, strip: bool = True) -> str:
    """A text that is not empty."""
    value = take(record, key, str, "a text")
    value = clean(value) if strip else sanitize(value)
    if not value.strip():
        raise BadRow(f"expected a text in {key!r}, it is empty")
    return value


def take_int(record: Any, key: str) -> int:
    return take(record, key, int, "a whole number")


def take_list(record: Any, key: str) -> List[Any]:
    """A list that is not empty."""
    value = take(record, key, list, "a list")
    if not value:
        raise BadRow(f"expected a list in {key!r} with something in it")
    return value


class IdxReader:
    """Official idx values: required and unique in the test split, where they go into the submission."""

    def __init__(self, split: str) -> None:
        self.required = split == "test"
        self.seen: Set[Any] = set()

    def take(self, record: Any, otherwise: Any) -> Any:
        """The record's idx; ``otherwise`` where there is none and none is needed."""
        if not isinstance(record, dict):
            raise BadRow(f"expected a JSON object, found {shown(record)}")
        if "idx" not in record and not self.required:
            return otherwise
        idx = record.get("idx")
        if not is_idx(idx):
            raise BadRow(f"expected a number or a text in 'idx', found {shown(idx)}")
        if self.required and idx in self.seen:
            raise BadRow(f"expected every idx once, found {shorten(idx)} again")
        self.seen.add(idx)
        return idx


class JsonlTask(Task):
    """A SuperGLUE task: ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``. Subclasses implement
    :meth:`examples`."""

    suite = "superglue"
    label_values: Sequence[Any] = ()
    """The labels as the files have them, in the order of :attr:`labels`."""

    def file_names(self, split: str) -> List[Tuple[str, ...]]:
        return [("val.jsonl", "dev.jsonl")] if split == "dev" else [(f"{split}.jsonl",)]

    def _read(self, files: List[Path], split: str) -> Split:
        path = files[0]
        ids = IdxReader(split)
        result = Split(split, [], files=(path,))

        def parse(line: str, position: int) -> List[Example]:
            record = parse_record(line)
            return self.examples(record, ids.take(record, position), split, result)

        rows, result.bad_rows = read_rows(path, parse)
        result.rows = len(rows)
        result.examples = [example for row in rows for example in row]
        return result

    def examples(self, record: Record, idx: Any, split: str, result: Split) -> List[Example]:
        """The examples of one record. Raises BadRow before it changes ``result``."""
        raise NotImplementedError

    def take_label(self, record: Record, split: str, values: Optional[Sequence[Any]] = None) -> Label:
        """Class index of ``record["label"]``; None in a test split that has none."""
        if "label" not in record and split == "test":
            return None
        value = record.get("label")
        values = self.label_values if values is None else values
        for index, known in enumerate(values):
            if type(value) is type(known) and value == known:
                return index
        found = f"found {shown(value)}" if "label" in record else "there is none"
        wanted = [shown(known) for known in values]
        raise BadRow(f"expected {' or '.join(wanted)} in 'label', {found}")
