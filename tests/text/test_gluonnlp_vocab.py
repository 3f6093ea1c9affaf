"""``gluonnlp.Vocab`` in and out of the project's tokenizers, and GluonNLP's files."""

from __future__ import annotations

import json
import shutil

import pytest

from bort.errors import BortError
from bort.text.tokenizers.base import refuse_repeats
from bort.text.tokenizers.gluonnlp_vocab import from_files, tokenizer_of, vocab_of
from bort.text.tokenizers.loading import load_tokenizer
from tests.growth import assert_linear
from tests.text.tokenizer_files import KINDS, small_bpe_files

TEXT = "The dogs barked, caf\u00e9."


def tokens_of(tokenizer):
    return [tokenizer.id_to_token(index) for index in range(tokenizer.vocab_size)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocab_has_the_tokens_of_a_tokenizer_under_the_same_ids(kind, every_kind):
    tokenizer = every_kind[kind]
    vocab = vocab_of(tokenizer)
    assert vocab.idx_to_token == tokens_of(tokenizer)
    assert vocab[vocab.padding_token] == tokenizer.pad_id and vocab[vocab.mask_token] == tokenizer.mask_id
    assert vocab[vocab.bos_token] == tokenizer.bos_id and vocab[vocab.eos_token] == tokenizer.eos_id
    assert vocab["no such token"] == tokenizer.unk_id
    assert vocab.to_indices(vocab.to_tokens(tokenizer.encode(TEXT))) == tokenizer.encode(TEXT)


def test_a_vocab_becomes_the_tokenizer_it_came_from(every_kind, tmp_path):
    import gluonnlp

    bpe, words = every_kind["bpe"], every_kind["wordpiece"]
    ranks = small_bpe_files(tmp_path) / "merges.txt"
    assert tokenizer_of(vocab_of(bpe), ranks).fingerprint == bpe.fingerprint
    assert tokenizer_of(vocab_of(words)).fingerprint == words.fingerprint
    assert tokenizer_of(vocab_of(words), lowercase=False).encode("The") != words.encode("The")
    with pytest.raises(BortError, match="the GluonNLP vocabulary: the vocabulary has no"):
        tokenizer_of(gluonnlp.Vocab(gluonnlp.data.count_tokens(["a", "b"])))
    with pytest.raises(BortError, match="the GluonNLP vocabulary"):
        tokenizer_of(vocab_of(words), ranks)


def test_gluonnlps_files_are_one_layout_of_the_same_vocabulary(every_kind, tmp_path):
    bpe = every_kind["bpe"]
    (tmp_path / "openwebtext_ccnews_stories_books_cased-0.vocab").write_text(vocab_of(bpe).to_json())
    shutil.copy(
        small_bpe_files(tmp_path / "bpe") / "merges.txt", tmp_path / "openai_webtext_bpe_ranks-0.json"
    )
    assert load_tokenizer(tmp_path).fingerprint == bpe.fingerprint


def test_a_repeated_token_is_found_in_time_that_grows_with_the_vocabulary(tmp_path):
    vocabulary = tmp_path / "a.vocab"
    vocabulary.write_text(json.dumps({"idx_to_token": ["<s>", "a", "b", "a"]}))
    with pytest.raises(BortError, match=r"a\.vocab: the token 'a' is in it twice"):
        from_files(vocabulary, tmp_path / "unused")

    def search(tokens):
        with pytest.raises(BortError, match="twice"):
            refuse_repeats(tokens, "x")

    assert_linear(search, lambda size: [*map(str, range(size)), "0"])
