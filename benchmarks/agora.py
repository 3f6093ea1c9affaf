"""Does Agora work? A small student and a larger teacher, pre-trained here, on CoLA, RTE, SST-2, CB and COPA.

    python -m benchmarks.agora --data FOLDER  # everything; 2 hours of a core and the pre-training
    python -m benchmarks.agora --data FOLDER --tasks SST-2 --no-ablations  # one task
    python -m benchmarks.agora --data FOLDER --pretrained-student runs/pretraining/kd-0 \\
        --pretrained-teacher runs/pretraining/teacher
    python -m benchmarks.agora --data FOLDER --text articles.txt --seeds 0,1,2 --student 4,8,256,512 \\
        --teacher 6,8,512,2048 --student-steps 50000 --teacher-steps 50000  # larger networks

For every task and seed: plain fine-tuning, plain fine-tuning and distillation with as many steps as Agora
took, and Agora, all with the same starting grid, the same training examples X and the same held-out examples
E that choose the model; the dev set is only reported. X is scarce on purpose (Agora's premise); the teacher
was fine-tuned on more examples where the task has more, among them those of X and E, and the same teacher
serves distillation and Agora. A killed benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from benchmarks.harness import common, records
from benchmarks.harness.data import text_files
from bort.architecture import Architecture
from bort.errors import BortError, run_command
from bort.files import read_json, write_json

MAX_LENGTH = 64


class Setting(NamedTuple):
    """What a task is run with: its folder, training examples (0: all) and epochs of student and teacher."""

    folder: str
    limit: int
    epochs: int
    teacher_limit: int
    teacher_epochs: int
    batch_size: int = 16


SETTINGS: Dict[str, Setting] = {
    "CoLA": Setting("glue/CoLA", 300, 4, 8000, 8),
    "RTE": Setting("glue/RTE", 200, 4, 0, 4),
    "SST-2": Setting("glue/SST-2", 300, 4, 12000, 3),
    "CB": Setting("superglue/CB", 120, 8, 0, 30),
    "COPA": Setting("superglue/COPA", 200, 4, 0, 12),
}
GRID = {"lr": [3e-4, 1e-3], "weight_decay": [0.01], "warmup": [0.2], "seed": [0, 1]}
HELD_OUT = 0.3
BUDGET = 2
"""New points of a round, in multiples of X."""
TEACHER = ["--lr", "3e-4", "--dropout", "0.1"]
AGORA = [
    "--prune",
    "half",
    "--max-rounds",
    "3",
    "--min-rounds",
    "3",
    "--held-out-fraction",
    str(HELD_OUT),
    "--temperature",
    "1",
]
ABLATIONS: Dict[str, List[str]] = {
    "Agora as above": [],
    "no tau: the teacher's logits on X alone": ["--tau", "none", "--soft"],
    "tau: mlm": ["--tau", "mlm"],
    "tau: noise": ["--tau", "noise"],
    "tau: embedding": ["--tau", "embedding"],
    "no pruning": ["--prune", "none"],
    "one replay": ["--replays", "1"],
    "half as many new points": ["--budget", "HALF"],
    "hard labels": ["--hard"],
}


def arguments(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", required=True, help="folder with text/, glue/ and superglue/ (see benchmarks.harness.data)"
    )
    parser.add_argument(
        "--text", nargs="+", help="text to pre-train on (default: the files of text/ in --data)"
    )
    parser.add_argument(
        "--work", default="runs/agora-benchmark", help="models and runs; reused when the command repeats"
    )
    parser.add_argument("--tasks", default=",".join(SETTINGS))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--student", default="2,4,128,256")
    parser.add_argument("--teacher", default="4,4,192,768")
    parser.add_argument("--vocab-size", type=int, default=4000)
    parser.add_argument(
        "--pretrained-student", metavar="RUN", help="a run of run_pretrain.py instead of one made here"
    )
    parser.add_argument("--pretrained-teacher", metavar="RUN", help="the same; both need one vocabulary")
    parser.add_argument("--student-steps", type=int, default=6000)
    parser.add_argument("--teacher-steps", type=int, default=4000)
    parser.add_argument(
        "--pretrain-batch", type=int, default=32, help="sequences of 64 tokens per pre-training step"
    )
    parser.add_argument("--pretrain-lr", type=float, default=5e-4)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies the training examples of every task"
    )
    parser.add_argument("--ablation-task", default="SST-2")
    parser.add_argument(
        "--ablation-seeds",
        type=int,
        default=0,
        metavar="N",
        help="only the first N seeds for the ablations (default: all)",
    )
    parser.add_argument("--no-ablations", action="store_true")
    parser.add_argument(
        "--no-record", action="store_true", help="print the tables without writing them to results/"
    )
    return parser.parse_args(argv)


def call(title: str, command: Sequence[str]) -> float:
    """Run one of the project's commands in a process of its own; seconds taken."""
    print(f"== {title}: python {' '.join(command)}", flush=True)
    started = time.monotonic()
    if subprocess.run([sys.executable, *command], cwd=str(common.ROOT)).returncode:
        raise BortError(f"{title} failed; its message is above")
    return time.monotonic() - started


