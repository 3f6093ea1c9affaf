"""HTML, XML and entities out of text: only what is markup for certain, and only in a text that has some.

``Let a<b and c>d be``, ``<unk>``, ``<mask>`` and ``<http://a.b/c>`` are text. A text has markup when it has
a comment, a document type, a closing tag, a line break or paragraph, or a tag with an attribute's value.
Its tags are then those of HTML and of the names that it closes, without attributes or with values; words
between angle brackets stay. Entities need their semicolon. Every pattern is bounded, so that time grows
with the text only.
"""

from __future__ import annotations

import html
import re
from typing import FrozenSet, Iterable, List

HTML_NAMES = frozenset(
    """
    a abbr acronym address applet area article aside audio b base basefont bdi bdo big blockquote body br
    button canvas caption center cite code col colgroup data datalist dd del details dfn dialog dir div dl
    dt em embed fieldset figcaption figure font footer form frame frameset h1 h2 h3 h4 h5 h6 head header
    hgroup hr html i iframe img input ins kbd label legend li link main map mark menu meta meter nav
    noframes noscript object ol optgroup option output p param picture pre progress q rp rt ruby s samp
    script search section select slot small source span strike strong style sub summary sup svg table
    tbody td template textarea tfoot th thead time title tr track tt u ul var video wbr
""".split()
)
WIKI_NAMES = frozenset(
    """
    ce chem gallery hiero imagemap includeonly indicator inputbox math mapframe maplink noinclude nowiki
    onlyinclude poem ref references score section syntaxhighlight templatedata templatestyles timeline
    categorytree choose langconvert phonos charinsert graph
""".split()
)
# Tokens of language models, which tokenized corpora contain. (<s> is struck-out text too.)
_MODEL_TOKENS = frozenset("s unk mask pad bos eos cls sep".split())

_NAME = r"[A-Za-z][A-Za-z0-9:._-]{0,40}"
_VALUES = r"\s{1,20}[A-Za-z_:][\w:.-]{0,40}\s{0,20}=[^<>]{0,2000}"
_TAG = re.compile(rf"<(/?)({_NAME})(?:{_VALUES}|\s{{0,20}})/?>")
_DECLARATION = re.compile(r"<![A-Za-z\[][^<>]{0,2000}>|<\?[A-Za-z][^<>]{0,2000}>")
_CERTAIN = re.compile(
    rf"<!--|<!doctype\b|<\?xml\b|<(?:p|br|hr|li|td|tr|th)\s{{0,20}}/?>|<{_NAME}{_VALUES}>", re.IGNORECASE
)
_CLOSING = re.compile(rf"</({_NAME})\s{{0,20}}>")
_BLOCK_NAMES = frozenset("p div br li ul ol tr table h1 h2 h3 h4 h5 h6 blockquote section article".split())
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_HIDDEN = (("<!--", "-->"), ("<script", "</script>"), ("<style", "</style>"))
_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def without_markup(text: str) -> str:
    """``text`` without tags, comments, scripts and styles if it is markup; its entities as characters."""
    if "<" in text:
        closed = closed_names(text)
        if closed - _MODEL_TOKENS or _CERTAIN.search(text):
            for opening, closing in _HIDDEN:
                text = without_stretches(text, opening, closing)
            text = without_tags(text, HTML_NAMES | closed)
    return decoded_entities(text) if "&" in text else text


def closed_names(text: str) -> FrozenSet[str]:
    """Names of the closing tags in a text, in lower case."""
    return frozenset(name.lower() for name in _CLOSING.findall(text))


def without_tags(text: str, names: Iterable[str]) -> str:
    """``text`` without the tags of the (lower-case) names; a tag between blocks becomes a line end."""
    known = frozenset(names)

    def replacement(match: "re.Match[str]") -> str:
        name = match.group(2).lower()
        if name not in known and "=" not in match.group():
            return match.group()
        return "\n" if name in _BLOCK_NAMES else ""

    return _TAG.sub(replacement, _DECLARATION.sub("", text))


def without_stretches(text: str, opening: str, closing: str) -> str:
    """``text`` without what stands between the marks (in lower case; the text's case does not matter).

    A mark that nothing closes is left alone.
    """
    lower = text.translate(_LOWER)  # str.lower() can change a text's length
    if opening not in lower:
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


def decoded_entities(text: str) -> str:
    """``text`` with its entities as the characters they stand for; those without semicolon are text (R&D)."""
    return _ENTITY.sub(lambda match: html.unescape(match.group()), text)
