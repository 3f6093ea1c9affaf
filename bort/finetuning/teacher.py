"""The teacher of a distillation or of Agora: a fine-tuned classifier, opened and checked once."""

from __future__ import annotations

from typing import Optional, Sequence

import numpy as np

from bort.errors import BortError
from bort.files import PathLike
from bort.finetuning.scoring import score
from bort.finetuning.sources import load_source, own_tokenizer
from bort.models import Classifier
from bort.tasks.base import Split, Task
from bort.tasks.encoding import encode
from bort.tasks.labels import align
from bort.text.tokenizers.base import Tokenizer
from bort.training.console import warn


class ClassifierTeacher:
    """A fine-tuned classifier, asked through its own tokenizer where that is not the student's.

    Args:
        model: a classifier with the task's outputs; they are put into the order of the task's labels.
        where: names it in messages.
        own: its tokenizer; ``tokenizer`` is the student's.
        max_length: of the student's inputs; the teacher cuts its own to what it takes.

    Raises:
        BortError: the model is no classifier of this task.
    """

    def __init__(
        self,
        model: Classifier,
        where: PathLike,
        own: Tokenizer,
        tokenizer: Tokenizer,
        task: Task,
        max_length: int,
    ) -> None:
        if not isinstance(model, Classifier) or model.num_outputs != task.num_outputs:
            raise BortError(
                f"{where}: the teacher must be a classifier with {task.num_outputs} outputs; "
                f"fine-tune it first: python run_finetune.py --task {task.name} --data-dir DATA "
                f"--model {where} --output TEACHER"
            )
        align(model, task, where)
        if model.task_name not in (None, task.name):
            warn(f"{where} was fine-tuned for {model.task_name}, not for {task.name}")
        self.model, self.where, self.own, self.tokenizer, self.task = model, where, own, tokenizer, task
        self.same = own.fingerprint == tokenizer.fingerprint
        # Lengths in another vocabulary say nothing about the teacher's.
        self.max_length = min(max_length, model.max_length) if self.same else model.max_length

    def of_split(
        self, split: Split, rows: Sequence[np.ndarray], cache_dir: Optional[PathLike] = None
    ) -> np.ndarray:
        """Logits (N, C), float32, of a split's examples; ``rows`` are their ids in the student's vocabulary.

        Raises:
            BortError: they are not finite.
        """
        if self.same and max(map(len, rows), default=0) <= self.max_length:
            return self.scores(rows)
        return self.scores(encode(self.task, split, self.own, self.max_length, cache_dir).token_ids)

    def scores(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Logits (N, C), float32, of sequences in the teacher's vocabulary; errors as :meth:`of_split`."""
        if not len(rows):
            return np.zeros((0, self.task.num_outputs), np.float32)
        found = score(self.model, rows, self.own.pad_id, describe="teacher")
        if not np.isfinite(found).all():
            raise BortError(
                f"{self.where}: the teacher's scores are not finite; its parameters are damaged "
                "or its training diverged: fine-tune it again"
            )
        return found


def open_teacher(path: PathLike, tokenizer: Tokenizer, task: Task, max_length: int) -> ClassifierTeacher:
    """The classifier in ``path`` with the tokenizer beside it, or the student's where there is none.

    Args:
        tokenizer, max_length: the student's.

    Raises:
        BortError: it cannot be loaded, does not belong to the tokenizer, or is no classifier of this task.
    """
    own = own_tokenizer(path) or tokenizer
    return ClassifierTeacher(load_source(path, own), path, own, tokenizer, task, max_length)
