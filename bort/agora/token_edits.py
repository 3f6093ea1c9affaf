"""Agora's transformations on token ids (the paper's tau-function, section 5), as far as they need no network.

A sequence is what a model takes: ``<s> A </s>`` or ``<s> A </s> B </s>``, int32 of shape (T,). Special tokens
stay where they are, and so does everything between two span markers (WSC, WiC): whose span that is must not
change. What the paper
does not say is ours: the kinds of transformation and their rates.

Every draw comes from an explicit generator, so the same draw of the same sequence gives the same result in
any company.
"""
from __future__ import annotations

import hashlib
from typing import Dict, Iterable, List, Sequence, Tuple

import numpy as np

from bort.errors import BortError
from bort.text.tokenizers.base import Tokenizer

KINDS = ("mlm", "noise", "embedding")
"""Names of the transformations; ``mlm`` needs a network and is in ``bort.agora.tau``."""


def digest(token_ids: np.ndarray) -> bytes:
    """16 bytes that stand for a sequence: equal for equal ids, whatever their integer type."""
    return hashlib.blake2b(np.ascontiguousarray(token_ids, dtype="<i4").tobytes(), digest_size=16).digest()


class Known:
    """The sequences that must not be made again."""

    def __init__(self, *sets: Iterable[np.ndarray]) -> None:
        self._digests = {digest(ids) for sequences in sets for ids in sequences}

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, token_ids: np.ndarray) -> bool:
        return digest(token_ids) in self._digests

    def add(self, token_ids: np.ndarray) -> bool:
        """Remember a sequence; whether it is new."""
        key = digest(token_ids)
        fresh = key not in self._digests
        self._digests.add(key)
        return fresh


class Alphabet:
    """What a transformation must know of a vocabulary of V tokens.

    Attributes:
        special: bool (V,), tokens that are neither replaced nor inserted.
        starts: bool (V,), tokens that begin a word.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.special = np.zeros(tokenizer.vocab_size, dtype=bool)
        self.special[sorted(tokenizer.special_ids)] = True
        self.starts = tokenizer.word_starts()
        self.eos_id, self.marker_id = tokenizer.eos_id, tokenizer.marker_id

    def locked(self, token_ids: np.ndarray) -> np.ndarray:
        """bool (T,): special tokens, and everything from a marker to the next one (or to the segment's
        end)."""
        locked = self.special[token_ids]
        markers = token_ids == self.marker_id
        if not markers.any():
            return locked
        inside = False
        for place, token in enumerate(token_ids.tolist()):
            if token == self.eos_id:
                inside = False
            elif token == self.marker_id:
                inside = not inside
            elif inside:
                locked[place] = True
        return locked


def segments(token_ids: Sequence[int], tokenizer: Tokenizer) -> List[List[int]]:
    """The token ids of A, or of A and B, without ``<s>`` and ``</s>``."""
    parts: List[List[int]] = [[]]
    for token in np.asarray(token_ids).tolist():
        if token == tokenizer.eos_id:
            parts.append([])
        elif token != tokenizer.bos_id:
            parts[-1].append(token)
    return parts[:-1] if len(parts) > 1 and not parts[-1] else parts


def texts(token_ids: Sequence[int], tokenizer: Tokenizer) -> List[str]:
    """The texts of :func:`segments`; a span's markers are :attr:`Tokenizer.MARKER`."""
    return [tokenizer.decode(part) for part in segments(token_ids, tokenizer)]


def choose_places(free: np.ndarray, rng: np.random.Generator, rate: float) -> np.ndarray:
    """Each of the places ``free`` with probability ``rate``, ascending; at least one of them if there is
    any."""
    chosen = free[rng.random(len(free)) < rate]
    if not len(chosen) and len(free):
        chosen = free[[int(rng.integers(len(free)))]]
    return chosen


def words(token_ids: np.ndarray, alphabet: Alphabet) -> List[Tuple[int, int, bool]]:
    """Words as (begin, end, whether it may be changed), in order and without gaps; a locked token is one of
    its own."""
    locked, starts = alphabet.locked(token_ids), alphabet.starts[token_ids]
    begins = [place for place in range(len(token_ids))
              if place == 0 or locked[place] or locked[place - 1] or starts[place]]
    return [(begin, end, not locked[begin]) for begin, end in zip(begins, [*begins[1:], len(token_ids)])]


