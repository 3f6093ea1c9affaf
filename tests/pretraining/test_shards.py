"""``run_pretrain.py`` on real shards."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import bort
import run_pretrain
from bort.checkpoints.model_folder import parameter_arrays
from bort.errors import run_command
from bort.masked_lm.batches import BatchStream
from bort.pretraining.loop import Pretraining
from bort.text.shards.plan import PrepareOptions
from bort.text.shards.prepare import prepare
from bort.text.tokenizers.loading import load_tokenizer, train_sentencepiece
from tests.pretraining.common import assert_identical
from tests.tiny import MAX_LENGTH


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Some hundred sentences of twenty words, prepared with a vocabulary of 60."""
    folder = tmp_path_factory.mktemp("corpus")
    words = "the a small large old new dog cat house tree river sings runs sleeps".split()
    words += "sees near under over and but".split()
    rng = np.random.default_rng(3)
    lines = [" ".join(rng.choice(words, rng.integers(6, 12))).capitalize() + "." for _ in range(200)]
    (folder / "text.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    train_sentencepiece(lines, 60).save(folder / "tokenizer")
    prepare(
        PrepareOptions(
            inputs=[folder / "text.txt"],
            output=folder / "shards",
            tokenizer=folder / "tokenizer",
            max_length=MAX_LENGTH,
        )
    )
    return folder / "shards"


def on_shards(shards, output, *arguments):
    return run_command(
        run_pretrain.main,
        [
            "--data",
            str(shards),
            "--output",
            str(output),
            "--architecture",
            "1,2,8,12",
            "--max-length",
            str(MAX_LENGTH),
            "--log-interval",
            "1",
            "--lr",
            "0.01",
            *map(str, arguments),
        ],
    )


def test_the_runner_reads_shards_masks_whole_words_and_bounds_tokens(tmp_path, shards, capsys):
    seen = []
    original = BatchStream.next

    def look(stream):
        batches = original(stream)
        seen.extend(batches)
        return batches

    options = ("--max-tokens", 96, "--whole-words", "--steps", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchStream, "next", look)
        assert on_shards(shards, tmp_path / "run", *options) == 0
    assert len(seen) == 4 and all(batch.token_ids.size <= 96 and len(batch.token_ids) > 1 for batch in seen)
    tokenizer = load_tokenizer(shards / "tokenizer")
    starts, specials = tokenizer.word_starts(), set(tokenizer.special_ids)
    for batch in seen:
        width, masked = batch.token_ids.shape[1], set(batch.rows.tolist())
        original_ids = batch.token_ids.ravel().copy()
        original_ids[batch.rows] = batch.labels
        for row in masked:  # the rest of a masked word is masked too
            following = int(original_ids[row + 1]) if (row + 1) % width else None
            if following is not None and following not in specials and not starts[following]:
                assert row + 1 in masked
    assert load_tokenizer(tmp_path / "run" / "model").fingerprint == tokenizer.fingerprint
    config = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert config["whole_words"] and config["max_tokens"] == 96
    assert on_shards(shards, tmp_path / "run", *options, "--resume") == 0
    assert on_shards(shards, tmp_path / "run", *options[:2], "--steps", 4, "--resume") == 2
    assert "whole_words was true and is false" in capsys.readouterr().err


def test_a_broken_shard_stops_a_training_which_keeps_its_checkpoint(tmp_path, shards, capsys, monkeypatch):
    data = tmp_path / "shards"
    shutil.copytree(shards, data)
    options = ("--batch-size", 4, "--steps", 5, "--checkpoint-interval", 2)
    assert on_shards(data, tmp_path / "whole", *options) == 0
    step = Pretraining.step

    def killed(training):
        if training.progress.step == 3:
            raise KeyboardInterrupt
        return step(training)

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "step", killed)
        assert on_shards(data, tmp_path / "run", *options) == 130
    shard = data / "train-00000.bin"
    good = shard.read_bytes()
    shard.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    capsys.readouterr()
    assert on_shards(data, tmp_path / "run", *options, "--resume") == 2
    assert "train-00000.bin" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    shard.write_bytes(good)
    assert on_shards(data, tmp_path / "run", *options, "--resume") == 0
    assert_identical(*(parameter_arrays(bort.load(tmp_path / name / "model")) for name in ("whole", "run")))
