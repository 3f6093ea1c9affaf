"""From a raw document to its sentences: markup, structured columns and garbage go, unstructured text
stays."""
from __future__ import annotations

import html
import re
from collections import Counter
from typing import Any, Iterator, List

from bort.errors import BortError
from bort.text.corpus.sentences import split_sentences
from bort.text.tokenizers.base import Tokenizer

PAPER_MIN_WORDS = 11
"""Definitions of ten words or fewer are left out (footnotes 8 and 9 of the paper)."""

_LONGEST_WORD = 200

# One look decides whether a text needs any of the slower steps.
_SUSPECT = re.compile(r"[<&|=\t\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff\ufffd"
                      + Tokenizer.MARKER + r"\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff" + Tokenizer.MARKER + r"\ud800-\udfff]")
_BINARY = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd\ud800-\udfff]")
_INVISIBLE = re.compile(r"[\u200b-\u200f\u202a-\u202e]")
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9:-]{0,40}(?:\s[^<>]{0,2000})?/?>|<![A-Za-z][^<>]{0,2000}>")
_BLOCK_TAG = re.compile(
                        r"</?(?:p|div|br|li|ul|ol|tr|table|h[1-6]|blockquote|section|article)\b[^<>]{0,2000}>",
                        re.I)
_HIDDEN = (("<!--", "-->"), ("<script", "</script>"), ("<style", "</style>"))
_WIKI_HIDDEN = (("<!--", "-->"), ("<math", "</math>"), ("<gallery", "</gallery>"), ("<pre", "</pre>"),
                ("<syntaxhighlight", "</syntaxhighlight>"), ("<timeline", "</timeline>"), ("<ref", "</ref>"))
_EMPTY_REF = re.compile(r"<ref[^<>]{0,2000}/>", re.I)
_QUOTES = re.compile(r"'{2,}")
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:)?//([^\[\]\n]*)\]")
_EXTERNAL_OPEN = re.compile(r"\[(?=(?:https?:|ftp:)?//)")
_BRACKETS = re.compile(r"\{\{|\}\}|\{\||\|\}|\[\[|\]\]")
_CLOSES = {"}}": "{{", "|}": "{|", "]]": "[["}
_DEEPEST = 10
_HEADING = re.compile(r"\s*=+ .* =+\s*|\s*(=+)[^=]+\1\s*")
_GAP = re.compile(r"\S(?:\t| {3,})[\s]*(?=\S)")
_LETTER = re.compile(r"[^\W\d_]")

_WIKI_HIDDEN_LINKS = re.compile(r"\s*:?(?:file|image|media|category)\s*:", re.I)
_DEFINITION = re.compile(r"#+(?![#:*;])\s*(.+)")
_LANGUAGE = re.compile(r"==\s*([^=].*?)\s*==\s*")


def parser_for_wikitext() -> Any:
    """The module mwparserfromhell. Raises BortError saying how to get it when it is not installed."""
    try:
        import mwparserfromhell
    except ImportError as error:
        raise BortError("reading Wikipedia or Wiktionary dumps needs mwparserfromhell: pip install "
                        "'bort[corpora]'") from error
    return mwparserfromhell


def clean_document(raw: str, format: str, min_words: int, dropped: Counter) -> Iterator[List[str]]:
    """The documents in a raw one (several definitions of a dictionary page, else one), each as its sentences.

    Markup tags, entities, wiki markup, headings and structured columns are removed; lines that are not text
    (control characters, undecodable bytes) and sentences with words of more than 200 characters too. Blanks
    are normalised.

    Args:
        raw: as :func:`bort.text.corpus.readers.read_documents` gives it.
        format: its source's format.
        min_words: documents with fewer blank-separated words are left out.
        dropped: counts what is left out: "short" documents, "structured" and "garbage" lines, "unparsable"
            pages.
    """
    if format == "wiktionary":
        texts = [[text] for text in _definitions(raw, dropped)]
    elif format == "wikipedia":
        texts = [_article(raw, dropped)]
    else:
        texts = [_plain_lines(raw, dropped)]
    joined = format not in ("wikipedia", "sentences")
    for lines in texts:
        lines = [" ".join(lines)] if joined else lines
        if format == "sentences":
            sentences = [text for text in (" ".join(line.split()) for line in lines) if text]
        else:
            sentences = [sentence for line in lines for sentence in split_sentences(" ".join(line.split()))]
        soup = sum(map(_is_word_soup, sentences))
        if soup:
            dropped["garbage"] += soup
            sentences = [sentence for sentence in sentences if not _is_word_soup(sentence)]
        words = sum(sentence.count(" ") + 1 for sentence in sentences)
        if sentences and words >= min_words:
            yield sentences
        else:
            dropped["short"] += 1


def _plain_lines(raw: str, dropped: Counter) -> List[str]:
    if not _is_suspect(raw):
        return raw.split("\n")
    if "<" in raw:
        for opening, closing in _HIDDEN:
            raw = _without(raw, opening, closing)
        raw = _TAG.sub("", _BLOCK_TAG.sub("\n", raw))
    if "&" in raw:
        raw = html.unescape(raw)
    kept = []
    for line in raw.split("\n"):
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
    return len(sentence) > _LONGEST_WORD and max(map(len, sentence.split())) > _LONGEST_WORD


