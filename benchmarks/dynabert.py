"""DynaBERT on a real teacher: every sub-network beside what else one could have at its size.

    python -m benchmarks.dynabert --data FOLDER --teacher SST-2=runs/sst2/model --teacher CoLA=runs/cola/model
    python -m benchmarks.dynabert --data FOLDER --teacher SST-2=runs/sst2/model --parts main,cut --seeds 0
    python -m benchmarks.dynabert --data FOLDER --teacher SST-2=runs/sst2/model --teacher RTE=runs/rte/model
        --sampled 1 --limit 8000 --setting RTE:limit=0,max_length=128,epochs=3 --alone-networks 0.5/1,0.5/0.5

Parts, for every task and seed:

    main       the adaptive network, at every width and depth ("ours"); the other parts need it
    cut        the same sub-networks cut out of the rewired teacher without training; full size: the teacher
    alone      each cut out the same way and distilled by itself, for as many steps as its stages had
    ablations  no rewiring, no width stage first, no augmentation
    fptas      what the search over the adaptive network chooses, beside the plain FPTAS's choice among the
               same tuples, distilled by itself for as many steps or with as many operations

Compute is counted in FLOPs of the passes that were run, teachers included. Every step is one of the project's
own commands; a killed benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from benchmarks.harness import common, records
from benchmarks.harness.data import HELP
from benchmarks.harness.dynabert_runs import FOLDERS, Bench, Plan, TaskSettings
from benchmarks.harness.dynabert_tables import (
    Cost,
    aims,
    cost,
    dev_score,
    metric_of,
    percent,
    plot,
    scores,
    steps_of,
)
from bort.architecture import Architecture
from bort.dynabert.grid import Multipliers
from bort.errors import BortError, run_command
from bort.json_files import write_json

PARTS = ("main", "cut", "alone", "ablations", "fptas")
BUDGETS = ("steps", "flops")
ABLATIONS: Dict[str, List[str]] = {
    "no rewiring": ["--importance-examples", "0"],
    "no width stage first": ["--stages", "depth"],
    "no augmentation": [],
}
NOTE = (
    "ours: the adaptive network at that width and depth; cut: the rewired teacher without training (at full "
    "size the teacher itself); alone: the cut network distilled by itself, without copies, for as many steps "
    "as its stages had, the best of its epochs. Medians over seeds, dev set, percent."
)
FPTAS_NOTE = (
    "FPTAS: W is that of the search which chose (real errors on kept examples, or errors of the masked "
    "language model after three steps); training PFLOP counts what the network took, of a supernet's choice "
    "that of all sub-networks together."
)


def arguments(argv: Optional[List[str]]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, type=Path, help=HELP)
    add(
        "--teacher",
        action="append",
        required=True,
        metavar="TASK=FOLDER",
        help="a classifier fine-tuned for SST-2, CoLA or RTE; several times",
    )
    add("--output", type=Path, default=Path("runs/dynabert"), help="runs; reused when repeated")
    add("--results", type=Path, default=common.RESULTS, help="folder of the record")
    add("--seeds", default="0,1,2", help="default 0,1,2")
    add("--parts", default=",".join(PARTS), help=f"default {','.join(PARTS)}")
    add("--widths", default="1,0.75,0.5,0.25", help="default 1,0.75,0.5,0.25")
    add("--depths", default="1,0.75,0.5", help="default 1,0.75,0.5")
    add(
        "--sampled",
        type=int,
        default=0,
        metavar="N",
        help="train the largest, the smallest and N drawn sub-networks at every step (0: all)",
    )
    add("--alone-networks", metavar="W/D,W/D,...", help="train only these by themselves (default: all)")
    add(
        "--budgets", default="steps", help="of the plain FPTAS's choice: steps, flops or both (default steps)"
    )
    add(
        "--mlm",
        type=Path,
        help="pre-trained model of the teacher's architecture, T of the plain FPTAS "
        "(default: random weights)",
    )
    add("--keep-fraction", type=float, default=0.1, help="share of the training set kept for the search")
    defaults = TaskSettings()
    add("--limit", type=int, default=defaults.limit, help="training examples (0: all)")
    add("--copies", type=int, default=defaults.copies, help="augmented copies of every example (default 1)")
    add("--augment", default=defaults.augment, help="tau-functions of the copies, joined by + (embedding)")
    add("--epochs", type=int, default=defaults.epochs, help="of every stage (default 1)")
    add("--lr", type=float, default=defaults.lr, help=f"default {defaults.lr:g}")
    add("--batch-size", type=int, default=defaults.batch_size, help=f"default {defaults.batch_size}")
    add("--max-length", type=int, default=defaults.max_length, help=f"default {defaults.max_length}")
    add("--dropout", type=float, default=defaults.dropout, help="in training (default: the teacher's own)")
    add("--dtype", default=defaults.dtype, help="float32, or bfloat16 where the processor has it")
    add(
        "--setting",
        action="append",
        default=[],
        metavar="TASK:NAME=VALUE,...",
        help="of one task: any of the nine options above, as RTE:limit=1000,max_length=128",
    )
    add("--trials", type=int, default=20, help="timed passes of the latency table (0: none)")
    add("--no-record", action="store_true", help="print the tables only")
    return parser.parse_args(argv)


def benches(args: argparse.Namespace) -> List[Bench]:
    """The tasks of the command line.

    Raises:
        BortError: an option names an unknown task, setting or network.
    """
    plan = Plan(args.data, args.output, args.widths, args.depths, args.sampled, args.keep_fraction, args.mlm)
    teachers = dict(text.partition("=")[::2] for text in args.teacher)
    for task, teacher in teachers.items():
        if task not in FOLDERS or not teacher:
            raise BortError(
                f"--teacher {task}={teacher}: expected TASK=FOLDER with a task among {', '.join(FOLDERS)}"
            )
    shared = TaskSettings(
        args.limit,
        args.copies,
        args.augment.replace(",", "+"),
        args.epochs,
        args.lr,
        args.batch_size,
        args.max_length,
        args.dropout,
        args.dtype,
    )
    chosen = dict.fromkeys(teachers, shared)
    for text in args.setting:
        task, _, values = text.partition(":")
        if task not in chosen:
            raise BortError(f"--setting {text}: no --teacher is given for {task!r}")
        chosen[task] = chosen[task].changed(values)
    return [Bench(plan, task, teacher, chosen[task]) for task, teacher in teachers.items()]


class Choices(NamedTuple):
    """What of a task's sub-networks is looked at."""

    parts: Sequence[str]
    seeds: Sequence[int]
    alone: Sequence[Multipliers]
    budgets: Sequence[str]


