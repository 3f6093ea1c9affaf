"""RACE: one JSON file per passage in ``{train,dev,test}/{high,middle}`` (paper, section 5.3 and Table 6).

Four examples per question, ``article </s> question option`` (the option in place of the blank where the
question has one); the option with the highest positive probability is the answer. For training, half of the
passages of RACE-H are discarded, then negatives at random until the labels are balanced (about two thirds of
them). White space of any kind becomes single blanks, and only the article is cut when an example is too long.
The input of the original release is in ``released``.
"""
from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from bort.errors import BortError
from bort.files import PathLike, read_bytes
from bort.json_files import shown
from bort.tasks.base import Example, Prediction, Split, Task, balanced_indices
from bort.tasks.glue import FALSE_TRUE_SYNONYMS
from bort.tasks.grouped import GroupedTask
from bort.tasks.jsonl import take, take_list, take_text
from bort.tasks.reading import MAX_LINE_BYTES, BadRow, RowCounter, parse_record
from bort.tasks.submission import Kind
from bort.tasks.text import flatten

LETTERS = ("A", "B", "C", "D")
LEVELS = {"RACE-M": ("middle",), "RACE-H": ("high",), "RACE": ("high", "middle")}
PASSAGES = {"train": {"high": 18728, "middle": 6409}, "dev": {"high": 1021, "middle": 368},
            "test": {"high": 1045, "middle": 362}}
QUESTIONS = {"train": {"high": 62445, "middle": 25421}, "dev": {"high": 3451, "middle": 1436},
             "test": {"high": 3498, "middle": 1436}}
_BLANK = re.compile(r"_+")


class RaceLines(Kind):
    """``{"id": ..., "answers": ["A", ...]}``, one passage per line;
    a prediction's value is the list of letters."""

    def record(self, idx: Any, value: Any) -> Any:
        return {"id": idx, "answers": value}

    def parse(self, number: int, line: str) -> Tuple[Any, Any]:
        record = parse_record(line)
        answers = take_list(record, "answers")
        if any(answer not in LETTERS for answer in answers if isinstance(answer, str)) or not all(
                isinstance(answer, str) for answer in answers):
            raise BadRow(f"expected answers from A to D, found {shown(answers)}")
        return take_text(record, "id"), answers

    def differs(self, value: Any, official: Any) -> str:
        if len(value) == len(official):
            return ""
        return f"it has {len(value)} answers, the test set has {len(official)} questions"


def answered(question: str, options: Sequence[str]) -> List[str]:
    """The question with each answer: in place of the blank if it has just one, else after the question."""
    blanks = list(_BLANK.finditer(question))
    if len(blanks) != 1:
        return [f"{question} {option}".strip() for option in options]
    before, after = question[:blanks[0].start()].strip(), question[blanks[0].end():].strip()
    after = after if after[:1] in ",.;:?!" else f" {after}"
    return [f"{before} {option}{after}".strip() for option in options]


