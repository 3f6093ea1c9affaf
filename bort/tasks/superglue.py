"""SuperGLUE's classification tasks (paper, section 5.2 and Table 5); ``superglue_qa`` has the
question-answering ones.

Inputs (those of the original release are in ``released``):

* BoolQ: ``passage </s> question``; only the passage is cut when both are too long.
* CB, RTE, AX-b, AX-g: ``premise </s> hypothesis``.
* COPA: two examples per record, ``premise </s> because|so choice``; the choice with the higher positive
  probability wins.
* WiC: both sentences, the target word between two markers in each.
* WSC: the text, both spans between markers (the paper's "specialized token").
* AX-b and AX-g have no training set: an RTE model scores them (an MNLI model may, its classes folded into
  two).
"""
from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from bort.json_files import shown
from bort.tasks import metrics as metric_functions
from bort.tasks.base import Example, Split
from bort.tasks.glue import ENTAILMENT, ENTAILMENT_SYNONYMS, FALSE_TRUE_SYNONYMS, MNLI_SYNONYMS
from bort.tasks.grouped import GroupedTask
from bort.tasks.jsonl import JsonlTask, Record, take, take_int, take_text
from bort.tasks.reading import BadRow
from bort.tasks.submission import JsonLines
from bort.tasks.text import locate_span, mark

CB_LABELS = ("entailment", "contradiction", "neutral")
CB_SYNONYMS = (MNLI_SYNONYMS[0], MNLI_SYNONYMS[2], MNLI_SYNONYMS[1])
BOOLEAN = ("false", "true")
BOOLEAN_SYNONYMS = (("0", "no"), ("1", "yes"))
CONNECTIVES = {"cause": "because", "effect": "so"}
_LOWERED = frozenset("A An The He She It They We You His Her Its Their Our My Your This That These Those "
                     "There".split())


class PairTask(JsonlTask):
    """Records with two texts and a label."""

    def __init__(self, name: str, text: Sequence[str], labels: Tuple[str, ...], label_values: Sequence[Any],
                 *, spelling: Optional[Sequence[Any]] = None, counts: Sequence[int] = (),
                 **attributes: Any) -> None:
        """A task by its attributes.

        Args:
            text: the members of its texts.
            label_values: the labels as the files have them.
            spelling: the labels as the submission has them, where that differs from ``labels``.
            counts: the published rows of each split.
            attributes: others of :class:`Task`.
        """
        self.name, self.labels = name, labels
        self.text_keys, self.label_values = tuple(text), tuple(label_values)
        self.spelling = tuple(spelling or labels)
        self.submission, self.submission_kind = f"{name}.jsonl", JsonLines(self.spelling)
        self.set_attributes(attributes, counts)

    def examples(self, record: Record, idx: Any, split: str, result: Split) -> List[Example]:
        segments = tuple(self.segment(take_text(record, key, strip=False)) for key in self.text_keys)
        return [Example(idx, segments, self.take_label(record, split))]

    def spell(self, value: Any) -> Any:
        return self.spelling[value]


class DiagnosticTask(PairTask):
    """AX-b and AX-g: one labelled file, whose letter is not capitalised the same everywhere.

    Names like ``test.jsonl`` are not accepted: the set is looked for in RTE's folder as well, which has such
    a file.
    """

    splits = ("test",)
    model_task = "SuperGLUE-RTE"

    def file_names(self, split: str) -> List[Tuple[str, ...]]:
        return [(f"{self.name}.jsonl", f"{self.name.upper()}.jsonl")]

    def evaluate(self, split: Split, scores: np.ndarray) -> Dict[str, float]:
        predicted, gold = self.outputs(split, scores), split.gold()
        return {name: metric_functions.gender_parity(predicted) if name == "gender_parity"
                else metric_functions.METRICS[name](predicted, gold) for name in self.metrics}


class WordInContextTask(PairTask):
    """WiC: where the target word stands is given in characters, the end exclusive."""

    def examples(self, record: Record, idx: Any, split: str, result: Split) -> List[Example]:
        segments = tuple(self._marked(record, number) for number in ("1", "2"))
        return [Example(idx, segments, self.take_label(record, split))]

    @staticmethod
    def _marked(record: Record, number: str) -> str:
        text = take_text(record, f"sentence{number}", strip=False)
        start, end = take_int(record, f"start{number}"), take_int(record, f"end{number}")
        if not 0 <= start < end <= len(text):
            raise BadRow(f"expected 0 <= start{number} < end{number} <= {len(text)} (the length of the "
                         f"sentence), found {start} and {end}")
        return mark(text, [(start, end)]).strip()