class TaskResult(NamedTuple):
    """A task's tables and the compute of its first seed's trainings."""

    rows: List[Dict[str, Any]]
    fptas: List[Dict[str, Any]]
    cost: Cost
    metric: str


def size_of(bench: Bench, small: Architecture) -> Dict[str, Any]:
    """The columns that every table has."""
    return {
        "⟨D,A,H,I⟩": small.display,
        "parameters (M)": round(small.parameters(30522)["body"] / 1e6, 2),
        "GFLOP": float(f"{small.flops(bench.settings.max_length) / 1e9:.4g}"),
    }


def run_task(bench: Bench, choices: Choices) -> TaskResult:
    """Run the parts of one task."""
    found: Dict[Tuple[str, int], Mapping[Tuple[float, float], float]] = {}
    runs = {seed: bench.main(seed) for seed in choices.seeds}
    costs = {seed: cost(run, bench.networks, bench.full) for seed, run in runs.items()}
    fptas = []
    for seed, run in runs.items():
        found["ours", seed] = scores(run)
        if {"cut", "alone", "fptas"} & set(choices.parts):
            found["cut", seed] = scores(bench.cut(seed))
        if "alone" in choices.parts:
            found["alone", seed] = {
                (one.width, one.depth): dev_score(bench.alone(one, seed, steps_of(run, one)))
                for one in choices.alone
            }
        if "fptas" in choices.parts:
            fptas += compare_searches(bench, seed, costs[seed], choices.budgets)
        if "ablations" in choices.parts:
            for name, options in ABLATIONS.items():
                augmented = name != "no augmentation"
                if augmented or bench.settings.copies:
                    folder = name.replace(" ", "-")
                    found[name, seed] = scores(bench.adaptive(folder, seed, options, augmented))
    rows = []
    for one in bench.networks:
        key = (one.width, one.depth)
        row = {"width": one.width, "depth": one.depth, **size_of(bench, one.architecture(bench.full))}
        for kind in dict.fromkeys(kind for kind, _ in found):
            row[kind] = percent([found[kind, seed].get(key) for seed in choices.seeds])
        rows.append(row)
    first = choices.seeds[0]
    return TaskResult(rows, fptas, costs[first], metric_of(runs[first]))


