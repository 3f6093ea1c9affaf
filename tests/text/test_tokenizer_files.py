"""Tokenizers' files that are damaged, missing or half there."""

from __future__ import annotations

import shutil

import pytest

from bort.errors import BortError
from bort.text.tokenizers.base import SETTINGS_FILE
from bort.text.tokenizers.loading import find_default_tokenizer, load_tokenizer
from tests.text.tokenizer_files import RELEASED, needs_released, small_bpe_files, small_wordpiece_files, spoil


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        ("merges.txt", "h e", "h e x", r"merges\.txt, line 3.*not a merge"),
        ("merges.txt", "d o\n", "q o\n", r"merge 4, 'q o', needs the token 'qo'"),
        ("vocab.json", '"<s>": 0', '"<s>": 1', r"vocab\.json: .*share the id 1"),
        ("vocab.json", '"<s>": 0', '"<s>": 99999', r"vocab\.json: '<s>' has the id 99999"),
        ("vocab.json", '"<s>": 0', '"<s>": true', r"'<s>' has the id true"),
        ("vocab.json", '"<mask>"', '"mask"', r"vocab\.json: the vocabulary has no '<mask>'"),
        ("vocab.json", '"!"', '"!!!"', r"not a byte-level vocabulary"),
        ("vocab.json", "{", "[", r"vocab\.json: not valid JSON"),
    ],
)
def test_damaged_bpe_files_are_named(tmp_path, name, old, new, message):
    spoil(small_bpe_files(tmp_path) / name, old, new)
    with pytest.raises(BortError, match=message):
        load_tokenizer(tmp_path)


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path):
    merges = small_bpe_files(tmp_path) / "merges.txt"
    merges.write_bytes(merges.read_bytes() + b"\xff\xfe\n")
    with pytest.raises(BortError, match=r"merges\.txt, line 7: not UTF-8"):
        load_tokenizer(tmp_path)


def test_saved_files_that_changed_are_noticed(tmp_path):
    load_tokenizer(small_bpe_files(tmp_path / "a")).save(tmp_path / "b")
    spoil(tmp_path / "b" / "merges.txt", "d o\ndo g\n", "")
    with pytest.raises(BortError, match="fingerprint"):
        load_tokenizer(tmp_path / "b")
    (tmp_path / "b" / SETTINGS_FILE).unlink()
    load_tokenizer(tmp_path / "b")


@needs_released
@pytest.mark.parametrize(
    "line, message",
    [
        ("13 x", "line 1: .*not a token and its count"),
        ("99999 5", "line 1: encoder.json has no id 99999"),
        ("262 5", "line 2: .*twice"),
    ],
)
def test_damaged_dictionary_is_named(tmp_path, line, message):
    for name in ("encoder.json", "vocab.bpe", "dict.txt"):
        shutil.copy(RELEASED / name, tmp_path)
        (tmp_path / name).chmod(0o644)
    spoil(tmp_path / "dict.txt", "13 850314647", line)
    with pytest.raises(BortError, match=message):
        load_tokenizer(tmp_path)


def test_damaged_wordpiece_and_sentencepiece_files_are_named(tmp_path, pieces):
    spoil(small_wordpiece_files(tmp_path / "twice") / "vocab.txt", "dogs", "dog")
    with pytest.raises(BortError, match=r"vocab\.txt, line 9: 'dog' is on line 8 too"):
        load_tokenizer(tmp_path / "twice")
    with pytest.raises(BortError, match="do_lower_case|lowercase"):
        load_tokenizer(small_wordpiece_files(tmp_path / "setting", do_lower_case="False"))
    pieces.save(tmp_path / "pieces")
    model = tmp_path / "pieces" / "sentencepiece.model"
    data = model.read_bytes()
    for damaged in (b"", b"not a model at all", data[: len(data) // 2], b"\xff" * 1000):
        model.write_bytes(damaged)
        with pytest.raises(BortError, match="sentencepiece.model|fingerprint"):
            load_tokenizer(tmp_path / "pieces")


def test_missing_and_half_tokenizers_say_what_is_needed(tmp_path):
    with pytest.raises(BortError, match="no such file or folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(BortError, match="no tokenizer in it.*dict.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(BortError, match="vocab.json alone is not a whole tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    with pytest.raises(BortError, match="not a tokenizer that the tokenizers library reads"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(BortError, match="tokenizer.json"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_default_tokenizer_is_found_where_gluonnlp_keeps_it(tmp_path, monkeypatch):
    monkeypatch.delenv("BORT_HOME", raising=False)
    monkeypatch.delenv("MXNET_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_default_tokenizer() is None
    models = tmp_path / ".mxnet" / "models"
    models.mkdir(parents=True)
    (models / "book_corpus_wiki_en_cased-0.vocab").write_text("{}")
    assert find_default_tokenizer() is None, "another vocabulary alone is not RoBERTa's"
    (models / "openwebtext_ccnews_stories_books_cased-2b804f8f.vocab").write_text("{}")
    (models / "openai_webtext_bpe_ranks-396d4d8e.json").write_text("#version: 0.2\n")
    assert find_default_tokenizer() == models
    monkeypatch.setenv("BORT_HOME", str(small_bpe_files(tmp_path / "home" / "tokenizer").parent))
    assert find_default_tokenizer() == tmp_path / "home" / "tokenizer"
