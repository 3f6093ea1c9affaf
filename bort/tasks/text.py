"""Small repairs that every text of a data file gets before it becomes a segment."""
from __future__ import annotations

import re
from typing import List, Optional, Tuple

from bort.text.tokenizers.base import Tokenizer, without_surrogates

MARKER = Tokenizer.MARKER

# White space is collapsed before these apply:
# a pattern with several unbounded runs would take quadratic time.
_TAGS = re.compile(r"</?(?:b|br|i|p) ?/?>", re.IGNORECASE)
_SENTENCE_NUMBERS = re.compile(r"<b> ?Sent \d{1,4} ?:? ?</b>", re.IGNORECASE)
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\ufeff]")
_SPACE_BEFORE_MARK = re.compile(r" ([,.;:?!])(?= |$)")
_REPEATED_MARK = re.compile(r"([?!,;:])(?: ?\1)+")
_TWO_DOTS = re.compile(r"(?<!\.)\. ?\.(?! ?\.)")
_DOUBLED_WORD = re.compile(r"\b(the|a|an|of|to|and|in|on|for|was|were|did) \1\b", re.IGNORECASE)
MAX_SPAN = 500
MAX_BEGINNINGS = 20
"""Places of a span's first word that are tried, so that time grows with the text and no faster."""


def sanitize(text: str) -> str:
    """``text`` of the same length without the private character that marks spans
    and without lone surrogates."""
    return text if text.isascii() else without_surrogates(text.replace(MARKER, "\ufffd"))


def clean(text: str) -> str:
    """:func:`sanitize` without white space at the ends."""
    return sanitize(text).strip()


def flatten(text: str) -> str:
    """:func:`sanitize` with every run of white space, line ends included, as one blank."""
    return " ".join(sanitize(text).split())


def tidy(text: str) -> str:
    """MultiRC's light cleaning. The paper (section 5.2) says only "removing the typos"; what that is here:

    HTML tags and sentence numbers of the set's older distribution, soft hyphens and zero-width characters,
    runs of white space, blanks before punctuation, repeated punctuation (``??``, ``..`` but not ``...``),
    function words typed twice (``the the``). Words are not respelled: which ones are wrong is not mechanical.
    """
    text = " ".join(_UNSEEN.sub("", text).split())
    text = " ".join(_TAGS.sub(" ", _SENTENCE_NUMBERS.sub(" ", text)).split())
    text = _SPACE_BEFORE_MARK.sub(r"\1", _REPEATED_MARK.sub(r"\1", text))
    text = _TWO_DOTS.sub(".", text)
    return _DOUBLED_WORD.sub(r"\1", text)


def mark(text: str, spans: List[Tuple[int, int]]) -> str:
    """``text`` with :data:`MARKER` before and after each ``(start, end)`` span of characters;
    spans may overlap."""
    for position in sorted((position for span in spans for position in span), reverse=True):
        text = text[:position] + MARKER + text[position:]
    return text


def locate_span(text: str, span: str, word_index: int) -> Tuple[int, int]:
    """Characters of a WSC span that is given as a text and the index of its first white-space-separated word.

    The two disagree in some official rows ("Emma" is the word "Emma's", "it" is some words further on), so
    the span is the occurrence of the text nearest to that word: as whole words in this case, else in any
    case, else anywhere. Where the text does not occur at all, the span reaches from its first word to its
    last, with others between them ("Kamenev, Zinoviev, and Stalin"); else it is the words at the index.

    Raises:
        ValueError: the text does not occur and there is no word of that index, or it is absurdly long.
    """
    if len(span) > MAX_SPAN:
        raise ValueError(f"too long a span ({len(span)} characters)")
    words = [match.span() for match in re.finditer(r"\S+", text)]
    parts = r"\s+".join(re.escape(part) for part in span.split())
    near = words[word_index][0] if 0 <= word_index < len(words) else len(text)
    for pattern, flags in ((rf"(?<!\w){parts}(?!\w)", 0), (rf"(?<!\w){parts}(?!\w)", re.I), (parts, re.I)):
        found = [match.span() for match in re.finditer(pattern, text, flags)] if parts else []
        if found:
            return min(found, key=lambda place: abs(place[0] - near))
    stretch = _stretch(text, span, near)
    if stretch is not None:
        return stretch
    if not 0 <= word_index < len(words):
        raise ValueError(f"word {word_index} of {len(words)} instead")
    last = min(word_index + max(1, len(span.split())), len(words)) - 1
    return words[word_index][0], words[last][1]


def _stretch(text: str, span: str, near: int) -> Optional[Tuple[int, int]]:
    """The part of ``text`` that holds the words of ``span`` in order, "and" and "or" left out, and begins
    nearest to the character ``near``; None where there is none."""
    wanted = [word for word in re.findall(r"\w+", span.lower()) if word not in ("and", "or")]
    words = [(match[0].lower(), match.start(), match.end()) for match in re.finditer(r"\w+", text)]
    begins = [index for index, word in enumerate(words) if word[0] in wanted[:1]]
    for begin in sorted(begins, key=lambda index: abs(words[index][1] - near))[:MAX_BEGINNINGS]:
        index = begin
        for word in wanted[1:]:
            index = next((later for later in range(index + 1, len(words)) if words[later][0] == word), -1)
            if index < 0:
                break
        else:
            return words[begin][1], words[index][2]
    return None
