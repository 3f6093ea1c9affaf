"""What ``benchmarks.dynabert`` runs for one task: each training and search in a folder of its own, by the
project's own commands, which is reused when the benchmark is repeated."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from benchmarks.harness import common, search_runs
from bort.architecture import Architecture
from bort.dynabert.grid import Multipliers, grid
from bort.errors import BortError
from bort.json_files import read_json, write_json

FOLDERS = {"SST-2": "glue/SST-2", "CoLA": "glue/CoLA", "RTE": "glue/RTE"}
COMMAND_FILE = "command.json"
SEARCH = (
    "--steps",
    "3",
    "--batch-size",
    "16",
    "--speed-lines",
    "64",
    "--max-length",
    "128",
    "--epsilon",
    "1",
)
"""Of the plain search: the paper's three steps, on batches that two cores can bear, of every tuple."""


@dataclass(frozen=True)
class TaskSettings:
    """How the networks of one task are trained.

    Attributes:
        limit: training examples (0: all).
        copies: augmented ones of every example; ``augment`` names the tau-functions (with "+" between them).
        epochs: of every stage.
        dropout: None for the teacher's own.
        dtype: of all trainings, alone or not.
    """

    limit: int = 0
    copies: int = 1
    augment: str = "embedding"
    epochs: int = 1
    lr: float = 2e-5
    batch_size: int = 32
    max_length: int = 64
    dropout: Optional[float] = None
    dtype: str = "float32"

    def changed(self, text: str) -> "TaskSettings":
        """With ``"limit=1000,max_length=128"``.

        Raises:
            BortError: a name is unknown, or a value is no number.
        """
        known = {field.name: field.type for field in fields(self)}
        values: Dict[str, Any] = {}
        for part in text.split(","):
            name, equals, value = part.partition("=")
            name = name.strip().replace("-", "_")
            if name not in known or not equals:
                raise BortError(
                    f"--setting {text}: {part!r} is not NAME=VALUE with a name among {', '.join(known)}"
                )
            kind = {"int": int, "str": str}.get(str(known[name]), float)
            try:
                values[name] = kind(value.strip())
            except ValueError as error:
                raise BortError(f"--setting {text}: {value!r} is no {kind.__name__}") from error
        return replace(self, **values)


@dataclass(frozen=True)
class Plan:
    """What is the same for all tasks.

    Attributes:
        output: the folder of all runs.
        sampled: of the adaptive training.
        keep_fraction: share of the training set that its search measures errors on.
        mlm: a pre-trained model of the teacher's architecture, T of the plain search; None draws T at random.
    """

    data: Path
    output: Path
    widths: str
    depths: str
    sampled: int = 0
    keep_fraction: float = 0.1
    mlm: Optional[Path] = None


