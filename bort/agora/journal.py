"""What a run of Agora leaves on the disk while it goes on, and how a killed one finds its way back.

    RUN/agora.jsonl                      a line per training
    RUN/additions.jsonl                  a line per point that tau made and the teacher labelled
    RUN/checkpoints/step-N/              the state between trainings' rounds, with the best model so far
    RUN/trainings/TAG/theta-I.json       a training of the present round that has ended; its parameters beside it while
                                         it is the best of its rank

The state names the lengths of both lists, so that lines written after it are dropped when a killed run goes
on. The
last two states are kept: should the newest be damaged, the run goes on from the one before and comes to the
same. Within a round every ended training has a file, written after its parameters and before those of its
rank's former best go; a kill between any two of these steps costs at most the training under way.
"""
from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from bort.agora.actors import Trained
from bort.agora.points import Addition
from bort.backend import distributed
from bort.checkpoints.params_file import read_ndarrays, write_ndarrays
from bort.errors import BortError
from bort.files import append_jsonl, read_json, read_jsonl, sha256_file, write_json
from bort.training.run_folder import RunFolder, on_root

LISTS = ("agora.jsonl", "additions.jsonl")
LOWEST = -1e300
"""Stands for minus infinity, which JSON does not have."""
Job = Tuple[int, Mapping[str, Any]]