class RaceTask(Task):
    """One of RACE-M, RACE-H and both together; what their encodings share."""

    suite = "race"
    metrics = ("accuracy",)
    truncation = "first"
    submission_kind = RaceLines()
    folders = ("RACE",)

    def __init__(self, name: str) -> None:
        self.name, self.levels, self.submission = name, LEVELS[name], f"{name}.jsonl"
        self.official_counts = {split: {"rows": sum(PASSAGES[split][level] for level in self.levels),
                                        "questions": sum(QUESTIONS[split][level] for level in self.levels)}
                                for split in self.splits}

    def segment(self, text: str) -> str:
        return flatten(text)

    def file_names(self, split: str) -> List[Tuple[str, ...]]:
        return [(f"{split}/{level}",) for level in self.levels]

    def files(self, data_dir: PathLike, split: str) -> List[Path]:
        """The folders of the split's passages. ``data_dir`` is the root of RACE, or the folder above it."""
        folders = super().files(data_dir, split)
        for folder in folders:
            if not folder.is_dir():
                raise BortError(f"{folder}: expected a folder with one .txt file per passage")
        return folders

    def _read(self, files: List[Path], split: str) -> Split:
        result = Split(split, [], files=tuple(files), counts={"questions": 0})
        seen = set()
        for folder in files:
            counter = RowCounter(folder)
            for path in passage_files(folder):
                try:
                    record = read_passage(path)
                    examples = self.passage(record, f"{folder.name}{os.path.basename(path)}", split)
                    identity = examples[0].group[0] if examples else None
                    if identity in seen:
                        raise BadRow(f"expected an id that no other passage has, found {shown(identity)}")
                except BadRow as error:
                    counter.bad_row(path, error)
                    continue
                counter.good_row()
                if examples:
                    seen.add(identity)
                    result.examples += examples
                    result.counts["questions"] += examples[-1].group[1] + 1
            result.bad_rows += counter.finish()
            result.rows += counter.rows - counter.bad
        return result

    def passage(self, record: Any, otherwise: str, split: str) -> List[Example]:
        """The examples of one passage's JSON object; ``otherwise`` is its id if it has none.

        Two training passages of RACE-H have no questions, and so no examples.

        Raises:
            BadRow: it is no such object.
        """
        article = self.segment(take_text(record, "article", strip=False))
        identity = take_text(record, "id") if "id" in record else otherwise
        questions, options = (take(record, key, list, "a list") for key in ("questions", "options"))
        answers: Sequence[Any] = [None] * len(questions)
        if "answers" in record or split != "test":
            answers = take(record, "answers", list, "a list")
        if not len(questions) == len(options) == len(answers):
            raise BadRow(f"expected as many options and answers as questions, found {len(questions)} "
                         f"questions, {len(options)} options and {len(answers)} answers")
        if len(identity) > 200:
            raise BadRow(f"expected an id of at most 200 characters, found {shown(identity)}")
        examples: List[Example] = []
        for number, (question, choices, answer) in enumerate(zip(questions, options, answers)):
            if not isinstance(question, str):
                raise BadRow(f"expected questions that are texts, found {shown(question)}")
            if not isinstance(choices, list) or len(choices) != len(LETTERS) or not all(
                    isinstance(choice, str) for choice in choices):
                raise BadRow(f"expected four options that are texts, found {shown(choices)}")
            if answer is not None and (not isinstance(answer, str) or answer not in LETTERS):
                raise BadRow(f"expected an answer from A to D, found {shown(answer)}")
            right = None if answer is None else LETTERS.index(answer)
            texts = [self.segment(choice) for choice in choices]
            examples.extend(self.question_examples((identity, number), article, self.segment(question), texts,
                                                   right))
        return examples

    def question_examples(self, group: Tuple[str, int], article: str, question: str, choices: List[str],
                          right: Any) -> List[Example]:
        raise NotImplementedError

    def _half_of_high(self, split: Split, rng: np.random.Generator) -> Split:
        """The split without a random half of its high-school passages, each with all of its questions."""
        passages = sorted({example.group[0] for example in split.examples
                           if example.group[0].startswith("high")})
        dropped = set(rng.permutation(len(passages))[: len(passages) // 2].tolist())
        gone = {passage for index, passage in enumerate(passages) if index in dropped}
        return split.subset([index for index, example in enumerate(split.examples)
                             if example.group[0] not in gone])

    def training_subset(self, split: Split, rng: np.random.Generator) -> Split:
        return self._half_of_high(split, rng)

    @staticmethod
    def by_passage(letters: Dict[Any, str]) -> List[Prediction]:
        passages: Dict[str, List[str]] = {}
        for (passage, _), letter in letters.items():
            passages.setdefault(passage, []).append(letter)
        return list(passages.items())


class RacePairsTask(GroupedTask, RaceTask):
    """The paper's question-answer pairs."""

    labels, synonyms = ("0", "1"), FALSE_TRUE_SYNONYMS

    def question_examples(self, group: Tuple[str, int], article: str, question: str, choices: List[str],
                          right: Any) -> List[Example]:
        return [Example((*group, option), (article, text), None if right is None else int(option == right),
                        group=group, option=option) for option,
                text in enumerate(answered(question, choices))]

    def training_subset(self, split: Split, rng: np.random.Generator) -> Split:
        split = self._half_of_high(split, rng)
        return split.subset(balanced_indices([example.label for example in split.examples], rng))

    def predict(self, split: Split, scores: np.ndarray) -> List[Prediction]:
        return self.by_passage({group: LETTERS[split.examples[index].option or 0]
                                 for group, index in self.chosen(split, scores).items()})


def passage_files(folder: PathLike) -> List[str]:
    """Paths of the folder's ``.txt`` files by number (``N.txt``), others after them by name.

    Raises:
        BortError: it cannot be read.
    """
    def order(path: str) -> Tuple[bool, int, str]:
        stem = os.path.basename(path)[:-4]
        numbered = stem.isascii() and stem.isdigit() and len(stem) < 19
        return not numbered, int(stem) if numbered else 0, path

    try:
        # Paths stay strings: 28,000 Path objects are a noticeable part of reading the files.
        with os.scandir(folder) as entries:
            return sorted((entry.path for entry in entries if entry.name.endswith(".txt")), key=order)
    except OSError as error:
        raise BortError(f"{folder}: cannot be read ({error.strerror})") from error


def read_passage(path: PathLike) -> Any:
    """The JSON value of a passage's file.

    Raises:
        BadRow: not a regular file, too long, not UTF-8, or not JSON.
    """
    try:
        return parse_record(read_bytes(path, MAX_LINE_BYTES).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise BadRow(f"expected UTF-8 text, found {found}") from error
    except BortError as error:
        raise BadRow(f"expected a passage, found {error}") from error


RACE_TASKS: List[Task] = [RacePairsTask(name) for name in LEVELS]
