"""Labels as Agora sees them: as classes, in regression too (paper, section 5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Union

import numpy as np

from bort.errors import BortError
from bort.tasks.base import Task

ROUNDINGS: Dict[str, int] = {"fifths": 5, "whole": 1}
"""Classes of a regression task per unit of its scale, by name. "fifths" are multiples of 0.2, as Raffel et
al. (2019), whom the paper follows, round STS-B's values; "whole" are whole numbers."""
HIGHEST = 5
"""The end of STS-B's scale, which begins at 0."""


@dataclass(frozen=True)
class LabelClasses:
    """The classes that are told right from wrong, balanced and stratified.

    Attributes:
        task: the task; its own classes unless it is a regression.
        rounding: a key of :data:`ROUNDINGS`, for regression.

    Raises:
        BortError: an unknown rounding.
    """

    task: Task
    rounding: str = "fifths"

    def __post_init__(self) -> None:
        if self.rounding not in ROUNDINGS:
            raise BortError(f"--rounding {self.rounding!r}: choose one of {', '.join(ROUNDINGS)}")

    @property
    def count(self) -> int:
        """The number of classes."""
        return HIGHEST * ROUNDINGS[self.rounding] + 1 if self.task.is_regression else self.task.num_outputs

    @property
    def names(self) -> List[str]:
        """The classes' names in order: the task's labels, or the rounded values."""
        if self.task.labels is not None:
            return list(self.task.labels)
        unit = ROUNDINGS[self.rounding]
        return [f"{place / unit:g}" for place in range(self.count)]

    def of(self, labels: np.ndarray) -> np.ndarray:
        """The classes, int64 (N,), of labels or values (N,). Values are clipped to the scale; halves round
        up."""
        if not self.task.is_regression:
            return np.asarray(labels, dtype=np.int64)
        values = np.clip(np.asarray(labels, dtype=np.float64), 0, HIGHEST)
        unit = ROUNDINGS[self.rounding]
        if unit > 1:  # a float32 0.7 lies below 0.7: seen to six digits it is the half between two fifths
            values = np.round(values, 6) * unit
        return np.floor(values + 0.5).astype(np.int64)

    def one(self, label: Union[int, float]) -> int:
        """The class of a single label or value."""
        return int(self.of(np.array([label]))[0])

    def wrong(self, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """bool (N,): whether the class that ``scores`` (N, C) give is another than that of ``labels``
        (N,)."""
        outputs = (
            np.where(np.isfinite(scores[:, 0]), scores[:, 0], 0.0)
            if self.task.is_regression
            else scores.argmax(axis=1)
        )
        return self.of(outputs) != self.of(labels)

    def accuracy(self, labels: np.ndarray, scores: np.ndarray) -> float:
        """Share of single examples whose class is right, which the algorithm's guarantee is about."""
        return float(np.mean(~self.wrong(labels, scores)))

    def counts(self, labels: np.ndarray) -> np.ndarray:
        """int64 (count,): how many of ``labels`` (N,) each class has."""
        return np.bincount(self.of(labels), minlength=self.count)

    def balance(self, labels: np.ndarray) -> Dict[str, int]:
        """:meth:`counts` by name."""
        return dict(zip(self.names, self.counts(labels).tolist()))
