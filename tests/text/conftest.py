"""A small tokenizer of every kind."""

from __future__ import annotations

import pytest

from bort.text.corpus.embedded import embedded_sentences
from bort.text.tokenizers.loading import load_tokenizer, train_sentencepiece
from tests.text.tokenizer_files import small_bpe_files, small_wordpiece_files, word_engine


@pytest.fixture(scope="session")
def pieces():
    return train_sentencepiece(embedded_sentences()[:1500], 1200)


@pytest.fixture(scope="session")
def every_kind(pieces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "huggingface").mkdir()
    word_engine(prefix="@@", added=("covid19",)).save(str(folder / "huggingface" / "tokenizer.json"))
    return {
        "bpe": load_tokenizer(small_bpe_files(folder / "bpe")),
        "sentencepiece": pieces,
        "wordpiece": load_tokenizer(small_wordpiece_files(folder / "wordpiece")),
        "huggingface": load_tokenizer(folder / "huggingface"),
    }
