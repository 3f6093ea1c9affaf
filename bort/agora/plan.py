"""What a run of Agora is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

from bort.errors import BortError
from bort.finetuning.hyperparameters import Theta

EVALUATION, DEV = "evaluation", "dev"
"""What E may be: an evaluation set taken out of the training set, or the dev set as in the paper."""
PRUNINGS = ("one", "half", "none")
SOURCES = ("both", "train", "evaluation")
"""Whose members tau transforms: those of X and E, as in the algorithm, or, for ablations, of one of them;
what was made of them counts as theirs."""


@dataclass(frozen=True)
class Plan:
    """The settings of a run.

    Attributes:
        thetas: Theta.
        prune: "one" drops the worst of Theta after each round (the paper's O(|Theta|^2) trainings), "half"
            the worse half, "none" nothing, for ablations.
        max_rounds: rounds of training at most; 0 sets no limit.
        min_rounds: rounds before reaching the teacher's score, a round without gain or one without additions
            may end the run.
        budget: new points of a round at most.
        replays: how often a round that brings nothing is repeated with fresh draws of tau.
        soft: whether the student also learns the teacher's logits.
        seed: of the evaluation set, of tau and of the order of its sources.
        expand_from: one of :data:`SOURCES`.
    """

    thetas: Tuple[Theta, ...]
    prune: str = "one"
    max_rounds: int = 0
    min_rounds: int = 1
    budget: int = 1000
    replays: int = 0
    soft: bool = False
    seed: int = 0
    expand_from: str = "both"

    def __post_init__(self) -> None:
        if self.prune not in PRUNINGS:
            raise BortError(f"--prune {self.prune!r}: choose one of {', '.join(PRUNINGS)}")
        if self.expand_from not in SOURCES:
            raise BortError(f"--expand-from {self.expand_from!r}: choose one of {', '.join(SOURCES)}")
        if not self.thetas:
            raise BortError("Agora needs at least one set of hyper-parameters")
        if self.prune == "none" and len(self.thetas) > 1 and not self.max_rounds:
            raise BortError("--prune none needs --max-rounds: Theta never shrinks to one")
        for name in ("max_rounds", "min_rounds", "budget", "replays"):
            if getattr(self, name) < 0:
                raise BortError(f"--{name.replace('_', '-')} must not be negative, not {getattr(self, name)}")

    def trainings(self) -> int:
        """The number of trainings until one theta is left, when D grows and without replays: what a run may
        cost."""
        left, rounds, total = len(self.thetas), 0, 0
        while not self.max_rounds or rounds < self.max_rounds:
            total, rounds = total + left, rounds + 1
            if left == 1:
                break
            left = self.remaining(left)
        return total

    def remaining(self, count: int) -> int:
        """How many of ``count`` sets the next round has."""
        return max(1, {"one": count - 1, "half": -(-count // 2), "none": count}[self.prune])
