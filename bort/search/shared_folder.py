"""A run folder that any number of processes search in together, and that can lose any of them at any moment.

    RUN/config.json          the settings as run; every process must have the same
    RUN/claims/NAME.lock     held by the living process that works on NAME
    RUN/candidates.jsonl     one line per finished candidate

Work is dealt out through file locks, which the system takes back from a process that dies, however it dies.
There is
no coordinator to lose and no collective operation to hang in: a process that dies loses the one piece it was
working on. Of processes that were started apart, the others take that piece over. The ranks of one
``horovodrun`` do not get to: when one of them dies the launcher ends all, each loses the one candidate it was
at, and ``--resume`` goes on from there. On a network file system, ``flock`` must work.
"""
from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import IO, Any, Callable, Collection, Dict, Iterator, List, Mapping, Optional

from filelock import FileLock, Timeout

from bort.backend import distributed
from bort.engines.base import hold
from bort.errors import BortError
from bort.files import PathLike, file_lock
from bort.json_files import append_jsonl, read_json, read_jsonl, seal, write_json
from bort.training.console import progress
from bort.training.run_config import hold_to_engines, is_config, new_config, refuse_other_settings
from bort.training.run_folder import on_root

CANDIDATES_FILE = "candidates.jsonl"
SPEED_FILE = "speed.jsonl"
POLL_SECONDS = 0.5
_NUMBER, _MAYBE = (int, float), (int, float, type(None))
FIELDS: Dict[str, Dict[str, Any]] = {CANDIDATES_FILE: {"name": str, "architecture": dict,
                                                       **dict.fromkeys(("W", "error", "ce", "kl"), _MAYBE),
                                                       "seconds_per_sample": _MAYBE,
                                                       **dict.fromkeys(("size", "speed", "parameters",
                                                                        "lemma2_parameters", "flops",
                                                                        "lemma1_flops"), _NUMBER)},
                                     SPEED_FILE: {"visit": str, "seconds": list}}
"""What every row of a file has, whatever else."""


class SearchFolder:
    """The folder of one search.

    Args:
        path: the folder; made if absent.
        settings: everything that determines the result; JSON-able.
        resume: join or go on with the search in the folder, if there is one. A folder that holds nothing but
            settings, in which no process is at work, has no search in it yet (the command failed) and takes
            new ones.

    Raises:
        BortError: the folder holds a run and ``resume`` is off, or a run with other settings, or cannot be
            written to.
    """

    def __init__(self, path: PathLike, settings: Mapping[str, Any], resume: bool = False) -> None:
        self.path = Path(path)
        self._presence: Optional[IO] = None
        # Through JSON, so that a tuple of today compares equal to the list in the file.
        on_root(lambda: self._open(json.loads(json.dumps(dict(settings))), resume))
        if not distributed.is_root():
            self._enter()
        hold_to_engines(self.path / "config.json")

    def _open(self, settings: Dict[str, Any], resume: bool) -> None:
        config = self.path / "config.json"
        alone = self._enter()
        begins = not config.is_file() or alone and self._untouched()
        if begins:
            write_json(config, new_config(settings))
        self._stay()
        # Read again even by who has just written it: between the two locks another process may have begun its
        # own.
        earlier = read_json(config)
        same = is_config(earlier) and earlier["settings"] == settings
        if not (resume or begins or same and self._untouched()):
            raise BortError(f"{self.path}: holds a run already; add --resume to go on with it, or choose "
                            "another --output")
        refuse_other_settings(config, earlier, settings)

    def _enter(self) -> bool:
        """Hold a shared lock on the folder until :meth:`close`, however this process ends; whether no other
        process holds it.

        A process that has the lock alone may replace settings that no other one works with. ``filelock`` has
        no shared locks, so this is ``flock`` itself; without ``fcntl`` (Windows) settings are never replaced.
        """
        path = self.path / "claims" / "present.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._presence = open(path, "ab")
        except OSError as error:
            raise BortError(f"{path}: cannot be made or written to ({error.strerror})") from error
        try:
            import fcntl
            fcntl.flock(self._presence, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (ImportError, OSError):
            self._stay()
            return False

    def _stay(self) -> None:
        """Share the lock with the other processes of this search."""
        with contextlib.suppress(ImportError, OSError):  # without locks, dealing out the work will say so
            import fcntl
            assert self._presence is not None
            fcntl.flock(self._presence, fcntl.LOCK_SH)

    def _untouched(self) -> bool:
        """Whether there are settings of a run, and nothing that was computed with them."""
        return (set(os.listdir(self.path)) <= {"config.json", ".lock", "claims"}
                and is_config(read_json(self.path / "config.json")))

    def close(self) -> None:
        """Release the shared lock."""
        hold(None)
        if self._presence is not None:
            self._presence.close()

    def __enter__(self) -> "SearchFolder":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def lock(self, name: str) -> FileLock:
        """The lock of one piece of work or file; freed when its holder dies."""
        return file_lock(self.path / "claims" / f"{name}.lock")

    def deal(self, work: Mapping[str, float], finished: Callable[[], Collection[str]],
             do: Callable[[str], Any], title: str = "") -> None:
        """Have every piece of work done once, by whichever process is free; returns when all are finished.

        Args:
            work: the pieces in the order they should be begun, with their sizes in any unit, for the time
                left.
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
        """Append finished rows to a JSON-lines file, after what a killed process may have left of its last
        line."""
        path = self.path / name
        with self.lock(f"append-{name}"):
            if path.is_file():
                content = path.read_bytes()
                if content and not content.endswith(b"\n"):
                    os.truncate(path, content.rfind(b"\n") + 1)
            for row in rows:
                append_jsonl(path, seal(row, path))

    def rows(self, name: str = CANDIDATES_FILE) -> List[Dict[str, Any]]:
        """Rows of a JSON-lines file in the order they were finished; an incomplete last line is left out.

        Raises:
            BortError: a line is not what this project wrote there; it is named by its number.
        """
        path = self.path / name
        return read_jsonl(path, FIELDS.get(name, {}), "remove that line, and what it told is made again",
                          sealed=True) if path.is_file() else []

    def worker(self) -> str:
        """This process's name in the records."""
        return f"rank {distributed.rank()}, process {os.getpid()}"


@contextlib.contextmanager
def watching(title: str, work: Mapping[str, float]) -> Iterator[Callable[[Collection[str]], None]]:
    """A progress bar over pieces of different sizes; gives a function that is told the names finished so far.

    What was finished before the first call does not count for the speed, so that a resumed run's time left is
    right.
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
