"""Masked batches of a corpus in an order that only the seed and the epoch decide,
dealt out to ranks. No MXNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, NamedTuple, Optional, Protocol, Sequence, Tuple

import numpy as np

from bort.batching import pad_batch, share, shuffled_batches, token_groups
from bort.errors import BortError
from bort.masked_lm.masking import MaskingPolicy

EVALUATION_SEED = 0
EVALUATION_EPOCH = 0x45564C
"""Seed and epoch of the evaluation masks: the same for every run on the same data."""


class Sequences(Protocol):
    """What training needs of a corpus; :class:`bort.text.shards.ShardDataset` is one."""

    lengths: np.ndarray

    def __len__(self) -> int:
        """Number of sequences."""

    def __getitem__(self, index: int) -> np.ndarray:
        """Token ids of a sequence, ``<s>`` and ``</s>`` included."""


class MaskedLMBatch(NamedTuple):
    """B sequences of T tokens with N masked positions in all.

    Attributes:
        token_ids: int32 (B, T), masked.
        valid_length: float32 (B,).
        rows: int32 (N,), the masked positions counted through the batch, b * T + t; sequence by sequence,
        ascending.
        labels: int32 (N,), the tokens that were there.
        examples: int64 (B,), which sequences of the corpus these are.
        tokens: tokens of the batch that are not padding.
        mask_epoch: the epoch whose masks these are.
    """

    token_ids: np.ndarray
    valid_length: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    examples: np.ndarray
    tokens: int
    mask_epoch: int


def make_batch(
    data: Sequences,
    examples: np.ndarray,
    policy: MaskingPolicy,
    seed: int,
    mask_epoch: int,
    pad_id: int,
    max_length: int,
) -> MaskedLMBatch:
    """Read, pad and mask some sequences of a corpus."""
    ids, valid = pad_batch([data[int(index)] for index in examples], pad_id, max_length)
    masked = policy.mask_batch(ids, valid, seed, mask_epoch, examples)
    chosen = masked.weights > 0
    rows = (masked.positions + np.arange(len(ids), dtype=np.int32)[:, None] * ids.shape[1])[chosen]
    return MaskedLMBatch(
        masked.inputs,
        valid,
        rows.astype(np.int32),
        masked.labels[chosen],
        np.asarray(examples),
        int(valid.sum()),
        mask_epoch,
    )


def shuffled_token_batches(
    lengths: np.ndarray, max_tokens: int, parts: int, rng: np.random.Generator, window: int = 65536
) -> List[np.ndarray]:
    """One epoch of batches for ``parts`` shares of at most ``max_tokens`` padded tokens each (or one
    sequence).

    Every index is in exactly one batch; otherwise as :func:`bort.batching.shuffled_batches`.
    """
    order = rng.permutation(len(lengths))
    batches: List[np.ndarray] = []
    for begin in range(0, len(order), window):
        part = order[begin : begin + window]
        batches.extend(token_groups(lengths, part, max_tokens, parts))
    return [batches[index] for index in rng.permutation(len(batches))]


@dataclass(frozen=True)
class BatchPlan:
    """What decides the batches of a training.

    Attributes:
        batch_size: sequences per rank and micro-batch; ignored when ``max_tokens`` bounds the
            padded tokens instead.
        accumulate: micro-batches per step.
        seed: decides the order, and the masks where there is no ``mask_seed``.
        mask_passes: after this many epochs the masks repeat; 0 is fresh masks for ever.
        mask_seed: decides the masks alone, so that runs in another order can have the same ones.
    """

    seed: int
    batch_size: int = 8
    accumulate: int = 1
    max_tokens: int = 0
    mask_passes: int = 0
    mask_seed: Optional[int] = None


class BatchStream:
    """The endless sequence of global batches of one training, and a rank's share of each.

    A global batch is cut into ``size * accumulate`` shares, of which rank r takes every one congruent to r: K
    ranks, or K micro-batches, or one batch K times as large, see the same sequences at the same step.

    Args:
        data: the corpus.
        rank, size: which of how many ranks.

    Raises:
        BortError: the corpus is empty, or a sequence is longer than the model takes.
    """

    def __init__(
        self,
        data: Sequences,
        policy: MaskingPolicy,
        pad_id: int,
        max_length: int,
        plan: BatchPlan,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        check_corpus(data, max_length)
        self.data, self.policy, self.pad_id, self.max_length = data, policy, pad_id, max_length
        self.plan, self._rank, self._size = plan, rank, size
        self._mask_seed = plan.seed if plan.mask_seed is None else plan.mask_seed
        self.epoch, self.index = 0, 0
        self._planned: List[np.ndarray] = []
        self._planned_epoch: Optional[int] = None

    def _batches(self) -> List[np.ndarray]:
        plan = self.plan
        if self._planned_epoch != self.epoch:
            rng = np.random.default_rng([plan.seed, 0x4D4C4D, self.epoch])
            parts = self._size * plan.accumulate
            if plan.max_tokens:
                self._planned = shuffled_token_batches(self.data.lengths, plan.max_tokens, parts, rng)
            else:
                self._planned = shuffled_batches(self.data.lengths, plan.batch_size * parts, rng)
            self._planned_epoch = self.epoch
        return self._planned

    def steps_per_epoch(self) -> int:
        """Global batches of the present epoch."""
        return len(self._batches())

    def next(self) -> List[MaskedLMBatch]:
        """This rank's micro-batches of the next step; fewer at the end of an epoch,
        where they may run out."""
        if self.index >= len(self._batches()):
            self.epoch, self.index = self.epoch + 1, 0
        batch = self._batches()[self.index]
        self.index += 1
        mask_epoch = self.epoch % self.plan.mask_passes if self.plan.mask_passes else self.epoch
        parts = [
            share(batch, self._rank + self._size * turn, self._size * self.plan.accumulate)
            for turn in range(self.plan.accumulate)
        ]
        made = [
            make_batch(
                self.data, part, self.policy, self._mask_seed, mask_epoch, self.pad_id, self.max_length
            )
            for part in parts
            if len(part)
        ]
        return [part for part in made if len(part.rows)]


def check_corpus(data: Sequences, max_length: int) -> None:
    """Refuse a corpus that a model of ``max_length`` positions cannot be trained on.

    Raises:
        BortError: it is empty, or has longer sequences.
    """
    if not len(data):
        raise BortError("the corpus has no sequences in this split; prepare more text, or another --split")
    longest = int(np.max(data.lengths))
    if longest > max_length:
        raise BortError(
            f"the corpus has sequences of {longest} tokens, the model takes {max_length}; "
            f"prepare it with --max-length {max_length}"
        )


def evaluation_batches(
    data: Sequences, policy: MaskingPolicy, pad_id: int, max_length: int, max_tokens: int, limit: int
) -> Tuple[List[np.ndarray], Any]:
    """A fixed evaluation set: lists of sequences, and a function that makes a batch of one.

    The set is the first ``limit`` sequences (0: all) under masks that no seed changes.
    """
    count = min(len(data), limit) if limit else len(data)
    batches = list(token_groups(data.lengths, np.arange(count), max_tokens))

    def make(examples: Sequence[int]) -> MaskedLMBatch:
        return make_batch(
            data, np.asarray(examples), policy, EVALUATION_SEED, EVALUATION_EPOCH, pad_id, max_length
        )

    return batches, make
