"""``make demo``: search, distillation and Agora, one after the other, on text that every Python carries.

No file, no network: the corpus is Python's own documentation, the vocabulary is trained on it, and the task
is to tell sentences about the network from others. The student has few of them to learn from, as Agora
supposes; its teacher has many. Everything is tiny, so that the whole takes less than four minutes; the
commands it prints are the real ones. They run with one thread each unless OMP_NUM_THREADS says otherwise:
networks of this size gain little from a second one, and lose much where it has to share its core.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from bort.errors import BortError, run_command
from bort.json_files import read_json, read_jsonl, write_json
from bort.tasks.synthetic import write_embedded_task
from bort.text.corpus.embedded import embedded_documents

ROOT = Path(__file__).resolve().parents[1]
TEACHER = "3,4,128,512"
SPACE = ["--depths", "1,2,3", "--heads", "2,4", "--hidden", "96,128", "--intermediate", "128,256"]
TASK_SIZES = (3600, 800, 800)
SCARCE = 500
"""Training examples of the student, of which it holds 30% out; the teacher has all."""
GRID = {"lr": [3e-4, 1e-3], "weight_decay": [0.01], "warmup": [0.2], "seed": [0, 1]}
"""Rates for networks of this size, far above the paper's."""


def step(title: str, command: List[str]) -> float:
    """Run one of the project's own commands, shown as a user would type it; seconds taken.

    Raises:
        BortError: it failed.
    """
    print(f"\n=== {title}\n$ python {shlex.join(command)}", flush=True)
    started = time.monotonic()
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", **os.environ}
    if subprocess.run([sys.executable, *command], cwd=str(ROOT), env=environment).returncode != 0:
        raise BortError(f"the demo stopped: '{title}' failed (its message is above)")
    return time.monotonic() - started