def _without(text: str, opening: str, closing: str) -> str:
    """``text`` without what stands between the marks, upper or lower case; an open end is cut at its line."""
    lower = text.lower()
    if len(lower) != len(text) or opening not in lower:
        return text
    kept: List[str] = []
    begin = 0
    while True:
        start = lower.find(opening, begin)
        end = -1 if start < 0 else lower.find(closing, start)
        if end < 0:
            break
        kept.append(text[begin:start])
        begin = end + len(closing)
    kept.append(text[begin:])
    return "".join(kept)


def _kind_of(line: str) -> str:
    if not line or line.isspace():
        return "blank"
    if not _is_suspect(line):
        return "text"
    undecodable = len(_BINARY.findall(line))
    if undecodable > 2 and 20 * undecodable > len(line):
        return "garbage"
    if _HEADING.fullmatch(line):
        return "structured"
    cells = len(_GAP.findall(line))
    # A table's row has gaps or bars between cells; prose has a gap or two at most, and mostly letters.
    if cells >= 3 or line.count("|") >= 3 or (
            cells and 2 * len(_LETTER.findall(line)) < len("".join(line.split()))):
        return "structured"
    return "text"


def _article(raw: str, dropped: Counter) -> List[str]:
    """Lines of a Wikipedia article's prose: no templates, tables, references, headings, captions or list
    entries."""
    lines = []
    for line in _plain_lines(_without_wiki_markup(raw, dropped), dropped):
        bare = line.lstrip("*#:; \t")
        # List entries that are whole sentences are prose; the others are columns of names.
        if line[:1] in ("*", "#", ":", ";") and not bare.rstrip().endswith((".", "!", "?")):
            dropped["structured"] += 1
        elif bare:
            lines.append(bare)
    return lines


def _without_wiki_markup(raw: str, dropped: Counter) -> str:
    """Wikitext as plain lines (entries of lists keep their mark); nothing, and one "unparsable", when that
    fails."""
    raw = _EMPTY_REF.sub("", raw)
    for opening, closing in _WIKI_HIDDEN:
        raw = _without(raw, opening, closing)
    # What can be removed by itself is, and what is left balanced: the parser looks for the partner of every
    # mark that opens, again for every mark inside, which takes exponential time on text made for it.
    raw = _QUOTES.sub("", _TAG.sub("", raw)).replace("<", " ")
    raw = _balanced(_EXTERNAL_OPEN.sub("", _EXTERNAL.sub(_link_text, raw)))
    parser = parser_for_wikitext()
    nodes = parser.nodes
    kept: List[Any] = []
    try:
        code = parser.parse(raw)
        for node in code.nodes:
            if isinstance(node, nodes.Tag) and node.wiki_markup and str(node.wiki_markup)[:1] in "*#:;":
                kept.append(nodes.Text(str(node.wiki_markup)))
            elif isinstance(node, nodes.Heading):
                kept.append(nodes.Text("\n"))
            elif not (isinstance(node, nodes.Tag) and str(node.tag) == "table") and not (
                    isinstance(node, nodes.Wikilink) and _WIKI_HIDDEN_LINKS.match(str(node.title))):
                kept.append(node)
        code.nodes = kept
        return str(code.strip_code(normalize=True, collapse=True))
    except (parser.parser.ParserError, RecursionError, ValueError, AttributeError):
        dropped["unparsable"] += 1
        return ""


def _link_text(match: "re.Match[str]") -> str:
    return match.group(1).partition(" ")[2]


def _balanced(text: str) -> str:
    """``text`` without brackets that have no partner, or are nested more than ten deep."""
    found = list(_BRACKETS.finditer(text))
    stack: List[int] = []
    keep = [False] * len(found)
    for index, match in enumerate(found):
        partner = _CLOSES.get(match.group())
        if partner is None:
            stack.append(index)
            continue
        depth = len(stack)
        while depth and found[stack[depth - 1]].group() != partner and len(stack) - depth < _DEEPEST:
            depth -= 1
        if depth and found[stack[depth - 1]].group() == partner:
            if depth <= _DEEPEST:
                keep[stack[depth - 1]] = keep[index] = True
            del stack[depth - 1:]
    parts: List[str] = []
    begin = 0
    for index, match in enumerate(found):
        if not keep[index]:
            parts.append(text[begin:match.start()])
            begin = match.end()
    return "".join(parts) + text[begin:]


def _definitions(raw: str, dropped: Counter) -> List[str]:
    """Definitions of the English entries of a Wiktionary page."""
    found: List[str] = []
    english = False
    for line in raw.split("\n"):
        language = _LANGUAGE.fullmatch(line.strip())
        if language:
            english = language.group(1).lower() == "english"
            continue
        match = _DEFINITION.match(line) if english else None
        if not match:
            continue
        found.append(" ".join(_plain_lines(_without_wiki_markup(match.group(1), dropped), dropped)))
    return found
