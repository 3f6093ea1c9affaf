"""The embedded task, which needs no download: is a sentence as it was written, or were two of its words
swapped?

``bort.text.corpus.embedded`` makes the files; here they are read like any others. Labels: 1 as written, 0
swapped. The test file has no labels, as official ones; they are in ``test_labels.tsv`` beside it and are used
where that file is there.
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Tuple

from bort.tasks.base import Split, Task
from bort.tasks.glue import TsvTask
from bort.tasks.reading import BadRow, column_positions, read_rows

LABELS_FILE = "test_labels.tsv"


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
            if len(cells) != 2 or not cells[places[0]].isdigit() or len(cells[places[0]]) > 12:
                raise BadRow("expected an index and a label")
            return int(cells[places[0]]), int(self.class_of(cells[places[1]]) or 0)

        rows, _ = read_rows(path, parse, lambda line: places.extend(column_positions(
            path, line.split("\t"), ("index", "label"))))
        return dict(rows)


EMBEDDED = EmbeddedTask("Embedded", ["sentence"], metrics=("mcc", "accuracy"), suite="synthetic")

SYNTHETIC_TASKS: List[Task] = [EMBEDDED]
