"""Lines of data files, read one by one: bounded, counted,
and every bad one reported with its file and number."""
from __future__ import annotations

import contextlib
import gc
import json
import logging
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, List, Optional, Sequence, Tuple, TypeVar, Union

from bort.errors import BortError
from bort.files import open_regular
from bort.json_files import shorten, shown
from bort.text import reading as text_reading
from bort.text.reading import MAX_LINE_BYTES

logger = logging.getLogger("bort.tasks")

MAX_ROWS = 5_000_000
"""More rows than this stop the reader; the largest official file (MNLI or QQP) has 400,000."""
MAX_DIGITS = 30
MAX_INDEX_DIGITS = 12
BAD_HANDFUL = 5
BAD_SHARE = 0.01
"""Bad rows stop the run when there are more than ``BAD_HANDFUL`` of them *and* they are more than
``BAD_SHARE`` of the file: one typo in a 70-row file is not a wrong file, and QQP as published has a few
broken rows in 363,849."""
REPORTED = 5
"""Bad rows of one file that are logged one by one; the others are only counted."""

MAX_ROW_CHARACTERS = 10_000_000
"""Characters that the examples of one row may have together:
a row of question-answer pairs repeats its question."""

Row = TypeVar("Row")


class BadRow(ValueError):
    """One row that cannot be used; the message says what was expected.
    Never leaves this package's readers."""


class RowCounter:
    """Counts the good and bad rows of one file (or one folder of files) and decides when too many are bad."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self.bad = 0
        self.first: Optional[str] = None

    def good_row(self) -> None:
        self.rows += 1
        self._bound()

    def bad_row(self, where: str, reason: Union[str, Exception]) -> None:
        self.rows += 1
        self.bad += 1
        message = f"{where}: {reason}"
        self.first = self.first or message
        if self.bad <= REPORTED:
            logger.warning("%s; the row is skipped", message)
        self._bound()

    def _bound(self) -> None:
        if self.rows > MAX_ROWS:
            raise BortError(f"{self.path}: more than {MAX_ROWS:,} rows are more than any supported task has")

    def finish(self) -> int:
        """The number of bad rows, once all were seen.

        Raises:
            BortError: no row at all, only bad ones, or more than the handful and the share allowed.
        """
        if self.rows == 0:
            raise BortError(f"{self.path}: holds no rows")
        if self.bad == self.rows or (self.bad > BAD_HANDFUL and self.bad > BAD_SHARE * self.rows):
            raise BortError(f"{self.path}: {self.bad} of {self.rows} rows are bad, which looks like a wrong "
                            f"or damaged file; the first: {self.first}")
        if self.bad:
            logger.warning("%s: %d of %d rows are bad and were skipped", self.path, self.bad, self.rows)
        return self.bad


def numbered_lines(path: Path, counter: Optional[RowCounter] = None) -> Iterator[Tuple[int, str]]:
    """``(number, text)`` of a text file's lines, numbered from 1, as :mod:`bort.text.reading` has them.

    Lines that are too long or not UTF-8 go to ``counter`` (without one they raise). Empty lines at the end of
    the file are no lines; others are yielded.

    Raises:
        BortError: the file is missing, not a regular file, a pointer of Git LFS, or unreadable.
    """
    blank: List[int] = []
    with open_regular(path) as stream:
        try:
            for line in text_reading.numbered_lines(stream, MAX_LINE_BYTES):
                where = f"{path}:{line.number}"
                if line.problem is not None:
                    if counter is None:
                        raise BortError(f"{where}: {line.problem}")
                    counter.bad_row(where, line.problem)
                elif not line.text:
                    blank.append(line.number)
                    if len(blank) > MAX_ROWS:
                        raise BortError(f"{path}: more than {MAX_ROWS:,} empty lines")
                else:
                    for skipped in blank:
                        yield skipped, ""
                    blank.clear()
                    yield line.number, line.text
        except OSError as error:
            raise BortError(f"{path}: cannot be read ({error.strerror})") from error


def read_rows(path: Path, parse: Callable[[str, int], Row],
              header: Optional[Callable[[str], None]] = None) -> Tuple[List[Row], int]:
    """Every row of a line-by-line file through ``parse(line, position)``, where position counts rows from 0.

    ``header`` is given the first line, which is then no row. Returns the parsed rows and the number
    of bad ones.

    Raises:
        BortError: see :func:`numbered_lines` and :meth:`RowCounter.finish`.
    """
    counter = RowCounter(path)
    rows: List[Row] = []
    lines = numbered_lines(path, counter)
    if header is not None:
        first = next(lines, None)
        if first is None or first[0] != 1:
            raise BortError(f"{path}: expected a header line at the top")
        header(first[1])
    for number, line in lines:
        try:
            rows.append(parse(line, counter.rows))
            counter.good_row()
        except BadRow as error:
            counter.bad_row(f"{path}:{number}", error)
    return rows, counter.finish()


def column_positions(path: Path, header: Sequence[str], names: Sequence[str]) -> List[int]:
    """Positions of ``names`` in a header row.

    Raises:
        BortError: one is missing; the message shows the header found.
    """
    missing = [name for name in names if name not in header]
    if missing:
        shown = listed(shorten(column, 30) for column in header[:15])
        raise BortError(f"{path}:1: expected a header with the column{'s' if len(missing) > 1 else ''} "
                        f"{listed(missing)}; found {shown}")
    return [header.index(name) for name in names]


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def parse_record(text: str) -> Any:
    """One JSON value of a data file. NaN, infinities and enormous numbers are not data.

    Raises:
        BadRow: with the parser's reason.
    """
    def refuse(name: str) -> float:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, parse_int=_bounded_int, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise BadRow(f"expected a JSON object ({error.msg} at column {error.pos + 1})") from error
    except (RecursionError, ValueError) as error:
        raise BadRow(f"expected a JSON object ({type(error).__name__}: {error})") from error


def whole_number(cell: str) -> int:
    """The index that a cell spells. Raises BadRow when it spells none."""
    text = cell.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_INDEX_DIGITS):
        raise BadRow(f"expected a number as the index, found {shown(text)}")
    return int(text)


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Keep the garbage collector still:
    it would walk the hundreds of thousands of new objects over and over."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def listed(names: Iterable[str]) -> str:
    """Names of columns or members for a message: in quotation marks, as some hold blanks."""
    return ", ".join(f"'{name}'" for name in names)
