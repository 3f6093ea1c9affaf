"""MediaWiki's XML dumps as a stream of pages, in bounded memory."""

from __future__ import annotations

from typing import IO, Any, Dict, Iterator, List, Optional
from xml.parsers import expat

MAX_TAG_BYTES = 1 << 20
"""A tag, comment or declaration of more bytes is refused: the parser would hold it all."""
MAX_DEPTH = 64
_BLOCK = 1 << 18


class Refused(expat.ExpatError):
    """Something that no MediaWiki dump has, and that can make a reader grow without bound."""


class _PageCollector:
    """Handlers for expat that gather the wikitext of article pages."""

    def __init__(self, max_characters: int) -> None:
        self.articles: List[str] = []
        self.others = 0
        self._max = max_characters
        self._element: Optional[str] = None
        self._page: Dict[str, List[str]] = {}
        self._size = self._depth = 0
        self._redirect = False

    def start(self, name: str, attributes: Any) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Refused(f"elements are nested more than {MAX_DEPTH} deep")
        if name == "page":
            self._page, self._redirect, self._size = {}, False, 0
        elif name == "redirect":
            self._redirect = True
        self._element = name if name in ("ns", "text") else None
        if name == "text":
            # Of a dump with all revisions, the last one counts.
            self._page["text"], self._size = [], 0

    def data(self, text: str) -> None:
        if self._element and self._size < self._max:
            self._page.setdefault(self._element, []).append(text)
            self._size += len(text)

    def end(self, name: str) -> None:
        self._depth -= 1
        self._element = None
        if name == "page":
            namespace, text = ("".join(self._page.get(key, [])) for key in ("ns", "text"))
            if namespace.strip() in ("", "0") and not self._redirect and text.strip():
                self.articles.append(text)
            else:
                self.others += 1
            self._page = {}

    @staticmethod
    def refuse_declaration(*_: Any) -> None:
        # It is where entities are declared, which can grow without bound.
        raise Refused("it has a document type declaration, which is not accepted")


def read_pages(stream: IO[bytes], counts: Any, max_characters: int) -> Iterator[str]:
    """The wikitext of every article of a dump; ``counts.pages`` counts the pages that are none.

    Raises:
        expat.ExpatError: it is not XML, or has what :class:`Refused` stands for.
    """
    collector = _PageCollector(max_characters)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = collector.start
    parser.EndElementHandler = collector.end
    parser.CharacterDataHandler = collector.data
    parser.StartDoctypeDeclHandler = collector.refuse_declaration
    given = 0
    while True:
        block = stream.read(_BLOCK)
        given += len(block)
        try:
            parser.Parse(block, not block)
        finally:
            finished, collector.articles = collector.articles, []
            counts.pages += collector.others
            collector.others = 0
            yield from finished
        if not block:
            return
        if given - parser.CurrentByteIndex > MAX_TAG_BYTES:
            raise Refused(f"a tag or comment in it is longer than {MAX_TAG_BYTES:,} bytes")
