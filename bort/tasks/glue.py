"""GLUE: tab-separated files without quoting, each task one row of a table (paper, section 5.1 and Table 4).

Every file but CoLA's starts with a header, by whose names columns are found; CoLA's train and dev have none.
Fields may hold quotation marks, which mean nothing. A row whose number of fields differs from the header's is
a bad row.
"""
from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

from bort.json_files import shown
from bort.tasks.base import Example, Label, Split, Task
from bort.tasks.reading import BadRow, column_positions, numbered_lines, read_rows, whole_number
from bort.tasks.submission import Tsv

ENTAILMENT = ("entailment", "not_entailment")
MNLI_LABELS = ("entailment", "neutral", "contradiction")
BINARY = ("0", "1")
ENTAILMENT_SYNONYMS = (("entail", "entailed", "entails"), ("non_entailment", "no_entailment"))
MNLI_SYNONYMS = (("entail", "entailed", "entails"), (), ("contradict", "contradicts", "contradictory"))
FALSE_TRUE_SYNONYMS = (("false", "no"), ("true", "yes"))
_SENTENCES = ("sentence1", "sentence2")

logger = logging.getLogger("bort.tasks")


class TsvTask(Task):
    """A GLUE task whose splits are one TSV file each. ``headerless`` names the columns of train and dev files
    without a header."""

    suite = "glue"

    headerless: Tuple[str, ...] = ()
    names: Dict[str, Tuple[str, ...]] = {}
    """File names of splits that are not called ``SPLIT.tsv``."""

    def __init__(self, name: str, text: Sequence[str], labels: Optional[Tuple[str, ...]] = BINARY, *,
                 label: str = "label", counts: Sequence[int] = (), **attributes: Any) -> None:
        """A task by its attributes.

        Args:
            text: the columns of its one or two texts.
            label: the column of its label.
            counts: the published rows of each split.
            attributes: others of :class:`Task` and of this class.
        """
        self.name, self.labels = name, labels
        self.text_columns, self.label_column = tuple(text), label
        self.submission, self.submission_kind = f"{name}.tsv", Tsv(labels)
        self.set_attributes(attributes, counts)

    def file_names(self, split: str) -> List[Tuple[str, ...]]:
        return [tuple(self.names.get(split, (f"{split}.tsv",)))]

    def _read(self, files: List[Path], split: str) -> Split:
        result = Split(split, [], files=tuple(files))
        reader = _RowReader(self, files[0], result)
        result.examples, result.bad_rows = read_rows(files[0], reader.parse, reader.header)
        result.rows = len(result)
        return result

    def take_row(self, cells: List[str], header: List[str], result: Split) -> None:
        """Called with every good row, for tasks that need more of it than the texts and the label."""

    def class_of(self, text: str) -> Label:
        """The label a field spells. Raises BadRow when it spells none."""
        if self.labels is None:
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not 0.0 <= value <= 5.0:
                raise BadRow(f"expected a score from 0 to 5 in {self.label_column}, found {shown(text)}")
            return value
        if text not in self.labels:
            raise BadRow(f"expected {' or '.join(self.labels)} in {self.label_column}, found "
                         f"{shown(text)}")
        return self.labels.index(text)


class _RowReader:
    """Parses the rows of one file of a :class:`TsvTask`; knows where its columns are."""

    def __init__(self, task: TsvTask, path: Path, result: Split) -> None:
        self.task, self.path, self.result = task, path, result
        self.is_test = result.name == "test"
        self.header: Optional[Callable[[str], None]] = self.take_header
        self.seen: Set[int] = set()
        if task.headerless and not self.is_test:
            self.header = None
            self._place(list(task.headerless))

    def take_header(self, line: str) -> None:
        self._place(line.split("\t"))

    def _place(self, header: List[str]) -> None:
        task = self.task
        labelled = task.label_column in header
        needed = [*task.text_columns] if labelled or self.is_test else [*task.text_columns, task.label_column]
        self.columns = header
        self.texts = column_positions(self.path, header, needed)[: len(task.text_columns)]
        self.label = header.index(task.label_column) if labelled else None
        self.index = next((header.index(name) for name in ("index", "id") if name in header), None)

    def parse(self, line: str, position: int) -> Example:
        cells = line.split("\t")
        if len(cells) != len(self.columns):
            raise BadRow(f"expected {len(self.columns)} tab-separated fields, found {len(cells)}")
        segments = tuple(self.task.segment(cells[column]) for column in self.texts)
        if not any(map(str.strip, segments)):
            raise BadRow("expected some text, found none")
        label = None if self.label is None else self.task.class_of(cells[self.label].strip())
        idx = position
        if self.index is not None and self.is_test:
            idx = whole_number(cells[self.index])
            if idx in self.seen:
                raise BadRow(f"expected every index once, found {idx} again")
            self.seen.add(idx)
        self.task.take_row(cells, self.columns, self.result)
        return Example(idx, segments, label)


