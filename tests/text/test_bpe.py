"""Byte-level BPE: RoBERTa's ids, agreement with GluonNLP, and the memory of words."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bort.errors import BortError
from bort.huggingface.tokenizer import write_tokenizer
from bort.text.corpus.embedded import embedded_sentences
from bort.text.tokenizers import bpe
from bort.text.tokenizers.loading import load_tokenizer
from tests.text.tokenizer_files import MARKER, RELEASED, needs_released, small_bpe_files


def test_small_bpe_applies_its_merges_by_rank(tmp_path):
    tokenizer = load_tokenizer(small_bpe_files(tmp_path))
    names = [tokenizer.id_to_token(index) for index in tokenizer.encode("the dog, the café")]
    assert names == ["t", "he", "Ġ", "dog", ",", "Ġthe", "Ġ", "c", "a", "f", "Ã", "©"]
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.mask_id == tokenizer.vocab_size - 1


def test_word_starts_of_bpe(tmp_path):
    tokenizer = load_tokenizer(small_bpe_files(tmp_path))
    starts = tokenizer.word_starts()
    assert starts.dtype == bool and starts.shape == (tokenizer.vocab_size,)
    expected = {
        "Ġthe": True,
        "dog": False,
        ",": True,
        "Ġ": True,
        "<s>": True,
        "<mask>": True,
        "e": False,
        "Ã": False,
    }
    assert {token: bool(starts[tokenizer._ids[token]]) for token in expected} == expected


def test_marked_words_keep_their_ids(tmp_path):
    tokenizer = load_tokenizer(small_bpe_files(tmp_path))
    plain, marked = tokenizer.encode("a dog the"), tokenizer.encode(f"a {MARKER}dog{MARKER} the")
    assert [index for index in marked if index != tokenizer.marker_id] == plain
    assert marked.count(tokenizer.marker_id) == 2
    assert tokenizer.id_to_token(tokenizer.marker_id) == "madeupword0000"


def test_the_memory_of_words_does_not_change_ids(tmp_path, monkeypatch):
    folder = small_bpe_files(tmp_path)
    texts = embedded_sentences()[:60] + [" " + text for text in embedded_sentences()[60:80]]
    tokenizer = load_tokenizer(folder)
    expected = tokenizer.encode_batch(texts)
    assert tokenizer.encode_batch(texts) == expected, "the second time from memory"
    monkeypatch.setattr(bpe, "_MOST_REMEMBERED", 3)
    forgetful = load_tokenizer(folder)
    assert forgetful.encode_batch(texts) == expected
    assert len(forgetful._spaced) <= 3 and len(forgetful._plain) <= 3


@needs_released
def test_released_vocabulary_gives_robertas_ids():
    tokenizer = load_tokenizer(RELEASED)
    assert tokenizer.encode("Hello world! cécé herlolip") == [
        31414,
        232,
        328,
        740,
        1140,
        12695,
        69,
        46078,
        1588,
    ]
    assert tokenizer.encode("Schloß Nymphenburg in Munich is really nice!") == [
        18077,
        4082,
        7804,
        8606,
        6195,
        2457,
        3321,
        11,
        10489,
        16,
        269,
        2579,
        328,
    ]
    assert (tokenizer.vocab_size, tokenizer.mask_id, tokenizer.marker_id) == (50265, 50264, 50261)


@needs_released
def test_all_layouts_of_robertas_vocabulary_are_one(tmp_path):
    expected = load_tokenizer(RELEASED)
    gluonnlp, fairseq, saved, single = (
        tmp_path / name for name in ("gluonnlp", "fairseq", "saved", "single")
    )
    for folder in (gluonnlp, fairseq, single):
        folder.mkdir()
    vocabulary = next(RELEASED.glob("*.vocab"))
    shutil.copy(vocabulary, gluonnlp)
    shutil.copy(RELEASED / "vocab.bpe", gluonnlp / "openai_webtext_bpe_ranks-396d4d8e.json")
    for name in ("encoder.json", "vocab.bpe", "dict.txt"):
        shutil.copy(RELEASED / name, fairseq)
    expected.save(saved)
    write_tokenizer(expected, tmp_path / "exported", 512)
    shutil.copy(tmp_path / "exported" / "tokenizer.json", single)
    for folder in (gluonnlp, fairseq, saved, single, single / "tokenizer.json"):
        assert load_tokenizer(folder).fingerprint == expected.fingerprint, folder


@needs_released
def test_equal_to_gluonnlp_on_arbitrary_unicode(tmp_path):
    try:
        import bort.backend.mxnet  # noqa: F401  GluonNLP needs its NumPy aliases
    except BortError as error:
        pytest.skip(str(error))
    transforms = pytest.importorskip("gluonnlp.data.transforms")
    gluonnlp_vocabulary = json.loads(next(RELEASED.glob("*.vocab")).read_text(encoding="utf-8"))[
        "token_to_idx"
    ]
    shutil.copy(RELEASED / "vocab.bpe", tmp_path / "openai_webtext_bpe_ranks-396d4d8e.json")
    theirs = transforms.GPT2BPETokenizer(root=str(tmp_path))
    ours = load_tokenizer(RELEASED)
    pieces = st.one_of(
        st.text(),
        st.sampled_from(
            [
                " ",
                "  ",
                "\n",
                "'s",
                "'LL",
                "don't",
                "\u3000",
                "\x1c",
                "½",
                "9",
                "\u0558",
                "\U0001d6a6",
                "ﬁ",
                "👩‍👩‍👧",
            ]
        ),
    )

    @settings(max_examples=300, deadline=None)
    @given(st.lists(pieces, max_size=8).map("".join))
    def check(text):
        assert ours.encode(text) == [gluonnlp_vocabulary[token] for token in theirs(text)]
        assert ours.decode(ours.encode(text)) == text

    check()
    for text in embedded_sentences()[:300]:
        assert ours.encode(text) == [gluonnlp_vocabulary[token] for token in theirs(text)]
