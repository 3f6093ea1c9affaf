"""What the fuzz tests share: their length, and inputs that readers have stumbled over.

``BORT_FUZZ_EXAMPLES=500 python -m pytest tests -k fuzz -n 0`` makes a thorough run of them all.
"""
from __future__ import annotations

import os
from typing import Any, Sequence

from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("BORT_FUZZ_EXAMPLES", "5"))
"""Examples of one fuzz test, before it multiplies them by what its speed allows."""
JUNK = st.one_of(st.none(), st.booleans(), st.integers(-10, 10**25), st.floats(), st.text(max_size=6),
                 st.lists(st.integers(), max_size=2), st.just({}), st.just([]), st.just({"idx": 1}))
"""JSON values of a type that a reader may not expect."""
PIECES = st.one_of(st.binary(max_size=20), st.sampled_from([
    b"[" * 3000, b"\t" * 1000, b"9" * 5000, b"\n" * 500, b"\0", b"x" * 200_000, b"\xef\xbb\xbf", b'\\ud800',
    b"_" * 300, b'"', b'"' * 301, b"\r", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0", b'{"\\ud800": 1}',
    "\u00b2\u0663".encode(), b"1e999", b"NaN", b",", b"</s>"]))
"""Bytes to put into a file."""


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """``content`` cut, changed, repeated, with something put in, or replaced."""
    data = bytearray(content)
    kind = draw(st.sampled_from(["cut", "flip", "insert", "noise", "repeat"]))
    place = draw(st.integers(0, len(data)))
    if kind == "cut":
        del data[place:]
    elif kind == "flip" and place < len(data):
        data[place] = draw(st.integers(0, 255))
    elif kind == "insert":
        data[place:place] = draw(PIECES)
    elif kind == "noise":
        return draw(st.binary(max_size=300))
    elif kind == "repeat":
        data *= 3
    return bytes(data)


def replaced(value: Any, path: Sequence[int], junk: Any) -> Any:
    """``value`` with ``junk`` in place of what ``path``, a list of choices, leads to."""
    if not path or not isinstance(value, (dict, list)) or not value:
        return junk
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = replaced(value[key], path[1:], junk)
    return copy
