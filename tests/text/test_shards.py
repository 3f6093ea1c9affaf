"""Corpora to shards: packing, splits, shuffling, restarts, worker counts, checksums and the command line."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bort.errors import BortError, run_command
from bort.text.__main__ import main
from bort.text.corpus.embedded import embedded_documents
from bort.text.corpus.sources import ReadOptions
from bort.text.shards.dataset import (
    SPLITS,
    ShardDataset,
    pack_sentences,
    split_ratios,
    token_dtype,
    write_shard,
)
from bort.text.shards.plan import PrepareOptions
from bort.text.shards.prepare import prepare
from bort.text.shards.scatter import _draw_splits
from bort.text.shards.workers import Crew
from bort.text.tokenizers.loading import load_tokenizer, train_sentencepiece

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(embedded_documents()[:150], 400).save(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """600 short documents in two files, one compressed; every document begins with a name of its own."""
    import gzip

    folder = tmp_path_factory.mktemp("corpus")
    texts = [f"Document{number:04d} begins. {text}" for number, text in enumerate(embedded_documents()[:600])]
    (folder / "a.txt").write_text("\n\n".join(texts[:400]), encoding="utf-8")
    with gzip.open(folder / "b.txt.gz", "wt", encoding="utf-8") as stream:
        stream.write("\n\n".join(texts[400:]))
    return folder


def options(corpus, tokenizer_folder, output, **changes):
    given = PrepareOptions(
        inputs=[corpus],
        output=output,
        tokenizer=tokenizer_folder,
        max_length=64,
        seed=1,
        block_characters=8000,
        bucket_bytes=60_000,
    )
    return replace(given, **changes)


@pytest.fixture(scope="module")
def shards(corpus, tokenizer_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "shards"
    prepare(options(corpus, tokenizer_folder, output))
    return output


def content(folder):
    """What must not depend on how the work was done: every file but the report and the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("report.json", ".lock")
    }


def texts_of(folder, split):
    dataset = ShardDataset(folder, split)
    tokenizer = load_tokenizer(dataset.tokenizer_path)
    return [tokenizer.decode(dataset[index]) for index in range(len(dataset))]


def names_in(texts):
    return [word for text in texts for word in text.replace(".", " ").split() if word.startswith("Document0")]


# ---------------------------------------------------------------- packing


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), max_size=25),
    opens=st.lists(st.booleans(), min_size=25, max_size=25),
    max_length=st.integers(8, 24),
    order=st.randoms(use_true_random=False),
)
def test_packing_keeps_every_token_in_order(lengths, opens, max_length, order):
    tokens = np.arange(10, 10 + sum(lengths), dtype=np.uint16)
    starts = np.cumsum([0] + lengths)[:-1]
    shuffled = list(range(len(lengths)))
    order.shuffle(shuffled)
    starts, sizes = starts[shuffled].astype(np.int64), np.array(lengths, dtype=np.int64)[shuffled]
    opened = np.array(opens[: len(lengths)], dtype=bool)
    packed, offsets = pack_sentences(tokens, starts, sizes, opened, max_length, bos_id=0, eos_id=2)
    assert offsets[0] == 0 and offsets[-1] == len(packed) and packed.dtype == np.uint16
    expected = [
        token for start, size in zip(starts, sizes) for token in tokens[start : start + size].tolist()
    ]
    assert [token for token in packed.tolist() if token >= 10] == expected
    sequences = [packed[a:b].tolist() for a, b in zip(offsets[:-1].astype(int), offsets[1:].astype(int))]
    sentence_at = {
        int(tokens[start]): (int(size), bool(flag))
        for start, size, flag in zip(starts, sizes, opened)
        if size
    }
    for number, sequence in enumerate(sequences):
        assert sequence[0] == 0 and sequence[-1] == 2 and 3 <= len(sequence) <= max_length
        for place, token in enumerate(sequence[2:-1], start=2):
            # A separator stands inside exactly where a document begins.
            if token in sentence_at:
                assert (sequence[place - 1] == 2) == sentence_at[token][1]
        assert sequence.count(0) == 1
        if number:
            # The sequence before had no room for this one's first sentence.
            size, flag = sentence_at.get(sequence[1], (max_length, False))
            assert len(sequences[number - 1]) + min(size, max_length - 2) + flag > max_length


def test_a_sentence_longer_than_a_sequence_is_cut():
    packed, offsets = pack_sentences(
        np.arange(10, 30, dtype=np.uint32), np.array([0]), np.array([20]), np.array([True]), 10, 0, 2
    )
    assert offsets.tolist() == [0, 10, 20, 26]
    assert packed[10:20].tolist() == [0, *range(18, 26), 2]


