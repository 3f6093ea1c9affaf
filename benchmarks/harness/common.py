"""What every benchmark shares: the machine it ran on, interleaved timing, and processes of its own.

Nothing here imports MXNet.
"""

from __future__ import annotations

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
from typing import Any, Callable, Collection, Dict, List, Mapping, Optional, Sequence, Set

import numpy as np

from bort.errors import BortError

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
    "openvino",
    "nncf",
    "ctranslate2",
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


def cpu_info() -> Dict[str, Any]:
    """``{"model": str, "flags": set of str}`` of the first processor, as the kernel reports it."""
    model = platform.processor() or platform.machine()
    flags: Set[str] = set()
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


def cpu_kind(flags: Collection[str]) -> str:
    """The kind of CPU that records of speed are kept for: amx, avx512 or avx2, else the machine's name."""
    kinds = (("amx_bf16", "amx"), ("avx512f", "avx512"), ("avx2", "avx2"))
    return next((kind for flag, kind in kinds if flag in flags), platform.machine())


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> Optional[List[float]]:
    """Processes that ran or waited over the last 1, 5 and 15 minutes; above the cores, figures are not to be
    trusted."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def memory_gib() -> Optional[float]:
    """The machine's memory; None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def machine() -> Dict[str, Any]:
    """CPU, cores, memory (GiB), the instructions that matter, system, thread settings and the load right
    now."""
    info = cpu_info()
    return {
        "cpu": info["model"],
        "cores": usable_cores(),
        "memory_gib": memory_gib(),
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
    """Time every call once per round, so that a change of the machine's speed falls on all of them alike.

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
