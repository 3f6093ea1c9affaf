"""Which files a corpus consists of, and how each is read."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

from bort.errors import BortError
from bort.files import PathLike
from bort.text.compressed import UNPACKERS, inner_name

FORMATS = ("auto", "text", "sentences", "wikipedia", "wiktionary", "urbandictionary", "csv", "tsv", "jsonl")
PAPER_MIN_WORDS = {"wiktionary": 11, "urbandictionary": 11}
"""The least words of a document by format: of the paper's dictionaries, definitions of ten words or fewer are
left out (footnotes 8 and 9)."""
DOCUMENTS = ("paragraph", "line", "file")
_ARCHIVES = {".zip", ".tar", ".tgz", ".7z", ".rar", ".zst", ".parquet", ".pdf", ".docx"}
_TEXT_SUFFIXES = {"", ".txt", ".text", ".xml", ".csv", ".tsv", ".jsonl", ".en"}
_BY_SUFFIX = {".xml": "wiki", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl"}
_URBAN_DICTIONARY = re.compile(r"urban[ _-]?dict", re.IGNORECASE)
_ONE_BILLION = re.compile(r"^news\.en(-\d+-of-\d+|\.heldout.*|\.shuffled.*)?$")


class Source(NamedTuple):
    """A file to read: its name below the input it was found in, its size on disk, and its format.

    The format says what the corpus is (a dictionary has rules of its own), :attr:`layout` how its files look.
    """

    path: Path
    name: str
    size: int
    format: str

    @property
    def layout(self) -> str:
        """The format, but for Urban Dictionary, whose files come as tables, JSON lines or text."""
        return (
            _BY_SUFFIX.get(_inner_suffix(self.path), "text")
            if self.format == "urbandictionary"
            else self.format
        )

    @property
    def compression(self) -> str:
        """``.gz``, ``.bz2``, ``.xz`` or empty."""
        return self.path.suffix if self.path.suffix in UNPACKERS else ""

    @property
    def text_bytes(self) -> int:
        """About how many bytes of text are in it; compressed text is taken to shrink to a quarter."""
        return self.size * (4 if self.compression else 1)


@dataclass(frozen=True)
class ReadOptions:
    """How files become documents.

    Attributes:
        format: one of :data:`FORMATS`; "auto" tells it from the name.
        documents: what a document of plain text is: a paragraph (between blank lines), a line, or
            the whole file.
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


def find_sources(
    inputs: Sequence[PathLike], format: str = "auto", avoid: Optional[Path] = None
) -> Tuple[List[Source], List[str]]:
    """The files of the inputs, in an order that depends on names only, and the names of those passed over.

    A file that is named is read whatever it is called; of a folder, files of unknown kind, hidden ones, and
    what is no regular file (a FIFO, a device, a broken link) are not read.

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
                if path.is_file() and (
                    _inner_suffix(path) in _TEXT_SUFFIXES or _ONE_BILLION.match(inner_name(path))
                ):
                    sources.append(_source(path, name, format))
                else:
                    passed.append(name)
        elif given.is_file():
            sources.append(_source(given, given.name, format))
        else:
            raise BortError(
                f"{given}: {'not a regular file' if given.exists() else 'no such file or folder'}"
            )
    if not sources:
        raise BortError(f"no text files in {', '.join(map(str, inputs))}")
    return sources, passed


def _files_below(folder: Path, avoid: Optional[Path]) -> Iterator[Path]:
    avoided = None if avoid is None else avoid.resolve()
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (avoided is None or (Path(root) / name).resolve() != avoided)
        )
        yield from (Path(root) / name for name in sorted(names) if not name.startswith("."))


def _inner_suffix(path: Path) -> str:
    return Path(inner_name(path)).suffix.lower()


def _source(path: Path, name: str, format: str) -> Source:
    if _inner_suffix(path) in _ARCHIVES:
        raise BortError(f"{path}: {_inner_suffix(path)} files are not read; unpack it first")
    if format == "auto" and _ONE_BILLION.match(inner_name(path)):
        format = "sentences"
    elif format == "auto" and _URBAN_DICTIONARY.search(path.name):
        format = "urbandictionary"
    elif format == "auto":
        format = _BY_SUFFIX.get(_inner_suffix(path), "text")
    if format == "wiki":
        format = "wiktionary" if "wiktionary" in path.name else "wikipedia"
    return Source(path, name, path.stat().st_size, format)
