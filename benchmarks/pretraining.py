"""Distillation against the masked language model alone, Table 3 and Figure 1 at the scale of this machine.

    python -m benchmarks.pretraining  # about 25 minutes on 2 quiet cores
    python -m benchmarks.pretraining --steps 60 --teacher-steps 60 --seeds 0 --no-record  # a trial
    python -m benchmarks.pretraining --corpus wikipedia/ --tokenizer roberta/ --student bort \\
        --teacher roberta-large/ --max-length 512 --steps 25000 --batch-size 64  # the paper's scale

The same student is trained by both methods with the same data, seeds, steps and evaluation set; the teacher
by the same runner (``--method mlm``) unless ``--teacher`` is a folder. Compute is wall time times cores, the
teacher's answers included, as the paper counts them; training the teacher is listed apart. "Converged" is the
first evaluation at which a run is as accurate as the *worse* of both methods is at its best (median over the
seeds of each method's best). A killed benchmark goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from benchmarks.harness import common, records
from benchmarks.harness.data import add_data_option, read_text, text_files
from bort.errors import BortError, run_command
from bort.json_files import read_json, read_jsonl
from bort.paper import TABLE_3

METHODS = {"mlm": "Pre-training", "kd": "Distillation"}


def prepare_corpus(arguments: argparse.Namespace, folder: Path) -> Path:
    """Shards in ``folder`` of --corpus, the text of --data or the embedded text.

    Raises:
        BortError: they cannot be made, or those that are there are of another text, vocabulary or length.
    """
    from bort.text.__main__ import main as text_command

    shards = folder / "shards"
    corpus = [arguments.corpus] if arguments.corpus else [str(file) for file in text_files(arguments.data)]
    if not corpus:
        corpus = [str(folder / "embedded.txt")]
        folder.mkdir(parents=True, exist_ok=True)
        Path(corpus[0]).write_text(read_text(None) + "\n", encoding="utf-8")
    vocabulary = (
        ["--tokenizer", arguments.tokenizer]
        if arguments.tokenizer
        else ["--train-tokenizer", "sentencepiece", "--vocab-size", str(arguments.vocab_size)]
    )
    # Also over finished shards, which it leaves alone where they are of the same text and options, and else
    # refuses.
    if text_command(
        [
            "prepare",
            "--input",
            *corpus,
            "--output",
            str(shards),
            "--max-length",
            str(arguments.max_length),
            "--split",
            arguments.split,
            "--seed",
            "0",
            *vocabulary,
        ]
    ):
        raise BortError("the corpus could not be prepared")
    return shards


def pretrain(arguments: argparse.Namespace, shards: Path, output: Path, *options: str) -> Dict[str, Any]:
    """Run ``run_pretrain.py`` in this process, or go on with it; its results."""
    import run_pretrain

    print(f"=== {output.name}", flush=True)
    run_pretrain.main(
        [
            "--data",
            str(shards),
            "--output",
            str(output),
            "--resume",
            "--max-length",
            str(arguments.max_length),
            "--batch-size",
            str(arguments.batch_size),
            "--schedule",
            arguments.schedule,
            "--warmup-ratio",
            str(arguments.warmup_ratio),
            "--log-interval",
            "20",
            "--eval-sequences",
            str(arguments.eval_sequences),
            "--checkpoint-interval",
            "200",
            "--dropout",
            str(arguments.dropout),
            *options,
        ]
    )
    return read_json(output / "results.json")


def accuracy(model: Path, arguments: argparse.Namespace, shards: Path) -> float:
    """MLM accuracy of a model folder under the evaluation masks of the students' runs."""
    from bort.backend import distributed
    from bort.checkpoints import model_folder
    from bort.pretraining.inputs import read_corpus
    from bort.pretraining.loop import Pretraining
    from bort.pretraining.settings import Settings

    with distributed.context():
        training = Pretraining(model_folder.load(model), read_corpus(shards)[0], Settings())
        return training.evaluate(arguments.eval_sequences)["eval_mlm_accuracy"]


def curve(run: Path) -> List[Dict[str, float]]:
    """The evaluations of a run: step, seconds, eval_mlm_accuracy."""
    return [row for row in read_jsonl(run / "metrics.jsonl") if "eval_mlm_accuracy" in row]


def reached(rows: Sequence[Dict[str, float]], accuracy: float) -> Optional[Dict[str, float]]:
    """The first evaluation that is at least as accurate, or None."""
    return next((row for row in rows if row["eval_mlm_accuracy"] >= accuracy), None)


