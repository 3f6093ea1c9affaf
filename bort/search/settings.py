"""What determines a search's result, checked."""
from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Tuple

from bort.architecture import PAPER_SPACE, Architecture, search_space
from bort.errors import BortError
from bort.files import PathLike

MICRO_BATCH_TOKENS = 2048
EMBEDDED = "embedded"
"""The name of the corpus that Python carries."""


@dataclass(frozen=True)
class SearchInputs:
    """The files that a search reads.

    Attributes:
        teacher: T: a model folder or ``.params`` file, or an architecture whose weights are drawn at random
            (with a warning).
        teacher_architecture: of a T that is a bare ``.params`` file.
        corpus: shards, a text file or folder, or :data:`EMBEDDED`; not read when nothing is trained.
        tokenizer: None takes the shards', the teacher's or RoBERTa's, or trains one of ``tokenizer_size``
            ids.
    """

    teacher: str = "roberta-large"
    teacher_architecture: Optional[str] = None
    corpus: PathLike = EMBEDDED
    tokenizer: Optional[PathLike] = None
    tokenizer_size: int = 8000


@dataclass(frozen=True)
class SearchSettings:
    """What determines a search's result; the defaults are section 3.3's.

    Attributes:
        depths, heads, hidden, intermediate: the sets whose product is Xi.
        epsilon: interval size, from 1 to the size of Xi; n is ``steps``, s is ``max_length``.
        counts: size and FLOPs by "exact" counts of our network, or by the paper's "lemma" 2 and 1.
        speed: "flops" (of one line of s tokens), or "measured" seconds per sample.
        speed_lines: held-out lines; they give e(xi) and, when speed is measured, are what is timed (section
        3.3).
        speed_batch_size: lines of a timed pass; 0 takes ``micro_batch_size``.
        trials: timed passes of every network; 0 makes as many as it takes to time all held-out lines once.
            The paper's Table 1 is the mean of 6,250 passes of one line.
        error: "ce", the paper's cross-entropy, or "kl", that less T's own entropy.
        vocab_size: the vocabulary that sizes count, 0 for the tokenizer's (RoBERTa's if nothing is trained).
        micro_batch_size: lines in memory at once, 0 for about 2,048 tokens of them.
        include: tuples to train whatever their interval, or outside of the space; they compete like the
        others.
    """

    depths: Tuple[int, ...] = tuple(PAPER_SPACE["depths"])
    heads: Tuple[int, ...] = tuple(PAPER_SPACE["heads"])
    hidden: Tuple[int, ...] = tuple(PAPER_SPACE["hidden"])
    intermediate: Tuple[int, ...] = tuple(PAPER_SPACE["intermediate"])
    epsilon: int = 2
    steps: int = 3
    batch_size: int = 1024
    max_length: int = 512
    lr: float = 5e-4
    clip: float = 1.0
    warmup_ratio: float = 0.05
    dropout: float = 0.1
    mask_ratio: float = 0.15
    counts: str = "exact"
    speed: str = "flops"
    speed_lines: int = 11828
    speed_batch_size: int = 0
    error: str = "ce"
    top: int = 3
    seed: int = 0
    vocab_size: int = 0
    micro_batch_size: int = 0
    include: Tuple[Architecture, ...] = ()
    trials: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("counts", ("exact", "lemma")), ("speed", ("flops", "measured")),
                              ("error", ("ce", "kl"))):
            if getattr(self, name) not in choices:
                raise BortError(f"--{name} is {' or '.join(choices)}, not {getattr(self, name)!r}")
        for name, least in (("epsilon", 1), ("steps", 0), ("batch_size", 1), ("max_length", 8),
                            ("speed_lines", 1), ("speed_batch_size", 0), ("top", 1), ("seed", 0),
                            ("vocab_size", 0), ("micro_batch_size", 0),
                            ("trials", 0)):
            if getattr(self, name) < least:
                raise BortError(f"--{name.replace('_', '-')} must be at least {least}, not "
                                f"{getattr(self, name)}")
        if not self.lr > 0 or self.clip < 0 or not 0 <= self.warmup_ratio < 1 or not 0 <= self.dropout < 1:
            raise BortError("--lr must be above 0, --clip at least 0, --warmup-ratio and --dropout in [0, 1)")

    @property
    def positions(self) -> int:
        """Rows of the position embedding of every network; RoBERTa's 512 unless lines are longer."""
        return max(512, self.max_length)

    @property
    def micro_batch(self) -> int:
        """Lines in memory at once."""
        return self.micro_batch_size or max(1, MICRO_BATCH_TOKENS // self.max_length)

    @property
    def lines(self) -> int:
        """Lines that the training steps and the held-out set take together."""
        return self.steps * self.batch_size + self.speed_lines

    @property
    def timed_lines(self) -> int:
        """Lines of a timed pass."""
        return self.speed_batch_size or self.micro_batch

    @property
    def passes(self) -> int:
        """Timed passes of every network."""
        return self.trials or -(-self.speed_lines // self.timed_lines)

    @property
    def space(self) -> List[Architecture]:
        """Xi without the impossible tuples."""
        space = search_space(self.depths, self.heads, self.hidden, self.intermediate)
        if self.epsilon > len(space):
            raise BortError(f"--epsilon must be at most the size of the search space ({len(space)}), not "
                            f"{self.epsilon}")
        return space