class ParaphraseTask(TsvTask):
    """MRPC in GLUE's layout, or as ``msr_paraphrase_train.txt`` and ``msr_paraphrase_test.txt``.

    The latter has no development set. GLUE's is the rows whose two ids are in ``dev_ids.tsv`` (also
    named ``mrpc_dev_ids.tsv``); without that file every tenth row is taken, which gives as many (408 of
    4,076) but others.
    """

    def file_names(self, split: str) -> List[Tuple[str, ...]]:
        return [(f"{split}.tsv", f"msr_paraphrase_{'test' if split == 'test' else 'train'}.txt")]

    def _read(self, files: List[Path], split: str) -> Split:
        path = files[0]
        result = super()._read(files, split)
        if split == "test" or path.suffix == ".tsv":
            return result
        ids = next((file for file in (path.with_name("dev_ids.tsv"), path.with_name("mrpc_dev_ids.tsv"))
                    if file.is_file()), None)
        if ids is None:
            logger.warning("%s: there is no mrpc_dev_ids.tsv beside it, so every tenth row is taken as "
                           "development set instead of GLUE's", path)
            held_out = [example.idx % 10 == 0 for example in result.examples]
        else:
            wanted = {tuple(line.split("\t")) for _, line in numbered_lines(ids)}
            held_out = [pair in wanted for pair in result.meta["ids"]]
        result = result.subset([index for index, held in enumerate(held_out) if held == (split == "dev")])
        return replace(result, rows=len(result), meta={})

    def take_row(self, cells: List[str], header: List[str], result: Split) -> None:
        if "#1 ID" in header and "#2 ID" in header:
            pair = (cells[header.index("#1 ID")].strip(), cells[header.index("#2 ID")].strip())
            result.meta.setdefault("ids", []).append(pair)


COLA = TsvTask("CoLA", ["sentence"], metrics=("mcc", "accuracy"), headerless=("source", "label", "mark",
                                                                              "sentence"),
               head="linear_extra", counts=(8551, 1043, 1063), synonyms=(("unacceptable",), ("acceptable",)))
SST2 = TsvTask("SST-2", ["sentence"], counts=(67349, 872, 1821),
               synonyms=(("negative", "neg"), ("positive", "pos")))
MRPC = ParaphraseTask("MRPC", ["#1 String", "#2 String"], label="Quality", metrics=("f1", "accuracy"),
                      counts=(3668, 408, 1725), synonyms=(("not_equivalent",), ("equivalent",)))
STSB = TsvTask("STS-B", _SENTENCES, None, label="score", metrics=("pearson", "spearman", "rounded_accuracy"),
               counts=(5749, 1500, 1379))
QQP = TsvTask("QQP", ["question1", "question2"], label="is_duplicate", metrics=("f1", "accuracy"),
              folders=("QQP-clean",), counts=(363846, 40430, 390965),
              synonyms=(("not_duplicate",), ("duplicate",)))
MNLI_M = TsvTask("MNLI-m", _SENTENCES, MNLI_LABELS, label="gold_label", folders=("MNLI",),
                 companions=("MNLI-mm", "AX"), names={"dev": ("dev_matched.tsv",),
                                                      "test": ("test_matched.tsv",)},
                 counts=(392702, 9815, 9796), synonyms=MNLI_SYNONYMS)
MNLI_MM = TsvTask("MNLI-mm", _SENTENCES, MNLI_LABELS, label="gold_label", folders=("MNLI",),
                  names={"dev": ("dev_mismatched.tsv",), "test": ("test_mismatched.tsv",)},
                  companions=("MNLI-m", "AX"), counts=(392702, 9832, 9847),
                  synonyms=MNLI_SYNONYMS)
QNLI = TsvTask("QNLI", ["question", "sentence"], ENTAILMENT, folders=("QNLIv2",), counts=(104743, 5463, 5463),
               synonyms=ENTAILMENT_SYNONYMS)
RTE = TsvTask("RTE", _SENTENCES, ENTAILMENT, counts=(2490, 277, 3000), synonyms=ENTAILMENT_SYNONYMS)
WNLI = TsvTask("WNLI", _SENTENCES, counts=(635, 71, 146), synonyms=(("not_entailment",), ("entailment",)))
AX = TsvTask("AX", _SENTENCES, MNLI_LABELS, metrics=("mcc", "accuracy"), splits=("test",),
             model_task="MNLI-m", names={"test": ("diagnostic.tsv", "AX.tsv", "ax.tsv")},
             folders=("diagnostic", "MNLI"), counts=(1104,), synonyms=MNLI_SYNONYMS)

GLUE_TASKS: List[Task] = [COLA, SST2, MRPC, STSB, QQP, MNLI_M, MNLI_MM, QNLI, RTE, WNLI, AX]