class Noise:
    """Drop a word, swap it with the next one, or repeat it: each word with probability ``rate``, at least
    one.

    Args:
        tokenizer: of the sequences.
        rate: probability of a change at each word.
        max_length: longest sequence allowed; nothing is repeated beyond it.
    """

    kind = "noise"
    DROP, SWAP, REPEAT = 0, 1, 2

    def __init__(self, tokenizer: Tokenizer, rate: float, max_length: int) -> None:
        self.alphabet, self.rate, self.max_length = Alphabet(tokenizer), _checked(rate), max_length

    def __call__(self, rows: Sequence[np.ndarray], draws: Sequence[Sequence[int]],
                 patterns: Sequence[int] = ()) -> List[np.ndarray]:
        """Transform each sequence with the generator seeded by its draw; ``patterns`` are for
        ``bort.agora.tau`` alone."""
        return [self.change(np.asarray(row), np.random.default_rng(list(draw))) for row,
                draw in zip(rows, draws)]

    def change(self, token_ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A changed copy, int32; as it was when nothing may be changed. A segment never loses its last
        word."""
        parts = words(token_ids, self.alphabet)
        free = np.array([index for index, (_, _, may) in enumerate(parts) if may], dtype=np.int64)
        order = list(range(len(parts)))
        length = len(token_ids)
        left = self._words_by_segment(token_ids, parts)
        for index in choose_places(free, rng, self.rate).tolist():
            action, place = int(rng.integers(3)), order.index(index)
            begin, end, _ = parts[index]
            following = order[place + 1] if place + 1 < len(order) else None
            if action == self.SWAP and following is not None and parts[following][2]:
                order[place], order[place + 1] = following, index
            elif action == self.REPEAT and length + end - begin <= self.max_length:
                order.insert(place, index)
                length += end - begin
            elif action == self.DROP and left[index][0] > 1:
                order.remove(index)
                left[index][0] -= 1
                length -= end - begin
        return np.concatenate([token_ids[parts[index][0]:parts[index][1]] for index in order]).astype(
                                                                                                      np.int32)

    def _words_by_segment(self, token_ids: np.ndarray, parts: List[Tuple[int, int, bool]]) -> List[List[int]]:
        """For each word a counter, shared within its segment, of the words there that may be changed."""
        counter, counters = [0], []
        for begin, _, may in parts:
            if token_ids[begin] == self.alphabet.eos_id:
                counter = [0]
            counter[0] += may
            counters.append(counter)
        return counters


class Neighbours:
    """Replace tokens by near ones in the word embedding: each with probability ``rate``, at least one.

    A token's neighbours are the ``top_k`` others of the highest cosine that begin a word if it does and are
    not special; one of them is drawn evenly. They are found when they are first needed and then kept.

    Args:
        tokenizer: of the sequences.
        matrix: float32 (V, H), the word embedding.
    """

    kind = "embedding"
    CHUNK = 256

    def __init__(self, tokenizer: Tokenizer, matrix: np.ndarray, rate: float, top_k: int) -> None:
        if len(matrix) != tokenizer.vocab_size:
            raise BortError(f"an embedding of {len(matrix)} rows does not belong to a vocabulary of "
                            f"{tokenizer.vocab_size}: tau needs a model of the student's tokenizer")
        self.alphabet, self.rate = Alphabet(tokenizer), _checked(rate)
        self._vectors = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
        self._known: Dict[int, np.ndarray] = {}
        ordinary = ~self.alphabet.special
        smallest = min((ordinary & self.alphabet.starts).sum(), (ordinary & ~self.alphabet.starts).sum())
        self.top_k = int(max(0, min(top_k, smallest - 1)))

    def neighbours(self, tokens: np.ndarray) -> np.ndarray:
        """The nearest others of each token, nearest first: int64 (N, k)."""
        unknown = [token for token in np.unique(tokens).tolist() if token not in self._known]
        for start in range(0, len(unknown), self.CHUNK):
            chunk = np.asarray(unknown[start:start + self.CHUNK])
            # Always the same shape: a matrix product of another shape may round, and so rank, differently.
            padded = np.concatenate([chunk, np.repeat(chunk[:1], self.CHUNK - len(chunk))])
            cosine = (self._vectors[padded] @ self._vectors.T)[:len(chunk)]
            cosine[:, self.alphabet.special] = -np.inf
            cosine[self.alphabet.starts[chunk][:, None] != self.alphabet.starts[None, :]] = -np.inf
            cosine[np.arange(len(chunk)), chunk] = -np.inf
            places, _ = largest(cosine, self.top_k)
            self._known.update(zip(chunk.tolist(), places))
        return np.stack([self._known[token] for token in np.asarray(tokens).tolist()])

    def __call__(self, rows: Sequence[np.ndarray], draws: Sequence[Sequence[int]],
                 patterns: Sequence[int] = ()) -> List[np.ndarray]:
        """Transform each sequence with the generator seeded by its draw."""
        generators = [np.random.default_rng(list(draw)) for draw in draws]
        changed = [np.array(row, dtype=np.int32) for row in rows]
        places = [choose_places(np.flatnonzero(~self.alphabet.locked(row)), rng, self.rate)
                  for row, rng in zip(changed, generators)]
        if self.top_k and any(map(len, places)):  # all that is wanted at once: a product serves many tokens
            self.neighbours(np.concatenate([row[chosen] for row, chosen in zip(changed, places)]))
            for row, rng, chosen in zip(changed, generators, places):
                if len(chosen):
                    near = self.neighbours(row[chosen])
                    row[chosen] = near[np.arange(len(chosen)), rng.integers(self.top_k, size=len(chosen))]
        return changed


def largest(values: np.ndarray, count: int, block: int = 64) -> Tuple[np.ndarray, np.ndarray]:
    """Places and values of the ``count`` largest entries of each row, descending: int64 and float (N, count).

    Exact, and faster than sorting a vocabulary: the largest entries lie in the blocks of the largest maxima.
    Of equal entries the first comes first.
    """
    rows, width = values.shape
    count = min(count, width)
    blocks = -(-width // block)
    if count == 0:
        return np.zeros((rows, 0), dtype=np.int64), np.zeros((rows, 0), dtype=values.dtype)
    if blocks > 2 * count:
        padded = values if width == blocks * block else np.pad(
            values, ((0, 0), (0, blocks * block - width)), constant_values=-np.inf)
        maxima = padded.reshape(rows, blocks, block).max(axis=2)
        chosen = np.sort(np.argsort(-maxima, axis=1, kind="stable")[:, :count], axis=1)
        places = (chosen[:, :, None] * block + np.arange(block)).reshape(rows, -1)
        candidates = np.take_along_axis(padded, places, axis=1)  # -inf beyond the row's end
        places = np.minimum(places, width - 1)
    else:
        places, candidates = np.broadcast_to(np.arange(width), values.shape), values
    order = np.argsort(-candidates, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(places, order, axis=1).astype(np.int64), np.take_along_axis(candidates, order,
                                                                                          axis=1)


def _checked(rate: float) -> float:
    if not 0 < rate <= 1:
        raise BortError(f"--tau-rate is a share above 0 and at most 1, not {rate}")
    return rate
