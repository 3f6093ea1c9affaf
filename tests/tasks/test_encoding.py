"""Texts to ids: the layout, what truncation spares, and a cache that can be trusted."""
from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bort.errors import BortError
from bort.tasks import Example, Split, encode, encode_pair, get_task
from bort.tasks import encoding as encoding_module
from bort.tasks.encoding import kept_lengths, token_lengths
from tests.tiny_tasks import WordTokenizer, make_task

BOS, EOS = WordTokenizer.bos_id, WordTokenizer.eos_id


def split_of(*segments, labels=None):
    labels = labels or [0] * len(segments)
    return Split("train", [Example(row, texts, label) for row,
                           (texts, label) in enumerate(zip(segments, labels))])


def test_layout_of_single_segments_and_pairs():
    tokenizer = WordTokenizer()
    a, b = tokenizer.encode("one two"), tokenizer.encode("three")
    assert encode_pair(tokenizer, a, None, 16).tolist() == [BOS, *a, EOS]
    assert encode_pair(tokenizer, a, b, 16).tolist() == [BOS, *a, EOS, *b, EOS]
    encoded = encode(get_task("RTE"), split_of(("one two",), ("one two", "three")), tokenizer, 16)
    assert [ids.tolist() for ids in encoded.token_ids] == [[BOS, *a, EOS], [BOS, *a, EOS, *b, EOS]]
    assert all(ids.dtype == np.int32 for ids in encoded.token_ids) and encoded.num_truncated == 0


@given(st.integers(0, 30), st.integers(0, 30), st.integers(5, 40))
def test_even_truncation_takes_from_the_longer_segment(first, second, room):
    kept = kept_lengths(first, second, room, "even")
    assert sum(kept) == min(room, first + second) and kept[0] <= first and kept[1] <= second
    if first + second > room:
        # A segment is shortened only down to the other's length, or to half of the room.
        assert kept[0] == first or kept[0] + 1 >= kept[1]
        assert kept[1] == second or kept[1] + 1 >= kept[0]


@given(st.integers(0, 30), st.integers(0, 30), st.integers(5, 40))
def test_truncating_the_passage_spares_the_question(first, second, room):
    kept = kept_lengths(first, second, room, "first")
    assert kept[1] == min(second, room) and kept[0] == min(first, room - kept[1])


def test_truncation_is_counted_and_cuts_tails():
    tokenizer = WordTokenizer()
    long, short = " ".join(f"w{i}" for i in range(30)), "a b c"
    encoded = encode(get_task("BoolQ"), split_of((long, short), (short, short)), tokenizer, 12)
    ids = encoded.token_ids[0].tolist()
    assert ids == [BOS, *tokenizer.encode(long)[:6], EOS, *tokenizer.encode(short),
                   EOS] and encoded.num_truncated == 1
    single = encode(get_task("CoLA"), split_of((long,)), tokenizer, 12).token_ids[0]
    assert single.tolist() == [BOS, *tokenizer.encode(long)[:10], EOS]


@given(st.lists(st.tuples(st.text("ab ", max_size=30), st.text("cd ", max_size=30)), min_size=1, max_size=6),
       st.integers(8, 20), st.sampled_from(["RTE", "BoolQ"]))
def test_the_fast_path_equals_encoding_one_by_one(pairs, max_length, name):
    tokenizer, task = WordTokenizer(), get_task(name)
    encoded = encode(task, split_of(*pairs), tokenizer, max_length)
    for (a, b), ids in zip(pairs, encoded.token_ids):
        expected = encode_pair(tokenizer, tokenizer.encode(a), tokenizer.encode(b), max_length,
                               task.truncation)
        assert ids.tolist() == expected.tolist()
        assert len(ids) <= max_length


def test_labels_and_their_absence():
    task = get_task("CoLA")
    encoded = encode(task, split_of(("a",), ("b",), labels=[1, None]), WordTokenizer(), 8)
    assert encoded.labels.dtype == np.int64 and encoded.labels.tolist() == [1, -1]
    scores = encode(get_task("STS-B"), split_of(("a",), ("b",), labels=[2.5, None]), WordTokenizer(),
                    8).labels
    assert scores.dtype == np.float32 and scores[0] == 2.5 and np.isnan(scores[1])


def test_a_length_that_holds_nothing_is_refused():
    with pytest.raises(BortError, match="max_length 7"):
        encode(get_task("CoLA"), split_of(("a",)), WordTokenizer(), 7)


def test_lengths_before_truncation(tmp_path):
    make_task("RACE-M", tmp_path)
    split = get_task("RACE-M").read(tmp_path, "dev")
    tokenizer = WordTokenizer()
    whole = encode(get_task("RACE-M"), split, tokenizer, 500)
    assert token_lengths(split, tokenizer).tolist() == [len(ids) for ids in whole.token_ids]


@pytest.fixture
def cached(tmp_path):
    """A task, its split, a tokenizer and a cache that holds their encoding."""
    make_task("RTE", tmp_path / "data", rows=20)
    task, tokenizer = get_task("RTE"), WordTokenizer()
    split = task.read(tmp_path / "data", "train")
    encoded = encode(task, split, tokenizer, 16, tmp_path / "cache")
    tokenizer.calls = 0
    return task, split, tokenizer, encoded, tmp_path / "cache"