def pretrain(args: argparse.Namespace, work: Path) -> Dict[str, Any]:
    """Shards, teacher and student below ``work``; what they took and reached."""
    given = {"teacher": args.pretrained_teacher, "student": args.pretrained_student}
    for name in (name for name, run in given.items() if run):
        if not (work / f"pretrained-{name}").exists():
            (work / f"pretrained-{name}").symlink_to(Path(given[name]).resolve(), target_is_directory=True)
    if all(given.values()):
        return {name: read_json(work / f"pretrained-{name}" / "results.json") for name in given}
    if any(given.values()):
        raise BortError("--pretrained-student and --pretrained-teacher go together")
    texts = args.text or text_files(Path(args.data))
    if not (work / "shards" / "index.json").exists():
        call(
            "text to shards",
            [
                "-m",
                "bort.text",
                "prepare",
                "--input",
                *map(str, texts),
                "--output",
                str(work / "shards"),
                "--train-tokenizer",
                "sentencepiece",
                "--vocab-size",
                str(args.vocab_size),
                "--max-length",
                str(MAX_LENGTH),
                "--split",
                "18,1,1",
                "--quiet",
            ],
        )
    facts: Dict[str, Any] = {}
    for name, architecture, steps in (
        ("teacher", args.teacher, args.teacher_steps),
        ("student", args.student, args.student_steps),
    ):
        output = work / f"pretrained-{name}"
        if not (output / "results.json").exists():
            call(
                f"pre-training the {name}",
                [
                    "run_pretrain.py",
                    "--architecture",
                    architecture,
                    "--data",
                    str(work / "shards"),
                    "--method",
                    "mlm",
                    "--output",
                    str(output),
                    "--steps",
                    str(steps),
                    "--batch-size",
                    str(args.pretrain_batch),
                    "--lr",
                    str(args.pretrain_lr),
                    "--schedule",
                    "linear",
                    "--warmup-ratio",
                    "0.1",
                    "--dropout",
                    "0",
                    "--max-length",
                    str(MAX_LENGTH),
                    "--eval-interval",
                    str(max(1, steps // 4)),
                    "--checkpoint-interval",
                    str(max(1, steps // 4)),
                    *(["--resume"] if output.exists() else []),
                ],
            )
        facts[name] = read_json(output / "results.json")
    return facts


def _tuple_of(run: Path) -> str:
    """The architecture of a pre-training run."""
    return Architecture.from_dict(read_json(run / "model" / "config.json")["architecture"]).display


def finetune(*command: str) -> None:
    """One call of ``run_finetune.py`` in this process (so that what tau asked its network is asked once)."""
    import run_finetune

    print(f"== python run_finetune.py {' '.join(command)}", flush=True)
    if run_finetune.main(list(command)):
        raise BortError("run_finetune.py failed")


class Bench:
    """The runs of one command line, each in its folder below ``work``."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.seeds = [int(seed) for seed in args.seeds.split(",")]
        self.few = self.seeds[: args.ablation_seeds] if args.ablation_seeds else self.seeds
        write_json(work / "grid.json", GRID)

    def common(self, task: str, limit: int) -> List[str]:
        """Arguments that teacher and student share."""
        setting = SETTINGS[task]
        return [
            "--task",
            task,
            "--data-dir",
            str(Path(self.args.data) / setting.folder),
            "--max-length",
            str(MAX_LENGTH),
            "--batch-size",
            str(setting.batch_size),
            "--limit",
            str(int(limit * self.args.scale)),
            "--weight-decay",
            "0.01",
            "--warmup",
            "0.2",
            "--resume",
        ]

    def teacher(self, task: str) -> Dict[str, Any]:
        """The fine-tuned teacher's results."""
        setting, output = SETTINGS[task], self.work / task / "teacher"
        finetune(
            *self.common(task, setting.teacher_limit),
            "--model",
            str(self.work / "pretrained-teacher" / "model"),
            "--output",
            str(output),
            "--epochs",
            str(setting.teacher_epochs),
            *TEACHER,
        )
        return read_json(output / "results.json")

    def budget(self, task: str) -> int:
        """New points of a round: :data:`BUDGET` times what is left of the training examples once E is held
        out."""
        return round(BUDGET * (1 - HELD_OUT) * SETTINGS[task].limit * self.args.scale)

    def agora(self, task: str, name: str, seeds: Sequence[int], *extra: str) -> List[Dict[str, Any]]:
        """Agora's results for ``seeds``, in ``work/TASK/NAME``. ``--hard`` leaves the teacher's logits
        out."""
        setting, output = SETTINGS[task], self.work / task / name
        options = (
            ["--soft", *extra]
            if "--hard" not in extra and "--soft" not in extra
            else [option for option in extra if option != "--hard"]
        )
        options = [str(self.budget(task) // 2) if option == "HALF" else option for option in options]
        # Every option once: the later one of two would win, but the command should read as what it does.
        finetune(
            *self.common(task, setting.limit),
            "--model",
            str(self.work / "pretrained-student" / "model"),
            "--algorithm",
            "agora",
            "--teacher",
            str(self.work / task / "teacher" / "model"),
            "--tau-model",
            str(self.work / "pretrained-teacher" / "model"),
            "--grid",
            str(self.work / "grid.json"),
            "--epochs",
            str(setting.epochs),
            "--output",
            str(output),
            "--seeds",
            ",".join(map(str, seeds)),
            *AGORA,
            "--dropout",
            "0",
            *([] if "--budget" in options else ["--budget", str(self.budget(task))]),
            *([] if "--tau" in options else ["--tau", "mlm,noise,embedding"]),
            *options,
        )
        folders = [output / f"seed-{seed}" for seed in seeds] if len(seeds) > 1 else [output]
        return [read_json(folder / "results.json") for folder in folders]


def figures(values: Sequence[Optional[float]]) -> Dict[str, Any]:
    """Median, maximum and all values of a metric, in percent."""
    known = [100 * value for value in values if value is not None]
    return (
        {
            "median": round(statistics.median(known), 2),
            "maximum": round(max(known), 2),
            "all": " ".join(f"{value:.1f}" for value in known),
        }
        if known
        else {}
    )


def task_rows(task: str, teacher: Dict[str, Any], runs: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """The lines of one task: teacher, then each method over the seeds."""
    metric = next(iter(teacher["metrics"]["dev"]))
    rows = [
        {
            "task": task,
            "metric": metric,
            "X": teacher["rows"],
            "method": "teacher",
            **figures([teacher["metrics"]["dev"][metric]]),
            "trainings": 1,
            "steps": teacher["history"][-1]["step"],
            "seconds": teacher["seconds"],
        }
    ]
    for place, line in enumerate(runs[0]["compare"]):
        lines = [run["compare"][place] for run in runs]
        rows.append(
            {
                "task": task,
                "metric": metric,
                "X": runs[0]["x"],
                "method": line["method"],
                **figures([one["dev"].get(metric) for one in lines]),
                "on E": figures([one["score"] for one in lines]).get("median"),
                **{
                    key: statistics.median(one[key] for one in lines)
                    for key in ("trainings", "steps", "seconds")
                },
            }
        )
    return rows


def teacher_columns(teacher: Dict[str, Any], runs: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """How often the teacher is right, in percent: on E, which it was trained on, and on dev, which it was
    not."""
    metric, value = next(iter(teacher["metrics"]["dev"].items()))
    value = teacher["metrics"]["dev"].get("accuracy", value)
    return {
        "teacher right on E": round(100 * statistics.median(run["teacher"]["accuracy"] for run in runs), 1),
        "teacher on dev": round(100 * value, 1),
        "its dev metric": "accuracy" if "accuracy" in teacher["metrics"]["dev"] else metric,
    }


def main(argv: Optional[List[str]] = None) -> int:
    args = arguments(argv)
    tasks = [task for task in args.tasks.split(",") if task]
    unknown = [task for task in [*tasks, args.ablation_task] if task not in SETTINGS]
    if unknown:
        raise BortError(f"{', '.join(unknown)}: this benchmark has {', '.join(SETTINGS)}")
    started, load = time.monotonic(), common.load_average()
    work = Path(args.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    facts = pretrain(args, work)
    pretrained = time.monotonic() - started
    bench, rows, wins, notes = Bench(args, work), [], [], []
    shares: List[Dict[str, Any]] = []
    for task in tasks:
        teacher = bench.teacher(task)
        runs = bench.agora(task, "agora", bench.seeds, "--compare")
        lines = task_rows(task, teacher, runs)
        rows += lines
        ours = {line["method"]: line["median"] for line in lines}
        wins.append(
            {
                "task": task,
                "Agora - plain": round(ours["Agora"] - ours["plain"], 2),
                "Agora - plain, equal compute": round(ours["Agora"] - ours["plain, equal compute"], 2),
                "Agora - distillation, equal compute": round(
                    ours["Agora"] - ours["distillation, equal compute"], 2
                ),
                **teacher_columns(teacher, runs),
            }
        )
        shares.append(
            {
                "task": task,
                "added": statistics.median(run["additions"] for run in runs),
                **{
                    part: f"{100 * statistics.median(run['share_by_part'].get(part, 0) for run in runs):.0f}%"
                    for part in ("training", "errors", "tau", "labelling")
                },
                "tau examples/s": statistics.median(run.get("tau_examples_per_second", 0) for run in runs),
                "labelled/s": statistics.median(run.get("labelled_per_second", 0) for run in runs),
            }
        )
        print(records.markdown_table(lines), flush=True)
    ablations = []
    if not args.no_ablations:
        if args.ablation_task not in tasks:
            bench.teacher(args.ablation_task)
        for number, (name, extra) in enumerate(ABLATIONS.items()):
            runs = (
                bench.agora(args.ablation_task, "agora", bench.seeds, "--compare")[: len(bench.few)]
                if not extra and args.ablation_task in tasks
                else bench.agora(args.ablation_task, f"ablation-{number}", bench.few, *extra)
            )
            metric = next(iter(runs[0]["metrics"]["dev"]))
            ablations.append(
                {
                    "variant": name,
                    "seeds": len(runs),
                    **figures([run["metrics"]["dev"][metric] for run in runs]),
                    "on E": figures([run["best"]["score"] for run in runs]).get("median"),
                    **{
                        key: statistics.median(run[key] for run in runs)
                        for key in ("trainings", "steps", "additions")
                    },
                }
            )
    better = sum(row["Agora - plain"] > 0 and row["Agora - distillation, equal compute"] > 0 for row in wins)
    notes.append(
        "Agora's median is above plain fine-tuning's and above distillation's at equal compute on "
        f"{better} of {len(wins)} tasks."
    )
    notes.append(
        "X counts the training examples left after holding E out; E is three tenths of them, drawn "
        "anew for every seed. The teacher was trained on the examples its own line states, so on "
        "more than the student where the task has more. Among them are those of E: 'teacher right "
        "on E' is what Agora sees and says little of new examples, for which 'teacher on dev' "
        "stands. Figures are the task's first metric on the official dev set, in percent, over "
        f"{len(bench.seeds)} seeds; trainings, steps and seconds are medians per seed, and Agora's "
        "seconds include tau, labelling and finding errors."
    )
    notes.append(
        "The teachers' epochs, rate and dropout were chosen by their own dev scores among two or "
        f"three. The size of X, and {BUDGET} times X as the new points of a round, were set after "
        "an earlier run with more examples and X new points, whose dev scores were seen; they are "
        "alike for all methods of a task."
    )
    weak = [row["task"] for row in wins if row["teacher right on E"] < 66.7]
    if weak:
        notes.append(
            f"The teacher is right on less than 2/3 of E on {', '.join(weak)}: there the algorithm "
            "promises nothing."
        )
    accuracy = {name: round(100 * fact["eval_mlm_accuracy"], 1) for name, fact in facts.items()}
    tables: Dict[str, Any] = {"Tasks": rows, "Differences of medians": wins, "Where the time goes": shares}
    if ablations:
        tables[f"Ablations on {args.ablation_task}"] = ablations
    for heading, table in tables.items():
        print(f"\n{heading}\n{records.markdown_table(table)}")
    settings = {
        **{
            name: "{} after {:,} steps and {:,} tokens of pre-training, MLM accuracy {}%".format(
                _tuple_of(work / f"pretrained-{name}"),
                facts[name]["steps"],
                facts[name]["tokens"],
                accuracy[name],
            )
            for name in ("teacher", "student")
        },
        "grid": str(GRID),
        "agora": " ".join([*AGORA, f"--budget {BUDGET}X"]),
        "teacher fine-tuning": " ".join(TEACHER),
        "seeds": args.seeds,
        "scale": args.scale,
        "pretraining seconds": round(pretrained),
        "seconds": round(time.monotonic() - started),
    }
    print("\n".join(notes))
    if not args.no_record:
        images = []
        example = work / tasks[0] / "agora"
        example = (
            example / f"seed-{bench.seeds[0]}" / "agora.png"
            if len(bench.seeds) > 1
            else example / "agora.png"
        )
        if example.is_file():
            common.RESULTS.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(example, common.RESULTS / "agora.png")
            images.append("agora.png")
        print(
            records.record(
                "agora",
                tables,
                settings,
                notes,
                "Agora against plain fine-tuning and distillation",
                argv,
                started_load=load,
                images=images,
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
