"""X and E: what the student is trained on, and what decides between models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

from bort.agora.classes import LabelClasses
from bort.agora.evaluation import EvaluationSet
from bort.agora.plan import DEV, EVALUATION
from bort.agora.points import Points
from bort.errors import BortError
from bort.files import PathLike
from bort.finetuning.evaluation_split import EvaluationSplit, draw, shared_split
from bort.finetuning.task_data import TaskData
from bort.tasks.base import Split
from bort.tasks.encoding import encode
from bort.text.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class EvaluationOptions:
    """What E is.

    Attributes:
        on: :data:`EVALUATION`, a part of the training set, or :data:`DEV`, as in the paper.
        fraction: of the training set.
        split_file: the file that shares E with other runs, or None.
        rounding: of a regression's values, see :data:`bort.agora.classes.ROUNDINGS`.
    """

    on: str = EVALUATION
    fraction: float = 0.1
    split_file: Optional[str] = None
    rounding: str = "fifths"


@dataclass(frozen=True)
class Reading:
    """How the task's files are read: where from, with which tokenizer, cut to which length, cached where."""

    data_dir: PathLike
    tokenizer: Tokenizer
    max_length: int
    cache_dir: Optional[PathLike] = None


@dataclass
class Sets:
    """X and E.

    Attributes:
        kept: indices of X in the training split, int64 (N,); ``taken`` those of E, None where E is not a part
            of it as it was read.
        split: E's members where a file shares them.
    """

    x: Points
    evaluation: EvaluationSet
    kept: np.ndarray
    taken: Optional[np.ndarray]
    split: Optional[EvaluationSplit] = None


def make_sets(
    data: TaskData, options: EvaluationOptions, reading: Reading, seed: int, whole_questions: bool = True
) -> Sets:
    """Divide the training split into X and E, or take the dev set as E.

    Args:
        whole_questions: whether questions that belong to E have all their options in it, those that training
            discards (sections 5.2, 5.3) included.

    Raises:
        BortError: too few examples, or a split file that does not fit.
    """
    classes = LabelClasses(data.task, options.rounding)
    train = data.train
    assert train is not None
    everything = np.arange(len(train.tokens))
    if options.on == DEV:
        assert data.dev is not None
        points = _points(list(data.dev.tokens.token_ids), data.dev.tokens.labels, DEV)
        return Sets(
            _part(data, everything, "train"),
            EvaluationSet(data.dev.split, points, DEV, classes),
            everything,
            None,
        )
    grouped = whole_questions and any(example.group is not None for example in train.split.examples)
    if options.split_file is not None:
        shared = shared_split(options.split_file, data, reading.data_dir, options.fraction, seed)
        whole = data.task.read(reading.data_dir, "train")
        inside = shared.members(train.split)
        kept = np.setdiff1d(everything, inside)
        if not len(kept):
            raise BortError("--split-file: every training example is in the evaluation set; raise --limit")
        evaluation = _encoded(data, whole.subset(shared.members(whole).tolist()), reading, classes)
        return Sets(
            _part(data, kept, "train"),
            evaluation,
            kept,
            inside if len(inside) == len(evaluation.points) else None,
            shared,
        )
    taken = draw(train.split, train.tokens.labels, options.fraction, seed)
    kept = np.setdiff1d(everything, taken)
    x = _part(data, kept, "train")
    if not grouped:
        return Sets(
            x,
            EvaluationSet(
                train.split.subset(taken.tolist()),
                _points(
                    [train.tokens.token_ids[index] for index in taken],
                    train.tokens.labels[taken],
                    EVALUATION,
                    taken,
                ),
                EVALUATION,
                classes,
            ),
            kept,
            taken,
        )
    groups = {train.split.examples[index].group for index in taken}
    whole = data.task.read(reading.data_dir, "train")
    members = [index for index, example in enumerate(whole.examples) if example.group in groups]
    return Sets(x, _encoded(data, whole.subset(members), reading, classes), kept, taken)


def _encoded(data: TaskData, split: Split, reading: Reading, classes: LabelClasses) -> EvaluationSet:
    tokens = encode(data.task, split, reading.tokenizer, reading.max_length, reading.cache_dir)
    return EvaluationSet(
        split, _points(list(tokens.token_ids), tokens.labels, EVALUATION), EVALUATION, classes
    )


def _part(data: TaskData, indices: np.ndarray, prefix: str) -> Points:
    assert data.train is not None
    tokens = data.train.tokens
    return _points([tokens.token_ids[index] for index in indices], tokens.labels[indices], prefix, indices)


def _points(token_ids: list, labels: np.ndarray, prefix: str, places: Optional[np.ndarray] = None) -> Points:
    numbers = range(len(token_ids)) if places is None else places.tolist()
    return Points(token_ids, labels, [f"{prefix}/{number}" for number in numbers])