def median(values: Sequence[Optional[float]]) -> Optional[float]:
    """None when half of the runs or more never got there."""
    found = [np.inf if value is None else value for value in values]
    middle = float(np.median(found))
    return middle if np.isfinite(middle) else None


def percent(value: float) -> float:
    return round(100 * value, 2)


def summarize(
    curves: Dict[str, List[List[Dict[str, float]]]],
    results: Dict[str, List[Dict[str, Any]]],
    cores: int,
    seeds: Sequence[int],
) -> Dict[str, Any]:
    """Rows of the tables from the evaluations and results of every run, by method and in the order of
    ``seeds``."""
    best = {
        method: [max(row["eval_mlm_accuracy"] for row in rows) for rows in runs]
        for method, runs in curves.items()
    }
    target = min(float(np.median(values)) for values in best.values())
    columns: Dict[str, Dict[str, Any]] = {}
    for method, runs in curves.items():
        first = [reached(rows, target) for rows in runs]
        columns[method] = {
            "hours": median([run["seconds"] / 3600 for run in results[method]]),
            "core_hours": median([run["core_hours"] for run in results[method]]),
            "accuracy": percent(float(np.median(best[method]))),
            "last": percent(float(np.median([rows[-1]["eval_mlm_accuracy"] for rows in runs]))),
            "loss": median([rows[-1]["eval_mlm_loss"] for rows in runs]),
            "step": median([row and row["step"] for row in first]),
            "cost": median([row and row["seconds"] * cores / 3600 for row in first]),
        }
    labels = {
        "hours": "Training time (hours)",
        "core_hours": "Core-hours (paper: GPU hours)",
        "accuracy": "Best MLM accuracy (%)",
        "last": "MLM accuracy after the last step (%)",
        "loss": "MLM loss after the last step (nats)",
        "step": f"Converged (to {percent(target)}%) at step",
        "cost": f"Core-hours to {percent(target)}%",
    }
    of_paper = {
        "hours": "hours",
        "core_hours": "gpu_hours",
        "accuracy": "mlm_accuracy",
        "step": "converged_at_step",
    }
    table = []
    for key, label in labels.items():
        row: Dict[str, Any] = {"": label}
        for method, name in METHODS.items():
            row[f"{name}, here"] = columns[method][key]
        for name, figures in TABLE_3.items():
            row[f"{name}, paper"] = figures.get(of_paper.get(key, ""))
        table.append(row)
    gain = columns["kd"]["accuracy"] - columns["mlm"]["accuracy"]
    verdict = (
        f"Distillation ends {abs(gain):.2f} points {'above' if gain > 0 else 'below'} the masked "
        f"language model alone (medians of each run's best evaluation, {len(best['kd'])} seeds)"
    )
    for key, what in (("step", "steps"), ("cost", "core-hours, the teacher's answers included")):
        mlm, kd = columns["mlm"][key], columns["kd"][key]
        if mlm and kd:
            verdict += f"; to {percent(target)}% it takes {kd / mlm:.2f} times the {what}"
    runs = [
        {
            "method": METHODS[method],
            "seed": seed,
            "best MLM accuracy (%)": percent(best[method][number]),
            "tokens/s": round(results[method][number]["tokens_per_second"]),
            "core-hours": round(results[method][number]["core_hours"], 4),
        }
        for method in METHODS
        for number, seed in zip(range(len(best[method])), seeds)
    ]
    return {"table": table, "runs": runs, "verdict": verdict + "."}


