"""Is an MLM head trained? A test that a random head on a good body fails, whatever the vocabulary.

Single words of plain sentences are masked, one at a time: N masks with N true tokens. Two figures decide.

* **Surprise**: the mean negative log-probability of the true token, in nats. Scores that know nothing of the
  language give every token the same distribution, and then the mean over tokens of -log p is at least log V
  (Jensen), so a random head is not below it except by the noise of the sample. A head that learned no more
  than which words are frequent is far below.
* **Context**: the sum of the true tokens' scores against the same sum with the true tokens permuted among the
  masks, as a z-score over permutations. A preference for some tokens, or for being sure at some masks, adds
  the same to every permutation and cancels; only matching tokens to their contexts counts. A random head
  matches nothing on purpose, but as hidden states and embeddings of a trained body resemble each other, its
  z-score scatters more widely than 1. How widely is measured: with random matrices in place of the head's
  own. The figure is the z-score in units of that.
"""
from __future__ import annotations

import math
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from bort.batching import pad_batch
from bort.errors import BortError
from bort.probabilities import log_softmax
from bort.text.tokenizers.base import Tokenizer

MIN_CONTEXT = 4.0
"""Context figure from which a head is trained: four standard deviations of what random heads reach."""
CONTROLS = 32
"""Random heads that the head is compared with."""
MIN_GAIN = 0.5
"""Nats below log V from which a head knows at least the frequencies of words."""
MIN_MASKS = 20
PERMUTATIONS = 500
MASKS_PER_SENTENCE = 3
MAX_TOKENS = 64
BATCH = 16

SENTENCES = (
    "The sun rises in the east and sets in the west.",
    "She opened the door, walked into the room and sat down on a chair.",
    "There are seven days in a week and twelve months in a year.",
    "He drank a cup of coffee and read the morning paper before he went to work.",
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "In winter the days are short and the nights are long and cold.",
    "The children played in the garden until their mother called them for dinner.",
    "The train left the station ten minutes late because of the snow.",
    "Most birds build their nests in trees, where they lay their eggs.",
    "He put on his coat and his hat, for it had begun to rain.",
    "The ship sailed across the sea and reached the island after three weeks.",
    "My brother is two years older than my sister.",
    "The president gave a speech to the people of the country on Monday.",
    "You can not buy what you want if you do not have enough money.",
    "The old man told a long story about the war and the years after it.",
    "Water turns to ice when it is cold and to steam when it is hot.",
    "They won the game by two points in the last minute.",
    "The book was written by an English author in the nineteenth century.",
    "A doctor at the hospital said that the patient would be home by the end of the week.",
    "The company will open a new office in New York next year.",
    "The river runs through the middle of the city and into the sea.",
    "I do not know what time it is, but I think that we are late.",
    "The police found the car two days later on the side of a road.",
    "Students at this school learn to read and write in their first year.",
    "The king and the queen lived in a large house with many rooms.",
    "Dogs are good friends to people, and so are cats and horses.",
    "The number of people who live in the city has grown every year.",
    "If you go to the north of the country, take warm clothes with you.",
    "The first part of the film was better than the second.",
    "We had bread, cheese and a glass of red wine for lunch.",
    "The door was closed, so he looked through the window.",
    "Scientists at the university have found a new way to make paper out of grass.",
    "It was dark outside, and no one could see the stars because of the clouds.",
    "The teacher asked a question, but none of the students knew the answer.",
    "The town has a church, a school, a small shop and one hotel.",
    "One hand washes the other, and both wash the face.",
)


class Verdict(NamedTuple):
    """The probe's outcome: ``head`` is "trained", "frequencies" (knows words but no contexts) or "random"."""

    head: str
    surprise: float
    uniform: float
    context: float
    masks: int

    def __str__(self) -> str:
        return (f"{self.surprise:.2f} nats at the true token (a uniform guess: {self.uniform:.2f}), context "
                f"{self.context:.1f} times what random heads reach, {self.masks} masks")


def choose_masks(tokenizer: Tokenizer, sentences: Sequence[str], max_length: int,
                 seed: int = 0) -> Tuple[List[np.ndarray], np.ndarray, np.ndarray]:
    """Sequences with one masked token each (N arrays of int32), the masked positions (N,) and the true ids
    (N,).

    Masked are words that are one token and not repeated too often among the masks; all draws
    come from ``seed``.

    Raises:
        BortError: the sentences have too few such words in this vocabulary.
    """
    rng = np.random.default_rng(seed)
    starts = tokenizer.word_starts()
    room = min(max_length, MAX_TOKENS) - 2
    used: Dict[int, int] = {}
    rows: List[np.ndarray] = []
    positions: List[int] = []
    truth: List[int] = []
    for ids in tokenizer.encode_batch(list(sentences)):
        ids = ids[:room]
        single = [place for place, token in enumerate(ids) if token not in tokenizer.special_ids
                  and starts[token] and (place + 1 == len(ids) or starts[ids[place + 1]])
                  and any(char.isalpha() for char in tokenizer.id_to_token(token).strip("Ġ▁"))]
        taken = 0
        for place in rng.permutation(np.asarray(single, dtype=np.int64)).tolist():
            token = ids[place]
            if taken < MASKS_PER_SENTENCE and used.get(token, 0) < 2:
                used[token] = used.get(token, 0) + 1
                taken += 1
                masked = list(ids)
                masked[place] = tokenizer.mask_id
                rows.append(np.asarray([tokenizer.bos_id, *masked, tokenizer.eos_id], dtype=np.int32))
                positions.append(place + 1)
                truth.append(token)
    if len(rows) < MIN_MASKS:
        raise BortError(f"only {len(rows)} words of the probe's sentences are single tokens of this "
                        f"vocabulary, at least {MIN_MASKS} are needed; give text in its language with --text "
                        "FILE")
    return rows, np.asarray(positions), np.asarray(truth)


