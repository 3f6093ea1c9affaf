"""Dynamic masking (section 4.2 of the paper, after RoBERTa): a fresh choice of masked tokens at every pass.

What is masked in an example is a pure function of (seed, epoch, example, position): a counter-based generator
(SplitMix64) is evaluated for all tokens of a batch at once. It therefore depends neither on the other
examples of the batch, nor on padding, nor on the number of ranks, and a resumed run sees the masks of an
uninterrupted one.
"""

from __future__ import annotations

from typing import Iterable, NamedTuple, Optional

import numpy as np

from bort.errors import BortError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)
# Values drawn for each position: the order in which tokens are chosen,
# what happens to one, what may replace it.
_ORDER, _ACTION, _REPLACEMENT, _DRAWS = 0, 1, 2, 3


class MaskedBatch(NamedTuple):
    """A batch for the masked language model; B sequences of T tokens, M masked positions at most.

    Attributes:
        inputs: int32 (B, T), the token ids with the chosen ones replaced.
        positions: int32 (B, M), where the chosen tokens are, ascending; 0 where a sequence has fewer than M.
        labels: int32 (B, M), the tokens that were there; 0 where a sequence has fewer than M.
        weights: float32 (B, M), 1 for a chosen token, 0 where a sequence has fewer than M.
    """

    inputs: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def _mix(state: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of uint64."""
    state = state ^ (state >> np.uint64(30))
    state = state * np.uint64(0xBF58476D1CE4E5B9)
    state = state ^ (state >> np.uint64(27))
    state = state * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _stream_keys(seed: int, epoch: int, example_ids: np.ndarray) -> np.ndarray:
    """uint64 (B,): where the generator of each example starts."""
    key = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64) + _GOLDEN)
    key = _mix((key ^ np.uint64(epoch & 0xFFFFFFFFFFFFFFFF)) + _GOLDEN)
    return _mix((key ^ np.asarray(example_ids).astype(np.int64).astype(np.uint64)) + _GOLDEN)


def _draw(keys: np.ndarray, positions: np.ndarray, which: int) -> np.ndarray:
    """uint64 random bits for (example, position); ``keys`` and ``positions`` broadcast."""
    counter = positions.astype(np.uint64) * np.uint64(_DRAWS) + np.uint64(which + 1)
    return _mix(keys + counter * _GOLDEN)


def _unit(bits: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from the 53 leading bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class MaskingPolicy:
    """Chooses ``ratio`` of a sequence's ordinary tokens; of these, most become the mask, some a random token.

    Per sequence with n tokens that are neither special nor padding, max(1, floor(ratio * n + 1/2)) are
    chosen, none when n is 0. A chosen token becomes ``mask_id`` with probability ``mask_prob``, a token drawn
    evenly from the ordinary ones with ``random_prob``, and stays as it is otherwise (80, 10 and 10% in the
    paper).

    With ``word_starts``, whole words are chosen, in random order, as long as the middle of the next one is
    still within the number above: the number is then right on average and not for each sequence; at least one
    word is chosen.
    """

    def __init__(
        self,
        vocab_size: int,
        mask_id: int,
        special_ids: Iterable[int],
        ratio: float = 0.15,
        mask_prob: float = 0.8,
        random_prob: float = 0.1,
        word_starts: Optional[np.ndarray] = None,
    ) -> None:
        """Set the policy.

        Args:
            vocab_size: V.
            mask_id: what a masked token becomes.
            special_ids: never chosen and never drawn as a replacement; ``mask_id`` is always one of them.
            ratio: share of the tokens to choose, above 0 and at most 1.
            mask_prob, random_prob: see above; their sum is at most 1.
            word_starts: bool (V,), whether a token begins a word (``Tokenizer.word_starts()``),
                for whole words.

        Raises:
            BortError: a setting is out of range, or no ordinary token is left.
        """
        if not 0 < ratio <= 1:
            raise BortError(f"the masking ratio must be above 0 and at most 1, not {ratio}")
        if mask_prob < 0 or random_prob < 0 or not mask_prob + random_prob <= 1 + 1e-9:
            raise BortError(
                f"mask_prob {mask_prob} and random_prob {random_prob} must be probabilities that "
                "add up to at most 1"
            )
        special = sorted({int(index) for index in special_ids} | {int(mask_id)})
        if special[0] < 0 or special[-1] >= vocab_size:
            raise BortError(f"special token ids {special} do not fit a vocabulary of {vocab_size}")
        if word_starts is not None and np.shape(word_starts) != (vocab_size,):
            raise BortError(f"word_starts has the shape {np.shape(word_starts)} for {vocab_size} tokens")
        self.vocab_size, self.mask_id, self.ratio = int(vocab_size), int(mask_id), float(ratio)
        self.mask_prob, self.random_prob = float(mask_prob), float(random_prob)
        self._ordinary = np.ones(vocab_size, dtype=bool)
        self._ordinary[special] = False
        self._replacements = np.flatnonzero(self._ordinary).astype(np.int32)
        if not len(self._replacements):
            raise BortError(f"all {vocab_size} tokens of the vocabulary are special; nothing is left to mask")
        self._starts = None if word_starts is None else np.asarray(word_starts, dtype=bool)

    def mask_batch(
        self, token_ids: np.ndarray, valid_length: np.ndarray, seed: int, epoch: int, example_ids: np.ndarray
    ) -> MaskedBatch:
        """Mask a padded batch.

        Args:
            token_ids: integers (B, T); left as they are.
            valid_length: (B,), tokens before the padding of each sequence.
            seed, epoch: the run's seed and the pass over the data.
            example_ids: integers (B,), an identity for each example that does not change between passes.

        Raises:
            BortError: shapes that do not fit together, or an id or length out of range.
        """
        ids, lengths, examples = self._checked(token_ids, valid_length, example_ids)
        batch, length = ids.shape
        positions = np.arange(length)
        maskable = self._ordinary[ids] & (positions < lengths[:, None])
        keys = _stream_keys(seed, epoch, examples)[:, None]
        count = maskable.sum(axis=1)
        wanted = np.where(count > 0, np.maximum(1, np.floor(self.ratio * count + 0.5)), 0).astype(np.int64)
        order = np.where(maskable, _draw(keys, positions, _ORDER), _LAST)
        if self._starts is None:
            chosen = _smallest(order, wanted) & maskable
        else:
            chosen = self._whole_words(ids, maskable, order, wanted) & maskable
        rows, columns = np.nonzero(chosen)
        per_row = np.bincount(rows, minlength=batch)
        width = max(1, int(per_row.max(initial=0)))
        place = np.arange(len(rows)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
        out_positions, labels = np.zeros((batch, width), np.int32), np.zeros((batch, width), np.int32)
        weights = np.zeros((batch, width), np.float32)
        out_positions[rows, place] = columns
        labels[rows, place] = ids[rows, columns]
        weights[rows, place] = 1
        inputs = ids.astype(np.int32)
        inputs[rows, columns] = self._replaced(ids[rows, columns], keys[rows, 0], columns)
        return MaskedBatch(inputs, out_positions, labels, weights)

    def _checked(self, token_ids, valid_length, example_ids):
        ids, lengths, examples = np.asarray(token_ids), np.asarray(valid_length), np.asarray(example_ids)
        if ids.ndim != 2 or lengths.shape != ids.shape[:1] or examples.shape != ids.shape[:1]:
            raise BortError(
                "masking takes token_ids (B, T), valid_length (B,) and example_ids (B,), not "
                f"{ids.shape}, {lengths.shape} and {examples.shape}"
            )
        if not np.issubdtype(ids.dtype, np.integer) or not np.issubdtype(examples.dtype, np.integer):
            raise BortError(f"token and example ids must be integers, not {ids.dtype} and {examples.dtype}")
        if ids.size and not (0 <= ids.min() and ids.max() < self.vocab_size):
            raise BortError(
                f"token ids from {ids.min()} to {ids.max()} do not fit a vocabulary of {self.vocab_size}"
            )
        if lengths.size and not (0 <= lengths.min() and lengths.max() <= ids.shape[1]):
            raise BortError(
                f"valid lengths from {lengths.min()} to {lengths.max()} do not fit {ids.shape[1]} columns"
            )
        return ids, lengths, examples

    def _replaced(self, tokens: np.ndarray, keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
        action = _unit(_draw(keys, positions, _ACTION))
        drawn = _unit(_draw(keys, positions, _REPLACEMENT))
        random = self._replacements[(drawn * len(self._replacements)).astype(np.int64)]
        replaced = np.where(action < self.mask_prob + self.random_prob, random, tokens)
        return np.where(action < self.mask_prob, self.mask_id, replaced)

    def _whole_words(
        self, ids: np.ndarray, maskable: np.ndarray, order: np.ndarray, wanted: np.ndarray
    ) -> np.ndarray:
        assert self._starts is not None
        batch, length = ids.shape
        positions = np.arange(length)
        after_other = np.ones_like(maskable)
        after_other[:, 1:] = ~maskable[:, :-1]
        begins = maskable & (self._starts[ids] | after_other)
        first = np.maximum.accumulate(np.where(begins, positions, 0), axis=1)
        # All tokens of a word share the order of its first token; a stable sort then keeps words together.
        order = np.where(maskable, np.take_along_axis(order, first, axis=1), _LAST)
        ranked = np.argsort(order, axis=1, kind="stable")
        in_order = np.where(
            np.take_along_axis(maskable, ranked, axis=1), np.take_along_axis(first, ranked, axis=1), length
        )
        new_word = np.ones_like(maskable)
        new_word[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
        before = np.maximum.accumulate(np.where(new_word, positions, 0), axis=1)
        size = np.bincount((before + length * np.arange(batch)[:, None]).ravel(), minlength=batch * length)
        size = size.reshape(batch, length)
        middle = before + 0.5 * np.take_along_axis(size, before, axis=1)
        taken = (middle <= wanted[:, None]) | ((before == 0) & (wanted[:, None] > 0))
        chosen = np.zeros_like(maskable)
        np.put_along_axis(chosen, ranked, taken, axis=1)
        return chosen


def _smallest(order: np.ndarray, count: np.ndarray) -> np.ndarray:
    """bool (B, T): the ``count[b]`` smallest entries of each row (a tie has probability 2**-64 or so)."""
    if not order.size:
        return np.zeros(order.shape, dtype=bool)
    limits = np.sort(order, axis=1)[np.arange(len(order)), np.maximum(count - 1, 0)]
    return (order <= limits[:, None]) & (count > 0)[:, None]
