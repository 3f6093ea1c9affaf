"""A search of eight tiny tuples: its settings, and ways to run it."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import numpy as np

from bort.architecture import Architecture
from bort.backend.mxnet import nd
from bort.errors import run_command
from bort.json_files import read_jsonl
from bort.models import Bert
from bort.search.candidate import InitialValues
from bort.search.fptas import search as search_with
from bort.search.lines import Lines
from bort.search.settings import EMBEDDED, SearchInputs, SearchSettings
from bort.search.shared_folder import SearchFolder
from bort.search.teacher import build_teacher, find_maximum, teacher_outputs
from tests.tiny import ROOT

TEACHER = "3,2,24,32"
WORDS = ("the a small large old new dog cat house tree river sings runs sleeps sees near under over and "
         "but").split()
SPACE = ["--depths", "1,2", "--heads", "2", "--hidden", "8,16", "--intermediate", "8,16", "--epsilon", "1"]
TINY_RUN = ["--teacher", TEACHER, *SPACE, "--batch-size", "5", "--max-length", "16", "--speed-lines", "7",
            "--micro-batch-size", "3", "--lr", "0.5"]
COMPARED = ("name", "interval", "size", "speed", "losses", "ce", "kl", "error", "W")
Row = Dict[str, Any]
SETTINGS = SearchSettings(depths=(1, 2), heads=(2,), hidden=(8, 16), intermediate=(8,), epsilon=1, steps=3,
                          batch_size=6, max_length=12, speed_lines=6, micro_batch_size=4, lr=0.3, dropout=0.0)
CANDIDATE = Architecture(2, 2, 16, 8)
INITIAL = InitialValues(SETTINGS.seed)
BY_COST = SearchSettings(depths=(1, 2), heads=(2,), hidden=(8, 16), intermediate=(8,), epsilon=1, steps=0)


def text_lines(count: int = 120, seed: int = 3) -> List[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(6, 12))).capitalize() + "." for _ in range(count)]


def outputs_of(lines: Lines, folder: Path, scale: float = 1.0, micro_batch: int = 4) -> Any:
    """A teacher with ``scale`` times larger weights, its outputs, and how often it was built."""
    built = []

    def make() -> Bert:
        model = build_teacher(find_maximum(TEACHER), lines, 16, 0)
        for parameter in model.collect_params().values():
            parameter.set_data(parameter.data() * scale)
        built.append(model)
        return model

    outputs = teacher_outputs(SearchFolder(folder, {}, resume=True), lines, make, micro_batch)
    return (built[0] if built else None), outputs, len(built)


def run(output: Path, corpus: Path, *more: str) -> int:
    import run_search

    return run_command(run_search.main, ["--corpus", str(corpus), "--output", str(output), *TINY_RUN, *more])


def process(output: Path, corpus: Path, *more: str, **settings: Any) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(ROOT / "run_search.py"), "--corpus", str(corpus), "--output",
                             str(output), *TINY_RUN, *more], env=dict(os.environ, OMP_NUM_THREADS="1",
                                                                      OMP_WAIT_POLICY="passive"),
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **settings)


def results(folder: Path) -> Dict[str, Row]:
    """What must not depend on who computed it, by candidate."""
    return {row["name"]: {key: row[key] for key in COMPARED}
            for row in read_jsonl(folder / "candidates.jsonl")}


def train_head(model: Bert) -> None:
    """As much training as a teacher is asked for."""
    model.decoder[3].bias.data()[:] = 0.01


def probabilities_of(model: Bert, lines: Lines, start: int, stop: int) -> np.ndarray:
    """softmax of the network's logits at the scored positions, line by line, by the network's own MLM
    head."""
    batch, found = lines.batch(start, stop), []
    for row in range(stop - start):
        positions = batch.rows[batch.rows // batch.token_ids.shape[1] == row] % batch.token_ids.shape[1]
        _, logits = model(nd.array(batch.token_ids[row:row + 1], dtype="int32"),
                          nd.array(batch.valid_length[row:row + 1], dtype="float32"),
                          nd.array(positions[None], dtype="int32"))
        found.append(logits.softmax(axis=-1).asnumpy()[0])
    return np.concatenate(found).astype("float64")


def search(output: Path, settings: SearchSettings, teacher: str = "roberta-large", corpus: Any = EMBEDDED,
           resume: bool = False, **inputs: Any) -> List[Row]:
    """The search of the library, with its inputs by keyword."""
    return search_with(output, settings, SearchInputs(teacher=teacher, corpus=corpus, **inputs), resume)
