"""What every benchmark shares: the machine it ran on, interleaved timing, tables, and the record it leaves.

``record(name, rows, settings, notes)`` writes ``benchmarks/results/NAME.json`` for programs and ``NAME.md``
for people; both carry the command, commit, date, machine, versions and load, so that a figure can be traced
and measured again. Nothing here imports MXNet.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Union

import numpy as np

from bort.errors import BortError
from bort.files import atomic_write, write_json

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "mxnet",
    "gluonnlp",
    "horovod",
    "numpy",
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "tokenizers",
    "sentencepiece",
    "scipy",
    "scikit-learn",
)
CPU_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "KMP_AFFINITY",
)
RESULT_PREFIX = "BENCHMARK-RESULT "
Row = Mapping[str, Any]


def cpu_info() -> Dict[str, Any]:
    """``{"model": str, "flags": set of str}`` of the first processor, as the kernel reports it."""
    model, flags = platform.processor() or platform.machine(), set()  # type: ignore[var-annotated]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() == "flags":
            flags = set(value.split())
            break
    return {"model": model, "flags": flags}


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> Optional[List[float]]:
    """Processes that ran or waited over the last 1, 5 and 15 minutes; above the cores, figures are not to be
    trusted."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def machine() -> Dict[str, Any]:
    """CPU, cores, memory (GiB), the instructions that matter, system, thread settings and the load right
    now."""
    info = cpu_info()
    try:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        memory = None
    return {
        "cpu": info["model"],
        "cores": usable_cores(),
        "memory_gib": memory,
        "instructions": [flag for flag in CPU_FLAGS if flag in info["flags"]],
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": load_average(),
        "threads": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
    }


def versions(packages: Sequence[str] = PACKAGES) -> Dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checked-out commit, with ``+changes`` when tracked files of the package or the benchmarks differ
    from it."""
    try:

        def git(*arguments: str) -> str:
            return (
                subprocess.run(
                    ["git", *arguments],
                    cwd=str(ROOT),
                    check=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    timeout=30,
                )
                .stdout.decode()
                .strip()
            )

        changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def command(argv: Optional[Sequence[str]] = None) -> str:
    """The command line that repeats this run; ``argv`` are the arguments given to ``main`` (None: the
    process's)."""
    script = Path(sys.argv[0]).resolve()
    shown = ["-m", f"benchmarks.{script.stem}"] if script.parent == ROOT / "benchmarks" else [script.name]
    return shlex.join(["python", *shown, *(sys.argv[1:] if argv is None else argv)])


def module_command(module: str, *arguments: str) -> List[str]:
    """``python -m MODULE ARGUMENTS`` with this interpreter; to be run in :func:`module_environment`."""
    return [sys.executable, "-m", module, *arguments]


def module_environment(variables: Optional[Mapping[str, str]] = None) -> Dict[str, str]:
    """``variables`` (this process's by default), and this checkout first on ``PYTHONPATH``."""
    found = dict(os.environ if variables is None else variables)
    paths = [str(ROOT), *filter(None, [found.get("PYTHONPATH")])]
    return {**found, "PYTHONPATH": os.pathsep.join(paths)}


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    trials: int,
    warmup: int = 2,
    progress: Optional[Callable[[int], Any]] = None,
) -> Dict[str, List[float]]:
    """Time every call once per round, so that the machine's moods fall on all of them alike.

    Args:
        calls: functions that return when their result is there (they wait for asynchronous engines
            themselves).
        trials: timed rounds; ``warmup`` rounds before them are not counted.

    Returns:
        Seconds of every round, by name.
    """
    if trials < 1:
        raise BortError(f"--trials must be at least 1, not {trials}")
    seconds: Dict[str, List[float]] = {name: [] for name in calls}
    for number in range(-warmup, trials):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            elapsed = time.perf_counter() - start
            if number >= 0:
                seconds[name].append(elapsed)
        if progress is not None:
            progress(number)
    return seconds


def summarize(seconds: Sequence[float]) -> Dict[str, float]:
    """Median and 10-90% range of timings in seconds, in milliseconds."""
    low, middle, high = np.percentile(np.asarray(seconds, dtype="float64") * 1000, [10, 50, 90])
    return {
        "median_ms": round(float(middle), 3),
        "p10_ms": round(float(low), 3),
        "p90_ms": round(float(high), 3),
        "trials": len(seconds),
    }


def print_result(value: Any) -> None:
    """What a worker measured, as JSON on a line of its own, for :func:`run_workers` in its parent."""
    print(RESULT_PREFIX + json.dumps(value), flush=True)


