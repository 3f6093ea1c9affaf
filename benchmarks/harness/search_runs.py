"""What ``search.py`` runs: its corpus, and the project's commands in processes whose time and memory are
noted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Optional, Sequence, Tuple

from benchmarks.harness import common
from benchmarks.harness.data import read_text
from bort.errors import BortError
from bort.files import atomic_write
from bort.json_files import read_json, write_json

CORPUS_CHARACTERS = 2_000_000


def corpus(work: Path, data: Optional[Path], given: Optional[str]) -> Path:
    """At most two million characters of the text given, of the data folder's, or of what Python carries."""
    path = work / "corpus.txt"
    if not path.is_file():
        with atomic_write(path) as stream:
            stream.write(read_text(data, given)[:CORPUS_CHARACTERS])
    return path


def prepare(work: Path, name: str, text: Path, **options: Any) -> Path:
    """The text as shards; options as in ``bort.text.shards.plan.PrepareOptions``."""
    from bort.text.shards.plan import PrepareOptions
    from bort.text.shards.prepare import prepare as make

    make(PrepareOptions(inputs=[text], output=work / name, **options))
    return work / name


def run(script: str, folder: Path, arguments: Sequence[Any], workers: int = 1) -> Tuple[float, float]:
    """Run one of the project's commands in ``workers`` processes that share the cores and ``folder``.

    Returns:
        Seconds, and the largest peak memory of a process in MiB, both over all calls with this folder: those
        of one that only resumes a finished run would tell nothing.

    Raises:
        BortError: a process failed; the end of its output is in the message.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, common.usable_cores() // workers))
    command = [
        sys.executable,
        str(common.ROOT / script),
        "--output",
        str(folder),
        "--resume",
        *map(str, arguments),
    ]
    begun, logs, running = time.perf_counter(), [], []
    for number in range(workers):
        logs.append(open(folder.parent / f"{folder.name}-{number}.log", "wb"))
        running.append(
            subprocess.Popen(
                command,
                env=dict(os.environ, OMP_NUM_THREADS=threads),
                stdout=logs[-1],
                stderr=subprocess.STDOUT,
            )
        )
    peak = 0.0
    for log, process in zip(logs, running):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        log.close()
        peak = max(peak, usage.ru_maxrss / 2**10)
        if status:
            used(folder, time.perf_counter() - begun, peak)
            for other in running:
                if other.returncode is None:
                    other.kill()
            tail = Path(log.name).read_text(encoding="utf-8", errors="replace").strip()[-600:]
            raise BortError(f"{script} failed: {tail} (all of it in {log.name})")
    return used(folder, time.perf_counter() - begun, peak)


def used(folder: Path, seconds: float, peak: float) -> Tuple[float, float]:
    """Note what a call took beside its run's folder; the sum of all calls' seconds and the largest of their
    peaks."""
    path = folder.with_name(f"{folder.name}-usage.json")
    earlier = read_json(path) if path.is_file() else {"seconds": 0.0, "peak_mib": 0.0}
    total = {"seconds": earlier["seconds"] + seconds, "peak_mib": max(earlier["peak_mib"], peak)}
    write_json(path, total)
    return total["seconds"], total["peak_mib"]
