"""Inputs of a prediction as examples of its task: texts, pairs of texts, or the task's official records."""
from __future__ import annotations

import sys
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from bort.errors import BortError
from bort.json_files import shorten, shown
from bort.tasks.base import Example, Split, Task
from bort.tasks.jsonl import JsonlTask, is_idx
from bort.tasks.race import RaceTask
from bort.tasks.reading import BadRow, listed

GENERIC = (("sentence",), ("text",), ("sentence1", "sentence2"))
"""Columns and members that any task of one or two texts takes, beside the names of its own files."""
WINDOW_BYTES = 8 << 20
"""Memory of texts after which a window is full, however few its records are: a character takes one byte to
four, by the widest of its text."""
Texts = Union[str, Sequence[str], Mapping[str, Any]]


class PlainTask(Task):
    """A model whose task is not known: one or two texts, and its own labels or the numbers of its outputs."""

    def __init__(self, labels: Optional[Sequence[str]], num_outputs: int) -> None:
        self.name, self.suite = "plain", "plain"
        known = tuple(labels) if labels else tuple(map(str, range(num_outputs)))
        if len(known) != num_outputs:
            shown = ", ".join(shorten(name, 30) for name in known[:8])
            raise BortError(f"the model has {num_outputs} outputs and the labels {shown}")
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
        raise BadRow(f"expected texts, found {shown(segments)}")
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
        wanted = " or ".join(listed(names) for names in text_names(task))
        found = listed(shorten(name) for name in list(record)[:8])
        raise BadRow(f"expected the members {wanted}, found {found or 'none'}")
    if not split.examples:
        raise BadRow("expected questions, found none")
    return split


def given_records(task: Task, inputs: Iterable[Texts]) -> Iterator[Record]:
    """The inputs of the Python interface as records, numbered from 1."""
    for number, texts in enumerate(inputs, start=1):
        try:
            yield Record(number, example_split(task, texts, number - 1))
        except (BadRow, TypeError) as error:
            yield Record(number, None, str(error))


def in_windows(records: Iterable[Record], size: int) -> Iterator[List[Record]]:
    """Consecutive records with about ``size`` examples together; never fewer than one record.

    Long texts end a window sooner, after :data:`WINDOW_BYTES`.
    """
    window: List[Record] = []
    count = size_in_memory = 0
    for record in records:
        window.append(record)
        if record.split:
            count += len(record.split)
            size_in_memory += sum(sys.getsizeof(text) for example in record.split.examples
                                  for text in example.segments)
        if count >= size or len(window) >= size or size_in_memory >= WINDOW_BYTES:
            yield window
            window, count, size_in_memory = [], 0, 0
    if window:
        yield window
