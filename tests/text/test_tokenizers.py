"""Tokenizers of every kind: round trips, hostile strings, markers; SentencePiece and WordPiece too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bort.errors import BortError
from bort.text.corpus.embedded import embedded_sentences
from bort.text.tokenizers.loading import load_tokenizer, train_sentencepiece
from tests.text.tokenizer_files import KINDS, MARKER, small_wordpiece_files

HOSTILE = [
    "",
    " ",
    "a\0b",
    "\ud800 x",
    "x\udfff\ud800",
    "\ud83d\ude00",
    "\u200b\ufeff\x85\x1c\x7f",
    "\t\n  a \r\n",
    "\U0010ffff\u0378",
    "é" * 5000,
    "<s> </s> <mask> <pad> [CLS] [MASK]",
]


# ---------------------------------------------------------------- SentencePiece


def test_sentencepiece_reserves_its_specials(pieces):
    assert [pieces.id_to_token(index) for index in range(6)] == [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<mask>",
        MARKER,
    ]
    assert pieces.special_ids == frozenset(range(6)) and pieces.marker_id == 5
    assert pieces.unk_id not in pieces.encode("\u4e2d\u6587 naïve \U0001f600"), (
        "bytes spell unknown characters"
    )
    assert not set(pieces.encode("<s> </s> <mask> <pad>")) & pieces.special_ids


def test_sentencepiece_training_repeats_and_follows_its_seed():
    lines = embedded_sentences()[:400]
    first, again, other = (train_sentencepiece(lines, 320, seed=seed, max_lines=200) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.vocab_size == 320 and "<0x41>" not in first._tokens, "too small to spell bytes"


def test_sentencepiece_uses_long_lines_and_ignores_nul():
    tokenizer = train_sentencepiece(["a\0b " + "extra plain " * 2000, "\ud800 \U000f1b07 short"], 60)
    assert tokenizer.unk_id not in tokenizer.encode("extra plain short a b"), "every character was seen"
    assert tokenizer.unk_id in tokenizer.encode("q")


def test_sentencepiece_needs_text_and_room():
    with pytest.raises(BortError, match="no text"):
        train_sentencepiece(["", "  "], 300)
    wanted = r"SentencePiece cannot make 20 ids .*: its characters alone take \d+; ask for more "
    with pytest.raises(BortError, match=wanted):
        train_sentencepiece(embedded_sentences()[:200], 20)
    with pytest.raises(BortError, match="at least 16"):
        train_sentencepiece(["a"], 3)


# ---------------------------------------------------------------- WordPiece


def test_wordpiece_follows_its_lower_casing(tmp_path):
    lower = load_tokenizer(small_wordpiece_files(tmp_path / "lower"))
    cased = load_tokenizer(small_wordpiece_files(tmp_path / "cased", do_lower_case=False))
    text = "The DOGS barked, café."
    assert [lower.id_to_token(index) for index in lower.encode(text)] == [
        "the",
        "dogs",
        "bark",
        "##ed",
        ",",
        "cafe",
        ".",
    ]
    assert [cased.id_to_token(index) for index in cased.encode(text)] == [
        "The",
        "[UNK]",
        "bark",
        "##ed",
        ",",
        "[UNK]",
        ".",
    ]
    assert lower.fingerprint != cased.fingerprint
    assert (lower.bos_id, lower.eos_id, lower.pad_id, lower.mask_id, lower.marker_id) == (3, 4, 0, 5, 1)
    assert lower.decode(lower.encode(text)) == "the dogs barked , cafe ."


# ---------------------------------------------------------------- all kinds


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_give_the_same_tokenizer(kind, every_kind, tmp_path):
    tokenizer = every_kind[kind]
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    texts = [*embedded_sentences()[:200], *HOSTILE, f"the {MARKER}dog{MARKER}"]
    assert loaded.kind == kind and loaded.fingerprint == tokenizer.fingerprint
    assert loaded.special_ids == tokenizer.special_ids and loaded.marker_id == tokenizer.marker_id
    assert loaded.encode_batch(texts) == tokenizer.encode_batch(texts)
    assert np.array_equal(loaded.word_starts(), tokenizer.word_starts())


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_strings_give_ids_of_the_vocabulary(kind, every_kind):
    tokenizer = every_kind[kind]
    rows = tokenizer.encode_batch(HOSTILE)
    assert rows == [tokenizer.encode(text) for text in HOSTILE]
    assert rows[0] == []
    for row in rows:
        assert all(0 <= index < tokenizer.vocab_size for index in row)
        assert not set(row) & (set(tokenizer.special_ids) - {tokenizer.unk_id})
        assert isinstance(tokenizer.decode(row), str)
    assert len(tokenizer.encode("word " * 200_000)) >= 200_000


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.characters()))
def test_encoding_never_fails(kind, every_kind, text):
    ids = every_kind[kind].encode(text)
    every_kind[kind].decode(ids)
    if kind == "bpe":
        assert every_kind[kind].decode(ids) == text.encode("utf-16-le", "surrogatepass").decode(
            "utf-16-le", "replace"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_markers_become_the_marker_id(kind, every_kind):
    tokenizer = every_kind[kind]
    text = f"the {MARKER}dog{MARKER}, {MARKER}{MARKER}"
    ids = tokenizer.encode(text)
    assert ids.count(tokenizer.marker_id) == 4
    assert tokenizer.decode(ids).count(MARKER) == 4
    begin = ids.index(tokenizer.marker_id)
    end = ids.index(tokenizer.marker_id, begin + 1)
    assert tokenizer.decode(ids[begin + 1 : end]).strip() == "dog"


def test_decode_refuses_ids_outside_the_vocabulary(every_kind):
    for tokenizer in every_kind.values():
        for bad in (-1, tokenizer.vocab_size):
            with pytest.raises(BortError, match="not in the vocabulary"):
                tokenizer.decode([bad])
        assert tokenizer.decode([tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id]) == ""


def test_encode_batch_refuses_a_bare_string(every_kind):
    with pytest.raises(TypeError):
        every_kind["bpe"].encode_batch("text")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_children_encode_without_waiting_for_threads(every_kind, capfd, monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    texts = ["the dogs bark"] * 3000
    for tokenizer in every_kind.values():
        expected = tokenizer.encode_batch(texts)
        child = os.fork()
        if child == 0:
            os._exit(0 if tokenizer.encode_batch(texts) == expected else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert "TOKENIZERS_PARALLELISM" not in os.environ and capfd.readouterr().err == ""


def test_no_mxnet_is_imported():
    code = (
        "import sys, bort.text.tokenizers.loading, bort.text.corpus.embedded, bort.text.tokenizers.base; "
        "sys.exit('mxnet' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=str(Path(__file__).parents[2])).returncode == 0
