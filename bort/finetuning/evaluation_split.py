"""An evaluation set taken out of a training set, and the file through which several runs share it.

Agora scores models on it (and lets tau transform its members); a teacher whose training leaves it out has not
seen it. Members are named by their content, so that one file serves runs with other limits, seeds and
tokenizers, and a text that occurs twice in the training set is in or out as a whole. The split is ours: the
paper uses the dev set.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import FrozenSet, Iterable, Optional

import numpy as np

from bort.backend import distributed
from bort.errors import BortError
from bort.files import PathLike
from bort.finetuning.task_data import Encoded, TaskData
from bort.json_files import read_json, shorten, write_json
from bort.tasks.base import Example, Split, Task
from bort.tasks.encoding import EncodedSplit
from bort.training.run_folder import on_root


def draw(split: Split, labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Indices, ascending, of an evaluation set drawn from a training split.

    Stratified by class (in regression by the value rounded to a whole number): every stratum gives
    round(fraction * size), at least one where it has two. Where examples belong to questions, whole questions
    are drawn. Depends on ``seed`` alone.

    Args:
        labels: (N,) classes or values of the split's examples.

    Raises:
        BortError: the fraction is not between 0 and 1, or nothing or everything would be taken.
    """
    if not 0 < fraction < 1:
        raise BortError(f"--evaluation-fraction is a share between 0 and 1, not {fraction}")
    rng = np.random.default_rng([seed, 0x484F])
    groups = [example.group for example in split.examples]
    if any(group is not None for group in groups):
        names = list(dict.fromkeys(groups))
        count = max(1, int(round(fraction * len(names))))
        chosen = {names[index] for index in rng.permutation(len(names))[:count].tolist()}
        taken = np.flatnonzero([group in chosen for group in groups])
    else:
        strata = np.floor(np.clip(np.asarray(labels, dtype=np.float64), 0, None) + 0.5).astype(np.int64)
        parts = []
        for stratum in np.unique(strata):
            members = np.flatnonzero(strata == stratum)
            count = int(round(fraction * len(members)))
            parts.append(rng.permutation(members)[: max(count, 1 if len(members) > 1 else 0)])
        taken = np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)
    if not 0 < len(taken) < len(split):
        raise BortError(
            f"{len(split)} training examples are too few to take {fraction:.0%} of them as the "
            "evaluation set; use --evaluate-on dev"
        )
    return taken


def content_key(example: Example) -> str:
    """32 hexadecimal digits that stand for an example's texts."""
    text = "\x1f".join(example.segments)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True)
class EvaluationSplit:
    """The members of an evaluation set, by :func:`content_key`."""

    keys: FrozenSet[str]

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal of the members."""
        return hashlib.sha256("".join(sorted(self.keys)).encode("ascii")).hexdigest()

    def members(self, split: Split) -> np.ndarray:
        """Indices, ascending, of the examples of a training split that are in the set."""
        return np.flatnonzero([content_key(example) in self.keys for example in split.examples])


def of_examples(examples: Iterable[Example]) -> EvaluationSplit:
    """The set of some examples."""
    return EvaluationSplit(frozenset(map(content_key, examples)))


def write_split(path: PathLike, split: EvaluationSplit, task: Task) -> None:
    """Store an evaluation set, whole or not at all."""
    write_json(
        path,
        {
            "task": task.name,
            "members": len(split.keys),
            "digest": split.digest,
            "evaluation": sorted(split.keys),
        },
    )


def read_split(path: PathLike, task: Task) -> EvaluationSplit:
    """What :func:`write_split` stored.

    Raises:
        BortError: the file cannot be read, is of another task, or is not as it was written.
    """
    content = read_json(path)
    keys = content.get("evaluation") if isinstance(content, dict) else None
    if (
        not isinstance(keys, list)
        or not keys
        or not all(isinstance(key, str) and key.isascii() for key in keys)
    ):
        raise BortError(
            f"{path}: not an evaluation set that run_finetune.py wrote; remove it, or give --split-file "
            "another name"
        )
    split = EvaluationSplit(frozenset(keys))
    if content.get("digest") != split.digest:
        raise BortError(
            f"{path}: was changed after it was written (its digest is wrong); copy it anew, or remove "
            "it and train the teacher again"
        )
    if content.get("task") != task.name:
        raise BortError(f"{path}: is an evaluation set of {shorten(content.get('task'))}, not of {task.name}")
    return split


def shared_split(
    path: PathLike, data: TaskData, data_dir: PathLike, fraction: float, seed: int
) -> EvaluationSplit:
    """The evaluation set in ``path``; drawn from the training split, and written, by the first run
    that names it.

    Raises:
        BortError: see :func:`draw` and :func:`read_split`, or the folder cannot be written to.
    """
    train = data.training

    def make() -> None:
        examples = [
            train.split.examples[index] for index in draw(train.split, train.tokens.labels, fraction, seed)
        ]
        if any(example.group is not None for example in examples):  # with the options that training discards
            groups = {example.group for example in examples}
            examples = [
                example for example in data.task.read(data_dir, "train").examples if example.group in groups
            ]
        write_split(path, of_examples(examples), data.task)

    on_root(lambda: None if Path(path).exists() else make())
    distributed.barrier()
    return read_split(path, data.task)


def subset(encoded: Encoded, indices: np.ndarray, note: str) -> Encoded:
    """The examples at ``indices``; ``note`` goes into the fingerprint."""
    tokens = encoded.tokens
    fingerprint = hashlib.sha256(f"{tokens.fingerprint} {note}".encode()).hexdigest()
    return Encoded(
        encoded.task,
        encoded.split.subset(indices),
        EncodedSplit(
            [tokens.token_ids[index] for index in indices],
            tokens.labels[indices],
            tokens.num_truncated,
            fingerprint,
        ),
    )


def leave_out(data: TaskData, split: Optional[EvaluationSplit]) -> TaskData:
    """``data`` without the evaluation set's members in its training split; as it is when there is no set.

    Raises:
        BortError: nothing would be left.
    """
    if split is None:
        return data
    assert data.train is not None
    kept = np.setdiff1d(np.arange(len(data.train.split)), split.members(data.train.split))
    if not len(kept):
        raise BortError("--split-file: every training example is in the evaluation set; raise --limit")
    return replace(data, train=subset(data.train, kept, f"without {split.digest}"))