def head_scores(model: Any, tokenizer: Tokenizer, rows: Sequence[np.ndarray], positions: np.ndarray,
                truth: np.ndarray, seed: int = 0) -> Tuple[np.ndarray, np.ndarray, List[np.ndarray]]:
    """What the model's head and random heads say at the masks.

    Returns:
        The surprise at each mask (N,); the head's scores, entry (i, j) that of mask j's true token at mask i;
        and such matrices of :data:`CONTROLS` heads whose first matrix is drawn anew with the same deviation.
        All float64.
    """
    from bort.backend.mxnet import mx

    hidden, surprise = [], []
    for start in range(0, len(rows), BATCH):
        part = slice(start, start + BATCH)
        token_ids, valid_length = pad_batch(rows[part], tokenizer.pad_id, model.max_length)
        sequence = model(mx.nd.array(token_ids, dtype="int32"), mx.nd.array(valid_length))
        place = mx.nd.array([np.arange(len(token_ids)), positions[part]], dtype="int32")           # (2, B)
        at_masks = mx.nd.gather_nd(sequence, place)                                                # (B, H)
        scores = model.decoder(at_masks).asnumpy().astype(np.float64)                              # (B, V)
        surprise.append(-log_softmax(scores)[np.arange(len(scores)), truth[part]])
        hidden.append(at_masks.asnumpy())
    states = mx.nd.array(np.concatenate(hidden))                                                  # (N, H)
    dense, activation, layer_norm, project = (model.decoder[index] for index in range(4))
    words = mx.nd.take(project.weight.data(), mx.nd.array(truth))                                  # (N, H)
    bias = mx.nd.take(project.bias.data(), mx.nd.array(truth))

    def score(matrix: Any) -> np.ndarray:
        inner = mx.nd.broadcast_add(mx.nd.dot(states, matrix, transpose_b=True), dense.bias.data())
        inner = layer_norm(activation(inner))
        return mx.nd.broadcast_add(mx.nd.dot(inner, words, transpose_b=True),
                                   bias).asnumpy().astype(np.float64)

    own = dense.weight.data()
    rng = np.random.default_rng([seed, 1])
    deviation = float(own.asnumpy().std()) or 0.02
    controls = [score(mx.nd.array(rng.normal(0, deviation, own.shape))) for _ in range(CONTROLS)]
    return np.concatenate(surprise), score(own), controls


def pairing(scores: np.ndarray, permutations: np.ndarray) -> float:
    """z-score of the true pairing, the diagonal of (N, N) ``scores``, among ``permutations`` (K, N) of it."""
    rows = np.arange(len(scores))
    permuted = scores[rows, permutations].mean(axis=1)
    deviation = float(permuted.std())
    return (float(np.diagonal(scores).mean()) - float(permuted.mean())) / deviation if deviation > 0 else 0.0


def judge(surprise: np.ndarray, scores: np.ndarray, controls: Sequence[np.ndarray], vocab_size: int,
          seed: int = 0) -> Verdict:
    """The verdict on what :func:`head_scores` gives."""
    rng = np.random.default_rng(seed)
    permutations = np.asarray([rng.permutation(len(scores)) for _ in range(PERMUTATIONS)])
    scatter = math.sqrt(float(np.mean([pairing(control, permutations) ** 2 for control in controls])))
    context = pairing(scores, permutations) / max(1.0, scatter)
    mean, uniform = float(surprise.mean()), math.log(vocab_size)
    if not math.isfinite(mean) or not math.isfinite(context):
        head = "random"
    elif context >= MIN_CONTEXT and mean < uniform:
        head = "trained"
    else:
        head = "frequencies" if mean < uniform - MIN_GAIN else "random"
    return Verdict(head, mean, uniform, context, len(scores))


def probe(model: Any, tokenizer: Tokenizer, sentences: Optional[Sequence[str]] = None,
          seed: int = 0) -> Verdict:
    """Test the MLM head of a ``Bert``.

    Args:
        model: the network with its tokenizer.
        sentences: in the model's language, instead of :data:`SENTENCES`.
        seed: of the choice of masks and of the permutations.

    Raises:
        BortError: the sentences do not suit the vocabulary.
    """
    rows, positions, truth = choose_masks(tokenizer, sentences or SENTENCES, model.max_length, seed)
    surprise, scores, controls = head_scores(model, tokenizer, rows, positions, truth, seed)
    return judge(surprise, scores, controls, model.vocab_size, seed)