def draw(curves: Dict[str, List[List[Dict[str, float]]]], cores: int, path: Path) -> bool:
    """Figure 1: accuracy over steps, and over compute; medians over the seeds."""
    from bort.training.figures import plot_curves

    lines: List[Dict[str, Any]] = [{}, {}]
    for method, runs in curves.items():
        count = min(len(rows) for rows in runs)
        accuracy = [
            float(np.median([100 * rows[index]["eval_mlm_accuracy"] for rows in runs]))
            for index in range(count)
        ]
        hours = [
            float(np.median([rows[index]["seconds"] * cores / 3600 for rows in runs]))
            for index in range(count)
        ]
        lines[0][METHODS[method]] = ([rows["step"] for rows in runs[0][:count]], accuracy)
        lines[1][METHODS[method]] = (hours, accuracy)
    return plot_curves(
        path,
        [
            {"x": "step", "y": "MLM accuracy on the evaluation set (%)", "lines": lines[0]},
            {"x": "core-hours, teacher's answers included", "y": "MLM accuracy (%)", "lines": lines[1]},
        ],
        "Figure 1: distillation and self-supervised pre-training",
    )


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=common.ROOT / "runs" / "pretraining", help="shards and runs go here"
    )
    parser.add_argument(
        "--corpus", help="text file or folder (default: the text of --data, else the embedded corpus)"
    )
    add_data_option(parser)
    parser.add_argument("--tokenizer", help="folder of a vocabulary (default: one is trained on the text)")
    parser.add_argument("--vocab-size", type=int, default=2000)
    parser.add_argument("--split", default="96,2,2", help="train, test and validation (default 96,2,2)")
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--student", default="2,4,128,256")
    parser.add_argument(
        "--teacher", default="4,4,192,768", help="an architecture to train, or a model folder"
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--teacher-steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--dropout", type=float, default=0.0, help="default 0: so small networks have none to spare"
    )
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--teacher-lr", type=float, default=1e-3)
    parser.add_argument(
        "--teacher-mask-ratio",
        type=float,
        default=0.15,
        help="share of tokens that the teacher learns to fill in; more learn faster from "
        "little text (default 0.15). It is evaluated like its students",
    )
    parser.add_argument("--schedule", default="linear", choices=("linear", "noam"))
    parser.add_argument("--warmup-ratio", type=float, default=0.1)
    parser.add_argument("--mlm-weight", type=float, default=0.5)
    parser.add_argument("--kd-weight", type=float, default=0.5)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=15, help="evaluations of a run (default 15)")
    parser.add_argument("--eval-sequences", type=int, default=1000)
    parser.add_argument(
        "--no-record", action="store_true", help="print without writing to benchmarks/results"
    )
    arguments = parser.parse_args(argv)
    load = common.load_average()
    shards = prepare_corpus(arguments, arguments.work)
    notes = []
    teacher = Path(arguments.teacher)
    if not teacher.is_dir():
        trained = pretrain(
            arguments,
            shards,
            arguments.work / "teacher",
            "--architecture",
            arguments.teacher,
            "--method",
            "mlm",
            "--steps",
            str(arguments.teacher_steps),
            "--lr",
            str(arguments.teacher_lr),
            "--mask-ratio",
            str(arguments.teacher_mask_ratio),
            "--eval-interval",
            str(max(1, arguments.teacher_steps // arguments.evaluations)),
        )
        teacher = arguments.work / "teacher" / "model"
        notes.append(
            f"The teacher {arguments.teacher} was trained here in {trained['core_hours']:.3f} "
            f"core-hours to {percent(accuracy(teacher, arguments, shards))}% MLM accuracy; that "
            "time is not in the table."
        )
    runs: Dict[str, List[Path]] = {method: [] for method in METHODS}
    results: Dict[str, List[Dict[str, Any]]] = {method: [] for method in METHODS}
    for seed in arguments.seeds:
        for method in METHODS:
            output = arguments.work / f"{method}-{seed}"
            options = [
                "--architecture",
                arguments.student,
                "--method",
                method,
                "--steps",
                str(arguments.steps),
                "--lr",
                str(arguments.lr),
                "--seed",
                str(seed),
                "--eval-interval",
                str(max(1, arguments.steps // arguments.evaluations)),
            ]
            if method == "kd":
                options += [
                    "--teacher",
                    str(teacher),
                    "--mlm-weight",
                    str(arguments.mlm_weight),
                    "--kd-weight",
                    str(arguments.kd_weight),
                    "--temperature",
                    str(arguments.temperature),
                ]
            results[method].append(pretrain(arguments, shards, output, *options))
            runs[method].append(output)
    curves = {method: [curve(run) for run in runs[method]] for method in METHODS}
    cores = results["mlm"][0]["cores"]
    summary = summarize(curves, results, cores, arguments.seeds)
    notes = [
        summary["verdict"],
        *notes,
        "The paper's accuracies are of a corpus of 270 million sentences, V = 50,265 "
        "and a teacher of 355 million parameters: compare columns of one origin only.",
    ]
    tables = {"Table 3": summary["table"], "Runs": summary["runs"]}
    if arguments.no_record:
        for heading, rows in tables.items():
            print(f"\n{heading}\n{records.markdown_table(rows)}")
        print("\n" + "\n".join(notes))
        draw(curves, cores, arguments.work / "figure1.png")
        return 0
    drawn = draw(curves, cores, common.RESULTS / "pretraining.png")
    path = records.record(
        "pretraining",
        tables,
        {key: value for key, value in vars(arguments).items() if key not in ("work", "no_record")},
        notes,
        "Pre-training: distillation against the masked language model",
        argv,
        None,
        load,
        ["pretraining.png"] if drawn else [],
    )
    print(path.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
