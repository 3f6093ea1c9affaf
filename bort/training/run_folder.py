"""Run folders: settings, metrics and checkpoints that survive a kill at any moment, and go on exactly.

    RUN/config.json              the settings as run, versions and command
    RUN/metrics.jsonl            one line per logged step
    RUN/checkpoints/step-N/      arrays and state.json; a checkpoint appears whole or not at all
    RUN/engines.json             what computed the forward passes without gradients
    RUN/results.json             written last, with the checksums of the run's lists (``*.jsonl``)

Only the root rank writes; every rank reads the same checkpoint. One process at a time may write to a folder.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, TypeVar

import numpy as np
from filelock import FileLock

from bort.backend import distributed
from bort.checkpoints.params_file import read_ndarrays, write_ndarrays
from bort.engines.base import hold
from bort.engines.engine import engines_used
from bort.errors import BortError
from bort.files import PathLike, is_leftover, lock_file, remove_leftovers, sha256_file
from bort.json_files import append_jsonl, read_json, read_sealed, write_json, write_sealed
from bort.training.run_config import hold_to_engines, is_config, new_config, refuse_other_settings

STATE_FILE = "state.json"
STATE_MEMBERS = {"state", "step", "metrics_bytes", "files"}
T = TypeVar("T")


class Checkpoint(NamedTuple):
    """What :meth:`RunFolder.save` stored: the step, JSON state, and named sets of arrays."""

    step: int
    state: Dict[str, Any]
    arrays: Dict[str, Dict[str, np.ndarray]]


def on_root(action: Callable[[], T]) -> Optional[T]:
    """Run ``action`` on the root alone; if it fails there with a BortError,
    fail with the same one on every rank."""
    value, message = None, None
    if distributed.is_root():
        try:
            value = action()
        except BortError as error:
            message = str(error)
    message = distributed.from_root(message)
    if message is not None:
        raise BortError(message)
    return value


def finite(value: Any) -> Any:
    """A JSON-able value with None for every number that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; made if absent.
        settings: what determines the run's result. A resumed run must have the same.
        resume: go on with the run in the folder, if there is one. A folder that holds nothing but settings
            has no run in it yet (the command failed before it did anything) and takes new ones.

    Raises:
        BortError: the folder holds a run and ``resume`` is off, or a run with other settings, or another
            process is writing to it.
    """

    def __init__(self, path: PathLike, settings: Mapping[str, Any], resume: bool = False) -> None:
        self.path = Path(path)
        self._lock: Optional[FileLock] = None
        on_root(lambda: self._open(dict(settings), resume))
        hold_to_engines(self.path / "config.json")

    def _open(self, settings: Dict[str, Any], resume: bool) -> None:
        self._lock = lock_file(
            self.path / ".lock",
            "another process is writing to this run; wait for it or choose another --output",
        )
        try:
            self._check_settings(settings, resume)
            remove_leftovers(self.path)
            for partial in (self.path / "checkpoints").glob(".step-*.tmp"):
                shutil.rmtree(partial, ignore_errors=True)
        except BaseException:
            self._lock.release()
            raise

    def _check_settings(self, settings: Dict[str, Any], resume: bool) -> None:
        config = self.path / "config.json"
        if not config.is_file() or self._untouched():
            write_json(config, new_config(settings))
            return
        if not resume:
            raise BortError(
                f"{self.path}: holds a run already; add --resume to go on with it, or choose another --output"
            )
        earlier = read_json(config)
        refuse_other_settings(config, earlier, settings, same_ranks=True)

    def _untouched(self) -> bool:
        """Whether there is a run's config and nothing else (this process holds the lock)."""
        names = {name for name in os.listdir(self.path) if not is_leftover(name)}
        return names <= {"config.json", ".lock"} and is_config(read_json(self.path / "config.json"))

    def close(self) -> None:
        """Let another process have the folder."""
        hold(None)
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def results(self) -> Optional[Dict[str, Any]]:
        """The content of ``results.json`` if the run has ended.

        Raises:
            BortError: it, or one of the lists that it has the checksums of, was damaged or changed.
        """
        path = self.path / "results.json"
        if not path.is_file():
            return None
        try:
            results = read_sealed(path)
            for name, digest in dict(results.pop("files", {})).items():  # earlier versions have none
                if not (path.parent / name).is_file():
                    raise BortError(f"{path.parent / name}: was there when the run ended and is missing")
                if sha256_file(path.parent / name) != digest:
                    raise BortError(
                        f"{path.parent / name}: was changed since the run ended (its checksum is wrong)"
                    )
        except BortError as error:
            raise BortError(
                f"{error}; put it back from a copy, or remove {path} and --resume repeats the run"
            ) from error
        return results

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``; numbers that are not finite become null."""
        if distributed.is_root():
            append_jsonl(self.path / "metrics.jsonl", finite(dict(row)))

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        arrays: Mapping[str, Mapping[str, np.ndarray]],
        keep: int = 2,
        protect: Sequence[int] = (),
    ) -> None:
        """Store a checkpoint; of the earlier ones the last ``keep`` and those of the steps ``protect`` stay.

        Args:
            state: JSON-able; ``metrics_bytes`` is added, so that a resumed run drops the lines after it.
            arrays: file name to named arrays. Non-root ranks may pass anything.

        Raises:
            BortError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        on_root(lambda: self._save(step, state, arrays, keep, protect))

    def _save(
        self,
        step: int,
        state: Mapping[str, Any],
        arrays: Mapping[str, Mapping[str, np.ndarray]],
        keep: int,
        protect: Sequence[int],
    ) -> None:
        final = self.path / "checkpoints" / f"step-{step:08d}"
        temporary = final.with_name(f".{final.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            for name, content in arrays.items():
                write_ndarrays(temporary / name, content)
            metrics = self.path / "metrics.jsonl"
            logged = metrics.stat().st_size if metrics.exists() else 0
            write_sealed(
                temporary / STATE_FILE,
                {
                    "state": dict(state),
                    "step": step,
                    "metrics_bytes": logged,
                    "files": {name: sha256_file(temporary / name) for name in arrays},
                },
            )
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise BortError(
                f"{final}: the checkpoint cannot be written ({error.strerror}); earlier ones are "
                "untouched, make room and --resume"
            ) from error
        except BortError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        steps = self.steps()
        for old in steps[:-keep] if keep else steps[:-1]:
            if old not in protect:
                shutil.rmtree(self._folder(old), ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:08d}"

    def steps(self) -> List[int]:
        """Steps that have a checkpoint, ascending."""
        folder = self.path / "checkpoints"
        names = os.listdir(folder) if folder.is_dir() else []
        return sorted(int(match.group(1)) for match in map(re.compile(r"step-(\d+)$").match, names) if match)

    def latest(self, check: Callable[[Dict[str, Any]], Any] = dict) -> Optional[Checkpoint]:
        """The newest checkpoint that is whole, the same on every rank; metrics logged after it are dropped.

        A damaged one is passed over with a warning. None when there is none at all.

        Args:
            check: called with a checkpoint's state; an error there is damage, too (checkpoints of earlier
                versions have no digest).

        Raises:
            BortError: there are some and all are damaged; nothing was changed.
        """
        found = on_root(lambda: self._newest_whole(check))
        step = distributed.from_root(found)
        if step is None:
            return None
        return self.read(step)

    def read(self, step: int) -> Checkpoint:
        """The checkpoint of one step, on every rank.

        Raises:
            BortError: it is not there or damaged.
        """
        folder = self._folder(step)
        stored = _read_state(folder, step)
        return Checkpoint(
            step, stored["state"], {name: read_ndarrays(folder / name) for name in stored["files"]}
        )

    def _newest_whole(self, check: Callable[[Dict[str, Any]], Any]) -> Optional[int]:
        steps = self.steps()
        for step in reversed(steps):
            folder = self._folder(step)
            try:
                stored = _read_state(folder, step)
                for name, digest in stored["files"].items():
                    if sha256_file(folder / name) != digest:
                        raise BortError(f"{folder / name}: its checksum is wrong")
                    read_ndarrays(folder / name)
                check(stored["state"])
            except (BortError, KeyError, TypeError, AttributeError, ValueError) as error:
                warnings.warn(f"{folder} is damaged and passed over ({error})", stacklevel=2)
                continue
            metrics = self.path / "metrics.jsonl"
            if metrics.exists():
                os.truncate(metrics, min(stored["metrics_bytes"], metrics.stat().st_size))
            return step
        if steps:
            raise BortError(
                f"{self.path / 'checkpoints'}: none of its {len(steps)} checkpoints is whole; "
                "nothing was changed. Copy them from where they are whole, remove the folder to "
                "begin this run anew, or choose another --output"
            )
        if (self.path / "metrics.jsonl").exists():
            os.truncate(self.path / "metrics.jsonl", 0)
        return None

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json``, numbers that are not finite as null,
        and remove the checkpoints, no longer needed."""

        def write() -> None:
            write_json(self.path / "engines.json", engines_used())
            files = {path.name: sha256_file(path) for path in sorted(self.path.glob("*.jsonl"))}
            write_sealed(self.path / "results.json", {**finite(dict(results)), "files": files})
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

        on_root(write)


def _read_state(folder: Path, step: int) -> Dict[str, Any]:
    """The members of a checkpoint's ``state.json``.

    Raises:
        BortError: they are not what was written, or (without a digest, from an earlier version) not what they
            must be.
    """
    path = folder / STATE_FILE
    stored = read_sealed(path)
    if set(stored) != STATE_MEMBERS:
        raise BortError(
            f"{path}: has the members {', '.join(sorted(stored))}, not {', '.join(sorted(STATE_MEMBERS))}"
        )
    files, logged = stored["files"], stored["metrics_bytes"]
    if (
        stored["step"] != step
        or not isinstance(stored["state"], dict)
        or type(logged) is not int
        or logged < 0
        or not isinstance(files, dict)
        or not all(isinstance(digest, str) for digest in files.values())
        or any(Path(name).name != name for name in files)
    ):
        raise BortError(f"{path}: not the state of step {step}")
    return stored
