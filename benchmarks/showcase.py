"""The paper from end to end with a teacher that knows the language: search, distillation, Agora, deployment.

    pip install '.[cpu,teacher,onnx,plots]'
    python -m benchmarks.showcase --data FOLDER --output runs/showcase         # about four hours on two cores
    python -m benchmarks.showcase --data FOLDER --output runs/showcase --list  # the steps, what each took
    python -m benchmarks.showcase --data FOLDER --output runs/showcase --only search,tables
    python -m benchmarks.showcase --data FOLDER --output runs/trial --scale 0.01 --examples 100 --no-record
    python -m benchmarks.showcase --data FOLDER --output runs/large --scale 20 --student 4,8,256,192

Every step is one of the project's own commands, in a process of its own; what it printed is in
``OUTPUT/logs``. The same command again goes on where a killed one stopped: steps that ended are left alone,
those that were cut off are resumed. ``--jobs 2`` runs two steps at once where neither needs the other, which
small networks use two cores better by. In order: the teacher
(all-MiniLM-L6-v2, from the Python registry) gets an MLM head; the FPTAS looks for a student around it, with
more and more training steps; the student is distilled, and trained by MLM alone beside; teachers learn the
tasks; plain fine-tuning, distillation and Agora compete at equal compute, with scarce data and with all of
it; student and teacher are exported and timed. The tables are recorded as ``results/showcase``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import List, Optional, Sequence

from benchmarks.harness import common, records
from benchmarks.harness.data import HELP
from benchmarks.harness.showcase_plan import GRID, PACKAGE, TASKS, TEACHER_TUPLE, Plan
from benchmarks.harness.showcase_plots import plot_all
from benchmarks.harness.showcase_run import Run
from benchmarks.harness.showcase_tables import tables_of
from bort.errors import BortError, run_command
from bort.json_files import write_json


def arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """The command line."""

    def numbers(text: str) -> List[int]:
        return [int(part) for part in text.split(",")]

    def names(text: str) -> List[str]:
        return [part for part in text.split(",") if part]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help=HELP)
    add("--output", type=Path, required=True, help="every step's folder goes here; go on with the same one")
    add("--list", action="store_true", help="only show the steps, their state, time and memory")
    add("--only", type=names, metavar="STEP,...", help="only steps whose names begin like one of these")
    add("--scale", type=float, default=1.0, help="multiplies training steps (default 1)")
    add("--examples", type=int, default=0, metavar="N", help="at most N of a task's examples (0: all)")
    add("--jobs", type=int, default=1, help="steps at once, each with its share of the cores (default 1)")
    add("--text", nargs="+", type=Path, help="text files instead of those of --data")
    add("--student", metavar="D,A,H,I", help="instead of the tuple that the search finds")
    add("--tasks", type=names, default=list(TASKS), help=f"default: {','.join(TASKS)}, those that are there")
    add("--seeds", type=numbers, default=[0, 1, 2, 3, 4], help="Agora on scarce data (default 0,1,2,3,4)")
    add("--full-seeds", type=numbers, help="Agora on all examples (default: 0, and 0 to 4 for CB and COPA)")
    add("--pretraining-seeds", type=numbers, default=[0, 1, 2], help="KD and MLM (default 0,1,2)")
    add("--no-record", action="store_true", help="print the tables without writing benchmarks/results")
    args = parser.parse_args(argv)
    unknown = [task for task in args.tasks if task not in TASKS]
    if unknown:
        raise BortError(f"--tasks {', '.join(unknown)}: there are {', '.join(TASKS)}")
    if not args.scale > 0 or args.jobs < 1:
        raise BortError("--scale and --jobs are positive")
    args.data, args.output = args.data.resolve(), args.output.resolve()
    return args


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run what is to do, and print and record the tables of what there is."""
    args = arguments(argv)
    load, plan, run = common.load_average(), Plan(args), Run(args.output)
    steps = plan.steps()
    chosen = [step.name for step in steps if not args.only or step.name.startswith(tuple(args.only))]
    if args.list:
        print(records.markdown_table(run.table(steps)))
        return 0
    if args.only and not chosen and args.only != ["tables"]:
        raise BortError(f"--only {','.join(args.only)}: the steps are {', '.join(s.name for s in steps)}")
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(args.output / "grid.json", GRID)
    run.execute(plan.steps, chosen, args.jobs)
    tables, notes = tables_of(args.output, plan.tasks, {name: str(plan.data_of(name)) for name in plan.tasks})
    tables["Steps"] = run.table(plan.steps())
    for heading, rows in tables.items():
        print(f"\n{heading}\n{records.markdown_table(rows)}")
    print("\n".join(["", *notes]))
    if not args.no_record:
        settings = {
            "scale": args.scale,
            "examples": args.examples or "all",
            "jobs": args.jobs,
            "student": plan.student_tuple(),
            "teacher": f"{PACKAGE}, {TEACHER_TUPLE}",
        }
        title = "The paper from end to end, with a real teacher"
        images = plot_all(args.output, tables, common.RESULTS, "showcase")
        print(
            records.record("showcase", tables, settings, notes, title, argv, started_load=load, images=images)
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
