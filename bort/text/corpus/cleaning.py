"""From a raw document to its sentences: markup, structured columns and garbage go, running text stays."""

from __future__ import annotations

import re
from collections import Counter
from typing import Iterable, Iterator, List

from bort.text.corpus.markup import without_markup
from bort.text.corpus.segmentation import count_words, join_lines, longest_word
from bort.text.corpus.sentences import split_sentences
from bort.text.corpus.wikitext import definitions, plain_wikitext, prose_lines
from bort.text.tokenizers.base import Tokenizer

_LONGEST_WORD = 200

# One look decides whether a text needs any of the slower steps.
_SUSPECT = re.compile(
    r"[<&|=\t\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff\ufffd"
    + Tokenizer.MARKER
    + r"\ud800-\udfff]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff" + Tokenizer.MARKER + r"\ud800-\udfff]")
_BINARY = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd\ud800-\udfff]")
_INVISIBLE = re.compile(r"[\u200b-\u200f\u202a-\u202e]")
_GAP = re.compile(r"\S(?:\t| {3,})\s*")
_LETTER = re.compile(r"[^\W\d_]")


def clean_document(raw: str, format: str, min_words: int, dropped: Counter) -> Iterator[List[str]]:
    """The documents in a raw one (several definitions of a dictionary page, else one), each as its sentences.

    Markup tags, entities, wiki markup, headings and structured columns are removed; lines that are not text
    (control characters, undecodable bytes) and sentences with words of more than 200 characters too. Blanks
    are normalised. Time grows in proportion to the document, whatever it holds.

    Args:
        raw: as :func:`bort.text.corpus.readers.read_documents` gives it.
        format: its source's format.
        min_words: documents with fewer words (as :func:`count_words` counts them) are left out.
        dropped: counts what is left out: "short" documents, "structured" and "garbage"
            lines, "unparsable" pages.
    """
    texts: Iterable[Iterable[str]]
    if format == "wiktionary":
        texts = [[join_lines("\n".join(_text_lines(text, dropped)))] for text in definitions(raw, dropped)]
    elif format == "wikipedia":
        texts = [prose_lines(_text_lines(plain_wikitext(raw, dropped), dropped), dropped)]
    elif format == "sentences":
        texts = [_text_lines(raw, dropped)]
    else:
        texts = [[join_lines("\n".join(_text_lines(raw, dropped)))]]
    for lines in texts:
        sentences = _sentences(lines, whole=format == "sentences")
        soup = sum(map(_is_word_soup, sentences))
        if soup:
            dropped["garbage"] += soup
            sentences = [sentence for sentence in sentences if not _is_word_soup(sentence)]
        if sentences and sum(map(count_words, sentences)) >= min_words:
            yield sentences
        else:
            dropped["short"] += 1


def _sentences(lines: Iterable[str], whole: bool) -> List[str]:
    normalised = (" ".join(line.split()) for line in lines)
    if whole:
        return [line for line in normalised if line]
    return [sentence for line in normalised for sentence in split_sentences(line)]


def _text_lines(raw: str, dropped: Counter) -> List[str]:
    if not _is_suspect(raw):
        return raw.split("\n")
    kept = []
    for line in without_markup(raw).split("\n"):
        kind = _kind_of(line)
        if kind == "text":
            kept.append(_INVISIBLE.sub("", _CONTROL.sub(" ", line)))
        elif kind != "blank":
            dropped[kind] += 1
    return kept


def _is_suspect(text: str) -> bool:
    return "   " in text or _SUSPECT.search(text) is not None


def _is_word_soup(sentence: str) -> bool:
    """Whether an encoded file or the like is in a sentence."""
    return len(sentence) > _LONGEST_WORD and longest_word(sentence) > _LONGEST_WORD


def _kind_of(line: str) -> str:
    line = line.strip()
    if not line:
        return "blank"
    if not _is_suspect(line):
        return "text"
    undecodable = len(_BINARY.findall(line))
    if undecodable > 2 and 20 * undecodable > len(line):
        return "garbage"
    if _is_heading(line):
        return "structured"
    cells = len(_GAP.findall(line))  # the line is stripped: more text follows every gap
    # A table's row has gaps or bars between cells; prose has a gap or two at most, and mostly letters.
    if (
        cells >= 3
        or line.count("|") >= 3
        or (cells and 2 * len(_LETTER.findall(line)) < len("".join(line.split())))
    ):
        return "structured"
    return "text"


def _is_heading(line: str) -> bool:
    """Whether a stripped line is ``= Title =`` or ``==Title==``, as in WikiText and in wiki pages."""
    title = line.strip("=")
    before, after = len(line) - len(line.lstrip("=")), len(line) - len(line.rstrip("="))
    if not before or not after or not title:
        return False
    return (before == after and "=" not in title) or (title[0] == title[-1] == " " and len(title) > 1)