def compare_searches(bench: Bench, seed: int, spent: Cost, budgets: Sequence[str]) -> List[Dict[str, Any]]:
    """The supernet search's choice beside the plain FPTAS's, trained from cut and from random weights."""
    run, sizes = bench.main(seed), {one.architecture(bench.full): one for one in bench.networks}
    by_real_errors = bench.supernet_search(seed)
    real = {(row["width"], row["depth"]): row["W"] for row in by_real_errors}
    best = bench.plain_search(seed)
    plain = sizes[Architecture.from_dict(best["architecture"])]
    ours = Multipliers(by_real_errors[0]["width"], by_real_errors[0]["depth"])

    def row(choice: str, one: Multipliers, w: float, score: float, flops: float) -> Dict[str, Any]:
        return {
            "choice of": choice,
            "seed": seed,
            "width": one.width,
            "depth": one.depth,
            **size_of(bench, one.architecture(bench.full)),
            "dev": percent([score]),
            "W": w,
            "W by real errors": real[one.width, one.depth],
            "training PFLOP": float(f"{flops / 1e15:.4g}"),
        }

    rows = [
        row(
            "the supernet search",
            ours,
            by_real_errors[0]["W"],
            scores(run)[ours.width, ours.depth],
            spent.adaptive,
        )
    ]
    key = (plain.width, plain.depth)
    for budget in budgets:
        steps = steps_of(run, plain)
        if budget == "flops":
            steps = max(steps, round(steps * spent.adaptive / spent.each[key]))
        for scratch in (False, True):
            done = bench.alone(plain, seed, steps, scratch)
            rows.append(
                row(
                    f"the plain FPTAS, {'random' if scratch else 'cut'} weights, {steps} steps",
                    plain,
                    best["W"],
                    dev_score(done),
                    spent.each[key] * steps / steps_of(run, plain),
                )
            )
    return rows


def main(argv: Optional[List[str]] = None) -> int:
    """Run the benchmark and record it."""
    args = arguments(argv)
    load = common.load_average()
    for option, chosen, known in (("--parts", args.parts, PARTS), ("--budgets", args.budgets, BUDGETS)):
        if not set(chosen.split(",")) <= set(known):
            raise BortError(f"{option} {chosen}: choose among {', '.join(known)}")
    try:
        seeds = [int(part) for part in args.seeds.split(",")]
    except ValueError as error:
        raise BortError(f"--seeds {args.seeds}: not a list of whole numbers like 0,1,2") from error
    tasks, notes = benches(args), [NOTE]
    choices = [
        Choices(args.parts.split(","), seeds, bench.named(args.alone_networks), args.budgets.split(","))
        for bench in tasks
    ]
    tables: Dict[str, Any] = {}
    searches: Dict[str, Any] = {}
    for bench, chosen in zip(tasks, choices):
        result = run_task(bench, chosen)
        tables[f"{bench.task} ({result.metric})"] = result.rows
        if result.fptas:
            searches[f"FPTAS on {bench.task} ({result.metric})"] = result.fptas
        notes += [
            bench.described(),
            f"{bench.task}: the adaptive training took "
            f"{result.cost.adaptive / 1e15:.2f} PFLOP, {result.cost.adaptive / result.cost.alone:.2f} "
            "times those of training every sub-network alone for as many steps (aim: 0.5).",
        ]
        measured_aims = aims(result.rows)
        notes += [f"{bench.task}: {measured_aims}."] if measured_aims else []
        if args.trials:
            timed = bench.timed(seeds[0], args.trials)["subnetworks"]
            for row, measured in zip(result.rows, timed):
                row["ms"] = round(1000 * measured["seconds"], 2)
    notes += [FPTAS_NOTE] if searches else []
    plotted = plot(args.output / "dynabert.png", tables)
    tables.update(searches)
    write_json(args.output / "tables.json", tables)
    print(json.dumps(notes, indent=1, ensure_ascii=False))
    for heading, rows in tables.items():
        print(f"\n{heading}\n{records.markdown_table(rows)}")
    if not args.no_record:
        if plotted:
            plot(
                args.results / "dynabert.png", {name: tables[name] for name in tables if name not in searches}
            )
        names = (
            "seeds",
            "parts",
            "widths",
            "depths",
            "sampled",
            "keep_fraction",
            "alone_networks",
            "budgets",
        )
        records.record(
            "dynabert",
            tables,
            {name: getattr(args, name) for name in names},
            notes,
            "DynaBERT: widths and depths of a real teacher",
            argv,
            args.results,
            load,
            ["dynabert.png"] if plotted else [],
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
