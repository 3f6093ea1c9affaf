"""The inputs of the original release, task by task: ``--encoding released``.

Of every text the release kept the white space at its ends (SST-2's sentences end in a blank, which is a
token of its own), and it cut every pair evenly: see :func:`bort.tasks.encoding.kept_lengths`. What it fed
beside the paper's format:

================ ============================================== ============================================
task             paper (the default)                            released
================ ============================================== ============================================
GLUE's           ``A`` or ``A </s> B``                          the same, ends not stripped
BoolQ            ``passage </s> question``, passage cut alone   the same, cut evenly
CB               ``premise </s> hypothesis``                    of a text with three full stops or more, the
                                                                last four pieces between stops, joined by
                                                                blanks, without the first character
COPA             two inputs a record,                           one input, two classes: ``premise because|so
                 ``premise </s> because|so choice``             choice1 </s> premise because|so choice2``
MultiRC, ReCoRD  question-answer pairs                          as the paper: the release crashes on them
RTE, AX-b, AX-g  ``premise </s> hypothesis``                    the same, ends not stripped
WiC              both sentences, the word between markers       both sentences, nothing marked
WSC              the text, both spans between markers           ``text </s> span2 means span1``
RACE             four inputs a question,                        one input, four classes: ``article question
                 ``article </s> question option``,              </s> option1 </sep> ... option4``, cut evenly,
                 article cut alone                              line ends kept
================ ============================================== ============================================

Not taken over: it broke lines of GLUE's files at U+0085, U+2028 and form feeds, and skipped the pieces.

Classes are in the order of :mod:`bort.tasks` here as well. The release's classifiers have
``not_entailment, entailment`` and ``neutral, entailment, contradiction``, which their files do not say
(:attr:`Task.unnamed_order`, used by :mod:`bort.tasks.labels`).
"""
from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple, Type

import numpy as np

from bort.tasks.base import Example, Prediction, Split, Task
from bort.tasks.glue import GLUE_TASKS
from bort.tasks.jsonl import Record, take, take_text
from bort.tasks.race import LETTERS, LEVELS, RaceTask
from bort.tasks.superglue import (
    AXB,
    AXG,
    BOOLQ,
    CB,
    RTE,
    WIC,
    WSC,
    PairTask,
    copa_parts,
)
from bort.tasks.text import sanitize

ENTAILMENT_ORDER = ("not_entailment", "entailment")
MNLI_ORDER = ("neutral", "entailment", "contradiction")


class RecentSentences(PairTask):
    """CB: of a longer text only the last sentences, without their full stops."""

    def segment(self, text: str) -> str:
        pieces = sanitize(text).split(".")
        return " ".join(pieces[-4:])[1:] if len(pieces) > 3 else sanitize(text)


class NamedSpans(PairTask):
    """WSC: the text, and which noun phrase the pronoun would mean."""

    def examples(self, record: Record, idx: Any, split: str, result: Split) -> List[Example]:
        target = take(record, "target", dict, "an object")
        noun, pronoun = (take_text(target, f"span{number}_text", strip=False) for number in "12")
        segments = (take_text(record, "text", strip=False), f"{pronoun} means {noun}")
        return [Example(idx, segments, self.take_label(record, split))]


class BothChoices(PairTask):
    """COPA: both continuations in one input; the class is the right one."""

    def examples(self, record: Record, idx: Any, split: str, result: Split) -> List[Example]:
        premise, connective, choices = copa_parts(record, strip=False)
        segments = tuple(f"{premise} {connective} {choice}" for choice in choices)
        return [Example(idx, segments, self.take_label(record, split))]


class FourOptions(RaceTask):
    """RACE: four-way classification of whole questions."""

    labels, truncation, encoding = LETTERS, "even", "released"

    def segment(self, text: str) -> str:
        return sanitize(text)

    def question_examples(self, group: Tuple[str, int], article: str, question: str, choices: List[str],
                          right: Any) -> List[Example]:
        return [Example(group, (f"{article} {question}", " </sep> ".join(choices)), right, group)]

    def predict(self, split: Split, scores: np.ndarray) -> List[Prediction]:
        classes = self.outputs(split, scores).tolist()
        return self.by_passage({example.group: LETTERS[value]
                                for example, value in zip(split.examples, classes)})


def _released(task: Task, kind: Optional[Type[Task]] = None, **changes: Any) -> Task:
    """``task`` as the release fed it, its records taken apart by ``kind``."""
    kind = kind or type(task)
    result = kind.__new__(kind)
    vars(result).update({**vars(task), "encoding": "released", **changes})
    return result


_ORDERS = {**dict.fromkeys(("RTE", "QNLI"), ENTAILMENT_ORDER),
           **dict.fromkeys(("MNLI-m", "MNLI-mm", "AX"), MNLI_ORDER)}
_ALL: List[Task] = [
    *(_released(task, unnamed_order=_ORDERS.get(task.name)) for task in GLUE_TASKS),
    *(_released(task, unnamed_order=ENTAILMENT_ORDER) for task in (RTE, AXB, AXG)),
    _released(BOOLQ, truncation="even"), _released(CB, RecentSentences, unnamed_order=MNLI_ORDER),
    _released(WIC, PairTask, text_keys=("sentence1", "sentence2")), _released(WSC, NamedSpans),
    BothChoices("COPA", [], ("0", "1"), (0, 1), spelling=(0, 1), counts=(400, 100, 500), encoding="released",
                synonyms=(("choice1",), ("choice2",))),
    *(FourOptions(name) for name in LEVELS)]
RELEASED_TASKS: Dict[str, Task] = {task.name: task for task in _ALL}
