"""Training in bfloat16 beside float32: the same network, data, order and dropout in both, and their curves.

    python -m benchmarks.precision --data DATA  # about 8 minutes on 2 quiet cores
    python -m benchmarks.precision --data DATA --student bort --no-control  # Bort itself; about 35 minutes
    python -m benchmarks.precision --steps 40 --folder /tmp/trial --work /tmp/trial  # a trial

Each training is ``run_pretrain.py --method mlm`` with its own ``--dtype``. A third one, in float32 with
another seed for order, masks and dropout but from the same weights, shows how far apart trainings are that
nobody would call different. A killed benchmark goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from benchmarks.harness import common, records
from benchmarks.harness.data import add_data_option
from benchmarks.pretraining import prepare_corpus, pretrain
from bort.errors import BortError, run_command
from bort.json_files import read_jsonl

FLOAT32, BFLOAT16, CONTROL = "float32", "bfloat16", "float32, another seed"
WINDOW = 50
"""Steps whose losses are averaged: every batch is another one."""
Curves = Dict[str, Dict[str, List[float]]]


def curves_of(run: Path) -> Dict[str, List[float]]:
    """``steps`` and ``losses`` of training, ``eval_steps`` and ``eval_losses`` of a run."""
    rows = read_jsonl(run / "metrics.jsonl")
    trained = [row for row in rows if row.get("mlm_loss") is not None]
    evaluated = [row for row in rows if "eval_mlm_loss" in row]
    return {
        "steps": [row["step"] for row in trained],
        "losses": [row["mlm_loss"] for row in trained],
        "eval_steps": [row["step"] for row in evaluated],
        "eval_losses": [row["eval_mlm_loss"] for row in evaluated],
    }


def smoothed(values: Sequence[float], steps: Sequence[float], window: int = WINDOW) -> List[float]:
    """Means over the rows of the last ``window`` steps."""
    places, found = np.asarray(steps), np.asarray(values, dtype=float)
    return [float(found[(places > step - window) & (places <= step)].mean()) for step in steps]


def compare(curves: Curves, results: Dict[str, Dict[str, Any]]) -> List[Dict[str, Any]]:
    """A row for each training; distances are from float32's, at the same step."""
    exact, rows = curves[FLOAT32], []
    middle = smoothed(exact["losses"], exact["steps"])
    for name, found in curves.items():
        own = smoothed(found["losses"], found["steps"])
        apart = [abs(one - other) for one, other in zip(own, middle)]
        evaluated = [abs(one - other) for one, other in zip(found["eval_losses"], exact["eval_losses"])]
        here = results[name]
        other = name != FLOAT32
        rows.append(
            {
                "training": name,
                f"loss, last {WINDOW} steps": round(own[-1], 4),
                "evaluation loss": round(here["eval_mlm_loss"], 4),
                "evaluation accuracy (%)": round(100 * here["eval_mlm_accuracy"], 2),
                f"largest distance of losses over {WINDOW} steps": round(max(apart), 4) if other else None,
                "largest distance of evaluation losses": round(max(evaluated), 4) if other else None,
                "tokens/s": round(here["tokens_per_second"]),
                "minutes": round(here["seconds"] / 60, 2),
                "faster by": round(results[FLOAT32]["seconds"] / here["seconds"], 3) if other else None,
                "skipped steps": here["skipped"],
            }
        )
    return rows


def draw(curves: Curves, path: Path) -> bool:
    """Training and evaluation losses over steps."""
    from bort.training.figures import plot_curves

    training = {
        name: (found["steps"], smoothed(found["losses"], found["steps"])) for name, found in curves.items()
    }
    evaluations = {name: (found["eval_steps"], found["eval_losses"]) for name, found in curves.items()}
    return plot_curves(
        path,
        [
            {"x": "step", "y": f"training loss (nats, mean of {WINDOW} steps)", "lines": training},
            {"x": "step", "y": "evaluation loss (nats, in float32)", "lines": evaluations},
        ],
        "Masked language model trained in float32 and in bfloat16",
    )


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=common.ROOT / "runs" / "precision", help="shards and runs go here"
    )
    parser.add_argument("--corpus", help="text file or folder (default: the text of --data, else embedded)")
    add_data_option(parser)
    parser.add_argument("--tokenizer", help="folder of a vocabulary (default: one is trained on the text)")
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--split", default="96,2,2", help="train, test and validation (default 96,2,2)")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--student", default="4,4,256,1024", help="a preset or D,A,H,I")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--schedule", default="linear", choices=("linear", "noam"))
    parser.add_argument("--warmup-ratio", type=float, default=0.1)
    parser.add_argument("--eval-sequences", type=int, default=300)
    parser.add_argument("--no-control", action="store_true", help=f"without '{CONTROL}'")
    parser.add_argument("--folder", type=Path, help="where to record instead of benchmarks/results")
    args = parser.parse_args(argv)
    if args.steps < 1:
        raise BortError(f"--steps must be at least 1, not {args.steps}")
    from bort.checkpoints import model_folder
    from bort.pretraining.inputs import make_student, read_corpus
    from bort.training.step import check_dtype

    check_dtype("bfloat16")  # before anything is prepared
    load = common.load_average()
    shards = prepare_corpus(args, args.work)
    start = args.work / "start"
    if not start.exists():
        tokenizer = read_corpus(shards)[0].tokenizer
        model_folder.save(make_student(args.student, None, tokenizer, 0, args.dropout), start, tokenizer)
    wanted = {FLOAT32: ("float32", 0), BFLOAT16: ("bfloat16", 0), CONTROL: ("float32", 1)}
    if args.no_control:
        del wanted[CONTROL]
    curves: Curves = {}
    results: Dict[str, Dict[str, Any]] = {}
    for name, (dtype, seed) in wanted.items():
        run = args.work / f"{dtype}-{seed}"
        results[name] = pretrain(
            args, shards, run, "--init", str(start), "--method", "mlm", "--dtype", dtype, "--seed", str(seed),
            "--steps", str(args.steps), "--lr", str(args.lr), "--log-interval", "5",
            "--eval-interval", str(max(1, args.steps // 10)),
        )  # fmt: skip
        curves[name] = curves_of(run)
    name = records.file_name("precision", args.folder)
    folder = args.folder or common.RESULTS
    drawn = draw(curves, folder / f"{name}.png")
    notes = [
        "Products in bfloat16 (linear layers and vocabulary, forwards and backwards); weights, gradients, "
        "LayerNorm, softmax, losses and optimizer in float32, and all evaluations.",
        "The first two trainings have the same initial weights, batches, masks and dropout; tokens/s are of "
        "one training after the other, so compare them on a quiet machine only.",
    ]
    settings = {
        key: value for key, value in vars(args).items() if key not in ("work", "folder", "no_control")
    }
    path = records.record(
        "precision",
        compare(curves, results),
        settings,
        notes,
        "Training in bfloat16 and in float32",
        argv,
        args.folder,
        load,
        [f"{name}.png"] if drawn else [],
    )
    print(path.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
