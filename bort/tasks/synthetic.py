"""The embedded task, which needs no download: sentences of ``bort.text.corpus.embedded``.

"order": is a sentence as it was written (1), or were two of its neighbouring words swapped (0)? "topic": is
it about the network (1) or about something else (0)? The first takes a good language model; the second is
within reach of a demo's. :func:`write_embedded_task` makes the files, :data:`EMBEDDED` reads them like any
others. The test file has no labels, as official ones; they are in ``test_labels.tsv`` beside it and are used
where that file is there.
"""
from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from bort.errors import BortError
from bort.files import PathLike, atomic_write
from bort.tasks.base import Split, Task
from bort.tasks.glue import TsvTask
from bort.tasks.reading import BadRow, column_positions, read_rows, whole_number
from bort.text.corpus.embedded import embedded_sections, embedded_sentences

LABELS_FILE = "test_labels.tsv"
NETWORK_MODULES = frozenset(
    """
    asyncio email ftplib html http imaplib ipaddress mailbox mimetypes poplib smtplib socket socketserver
    ssl urllib webbrowser wsgiref xml xmlrpc
""".split()
)
"""What the task "topic" labels 1: modules and packages that every Python from 3.9 to 3.12 has."""
KINDS = ("order", "topic")
_SWAPPABLE = re.compile(r"[a-z]{2,}|a")


class EmbeddedTask(TsvTask):
    """``train.tsv``, ``dev.tsv`` (``sentence``, ``label``) and ``test.tsv`` (``index``, ``sentence``)."""

    def _read(self, files: List[Path], split: str) -> Split:
        result = super()._read(files, split)
        path = files[0].with_name(LABELS_FILE)
        if split != "test" or result.labelled or not path.is_file():
            return result
        labels = self._labels(path)
        examples = [replace(example, label=labels.get(example.idx)) for example in result.examples]
        return replace(result, examples=examples, files=(*result.files, path))

    def _labels(self, path: Path) -> Dict[int, int]:
        places: List[int] = []

        def parse(line: str, position: int) -> Tuple[int, int]:
            cells = line.split("\t")
            if len(cells) != 2:
                raise BadRow("expected an index and a label")
            return whole_number(cells[places[0]]), int(self.class_of(cells[places[1]]) or 0)

        rows, _ = read_rows(path, parse, lambda line: places.extend(column_positions(
            path, line.split("\t"), ("index", "label"))))
        return dict(rows)


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
        for module, sentences in embedded_sections():
            if module:
                pools[module in NETWORK_MODULES].extend(sentences)
        first, second = ([pool[index] for index in rng.permutation(len(pool))] for pool in pools)
        return first, second
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

    Every sentence of the corpus is used at most once, in one split, with one label; each split has as
    many of either label (one more of label 1 when its size is odd). The same seed and Python version give
    the same files.

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
        BortError: the kind is unknown, the sizes are not three positive numbers, or more than
            there are sentences.
    """
    if kind not in KINDS:
        raise BortError(f"the embedded task {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if len(sizes) != 3 or any(int(size) != size or size < 1 for size in sizes):
        raise BortError("sizes are the rows of train, dev and test, three positive whole numbers, not "
                        f"{sizes!r}")
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
            _write_rows(paths[name], ("index", "sentence"),
                        [(place, row[0]) for place, row in enumerate(rows)])
            _write_rows(paths["test_labels"], ("index", "label"),
                        [(place, row[1]) for place, row in enumerate(rows)])
        else:
            _write_rows(paths[name], ("sentence", "label"), rows)
    return paths


def _write_rows(path: Path, header: Tuple[str, str], rows: Sequence[Tuple[object, object]]) -> None:
    with atomic_write(path) as stream:
        stream.write("\t".join(header) + "\n")
        stream.writelines(f"{first}\t{second}\n" for first, second in rows)


EMBEDDED = EmbeddedTask("Embedded", ["sentence"], metrics=("mcc", "accuracy"), suite="synthetic")

SYNTHETIC_TASKS: List[Task] = [EMBEDDED]