def run_workers(
    commands: Sequence[Sequence[str]], environment: Optional[Mapping[str, str]] = None, timeout: float = 1800
) -> List[Any]:
    """Run processes at the same time; what each gave to :func:`print_result` (the last time).

    A launcher's process may put something before the line (``[1,0]<stdout>:``).

    Raises:
        BortError: one failed or gave nothing; its output is in the message.
    """
    running = [
        subprocess.Popen(
            list(command),
            env=module_environment(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for command in commands
    ]
    texts = [process.communicate(timeout=timeout)[0].decode("utf-8", "replace") for process in running]
    found = []
    for process, text, command in zip(running, texts, commands):
        lines = [line for line in text.splitlines() if RESULT_PREFIX in line]
        if process.returncode or not lines:
            raise BortError(
                f"{shlex.join(command)}: failed with exit code {process.returncode}:\n{text[-2000:]}"
            )
        found.append(json.loads(lines[-1].split(RESULT_PREFIX)[1]))
    return found


def peak_memory_mib() -> float:
    """The most memory this process has held so far, in MiB (resident)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def show(value: Any) -> str:
    """A table cell: three significant digits for small numbers, a dash for what is not there."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def markdown_table(rows: Sequence[Row], columns: Optional[Sequence[str]] = None) -> str:
    """Rows as a Markdown table; columns default to the keys in order of appearance."""
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[show(row.get(column)).replace("|", "\\|") for column in columns] for row in rows]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells])


def record(
    name: str,
    rows: Union[Sequence[Row], Mapping[str, Sequence[Row]]],
    settings: Optional[Mapping[str, Any]] = None,
    notes: Sequence[str] = (),
    title: str = "",
    argv: Optional[Sequence[str]] = None,
    folder: Optional[Path] = None,
    started_load: Any = None,
    images: Sequence[str] = (),
) -> Path:
    """Write ``results/NAME.json`` and ``results/NAME.md``; both appear whole or not at all.

    Args:
        name: file name without its ending.
        rows: rows of one table, or several tables by heading. Values must be JSON (NaN and infinities become
            null).
        settings: what the run was asked to do.
        notes: sentences that qualify the figures: what was skipped, what surprised.
        argv: the arguments given to ``main``, for the recorded command.
        folder: instead of ``benchmarks/results`` (tests).
        started_load: :func:`load_average` at the start; the present one is recorded as the end's.
        images: file names in the same folder to show in the Markdown file.

    Returns:
        The path of the Markdown file.
    """
    folder = Path(folder or RESULTS)
    tables = dict(rows) if isinstance(rows, Mapping) else {"": list(rows)}
    facts = {
        "name": name,
        "title": title or name,
        "command": command(argv),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {**machine(), "load_at_start": started_load},
        "versions": versions(),
    }
    write_json(
        folder / f"{name}.json",
        _json_safe(
            {
                **facts,
                "settings": dict(settings or {}),
                "notes": list(notes),
                "rows": tables[""] if list(tables) == [""] else tables,
            }
        ),
    )
    here = facts["machine"]
    lines = [
        f"# {facts['title']}",
        "",
        f"`{facts['command']}`",
        "",
        f"{facts['date']}, commit {facts['commit'][:12]}{'+changes' if '+' in facts['commit'] else ''}, "
        f"{here['cores']} cores of {here['cpu']} "
        f"({' '.join(here['instructions']) or 'no vector extensions'}), {show(here['memory_gib'])} GiB, "
        f"load {_load(started_load)} → {_load(here['load'])}, "
        + " ".join(f"{key}={value}" for key, value in here["threads"].items()),
        "",
        ", ".join(f"{package} {version}" for package, version in facts["versions"].items()),
    ]
    if settings:
        lines += [
            "",
            "Settings: " + ", ".join(f"{key} {_plain(value)}" for key, value in settings.items()) + ".",
        ]
    for heading, table in tables.items():
        lines += [""] + ([f"## {heading}", ""] if heading else []) + [markdown_table(table)]
    for image in images:
        lines += ["", f"![{facts['title']}]({image})"]
    if notes:
        lines += [""] + [f"- {note}" for note in notes]
    path = folder / f"{name}.md"
    with atomic_write(path) as stream:
        stream.write("\n".join(lines) + "\n")
    return path


def _load(value: Any) -> str:
    return f"{value[0]:.2f}" if value else "unknown"


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _json_safe(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