def table(rows: List[Dict[str, Any]]) -> str:
    """Rows as aligned text."""
    columns = list(rows[0])
    cells = [columns] + [[str(row[column]) for column in columns] for row in rows]
    widths = [max(len(row[number]) for row in cells) for number in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells
    )


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bort.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", default="demo-run", help="folder for everything it makes; an earlier demo is replaced"
    )
    args = parser.parse_args(argv)
    output = Path(args.output).resolve()
    if output.exists():
        if not (output / "demo.json").exists():
            raise BortError(f"{output}: exists and is not an earlier demo's; choose another --output")
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / "demo.json").write_text(json.dumps({"made by": "python -m bort.demo"}) + "\n")
    started = time.monotonic()
    documents = embedded_documents()
    (output / "corpus.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    write_embedded_task(output / "task", 0, TASK_SIZES, "topic")
    print(
        f"corpus: {len(documents)} pieces of Python's own documentation, "
        f"{sum(map(len, documents)) / 1e6:.1f} MB\ntask: is a sentence about the network? {TASK_SIZES[0]} "
        f"to train the teacher, {SCARCE} for the student"
    )

    def at(*parts: str) -> str:
        return str(output.joinpath(*parts))

    step(
        "Text to shards, with a vocabulary trained on it",
        [
            "-m",
            "bort.text",
            "prepare",
            "--input",
            at("corpus.txt"),
            "--output",
            at("shards"),
            "--train-tokenizer",
            "sentencepiece",
            "--vocab-size",
            "1000",
            "--max-length",
            "64",
        ],
    )
    pretraining = [
        "--batch-size",
        "32",
        "--lr",
        "1e-3",
        "--warmup-ratio",
        "0.2",
        "--schedule",
        "linear",
        "--dropout",
        "0",
        "--max-length",
        "64",
        "--eval-sequences",
        "400",
    ]
    step(
        "A teacher, pre-trained as a masked language model",
        [
            "run_pretrain.py",
            "--architecture",
            TEACHER,
            "--data",
            at("shards"),
            "--method",
            "mlm",
            "--output",
            at("teacher"),
            "--steps",
            "400",
            "--mask-ratio",
            "0.3",
            "--eval-interval",
            "100",
            *pretraining,
        ],
    )
    step(
        "Search: the FPTAS over a small space, against that teacher",
        [
            "run_search.py",
            "--corpus",
            at("shards"),
            "--teacher",
            at("teacher", "model"),
            "--preset",
            "tiny",
            *SPACE,
            "--output",
            at("search"),
        ],
    )
    write_json(output / "grid.json", GRID)
    common = [
        "--architecture",
        at("search", "best.json"),
        "--data",
        at("shards"),
        "--steps",
        "300",
        "--eval-interval",
        "50",
        *pretraining,
    ]
    step(
        "The architecture it found, pre-trained by distillation",
        [
            "run_pretrain.py",
            *common,
            "--method",
            "kd",
            "--teacher",
            at("teacher", "model"),
            "--kd-weight",
            "1",
            "--temperature",
            "1",
            "--output",
            at("student"),
        ],
    )
    step(
        "The same without a teacher, to compare",
        ["run_pretrain.py", *common, "--method", "mlm", "--output", at("alone")],
    )
    tuning = [
        "--task",
        "Embedded",
        "--data-dir",
        at("task"),
        "--max-length",
        "64",
        "--warmup",
        "0.2",
        "--dropout",
        "0",
    ]
    step(
        "The teacher learns the task",
        [
            "run_finetune.py",
            *tuning,
            "--model",
            at("teacher", "model"),
            "--output",
            at("task-teacher"),
            "--epochs",
            "2",
            "--lr",
            "6e-4",
            "--batch-size",
            "32",
        ],
    )
    step(
        "Agora: the student learns it by augmentation, distillation and pruning",
        [
            "run_finetune.py",
            *tuning,
            "--limit",
            str(SCARCE),
            "--model",
            at("student", "model"),
            "--output",
            at("agora"),
            "--algorithm",
            "agora",
            "--teacher",
            at("task-teacher", "model"),
            "--epochs",
            "3",
            "--batch-size",
            "16",
            "--grid",
            at("grid.json"),
            "--prune",
            "half",
            "--max-rounds",
            "2",
            "--min-rounds",
            "2",
            "--held-out-fraction",
            "0.3",
            "--budget",
            "800",
            "--tau",
            "mlm,noise",
            "--tau-model",
            at("teacher", "model"),
            "--soft",
            "--temperature",
            "1",
            "--compare",
        ],
    )
    report(output, time.monotonic() - started)
    return 0


def report(output: Path, seconds: float) -> None:
    """Print what the demo showed, from the records the runs wrote."""
    best = read_json(output / "search" / "best.json")
    curves = {
        name: [
            row
            for row in read_jsonl(output / name / "metrics.jsonl")
            if "eval_mlm_accuracy" in row and row["step"]
        ]
        for name in ("student", "alone")
    }
    agora = read_json(output / "agora" / "results.json")
    tuple_found = "⟨{depth}, {heads}, {hidden}, {intermediate}⟩".format(**best["architecture"])
    print(
        f"\n=== What it showed, after {seconds:.0f} s\n\nSearch chose {tuple_found}.\n\nPre-training, "
        "validation MLM accuracy:"
    )
    print(
        table(
            [
                {
                    "step": first["step"],
                    "distilled": f"{100 * first['eval_mlm_accuracy']:.2f}",
                    "without a teacher": f"{100 * second['eval_mlm_accuracy']:.2f}",
                }
                for first, second in zip(curves["student"], curves["alone"])
            ]
        )
    )
    teacher = read_json(output / "task-teacher" / "results.json")["metrics"]["dev"]
    rows = [
        {"fine-tuning": name, **{metric: f"{100 * value:.2f}" for metric, value in scores.items()}}
        for name, scores in [("teacher", teacher), *((row["method"], row["dev"]) for row in agora["compare"])]
    ]
    print(f"\nFine-tuning, dev set of the embedded task (in percent):\n{table(rows)}")
    print(
        f"The teacher learned from {TASK_SIZES[0]} sentences, the others from {SCARCE}. One seed and "
        "models of this size show how the\nparts work together, not what they can reach: benchmarks/ has "
        "the measurements."
    )
    print(
        f"\nPlots: {output}/search/search.png, {output}/student/curves.png, {output}/agora/agora.png\n"
        f"The model: {output}/agora/model"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
