"""Small repairs that every text of a data file gets before it becomes a segment."""
from __future__ import annotations

from bort.text.base import Tokenizer, without_surrogates

MARKER = Tokenizer.MARKER


def clean(text: str) -> str:
    """``text`` without white space at its ends, lone surrogates, or the private character that marks spans."""
    return without_surrogates(text.replace(MARKER, "")).strip()