def same(one, other):
    return (one.fingerprint == other.fingerprint and one.num_truncated == other.num_truncated
            and one.labels.tolist() == other.labels.tolist()
            and [ids.tolist() for ids in one.token_ids] == [ids.tolist() for ids in other.token_ids])


def test_the_cache_is_used_and_equals_what_it_replaces(cached):
    task, split, tokenizer, encoded, folder = cached
    again = encode(task, split, tokenizer, 16, folder)
    assert tokenizer.calls == 0 and same(encoded, again) and same(again, encode(task, split, tokenizer, 16))
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == []


def test_whatever_determines_the_ids_determines_the_cache(cached, monkeypatch):
    task, split, tokenizer, encoded, folder = cached
    changed = dataclasses.replace(split, examples=list(split.examples))
    changed.examples[3] = dataclasses.replace(split.examples[3], segments=("other", "text"))
    relabelled = dataclasses.replace(split, examples=list(split.examples))
    relabelled.examples[3] = dataclasses.replace(split.examples[3], label=1 - split.examples[3].label)
    moved = split.subset(range(len(split) - 1, -1, -1))
    prints = {encode(task, split, tokenizer, 17, folder).fingerprint, encoded.fingerprint,
              encode(task, split, WordTokenizer(300), 16, folder).fingerprint,
              encode(get_task("WNLI"), split, tokenizer, 16, folder).fingerprint,
              *(encode(task, other, tokenizer, 16, folder).fingerprint for other in (changed, relabelled,
                                                                                     moved))}
    monkeypatch.setattr(encoding_module, "CODE_VERSION", encoding_module.CODE_VERSION + 1)
    prints.add(encode(task, split, tokenizer, 16, folder).fingerprint)
    assert len(prints) == 8 == len(list(folder.iterdir()))


def claim(path, shape=None, dtype=None):
    """Replace what the header of a ``.npy`` file says; the numbers stay."""
    array = np.load(path)
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {
            "shape": shape or array.shape, "fortran_order": False, "descr": dtype or array.dtype.str})
        stream.write(array.tobytes())


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage",
                         [lambda folder: (folder / "tokens.npy").write_bytes((folder
                                                                              / "tokens.npy").read_bytes()[
                                                                                                           :-40]),
                          lambda folder: flip_byte(folder / "tokens.npy"),
                          lambda folder: flip_byte(folder / "labels.npy"),
                          lambda folder: (folder / "lengths.npy").unlink(),
                          lambda folder: claim(folder / "tokens.npy", shape=(10 ** 15,)),
                          lambda folder: claim(folder / "tokens.npy", shape=(-1,)),
                          lambda folder: claim(folder / "lengths.npy", dtype="<f4"),
                          lambda folder: claim(folder / "labels.npy", dtype="<f8"),
                          lambda folder: claim(folder / "labels.npy", dtype=[("a", "<i4"), ("b", "<i4")]),
                          lambda folder: (folder / "tokens.npy").write_text("{'shape': " + "(" * 9000),
                          lambda folder: (folder / "meta.json").write_text("{"),
                          lambda folder: (folder / "meta.json").write_text("[]"),
                          lambda folder: (folder / "tokens.npy").write_bytes(b""),
                          lambda folder: np.save(folder / "tokens.npy", np.array([{}], dtype=object),
                                                 allow_pickle=True)])
def test_a_damaged_cache_is_rebuilt_with_a_warning(damage, cached, caplog):
    task, split, tokenizer, encoded, folder = cached
    expected = [ids.tolist() for ids in encoded.token_ids]
    damage(next(folder.iterdir()))
    with caplog.at_level(logging.WARNING, "bort.tasks"):
        again = encode(task, split, tokenizer, 16, folder)
    assert "damaged" in caplog.text and [ids.tolist() for ids in again.token_ids] == expected
    tokenizer.calls = 0
    encode(task, split, tokenizer, 16, folder)
    assert tokenizer.calls == 0


def test_a_cache_that_cannot_be_written_costs_no_run(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "bort.tasks"):
        encoded = encode(get_task("CoLA"), split_of(("a b",)), WordTokenizer(), 8,
                         tmp_path / "file" / "cache")
    assert len(encoded) == 1 and "could not be cached" in caplog.text


def test_the_real_vocabulary_gives_roberta_layouts(real_data, tmp_path):
    tokenizers = pytest.importorskip("bort.text.tokenizers.loading")
    tokenizer = tokenizers.load_tokenizer(real_data / "bpe")
    encoded = encode(get_task("RTE"), split_of(("Hello world! cécé herlolip", "Hello")), tokenizer, 64,
                     tmp_path)
    assert encoded.token_ids[0].tolist() == [
        0, 31414, 232, 328, 740, 1140, 12695, 69, 46078, 1588, 2, 31414, 2]
    wsc = get_task("WSC")
    split = wsc.read(real_data / "superglue/WSC", "dev")
    for ids in encode(wsc, split, tokenizer, 256).token_ids:
        assert (ids == tokenizer.marker_id).sum() == 4
