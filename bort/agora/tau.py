"""The tau-function of Agora with its network: masked tokens refilled by a masked language model, and all
kinds together.

Speed comes from batches of one shape, from logits at the masked positions only, and from keeping what the
network said: its proposals depend on the sequence and on which of its tokens are masked, not on the run's
seed, so runs with other seeds, replays and ablations in one process share them.
"""
from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from bort.agora.token_edits import KINDS, Alphabet, Neighbours, Noise, choose_places, digest, largest
from bort.backend import distributed
from bort.engines.base import Engine, EngineOptions, Work, preferred
from bort.engines.engine import open_engine
from bort.errors import BortError
from bort.models import Bert
from bort.text.tokenizers.base import Tokenizer

BATCH = 32
"""Rows of every batch through the network; a fixed number, so that a row's result does not depend on its
company."""
EXPECTED_ROUNDS = 10
LENGTH_MULTIPLE = 16
MASKED_MULTIPLE = 4
MAX_PROPOSALS = 200_000


class Proposals(NamedTuple):
    """What the network offers for one masked sequence.

    Attributes:
        places: int64 (M,), the masked positions.
        tokens: int32 (M, k), the most probable tokens there, best first, without the one that was there.
        cumulated: float64 (M, k), their cumulated probabilities, which end at 1.
    """

    places: np.ndarray
    tokens: np.ndarray
    cumulated: np.ndarray


class MaskedRefill:
    """Mask each token with probability ``rate`` (at least one) and draw another from the ``top_k`` most
    probable.

    Args:
        model: a pre-trained network of the student's vocabulary with its MLM head.
        tokenizer: of the sequences.
    """

    kind = "mlm"

    def __init__(self, model: Bert, tokenizer: Tokenizer, rate: float, top_k: int) -> None:
        self.model, self.tokenizer, self.rate = model, tokenizer, rate
        self.alphabet = Alphabet(tokenizer)
        self.top_k = min(top_k, int((~self.alphabet.special).sum()) - 1)
        self._known: Dict[Tuple[bytes, int], Proposals] = {}
        self._engine: Optional[Engine] = None
        self.answered = 0

    def __call__(self, rows: Sequence[np.ndarray], draws: Sequence[Sequence[int]], patterns: Sequence[int]
                 ) -> List[np.ndarray]:
        """Transform sequences.

        Args:
            rows: N int32 sequences.
            draws: the seed of each one's refills.
            patterns: the number of each one's mask: the same number masks the same tokens of the same
                sequence.
        """
        keys = [(digest(row), int(pattern)) for row, pattern in zip(rows, patterns)]
        self._propose({key: row for key, row in zip(keys, rows) if key not in self._known})
        changed = []
        for row, draw, key in zip(rows, draws, keys):
            row, proposals = np.array(row, dtype=np.int32), self._known[key]
            uniform = np.random.default_rng(list(draw)).random(len(proposals.places))
            choice = (proposals.cumulated < uniform[:, None]).sum(axis=1)
            row[proposals.places] = np.take_along_axis(
                proposals.tokens, np.minimum(choice, self.top_k - 1)[:, None], axis=1)[:, 0]
            changed.append(row)
        while len(self._known) > MAX_PROPOSALS:
            self._known.pop(next(iter(self._known)))
        return changed

    def _propose(self, wanted: Dict[Tuple[bytes, int], np.ndarray]) -> None:
        """Ask the network about the sequences ``wanted``; every rank asks about its share and learns of
        all."""
        masks = {key: choose_places(np.flatnonzero(~self.alphabet.locked(np.asarray(row))),
                                    np.random.default_rng([key[1], *key[0]]), self.rate)
                 for key, row in wanted.items()}
        nothing = Proposals(np.zeros(0, np.int64), np.zeros((0, self.top_k), np.int32),
                            np.zeros((0, self.top_k)))
        self._known.update({key: nothing for key, places in masks.items() if not len(places)})
        shapes: Dict[Tuple[int, int], List[Tuple[bytes, int]]] = {}
        for key, places in masks.items():
            if len(places):
                shape = (_up(len(wanted[key]), LENGTH_MULTIPLE, self.model.max_length),
                         _up(len(places), MASKED_MULTIPLE))
                shapes.setdefault(shape, []).append(key)
        batches = [(shape, keys[start:start + BATCH]) for shape, keys in sorted(shapes.items())
                   for start in range(0, len(keys), BATCH)]
        if batches and self._engine is None:
            self._engine = self._open([shape[0] for shape, _ in batches])
        rank, size = distributed.rank(), distributed.size()
        for first in range(0, len(batches), size):  # one batch per rank and turn
            turn = batches[first:first + size]
            widest = max(shape[1] for shape, _ in turn)
            found = np.zeros((len(turn), 2, BATCH, widest, self.top_k), dtype=np.float32)
            if rank < len(turn):
                (length, masked), keys = turn[rank]
                tokens, probabilities = self._ask([wanted[key] for key in keys], [masks[key] for key in keys],
                                                  length, masked)
                found[rank, 0, :, :masked], found[rank, 1, :, :masked] = tokens, probabilities
            found = distributed.allreduce_sum(found)
            for (_, keys), (tokens, probabilities) in zip(turn, found):
                for number, key in enumerate(keys):
                    count = len(masks[key])
                    cumulated = np.cumsum(probabilities[number, :count].astype(np.float64), axis=1)
                    self._known[key] = Proposals(masks[key], tokens[number, :count].astype(np.int32),
                                                 cumulated / cumulated[:, -1:])
        self.answered += sum(len(keys) for _, keys in batches)

    def _open(self, lengths: Sequence[int]) -> Engine:
        """The engine for a network that is asked about batches of ``lengths``, and about as many again in
        later rounds. It answers in float32 where fewer bits would need data to calibrate on."""
        chosen = preferred()
        if chosen.precision in ("int8", "auto"):
            chosen = EngineOptions(chosen.kind)
        flops = sum(BATCH * self.model.architecture.flops(length) for length in lengths)
        return open_engine(self.model, "mlm", chosen, work=Work(EXPECTED_ROUNDS * flops, len(set(lengths))))

    def _ask(self, rows: List[np.ndarray], masks: List[np.ndarray], length: int, masked: int
             ) -> Tuple[np.ndarray, np.ndarray]:
        """Tokens and probabilities (BATCH, masked, k) for at most BATCH rows; surplus rows repeat the last
        one."""
        ids = np.full((BATCH, length), self.tokenizer.pad_id, dtype=np.int32)
        positions, valid = np.zeros((BATCH, masked), dtype=np.int32), np.ones(BATCH, dtype=np.float32)
        for number in range(BATCH):
            row, places = rows[min(number, len(rows) - 1)], masks[min(number, len(rows) - 1)]
            ids[number, :len(row)], valid[number] = row, len(row)
            ids[number, places] = self.tokenizer.mask_id
            positions[number, :len(places)] = places
        assert self._engine is not None
        scores = self._engine(ids, valid, positions).reshape(BATCH * masked, -1)
        scores[:, self.alphabet.special] = -np.inf
        originals = np.array([(rows[min(number, len(rows) - 1)][positions[number]])
                              for number in range(BATCH)])
        scores[np.arange(len(scores)), originals.reshape(-1)] = -np.inf
        tokens, best = largest(scores, self.top_k)
        # Rounded, so that the last bits of another machine's or thread count's arithmetic do not decide a
        # draw.
        weights = np.round(np.exp(best - best[:, :1]).astype(np.float64), 4)
        return (tokens.reshape(BATCH, masked, -1), (weights / weights.sum(axis=1, keepdims=True)).reshape(
            BATCH, masked, -1))


