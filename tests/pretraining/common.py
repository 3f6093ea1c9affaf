"""What the tests of pre-training share: a corpus in memory, a student, short trainings, comparisons."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bort.checkpoints.model_folder import parameter_arrays
from bort.json_files import read_jsonl
from bort.masked_lm.masking import MaskingPolicy
from bort.models import Bert, initialize
from bort.pretraining.loop import pretrain
from bort.pretraining.settings import Corpus, Intervals, Settings
from bort.training.run_folder import RunFolder
from tests.tiny import MAX_LENGTH, TINY, VOCAB

BOS, PAD, EOS, MASK, FIRST, FREQUENT = 0, 1, 2, 4, 5, 8


class MemoryCorpus:
    """Random tokens, of which more than half are the same one: something to learn in a few steps."""

    def __init__(self, count, seed, longest=MAX_LENGTH):
        rng = np.random.default_rng(seed)
        self.rows = []
        for length in rng.integers(4, longest - 1, count):
            tokens = np.where(rng.random(length) < 0.6, FREQUENT, rng.integers(FIRST, VOCAB, length))
            self.rows.append(np.array([BOS, *tokens, EOS], dtype=np.int32))
        self.lengths = np.array([len(row) for row in self.rows])
        self.fingerprint = f"memory-{count}-{seed}"

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def corpus(count=40, seed=0):
    policy = MaskingPolicy(VOCAB, MASK, [BOS, PAD, EOS, 3, MASK])
    return Corpus(MemoryCorpus(count, seed), MemoryCorpus(12, seed + 1), policy, PAD)


def student(dropout=0.0, seed=0, architecture=TINY):
    model = Bert(architecture, VOCAB, max_length=MAX_LENGTH, dropout=dropout)
    initialize(model, seed)
    return model


def train(folder, settings, model=None, teacher=None, resume=False, after_step=None, data=None, **intervals):
    model = model or student()
    settings = Settings(**{"steps": 6, "batch_size": 8, "lr": 3e-3, "warmup_ratio": 0.1, **settings})
    with RunFolder(folder, {}, resume) as run:
        results = pretrain(
            model,
            data or corpus(),
            settings,
            run,
            teacher,
            Intervals(**{"log": 1, "evaluate": 100, "checkpoint": 5, **intervals}),
            after_step,
        )
    return parameter_arrays(model), results


def assert_close(left, right, tolerance=2e-5):
    for name, value in left.items():
        np.testing.assert_allclose(right[name], value, atol=tolerance, err_msg=name)


def assert_identical(left, right):
    for name, value in left.items():
        np.testing.assert_array_equal(right[name], value, err_msg=name)


def metrics(folder):
    """Rows of a run without what the clock says."""
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "tokens_per_second")}
        for row in read_jsonl(Path(folder) / "metrics.jsonl")
    ]


class Tokenizer:
    """As much of a tokenizer as model folders and teachers are checked with."""

    kind, fingerprint, vocab_size = "sentencepiece", "f" * 64, VOCAB

    def save(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
