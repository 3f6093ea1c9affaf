"""Documents of a corpus's files: plain, compressed and tabular text, MediaWiki dumps; in bounded memory."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path
from typing import IO, Iterator, List, Optional, Sequence
from xml.parsers import expat

from bort.errors import BortError
from bort.text.compressed import BROKEN, explain, fault, open_text_file
from bort.text.corpus.dumps import read_pages
from bort.text.corpus.sources import ReadCounts, ReadOptions, Source
from bort.text.reading import utf8_stream

MAX_DOCUMENT = 4_000_000
"""Characters of one document held in memory; a longer one continues as another document."""

_MAX_LINE = 1_000_000
_BROKEN = (*BROKEN, expat.ExpatError, csv.Error)


def read_documents(source: Source, options: ReadOptions, counts: ReadCounts) -> Iterator[str]:
    """Raw documents of a file (wikitext for dumps), each at most :data:`MAX_DOCUMENT` characters long.

    Text is read as :mod:`bort.text.reading` says; bytes that are undecodable become U+FFFD. What is left out
    is added to ``counts``.

    Raises:
        BortError: the file is damaged, cannot be read or unpacks to more than text does (and
            ``options.skip_broken`` is off), or a table's text column is not known.
    """
    try:
        stream = open_text_file(source.path)
    except BortError as error:
        if not options.skip_broken:
            raise
        counts.broken.append(f"{source.name}: {str(error).partition(': ')[2]}")
        return
    try:
        with stream:
            if source.format in ("wikipedia", "wiktionary"):
                yield from read_pages(stream, counts, MAX_DOCUMENT)
            else:
                readers = {"csv": _table, "tsv": _table, "jsonl": _json_lines, "sentences": _lines}
                reader = readers.get(
                    source.layout,
                    {"paragraph": _paragraphs, "line": _lines, "file": _whole}.get(
                        options.documents, _paragraphs
                    ),
                )
                yield from reader(_as_text(stream), source, options, counts)
    except _BROKEN as error:
        if not options.skip_broken:
            raise BortError(
                f"{source.path}: {fault(error)}, or keep what can be read of it with --skip-broken"
            ) from error
        counts.broken.append(f"{source.name}: {explain(error)}")


def _as_text(stream: IO[bytes]) -> io.TextIOWrapper:
    return io.TextIOWrapper(utf8_stream(stream), encoding="utf-8", errors="replace", newline="\n")


def _bounded(stream: io.TextIOWrapper) -> Iterator[str]:
    """Lines, those without end in parts, so that a binary file cannot fill the memory."""
    return iter(lambda: stream.readline(_MAX_LINE), "")


def _lines(
    stream: io.TextIOWrapper, source: Source, options: ReadOptions, counts: ReadCounts
) -> Iterator[str]:
    return (line for line in _bounded(stream) if not line.isspace())


def _paragraphs(
    stream: io.TextIOWrapper, source: Source, options: ReadOptions, counts: ReadCounts
) -> Iterator[str]:
    return _joined(stream, blank_ends=True)


def _whole(
    stream: io.TextIOWrapper, source: Source, options: ReadOptions, counts: ReadCounts
) -> Iterator[str]:
    return _joined(stream, blank_ends=False)


def _joined(stream: io.TextIOWrapper, blank_ends: bool) -> Iterator[str]:
    kept: List[str] = []
    size = 0
    for line in _bounded(stream):
        blank = line.isspace()
        if kept and ((blank and blank_ends) or size + len(line) > MAX_DOCUMENT):
            yield "".join(kept)
            kept, size = [], 0
        if not blank or (kept and not blank_ends):
            kept.append(line)
            size += len(line)
    if kept:
        yield "".join(kept)


def _json_lines(
    stream: io.TextIOWrapper, source: Source, options: ReadOptions, counts: ReadCounts
) -> Iterator[str]:
    name = options.text_column or ("definition" if source.format == "urbandictionary" else "text")
    found = False
    for line in _bounded(stream):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        text = row.get(name) if isinstance(row, dict) else None
        if isinstance(text, str) and text.strip():
            found = True
            yield text
        elif not line.isspace():
            counts.rows += 1
            if not found and counts.rows >= 1000:
                raise BortError(
                    f"{source.path}: no field {name!r} with text in its first {counts.rows} "
                    "lines; name the field with --text-column"
                )


def _table(
    stream: io.TextIOWrapper, source: Source, options: ReadOptions, counts: ReadCounts
) -> Iterator[str]:
    csv.field_size_limit(MAX_DOCUMENT)
    lines = (line.replace("\0", "") for line in _bounded(stream))
    if source.layout == "tsv":
        rows: Iterator[List[str]] = (line.rstrip("\r\n").split("\t") for line in lines)
    else:
        rows = csv.reader(lines)
    header = next(rows, [])
    column = options.text_column
    if column is None and source.format == "urbandictionary" and "definition" in header:
        column = "definition"
    place = _column(header, column, source.path)
    if column is None or column.isdigit():
        rows = itertools.chain([header], rows)
    for row in rows:
        if len(row) > place and row[place].strip():
            yield row[place]
        elif row:
            counts.rows += 1


def _column(header: Sequence[str], wanted: Optional[str], path: Path) -> int:
    if wanted is None:
        if len(header) <= 1:
            return 0
        raise BortError(
            f"{path}: which of its {len(header)} columns ({', '.join(header)[:200]}) holds the "
            "text? Say it with --text-column NAME, or a number from 1 when there is no header"
        )
    if wanted in header:
        return header.index(wanted)
    if wanted.isdigit() and 1 <= int(wanted):
        return int(wanted) - 1
    raise BortError(f"{path}: no column {wanted!r}; its first line is: {', '.join(header)[:200]}")