class Journal:
    """The files of one run; every rank has one and the root's writes the lists.

    Args:
        run: the opened run folder, which all ranks see.
        after_training: called after every training's file is written (tests kill the process there).
    """

    def __init__(self, run: RunFolder, after_training: Optional[Callable[[], None]] = None) -> None:
        self.run, self.path = run, run.path
        self.after_training = after_training

    # ---- the state between rounds

    def restore(self) -> Optional[Tuple[Dict[str, Any], Dict[str, np.ndarray], List[Addition]]]:
        """The last state, the best model's parameters and all additions; None for a run that begins.

        Raises:
            BortError: checkpoints are there but none is whole, or a list has lost lines; nothing is changed
            then.
        """
        checkpoint = self.run.latest()
        state = checkpoint.state if checkpoint else None
        on_root(lambda: self._cut(state["bytes"] if state else None))
        distributed.barrier()
        if checkpoint is None:
            return None
        best = {name: np.array(array) for name, array in checkpoint.arrays.get("best.params", {}).items()}
        additions = [Addition.from_row(row) for row in read_jsonl(self.path / "additions.jsonl")] if (
            self.path / "additions.jsonl").exists() else []
        return state, best, additions

    def _cut(self, lengths: Optional[Mapping[str, int]]) -> None:
        if lengths is None and self.run.steps():  # not a run that begins: emptying the lists would destroy it
            raise BortError(f"{self.path / 'checkpoints'}: no checkpoint is whole, so the run cannot go on; "
                            "choose another --output")
        present = self._lengths()
        for name in LISTS:
            path, length = self.path / name, lengths[name] if lengths else 0
            if present[name] < length:
                raise BortError(f"{path}: " + ("is shorter than when the run was last saved" if path.exists()
                                               else "was there when the run was last saved and is missing")
                                + "; the run cannot go on, choose another --output")
        for name in LISTS:
            if (self.path / name).exists():
                os.truncate(self.path / name, lengths[name] if lengths else 0)

    def save(self, number: int, state: Dict[str, Any], best: Mapping[str, np.ndarray]) -> None:
        """Store the state; afterwards the trainings of earlier rounds are removed."""
        if distributed.is_root():
            state = {**state, "bytes": self._lengths()}
        self.run.save(number, state, {"best.params": best} if best else {}, keep=2)

    def _lengths(self) -> Dict[str, int]:
        return {name: (self.path / name).stat().st_size if (self.path / name).exists() else 0
                for name in LISTS}

    def forget(self, tag: str) -> None:
        """Remove the files of a round's trainings."""
        on_root(lambda: shutil.rmtree(self.path / "trainings" / tag, ignore_errors=True))

    def append_additions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add lines to ``additions.jsonl``."""
        def write() -> None:
            for row in rows:
                append_jsonl(self.path / "additions.jsonl", dict(row))
        on_root(write)

    # ---- the trainings of a round

    def deal(self, tag: str, jobs: Sequence[Job], train: Callable[[int], Trained], log: bool = True
             ) -> Tuple[List[Dict[str, Any]], Optional[Dict[str, np.ndarray]]]:
        """Carry out trainings, training i by rank i modulo their number, without repeating those that have
        ended.

        Args:
            tag: name of the round, unique in the run.
            jobs: number and description of each training; the description goes into its line.
            train: carries out a training, by its place in ``jobs``.
            log: whether the lines go to ``agora.jsonl``.

        Returns:
            The lines in the order of ``jobs``, with ``selection`` (what orders them) and ``index`` (the
            training's number), and the parameters of the best one, the same on every rank; None when all
            diverged.
        """
        folder = self.path / "trainings" / tag
        start = self._lengths()["agora.jsonl"] if distributed.is_root() else 0
        mine: List[Dict[str, Any]] = []
        places = range(distributed.rank(), len(jobs), distributed.size())
        ended = self._ended(folder, [jobs[place][0] for place in places])
        for place in places:
            number, description = jobs[place]
            row = ended.get(number)
            if row is None:
                row = self._store(folder, number, description, train(place), mine)
            mine.append(row)
            if log and distributed.is_root():
                append_jsonl(self.path / "agora.jsonl", public(row))
            if self.after_training is not None:
                self.after_training()
        rows = [row for part in distributed.gather(mine) for row in part]
        rows.sort(key=lambda row: [number for number, _ in jobs].index(row["index"]))
        # in the order of the trainings, not of their ends
        if log and distributed.is_root() and distributed.size() > 1:
            os.truncate(self.path / "agora.jsonl", start)
            for row in rows:
                append_jsonl(self.path / "agora.jsonl", public(row))
        best = best_of(rows)
        return rows, self._share(folder, best, mine) if best is not None else None

    def _ended(self, folder: Path, numbers: Sequence[int]) -> Dict[int, Dict[str, Any]]:
        """The lines of those of this rank's trainings that have ended.

        The best of them is left out, and so repeated, if its parameters are missing or damaged. Those of the
        others were removed when a better one came, and nobody needs them.
        """
        paths = {number: folder / f"theta-{number:04d}.json" for number in numbers}
        ended = {number: read_json(path) for number, path in paths.items() if path.is_file()}
        best = best_of(list(ended.values()))
        if best is not None:
            parameters = paths[best["index"]].with_suffix(".params")
            if not parameters.is_file() or sha256_file(parameters) != best["sha256"]:
                del ended[best["index"]]
        return ended

    def _store(self, folder: Path, number: int, description: Mapping[str, Any], trained: Trained,
               mine: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
        row = {**description, **trained.row, "index": number, "sha256": None,
               "selection": trained.selection if np.isfinite(trained.selection) else LOWEST}
        before = best_of(mine)
        keep = bool(trained.parameters) and (before is None or better(row, before))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"theta-{number:04d}.json"
        if keep:
            write_ndarrays(path.with_suffix(".params"), trained.parameters)
            row["sha256"] = sha256_file(path.with_suffix(".params"))
        write_json(path, row)
        if keep and before is not None:
            # gone if this one is repeated
            (folder / f"theta-{before['index']:04d}.params").unlink(missing_ok=True)
        return row

    def _share(self, folder: Path, best: Mapping[str, Any], mine: Sequence[Mapping[str, Any]]) -> Dict[str,
                                                                                                       np.ndarray]:
        """Give every rank the best training's parameters, read by the rank that carried it out."""
        owner = any(row["index"] == best["index"] for row in mine)
        arrays = {}
        if owner:
            stored = read_ndarrays(folder / f"theta-{best['index']:04d}.params")
            arrays = {name: np.array(array) for name, array in stored.items()}
        if distributed.size() == 1:
            return arrays
        shapes = next(part for part in distributed.gather(
            [[name, list(array.shape)] for name, array in sorted(arrays.items())]) if part)
        return {name: distributed.allreduce_sum(arrays[name] if owner else np.zeros(shape, np.float32))
                for name, shape in shapes}


def better(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a training is better than another: a higher selection value, or the same and a lower number."""
    return (row["selection"], -row["index"]) > (other["selection"], -other["index"])


def best_of(rows: Sequence[Mapping[str, Any]]) -> Optional[Mapping[str, Any]]:
    """The best of trainings that did not diverge; None when there is none."""
    best: Optional[Mapping[str, Any]] = None
    for row in rows:
        if row["selection"] > LOWEST and (best is None or better(row, best)):
            best = row
    return best


def public(row: Mapping[str, Any]) -> Dict[str, Any]:
    """A training's line without what only the journal needs."""
    return {key: value for key, value in row.items() if key not in ("sha256", "selection")}
