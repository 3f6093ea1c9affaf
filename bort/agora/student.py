"""Timaeus: the student, fine-tuned from the same pre-trained weights every time."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, Mapping, Optional, Sequence

import numpy as np

from bort.agora.evaluation import EvaluationSet, Scores
from bort.agora.plan import DEV
from bort.agora.points import Points
from bort.checkpoints.locate import plain_name
from bort.checkpoints.model_folder import set_parameters
from bort.finetuning.hyperparameters import Theta
from bort.finetuning.loop import LoopOptions, Settings, TrainingData, fine_tune
from bort.finetuning.scoring import score
from bort.finetuning.task_data import Encoded
from bort.models import Classifier
from bort.training.step import Diverged


@dataclass
class Trained:
    """How one training ended.

    Attributes:
        steps, seconds: what it took.
        scores: on E; None when it diverged.
        dev: metrics on the dev set; empty when there is none.
        epoch: the best one, from 1.
        diverged: why it did.
        parameters: of the best epoch, by name; empty when it diverged.
    """

    steps: int
    seconds: float
    scores: Optional[Scores] = None
    dev: Dict[str, float] = field(default_factory=dict)
    epoch: int = 0
    diverged: Optional[str] = None
    parameters: Dict[str, np.ndarray] = field(repr=False, default_factory=dict)


class Timaeus:
    """The student.

    Args:
        build: the untrained classifier with a head drawn from a seed.
        base: settings that no theta changes.
        evaluation: E.
        dev: scored after every training and reported; it decides nothing. None where E is the dev set
            already.
        pad_id: what batches are padded with.
        seed: 10,000 times it is added to every theta's, so that several runs differ.
    """

    def __init__(
        self,
        build: Callable[[int], Classifier],
        base: Settings,
        evaluation: EvaluationSet,
        dev: Optional[Encoded],
        pad_id: int,
        seed: int = 0,
    ) -> None:
        self.build, self.base, self.evaluation, self.dev = build, base, evaluation, dev
        self.pad_id, self.seed = pad_id, seed

    def settings(self, theta: Theta, soft: bool) -> Settings:
        """The settings of one training."""
        return replace(
            self.base,
            lr=theta.lr,
            weight_decay=theta.weight_decay,
            warmup=theta.warmup,
            seed=theta.seed + 10_000 * self.seed,
            distill_weight=self.base.distill_weight if soft else 0.0,
        )

    def steps(self, settings: Settings, size: int) -> int:
        """Optimizer steps of a training on ``size`` points."""
        steps = -(-size // (settings.batch_size * settings.accumulate)) * settings.epochs
        return min(steps, settings.max_steps) if settings.max_steps else steps

    def train(self, settings: Settings, points: Points, title: str) -> Trained:
        """Fine-tune on ``points`` and score on E and dev."""
        started = time.monotonic()
        data = TrainingData(
            points.token_ids, points.labels, points.scores if settings.distill_weight else None
        )
        model = self.build(settings.seed)
        try:
            outcome = fine_tune(model, data, self._evaluate, settings, self.pad_id,
                                options=LoopOptions(ranks=False, title=title))
        except Diverged as error:
            return Trained(
                self.steps(settings, len(points)), round(time.monotonic() - started, 3), diverged=str(error)
            )
        outputs = self._outputs(model)
        trained = Trained(
            steps=outcome.history[-1]["step"],
            seconds=0.0,
            scores=self.evaluation.scores(outputs),
            dev=self._dev(model, outputs),
            epoch=outcome.best_epoch + 1,
            parameters={
                plain_name(name): np.asarray(array, dtype=np.float32)
                for name, array in outcome.parameters.items()
            },
        )
        trained.seconds = round(time.monotonic() - started, 3)
        del model
        gc.collect()  # networks refer to themselves; hundreds of them must not pile up
        return trained

    def _outputs(self, model: Classifier) -> np.ndarray:
        return self.predict(model, self.evaluation.points.token_ids, ranks=False)

    def _evaluate(self, model: Classifier) -> Dict[str, float]:
        return {"selection": self.evaluation.scores(self._outputs(model)).selection}

    def _dev(self, model: Classifier, outputs: np.ndarray) -> Dict[str, float]:
        if self.evaluation.name == DEV:
            return self.evaluation.metrics(outputs)
        if self.dev is None or not self.dev.split.labelled:
            return {}
        return {
            name: float(value) for name, value in self.dev.metrics(model, self.pad_id, ranks=False).items()
        }

    def predict(self, model: Classifier, rows: Sequence[np.ndarray], ranks: bool = True) -> np.ndarray:
        """Scores (N, C) of sequences."""
        return score(model, rows, self.pad_id, ranks=ranks)

    def with_parameters(self, parameters: Mapping[str, np.ndarray]) -> Any:
        """A classifier that holds these parameters."""
        model = self.build(0)
        set_parameters(model, dict(parameters), "the best model of the run")
        return model
