"""Where a run of Agora stands. Everything here can be written as JSON and read back."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Type, TypeVar

from bort.agora.evaluation import LOWEST, selection
from bort.errors import BortError
from bort.finetuning.hyperparameters import Theta

T = TypeVar("T")
Metrics = Dict[str, float]


@dataclass
class Training:
    """A training that has ended: a line of ``agora.jsonl``.

    Attributes:
        index: its number among those of its round.
        theta: the hyper-parameters; ``theta_index`` their place in Theta.
        round, attempt: when it was.
        size, labels: points of D, and those of each class.
        evaluated_on: what E is, "evaluation" or "dev".
        score, accuracy, loss: on E; the score is None when the training diverged, the loss when it is not
            finite.
        dev: metrics on the dev set, where there is one.
        epoch: the best one, from 1; ``steps`` those of the whole training.
        diverged: why it did.
        sha256: of its parameters' file, while they are kept.
    """

    index: int
    theta: Theta
    theta_index: int
    round: int
    attempt: int
    size: int
    labels: Dict[str, int]
    evaluated_on: str
    score: Optional[float] = None
    accuracy: Optional[float] = None
    loss: Optional[float] = None
    dev: Metrics = field(default_factory=dict)
    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    diverged: Optional[str] = None
    sha256: Optional[str] = None

    @property
    def selection(self) -> float:
        """What orders trainings."""
        return selection(self.score, self.loss)

    def better(self, other: "Training") -> bool:
        """Whether this one has the higher selection value, or the same and the lower number."""
        return (self.selection, -self.index) > (other.selection, -other.index)

    def to_json(self) -> Dict[str, Any]:
        """The fields as JSON; :meth:`from_json` reads them back."""
        return {**asdict(self), "theta": self.theta._asdict()}

    def line(self) -> Dict[str, Any]:
        """What ``agora.jsonl`` says: without what only the journal needs."""
        row = self.to_json()
        del row["sha256"]
        if row["diverged"] is None:
            del row["diverged"]
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any], where: str) -> "Training":
        """The inverse of :meth:`to_json` and :meth:`line`.

        Raises:
            BortError: the row is not a training's; ``where`` says whose it is.
        """
        training = _built(cls, row, where)
        training.theta = _from(lambda: Theta(**row["theta"]), where)
        return training


def best_of(trainings: List[Training]) -> Optional[Training]:
    """The best of the trainings that did not diverge; None when there is none."""
    best: Optional[Training] = None
    for training in trainings:
        if training.selection > LOWEST and (best is None or training.better(best)):
            best = training
    return best


@dataclass
class Best:
    """The best model seen so far: whose training it is of, and its figures."""

    round: int
    attempt: int
    theta: Dict[str, Any]
    theta_index: int
    score: float
    accuracy: float
    loss: Optional[float]
    dev: Metrics
    size: int
    selection: float

    @classmethod
    def of(cls, training: Training) -> "Best":
        """That of a training that did not diverge."""
        assert training.score is not None and training.accuracy is not None
        return cls(
            round=training.round,
            attempt=training.attempt,
            theta=training.theta._asdict(),
            theta_index=training.theta_index,
            score=training.score,
            accuracy=training.accuracy,
            loss=training.loss,
            dev=training.dev,
            size=training.size,
            selection=training.selection,
        )


@dataclass
class Attempt:
    """One try at the present round: the trainings on one D.

    Attributes:
        attempt: its number, from 0; later ones are replays.
        size, labels: of D.
        wrong: places in the pool (D, then E) of what its best model gets wrong.
        order: indices of Theta from the best to the worst.
        improved: whether it raised the best score on E.
        score, selection, dev: of its best model; the first two None when all trainings diverged.
    """

    attempt: int
    size: int
    labels: Dict[str, int]
    wrong: List[int]
    order: List[int]
    improved: bool
    score: Optional[float]
    selection: Optional[float]
    dev: Metrics


@dataclass
class Round:
    """A round that is over: how many attempts it took, and the figures of the one that counts."""

    round: int
    attempts: int
    attempt: int
    size: int
    labels: Dict[str, int]
    thetas: int
    score: Optional[float]
    dev: Metrics
    best_score: float
    best_dev: Metrics
    errors: int


@dataclass
class State:
    """Where a run stands.

    Attributes:
        number: counts the times it was saved.
        round, attempt: what is under way.
        left: indices of Theta that are still in it.
        best: None before the first training has ended.
        kept: (round, attempt) pairs whose additions belong to D for good.
        wrong, order: those of the attempt that counted in the last round, see :class:`Attempt`.
        unchanged: nothing was added for the present round.
        attempts: what the present round has tried; ``history`` the rounds before it.
        stopped: why the run has ended; None while it goes on.
        trainings, steps: carried out so far.
        generated, labelled: sequences made by tau, and those of them that the teacher labelled.
        seconds: by part of the work.
        lists: length in bytes and SHA-256 of each of the run's lists when the state was saved.
    """

    number: int = 0
    round: int = 0
    attempt: int = 0
    left: List[int] = field(default_factory=list)
    best: Optional[Best] = None
    kept: List[Tuple[int, int]] = field(default_factory=list)
    wrong: List[int] = field(default_factory=list)
    order: List[int] = field(default_factory=list)
    unchanged: bool = False
    attempts: List[Attempt] = field(default_factory=list)
    history: List[Round] = field(default_factory=list)
    stopped: Optional[str] = None
    trainings: int = 0
    steps: int = 0
    generated: int = 0
    labelled: int = 0
    seconds: Dict[str, float] = field(default_factory=dict)
    lists: Dict[str, Tuple[int, str]] = field(default_factory=dict)

    @property
    def best_so_far(self) -> Best:
        """The best model; there is one once a round has ended."""
        assert self.best is not None
        return self.best

    def add_seconds(self, part: str, seconds: float) -> None:
        """Count time for a part of the work."""
        self.seconds[part] = round(self.seconds.get(part, 0.0) + seconds, 3)

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str) -> "State":
        """The inverse of ``dataclasses.asdict``.

        Raises:
            BortError: the content is not a state of this version.
        """
        state = _built(cls, content, where)

        def nested() -> "State":
            state.best = None if content["best"] is None else _built(Best, content["best"], where)
            state.attempts = [_built(Attempt, row, where) for row in content["attempts"]]
            state.history = [_built(Round, row, where) for row in content["history"]]
            state.kept = [(int(number), int(attempt)) for number, attempt in content["kept"]]
            state.lists = {
                name: (int(length), str(digest)) for name, (length, digest) in content["lists"].items()
            }
            return state

        return _from(nested, where)


def _built(cls: Type[T], content: Any, where: str) -> T:
    names = inspect.signature(cls).parameters
    return _from(lambda: cls(**{name: value for name, value in content.items() if name in names}), where)


def _from(build: Callable[[], T], where: str) -> T:
    try:
        return build()
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BortError(f"{where}: not what Agora wrote there ({error}); choose another --output") from error
