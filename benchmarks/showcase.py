"""The paper from end to end with a teacher that knows the language: search, distillation, Agora, deployment.

    pip install '.[cpu,teacher,onnx,plots]'
    python -m benchmarks.showcase --data FOLDER --output runs/showcase         # about four hours on two cores
    python -m benchmarks.showcase --data FOLDER --output runs/showcase --list  # the steps, what each took
    python -m benchmarks.showcase --data FOLDER --output runs/showcase --only search,tables
    python -m benchmarks.showcase --data FOLDER --output runs/trial --scale 0.01 --seeds 0 --no-record
    python -m benchmarks.showcase --data FOLDER --output runs/large --scale 20 --student 4,8,256,192

Every step is one of the project's own commands, in a process of its own; what it printed is in
``OUTPUT/logs``. The same command again goes on where a killed one stopped: steps that ended are left alone,
the one that was cut off is resumed. ``--scale`` multiplies training steps and examples. In order: the teacher
(all-MiniLM-L6-v2, from the Python registry) gets an MLM head; the FPTAS looks for a student around it, with
more and more training steps; the student is distilled, and trained by MLM alone beside; teachers learn the
tasks; plain fine-tuning, distillation and Agora compete at equal compute, with scarce data and with all of
it; student and teacher are exported and timed. The tables are recorded as ``results/showcase``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from benchmarks.harness import common, records
from benchmarks.harness.data import HELP
from benchmarks.harness.showcase_plan import GRID, PACKAGE, TASKS, TEACHER_TUPLE, Plan, Step
from benchmarks.harness.showcase_tables import tables_of
from bort.errors import BortError, run_command
from bort.files import read_json, write_json


class Done(NamedTuple):
    """What a step that ended took, over all its calls."""

    command: str
    seconds: float
    peak_mib: float


class Run:
    """The state of the steps in ``OUTPUT/showcase.json``, and their execution."""

    def __init__(self, output: Path) -> None:
        self.output, self.path = output, output / "showcase.json"
        self.done: Dict[str, Done] = {}
        if self.path.is_file():
            self.done = {name: Done(**facts) for name, facts in read_json(self.path).items()}

    def state(self, step: Step) -> str:
        """ "done", "cut off", or "to do"; a step whose command has changed since is to do."""
        known = self.done.get(step.name)
        if known is not None and known.command == shlex.join(step.command) and step.ends.exists():
            return "done"
        begun = step.resumable and step.ends.parent.exists()
        return "cut off" if known is not None or begun else "to do"

    def table(self, steps: Sequence[Step]) -> List[Dict[str, Any]]:
        """A row for each step: state, minutes and memory."""
        return [
            {
                "step": step.name,
                "what": step.title,
                "state": self.state(step),
                "minutes": round(self.done[step.name].seconds / 60, 1) if step.name in self.done else None,
                "peak MiB": round(self.done[step.name].peak_mib) if step.name in self.done else None,
            }
            for step in steps
        ]

    def execute(self, step: Step) -> None:
        """Run a step to its end.

        Raises:
            BortError: it failed; the end of what it printed is in the message.
        """
        log = self.output / "logs" / f"{step.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [*step.command, *(["--resume"] if step.resumable else [])]
        started = time.monotonic()
        with open(log, "ab") as stream:
            stream.write(f"$ python {shlex.join(command)}\n".encode())
            stream.flush()
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=str(common.ROOT),
                env=common.module_environment(),
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:  # stopped by Ctrl-C or a signal: the step saves itself and ends too
                process.terminate()
                process.wait()
                raise
            process.returncode = status
        before = self.done.get(step.name, Done("", 0.0, 0.0))
        took = before.seconds + time.monotonic() - started
        shown = shlex.join(step.command) if status == 0 else ""
        self.done[step.name] = Done(shown, round(took, 1), max(before.peak_mib, usage.ru_maxrss / 2**10))
        write_json(self.path, {name: done._asdict() for name, done in self.done.items()})
        if status or not step.ends.exists():
            tail = log.read_text(encoding="utf-8", errors="replace").strip()[-1500:]
            raise BortError(f"step {step.name} failed; the whole log is {log}\n{tail}")


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
    add("--scale", type=float, default=1.0, help="multiplies training steps and examples (default 1)")
    add("--text", nargs="+", type=Path, help="text files instead of those of --data")
    add("--student", metavar="D,A,H,I", help="instead of the tuple that the search finds")
    add("--tasks", type=names, default=list(TASKS), help=f"default: {','.join(TASKS)}, those that are there")
    add("--seeds", type=numbers, default=[0, 1, 2, 3, 4], help="Agora on scarce data (default 0,1,2,3,4)")
    add("--full-seeds", type=numbers, default=[0], help="Agora on all examples (default 0)")
    add("--pretraining-seeds", type=numbers, default=[0, 1, 2], help="KD and MLM (default 0,1,2)")
    add("--no-record", action="store_true", help="print the tables without writing benchmarks/results")
    args = parser.parse_args(argv)
    unknown = [task for task in args.tasks if task not in TASKS]
    if unknown or not args.scale > 0:
        raise BortError(f"--tasks {', '.join(unknown)}: there are {', '.join(TASKS)}; --scale is positive")
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
    for name in chosen:
        step = next(step for step in plan.steps() if step.name == name)  # anew: the search names the student
        state = run.state(step)
        if state != "done":
            print(f"{time.strftime('%H:%M')} {name}: {step.title} ({state}) ...", flush=True)
            run.execute(step)
        print(f"      {name}: done, {run.done[name].seconds / 60:.1f} minutes in all", flush=True)
    tables, notes = tables_of(args.output, plan.tasks, {name: str(plan.data_of(name)) for name in plan.tasks})
    tables["Steps"] = run.table(plan.steps())
    for heading, rows in tables.items():
        print(f"\n{heading}\n{records.markdown_table(rows)}")
    print("\n".join(["", *notes]))
    if not args.no_record:
        settings = {
            "scale": args.scale,
            "student": plan.student_tuple(),
            "teacher": f"{PACKAGE}, {TEACHER_TUPLE}",
        }
        title = "The paper from end to end, with a real teacher"
        print(records.record("showcase", tables, settings, notes, title, argv, started_load=load))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
