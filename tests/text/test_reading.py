"""The one reader of text: encodings, line ends, bounds, and what is not a file."""

from __future__ import annotations

import codecs
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bort.errors import BortError
from bort.files import open_regular
from bort.text.reading import numbered_lines, utf8_stream

ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def texts(data: bytes, **options):
    lines = numbered_lines(io.BytesIO(data), **options)
    return [line.text if line.problem is None else None for line in lines]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_the_same_in_every_encoding_and_with_every_line_end(encoding, end):
    lines = ["Café \u4e2d\u6587 \U0001f600", "", "a\u2028b\x85c\x0cd", "\u0a0a\u0d0d\u0a00", "last"]
    data = ENCODINGS[encoding] + end.join(lines).encode(encoding)
    assert texts(data) == lines
    assert texts(data + end.encode(encoding.replace("-sig", ""))) == lines


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_lines_do_not_depend_on_how_the_bytes_come(size):
    class Slow(io.BytesIO):
        def read1(self, count=-1):
            return self.read(size)

    for encoding, mark in ENCODINGS.items():
        data = mark + "x\r\ny\r\n\r\nz é".encode(encoding)
        assert [line.text for line in numbered_lines(Slow(data))] == ["x", "y", "", "z é"]


def test_a_cr_ends_a_line_only_where_nothing_else_does():
    assert texts(b"a\rb\nc\rd\n") == ["a\rb", "c\rd"]
    assert texts("a\rb\nc".encode("utf-16")) == ["a\rb", "c"]
    assert texts(b"a\rb\r\rc") == ["a", "b", "", "c"]
    assert texts(b"\r") == [""] and texts(b"") == [] and texts(b"\n\n") == ["", ""]


def test_undecodable_lines_are_reported_and_the_others_read():
    found = list(numbered_lines(io.BytesIO(b"good\nb\xffd\nlast")))
    assert [line.text for line in found] == ["good", "", "last"]
    assert found[1].problem == "expected UTF-8 text, found byte 0xff at column 2"
    data = codecs.BOM_UTF16_LE + "good\n".encode("utf-16-le") + b"\x00\xd8" + "x\nlast\n".encode("utf-16-le")
    assert texts(data) == ["good", None, "last"], "half a surrogate pair"
    assert texts("good\nx".encode("utf-16") + b"\x41") == ["good", None], "half a unit"
    assert texts(codecs.BOM_UTF32_LE + b"\xff\xff\xff\xff" + "\nx".encode("utf-32-le")) == [None, "x"]


def test_lines_that_are_too_long_are_passed_over():
    data = b"ab\n" + b"x" * 1000 + b"\n" + b"12345678\n" + b"y" * 9
    found = list(numbered_lines(io.BytesIO(data), max_bytes=8))
    assert [(line.number, line.text) for line in found] == [(1, "ab"), (2, ""), (3, "12345678"), (4, "")]
    assert found[1].problem == found[3].problem == "expected a line of at most 8 bytes"


@given(st.binary(max_size=300), st.sampled_from(sorted(ENCODINGS)))
def test_any_bytes_can_be_read(data, encoding):
    data = ENCODINGS[encoding] + data
    assert utf8_stream(io.BytesIO(data)).read() == b"".join(utf8_stream(io.BytesIO(data)))
    for line in numbered_lines(io.BytesIO(data)):
        assert "\n" not in line.text and (line.problem is None or not line.text)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80))
def test_text_comes_back_as_it_was(text):
    text = "\n" + text.replace("\r\n", "\n").replace("\ufeff", "")
    for encoding, mark in ENCODINGS.items():
        assert utf8_stream(io.BytesIO(mark + text.encode(encoding))).read().decode() == text


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    os.symlink(tmp_path / "a.txt", tmp_path / "link")
    with open_regular(tmp_path / "link") as stream:
        assert stream.read() == b"x"
    os.mkfifo(tmp_path / "fifo")
    for name, message in (
        ("fifo", "not a regular file"),
        ("", "a folder"),
        ("none", "cannot be read"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(BortError, match=message):
            open_regular(f"{tmp_path}/{name}")
    with pytest.raises(BortError, match="not a regular file"):
        open_regular("/dev/zero")
