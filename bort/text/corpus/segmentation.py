"""Words and blanks in scripts that are written without blanks between words, by Unicode's properties.

Chinese and Japanese (Line_Break ID and CJ) and the scripts of South East Asia (SA: Thai, Lao, Khmer, Myanmar)
put no blank between words. Everything else is counted by blanks, as the ten-word rule of the paper is.
"""

from __future__ import annotations

from typing import List

import regex

_UNSPACED = r"\p{Line_Break=Complex_Context}\p{Line_Break=Ideographic}\p{LB=CJ}"
_ANY_UNSPACED = regex.compile(f"[{_UNSPACED}]")
_BREAKS = regex.compile(rf"[\s{_UNSPACED}]+")
# UAX 29's default word boundaries; the WORD flag makes \b one. A word holds a letter or digit.
_WORD = regex.compile(r"\b\w.*?\b", regex.V1 | regex.WORD)
# The blank that stands for a line end between two characters of East Asian text is no part of the text.
_EAST_ASIAN = r"[\p{Line_Break=Ideographic}\p{LB=CJ}\p{LB=CL}\p{LB=NS}\u3000-\u303f\uff01-\uff60]"
_JOINT = regex.compile(rf"(?<={_EAST_ASIAN})\n(?={_EAST_ASIAN})")


def count_words(text: str) -> int:
    """Words separated by blanks; of a stretch with unspaced script, its words by UAX 29.

    UAX 29 makes each ideograph a word, and each cluster of a Thai text, whose words only a dictionary knows.
    """
    parts = text.split()
    if text.isascii() or not _ANY_UNSPACED.search(text):
        return len(parts)
    return sum(len(_WORD.findall(part)) if _ANY_UNSPACED.search(part) else 1 for part in parts)


def longest_word(text: str) -> int:
    """Characters of the longest stretch without a blank; a character of an unspaced script ends a stretch."""
    parts: List[str] = text.split() if text.isascii() else _BREAKS.split(text)
    return max(map(len, parts), default=0)


def join_lines(text: str) -> str:
    """The lines of a paragraph with a blank for each line end, but none inside East Asian text."""
    if not text.isascii():
        text = _JOINT.sub("", text)
    return text.replace("\n", " ")
