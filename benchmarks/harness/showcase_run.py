"""The state of the steps of ``benchmarks.showcase``, and their execution, several at once where asked."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

from benchmarks.harness import common
from benchmarks.harness.showcase_plan import Step
from bort.errors import BortError
from bort.json_files import read_json, write_json


class Done(NamedTuple):
    """What a step that ended took, over all its calls."""

    command: str
    seconds: float
    peak_mib: float


class Begun(NamedTuple):
    """A step that runs."""

    step: Step
    process: subprocess.Popen
    started: float


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

    def execute(self, steps: Callable[[], Sequence[Step]], chosen: Sequence[str], jobs: int = 1) -> None:
        """Run the chosen steps that are to do, each once those it comes after have ended.

        Args:
            steps: all of them, asked anew whenever one ends (the search names the student).
            chosen: names of those to run.
            jobs: how many at once; each has its share of the cores.

        Raises:
            BortError: a step failed; the end of what it printed is in the message. Those that do not need it
                are run first.
        """
        running: Dict[int, Begun] = {}
        failed: Dict[str, str] = {}
        try:
            while True:
                waiting = [step for step in steps() if step.name in chosen and self.state(step) != "done"]
                busy = {begun.step.name for begun in running.values()}
                pending = busy | {step.name for step in waiting}
                waiting = [step for step in waiting if step.name not in busy and step.name not in failed]
                ready = [step for step in waiting if not any(_needs(step, name) for name in pending)]
                while ready and len(running) < jobs and not any(b.step.alone for b in running.values()):
                    step = ready.pop(0)
                    if step.alone and running:
                        break
                    begun = self.begin(step, 1 if step.alone else jobs)
                    running[begun.process.pid] = begun
                if not running:
                    break
                pid, status, usage = os.wait4(-1, 0)
                if pid in running:
                    ended = running.pop(pid)
                    try:
                        self.end(ended, status, usage.ru_maxrss / 2**10)
                    except BortError as error:
                        failed[ended.step.name] = str(error)
                        print(f"{time.strftime('%H:%M')} {ended.step.name}: failed", flush=True)
        finally:  # by a failure, Ctrl-C or a signal: the others save themselves and end too
            for begun in running.values():
                begun.process.terminate()
            for begun in running.values():
                begun.process.wait()
        if failed:
            raise BortError("\n".join(failed.values()))

    def begin(self, step: Step, jobs: int) -> Begun:
        """Start a step's process, with what it prints going to its log."""
        print(f"{time.strftime('%H:%M')} {step.name}: {step.title} ({self.state(step)}) ...", flush=True)
        log = self.log(step)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [*step.command, *(["--resume"] if step.resumable else [])]
        environment = common.module_environment()
        if jobs > 1:
            environment["OMP_NUM_THREADS"] = str(max(1, common.usable_cores() // jobs))
        with open(log, "ab") as stream:
            stream.write(f"$ python {shlex.join(command)}\n".encode())
            stream.flush()
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=str(common.ROOT),
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        return Begun(step, process, time.monotonic())

    def end(self, begun: Begun, status: int, peak_mib: float) -> None:
        """Keep what an ended step took.

        Raises:
            BortError: it failed.
        """
        step = begun.step
        begun.process.returncode = status
        before = self.done.get(step.name, Done("", 0.0, 0.0))
        took = before.seconds + time.monotonic() - begun.started
        shown = shlex.join(step.command) if status == 0 else ""
        self.done[step.name] = Done(shown, round(took, 1), max(before.peak_mib, peak_mib))
        write_json(self.path, {name: done._asdict() for name, done in self.done.items()})
        if status or not step.ends.exists():
            tail = self.log(step).read_text(encoding="utf-8", errors="replace").strip()[-1500:]
            raise BortError(f"step {step.name} failed; the whole log is {self.log(step)}\n{tail}")
        print(f"{time.strftime('%H:%M')} {step.name}: done, {took / 60:.1f} minutes in all", flush=True)

    def log(self, step: Step) -> Path:
        """What the step prints."""
        return self.output / "logs" / f"{step.name}.log"


def _needs(step: Step, name: str) -> bool:
    """Whether a step comes after the one of that name; "search-" stands for all that begin so."""
    needed: Tuple[str, ...] = step.after
    return any(name == one or (one.endswith("-") and name.startswith(one)) for one in needed)