class Bench:
    """The runs of one task.

    Args:
        teacher: folder of a classifier fine-tuned for the task.
    """

    def __init__(self, plan: Plan, task: str, teacher: str, settings: TaskSettings) -> None:
        self.plan, self.task, self.teacher, self.settings = plan, task, teacher, settings
        self.folder, self.data = plan.output / task, plan.data / FOLDERS[task]
        self.full = Architecture.from_dict(read_json(Path(teacher) / "config.json")["architecture"])
        shares = [[float(part) for part in text.split(",")] for text in (plan.widths, plan.depths)]
        self.networks = grid(shares[0], shares[1], self.full)

    def named(self, text: Optional[str]) -> List[Multipliers]:
        """``"0.5/1,0.5/0.5"`` as sub-networks; all of them without.

        Raises:
            BortError: one is not among those trained.
        """
        names = {f"{one.width:g}/{one.depth:g}": one for one in self.networks}
        wanted = list(names) if text is None else [part.strip() for part in text.split(",")]
        for part in wanted:
            if part not in names:
                raise BortError(
                    f"--alone-networks {text}: {part!r} is no WIDTH/DEPTH among {', '.join(names)}"
                )
        return [names[part] for part in wanted]

    def call(self, command: Sequence[str]) -> None:
        """One of the project's commands in a process of its own.

        Raises:
            BortError: it failed.
        """
        print(f"== python {' '.join(command)}", flush=True)
        done = subprocess.run(
            [sys.executable, *command], cwd=str(common.ROOT), env=common.module_environment()
        )
        if done.returncode:
            raise BortError(f"python {' '.join(command[:4])} ... failed; its message is above")

    def once(self, output: Path, end: str, command: Sequence[str]) -> Dict[str, Any]:
        """The JSON file ``end`` that a command leaves in ``output``; what has ended is not repeated.

        Raises:
            BortError: another command began the folder, or this one fails.
        """
        begun = output.with_name(f"{output.name}.{COMMAND_FILE}")
        if output.exists() and (not begun.is_file() or read_json(begun) != list(command)):
            raise BortError(
                f"{output}: was made by another command than this benchmark's present options "
                "give; use the same options, or choose another --output"
            )
        if not (output / end).is_file():
            output.parent.mkdir(parents=True, exist_ok=True)
            write_json(begun, list(command))
            self.call(command)
        return read_json(output / end)

    def shared(self, seed: int, output: Path, epochs: Optional[int] = None) -> List[str]:
        """Arguments that every training has."""
        chosen = self.settings
        return [
            *("run_finetune.py", "--task", self.task, "--data-dir", str(self.data), "--output", str(output)),
            *("--seed", str(seed), "--epochs", str(epochs or chosen.epochs), "--lr", str(chosen.lr)),
            *("--batch-size", str(chosen.batch_size), "--max-length", str(chosen.max_length)),
            *("--limit", str(chosen.limit), "--warmup", "0.1", "--resume"),
            *(() if chosen.dropout is None else ("--dropout", str(chosen.dropout))),
            *("--dtype", chosen.dtype),
        ]

    def adaptive(
        self, name: str, seed: int, more: Sequence[str] = (), augmented: bool = True
    ) -> Dict[str, Any]:
        """``results.json`` of an adaptive training."""
        output, chosen = self.folder / f"{name}-{seed}", self.settings
        return self.once(
            output,
            "results.json",
            [
                *self.shared(seed, output),
                *("--algorithm", "dynabert", "--teacher", self.teacher, "--sampled", str(self.plan.sampled)),
                *("--widths", self.plan.widths, "--depths", self.plan.depths),
                *("--keep-fraction", str(self.plan.keep_fraction)),
                *(
                    ("--augment", chosen.augment.replace("+", ","), "--augment-copies", str(chosen.copies))
                    if chosen.copies and augmented
                    else ()
                ),
                *more,
            ],
        )

    def main(self, seed: int) -> Dict[str, Any]:
        """The adaptive network."""
        return self.adaptive("main", seed)

    def cut(self, seed: int) -> Dict[str, Any]:
        """The rewired teacher without training."""
        return self.adaptive("cut", seed, ("--stages", "none"), augmented=False)

    def alone(self, one: Multipliers, seed: int, steps: int, scratch: bool = False) -> Dict[str, Any]:
        """``results.json`` of one sub-network distilled by itself.

        Args:
            scratch: begin with random weights rather than with those cut out of the rewired teacher.
        """
        name = f"{one.width:g}-{one.depth:g}-{seed}"
        output = self.folder / f"{'scratch' if scratch else 'alone'}-{name}-{steps}"
        per_epoch = -(-self.main(seed)["rows"] // self.settings.batch_size)
        if scratch:
            start = ("--model", f"random:{one.architecture(self.full)}", "--tokenizer", self.teacher)
        else:
            start = ("--model", str(self.start(one, seed)))
        return self.once(
            output,
            "results.json",
            [
                *self.shared(seed, output, -(-steps // per_epoch)),
                *start,
                *("--algorithm", "distill", "--teacher", self.teacher, "--distill-weight", "1"),
                *("--temperature", "1", "--max-steps", str(steps)),
            ],
        )

    def start(self, one: Multipliers, seed: int) -> Path:
        """The model folder of a sub-network cut out of the rewired teacher."""
        self.cut(seed)
        start = self.folder / f"start-{one.width:g}-{one.depth:g}-{seed}"
        if not (start / "config.json").is_file():
            shutil.rmtree(start, ignore_errors=True)  # a part of one, of a benchmark that was killed
        self.once(
            start,
            "config.json",
            [
                *("-m", "bort.dynabert", "extract", str(self.folder / f"cut-{seed}"), str(start)),
                *("--width", str(one.width), "--depth", str(one.depth)),
            ],
        )
        return start

    def supernet_search(self, seed: int) -> List[Dict[str, Any]]:
        """Rows of the search over the adaptive network, the largest W first."""
        self.main(seed)
        output = self.folder / f"supernet-{seed}"
        self.once(
            output,
            "best/config.json",
            [
                *("run_search.py", "--supernet", str(self.folder / f"main-{seed}"), "--task", self.task),
                *("--data-dir", str(self.data), "--output", str(output), "--extract", str(output / "best")),
            ],
        )
        return read_json(output / "results.json")["subnetworks"]

    def plain_search(self, seed: int) -> Dict[str, Any]:
        """``best.json`` of the plain FPTAS over the same tuples: W by the error of three training steps."""
        full, output = self.full, self.folder / f"search-{seed}"
        others = list(dict.fromkeys(one.architecture(full) for one in self.networks))[1:]
        text = search_runs.corpus(self.plan.output, self.plan.data, None)
        return self.once(
            output,
            "best.json",
            [
                *("run_search.py", "--output", str(output), "--resume", "--seed", str(seed), *SEARCH),
                *(
                    "--teacher",
                    str(self.plan.mlm or full),
                    "--tokenizer",
                    self.teacher,
                    "--corpus",
                    str(text),
                ),
                *("--depths", str(full.depth), "--heads", str(full.heads), "--hidden", str(full.hidden)),
                *("--intermediate", str(full.intermediate), "--top", "99"),
                *(("--include", *map(str, others)) if others else ()),
            ],
        )

    def timed(self, seed: int, trials: int) -> Mapping[str, Any]:
        """``results.json`` of the table with measured latencies."""
        output = self.folder / "table"
        return self.once(
            output,
            "results.json",
            [
                *("-m", "bort.dynabert", "table", str(self.folder / f"main-{seed}"), "--task", self.task),
                *("--data-dir", str(self.data), "--output", str(output), "--trials", str(trials)),
            ],
        )

    def described(self) -> str:
        """The settings in a sentence."""
        shown = {name: value for name, value in asdict(self.settings).items() if value is not None}
        return f"{self.task}: " + ", ".join(f"{name} {value}" for name, value in shown.items()) + "."
