"""One step of training, the same for pre-training, fine-tuning and the candidates of a search.

A step draws its dropout masks from the seed, adds up the gradients of its micro-batches, sums them over the
ranks, clips them to a global norm and updates the parameters. Where a loss or a gradient is not finite it
changes nothing; after too many of those in a row the training has diverged. What a loop feeds it and when a
loop saves is the loop's business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    Type,
    TypeVar,
)

import numpy as np

from bort.backend import distributed
from bort.backend.mxnet import mx
from bort.engines import mxnet_compiled
from bort.errors import BortError
from bort.json_files import shown
from bort.training.schedules import Schedule

DTYPES = ("float32", "bfloat16", "float16")
"""What a training computes in. "bfloat16" is of the products only (:mod:`bort.models.precision`): parameters,
their gradients and everything else are float32. In "float16" the network itself is cast."""
FLOAT16_LOSS_SCALE = 256.0
"""Factor on the loss at the start, and its inverse on the gradients: small ones would vanish in float16."""
GOOD_STEPS_BEFORE_DOUBLING = 1000
MAX_SKIPPED_IN_A_ROW = 20
Part = TypeVar("Part")
State = TypeVar("State", bound="StepState")


class Diverged(BortError):
    """A training whose losses or gradients stopped being finite."""


def check_dtype(dtype: str) -> None:
    """Refuse what this machine cannot train in.

    Raises:
        BortError: ``dtype`` is unknown, float16 without a GPU, or bfloat16 on a processor that would emulate
            it.
    """
    if dtype not in DTYPES:
        raise BortError(f"--dtype {dtype!r}: training computes in {' or '.join(DTYPES)}")
    if dtype == "bfloat16":
        if mx.context.num_gpus():
            raise BortError("--dtype bfloat16 is for CPUs; take float16 on a GPU")
        try:
            mxnet_compiled.check_dtype(dtype)
        except BortError as error:
            raise BortError(f"--dtype {error}") from error
    if dtype == "float16" and not mx.context.num_gpus():
        raise BortError(
            "--dtype float16: MXNet computes in float16 on a GPU only and sees none here; leave it out"
        )


def products_of(dtype: str) -> str:
    """What the linear layers of a training in ``dtype`` multiply in, for
    :func:`bort.models.precision.products_in`."""
    return "bfloat16" if dtype == "bfloat16" else "float32"


def dropout_seed(seed: int, step: int, rank: int, stream: Sequence[int] = ()) -> int:
    """The seed of MXNet's generator for one step of one rank; ``stream`` keeps kinds of training apart."""
    return int(np.random.SeedSequence([seed, *stream, step, rank]).generate_state(1)[0]) & 0x7FFFFFFF


class Optimizer(Protocol):
    """What a step needs of :class:`~bort.training.optimizer.BertAdam` or
    :class:`~bort.training.optimizer.Sgd`."""

    def gradients(self) -> List[Any]:
        """The gradient arrays, in the same order on every rank."""

    def zero_gradients(self) -> None:
        """Start accumulating anew."""

    def step(self, rate: float, scale: float = 1.0) -> float:
        """Update with ``scale`` times the gradients; their norm, which is not finite if nothing was done."""


@dataclass(frozen=True)
class StepOptions:
    """What is the same for every step of a training.

    Attributes:
        seed, stream: of the dropout, see :func:`dropout_seed`.
        dtype: ``"float16"`` scales the losses.
        max_skipped: steps in a row that may come to nothing.
        ranks: whether the gradients are summed over all ranks.
        accumulates: whether gradients are added to the parameters' arrays (``grad_req="add"``), which then
            start from zero.
        mean_over: the figure by whose sum the gradients are divided, where it is known only after the step's
            forward passes; None where the losses are divided already.
        advice: what to do about a divergence, for the message.
    """

    seed: int
    stream: Tuple[int, ...] = ()
    dtype: str = "float32"
    max_skipped: int = MAX_SKIPPED_IN_A_ROW
    ranks: bool = True
    accumulates: bool = True
    mean_over: Optional[str] = None
    advice: str = "use a smaller learning rate"


