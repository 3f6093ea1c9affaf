"""The one reader of text: corpora, task files and the input of predictions come through it.

Text is UTF-8, or UTF-16 or UTF-32 where a byte-order mark says so. A line ends at LF or CR LF; at CR alone in
a file whose first 64 KiB have no LF. No other character ends a line: official task files contain U+2028,
U+0085 and form feeds. A last line needs no end. Files are opened with :func:`bort.files.open_regular`.
"""

from __future__ import annotations

import codecs
import io
from typing import IO, Any, Iterator, NamedTuple, Optional, cast

MAX_LINE_BYTES = 4 << 20
"""A longer line is reported as a bad one by :func:`numbered_lines`; the longest of an official task file (a
MultiRC or ReCoRD record) has some tens of thousands."""

_BLOCK = 1 << 16
# UTF-32's mark begins with UTF-16's, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, ""),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Line(NamedTuple):
    """A line: its number from 1, and its text without line end, or what is wrong with it."""

    number: int
    text: str
    problem: Optional[str] = None


def utf8_stream(stream: IO[bytes]) -> IO[bytes]:
    """A binary stream of the same text in UTF-8, without a mark, every line ended by LF.

    Bytes that are undecodable stay undecodable: whoever decodes the result sees that they are damaged. Memory
    is bounded, whatever the stream holds. Closing the result does not close ``stream``.
    """
    head = stream.readline(_BLOCK)
    mark, encoding = next(((mark, name) for mark, name in _MARKS if head.startswith(mark)), (b"", ""))
    return io.BufferedReader(_Utf8(head[len(mark) :], stream, encoding), _BLOCK)


def numbered_lines(stream: IO[bytes], max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Every line of a binary stream, in order; blank ones too.

    A line that is not UTF-8 or longer than ``max_bytes`` comes with a ``problem`` ("expected ...") and no
    text; a long one is read past without being kept.
    """
    clean = utf8_stream(stream)
    number = 0
    while True:
        raw = clean.readline(max_bytes + 1)
        if not raw:
            return
        number += 1
        if len(raw) > max_bytes and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = clean.readline(max_bytes)
            yield Line(number, "", f"expected a line of at most {max_bytes:,} bytes")
            continue
        try:
            yield Line(number, raw.decode("utf-8").rstrip("\n"))
        except UnicodeDecodeError as error:
            yield Line(
                number,
                "",
                f"expected UTF-8 text, found byte 0x{raw[error.start]:02x} at column {error.start + 1}",
            )


def _undecodable(error: UnicodeError) -> Any:
    # Encoded again with "surrogatepass", this is no UTF-8.
    return "\udcff", cast(UnicodeDecodeError, error).end


codecs.register_error("bort.undecodable", _undecodable)


class _Utf8(io.RawIOBase):
    """What :func:`utf8_stream` promises, as a raw stream."""

    def __init__(self, head: bytes, stream: IO[bytes], encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("bort.undecodable") if encoding else None
        self._cr_ends = False
        self._held = b""  # a CR at the end of a block, whose LF may follow
        self._ended = False
        first = self._utf8(head)
        # In UTF-16 and UTF-32 an LF's byte may be half a character, or need a byte more.
        while encoding and b"\n" not in first and len(first) < _BLOCK and head:
            head = stream.readline(_BLOCK)
            first += self._utf8(head)
        self._cr_ends = b"\n" not in first and b"\r" in first
        self._ready = self._with_line_ends(first)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            # read1 hands on what a pipe has given so far: a line is answered before the next one comes.
            block = cast(io.BufferedReader, self._stream).read1(_BLOCK)
            self._ended = not block
            self._ready = self._with_line_ends(self._utf8(block, final=self._ended))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _utf8(self, block: bytes, final: bool = False) -> bytes:
        if self._decoder is None:
            return block
        return self._decoder.decode(block, final).encode("utf-8", "surrogatepass")

    def _with_line_ends(self, block: bytes) -> bytes:
        block, self._held = self._held + block, b""
        if b"\r" not in block:
            return block
        if block.endswith(b"\r") and not self._ended:
            block, self._held = block[:-1], b"\r"
        block = block.replace(b"\r\n", b"\n")
        return block.replace(b"\r", b"\n") if self._cr_ends else block
