"""A task's files as a training takes them: splits with their token ids, and companion sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np

from bort.errors import BortError
from bort.files import PathLike
from bort.finetuning.scoring import score
from bort.tasks.base import Split, Task
from bort.tasks.encoding import EncodedSplit, encode
from bort.tasks.registry import get_task
from bort.text.tokenizers.loading import Tokenizer
from bort.training.console import warn


@dataclass
class Encoded:
    """A split with its task (a companion set has its own) and its token ids."""

    task: Task
    split: Split
    tokens: EncodedSplit

    def metrics(self, model: Any, pad_id: int, ranks: bool = True) -> Dict[str, float]:
        """The task's metrics of ``model`` over the whole split."""
        return self.task.evaluate(self.split, score(model, self.tokens.token_ids, pad_id, ranks=ranks))


@dataclass
class TaskData:
    """Everything a task's folder offers: training and dev data, and further sets to score by
    ``Task/split``."""

    task: Task
    train: Optional[Encoded]
    dev: Optional[Encoded]
    others: Dict[str, Encoded]

    @property
    def training(self) -> Encoded:
        """The training split.

        Raises:
            BortError: it was not read.
        """
        if self.train is None:
            raise BortError(f"{self.task.name}: there is no training data")
        return self.train

    @property
    def development(self) -> Encoded:
        """The dev split.

        Raises:
            BortError: the task's folder has none.
        """
        if self.dev is None:
            raise BortError(f"{self.task.name}: there is no dev set in its folder")
        return self.dev


@dataclass(frozen=True)
class ReadOptions:
    """How a task's files are read.

    Attributes:
        encoding: "paper" or "released".
        cache_dir: where token ids are kept between runs.
        train: whether the training split is needed.
        seed: draws what a task discards from its training split (section 5.2, 5.3).
        limit: keep only this many training examples, drawn with ``seed``; 0 keeps all.
    """

    encoding: str = "paper"
    cache_dir: Optional[PathLike] = None
    train: bool = True
    seed: int = 0
    limit: int = 0


def read_task(
    name: str,
    data_dir: PathLike,
    tokenizer: Tokenizer,
    max_length: int,
    options: Optional[ReadOptions] = None,
) -> TaskData:
    """Read and encode a task's splits and those companion sets whose files are there.

    Raises:
        BortError: a needed file is missing or broken.
    """
    options = options or ReadOptions()
    task = get_task(name, options.encoding)

    def encoded(owner: Task, split: Split) -> Encoded:
        tokens = encode(owner, split, tokenizer, max_length, options.cache_dir)
        if tokens.num_truncated:
            warn(
                f"{owner.name} {split.name}: {tokens.num_truncated} of {len(tokens)} examples were cut to "
                f"{max_length} tokens"
            )
        return Encoded(owner, split, tokens)

    training = None
    if options.train:
        if "train" not in task.splits:
            raise BortError(
                f"{task.name} has no training data: fine-tune on {task.model_task}, whose model "
                f"is scored on {task.name} too"
            )
        rng = np.random.default_rng([options.seed, 0x54524E])
        split = task.training_subset(task.read(data_dir, "train"), rng)
        if 0 < options.limit < len(split):
            split = split.subset(np.sort(rng.choice(len(split), options.limit, replace=False)))
        training = encoded(task, split)
    dev = (
        encoded(task, task.read(data_dir, "dev"))
        if "dev" in task.splits and (options.train or task.available(data_dir, "dev"))
        else None
    )
    others: Dict[str, Encoded] = {}
    for owner in (task, *(get_task(companion, options.encoding) for companion in task.companions)):
        for split_name in owner.splits:
            if split_name == "train" or (owner is task and split_name == "dev"):
                continue
            places = (Path(data_dir), Path(data_dir).parent) if owner is not task else (Path(data_dir),)
            place = next((place for place in places if owner.available(place, split_name)), None)
            if place is not None:
                others[f"{owner.name}/{split_name}"] = encoded(owner, owner.read(place, split_name))
    return TaskData(task, training, dev, others)
