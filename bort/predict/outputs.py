"""Predictions as columns or JSON lines, written as they come."""
from __future__ import annotations

import json
import sys
from typing import IO, Any, Dict, Iterable, Protocol, Tuple

from bort.errors import BortError
from bort.tasks.base import Task

Row = Dict[str, Any]


class Writer(Protocol):
    """What takes the answers one by one."""

    def write(self, row: Row) -> None:
        """Write one answer."""


class TsvWriter:
    """Rows of predictions as columns: line, label or score, then the probability of each label."""

    def __init__(self, stream: IO[str], task: Task) -> None:
        self.stream = stream
        self.names = [] if task.labels is None else [str(task.spell(index))
                                                     for index in range(len(task.labels))]
        self.value = "score" if task.is_regression else "label"
        self._write(["line", self.value, *self.names, "error"])

    def write(self, row: Row) -> None:
        """Write one answer.

        Raises:
            BortError: it holds several predictions.
        """
        if "predictions" in row:
            raise BortError("this task asks several things of one record, which columns cannot hold: use "
                            "JSON output")
        self._write([str(row["line"]), str(row.get(self.value, "")),
                     *(f"{row['probabilities'][name]:.6f}" if "probabilities" in row else ""
                       for name in self.names), str(row.get("error", ""))])

    def _write(self, cells: Iterable[str]) -> None:
        line = "\t".join(" ".join(cell.split()) for cell in cells) + "\n"
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        # A label may hold what has no place in the stream's encoding: it is written as an escape.
        self.stream.write(line.encode(encoding, "backslashreplace").decode(encoding))


class JsonWriter:
    """Rows of predictions as JSON lines."""

    def __init__(self, stream: IO[str], task: Task) -> None:
        self.stream = stream

    def write(self, row: Row) -> None:
        """Write one answer."""
        text = json.dumps(row, ensure_ascii=False)
        try:
            text.encode(getattr(self.stream, "encoding", None) or "utf-8")
        except UnicodeEncodeError:  # a lone surrogate, or a stream that is not UTF-8
            text = json.dumps(row)
        self.stream.write(text + "\n")


def write_rows(rows: Iterable[Row], writer: Writer, where: str, strict: bool) -> Tuple[int, int]:
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