class WinogradTask(PairTask):
    """WSC: does the pronoun (span 2) refer to the noun phrase (span 1)?"""

    def examples(self, record: Record, idx: Any, split: str, result: Split) -> List[Example]:
        text = take_text(record, "text", strip=False)
        target = take(record, "target", dict, "an object")
        spans = []
        for number in ("1", "2"):
            span, index = take_text(target, f"span{number}_text"), take_int(target, f"span{number}_index")
            try:
                spans.append(locate_span(text, span, index))
            except ValueError as error:
                raise BadRow(f"expected span{number} {shown(span)} in the text, found {error}") from error
        segments = (mark(text, spans).strip(),)
        return [Example(idx, segments, self.take_label(record, split))]


def copa_parts(record: Record, strip: bool = True) -> Tuple[str, str, List[str]]:
    """Premise, connective and both choices of a record."""
    question = record.get("question")
    if not isinstance(question, str) or question not in CONNECTIVES:
        raise BadRow(f"expected 'cause' or 'effect' in 'question', found {shown(question)}")
    return (take_text(record, "premise", strip), CONNECTIVES[question],
            [take_text(record, f"choice{number}", strip) for number in "12"])


class CopaTask(GroupedTask, JsonlTask):
    """COPA as two question-answer pairs per record."""

    name, labels, metrics = "COPA", ("0", "1"), ("accuracy",)
    synonyms, label_values = FALSE_TRUE_SYNONYMS, (0, 1)
    submission, submission_kind = "COPA.jsonl", JsonLines((0, 1))
    official_counts = {split: {"rows": rows} for split, rows in (("train", 400), ("dev", 100), ("test", 500))}

    def examples(self, record: Record, idx: Any, split: str, result: Split) -> List[Example]:
        premise, connective, choices = copa_parts(record)
        right = self.take_label(record, split)
        return [Example(idx, (premise, f"{connective} {_lowered(choice)}"),
                        None if right is None else int(right == option), group=idx, option=option)
                for option, choice in enumerate(choices)]


def _lowered(choice: str) -> str:
    """A sentence to go on with after "because":
    its capital goes if only its place at the beginning explains it."""
    return choice[0].lower() + choice[1:] if choice.split(None, 1)[0] in _LOWERED else choice


BOOLQ = PairTask("BoolQ", ["passage", "question"], BOOLEAN, (False, True), truncation="first",
                 counts=(9427, 3270, 3245), synonyms=BOOLEAN_SYNONYMS)
CB = PairTask("CB", ["premise", "hypothesis"], CB_LABELS, CB_LABELS, metrics=("macro_f1", "accuracy"),
              counts=(250, 56, 250), synonyms=CB_SYNONYMS)
COPA = CopaTask()
RTE = PairTask("SuperGLUE-RTE", ["premise", "hypothesis"], ENTAILMENT, ENTAILMENT, submission="RTE.jsonl",
               folders=("RTE",), companions=("AX-b", "AX-g"), counts=(2490, 277, 3000),
               synonyms=ENTAILMENT_SYNONYMS)
WIC = WordInContextTask("WiC", [], BOOLEAN, (False, True), counts=(5428, 638, 1400),
                        synonyms=BOOLEAN_SYNONYMS)
WSC = WinogradTask("WSC", [], BOOLEAN, (False, True), spelling=("False", "True"), counts=(554, 104, 146),
                   synonyms=BOOLEAN_SYNONYMS)
AXB = DiagnosticTask("AX-b", ["sentence1", "sentence2"], ENTAILMENT, ENTAILMENT, metrics=("mcc", "accuracy"),
                     counts=(1104,), synonyms=ENTAILMENT_SYNONYMS)
AXG = DiagnosticTask("AX-g", ["premise", "hypothesis"], ENTAILMENT, ENTAILMENT,
                     metrics=("gender_parity", "accuracy"), counts=(356,), synonyms=ENTAILMENT_SYNONYMS)