# ---------------------------------------------------------------- the whole preparation


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


# ---------------------------------------------------------------- interruptions


def test_a_finished_folder_is_not_made_again_and_others_are_refused(
    shards, corpus, tokenizer_folder, tmp_path
):
    before = content(shards)
    again = prepare(options(corpus, tokenizer_folder, shards))
    assert again["already_finished"] and content(shards) == before
    for change, message in (
        ({"seed": 2}, "seed 1 -> 2"),
        ({"max_length": 32}, "max_length"),
        ({"inputs": [corpus / "a.txt"]}, "inputs"),
        ({"tokenizer": None, "vocab_size": 300}, "tokenizer"),
    ):
        with pytest.raises(BortError, match=f"another preparation.*{message}"):
            prepare(options(corpus, tokenizer_folder, shards, **change))
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(BortError, match=r"not empty \(mine.txt"):
        prepare(options(corpus, tokenizer_folder, tmp_path))
    assert content(shards) == before


def test_an_error_at_any_point_leaves_a_folder_that_continues(
    shards, corpus, tokenizer_folder, tmp_path, monkeypatch
):
    """Stop the work after each of its files in turn, as a kill would, and start again in the same folder."""

    class Killed(BaseException):
        pass

    output = tmp_path / "out"
    generator = random.Random(0)
    real = os.replace
    attempts = 0
    for _ in range(60):
        attempts += 1
        left = generator.randrange(1, 14)

        def replace_some(source, target):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            real(source, target)

        monkeypatch.setattr(os, "replace", replace_some)
        try:
            prepare(options(corpus, tokenizer_folder, output))
            break
        except Killed:
            with pytest.raises(BortError, match="run the same command again|no shards"):
                ShardDataset(output)
    monkeypatch.setattr(os, "replace", real)
    assert attempts > 4 and content(output) == content(shards)


def children_of(pid):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_kill_9_and_restart_give_the_same_shards(shards, corpus, tokenizer_folder, tmp_path):
    output = tmp_path / "killed"
    code = (
        "import sys; from bort.text.shards.plan import PrepareOptions; from bort.text.shards.prepare "
        f"import prepare\nprepare(PrepareOptions(inputs=[{str(corpus)!r}], output={str(output)!r}, "
        f"tokenizer={str(tokenizer_folder)!r}, max_length=64, seed=1, block_characters=8000, "
        "bucket_bytes=60_000, workers=2))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=str(ROOT))
    deadline = time.time() + 60
    while time.time() < deadline and process.poll() is None and len(list(output.glob("work/spill-*"))) < 3:
        time.sleep(0.005)
    assert process.poll() is None, "it was to be killed before its end"
    with pytest.raises(BortError, match="another run is writing"):
        prepare(options(corpus, tokenizer_folder, output))
    workers = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2
    while time.time() < deadline and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers), "workers end with their parent"
    assert not (output / "index.json").exists()
    prepare(options(corpus, tokenizer_folder, output))
    assert content(output) == content(shards)


def test_a_worker_that_dies_is_reported():
    with pytest.raises(BortError, match="worker process was killed"):
        with Crew(2) as crew:
            crew.start(int)
            crew.do(os._exit, 3)
            crew.finish()


def test_errors_of_workers_reach_the_user(tmp_path, tokenizer_folder, corpus):
    output = tmp_path / "out"
    prepare(options(corpus, tokenizer_folder, output))
    (output / "index.json").unlink()
    (output / "work").mkdir()
    (output / "work" / "group-000000.json").write_text('{"blocks": 1, "rows": 0, "pages": 0, "broken": []}')
    (output / "work" / "spill-000000-000000").write_bytes(b"something else entirely")
    for workers in (1, 2):
        with pytest.raises(BortError, match="spill-000000-000000: not a file of this program"):
            prepare(options(corpus, tokenizer_folder, output, workers=workers))


# ---------------------------------------------------------------- broken shards


