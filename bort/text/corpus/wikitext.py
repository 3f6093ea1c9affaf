"""Prose of Wikipedia articles and English definitions of Wiktionary pages, out of their wikitext."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Iterable, Iterator, List

from bort.errors import BortError
from bort.text.corpus.markup import HTML_NAMES, WIKI_NAMES, closed_names, without_stretches, without_tags

_HIDDEN = (
    ("<!--", "-->"),
    ("<math", "</math>"),
    ("<gallery", "</gallery>"),
    ("<pre", "</pre>"),
    ("<syntaxhighlight", "</syntaxhighlight>"),
    ("<timeline", "</timeline>"),
    ("<ref", "</ref>"),
)
_EMPTY_REF = re.compile(r"<ref[^<>]{0,2000}/>", re.IGNORECASE)
_QUOTES = re.compile(r"'{2,}")
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:)?//([^\[\]\n]*)\]")
_EXTERNAL_OPEN = re.compile(r"\[(?=(?:https?:|ftp:)?//)")
_BRACKETS = re.compile(r"\{\{|\}\}|\{\||\|\}|\[\[|\]\]")
_CLOSES = {"}}": "{{", "|}": "{|", "]]": "[["}
_DEEPEST = 10
_HIDDEN_LINKS = re.compile(r"\s*:?(?:file|image|media|category)\s*:", re.IGNORECASE)
_LONG_REFERENCE = re.compile(r"&#[xX]?[0-9a-fA-F]{9,}")
_LESS_THAN = "\ufdd0"
"""A noncharacter in place of ``<`` while the parser, for which every ``<`` may open a tag, is at work."""


def parser_for_wikitext() -> Any:
    """The module mwparserfromhell. Raises BortError saying how to get it when it is not installed."""
    try:
        import mwparserfromhell
    except ImportError as error:
        raise BortError(
            "reading Wikipedia or Wiktionary dumps needs mwparserfromhell: pip install 'bort[corpora]'"
        ) from error
    return mwparserfromhell


def prose_lines(lines: Iterable[str], dropped: Counter) -> Iterator[str]:
    """Of an article's plain lines those that are prose: no list entries that are not sentences."""
    for line in lines:
        bare = line.lstrip("*#:; \t")
        # List entries that are whole sentences are prose; the others are columns of names.
        if line[:1] in ("*", "#", ":", ";") and not bare.rstrip().endswith((".", "!", "?", "\u3002")):
            dropped["structured"] += 1
        elif bare:
            yield bare


def definitions(raw: str, dropped: Counter) -> Iterator[str]:
    """Definitions of the English entries of a Wiktionary page."""
    english = False
    for line in raw.split("\n"):
        line = line.strip()
        if line.startswith("==") and line.endswith("=="):
            language = line[2:-2].strip()
            if language and not language.startswith("="):
                english = language.lower() == "english"
                continue
        definition = line.lstrip("#")
        if english and len(definition) < len(line) and definition[:1] not in ("", ":", "*", ";"):
            yield plain_wikitext(definition.lstrip(), dropped)


def plain_wikitext(raw: str, dropped: Counter) -> str:
    """Wikitext as plain lines (entries of lists keep their mark);
    nothing, and one "unparsable", when that fails."""
    raw = _EMPTY_REF.sub("", raw.replace(_LESS_THAN, ""))
    for opening, closing in _HIDDEN:
        raw = without_stretches(raw, opening, closing)
    # What can be removed by itself is, and what is left balanced: the parser looks for the partner of every
    # mark that opens, again for every mark inside, which takes exponential time on text made for it.
    raw = _QUOTES.sub("", without_tags(raw, HTML_NAMES | WIKI_NAMES | closed_names(raw)))
    raw = _LONG_REFERENCE.sub("", raw.replace("<", _LESS_THAN))
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
                isinstance(node, nodes.Wikilink) and _HIDDEN_LINKS.match(str(node.title))
            ):
                kept.append(node)
        code.nodes = kept
        return str(code.strip_code(normalize=True, collapse=True)).replace(_LESS_THAN, "<")
    except (parser.parser.ParserError, RecursionError, ValueError, AttributeError, OverflowError):
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
            del stack[depth - 1 :]
    parts: List[str] = []
    begin = 0
    for index, match in enumerate(found):
        if not keep[index]:
            parts.append(text[begin : match.start()])
            begin = match.end()
    return "".join(parts) + text[begin:]
