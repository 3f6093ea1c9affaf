"""What a run of Agora is asked to do, and where it stands."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from bort.errors import BortError
from bort.finetuning.hyperparameters import Theta

PRUNINGS = ("one", "half", "none")


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
        seed: of the held-out part, of tau and of the order of its sources.
    """

    thetas: Tuple[Theta, ...]
    prune: str = "one"
    max_rounds: int = 0
    min_rounds: int = 1
    budget: int = 1000
    replays: int = 0
    soft: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prune not in PRUNINGS:
            raise BortError(f"--prune {self.prune!r}: choose one of {', '.join(PRUNINGS)}")
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


@dataclass
class State:
    """Where a run stands; everything in it is JSON. Indices of Theta are places in :attr:`Plan.thetas`.

    ``kept`` are the (round, attempt) pairs whose additions belong to D for good, ``wrong`` the points of the
    pool (D, then E) of the last finished round that its best model got wrong, ``order`` that round's sets
    from the best to the worst, ``attempts`` what the present round has tried. ``unchanged`` says that nothing
    was added for the present round.
    """

    number: int = 0
    round: int = 0
    attempt: int = 0
    left: List[int] = field(default_factory=list)
    best: Optional[Dict[str, Any]] = None
    kept: List[List[int]] = field(default_factory=list)
    wrong: List[int] = field(default_factory=list)
    order: List[int] = field(default_factory=list)
    unchanged: bool = False
    attempts: List[Dict[str, Any]] = field(default_factory=list)
    history: List[Dict[str, Any]] = field(default_factory=list)
    stopped: Optional[str] = None
    trainings: int = 0
    steps: int = 0
    generated: int = 0
    labelled: int = 0
    seconds: Dict[str, float] = field(default_factory=dict)
    bytes: Dict[str, int] = field(default_factory=dict)