def _up(value: int, multiple: int, limit: Optional[int] = None) -> int:
    value = -(-value // multiple) * multiple
    return value if limit is None else min(value, limit)


class Tau:
    """Several kinds of transformation that take turns.

    Args:
        kinds: names out of :data:`bort.agora.token_edits.KINDS`, at least one.
        model: the network for "mlm" and the matrix for "embedding"; a classifier's body serves.
        tokenizer: the student's.
        rate: probability of a change at each token ("noise": at each word).
        top_k: how many candidates replace a token.
        max_length: longest sequence allowed.

    Raises:
        BortError: an unknown kind, or no model where one is needed.
    """

    def __init__(self, kinds: Sequence[str], model: Any, tokenizer: Tokenizer, rate: float, top_k: int,
                 max_length: int) -> None:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds or len(set(kinds)) != len(kinds):
            raise BortError(f"--tau {','.join(kinds)}: name each of {', '.join(KINDS)} at most once, or none")
        if top_k < 1:
            raise BortError(f"--tau-top-k must be at least 1, not {top_k}")
        body: Any = None if model is None else model.body  # noise alone needs no network
        made: Dict[str, Callable[[], Any]] = {
            "noise": lambda: Noise(tokenizer, rate, max_length),
            "mlm": lambda: MaskedRefill(body, tokenizer, rate, top_k),
            "embedding": lambda: Neighbours(tokenizer, body.word_vectors.data().asnumpy(), rate, top_k),
        }
        self.transformations = [made[kind]() for kind in kinds]

    def __call__(self, rows: Sequence[np.ndarray], draws: Sequence[Sequence[int]], patterns: Sequence[int],
                 turns: Sequence[int]) -> List[Tuple[str, np.ndarray]]:
        """The kind and the result for every sequence, in order.

        Args:
            rows, draws, patterns: see :class:`MaskedRefill`.
            turns: modulo the number of kinds, which of them each sequence gets.
        """
        results: List[Any] = [None] * len(rows)
        for number, transformation in enumerate(self.transformations):
            mine = [index for index in range(len(rows)) if turns[index] % len(self.transformations) == number]
            for index, row in zip(mine, transformation([rows[index] for index in mine],
                                                       [draws[index] for index in mine],
                                                       [patterns[index] for index in mine])):
                results[index] = (transformation.kind, row)
        return results
