"""Compressed text files as streams, with bounds on what comes out of them and on what they may ask for."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterable, Iterator, TypeVar

from bort.errors import BortError
from bort.files import PathLike, open_regular
from bort.text.reading import MAX_LINE_BYTES, Line, numbered_lines

T = TypeVar("T")

MAX_XZ_MEMORY = 256 << 20
"""Bytes that unpacking .xz may take: ``xz -9`` asks for 65 MiB, a file can ask for 4 GiB."""
MAX_RATIO = 200
FREE_BYTES = 16 << 20
"""Unpacked to packed size that is allowed, from 16 MiB on, as in :mod:`bort.downloads.archives`; text shrinks
to a tenth at best."""
BROKEN = (EOFError, zlib.error, lzma.LZMAError, OSError)
"""What reading such a file may raise."""
_BLOCK = 1 << 16


class TooLarge(OSError):
    """A file unpacks to far more than text does, or asks for more memory than it may take."""


def inner_name(path: PathLike) -> str:
    """The name of the file that is in a compressed one; another file's own."""
    name = Path(os.fspath(path))
    return name.stem if name.suffix in UNPACKERS else name.name


def fault(error: BaseException) -> str:
    """One of :data:`BROKEN`, and what to do, for a message."""
    what, remedy = ("refused", "pack it anew") if isinstance(error, TooLarge) else (
        "damaged or incomplete",
        "get it again",
    )
    return f"{what} ({explain(error)}); {remedy}"


def explain(error: BaseException) -> str:
    """What an error says, in a few words."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def named_faults(items: Iterable[T], path: PathLike) -> Iterator[T]:
    """``items`` as they are read from ``path``.

    Raises:
        BortError: one of :data:`BROKEN` came up in reading them.
    """
    try:
        yield from items
    except BROKEN as error:
        raise BortError(f"{path}: {fault(error)}") from error


def file_lines(path: PathLike, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """:func:`bort.text.reading.numbered_lines` of a file, which may be compressed.

    Raises:
        BortError: as :func:`open_text_file` and :func:`named_faults`.
    """
    with open_text_file(path) as stream:
        yield from named_faults(numbered_lines(stream, max_bytes), path)


def open_text_file(path: PathLike) -> IO[bytes]:
    """The unpacked bytes of a regular file: .gz, .bz2, .xz and .lzma by the name's end, others as they are.

    Reading raises :class:`TooLarge` once more than :data:`FREE_BYTES` and more than :data:`MAX_RATIO` times
    the file's size came out, and for a file that asks for more memory than :data:`MAX_XZ_MEMORY`.

    Raises:
        BortError: it is no regular file, or cannot be opened.
    """
    packed = open_regular(path)
    unpacker = UNPACKERS.get(Path(os.fspath(path)).suffix)
    if unpacker is None:
        return packed
    allowed = max(FREE_BYTES, os.fstat(packed.fileno()).st_size * MAX_RATIO)
    return io.BufferedReader(_Bounded(unpacker(packed), packed, allowed), _BLOCK)


class _Bounded(io.RawIOBase):
    """Counts what comes out of a stream; closing it closes the file too."""

    def __init__(self, stream: Any, packed: IO[bytes], allowed: int) -> None:
        self._stream, self._packed, self._allowed, self._total = stream, packed, allowed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._stream.read(len(buffer))
        self._total += len(block)
        if self._total > self._allowed:
            raise TooLarge(f"it unpacks to more than {self._allowed:,} bytes")
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._packed.close()
        super().close()


class _Xz:
    """``lzma.LZMAFile`` with a limit on memory, which that class does not take."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._begin(packed.read(_BLOCK))

    def _begin(self, data: bytes) -> None:
        self._unpacker = lzma.LZMADecompressor(memlimit=MAX_XZ_MEMORY)
        self._data = data

    def read(self, size: int) -> bytes:
        while True:
            if self._unpacker.eof:
                rest = (self._unpacker.unused_data or self._packed.read(_BLOCK)).lstrip(
                    b"\0"
                )  # stream padding
                if not rest and not (rest := self._packed.read(_BLOCK)):
                    return b""
                self._begin(rest)
            try:
                block = self._unpacker.decompress(self._data, size)
            except lzma.LZMAError as error:
                if "memory" not in str(error).lower():  # liblzma's error has no class of its own
                    raise
                raise TooLarge(f"it asks for more than {MAX_XZ_MEMORY >> 20} MiB of memory") from error
            self._data = b""
            if block:
                return block
            if self._unpacker.needs_input and not self._unpacker.eof:
                self._data = self._packed.read(_BLOCK)
                if not self._data:
                    raise EOFError("the compressed data end before their end mark")


UNPACKERS: Dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda packed: gzip.GzipFile(fileobj=packed),
    ".bz2": bz2.BZ2File,
    ".xz": _Xz,
    ".lzma": _Xz,
}
