"""Corpora as streams of documents: plain, compressed and tabular files and MediaWiki dumps, in bounded
memory."""
from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple
from xml.parsers import expat

from bort.errors import BortError
from bort.files import PathLike

FORMATS = ("auto", "text", "sentences", "wikipedia", "wiktionary", "csv", "tsv", "jsonl")
DOCUMENTS = ("paragraph", "line", "file")
MAX_DOCUMENT = 4_000_000
"""Characters of one document held in memory; a longer one continues as another document."""

_MAX_LINE = 1_000_000
_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".lzma": lzma.open}
_ARCHIVES = {".zip", ".tar", ".tgz", ".7z", ".rar", ".zst", ".parquet", ".pdf", ".docx"}
_TEXT_SUFFIXES = {"", ".txt", ".text", ".xml", ".csv", ".tsv", ".jsonl", ".en"}
_ONE_BILLION = re.compile(r"^news\.en(-\d+-of-\d+|\.heldout.*|\.shuffled.*)?$")
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, OSError, expat.ExpatError, csv.Error)


class Source(NamedTuple):
    """A file to read: its name below the input it was found in, its size on disk, and its format."""

    path: Path
    name: str
    size: int
    format: str

    @property
    def compression(self) -> str:
        """``.gz``, ``.bz2``, ``.xz`` or empty."""
        return self.path.suffix if self.path.suffix in _OPENERS else ""

    @property
    def text_bytes(self) -> int:
        """About how many bytes of text are in it; compressed text is taken to shrink to a quarter."""
        return self.size * (4 if self.compression else 1)


@dataclass(frozen=True)
class ReadOptions:
    """How files become documents.

    Attributes:
        format: one of :data:`FORMATS`; "auto" goes by the name.
        documents: what a document of plain text is: a paragraph (between blank lines), a line, or the whole
        file.
        text_column: the column (by its header, or from 1) or JSON field that holds the text.
        skip_broken: keep what can be read of a damaged file, and report it, instead of stopping.
    """

    format: str = "auto"
    documents: str = "paragraph"
    text_column: Optional[str] = None
    skip_broken: bool = False


@dataclass
class ReadCounts:
    """What reading left out: rows without usable text, wiki pages that are no articles, damaged files."""

    rows: int = 0
    pages: int = 0
    broken: List[str] = field(default_factory=list)


def find_sources(inputs: Sequence[PathLike], format: str = "auto", avoid: Optional[Path] = None
                 ) -> Tuple[List[Source], List[str]]:
    """The files of the inputs, in an order that depends on names only, and the names of those passed over.

    A file that is named is read whatever it is called; of a folder, files of unknown kind and hidden ones are
    not read.

    Args:
        inputs: files and folders.
        format: see :class:`ReadOptions`.
        avoid: a folder below the inputs that is not to be read (the output).

    Raises:
        BortError: an input is missing or an archive, or there is nothing to read.
    """
    sources: List[Source] = []
    passed: List[str] = []
    for given in map(Path, inputs):
        if given.is_dir():
            for path in _files_below(given, avoid):
                name = path.relative_to(given).as_posix()
                if _inner_suffix(path) in _TEXT_SUFFIXES or _ONE_BILLION.match(_inner_name(path)):
                    sources.append(_source(path, name, format))
                else:
                    passed.append(name)
        elif given.is_file():
            sources.append(_source(given, given.name, format))
        else:
            raise BortError(f"{given}: no such file or folder")
    if not sources:
        raise BortError(f"no text files in {', '.join(map(str, inputs))}")
    return sources, passed


def _files_below(folder: Path, avoid: Optional[Path]) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")
                            and (avoid is None or (Path(root) / name).resolve() != avoid.resolve()))
        yield from (Path(root) / name for name in sorted(names) if not name.startswith("."))


def _inner_name(path: Path) -> str:
    return path.stem if path.suffix in _OPENERS else path.name


def _inner_suffix(path: Path) -> str:
    return Path(_inner_name(path)).suffix.lower()


