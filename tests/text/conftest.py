"""A small tokenizer of every kind; a small corpus and its shards."""

from __future__ import annotations

import gzip

import pytest

from bort.text.corpus.embedded import embedded_documents, embedded_sentences
from bort.text.shards.prepare import prepare
from bort.text.tokenizers.loading import load_tokenizer, train_sentencepiece
from tests.text.shard_files import options
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


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(embedded_documents()[:150], 400).save(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """600 short documents in two files, one compressed; every document begins with a name of its own."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [f"Document{number:04d} begins. {text}" for number, text in enumerate(embedded_documents()[:600])]
    (folder / "a.txt").write_text("\n\n".join(texts[:400]), encoding="utf-8")
    with gzip.open(folder / "b.txt.gz", "wt", encoding="utf-8") as stream:
        stream.write("\n\n".join(texts[400:]))
    return folder


@pytest.fixture(scope="session")
def shards(corpus, tokenizer_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "shards"
    prepare(options(corpus, tokenizer_folder, output))
    return output
