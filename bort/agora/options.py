"""What a user can ask of a run of Agora."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Optional, Tuple

from bort.agora.sets import EvaluationOptions


@dataclass(frozen=True)
class TauOptions:
    """The transformations.

    Attributes:
        kinds: names out of :data:`bort.agora.token_edits.KINDS`; empty for none.
        model: pre-trained model for "mlm" and "embedding"; None for the student's.
        rate: probability of a change at each token.
        top_k: candidates that may replace a token.
    """

    kinds: Tuple[str, ...] = ("mlm",)
    model: Optional[str] = None
    rate: float = 0.15
    top_k: int = 10

    @property
    def shown(self) -> str:
        """As the command line has it."""
        return ",".join(self.kinds) or "none"


@dataclass(frozen=True)
class LoopOptions:
    """The loop: Theta, rounds and additions. ``grid`` and ``chs`` choose Theta, ``given`` are
    hyper-parameters that take the place of the convergent set's own; ``budget`` None stands for the size of
    X. The others are those of :class:`~bort.agora.plan.Plan`."""

    grid: str = "paper"
    chs: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)
    prune: str = "one"
    max_rounds: int = 0
    min_rounds: int = 1
    budget: Optional[int] = None
    replays: int = 0
    expand_from: str = "both"
    soft: bool = False
    compare: bool = False


@dataclass(frozen=True)
class ModelOptions:
    """The student, the teacher and the head between them: what a fine-tuning of any kind takes too."""

    model: str
    teacher: str
    tokenizer: Optional[str] = None
    architecture: Optional[str] = None
    heads: Optional[int] = None
    head: Optional[str] = None
    dropout: Optional[float] = None
    encoding: str = "paper"
    labels: Optional[str] = None
    limit: int = 0
    seed: int = 0


@dataclass(frozen=True)
class AgoraOptions:
    """Everything that a run is asked for, but the settings of a single training."""

    models: ModelOptions
    data_dir: str
    output: Path
    loop: LoopOptions = LoopOptions()
    tau: TauOptions = TauOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    cache_dir: Optional[str] = None
    resume: bool = False
