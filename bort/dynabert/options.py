"""The options of ``run_finetune.py --algorithm dynabert``. No MXNet."""
from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from typing import Optional, Tuple

from bort.dynabert.grid import DEPTHS, WIDTHS, Multipliers
from bort.errors import BortError

STAGES = ("width", "depth", "finetune")
KINDS = ("mlm", "noise", "embedding")
"""Of the tau-functions: those of ``bort.agora.token_edits``, a package that does not lie under this one."""


@dataclass(frozen=True)
class AdaptiveOptions:
    """What is particular to DynaBERT.

    Attributes:
        widths, depths: shares of heads and neurons, and of layers; both hold 1.
        stages: names out of :data:`STAGES`, in the order of training; none leaves the rewired teacher.
        importance_examples: how many examples importance is measured on; 0 keeps the teacher's order of
            heads and neurons (no rewiring, an ablation).
        sampled: sub-networks that a step trains besides the largest and the smallest, drawn at random; 0
            trains all of them, as published.
    """

    widths: Tuple[float, ...] = WIDTHS
    depths: Tuple[float, ...] = DEPTHS
    stages: Tuple[str, ...] = ("width", "depth")
    importance_examples: int = 1024
    sampled: int = 0

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or len(set(self.stages)) != len(self.stages):
            raise BortError(f"--stages {','.join(self.stages)}: name each of {', '.join(STAGES)} at most "
                            "once")
        if list(self.stages) != [stage for stage in STAGES if stage in self.stages]:
            raise BortError(f"--stages {','.join(self.stages)}: their order is {', '.join(STAGES)}")
        for name in ("importance_examples", "sampled"):
            if getattr(self, name) < 0:
                raise BortError(f"--{name.replace('_', '-')} must not be negative, not {getattr(self, name)}")
        for pair in itertools.product(self.widths, self.depths):
            Multipliers(*pair)  # which checks its range
        if 1 not in self.widths or 1 not in self.depths:
            raise BortError("--widths and --depths must both contain 1: the full network is the largest of "
                            "them")


@dataclass(frozen=True)
class DynabertOptions:
    """What the command line says of DynaBERT beyond the settings every training has.

    Attributes:
        adaptive: widths, depths, stages, importance.
        importance_on: "train", or "dev" as published.
        tau: kinds of transformation of the augmentation; none without any.
        tau_model: a pre-trained model of the teacher's vocabulary; None takes the teacher's body.
        tau_rate, tau_top_k: see :class:`bort.agora.tau.Tau`.
        copies: of every training example in the stages that distil.
        keep_fraction: share of the training set that is left out of training, for a search over the result.
    """

    adaptive: AdaptiveOptions
    importance_on: str = "train"
    tau: Tuple[str, ...] = ()
    tau_model: Optional[str] = None
    tau_rate: float = 0.4
    tau_top_k: int = 15
    copies: int = 0
    keep_fraction: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.keep_fraction < 1:
            raise BortError(f"--keep-fraction is a share from 0 to below 1, not {self.keep_fraction}")
        unknown = [kind for kind in self.tau if kind not in KINDS]
        if unknown or len(set(self.tau)) != len(self.tau):
            raise BortError(f"--augment {','.join(self.tau)}: name each of {', '.join(KINDS)} at most once")
        if self.copies < 0 or self.tau_top_k < 1 or not 0 <= self.tau_rate <= 1:
            raise BortError("--augment-copies must not be negative, --augment-top-k at least 1 and "
                            f"--augment-rate from 0 to 1, not {self.copies}, {self.tau_top_k} and "
                            f"{self.tau_rate}")
        if bool(self.tau) != bool(self.copies):
            raise BortError("--augment and --augment-copies go together: name the tau-functions and how many "
                            "copies of every example they make")


def add_dynabert_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``--algorithm dynabert``."""
    group = parser.add_argument_group(
        "dynabert", "one network of many widths and depths, from the fine-tuned --teacher (no --model); "
        "afterwards: python -m bort.dynabert table|extract, run_search.py --supernet")
    group.add_argument("--widths", default=",".join(f"{one:g}" for one in WIDTHS), metavar="W,W,...",
                       help="shares of heads and intermediate neurons (default 1,0.75,0.5,0.25)")
    group.add_argument("--depths", default=",".join(f"{one:g}" for one in DEPTHS), metavar="D,D,...",
                       help="shares of layers (default 1,0.75,0.5)")
    group.add_argument("--stages", default="width,depth", metavar="S,S,...",
                       help="width, depth, finetune, or none: the rewired teacher as it is (default "
                       "width,depth)")
    group.add_argument("--sampled", type=int, default=0, metavar="N",
                       help="train the largest, the smallest and N sub-networks drawn at random at every "
                       "step (default 0: all of them, as published; 1 of 12 takes under half the compute)")
    group.add_argument("--importance-examples", type=int, default=1024,
                       help="examples that importance is measured on (0: no rewiring)")
    group.add_argument("--importance-on", choices=("train", "dev"), default="train",
                       help="dev as published; train leaves the dev set for the report (default)")
    group.add_argument("--augment", default="", metavar="TAU,...",
                       help="tau-functions that make more examples: mlm, embedding, noise")
    group.add_argument("--augment-copies", type=int, default=0, help="of every training example")
    group.add_argument("--augment-model", help="pre-trained model of the teacher's vocabulary for mlm and "
                                               "embedding (default: the teacher's body)")
    group.add_argument("--augment-rate", type=float, default=0.4,
                       help="probability of a change at each token")
    group.add_argument("--augment-top-k", type=int, default=15, help="candidates that may replace a token")
    group.add_argument("--keep-fraction", type=float, default=0.0,
                       help="share of the training set left out, for run_search.py --supernet")


def shares(text: str, option: str) -> Tuple[float, ...]:
    """``"1,0.5"`` as numbers.

    Raises:
        BortError: it is no such list.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise BortError(f"{option}: {text!r} is not a list of shares like 1,0.75,0.5") from error


def options_of(args: argparse.Namespace) -> DynabertOptions:
    """The command line's values.

    Raises:
        BortError: one is out of range, or this algorithm does not have it.
    """
    if args.dtype == "float16":
        raise BortError("--dtype float16: --algorithm dynabert trains in float32 or bfloat16")
    adaptive = AdaptiveOptions(shares(args.widths, "--widths"), shares(args.depths, "--depths"),
                               () if args.stages == "none" else tuple(args.stages.split(",")),
                               args.importance_examples, args.sampled)
    return DynabertOptions(adaptive, args.importance_on, tuple(filter(None, args.augment.split(","))),
                           args.augment_model, args.augment_rate, args.augment_top_k, args.augment_copies,
                           args.keep_fraction)
