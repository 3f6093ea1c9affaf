"""What a pre-training is told: what determines its result, how often things happen, and the corpus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from bort.errors import BortError
from bort.masked_lm.batches import Sequences
from bort.masked_lm.losses import LossWeights
from bort.masked_lm.masking import MaskingPolicy
from bort.training.schedules import make_schedule
from bort.training.step import MAX_SKIPPED_IN_A_ROW, check_dtype

TRAINABLE = ("all", "head")


@dataclass(frozen=True)
class Settings:
    """What determines the result of a training. ``batch_size`` and ``max_tokens`` are per
    rank and micro-batch.

    ``seed`` decides the order and the dropout, and the masks too where ``mask_seed`` is None. ``train`` is
    "all", or "head" for the MLM head alone (without the vocabulary matrix, which is the embedding's).
    """

    steps: int = 25000
    batch_size: int = 8
    accumulate: int = 1
    max_tokens: int = 0
    lr: float = 1e-4
    schedule: str = "noam"
    warmup_ratio: float = 0.01
    clip: float = 1.0
    weight_decay: float = 0.01
    seed: int = 0
    mask_passes: int = 0
    dtype: str = "float32"
    max_skipped: int = MAX_SKIPPED_IN_A_ROW
    loss: LossWeights = LossWeights(1.0, 0.0)
    mask_seed: Optional[int] = None
    train: str = "all"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "max_skipped"):
            if getattr(self, name) < 1:
                raise BortError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        for name in ("max_tokens", "clip", "weight_decay", "seed", "mask_passes", "mask_seed"):
            if not (getattr(self, name) or 0) >= 0:
                raise BortError(f"--{name.replace('_', '-')} must not be negative, not {getattr(self, name)}")
        if self.train not in TRAINABLE:
            raise BortError(f"--train {self.train!r}: choose one of {', '.join(TRAINABLE)}")
        check_dtype(self.dtype)
        make_schedule(self.schedule, self.lr, self.steps, self.warmup_ratio)


@dataclass(frozen=True)
class Intervals:
    """How often things happen, in steps, and how much is kept; none of it changes what is learned, though
    ``evaluate`` and ``evaluation_sequences`` decide which step is the best one."""

    log: int = 10
    evaluate: int = 500
    checkpoint: int = 500
    keep: int = 2
    evaluation_sequences: int = 2000
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name, option, least in (
            ("log", "log-interval", 1),
            ("evaluate", "eval-interval", 1),
            ("keep", "keep", 0),
            ("checkpoint", "checkpoint-interval", 1),
            ("evaluation_sequences", "eval-sequences", 0),
        ):
            if getattr(self, name) < least:
                raise BortError(f"--{option} must be at least {least}, not {getattr(self, name)}")


@dataclass
class Corpus:
    """Training and evaluation sequences, how to mask and pad them, and the tokenizer that goes
    into model folders.

    ``max_length`` is what the corpus was prepared for, where that is known.
    """

    train: Sequences
    dev: Sequences
    policy: MaskingPolicy
    pad_id: int
    tokenizer: Any = None
    max_length: Optional[int] = None
