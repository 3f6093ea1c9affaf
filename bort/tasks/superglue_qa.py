"""MultiRC and ReCoRD, which the paper casts as classification of question-answer pairs (section 5.2).

* MultiRC: ``passage </s> question answer``, texts lightly cleaned (``text.tidy``). Each answer is right or
  wrong on its own, at a positive probability above 1/2; F1a is over all answers, EM over questions.
* ReCoRD: ``passage </s> query``, the placeholder filled with one entity of the passage at a time. The entity
  with the highest positive probability is the prediction.

Only the passage is cut when an example is too long. For training, negatives are discarded at random until the
labels are balanced.
"""
from __future__ import annotations

from typing import Any, Dict, List, Tuple

import numpy as np

from bort.json_files import shorten, shown
from bort.tasks import metrics as metric_functions
from bort.tasks.base import Example, Prediction, Split, Task, balanced_indices
from bort.tasks.glue import FALSE_TRUE_SYNONYMS
from bort.tasks.grouped import GroupedTask
from bort.tasks.jsonl import JsonlTask, Record, is_idx, take, take_int, take_list, take_text
from bort.tasks.reading import MAX_ROW_CHARACTERS, BadRow, parse_record
from bort.tasks.submission import JsonLines, Kind
from bort.tasks.text import clean, tidy

PLACEHOLDER = "@placeholder"


class MultiRcLines(Kind):
    """``{"idx", "passage": {"questions": [{"idx", "answers": [{"idx", "label"}]}]}}``, one passage per line.

    A prediction's value is ``[[question idx, [[answer idx, 0 or 1], ...]], ...]``.
    """

    def record(self, idx: Any, value: Any) -> Any:
        questions = [{"idx": question, "answers": [{"idx": answer, "label": label} for answer,
                                                   label in answers]} for question, answers in value]
        return {"idx": idx, "passage": {"questions": questions}}

    def parse(self, number: int, line: str) -> Tuple[Any, Any]:
        record = parse_record(line)
        questions = []
        for question in take_list(take(record, "passage", dict, "an object"), "questions"):
            answers = [[_required_idx(answer), take_int(answer, "label")] for answer in take_list(question,
                                                                                                  "answers")]
            if any(label not in (0, 1) for _, label in answers):
                raise BadRow("expected labels 0 or 1")
            questions.append([_required_idx(question), answers])
        return _required_idx(record), questions

    def differs(self, value: Any, official: Any) -> str:
        def shape(tree: Any) -> List[Any]:
            return sorted((str(question), sorted(str(answer) for answer, _ in answers)) for question,
                          answers in tree)

        if shape(value) == shape(official):
            return ""
        return "its questions or answers are not those of the test set"


def _required_idx(record: Any) -> Any:
    idx = record.get("idx") if isinstance(record, dict) else None
    if not is_idx(idx):
        raise BadRow(f"expected an idx that is a number or a string, found {shown(idx)}")
    return idx


class MultiRcTask(JsonlTask):
    """Examples have the idx ``(passage, question, answer)`` and the group ``(passage, question)``."""

    name, labels, metrics = "MultiRC", ("0", "1"), ("f1a", "em")
    synonyms, truncation = FALSE_TRUE_SYNONYMS, "first"
    submission, submission_kind = "MultiRC.jsonl", MultiRcLines()
    official_counts = {"train": {"rows": 456, "answers": 27243}, "dev": {"rows": 83, "answers": 4848},
                       "test": {"rows": 166, "answers": 9693}}

    def examples(self, record: Record, idx: Any, split: str, result: Split) -> List[Example]:
        passage = take(record, "passage", dict, "an object")
        text = tidy(take_text(passage, "text"))
        examples: List[Example] = []
        for number, question in enumerate(take_list(passage, "questions")):
            asked = tidy(take_text(question, "question"))
            group = (idx, _idx_or(question, number, split))
            _bound(len(asked) * len(take_list(question, "answers")))
            for option, answer in enumerate(take_list(question, "answers")):
                said = tidy(clean(take(answer, "text", str, "a text")))
                label = self.take_label(answer, split, (0, 1))
                examples.append(Example((*group, _idx_or(answer, option, split)),
                                        (text, f"{asked} {said}".strip()), label, group, option))
        if len({example.idx for example in examples}) != len(examples):
            raise BadRow("expected every question and answer idx of a passage once")
        result.counts["questions"] = result.counts.get("questions", 0) + len(passage["questions"])
        result.counts["answers"] = result.counts.get("answers", 0) + len(examples)
        return examples

    def training_subset(self, split: Split, rng: np.random.Generator) -> Split:
        return split.subset(balanced_indices([example.label for example in split.examples], rng))

    def evaluate(self, split: Split, scores: np.ndarray) -> Dict[str, float]:
        predicted, gold = self.outputs(split, scores), split.gold()
        return {"f1a": metric_functions.f1(predicted, gold),
                "em": metric_functions.multirc_em(predicted, gold,
                                                  [example.group for example in split.examples])}

    def predict(self, split: Split, scores: np.ndarray) -> List[Prediction]:
        tree: Dict[Any, Dict[Any, List[Any]]] = {}
        for example, label in zip(split.examples, self.outputs(split, scores).tolist()):
            passage, question, answer = example.idx
            tree.setdefault(passage, {}).setdefault(question, []).append([answer, label])
        return [(passage, [[question, answers] for question, answers in questions.items()])
                for passage, questions in tree.items()]


