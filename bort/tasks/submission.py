"""Files the leaderboards take: how each is written, and how one is checked before it is uploaded."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterable, List, Optional, Sequence, Tuple

from bort.errors import BortError
from bort.files import PathLike, atomic_write
from bort.json_files import shorten, shown
from bort.tasks.reading import MAX_ROWS, BadRow, numbered_lines, parse_record

MAX_PROBLEMS = 10
"""Problems named in one report; a file of the wrong kind has one on every line."""


class Kind:
    """A form of submission file: writes ``(idx, value)`` pairs, reads them back strictly.
    Most are JSON lines."""

    def write(self, path: Path, predictions: Iterable[Tuple[Any, Any]]) -> None:
        """Write the file atomically. Raises BortError when it cannot be written."""
        with atomic_write(path) as stream:
            for idx, value in predictions:
                stream.write(json.dumps(self.record(idx, value), ensure_ascii=False) + "\n")

    def record(self, idx: Any, value: Any) -> Any:
        """What one line holds."""
        return {"idx": idx, "label": value}

    def differs(self, value: Any, official: Any) -> str:
        """What is wrong with the form of one prediction,
        given any prediction in the right form; "" if nothing."""
        return ""

    def parse(self, number: int, line: str) -> Tuple[Any, Any]:
        """``(idx, value)`` of one line; ``(None, None)`` for a header.
        Raises BadRow saying what was expected."""
        raise NotImplementedError


class Tsv(Kind):
    """GLUE: ``index<TAB>prediction`` with that header. ``values`` are the spellings; None means a float from
    0 to 5."""

    def __init__(self, values: Optional[Sequence[str]]) -> None:
        self.values = None if values is None else tuple(values)

    def write(self, path: Path, predictions: Iterable[Tuple[Any, Any]]) -> None:
        with atomic_write(path) as stream:
            stream.write("index\tprediction\n")
            for idx, value in predictions:
                text = f"{min(5.0, max(0.0, float(value))):.3f}" if self.values is None else str(value)
                stream.write(f"{idx}\t{text}\n")

    def parse(self, number: int, line: str) -> Tuple[Any, Any]:
        cells = line.split("\t")
        if number == 1:
            if cells != ["index", "prediction"]:
                raise BadRow(f"expected the header 'index<TAB>prediction', found {shown(line)}")
            return None, None
        if len(cells) != 2 or not cells[0].isascii() or not cells[0].isdigit() or len(cells[0]) > 12:
            raise BadRow(f"expected an index, a tab and a prediction, found {shown(line)}")
        if self.values is not None and cells[1] not in self.values:
            raise BadRow(f"expected {' or '.join(self.values)}, found {shown(cells[1])}")
        if self.values is None:
            _score(cells[1])
        return int(cells[0]), cells[1]


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 5.0:
        raise BadRow(f"expected a number from 0 to 5, found {shown(text)}")
    return value


class JsonLines(Kind):
    """SuperGLUE: ``{"idx": ..., "label": ...}`` lines. ``values`` are the accepted labels, types included, or
    a predicate with a description of what it accepts."""

    def __init__(self, values: Optional[Sequence[Any]] = None) -> None:
        self.values = values

    def parse(self, number: int, line: str) -> Tuple[Any, Any]:
        record = parse_record(line)
        if not isinstance(record, dict) or set(record) != {"idx", "label"}:
            raise BadRow(f'expected {{"idx": ..., "label": ...}}, found {shown(line)}')
        if type(record["idx"]) not in (int, str):
            raise BadRow(f"expected an idx that is a number or a string, found {shown(record['idx'])}")
        self.check_value(record["label"])
        return record["idx"], record["label"]

    def check_value(self, value: Any) -> None:
        if self.values is None:
            if not isinstance(value, str):
                raise BadRow(f"expected a text as the label, found {shown(value)}")
        elif not any(type(value) is type(known) and value == known for known in self.values):
            raise BadRow(f"expected the label {' or '.join(json.dumps(known) for known in self.values)}, "
                         f"found {shorten(json.dumps(value))}")


def validate(path: PathLike, kind: Kind, official: Optional[Sequence[Tuple[Any, Any]]] = None) -> int:
    """Check a submission file; the number of its predictions.

    ``official`` holds a prediction in the right form for every idx of the test set, each of which must occur
    exactly once; without it only the form of each line is checked.

    Raises:
        BortError: anything is wrong; the message lists the first problems with their lines.
    """
    problems: List[str] = []
    seen = set()
    wanted = None if official is None else dict(official)
    count = 0
    for number, line in numbered_lines(Path(path)):
        try:
            idx, value = kind.parse(number, line)
            if idx is None:
                continue
            count += 1
            if count > MAX_ROWS:
                raise BortError(f"{path}: more than {MAX_ROWS:,} predictions are more than any task has")
            if idx in seen:
                raise BadRow(f"idx {shorten(idx)} occurs more than once")
            seen.add(idx)
            if wanted is not None and idx not in wanted:
                raise BadRow(f"idx {shorten(idx)} is not in the test set")
            complaint = kind.differs(value, wanted[idx]) if wanted is not None else ""
            if complaint:
                raise BadRow(f"{shorten(idx)}: {complaint}")
        except BadRow as error:
            problems.append(f"{path}:{number}: {error}")
            if len(problems) > MAX_PROBLEMS:
                problems[-1] = "..."
                break
    missing = [idx for idx in wanted or () if idx not in seen]
    if wanted and missing and len(problems) <= MAX_PROBLEMS:
        problems.append(f"{path}: {len(missing)} of {len(wanted)} idx are missing, the first "
                        f"{shorten(missing[0])}")
    if not count and not problems:
        problems.append(f"{path}: holds no predictions")
    if problems:
        raise BortError("not a valid submission:\n  " + "\n  ".join(problems))
    return count
