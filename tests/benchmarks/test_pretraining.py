"""The benchmark of pre-training: its corpus and its seeds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks import pretraining
from bort.errors import BortError


def test_the_benchmark_refuses_shards_of_other_settings_and_names_the_seeds(tmp_path):
    (tmp_path / "text.txt").write_text(
        "\n\n".join(
            f"The {a} dog sees the {b} tree. A {b} cat runs."
            for a in ("small", "old", "new", "large")
            for b in ("green", "tall", "low", "grey")
        )
        * 3
        + "\n",
        encoding="utf-8",
    )
    arguments = SimpleNamespace(
        corpus=str(tmp_path / "text.txt"), tokenizer=None, vocab_size=50, max_length=16, split="8,1,1"
    )
    shards = pretraining.prepare_corpus(arguments, tmp_path)
    index = (shards / "index.json").read_bytes()
    assert (
        pretraining.prepare_corpus(arguments, tmp_path) == shards
        and (shards / "index.json").read_bytes() == index
    )
    arguments.max_length = 32
    with pytest.raises(BortError, match="max_length 16 -> 32"):
        pretraining.prepare_corpus(arguments, tmp_path)
    evaluation = {"step": 1, "seconds": 1.0, "eval_mlm_accuracy": 0.5, "eval_mlm_loss": 1.0}
    result = {"seconds": 1.0, "core_hours": 0.1, "tokens_per_second": 9.0}
    summary = pretraining.summarize(
        {name: [[evaluation]] * 2 for name in pretraining.METHODS},
        {name: [result] * 2 for name in pretraining.METHODS},
        1,
        [7, 3],
    )
    assert [row["seed"] for row in summary["runs"]] == [7, 3, 7, 3]
