"""English that every CPython carries, for the demo and the tests: no files and no network needed.

The corpus is the prose in ``pydoc_data.topics`` (the language reference) and in the docstrings and longer
comments of
the standard library, read from its source files without importing them, so that nothing runs: about 13,000
sentences, 1.1 MB, the same for every run of one Python version. On it stand two tasks that label themselves.
Is a sentence as it was written, or were two of its neighbouring words swapped ("order")? Is it about the
network or about something else ("topic")? The first takes a good language model; the second is within reach
of a demo's.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sysconfig
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from bort.errors import BortError
from bort.files import PathLike, atomic_write
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
NETWORK_MODULES = frozenset(
    """
    asyncio email ftplib html http imaplib ipaddress mailbox mimetypes poplib smtplib socket socketserver
    ssl urllib webbrowser wsgiref xml xmlrpc
""".split()
)
"""What the task "topic" labels 1: modules and packages that every Python from 3.9 to 3.12 has."""
KINDS = ("order", "topic")
_TYPOGRAPHY = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-"})
_LIST_MARK = re.compile(r"^\s*(?:[-*o+•]|\d+[.)]|\(\w\))\s+")
_SWAPPABLE = re.compile(r"[a-z]{2,}|a")
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
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(
            name for name in subfolders if name not in _LEFT_OUT and not name.startswith("config-")
        )
        found.extend(Path(folder) / name for name in sorted(names) if name.endswith(".py"))
    return found


def _raw_documents() -> Iterator[Tuple[str, str]]:
    """Name of the module or package ("" for the language reference) and text."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it apart
        topics = {}
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
def _documents() -> Tuple[Tuple[str, Tuple[str, ...]], ...]:
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
    """The corpus, one string of whole sentences per documentation text. No sentence occurs twice in the
    corpus."""
    return [" ".join(sentences) for _, sentences in _documents()]


def embedded_sentences() -> List[str]:
    """The sentences of the corpus, in its order, each once."""
    return [sentence for _, sentences in _documents() for sentence in sentences]


def swap_neighbours(sentence: str, rng: np.random.Generator) -> Optional[str]:
    """``sentence`` with two neighbouring words exchanged, or None when no two can be.

    Only words in lower case without punctuation take part, and only different ones, so that capitals and full
    stops stay where they belong and do not give the swap away.
    """
    words = sentence.split(" ")
    places = [
        index
        for index in range(1, len(words) - 1)
        if _SWAPPABLE.fullmatch(words[index])
        and _SWAPPABLE.fullmatch(words[index + 1])
        and words[index] != words[index + 1]
    ]
    if not places:
        return None
    place = places[int(rng.integers(len(places)))]
    words[place], words[place + 1] = words[place + 1], words[place]
    return " ".join(words)


def _pools(kind: str, rng: np.random.Generator) -> Tuple[List[str], List[str]]:
    """Sentences of label 0 and of label 1 in random order; none, and no form of one, is in both."""
    if kind == "topic":
        pools: Tuple[List[str], List[str]] = ([], [])
        for module, sentences in _documents():
            if module:
                pools[module in NETWORK_MODULES].extend(sentences)
        return tuple([pool[index] for index in rng.permutation(len(pool))] for pool in pools)  # type: ignore[return-value]
    pairs = [
        (swapped, sentence)
        for sentence in embedded_sentences()
        for swapped in [swap_neighbours(sentence, rng)]
        if swapped is not None
    ]
    order = rng.permutation(len(pairs))
    return [pairs[index][0] for index in order[1::2]], [pairs[index][1] for index in order[::2]]


def write_embedded_task(
    folder: PathLike, seed: int, sizes: Sequence[int] = (6000, 1000, 1000), kind: str = "order"
) -> Dict[str, Path]:
    """Write a task. "order": label 1 for a sentence as written, 0 for one with two neighbouring words
    swapped; "topic": label 1 for a sentence of :data:`NETWORK_MODULES`, 0 for one of another module.

    Every sentence of the corpus is used at most once, in one split, with one label; each split has as many of
    either label (one more of label 1 when its size is odd). The same seed and Python version give the same
    files.

    Args:
        folder: gets ``train.tsv`` and ``dev.tsv`` (``sentence``, ``label``), ``test.tsv`` (``index``,
            ``sentence``) and ``test_labels.tsv`` (``index``, ``label``); tab-separated with a header and
            without quoting.
        seed: draws the sentences, their order, labels and swaps.
        sizes: rows of train, dev and test.
        kind: one of :data:`KINDS`.

    Returns:
        The path of each file by name: train, dev, test, test_labels.

    Raises:
        BortError: the kind is unknown, the sizes are not three positive numbers, or more than there are
            sentences.
    """
    if kind not in KINDS:
        raise BortError(f"the embedded task {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if len(sizes) != 3 or any(int(size) != size or size < 1 for size in sizes):
        raise BortError(
            f"sizes are the rows of train, dev and test, three positive whole numbers, not {sizes!r}"
        )
    rng = np.random.default_rng(seed)
    pools = _pools(kind, rng)
    most = min(len(pools[0]), len(pools[1]))
    if sum((size + 1) // 2 for size in sizes) > most:
        raise BortError(
            f"the embedded corpus has {most} sentences for each label of this task, half of "
            f"{sum(sizes)} were asked for; make the splits smaller"
        )
    folder = Path(folder)
    paths = {name: folder / f"{name}.tsv" for name in ("train", "dev", "test", "test_labels")}
    begins = [0, 0]
    for name, size in zip(("train", "dev", "test"), sizes):
        rows = []
        for label in (0, 1):
            end = begins[label] + (size + label) // 2
            rows += [(sentence, label) for sentence in pools[label][begins[label] : end]]
            begins[label] = end
        rows = [rows[index] for index in rng.permutation(size)]
        if name == "test":
            _write_rows(
                paths[name], ("index", "sentence"), [(place, row[0]) for place, row in enumerate(rows)]
            )
            _write_rows(
                paths["test_labels"], ("index", "label"), [(place, row[1]) for place, row in enumerate(rows)]
            )
        else:
            _write_rows(paths[name], ("sentence", "label"), rows)
    return paths


def _write_rows(path: Path, header: Tuple[str, str], rows: Sequence[Tuple[object, object]]) -> None:
    with atomic_write(path) as stream:
        stream.write("\t".join(header) + "\n")
        stream.writelines(f"{first}\t{second}\n" for first, second in rows)
