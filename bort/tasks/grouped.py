"""Question answering as classification of question-answer pairs: the most probable positive of a group
answers it."""
from __future__ import annotations

from typing import Any, Dict, List

import numpy as np

from bort.tasks.base import Prediction, Split, Task


def positive_margins(scores: np.ndarray) -> np.ndarray:
    """Log-odds of class 1, shape (N,): increases with its probability, and does not saturate as that does."""
    return scores[:, 1] - scores[:, 0]


class GroupedTask(Task):
    """A task whose examples are options of questions (:attr:`Example.group`),
    at most one of which is chosen."""

    def chosen(self, split: Split, scores: np.ndarray) -> Dict[Any, int]:
        """Group -> index of its example with the highest positive probability; the first of equals.

        Groups are in the order of the split.
        """
        margins = positive_margins(self.check_scores(split, scores)).tolist()
        best: Dict[Any, int] = {}
        for index, example in enumerate(split.examples):
            current = best.setdefault(example.group, index)
            if margins[index] > margins[current]:
                best[example.group] = index
        return best

    def evaluate(self, split: Split, scores: np.ndarray) -> Dict[str, float]:
        """``accuracy``: share of groups whose chosen option is labelled 1."""
        chosen, gold = self.chosen(split, scores), split.gold()
        return {"accuracy": float(np.mean([gold[index] == 1 for index in chosen.values()]))}

    def predict(self, split: Split, scores: np.ndarray) -> List[Prediction]:
        return [(group, split.examples[index].option) for group, index in self.chosen(split, scores).items()]

