"""Corpora to shards: splits, shuffling, workers, memory, and what is left out."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from bort.errors import BortError
from bort.text.corpus.embedded import embedded_documents
from bort.text.corpus.sources import ReadOptions
from bort.text.shards.dataset import SPLITS, ShardDataset, split_ratios
from bort.text.shards.plan import PrepareOptions
from bort.text.shards.prepare import prepare
from bort.text.shards.scatter import _draw_splits
from bort.text.tokenizers.loading import load_tokenizer
from tests.text.shard_files import content, names_in, options, texts_of


def test_every_document_is_in_one_split_once(shards):
    found = {split: names_in(texts_of(shards, split)) for split in SPLITS}
    everything = [name for names in found.values() for name in names]
    assert sorted(everything) == [f"Document{number:04d}" for number in range(600)]
    assert abs(len(found["train"]) - 480) < 25 and abs(len(found["test"]) - 60) < 25
    assert found["train"] != sorted(found["train"]), "shuffled"


def test_documents_stay_whole_and_in_their_own_order(shards):
    expected = embedded_documents()[:600]
    together = " ".join(" ".join(texts_of(shards, split)) for split in SPLITS)
    together = " ".join(together.split())
    whole = sum(" ".join(text.split()[:12]) in together for text in expected)
    assert whole > 560, "the beginnings of documents are read on (but for those where a sequence ends)"


def test_shards_are_what_the_index_says(shards):
    index = json.loads((shards / "index.json").read_text())
    dataset = ShardDataset(shards)
    assert len(index["splits"]["train"]["shards"]) > 1, "several buckets"
    assert dataset.num_tokens == index["splits"]["train"]["tokens"] == dataset.lengths.sum()
    assert dataset.lengths.dtype == np.int32 and dataset.lengths.shape == (len(dataset),)
    assert dataset.lengths.max() <= 64 and np.median(dataset.lengths) > 40
    rows = [dataset[index] for index in range(len(dataset))]
    assert [len(row) for row in rows] == dataset.lengths.tolist()
    assert all(row.dtype == np.int32 and row[0] == 0 and row[-1] == 2 for row in rows)
    assert np.array_equal(dataset[-1], rows[-1])
    assert load_tokenizer(dataset.tokenizer_path).fingerprint == dataset.fingerprint == index["tokenizer"]
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    assert len(ShardDataset(shards, "validation")) == len(ShardDataset(shards, "valid")) > 0
    assert not (shards / "work").exists() and not list(shards.glob(".*.tmp"))


def test_the_number_of_workers_changes_nothing(shards, corpus, tokenizer_folder, tmp_path):
    report = prepare(options(corpus, tokenizer_folder, tmp_path / "two", workers=2))
    assert content(tmp_path / "two") == content(shards)
    assert report["workers"] == 2 and report["peak_memory_mb"]["largest_worker"] > 0
    prepare(options(corpus, tokenizer_folder, tmp_path / "other", seed=2))
    assert content(tmp_path / "other")["train-00000.bin"] != content(shards)["train-00000.bin"]


def test_sentences_are_shuffled_apart(corpus, tokenizer_folder, tmp_path):
    prepare(options(corpus, tokenizer_folder, tmp_path / "s", shuffle="sentences", max_length=1000))
    texts = [text for split in SPLITS for text in texts_of(tmp_path / "s", split)]
    assert sorted(names_in(texts)) == [f"Document{number:04d}" for number in range(600)]
    train = ShardDataset(tmp_path / "s")
    sentences = json.loads((tmp_path / "s" / "index.json").read_text())["splits"]["train"]["sentences"]
    separators = sum(int((train[index][1:-1] == 2).sum()) for index in range(len(train)))
    assert separators + len(train) == sentences, "each is the first of its sequence or follows a separator"
    sequences = texts_of(tmp_path / "s", "train")
    per_sequence = [len(names_in([text])) for text in sequences]
    assert max(per_sequence) < 20 and names_in(sequences) != sorted(names_in(sequences))


def test_without_shuffling_the_order_stays(corpus, tokenizer_folder, tmp_path):
    prepare(options(corpus, tokenizer_folder, tmp_path / "n", shuffle="none", split="1,0,0"))
    assert names_in(texts_of(tmp_path / "n", "train")) == [f"Document{number:04d}" for number in range(600)]
    with pytest.raises(BortError, match="test split is empty"):
        ShardDataset(tmp_path / "n", "test")


def test_a_tokenizer_is_trained_on_the_text(tmp_path):
    (tmp_path / "in.txt").write_text("\n\n".join(embedded_documents()[:60]), encoding="utf-8")
    given = PrepareOptions(inputs=[tmp_path / "in.txt"], output=tmp_path / "a", vocab_size=200, max_length=64)
    report = prepare(given)
    assert report["vocab_size"] == 200 and report["seconds"]["tokenizer"] > 0
    prepare(replace(given, output=tmp_path / "b"))
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_report_counts_what_came_and_what_went(tmp_path, tokenizer_folder):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(
        "One two three. Four five.\n\nShort.\n\nA | B | C | D\n\n\0\1\2\3\4\n\n" * 3
    )
    (tmp_path / "in" / "b.bin").write_bytes(b"x")
    report = prepare(
        PrepareOptions(
            inputs=[tmp_path / "in"], output=tmp_path / "out", tokenizer=tokenizer_folder, min_words=2
        )
    )
    assert (report["documents"], report["sentences"], report["words"]) == (3, 6, 15)
    assert report["dropped"] == {"garbage": 3, "short": 9, "structured": 3}
    assert report["inputs"]["passed_over_names"] == ["b.bin"]
    assert sum(split["sentences"] for split in report["splits"].values()) == 6
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


def test_memory_does_not_grow_with_the_corpus(tokenizer_folder, tmp_path):
    import tracemalloc

    text = "\n\n".join(embedded_documents()[:25]) + "\n\n"
    peaks = []
    for copies in (4, 12):
        path = tmp_path / f"{copies}.txt"
        path.write_text(text * copies, encoding="utf-8")
        tracemalloc.start()
        prepare(
            PrepareOptions(
                inputs=[path],
                output=tmp_path / str(copies),
                tokenizer=tokenizer_folder,
                max_length=64,
                block_characters=16_000,
                bucket_bytes=60_000,
            )
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
    assert peaks[0] > len(text) / 2, "something was measured"


@pytest.mark.parametrize("count", [0, 1, 7, 10, 1000])
def test_splits_have_exact_shares_but_for_the_remainder(count):
    drawn = Counter(_draw_splits(count, split_ratios("8,1,1"), np.random.default_rng(count)).tolist())
    assert sum(drawn.values()) == count
    for split, share in enumerate((0.8, 0.1, 0.1)):
        assert abs(drawn[split] - share * count) < 1


@pytest.mark.parametrize("text", ["8,1", "a,b,c", "0,1,1", "8,-1,1", "nan,1,1", "inf,1,1", ""])
def test_impossible_splits_are_refused(text):
    with pytest.raises(BortError, match="--split"):
        split_ratios(text)


def test_no_tokenizer_and_no_text_are_said(corpus, tokenizer_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("BORT_HOME", "MXNET_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BortError, match="--train-tokenizer"):
        prepare(PrepareOptions(inputs=[corpus], output=tmp_path / "o"))
    (tmp_path / "garbage.txt").write_bytes(bytes(range(32)) * 100)
    with pytest.raises(BortError, match="no text found"):
        prepare(
            PrepareOptions(
                inputs=[tmp_path / "garbage.txt"], output=tmp_path / "p", tokenizer=tokenizer_folder
            )
        )
    (tmp_path / "empty.txt").write_bytes(b"")
    for name in ("garbage.txt", "empty.txt"):
        for shuffle in ("documents", "sentences", "none"):
            output = tmp_path / f"{name}-{shuffle}"
            with pytest.raises(BortError, match="no text found"):
                prepare(
                    PrepareOptions(
                        inputs=[tmp_path / name], output=output, tokenizer=tokenizer_folder, shuffle=shuffle
                    )
                )
        with pytest.raises(BortError, match="no text"):
            prepare(
                PrepareOptions(inputs=[tmp_path / name], output=tmp_path / f"{name}-trained", vocab_size=300)
            )


def test_a_damaged_file_among_good_ones(corpus, tokenizer_folder, tmp_path):
    import gzip

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes((corpus / "a.txt").read_bytes())
    (tmp_path / "in" / "b.txt.gz").write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:-300])
    given = options(tmp_path / "in", tokenizer_folder, tmp_path / "o")
    with pytest.raises(BortError, match=r"b\.txt\.gz: damaged"):
        prepare(given)
    report = prepare(replace(given, output=tmp_path / "p", read=ReadOptions(skip_broken=True)))
    assert report["broken_files"][0].startswith("b.txt.gz") and report["documents"] == 400


def test_a_file_that_cannot_be_read_is_named_or_passed_over(tokenizer_folder, tmp_path, monkeypatch):
    texts = embedded_documents()[:20]
    for name, some in (("a.txt", texts[:10]), ("secret.txt", texts[10:])):
        (tmp_path / name).write_text("\n\n".join(some), encoding="utf-8")
    open_any = os.open

    def guarded(path, *arguments, **settings):  # permissions do not stop a test that runs as root
        if str(path).endswith("secret.txt"):
            raise PermissionError(13, "Permission denied")
        return open_any(path, *arguments, **settings)

    monkeypatch.setattr(os, "open", guarded)
    given = PrepareOptions(
        inputs=[tmp_path / "a.txt", tmp_path / "secret.txt"],
        output=tmp_path / "out",
        tokenizer=tokenizer_folder,
        max_length=64,
    )
    with pytest.raises(BortError, match="secret.txt: cannot be read .Permission denied.*--skip-broken"):
        prepare(given)
    report = prepare(replace(given, read=ReadOptions(skip_broken=True)))
    assert report["documents"] and "secret.txt" in json.dumps(report)
