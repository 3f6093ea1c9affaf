"""What a table of the paper costs: measured training throughput, times the work that its tasks are.

Throughput is measured here, on this machine, with the model that is asked about; the rest is arithmetic whose
assumptions stand in the notes of every record.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from bort.architecture import PRESETS, Architecture
from bort.finetuning.loop import LoopOptions, Settings, TrainingData, fine_tune
from bort.finetuning.sources import choose_tokenizer, classifier_for, load_source
from bort.tasks.base import Task
from bort.tasks.encoding import encode
from bort.tasks.registry import get_task
from bort.text.tokenizers.base import Tokenizer

TOKENS: Dict[str, int] = {
    "CoLA": 11,
    "SST-2": 13,
    "MRPC": 54,
    "STS-B": 32,
    "QQP": 31,
    "MNLI-m": 40,
    "MNLI-mm": 40,
    "QNLI": 51,
    "RTE": 72,
    "WNLI": 38,
    "BoolQ": 145,
    "CB": 90,
    "COPA": 22,
    "MultiRC": 360,
    "ReCoRD": 270,
    "SuperGLUE-RTE": 72,
    "WiC": 24,
    "WSC": 28,
    "RACE-M": 340,
    "RACE-H": 440,
}
"""Tokens of an average training example, cut to 512: our estimate where the data is not there to measure
it."""
EXAMPLES: Dict[str, int] = {"COPA": 800, "MultiRC": 24000, "ReCoRD": 201000, "RACE-M": 50800, "RACE-H": 62400}
"""Training examples where they are question-answer pairs, after balancing (sections 5.2 and 5.3): our
estimate too."""
SAMPLE = 500
"""Examples whose tokens are counted."""
LENGTHS = (32, 128, 512)
BATCH = 8
EPOCHS, ROUNDS = 3, 3
TEACHER = PRESETS["roberta-large"].architecture
OTHER_TFLOPS = 10
"""A processor that sustains so many TFLOP/s, to say what the same work would cost elsewhere."""


def training_speeds(model: Any, tokenizer: Tokenizer, steps: int = 4) -> Dict[int, float]:
    """Tokens per second of whole training steps (forward, backward, update) by input length."""
    speeds = {}
    for length in sorted({min(length, model.max_length) for length in LENGTHS}):
        rng = np.random.default_rng(0)
        rows = [
            rng.integers(5, tokenizer.vocab_size, length).astype(np.int32) for _ in range(BATCH * (steps + 1))
        ]
        network = classifier_for(get_task("RTE"), model, 0)
        ends: List[float] = []

        def stamp(ends: List[float] = ends) -> bool:
            ends.append(time.perf_counter())
            return False

        fine_tune(
            network,
            TrainingData(rows, rng.integers(0, 2, len(rows))),
            lambda _: {"none": 0.0},
            Settings(batch_size=BATCH, epochs=1),
            tokenizer.pad_id,
            options=LoopOptions(ranks=False, stop_when=stamp),
        )
        speeds[length] = BATCH * length / float(np.median(np.diff(ends)))
        model = network.bort
    return speeds


def seconds_per_example(speeds: Dict[int, float], length: float) -> float:
    """Of training on inputs of an average length, between the measured ones; shorter inputs count as the
    shortest."""
    known = sorted(speeds)
    return float(np.interp(length, known, [one / speeds[one] for one in known]))


def sustained(speeds: Dict[int, float], architecture: Architecture) -> Dict[int, float]:
    """FLOP per second of the measured training steps: three forward passes each."""
    return {length: speed * 3 * architecture.flops(length) / length for length, speed in speeds.items()}


def size_of(task: Task, data: str, tokenizer: Tokenizer, max_length: int) -> Tuple[int, float, str]:
    """Training examples of the published task, their mean tokens, and where the latter are from."""
    official = task.official_counts.get("train", {})
    examples = EXAMPLES.get(task.name) or official.get("answers") or official.get("rows", 0)
    if not task.available(data, "train"):
        return examples, TOKENS[task.name], "estimate"
    rng = np.random.default_rng(0)
    split = task.training_subset(task.read(data, "train"), rng)
    part = split.subset(np.sort(rng.choice(len(split), min(SAMPLE, len(split)), replace=False)))
    lengths = [len(token_ids) for token_ids in encode(task, part, tokenizer, max_length).token_ids]
    return examples, float(np.mean(lengths)), "data"


def rows_of(
    tasks: Sequence[str],
    data: str,
    speeds: Dict[int, float],
    architecture: Architecture,
    tokenizer: Tokenizer,
    max_length: int,
) -> List[Dict[str, Any]]:
    """One row per task that is trained, and their sum."""
    rows = []
    fastest = max(sustained(speeds, architecture).values())
    rounds = sum(range(1, ROUNDS + 1))
    for name in tasks:
        task = get_task(name)
        if task.model_task is not None:
            continue
        examples, tokens, source = size_of(task, data, tokenizer, max_length)
        epoch = examples * seconds_per_example(speeds, tokens) / 3600
        forward = architecture.flops(max(1, round(tokens)))
        # Forward and backward passes are three forward passes; D has X, 2X, 3X in its rounds.
        student = EPOCHS * rounds * 3 * forward * examples
        teacher = (EPOCHS * 3 + ROUNDS - 1) * TEACHER.flops(max(1, round(tokens))) * examples
        rows.append(
            {
                "task": name,
                "training examples": examples,
                "tokens each": round(tokens, 1),
                "from": source,
                "hours per epoch": epoch,
                f"plain, {EPOCHS} epochs (h)": EPOCHS * epoch,
                "Agora (h)": EPOCHS * rounds * epoch,
                "its teacher (h)": teacher / fastest / 3600,
                "Agora and teacher (PFLOP)": (student + teacher) / 1e15,
            }
        )
    total = (
        {
            "task": "together",
            **{
                key: sum(row[key] for row in rows)
                for key in rows[0]
                if key not in ("task", "tokens each", "from")
            },
        }
        if rows
        else {}
    )
    return [
        {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        for row in [*rows, *([total] if len(rows) > 1 else [])]
    ]


def estimate(
    tasks: Sequence[str], model: str, data: str, tokenizer_path: Optional[str], architecture: Optional[str]
) -> Tuple[List[Dict[str, Any]], Dict[str, Any], List[str]]:
    """Rows, settings and notes of a cost record."""
    tokenizer = choose_tokenizer(model, tokenizer_path)
    network = load_source(model, tokenizer, architecture)
    network = network.body
    speeds = training_speeds(network, tokenizer)
    rows = rows_of(tasks, data, speeds, network.architecture, tokenizer, network.max_length)
    rates = sustained(speeds, network.architecture)
    settings = {
        "model": Path(model).name,
        "architecture": network.architecture.display,
        "tokens/s": ", ".join(f"{speed:,.0f} at {length}" for length, speed in speeds.items()),
        "GFLOP/s": ", ".join(f"{value / 1e9:.0f} at {length}" for length, value in rates.items()),
    }
    work = rows[-1]["Agora and teacher (PFLOP)"] if rows else 0.0
    epochs = EPOCHS * sum(range(1, ROUNDS + 1))
    notes = [
        f"Measured here: whole training steps with batches of {BATCH} at {', '.join(map(str, speeds))} "
        "tokens. Examples are the published counts (pairs after balancing); tokens are counted on "
        f"{SAMPLE} training examples where the data is there, and our estimate elsewhere.",
        f"Agora: the convergent set alone, {EPOCHS} epochs a training, {ROUNDS} rounds whose D grows by "
        f"X each time: {epochs} epochs of X. Its teacher: RoBERTa-large fine-tuned for {EPOCHS} epochs, "
        f"then labelling {ROUNDS - 1} X, by its FLOPs at the best FLOP/s measured here. The paper's "
        "full grid of 500 sets would multiply the student's part.",
        f"Elsewhere: PFLOP divided by what a processor sustains. At {OTHER_TFLOPS} TFLOP/s (an "
        f"assumption: nothing here ran on a GPU) all of it is {work * 1e3 / OTHER_TFLOPS / 3600:.1f} "
        "hours.",
    ]
    return rows, settings, notes
