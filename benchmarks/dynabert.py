"""DynaBERT on a real teacher: every sub-network beside what else one could have at its size.

    python -m benchmarks.dynabert --data FOLDER --teacher SST-2=runs/sst2/model --teacher CoLA=runs/cola/model
    python -m benchmarks.dynabert --data FOLDER --teacher SST-2=runs/sst2/model --parts main,cut --seeds 0

For every task and seed: (a) the full network, (b) the same sub-network cut out of the rewired teacher without
training, (c) a network of that size, cut out the same way and distilled alone for as many steps as the
adaptive network took. Ablations: no rewiring, no width stage first, no augmentation. The compute of a
training is counted in FLOPs of its forward passes (a backward pass counts two), the teacher's included. Every
step is one of the project's own commands; a killed benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from benchmarks.harness import common, records
from benchmarks.harness.data import HELP
from bort.architecture import Architecture
from bort.dynabert.grid import Multipliers, grid
from bort.errors import BortError, run_command
from bort.files import read_json, write_json

FOLDERS = {"SST-2": "glue/SST-2", "CoLA": "glue/CoLA", "RTE": "glue/RTE"}
PARTS = ("main", "cut", "alone", "ablations")
ABLATIONS: Dict[str, List[str]] = {
    "no rewiring": ["--importance-examples", "0"],
    "no width stage first": ["--stages", "depth"],
    "no augmentation": ["--augment", "", "--augment-copies", "0"],
}
Key = Tuple[float, float]


def arguments(argv: Optional[List[str]]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path, help=HELP)
    parser.add_argument(
        "--teacher",
        action="append",
        required=True,
        metavar="TASK=FOLDER",
        help="a classifier fine-tuned for SST-2, CoLA or RTE; several times",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/dynabert"), help="runs; reused when repeated"
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--widths", default="1,0.75,0.5,0.25")
    parser.add_argument("--depths", default="1,0.75,0.5")
    parser.add_argument("--limit", type=int, default=0, help="training examples (0: all)")
    parser.add_argument("--copies", type=int, default=1, help="augmented copies of every example")
    parser.add_argument("--augment", default="embedding", help="tau-functions of the copies")
    parser.add_argument("--epochs", type=int, default=1, help="of every stage")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--trials", type=int, default=20, help="timed passes of the latency table (0: none)")
    parser.add_argument("--no-record", action="store_true", help="print the tables only")
    return parser.parse_args(argv)


class Bench:
    """The runs of one task, each in its folder."""

    def __init__(self, args: argparse.Namespace, task: str, teacher: str) -> None:
        self.args, self.task, self.teacher = args, task, teacher
        self.folder = args.output / task
        self.data = args.data / FOLDERS[task]
        self.full = Architecture.from_dict(read_json(Path(teacher) / "config.json")["architecture"])
        shares = [[float(part) for part in text.split(",")] for text in (args.widths, args.depths)]
        self.networks = grid(*shares, self.full)

    def call(self, *command: str) -> None:
        """One of the project's commands in a process of its own."""
        print(f"== python {' '.join(command)}", flush=True)
        done = subprocess.run(
            [sys.executable, *command], cwd=str(common.ROOT), env=common.module_environment()
        )
        if done.returncode:
            raise BortError(f"python {' '.join(command[:4])} ... failed; its message is above")

    def shared(self, seed: int, output: Path) -> List[str]:
        """Arguments that every training has."""
        args = self.args
        return [
            *("run_finetune.py", "--task", self.task, "--data-dir", str(self.data), "--output", str(output)),
            *("--seed", str(seed), "--epochs", str(args.epochs), "--lr", str(args.lr)),
            *("--batch-size", str(args.batch_size), "--max-length", str(args.max_length)),
            *("--limit", str(args.limit), "--warmup", "0.1", "--resume"),
        ]

    def adaptive(self, name: str, seed: int, *more: str) -> Dict[str, Any]:
        """``results.json`` of an adaptive training."""
        output = self.folder / f"{name}-{seed}"
        if not (output / "results.json").is_file():
            args = self.args
            self.call(
                *self.shared(seed, output),
                *("--algorithm", "dynabert", "--teacher", self.teacher),
                *("--widths", args.widths, "--depths", args.depths),
                *(("--augment", args.augment, "--augment-copies", str(args.copies)) if args.copies else ()),
                *more,
            )
        return read_json(output / "results.json")

    def alone(self, chosen: Multipliers, seed: int, steps: int) -> float:
        """The dev score of one sub-network, cut out of the rewired teacher and distilled by itself."""
        output = self.folder / f"alone-{chosen.width:g}-{chosen.depth:g}-{seed}"
        start = self.folder / f"start-{chosen.width:g}-{chosen.depth:g}-{seed}"
        if not (output / "results.json").is_file():
            if not (start / "config.json").is_file():
                self.call(
                    *("-m", "bort.dynabert", "extract", str(self.folder / f"cut-{seed}"), str(start)),
                    *("--width", str(chosen.width), "--depth", str(chosen.depth)),
                )
            per_epoch = -(
                -read_json(self.folder / f"main-{seed}" / "results.json")["rows"] // self.args.batch_size
            )
            command = self.shared(seed, output)
            command[command.index("--epochs") + 1] = str(-(-steps // per_epoch))
            self.call(
                *command,
                *("--model", str(start), "--algorithm", "distill", "--teacher", self.teacher),
                *("--distill-weight", "1", "--temperature", "1", "--max-steps", str(steps)),
            )
        return next(iter(read_json(output / "results.json")["metrics"]["dev"].values()))


def scores(results: Dict[str, Any]) -> Dict[Key, float]:
    """The first dev metric of every sub-network."""
    name = next(iter(results["metrics"]["dev"]))
    return {(row["width"], row["depth"]): row[name] for row in results["subnetworks"]}


def steps_of(results: Dict[str, Any], chosen: Multipliers) -> int:
    """Optimizer steps that a sub-network took part in."""
    last = {row["stage"]: row["step"] for row in results["history"]}
    return sum(count for stage, count in last.items() if stage != "width" or chosen.depth == 1)


def cost(bench: Bench, results: Dict[str, Any]) -> Tuple[float, float]:
    """FLOPs of the adaptive training and of training every sub-network alone for as many steps, each a
    sequence's forward pass times sequences (backward: twice a forward pass)."""
    full, length = bench.full, bench.args.max_length
    flops = {one: one.architecture(full).flops(length) for one in bench.networks}
    last = {row["stage"]: row["step"] for row in results["history"]}
    adaptive = 0.0
    for stage, steps in last.items():
        own = [one for one in bench.networks if stage != "width" or one.depth == 1]
        widths = {one.width for one in own}
        taught = full.flops(length) if stage == "width" else sum(flops[Multipliers(w, 1.0)] for w in widths)
        adaptive += steps * (taught + 3 * sum(flops[one] for one in own))
    alone = sum(steps_of(results, one) * 3 * flops[one] for one in bench.networks)
    # The teacher answers every training example once for each network: it is asked before the training.
    alone += len(bench.networks) * results["rows"] / bench.args.batch_size * full.flops(length)
    return adaptive, alone


def median(values: Sequence[Optional[float]]) -> Optional[float]:
    """In percent, of those that are there."""
    known = [value for value in values if value is not None]
    return round(100 * statistics.median(known), 2) if known else None


def run_task(bench: Bench, parts: Sequence[str], seeds: Sequence[int]) -> Dict[str, Any]:
    """Tables and notes of one task."""
    args, found = bench.args, {}
    runs = {seed: bench.adaptive("main", seed) for seed in seeds}
    for seed in seeds:
        found["ours", seed] = scores(runs[seed])
        if "cut" in parts or "alone" in parts:
            found["cut", seed] = scores(
                bench.adaptive("cut", seed, "--stages", "none", "--augment", "", "--augment-copies", "0")
            )
        if "alone" in parts:
            found["alone", seed] = {
                (one.width, one.depth): bench.alone(one, seed, steps_of(runs[seed], one))
                for one in bench.networks
            }
        if "ablations" in parts:
            for name, options in ABLATIONS.items():
                if name != "no augmentation" or args.copies:
                    found[name, seed] = scores(bench.adaptive(name.replace(" ", "-"), seed, *options))
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    rows = []
    for one in bench.networks:
        small = one.architecture(bench.full)
        row: Dict[str, Any] = {
            "width": one.width,
            "depth": one.depth,
            "⟨D,A,H,I⟩": small.display,
            "parameters (M)": round(small.parameters(30522)["body"] / 1e6, 2),
        }
        row.update(
            {
                kind: median(
                    [found[kind, seed].get((one.width, one.depth)) for seed in seeds if (kind, seed) in found]
                )
                for kind in kinds
            }
        )
        rows.append(row)
    adaptive, alone = cost(bench, runs[seeds[0]])
    return {
        "rows": rows,
        "cost": adaptive / alone,
        "metric": next(iter(runs[seeds[0]]["metrics"]["dev"])),
    }


def main(argv: Optional[List[str]] = None) -> int:
    """Run the benchmark and record it."""
    args = arguments(argv)
    load, parts = common.load_average(), args.parts.split(",")
    seeds = [int(part) for part in args.seeds.split(",")]
    if not set(parts) <= set(PARTS):
        raise BortError(f"--parts {args.parts}: choose among {', '.join(PARTS)}")
    tables: Dict[str, Any] = {}
    notes = [
        "ours: the adaptive network at that width and depth; cut: the rewired teacher without training; "
        "alone: the cut network distilled by itself for as many steps. Medians over seeds, dev set, percent."
    ]
    for text in args.teacher:
        task, _, teacher = text.partition("=")
        if task not in FOLDERS or not teacher:
            raise BortError(f"--teacher {text}: expected TASK=FOLDER with a task among {', '.join(FOLDERS)}")
        bench = Bench(args, task, teacher)
        result = run_task(bench, parts, seeds)
        tables[f"{task} ({result['metric']})"] = result["rows"]
        notes.append(
            f"{task}: the adaptive training cost {result['cost']:.2f} times the FLOPs of training every "
            "sub-network alone."
        )
        if args.trials:
            output = bench.folder / "table"
            bench.call(
                *("-m", "bort.dynabert", "table", str(bench.folder / f"main-{seeds[0]}"), "--task", task),
                *("--data-dir", str(bench.data), "--output", str(output), "--trials", str(args.trials)),
            )
            for row, timed in zip(result["rows"], read_json(output / "results.json")["subnetworks"]):
                row["ms"] = round(1000 * timed["seconds"], 2)
    write_json(args.output / "tables.json", tables)
    print(json.dumps(notes, indent=1))
    for heading, rows in tables.items():
        print(f"\n{heading}\n{records.markdown_table(rows)}")
    if not args.no_record:
        settings = {
            name: getattr(args, name)
            for name in ("seeds", "limit", "copies", "augment", "epochs", "lr", "batch_size", "max_length")
        }
        records.record(
            "dynabert",
            tables,
            settings,
            notes,
            "DynaBERT: widths and depths of a real teacher",
            argv,
            started_load=load,
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