def _source(path: Path, name: str, format: str) -> Source:
    if _inner_suffix(path) in _ARCHIVES:
        raise BortError(f"{path}: {_inner_suffix(path)} files are not read; unpack it first")
    if format == "auto":
        by_suffix = {".xml": "wiki", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl"}
        format = "sentences" if _ONE_BILLION.match(_inner_name(path)) else by_suffix.get(_inner_suffix(path),
                                                                                         "text")
    if format == "wiki":
        format = "wiktionary" if "wiktionary" in path.name else "wikipedia"
    return Source(path, name, path.stat().st_size, format)


def read_documents(source: Source, options: ReadOptions, counts: ReadCounts) -> Iterator[str]:
    """Raw documents of a file (wikitext for dumps), each at most :data:`MAX_DOCUMENT` characters long.

    Bytes that are not UTF-8 become U+FFFD; a byte-order mark of UTF-16 is respected. ``counts`` is added to.

    Raises:
        BortError: the file is damaged (and ``options.skip_broken`` is off), or a table's text column is not
        known.
    """
    try:
        with _open(source) as stream:
            if source.format in ("wikipedia", "wiktionary"):
                yield from _pages(stream, counts)
            else:
                readers = {"csv": _table, "tsv": _table, "jsonl": _json_lines, "sentences": _lines}
                reader = readers.get(source.format, {"paragraph": _paragraphs, "line": _lines,
                                                     "file": _whole}.get(options.documents, _paragraphs))
                yield from reader(_as_text(stream), source, options, counts)
    except _BROKEN as error:
        problem = f"{source.path}: damaged or incomplete ({_explain(error)})"
        if not options.skip_broken:
            raise BortError(
                            f"{problem}; get it again, or keep what can be read of it with --skip-broken") from error
        counts.broken.append(f"{source.name}: {_explain(error)}")


def _explain(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _open(source: Source) -> IO[bytes]:
    return _OPENERS.get(source.compression, open)(source.path, "rb")  # type: ignore[operator]


def _as_text(stream: IO[bytes]) -> io.TextIOWrapper:
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)  # type: ignore[arg-type]
    start = buffered.peek(2)[:2]
    encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return io.TextIOWrapper(buffered, encoding=encoding, errors="replace")


def _bounded(stream: io.TextIOWrapper) -> Iterator[str]:
    """Lines, those without end in parts, so that a binary file cannot fill the memory."""
    return iter(lambda: stream.readline(_MAX_LINE), "")


def _lines(stream: io.TextIOWrapper, source: Source, options: ReadOptions,
           counts: ReadCounts) -> Iterator[str]:
    return (line for line in _bounded(stream) if not line.isspace())


def _paragraphs(stream: io.TextIOWrapper, source: Source, options: ReadOptions,
                counts: ReadCounts) -> Iterator[str]:
    return _joined(stream, blank_ends=True)


def _whole(stream: io.TextIOWrapper, source: Source, options: ReadOptions,
           counts: ReadCounts) -> Iterator[str]:
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


def _json_lines(stream: io.TextIOWrapper, source: Source, options: ReadOptions,
                counts: ReadCounts) -> Iterator[str]:
    name = options.text_column or "text"
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
                raise BortError(f"{source.path}: no field {name!r} with text in its first {counts.rows} "
                                "lines; name the field with --text-column")


def _table(stream: io.TextIOWrapper, source: Source, options: ReadOptions,
           counts: ReadCounts) -> Iterator[str]:
    csv.field_size_limit(MAX_DOCUMENT)
    lines = (line.replace("\0", "") for line in _bounded(stream))
    if source.format == "tsv":
        rows: Iterator[List[str]] = (line.rstrip("\r\n").split("\t") for line in lines)
    else:
        rows = csv.reader(lines)
    header = next(rows, [])
    place = _column(header, options.text_column, source.path)
    if options.text_column is None or options.text_column.isdigit():
        rows = _chain_first(header, rows)
    for row in rows:
        if len(row) > place and row[place].strip():
            yield row[place]
        elif row:
            counts.rows += 1


def _chain_first(first: List[str], rest: Iterator[List[str]]) -> Iterator[List[str]]:
    yield first
    yield from rest


def _column(header: Sequence[str], wanted: Optional[str], path: Path) -> int:
    if wanted is None:
        if len(header) <= 1:
            return 0
        raise BortError(f"{path}: which of its {len(header)} columns ({', '.join(header)[:200]}) holds the "
                        "text? Say it with --text-column NAME, or a number from 1 when there is no header")
    if wanted in header:
        return header.index(wanted)
    if wanted.isdigit() and 1 <= int(wanted):
        return int(wanted) - 1
    raise BortError(f"{path}: no column {wanted!r}; its first line is: {', '.join(header)[:200]}")


class _PageCollector:
    """Handlers for expat that gather the wikitext of article pages, and refuse document type declarations."""

    def __init__(self, counts: ReadCounts) -> None:
        self.done: List[str] = []
        self._counts = counts
        self._element: Optional[str] = None
        self._page: Dict[str, List[str]] = {}
        self._size = 0
        self._redirect = False

    def start(self, name: str, attributes: Any) -> None:
        if name == "page":
            self._page, self._redirect, self._size = {}, False, 0
        elif name == "redirect":
            self._redirect = True
        self._element = name if name in ("ns", "text") else None
        if name == "text":
            # Of a dump with all revisions, the last one counts.
            self._page["text"], self._size = [], 0

    def data(self, text: str) -> None:
        if self._element and self._size < MAX_DOCUMENT:
            self._page.setdefault(self._element, []).append(text)
            self._size += len(text)

    def end(self, name: str) -> None:
        self._element = None
        if name == "page":
            namespace, text = ("".join(self._page.get(key, [])) for key in ("ns", "text"))
            if namespace.strip() in ("", "0") and not self._redirect and text.strip():
                self.done.append(text)
            else:
                self._counts.pages += 1
            self._page = {}

    @staticmethod
    def refuse(*_: Any) -> None:
        # MediaWiki's dumps have none. It is where entities are declared, which can grow without bound.
        raise expat.ExpatError("it has a document type declaration, which is not accepted")


def _pages(stream: IO[bytes], counts: ReadCounts) -> Iterator[str]:
    collector = _PageCollector(counts)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = collector.start
    parser.EndElementHandler = collector.end
    parser.CharacterDataHandler = collector.data
    parser.StartDoctypeDeclHandler = collector.refuse
    while True:
        block = stream.read(1 << 18)
        try:
            parser.Parse(block, not block)
        finally:
            finished, collector.done = collector.done, []
            yield from finished
        if not block:
            return
