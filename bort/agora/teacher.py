"""Socrates: the teacher, a model or a table of its scores, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np

from bort.agora.evaluation import SOLVABLE, EvaluationSet, Goal
from bort.agora.plan import DEV
from bort.agora.token_edits import texts
from bort.checkpoints import model_folder
from bort.errors import BortError
from bort.files import PathLike, read_npy
from bort.finetuning.evaluation_split import EvaluationSplit
from bort.finetuning.task_data import Encoded
from bort.finetuning.teacher import ClassifierTeacher
from bort.json_files import read_jsonl
from bort.probabilities import softmax
from bort.tasks.base import Task
from bort.tasks.encoding import encode_pair
from bort.training.console import warn


def confidences(task: Task, scores: np.ndarray) -> List[Optional[float]]:
    """Probability of the predicted class of each example, from its scores (N, C); None in regression."""
    if task.is_regression:
        return [None] * len(scores)
    return [float(value) for value in softmax(scores.astype(np.float64)).max(axis=1).round(6)]


class Socrates:
    """The teacher S as tau needs it: it labels sequences that have no text of their own.

    Args:
        classifier: the fine-tuned network with its tokenizer.
    """

    def __init__(self, classifier: ClassifierTeacher) -> None:
        self.classifier = classifier

    def of_rows(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Scores (N, C) of sequences in the student's vocabulary; another vocabulary gets their decoded
        text."""
        one = self.classifier
        if one.same and max(map(len, rows), default=0) <= one.max_length:
            return one.scores(rows)
        again = []
        for row in rows:
            parts = [one.own.encode(text) for text in texts(row.tolist(), one.tokenizer)]
            again.append(encode_pair(one.own, parts[0], parts[1] if len(parts) > 1 else None, one.max_length,
                                     one.task.truncation))
        return one.scores(again)


def read_table(path: PathLike, count: int, task: Task) -> np.ndarray:
    """A teacher's scores for the training examples from a ``.npy`` or ``.jsonl`` file: float32 (N, C).

    The rows are those of the training split as it is read, in order: an array of shape (N, C), or a line
    ``{"scores": [...]}`` for each example.

    Raises:
        BortError: another number of rows or outputs, or not finite.
    """
    try:
        if Path(path).suffix == ".npy":
            table = read_npy(path)
        else:
            table = np.asarray([row["scores"] for row in read_jsonl(path)], dtype=np.float32)
    except BortError:
        raise
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BortError(
            f"{path}: not a table of a teacher's scores ({error}); it takes an array (N, C) in a "
            ".npy file or "
            'lines {"scores": [...]}'
        ) from error
    if table.shape != (count, task.num_outputs):
        raise BortError(
            f"{path}: has the shape {table.shape}; {task.name} has {count} training examples and "
            f"{task.num_outputs} outputs"
        )
    table = table.astype(np.float32)  # only now: a file of another shape may be of any size
    if not np.isfinite(table).all():
        raise BortError(f"{path}: some scores are not finite")
    return table


@dataclass
class TeacherReport:
    """A teacher's figures: the ``teacher`` of ``results.json``.

    Attributes:
        model: as the command line names it.
        score, accuracy: on E; None where they are not known.
        dev: metrics on the dev set, and ``dev_accuracy`` the share of single examples right there.
        saw_evaluation: whether E was among the examples it was fine-tuned on; None where nothing says.
    """

    model: str
    score: Optional[float] = None
    accuracy: Optional[float] = None
    dev: Dict[str, float] = field(default_factory=dict)
    dev_accuracy: Optional[float] = None
    saw_evaluation: Optional[bool] = None

    def goal(self, evaluation: EvaluationSet) -> Optional[Goal]:
        """What a student must reach; None where the teacher's figures on E are not known."""
        if self.score is None or self.accuracy is None:
            return None
        return Goal(self.score, self.accuracy, evaluation.constant_accuracy, not self.weak(evaluation))

    def weak(self, evaluation: EvaluationSet) -> List[str]:
        """The sets, with the shares, of which less than 2/3 are right: there the algorithm promises
        nothing."""
        found = {evaluation.shown_name: self.accuracy}
        if evaluation.name != DEV:
            found["dev set"] = self.dev_accuracy
        return [
            f"{100 * share:.1f}% of the {name}"
            for name, share in found.items()
            if share is not None and share < SOLVABLE
        ]


def report_on(
    model: str,
    evaluation: EvaluationSet,
    outputs: Optional[np.ndarray],
    dev: Optional[Encoded],
    dev_outputs: Optional[np.ndarray],
) -> TeacherReport:
    """The teacher's figures from its outputs (N, C) for E and for the dev set, None where there are none."""
    report = TeacherReport(model)
    if outputs is not None:
        scores = evaluation.scores(outputs)
        report.score, report.accuracy = scores.score, scores.accuracy
    if dev is not None and dev_outputs is not None:
        report.dev = {name: float(value) for name, value in dev.task.evaluate(dev.split, dev_outputs).items()}
        report.dev_accuracy = evaluation.classes.accuracy(dev.tokens.labels, dev_outputs)
    weak = report.weak(evaluation)
    if weak:
        warn(f"the teacher is right on {' and '.join(weak)} only; Agora's guarantee needs 2/3")
    return report


def saw_evaluation(
    teacher: PathLike, evaluation: EvaluationSet, split: Optional[EvaluationSplit]
) -> Optional[bool]:
    """Whether a teacher's training had the members of E, as its model folder tells; None where it does
    not."""
    if not Path(teacher).is_dir():
        return None
    training = (model_folder.locate(teacher).config or {}).get("training")
    if not isinstance(training, dict) or training.get("task") != evaluation.task.name:
        return None
    if evaluation.name == DEV:
        return False
    return split is None or training.get("split") != split.digest
