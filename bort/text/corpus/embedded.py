"""English that every CPython carries, for the demo and the tests: no files and no network needed.

The corpus is the prose in ``pydoc_data.topics`` (the language reference) and in the docstrings and longer
comments of the standard library, read from its source files without importing them, so that nothing runs:
about 13,000 sentences, 1.1 MB, the same for every run of one Python version. ``bort.tasks.synthetic`` makes
tasks of it.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sysconfig
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

from bort.text.corpus.sentences import split_sentences

_LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "pydoc_data",
    "ensurepip",
    "encodings",
    "tkinter",
    "config",
    "__phello__",
}
_ROLE = re.compile(r":[a-z:+-]+:`~?([^`<]*?)(?: ?<[^`]*>)?`")
_QUOTED = re.compile(r"(``|`|\*\*|\*)(?=\S)([^`*\n]{1,60}?)(?<=\S)\1")
_NOT_PROSE = re.compile(r"[{}\[\]<>=\\|@#$%^~`*+]|\.\.|::|--|[\"'(,]\)|\w\(\w|\d{5,}|https?:")
_TRIPLE_QUOTED = re.compile(r"(\"{3}|'{3})(.*?)\1", re.DOTALL)
_BEFORE_DOCSTRING = re.compile(r"[ \t]*[rRuU]?")
_COMMENTS = re.compile(r"(?:^[ \t]*#+ .*\n|^[ \t]*#[ \t]*\n){2,}", re.MULTILINE)
_HASHES = re.compile(r"^[ \t]*#+ ?", re.MULTILINE)
_TYPOGRAPHY = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-"})
_LIST_MARK = re.compile(r"^\s*(?:[-*o+•]|\d+[.)]|\(\w\))\s+")
_WORD = re.compile(r"[A-Za-z][a-z]*(?:['-][A-Za-z]+)*")


def _written_text(source: str) -> Iterator[str]:
    """Docstrings and comments of several lines, each kind in the order of the source."""
    for match in _TRIPLE_QUOTED.finditer(source):
        if _BEFORE_DOCSTRING.fullmatch(source, source.rfind("\n", 0, match.start()) + 1, match.start()):
            yield inspect.cleandoc(match.group(2))
    for match in _COMMENTS.finditer(source):
        yield _HASHES.sub("", match.group(0))


def _source_files() -> List[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    found: List[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(
            name for name in subfolders if name not in _LEFT_OUT and not name.startswith("config-")
        )
        found.extend(Path(folder) / name for name in sorted(names) if name.endswith(".py"))
    return found


def _raw_documents() -> Iterator[Tuple[str, str]]:
    """Name of the module or package ("" for the language reference) and text."""
    try:
        from pydoc_data.topics import topics as found
    except ImportError:  # some distributions package it apart
        topics: Dict[str, str] = {}
    else:
        topics = dict(found)
    for name in sorted(topics):
        yield "", topics[name]
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in _source_files():
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        module = path.relative_to(root).parts[0].split(".")[0]
        for text in _written_text(source):
            yield module, text


def _prose(text: str) -> List[str]:
    """Sentences of a documentation text: no code, no signatures, no tables, no markup."""
    kept: List[str] = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        lines = paragraph.split("\n")
        if any(">>>" in line for line in lines):
            continue
        # A deeper indentation than the first line's, or another list item, begins a paragraph of its own.
        groups: List[List[str]] = [[]]
        for line in lines:
            if _LIST_MARK.match(line):
                groups.append([])
            groups[-1].append(_LIST_MARK.sub("", line))
        for group in groups:
            joined = " ".join(" ".join(group).split()).translate(_TYPOGRAPHY)
            joined = _QUOTED.sub(r"\2", _ROLE.sub(r"\1", joined))
            kept.extend(sentence for sentence in split_sentences(joined) if _is_prose(sentence))
    return kept


def _is_prose(sentence: str) -> bool:
    if (
        not sentence[0].isupper()
        or sentence[-1] not in ".!?"
        or not sentence.isascii()
        or _NOT_PROSE.search(sentence)
    ):
        return False
    words = sentence.split()
    if not 5 <= len(words) <= 60 or sentence.count("(") != sentence.count(")") or sentence.count('"') % 2:
        return False
    plain = sum(1 for word in words if _WORD.fullmatch(word.strip("(),.;:!?'\"")))
    return plain >= 0.8 * len(words) and sum(word.isupper() and len(word) > 1 for word in words) <= 0.3 * len(
        words
    )


@functools.lru_cache(maxsize=None)
def embedded_sections() -> Tuple[Tuple[str, Tuple[str, ...]], ...]:
    """Module or package ("" for the language reference) and sentences of each documentation text."""
    seen = set()
    documents = []
    for module, raw in _raw_documents():
        fresh = []
        for sentence in _prose(raw):
            if sentence not in seen:
                seen.add(sentence)
                fresh.append(sentence)
        if fresh:
            documents.append((module, tuple(fresh)))
    return tuple(documents)


def embedded_documents() -> List[str]:
    """The corpus, one string of whole sentences per documentation text.
    No sentence occurs twice in the corpus."""
    return [" ".join(sentences) for _, sentences in embedded_sections()]


def embedded_sentences() -> List[str]:
    """The sentences of the corpus, in its order, each once."""
    return [sentence for _, sentences in embedded_sections() for sentence in sentences]
