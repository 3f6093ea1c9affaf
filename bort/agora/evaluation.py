"""The evaluation set E: what decides between models, and when a run has reached its goal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, Optional

import numpy as np

from bort.agora.classes import LabelClasses
from bort.agora.plan import DEV
from bort.agora.points import Points
from bort.finetuning.losses import mean_loss
from bort.tasks.base import Split, Task

TIE_BREAKER = 1e-6
"""Weight of the loss on E beside the metric: of models with the same score the one with the smaller loss is
better."""
MAX_LOSS = 1e3
"""What a larger loss, or one that is not finite, counts as in a tie."""
LOWEST = -1e300
"""Selection value of a training that diverged; JSON has no minus infinity."""
SOLVABLE = 2 / 3
"""Accuracy that the teacher needs for the algorithm's guarantee (section 5)."""


def selection(score: Optional[float], loss: Optional[float]) -> float:
    """The number that orders models: the score on E, ties broken by the loss.

    Args:
        score: None for a training that diverged, which comes last.
        loss: None for one that is not finite.
    """
    if score is None:
        return LOWEST
    return score - TIE_BREAKER * (MAX_LOSS if loss is None else min(loss, MAX_LOSS))


@dataclass(frozen=True)
class Scores:
    """A model's figures on E: the deciding metric, the share of right examples, and the mean loss (None: not
    finite)."""

    score: float
    accuracy: float
    loss: Optional[float]

    @property
    def selection(self) -> float:
        """See :func:`selection`."""
        return selection(self.score, self.loss)


@dataclass
class EvaluationSet:
    """E, with the metric that decides. Its members feed tau too, so its scores say little of new examples.

    The metric is the task's first, and in regression the share of values of the label's class
    (:class:`~bort.agora.classes.LabelClasses`).

    Attributes:
        split: the examples, with which the task computes its metrics.
        points: the same as sequences, in the same order.
        name: :data:`EVALUATION` or :data:`DEV`.
    """

    split: Split
    points: Points
    name: str
    classes: LabelClasses

    @property
    def task(self) -> Task:
        """The task of the examples."""
        return self.classes.task

    @property
    def metric(self) -> str:
        """Name of the deciding metric. By whole numbers it is the task's own ``rounded_accuracy``."""
        if not self.task.is_regression:
            return self.task.metrics[0]
        rounding = self.classes.rounding
        return "rounded_accuracy" if rounding == "whole" else f"accuracy_by_{rounding}"

    @property
    def shown_name(self) -> str:
        """The set's name for people."""
        return "dev set" if self.name == DEV else "evaluation set"

    def scores(self, outputs: np.ndarray) -> Scores:
        """The figures of a model's outputs (N, C) for the members."""
        labels = self.points.labels
        accuracy = self.classes.accuracy(labels, outputs)
        found = loss(self.task, labels, outputs)
        return Scores(
            accuracy
            if self.task.is_regression
            else float(self.task.evaluate(self.split, outputs)[self.metric]),
            accuracy,
            found if math.isfinite(found) else None,
        )

    def metrics(self, outputs: np.ndarray) -> Dict[str, float]:
        """All the task's metrics."""
        return {name: float(value) for name, value in self.task.evaluate(self.split, outputs).items()}

    @property
    def constant_accuracy(self) -> float:
        """The accuracy of the best constant answer."""
        return float(self.classes.counts(self.points.labels).max() / len(self.points))


def loss(task: Task, labels: np.ndarray, outputs: np.ndarray) -> float:
    """Mean cross-entropy of logits (N, C), or mean squared error in regression; infinite where an output is
    not finite."""
    return mean_loss(outputs, labels) if np.isfinite(outputs).all() else math.inf


@dataclass(frozen=True)
class Goal:
    """The teacher's figures on E, at which a run may end early.

    F1 alone can be had by a constant answer, so the goal needs the accuracy too, and a better one than any
    constant answer's. A teacher below 2/3 sets no goal: the algorithm promises nothing there.

    Attributes:
        score, accuracy: the teacher's.
        constant_accuracy: of the best constant answer on E.
        teacher_is_solvable: whether the teacher is right on 2/3 of E, and of the dev set where that is known.
    """

    score: float
    accuracy: float
    constant_accuracy: float = 0.0
    teacher_is_solvable: bool = True

    def reached(self, score: float, accuracy: float) -> bool:
        """Whether a student with these figures on E has reached the teacher."""
        return (
            self.teacher_is_solvable
            and score >= self.score
            and accuracy >= self.accuracy
            and accuracy > self.constant_accuracy
        )
