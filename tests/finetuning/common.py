"""What the tests of fine-tuning share: small classifiers, learnable data, and runs of ``run_finetune.py``."""

from __future__ import annotations

import json
import sys

import numpy as np

import run_finetune
from bort.checkpoints.model_folder import parameter_arrays
from bort.errors import run_command
from bort.finetuning.loop import Settings, TrainingData, fine_tune
from bort.models import Bert, Classifier, initialize
from tests.tiny import MAX_LENGTH, ROOT, TINY, VOCAB


def classifier(seed=0, dropout=0.0, outputs=2):
    body = Bert(TINY, VOCAB, max_length=MAX_LENGTH, dropout=dropout)
    initialize(body, seed)
    model = Classifier(body, outputs, dropout=dropout)
    model.initialize_head(seed)
    return model


def learnable(count=60, seed=0):
    """Sequences whose class is whether the token 5 is in them."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(6, VOCAB, rng.integers(4, 20)).astype(np.int32) for _ in range(count)]
    labels = rng.integers(0, 2, count)
    for sequence, label in zip(ids, labels):
        sequence[0] = 0
        if label:
            sequence[rng.integers(1, len(sequence))] = 5
    return TrainingData(ids, labels)


def loss_of(model):
    return {"score": -float(np.abs(parameter_arrays(model)["classifier.1.weight"]).sum())}


def train(model, data, run=None, **settings):
    settings = Settings(**{"lr": 1e-3, "epochs": 2, "batch_size": 4, "warmup": 0.1, **settings})
    return fine_tune(model, data, loss_of, settings, 1, run)


def run(folder, *extra, output="run", code=0):
    command = [*_options(folder, output), "--batch-size", "8", *extra]
    assert run_command(run_finetune.main, command) == code
    results = folder / output / "results.json"
    return json.loads(results.read_text()) if results.exists() else None


def command_line(folder, output, *extra):
    return [sys.executable, str(ROOT / "run_finetune.py"), *_options(folder, output), "--epochs", "3", *extra]


def _options(folder, output):
    """Arguments that every run on the folder's task has."""
    return [
        *("--task", "SST-2", "--data-dir", str(folder / "SST-2"), "--model", str(folder / "bort")),
        *("--output", str(folder / output), "--lr", "5e-3"),
    ]