def _bound(characters: int) -> None:
    if characters > MAX_ROW_CHARACTERS:
        raise BadRow(f"expected examples of at most {MAX_ROW_CHARACTERS:,} characters together, found "
                     f"{characters:,}")


def _idx_or(record: Any, position: int, split: str) -> Any:
    if isinstance(record, dict) and "idx" not in record and split != "test":
        return position
    return _required_idx(record)


class ReCoRDTask(GroupedTask, JsonlTask):
    """Examples have the query's idx and the group ``(record, number of the query in it)``.

    ``meta["answers"]`` holds the gold texts of each group (absent in test), ``meta["entities"]`` each
    record's options.
    """

    name, labels, metrics = "ReCoRD", ("0", "1"), ("f1", "em")
    synonyms, truncation = FALSE_TRUE_SYNONYMS, "first"
    submission, submission_kind = "ReCoRD.jsonl", JsonLines()
    submission_unit = "queries"
    official_counts = {"train": {"queries": 100730}, "dev": {"queries": 10000}, "test": {"queries": 10000}}

    def examples(self, record: Record, idx: Any, split: str, result: Split) -> List[Example]:
        passage = take(record, "passage", dict, "an object")
        # Offsets count the characters of the text as published, so it is cleaned only after the entities are
        # cut out.
        raw = take(passage, "text", str, "a text")
        entities = tuple(dict.fromkeys(self._entity(raw, entity) for entity in take_list(passage,
                                                                                         "entities")))
        text = clean(raw)
        examples: List[Example] = []
        answers: Dict[Any, Tuple[str, ...]] = {}
        seen = result.meta.setdefault("seen", set())
        queries = take_list(record, "qas")
        for number, query in enumerate(queries):
            asked = take_text(query, "query")
            if PLACEHOLDER not in asked:
                raise BadRow(f"expected {PLACEHOLDER} in 'query', found {shown(asked)}")
            longest = max(map(len, entities))
            _bound(len(queries) * len(entities) * (len(asked) + asked.count(PLACEHOLDER) * longest))
            query_idx = _idx_or(query, number, split)
            if split == "test" and (query_idx in seen or any(query_idx == example.idx and example.group
                                                             != (idx, number) for example in examples)):
                raise BadRow(f"expected every query idx once, found {shorten(query_idx)} again")
            group = (idx, number)
            if "answers" in query or split != "test":
                answers[group] = tuple(clean(take(answer, "text", str, "a text"))
                                       for answer in take_list(query, "answers"))
            for option, entity in enumerate(entities):
                label = int(entity in answers[group]) if group in answers else None
                examples.append(Example(query_idx, (text, asked.replace(PLACEHOLDER, entity)), label, group,
                                        option))
        seen.update(example.idx for example in examples)
        result.meta.setdefault("answers", {}).update(answers)
        result.meta.setdefault("entities", {})[idx] = entities
        result.counts["queries"] = result.counts.get("queries", 0) + len(queries)
        return examples

    @staticmethod
    def _entity(text: str, entity: Any) -> str:
        start, end = take_int(entity, "start"), take_int(entity, "end")
        if not 0 <= start <= end < len(text):
            raise BadRow(f"expected 0 <= start <= end < {len(text)} (the length of the passage; the end is "
                         f"inclusive), found {start} and {end}")
        found = clean(text[start:end + 1])
        if not found:
            raise BadRow(f"expected an entity at {start} to {end}, found only white space")
        return found

    def training_subset(self, split: Split, rng: np.random.Generator) -> Split:
        return split.subset(balanced_indices([example.label for example in split.examples], rng))

    def _texts(self, split: Split, scores: np.ndarray) -> Dict[Any, str]:
        entities = split.meta["entities"]
        return {group: entities[group[0]][split.examples[index].option]
                for group, index in self.chosen(split, scores).items()}

    def evaluate(self, split: Split, scores: np.ndarray) -> Dict[str, float]:
        """``f1`` and ``em``: means over queries of the best match among the gold answers."""
        split.gold()  # a test split without answers is an error that says so
        texts, answers = self._texts(split, scores), split.meta["answers"]
        return metric_functions.record_scores(list(texts.values()), [answers[group] for group in texts])

    def predict(self, split: Split, scores: np.ndarray) -> List[Prediction]:
        idx_of = {example.group: example.idx for example in split.examples}
        return [(idx_of[group], text) for group, text in self._texts(split, scores).items()]


MULTIRC = MultiRcTask()
RECORD = ReCoRDTask()

QA_TASKS: List[Task] = [MULTIRC, RECORD]
