"""The tau-function: what it never touches, what it may do, and that a draw gives the same result in any
company."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bort.agora.token_edits import (
    Alphabet,
    Known,
    Neighbours,
    Noise,
    choose_places,
    digest,
    largest,
    segments,
    texts,
    words,
)
from bort.errors import BortError
from bort.text.tokenizers.loading import Tokenizer, train_sentencepiece
from tests.tiny import TINY

M = Tokenizer.MARKER
LONGEST = 40
LINES = ["the dog barks at the red house", "a cat sleeps in the small garden",
         "dogs and cats run to the river", "the old man reads a long book",
         "she walks along the river at night", f"he saw {M}it{M} again"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece(LINES, 70)


def sequence(tokenizer, *parts):
    ids = [tokenizer.bos_id]
    for part in parts:
        ids += [*tokenizer.encode(part), tokenizer.eos_id]
    return np.array(ids, dtype=np.int32)


@pytest.fixture(scope="module")
def rows(tokenizer):
    return [sequence(tokenizer, "the dog barks at the red house"),
            sequence(tokenizer, "a cat", "the small garden"),
            sequence(tokenizer, f"the {M}old man{M} reads a book and {M}he{M} sleeps"),
            sequence(tokenizer, "dogs"), sequence(tokenizer, "she walks along", f"the {M}river{M} at night")]


def network(tokenizer):
    from bort.models import Bert, initialize

    model = Bert(TINY, tokenizer.vocab_size, max_length=LONGEST, dropout=0.1)
    initialize(model, 0)
    for name, parameter in model._collect_params_with_prefix().items():
        if name.endswith("weight") and name != "decoder.3.weight":
            parameter.set_data(parameter.data() * 20)
    return model


def transformations(tokenizer, rate=0.5):
    from bort.agora.tau import MaskedRefill

    model = network(tokenizer)
    matrix = model.word_embed[0].weight.data().asnumpy()
    return {"noise": Noise(tokenizer, rate, LONGEST), "embedding": Neighbours(tokenizer, matrix, rate, 5),
            "mlm": MaskedRefill(model, tokenizer, rate, 5)}


def spans(row, tokenizer):
    """What stands between markers, markers included, in order."""
    places = np.flatnonzero(row == tokenizer.marker_id)
    return [row[begin:end + 1].tolist() for begin, end in zip(places[::2], places[1::2])]


@pytest.mark.parametrize("kind", ["noise", "embedding", "mlm"])
def test_special_tokens_and_marked_spans_stay(tokenizer, rows, kind):
    transformation, changed = transformations(tokenizer)[kind], 0
    for seed in range(12):
        results = transformation(rows, [(seed, index) for index in range(len(rows))], [seed] * len(rows))
        for before, after in zip(rows, results):
            assert after.dtype == np.int32
            assert spans(after, tokenizer) == spans(before, tokenizer)
            assert [t for t in after.tolist() if t in tokenizer.special_ids] == [
                t for t in before.tolist() if t in tokenizer.special_ids]
            assert after[0] == tokenizer.bos_id and after[-1] == tokenizer.eos_id and len(after) <= LONGEST
            assert all(part for part in segments(after, tokenizer))
            changed += not np.array_equal(before, after)
            if kind != "noise":
                assert len(after) == len(before)
    assert changed > 30


@pytest.mark.parametrize("kind", ["noise", "embedding", "mlm"])
def test_a_draw_gives_the_same_in_any_company_and_another_draw_another(tokenizer, rows, kind):
    many = rows * 9
    draws, patterns = [(7, index) for index in range(len(many))], [index % 3 for index in range(len(many))]
    together = transformations(tokenizer)[kind](many, draws, patterns)
    alone = transformations(tokenizer)[kind]
    for index in (44, 3, 17, 0, 29):
        np.testing.assert_array_equal(alone([many[index]], [draws[index]], [patterns[index]])[0],
                                      together[index])
    other = transformations(tokenizer)[kind](many, [(8, index) for index in range(len(many))],
                                             [p + 3 for p in patterns])
    assert any(not np.array_equal(one, two) for one, two in zip(together, other))


def test_masked_refill_asks_once_and_takes_the_most_probable(tokenizer, rows):
    from bort.backend.mxnet import nd

    refill = transformations(tokenizer, 0.4)["mlm"]
    refill(rows, [(0, index) for index in range(len(rows))], [4] * len(rows))
    assert refill.answered == len(rows)
    refill(rows, [(1, index) for index in range(len(rows))], [4] * len(rows))
    assert refill.answered == len(rows)
    row = rows[0]
    proposals = refill._known[(digest(row), 4)]
    masked = row.copy()
    masked[proposals.places] = tokenizer.mask_id
    _, logits = refill.model(nd.array(masked[None], dtype="int32"), nd.array([len(row)]),
                             nd.array(proposals.places[None], dtype="int32"))
    scores = logits.asnumpy()[0]
    scores[:, sorted(tokenizer.special_ids)] = -np.inf
    scores[np.arange(len(scores)), row[proposals.places]] = -np.inf
    np.testing.assert_array_equal(proposals.tokens, np.argsort(-scores, axis=1)[:, :5])
    weights = np.take_along_axis(np.exp(scores), proposals.tokens.astype(np.int64), axis=1)
    np.testing.assert_allclose(proposals.cumulated, np.cumsum(weights, 1) / weights.sum(1, keepdims=True),
                               atol=1e-3)
    drawn = [int(refill([row], [(seed,)], [4])[0][proposals.places[0]]) for seed in range(300)]
    counts = np.array([drawn.count(int(token)) for token in proposals.tokens[0]])
    assert counts.sum() == 300
    np.testing.assert_allclose(counts / 300, np.diff(proposals.cumulated[0], prepend=0), atol=0.1)


def test_a_sequence_without_free_tokens_comes_back_as_it_was(tokenizer):
    row = np.array([tokenizer.bos_id, tokenizer.marker_id, 9, tokenizer.marker_id, tokenizer.eos_id],
                   dtype=np.int32)
    for transformation in transformations(tokenizer).values():
        np.testing.assert_array_equal(transformation([row], [(0,)], [0])[0], row)


def test_neighbours_are_the_nearest_of_the_same_kind(tokenizer):
    transformation = transformations(tokenizer)["embedding"]
    alphabet, vectors = Alphabet(tokenizer), transformation._vectors
    for token in (8, 12, 20, tokenizer.vocab_size - 2):
        near = transformation.neighbours(np.array([token]))[0]
        assert token not in near and not alphabet.special[near].any()
        assert (alphabet.starts[near] == alphabet.starts[token]).all()
        allowed = [t for t in range(tokenizer.vocab_size) if t != token and not alphabet.special[t]
                   and alphabet.starts[t] == alphabet.starts[token]]
        best = sorted(allowed, key=lambda t: -float(vectors[t] @ vectors[token]))[:5]
        np.testing.assert_allclose(vectors[near] @ vectors[token], vectors[best] @ vectors[token], atol=1e-6)


def test_noise_keeps_words_whole(tokenizer, rows):
    noise = Noise(tokenizer, 0.4, 40)
    before = {tuple(rows[0][b:e]) for b, e, _ in words(rows[0], noise.alphabet)}
    lengths = set()
    for seed in range(40):
        after = noise.change(rows[0], np.random.default_rng(seed))
        assert {tuple(after[b:e]) for b, e, _ in words(after, noise.alphabet)} <= before
        lengths.add(len(after))
    assert min(lengths) < len(rows[0]) < max(lengths)


@given(st.lists(st.integers(0, 41), min_size=1, max_size=20), st.integers(0, 10 ** 6))
def test_noise_on_arbitrary_ids(ids, seed):
    tokenizer = train_once()
    ids = [index % tokenizer.vocab_size for index in ids]
    noise = Noise(tokenizer, 0.5, 22)
    row = np.array([0, *[i for i in ids if i not in tokenizer.special_ids], 2], dtype=np.int32)
    after = noise.change(row, np.random.default_rng(seed))
    assert after[0] == 0 and after[-1] == 2 and len(after) <= max(22, len(row)) and set(after) <= set(row)
    np.testing.assert_array_equal(after, noise.change(row, np.random.default_rng(seed)))


_ONCE = []


def train_once():
    if not _ONCE:
        _ONCE.append(train_sentencepiece(LINES, 70))
    return _ONCE[0]


@given(st.integers(1, 5), st.integers(1, 700), st.integers(0, 12), st.integers(0, 2 ** 31), st.booleans())
def test_largest_is_what_sorting_gives(rows, width, count, seed, ties):
    values = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    if ties:
        values = np.round(values)
    places, found = largest(values, count)
    expected = np.argsort(-values, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(found, np.take_along_axis(values, expected, axis=1))
    np.testing.assert_array_equal(np.take_along_axis(values, places, axis=1), found)
    assert all(len(set(row)) == len(row) for row in places.tolist())


def test_known_sequences_and_texts(tokenizer, rows):
    known = Known(rows[:2], [rows[2].astype(np.int64)])
    assert rows[2] in known and rows[3] not in known and len(known) == 3
    assert known.add(rows[3]) and not known.add(rows[3].astype(np.int64)) and not known.add(rows[0])
    assert texts(rows[1], tokenizer) == ["a cat", "the small garden"]
    assert texts(rows[4], tokenizer) == ["she walks along",
                                         f"the{M} river{M} at night"] or M in texts(rows[4], tokenizer)[1]
    again = [tokenizer.encode(text) for text in texts(rows[4], tokenizer)]
    assert again == segments(rows[4], tokenizer)


def test_choose_places():
    free = np.array([2, 5, 9])
    counts = np.zeros(10)
    for seed in range(400):
        chosen = choose_places(free, np.random.default_rng(seed), 0.3)
        assert len(chosen) and (np.diff(chosen) > 0).all()
        counts[chosen] += 1
    assert counts[[2, 5, 9]].sum() == counts.sum()
    expected = 0.3 + 0.7 ** 3 / 3
    np.testing.assert_allclose(counts[free] / 400, expected, atol=0.08)
    assert not len(choose_places(np.zeros(0, np.int64), np.random.default_rng(0), 0.3))


def test_bad_settings_are_refused(tokenizer):
    from bort.agora.tau import Tau

    model = network(tokenizer)
    with pytest.raises(BortError, match="tau-rate"):
        Noise(tokenizer, 0.0, 24)
    with pytest.raises(BortError, match="vocabulary"):
        Neighbours(tokenizer, np.zeros((3, 4), np.float32), 0.1, 3)
    for kinds in (["nonsense"], [], ["noise", "noise"]):
        with pytest.raises(BortError, match="--tau"):
            Tau(kinds, model, tokenizer, 0.1, 3, 24)
    with pytest.raises(BortError, match="top-k"):
        Tau(["mlm"], model, tokenizer, 0.1, 0, 24)


def test_kinds_take_turns(tokenizer, rows):
    from bort.agora.tau import Tau

    tau = Tau(["noise", "mlm", "embedding"], network(tokenizer), tokenizer, 0.3, 5, LONGEST)
    results = tau(rows, [(1, index) for index in range(5)], [0] * 5, list(range(5)))
    assert [kind for kind, _ in results] == ["noise", "mlm", "embedding", "noise", "mlm"]