def test_broken_shards_are_named(shards, tmp_path):
    import shutil

    copy = tmp_path / "copy"

    def fresh():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(shards, copy)
        return copy / "train-00000.bin"

    file = fresh()
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    dataset = ShardDataset(copy)
    with pytest.raises(BortError, match=r"train-00000\.bin: a broken shard \(its checksum"):
        dataset[0]
    last = dataset[len(dataset) - 1]
    assert last[0] == 0, "the other shards are fine"
    assert len(ShardDataset(copy, verify=False)[0]) == dataset.lengths[0]
    with pytest.raises(BortError, match="train-00000.bin"):
        dataset.check()
    file = fresh()
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(BortError, match=r"train-00000\.bin: a broken shard \(\d+ bytes long"):
        ShardDataset(copy)
    fresh().unlink()
    with pytest.raises(BortError, match=r"train-00000\.bin: a broken shard"):
        ShardDataset(copy)
    offsets = fresh().with_name("train-00000.offsets.bin")
    positions = np.fromfile(offsets, "<u8")
    positions[1] = positions[2]
    positions.tofile(offsets)
    with pytest.raises(BortError, match=r"train-00000\.offsets\.bin"):
        ShardDataset(copy)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"format": 1', '"format": 99', "newer version"),
        ('"uint16"', '"int8"', "damaged"),
        ('"train-00000"', '"../../x"', "damaged"),
        ('"sequences"', '"x"', "damaged"),
        ("{", "[", "not valid JSON"),
    ],
)
def test_a_damaged_index_is_named(shards, tmp_path, old, new, message):
    text = (shards / "index.json").read_text()
    (tmp_path / "index.json").write_text(text.replace(old, new))
    with pytest.raises(BortError, match=rf"index\.json.*{message}"):
        ShardDataset(tmp_path)


def test_missing_shards_say_how_to_make_them(tmp_path, shards):
    with pytest.raises(BortError, match="python -m bort.text prepare"):
        ShardDataset(tmp_path)
    with pytest.raises(BortError, match="no split 'other'"):
        ShardDataset(shards, "other")


def test_large_vocabularies_take_four_bytes(tmp_path):
    assert token_dtype(65536) == np.dtype("<u2") and token_dtype(65537) == np.dtype("<u4")
    entry = write_shard(
        tmp_path, "x", np.array([0, 70000, 2], dtype=np.uint32), np.array([0, 3], dtype=np.uint64)
    )
    assert (tmp_path / "x.bin").read_bytes() == b"\0\0\0\0\x70\x11\x01\0\2\0\0\0" and entry["tokens"] == 3


# ---------------------------------------------------------------- the command line


def test_command_line(corpus, tokenizer_folder, tmp_path, capsys):
    arguments = [
        "prepare",
        "--input",
        str(corpus / "a.txt"),
        "--output",
        str(tmp_path / "o"),
        "--quiet",
        "--workers",
        "1",
        "--max-length",
        "64",
    ]
    assert main([*arguments, "--tokenizer", str(tokenizer_folder)]) == 0
    printed = capsys.readouterr().out
    assert "documents" in printed and "tokens/s" in printed and "train" in printed
    assert main(["check", str(tmp_path / "o"), "--show", "1"]) == 0
    assert "[train 0]" in capsys.readouterr().out
    assert main([*arguments, "--tokenizer", str(tokenizer_folder)]) == 0
    assert "already finished" in capsys.readouterr().out


def test_the_papers_preset_shuffles_sentences_and_splits_8_1_1(corpus, tokenizer_folder, tmp_path):
    arguments = [
        "prepare",
        "--input",
        str(corpus / "a.txt"),
        "--tokenizer",
        str(tokenizer_folder),
        "--quiet",
        "--workers",
        "1",
        "--max-length",
        "64",
        "--preset",
        "paper",
    ]
    assert main([*arguments, "--output", str(tmp_path / "a")]) == 0
    chosen = json.loads((tmp_path / "a" / "index.json").read_text())["options"]
    assert (chosen["shuffle"], chosen["split"]) == ("sentences", [0.8, 0.1, 0.1])
    assert main([*arguments, "--output", str(tmp_path / "b"), "--shuffle", "none", "--split", "1,0,0"]) == 0
    chosen = json.loads((tmp_path / "b" / "index.json").read_text())["options"]
    assert (chosen["shuffle"], chosen["split"]) == ("none", [1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--input", "nowhere"], "nowhere: no such file"),
        (["--vocab-size", "5"], "--train-tokenizer"),
        (["--tokenizer", "nowhere"], "nowhere: no such file or folder"),
        (["--split", "1,1"], "--split"),
        (["--max-length", "3"], "--max-length"),
        (["--workers", "0"], "--workers"),
        (["--seed", "-1"], "--seed"),
        (["--train-tokenizer", "sentencepiece"], "not both"),
    ],
)
def test_command_line_mistakes_end_with_2_and_one_line(
    corpus, tokenizer_folder, tmp_path, capsys, extra, message
):
    given = [
        "prepare",
        "--input",
        str(corpus),
        "--tokenizer",
        str(tokenizer_folder),
        "--quiet",
        "--output",
        str(tmp_path / "o"),
    ]
    assert run_command(main, [*given, *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "o" / "index.json").exists()


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
