"""A run folder that any number of processes search in together, and that can lose any of them at any moment.

    RUN/config.json          the settings as run; every process must have the same
    RUN/claims/NAME.lock     held by the living process that works on NAME
    RUN/candidates.jsonl     one line per finished candidate

Work is dealt out through file locks, which the system takes back from a process that dies, however it dies. There is
no coordinator to lose and no collective operation to hang in: a rank that dies loses the one piece it was working on,
which another process (or the next run) takes over. On a network file system, ``flock`` must work.
"""
from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterator, List, Mapping

from filelock import FileLock, Timeout

import bort
from bort.errors import BortError
from bort.files import PathLike, append_jsonl, read_json, read_jsonl, write_json
from bort.training import distributed
from bort.training.log import progress
from bort.training.state import on_root

CANDIDATES_FILE = "candidates.jsonl"
POLL_SECONDS = 0.5


class SearchFolder:
    """The folder of one search.

    Args:
        path: the folder; made if absent.
        settings: everything that determines the result; JSON-able.
        resume: join or go on with the search in the folder, if there is one.

    Raises:
        BortError: the folder holds a run and ``resume`` is off, or a run with other settings, or cannot be written to.
    """

    def __init__(self, path: PathLike, settings: Mapping[str, Any], resume: bool = False) -> None:
        self.path = Path(path)
        # Through JSON, so that a tuple of today compares equal to the list in the file.
        on_root(lambda: self._open(json.loads(json.dumps(dict(settings))), resume))

    def _open(self, settings: Dict[str, Any], resume: bool) -> None:
        config = self.path / "config.json"
        if not config.is_file():
            write_json(config, {"settings": settings, "bort": bort.__version__, "python": sys.version.split()[0],
                                "command": sys.argv,
                                "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds")})
            return
        if not resume:
            raise BortError(f"{self.path}: holds a run already; add --resume to go on with it, or choose another "
                            "--output")
        earlier = read_json(config)
        before = earlier.get("settings") if isinstance(earlier, dict) else None
        if not isinstance(before, dict):
            raise BortError(f"{config}: not the config of a search; choose another --output")
        different = [f"{key} was {before.get(key)!r} and is {settings.get(key)!r}"
                     for key in sorted(set(before) | set(settings)) if before.get(key) != settings.get(key)]
        if different:
            raise BortError(f"{self.path}: cannot go on with other settings: " + "; ".join(different)
                            + ". Use the same command, or another --output")

    def lock(self, name: str) -> FileLock:
        """The lock of one piece of work or file; freed when its holder dies."""
        path = self.path / "claims" / f"{name}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BortError(f"{path.parent}: cannot be made ({error.strerror})") from error
        return FileLock(str(path))

    def deal(self, work: Mapping[str, float], finished: Callable[[], Collection[str]], do: Callable[[str], Any],
             title: str = "") -> None:
        """Have every piece of work done once, by whichever process is free; returns when all are finished.

        Args:
            work: the pieces in the order they should be begun, with their sizes in any unit, for the time left.
            finished: names that are finished, whoever did them, as the files on disk say it.
            do: does one piece; ``finished`` must name it afterwards.
            title: of a progress bar; none without.
        """
        with watching(title, work) as watch:
            while True:
                done = set(finished())
                watch(done)
                waiting = [name for name in work if name not in done]
                if not waiting:
                    return
                if not sum(self._attempt(name, finished, do, watch) for name in waiting):
                    time.sleep(POLL_SECONDS)  # others hold all that is left

    def _attempt(self, name: str, finished: Callable[[], Collection[str]], do: Callable[[str], Any],
                 watch: Callable[[Collection[str]], Any]) -> bool:
        lock = self.lock(name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        try:
            # Another process may have finished it between our look and our claim.
            if name not in finished():
                do(name)
                watch(finished())
            return True
        finally:
            lock.release()

    def append(self, *rows: Mapping[str, Any], name: str = CANDIDATES_FILE) -> None:
        """Append finished rows to a JSON-lines file, after what a killed process may have left of its last line."""
        path = self.path / name
        with self.lock(f"append-{name}"):
            if path.is_file():
                content = path.read_bytes()
                if content and not content.endswith(b"\n"):
                    os.truncate(path, content.rfind(b"\n") + 1)
            for row in rows:
                append_jsonl(path, dict(row))

    def rows(self, name: str = CANDIDATES_FILE) -> List[Dict[str, Any]]:
        """Rows of a JSON-lines file in the order they were finished; an incomplete last line is left out."""
        path = self.path / name
        return read_jsonl(path) if path.is_file() else []

    def worker(self) -> str:
        """This process's name in the records."""
        return f"rank {distributed.rank()}, process {os.getpid()}"


@contextlib.contextmanager
def watching(title: str, work: Mapping[str, float]) -> Iterator[Callable[[Collection[str]], None]]:
    """A progress bar over pieces of different sizes; gives a function that is told the names finished so far.

    What was finished before the first call does not count for the speed, so that a resumed run's time left is right.
    """
    bar = None

    def watch(done: Collection[str]) -> None:
        nonlocal bar
        mine = [name for name in work if name in done]
        amount = sum(work[name] for name in mine)
        if bar is None:
            if not title or len(mine) == len(work):
                return
            bar = progress(total=sum(work.values()), initial=amount, 
                           bar_format="{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]")
        bar.set_description_str(f"{title} {len(mine)}/{len(work)}", refresh=False)
        bar.update(amount - bar.n)

    try:
        yield watch
    finally:
        if bar is not None:
            bar.close()
