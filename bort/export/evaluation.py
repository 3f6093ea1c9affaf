"""Dev metrics of an exported model beside the model's own."""
from __future__ import annotations

from typing import Dict, Mapping

from bort.engines.base import Engine, EngineOptions
from bort.engines.engine import open_engine
from bort.files import PathLike
from bort.finetuning.scoring import score
from bort.models import Classifier
from bort.tasks.base import Task
from bort.tasks.encoding import encode
from bort.tasks.labels import output_order
from bort.text.tokenizers.loading import Tokenizer

MOST_LOST = 0.005
"""Of a metric's mean over the task's metrics, by 8 bits: more, and layers are left in float32."""


class DevSet:
    """A task's dev set, on which engines of one model are compared.

    Args:
        model: whose engines these are; its labels are held against the task's.
        data: the task's folder.

    Raises:
        BortError: the data cannot be read, or the model has other labels than the task.
    """

    def __init__(self, model: Classifier, task: Task, data: PathLike, tokenizer: Tokenizer,
                 max_length: int) -> None:
        self._order = output_order(model.labels, model.num_outputs, task, "the model", model.task_name)
        self._task, self._split = task, task.read(data, "dev")
        self._token_ids = encode(task, self._split, tokenizer, max_length).token_ids
        self._pad_id = tokenizer.pad_id
        self.own = self.metrics(open_engine(model, "classifier", EngineOptions()))

    def metrics(self, engine: Engine) -> Dict[str, float]:
        """The task's metrics, from 0 to 1, of what an engine answers."""
        scores = score(engine, self._token_ids, self._pad_id, ranks=False)
        return self._task.evaluate(self._split, scores if self._order is None else scores[:, self._order])

    def lost(self, metrics: Mapping[str, float]) -> float:
        """How far the mean of the metrics is below the model's own."""
        return sum(self.own[name] - metrics[name] for name in self.own) / len(self.own)