@dataclass
class StepState:
    """Where the steps of a training stand; part of its checkpoints.

    Attributes:
        step: steps done, skipped ones among them.
        skipped, skipped_in_a_row: steps that changed nothing, in all and at the end.
        good_steps: steps since the last skipped one.
        loss_scale: the present factor on the losses.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    good_steps: int = 0
    loss_scale: float = 1.0

    @classmethod
    def restored(cls: Type[State], state: Mapping[str, Any]) -> State:
        """A state from what ``dataclasses.asdict`` made of one; members that earlier versions did not write
        keep their defaults.

        Raises:
            BortError: a member is unknown or of another type.
        """
        made = cls()
        for name, value in state.items():
            default = getattr(made, name, None)
            if (
                name not in cls.__dataclass_fields__
                or isinstance(value, bool) != isinstance(default, bool)
                or not isinstance(value, (int, float) if isinstance(default, float) else type(default))
            ):
                raise BortError(f"{name!r} is {shown(value, 40)}")
            setattr(made, name, value)
        return made


def initial_loss_scale(dtype: str) -> float:
    """The loss scale that a training in ``dtype`` starts with."""
    return FLOAT16_LOSS_SCALE if dtype == "float16" else 1.0


class StepResult(NamedTuple):
    """What one step did: the gradient's global norm before clipping (not finite: the step was skipped), and
    its figures, summed over micro-batches and ranks."""

    norm: float
    figures: Dict[str, float]

    @property
    def finite(self) -> bool:
        """Whether the parameters were updated."""
        return math.isfinite(self.norm)


class TrainingStep:
    """The steps of one training.

    Args:
        optimizer: holds the parameters.
        rate: learning rate by step, from 0.
        figures: names of what ``backward`` returns; with a value that is not finite, the step is skipped.
        state: is kept up to date; replace it to resume.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        rate: Schedule,
        options: StepOptions,
        figures: Sequence[str],
        state: StepState,
    ) -> None:
        self.optimizer, self.rate, self.options, self.state = optimizer, rate, options, state
        self._names = tuple(figures)
        self._rank = distributed.rank() if options.ranks else 0

    def __call__(self, parts: Iterable[Part], backward: Callable[[Part], Mapping[str, Any]]) -> StepResult:
        """Update the parameters once.

        Args:
            parts: this rank's micro-batches; it may have none.
            backward: leaves the gradient of a part's loss, times ``state.loss_scale``, in the parameters and
                returns its figures, numbers or NDArrays of one element.

        Raises:
            Diverged: ``max_skipped`` steps in a row were not finite.
        """
        options, state = self.options, self.state
        mx.random.seed(dropout_seed(options.seed, state.step, self._rank, options.stream))
        if options.accumulates or not parts:
            self.optimizer.zero_gradients()
        figures = self._exchange([backward(part) for part in parts])
        norm = math.nan
        if all(map(math.isfinite, figures.values())):
            count = 1.0 if options.mean_over is None else max(1.0, figures[options.mean_over])
            norm = self.optimizer.step(self.rate(state.step), 1 / (count * state.loss_scale))
        state.step += 1
        self._count(math.isfinite(norm))
        return StepResult(norm, figures)

    def _exchange(self, found: Sequence[Mapping[str, Any]]) -> Dict[str, float]:
        """The sums of the figures; over the ranks together with the gradients."""
        own = [sum(_number(figures[name]) for figures in found) for name in self._names]
        sums = own if not self.options.ranks else distributed.allreduce_step(
            self.optimizer.gradients(), np.array(own, dtype="float32"))
        return dict(zip(self._names, map(float, sums)))

    def _count(self, finite: bool) -> None:
        """Count skipped steps; in float16, keep the loss scale as large as the gradients allow."""
        state = self.state
        state.skipped_in_a_row = 0 if finite else state.skipped_in_a_row + 1
        state.skipped += not finite
        state.good_steps = state.good_steps + 1 if finite else 0
        if self.options.dtype == "float16":
            if not finite:
                state.loss_scale /= 2
            elif state.good_steps % GOOD_STEPS_BEFORE_DOUBLING == 0:
                state.loss_scale *= 2
        if state.skipped_in_a_row >= self.options.max_skipped:
            raise Diverged(
                f"losses or gradients were not finite for {state.skipped_in_a_row} steps in a row "
                f"(up to step {state.step}), which changed nothing; {self.options.advice}"
            )


def _number(value: Any) -> float:
    return float(value.asscalar() if hasattr(value, "asscalar") else value)
