"""What a run of Agora leaves on the disk while it goes on, and how a killed one finds its way back.

    RUN/agora.jsonl                      a line per training
    RUN/additions.jsonl                  a line per point that tau made and the teacher labelled
    RUN/checkpoints/step-N/              the state between trainings' rounds, with the best model so far
    RUN/trainings/TAG/theta-I.json       a training of the present round that has ended; its parameters beside
                                         it while it is the best of its rank

The state names the lengths and the checksums of both lists, so that lines written after it are dropped when a
killed run goes on, and a list that was changed is noticed. The last two states are kept: should the newest be
damaged, the run goes on from the one before and comes to the same. Within a round every ended training has a
file with a checksum, written after its parameters and before those of its rank's former best go; a kill
between any two of these steps, or a damaged file, costs at most that training.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from bort.agora.points import Addition
from bort.agora.state import State, Training, best_of
from bort.agora.student import Trained
from bort.backend import distributed
from bort.checkpoints.params_file import read_ndarrays, write_ndarrays
from bort.errors import BortError
from bort.files import sha256_file
from bort.json_files import append_jsonl, read_jsonl, read_sealed, write_sealed
from bort.training.run_folder import RunFolder, on_root

TRAININGS, ADDITIONS = "agora.jsonl", "additions.jsonl"
LISTS = (TRAININGS, ADDITIONS)
Parameters = Dict[str, np.ndarray]


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

    def restore(self) -> Optional[Tuple[State, Parameters, List[Addition]]]:
        """The last state, the best model's parameters and all additions; None for a run that begins.

        Raises:
            BortError: checkpoints are there but none is whole, or a list has lost or changed lines; nothing
            is changed then.
        """
        where = str(self.path / "checkpoints")
        checkpoint = self.run.latest(lambda stored: State.from_json(stored, where))
        state = (
            None if checkpoint is None else State.from_json(checkpoint.state, f"{self.path / 'checkpoints'}")
        )
        on_root(lambda: self._cut(state))
        distributed.barrier()
        if checkpoint is None or state is None:
            return None
        best = {name: np.array(array) for name, array in checkpoint.arrays.get("best.params", {}).items()}
        path = self.path / ADDITIONS
        return state, best, [Addition.from_row(row) for row in read_jsonl(path)] if path.exists() else []

    def _cut(self, state: Optional[State]) -> None:
        """Drop the lines that were written after the state, all of them in a run that begins."""
        if state is None and self.run.steps():  # not a run that begins: emptying the lists would destroy it
            raise BortError(
                f"{self.path / 'checkpoints'}: no checkpoint is whole, so the run cannot go on; "
                "choose another --output"
            )
        kept = {name: (0, hashlib.sha256().hexdigest()) for name in LISTS}
        kept.update({} if state is None else state.lists)
        for name, (length, digest) in kept.items():
            path = self.path / name
            present = path.stat().st_size if path.exists() else 0
            problem = (
                "was there when the run was last saved and is missing"
                if length and not path.exists()
                else "is shorter than when the run was last saved"
                if present < length
                else ""
                if _digest(path, length) == digest
                else "was changed since the run was last saved (its checksum is wrong)"
            )
            if problem:
                raise BortError(f"{path}: {problem}; the run cannot go on, choose another --output")
        for name, (length, _) in kept.items():
            if (self.path / name).exists():
                os.truncate(self.path / name, length)

    def save(self, state: State, best: Mapping[str, np.ndarray]) -> None:
        """Store the state, with the lengths and checksums of the lists in it."""
        if distributed.is_root():
            state.lists = {
                name: (length, _digest(self.path / name, length)) for name, length in self._lengths().items()
            }
        self.run.save(state.number, asdict(state), {"best.params": best} if best else {}, keep=2)

    def _lengths(self) -> Dict[str, int]:
        return {
            name: (self.path / name).stat().st_size if (self.path / name).exists() else 0 for name in LISTS
        }

    def forget(self, tag: str) -> None:
        """Remove the files of a round's trainings."""
        on_root(lambda: shutil.rmtree(self.path / "trainings" / tag, ignore_errors=True))

    def append_additions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add lines to ``additions.jsonl``."""

        def write() -> None:
            for row in rows:
                append_jsonl(self.path / ADDITIONS, dict(row))

        on_root(write)

    def trainings(self) -> List[Training]:
        """The lines of ``agora.jsonl``, the same on every rank.

        Raises:
            BortError: a line is not one of ours.
        """
        path = self.path / TRAININGS
        rows = distributed.from_root(on_root(lambda: list(read_jsonl(path))))
        return [Training.from_json(row, str(path)) for row in rows]

    # ---- the trainings of a round

    def deal(
        self, tag: str, jobs: Sequence[Training], train: Callable[[int], Trained], log: bool = True
    ) -> Tuple[List[Training], Optional[Parameters]]:
        """Carry out trainings, training i by rank i modulo their number, without repeating those that have
        ended.

        Args:
            tag: name of the round, unique in the run.
            jobs: what is known of each training before it; :attr:`Training.index` is unique.
            train: carries out a training, by its place in ``jobs``.
            log: whether the lines go to ``agora.jsonl``.

        Returns:
            The trainings in the order of ``jobs``, and the parameters of the best one, the same on every
            rank; None when all diverged.
        """
        folder = self.path / "trainings" / tag
        start = self._lengths()[TRAININGS] if distributed.is_root() else 0
        mine: List[Training] = []
        places = range(distributed.rank(), len(jobs), distributed.size())
        ended = self._ended(folder, [jobs[place].index for place in places])
        for place in places:
            training = ended.get(jobs[place].index)
            if training is None:
                training = self._store(folder, jobs[place], train(place), mine)
            mine.append(training)
            if log and distributed.is_root():
                append_jsonl(self.path / TRAININGS, training.line())
            if self.after_training is not None:
                self.after_training()
        everyones = distributed.gather([training.to_json() for training in mine])
        trainings = [Training.from_json(row, tag) for part in everyones for row in part]
        order = {job.index: place for place, job in enumerate(jobs)}
        trainings.sort(key=lambda training: order[training.index])
        # in the order of the trainings, not of their ends
        if log and distributed.is_root() and distributed.size() > 1:
            os.truncate(self.path / TRAININGS, start)
            for training in trainings:
                append_jsonl(self.path / TRAININGS, training.line())
        best = best_of(trainings)
        return trainings, self._share(folder, best, mine) if best is not None else None

    def _ended(self, folder: Path, numbers: Sequence[int]) -> Dict[int, Training]:
        """Those of this rank's trainings that have ended and whose files are whole.

        The best of them is left out, and so repeated, if its parameters are missing or damaged. Those of the
        others were removed when a better one came, and nobody needs them.
        """
        found = {number: _read_training(folder, number) for number in numbers}
        ended = {number: training for number, training in found.items() if training is not None}
        best = best_of(list(ended.values()))
        if best is not None:
            parameters = _parameters_file(folder, best.index)
            if not parameters.is_file() or sha256_file(parameters) != best.sha256:
                del ended[best.index]
        return ended

    def _store(self, folder: Path, job: Training, trained: Trained, mine: List[Training]) -> Training:
        scores = trained.scores
        training = Training.from_json(
            {
                **job.to_json(),
                "score": scores and scores.score,
                "accuracy": scores and scores.accuracy,
                "loss": scores and scores.loss,
                "dev": trained.dev,
                "epoch": trained.epoch,
                "steps": trained.steps,
                "seconds": trained.seconds,
                "diverged": trained.diverged,
            },
            str(folder),
        )
        before = best_of(mine)
        keep = bool(trained.parameters) and (before is None or training.better(before))
        folder.mkdir(parents=True, exist_ok=True)
        path = _parameters_file(folder, training.index)
        if keep:
            write_ndarrays(path, trained.parameters)
            training.sha256 = sha256_file(path)
        write_sealed(path.with_suffix(".json"), training.to_json())
        if keep and before is not None:
            _parameters_file(folder, before.index).unlink(missing_ok=True)  # gone if this one is repeated
        return training

    def _share(self, folder: Path, best: Training, mine: Sequence[Training]) -> Parameters:
        """Give every rank the best training's parameters, read by the rank that carried it out."""
        owner = any(training.index == best.index for training in mine)
        arrays: Parameters = {}
        if owner:
            stored = read_ndarrays(_parameters_file(folder, best.index))
            arrays = {name: np.array(array) for name, array in stored.items()}
        if distributed.size() == 1:
            return arrays
        shapes = next(
            part
            for part in distributed.gather(
                [[name, list(array.shape)] for name, array in sorted(arrays.items())]
            )
            if part
        )
        return {
            name: distributed.allreduce_sum(arrays[name] if owner else np.zeros(shape, np.float32))
            for name, shape in shapes
        }


def _parameters_file(folder: Path, number: int) -> Path:
    return folder / f"theta-{number:04d}.params"


def _read_training(folder: Path, number: int) -> Optional[Training]:
    """The training whose file is in ``folder``; None where there is none, or it is damaged."""
    path = _parameters_file(folder, number).with_suffix(".json")
    if not path.is_file():
        return None
    try:
        return Training.from_json(read_sealed(path), str(path))
    except BortError:
        return None


def _digest(path: Path, length: int) -> str:
    """SHA-256 in hexadecimal of a file's first ``length`` bytes; of nothing where there is no file."""
    digest = hashlib.sha256()
    if length and path.exists():
        with open(path, "rb") as stream:
            while length > 0:
                block = stream.read(min(length, 1 << 20))
                if not block:
                    break
                digest.update(block)
                length -= len(block)
    return digest.hexdigest()
