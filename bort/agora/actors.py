"""Who takes part in Agora: the student (Timaeus), the teacher (Socrates) and the set that decides between
models (E)."""
from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from bort.agora.points import Points, strata
from bort.agora.token_edits import texts
from bort.checkpoints.model_folder import set_parameters
from bort.errors import BortError
from bort.files import PathLike, read_jsonl, read_npy
from bort.finetuning.experiment import Encoded, TaskData
from bort.finetuning.hyperparameters import Theta
from bort.finetuning.loop import Settings, TrainingData, fine_tune
from bort.finetuning.scoring import score
from bort.models import Classifier
from bort.tasks.base import Split, Task
from bort.tasks.encoding import encode, encode_pair
from bort.tasks.labels import align
from bort.tasks.metrics import rounded_accuracy
from bort.text.tokenizers.base import Tokenizer
from bort.training.console import say
from bort.training.step import Diverged

TIE_BREAKER = 1e-6
"""Weight of the loss on E beside the metric: of models with the same score the one with the smaller loss is
better."""
SOLVABLE = 2 / 3
"""Accuracy that the teacher needs for the algorithm's guarantee (section 5)."""


@dataclass
class Evaluation:
    """E: the set on which models are scored, with the metric that decides.

    The metric is the task's first, and in regression the share of values that round to the label's integer
    (paper, section 5.1).

    Attributes:
        split: the examples, with which the task computes its metrics.
        name: "held-out" or "dev".
    """

    task: Task
    split: Split
    points: Points
    name: str

    @property
    def metric(self) -> str:
        """Name of the deciding metric."""
        return "rounded_accuracy" if self.task.is_regression else self.task.metrics[0]

    def score(self, scores: np.ndarray) -> float:
        """The deciding metric of scores (N, C)."""
        if self.task.is_regression:
            return rounded_accuracy(self.task.outputs(self.split, scores), self.points.labels)
        return float(self.task.evaluate(self.split, scores)[self.metric])

    def accuracy(self, scores: np.ndarray) -> float:
        """Share of single examples predicted rightly, which is what the algorithm's guarantee speaks of."""
        return 1 - float(np.mean(wrong(self.task, self.points.labels, scores)))

    def selection(self, scores: np.ndarray) -> float:
        """The number that orders models: the metric, ties broken by the loss."""
        return self.score(scores) - TIE_BREAKER * min(loss(self.task, self.points.labels, scores), 1e3)


def wrong(task: Task, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """bool (N,): examples whose class (in regression, rounded value) is not the label's."""
    outputs = scores[:, 0] if task.is_regression else scores.argmax(axis=1)
    return strata(task, outputs) != strata(task, labels)


def loss(task: Task, labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean cross-entropy, or mean squared error in regression; not finite scores give infinity."""
    scores = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        return math.inf
    if task.is_regression:
        return float(np.mean((scores[:, 0] - labels) ** 2))
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    return float(np.mean(log_sum - shifted[np.arange(len(labels)), np.asarray(labels, dtype=np.int64)]))


def confidences(task: Task, scores: np.ndarray) -> List[Optional[float]]:
    """Probability of the predicted class of each example; None in regression."""
    if task.is_regression:
        return [None] * len(scores)
    shifted = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return [float(value) for value in (1 / shifted.sum(axis=1)).round(6)]


class Socrates:
    """The teacher S: a fine-tuned classifier, through its own tokenizer where that is not the student's.

    Args:
        model: a classifier with the task's outputs; they are put into the order of the task's labels.
        own: the tokenizer in its folder; ``tokenizer`` the student's.
        max_length: of the student's inputs; the teacher cuts its own to what it takes.

    Raises:
        BortError: the model is no classifier of this task, or (when asked) its scores are not finite.
    """

    def __init__(self, model: Any, where: PathLike, own: Tokenizer, tokenizer: Tokenizer, task: Task,
                 max_length: int) -> None:
        if not isinstance(model, Classifier) or model.num_outputs != task.num_outputs:
            raise BortError(f"{where}: the teacher must be a classifier with {task.num_outputs} outputs; "
                            f"fine-tune it first: python run_finetune.py --task {task.name} --data-dir DATA "
                            f"--model {where} --output TEACHER")
        align(model, task, where)
        self.where = where
        if getattr(model, "task_name", None) not in (None, task.name):
            say(f"warning: {where} was fine-tuned for {model.task_name}, not for {task.name}")
        self.model, self.own, self.tokenizer, self.task = model, own, tokenizer, task
        self.same = own.fingerprint == tokenizer.fingerprint
        self.max_length = min(max_length, model.max_length)
        if not self.same:
            self.max_length = model.max_length  # lengths of another vocabulary say nothing
        self.seconds, self.labelled = 0.0, 0

    def of_split(self, split: Split, rows: Sequence[np.ndarray], cache_dir: Optional[PathLike]) -> np.ndarray:
        """Scores (N, C) of a split's examples, ``rows`` being their ids in the student's vocabulary."""
        if self.same and max(map(len, rows)) <= self.max_length:
            return self._score(rows)
        return self._score(encode(self.task, split, self.own, self.max_length, cache_dir).token_ids)

    def of_rows(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Scores (N, C) of sequences in the student's vocabulary; another vocabulary gets their decoded
        text."""
        if self.same and (not len(rows) or max(map(len, rows)) <= self.max_length):
            return self._score(rows)
        again = []
        for row in rows:
            parts = [self.own.encode(text) for text in texts(row, self.tokenizer)]
            again.append(encode_pair(self.own, parts[0], parts[1] if len(parts) > 1 else None,
                                     self.max_length, self.task.truncation))
        return self._score(again)

    def _score(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        started = time.monotonic()
        scores = score(self.model, rows, self.own.pad_id) if len(rows) else np.zeros(
            (0, self.task.num_outputs), np.float32)
        if not np.isfinite(scores).all():
            raise BortError(f"{self.where}: the teacher's scores are not finite; its parameters are damaged "
                            "or its training diverged: fine-tune it again")
        self.seconds += time.monotonic() - started
        self.labelled += len(rows)
        return scores


def read_table(path: PathLike, count: int, task: Task) -> np.ndarray:
    """A teacher's scores for the training examples from a ``.npy`` or ``.jsonl`` file: float32 (N, C).

    The rows are those of the training split as it is read, in order: an array of shape (N, C), or a line
    ``{"scores": [...]}`` for each example.

    Raises:
        BortError: another number of rows or outputs, or not finite.
    """
    try:
        if Path(path).suffix == ".npy":
            table = read_npy(path).astype(np.float32)
        else:
            table = np.asarray([row["scores"] for row in read_jsonl(path)], dtype=np.float32)
    except BortError:
        raise
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BortError(f"{path}: not a table of a teacher's scores ({error}); it takes an array (N, C) in a "
                        ".npy file or "
                        'lines {"scores": [...]}') from error
    if table.shape != (count, task.num_outputs):
        raise BortError(f"{path}: has the shape {table.shape}; {task.name} has {count} training examples and "
                        f"{task.num_outputs} outputs")
    if not np.isfinite(table).all():
        raise BortError(f"{path}: some scores are not finite")
    return table


@dataclass
class Trained:
    """One training: what ``agora.jsonl`` says of it and, for the best of a rank, its parameters."""

    row: Dict[str, Any]
    selection: float
    parameters: Dict[str, np.ndarray] = field(repr=False, default_factory=dict)


class Timaeus:
    """The student, fine-tuned from the same pre-trained weights every time.

    Args:
        build: the untrained classifier with a head drawn from a seed.
        base: settings that no theta changes.
        dev: scored after every training and reported; it decides nothing. None where E is the dev set
            already.
        seed: added to every theta's, so that several runs differ.
    """

    def __init__(self, build: Callable[[int], Classifier], base: Settings, evaluation: Evaluation,
                 dev: Optional[Encoded], pad_id: int, seed: int = 0) -> None:
        self.build, self.base, self.evaluation, self.dev = build, base, evaluation, dev
        self.pad_id, self.seed = pad_id, seed

    def settings(self, theta: Theta, soft: bool, **changes: Any) -> Settings:
        """The settings of one training."""
        return replace(self.base, lr=theta.lr, weight_decay=theta.weight_decay, warmup=theta.warmup,
                       seed=theta.seed + 10_000 * self.seed, distill_weight=self.base.distill_weight if soft
                       else 0.0, **changes)

    def steps(self, settings: Settings, size: int) -> int:
        """Optimizer steps of a training on ``size`` points."""
        steps = -(-size // (settings.batch_size * settings.accumulate)) * settings.epochs
        return min(steps, settings.max_steps) if settings.max_steps else steps

    def train(self, settings: Settings, points: Points, title: str) -> Trained:
        """Fine-tune on ``points`` and score on E and dev; a diverged training has the score None and comes
        last."""
        started = time.monotonic()
        data = TrainingData(points.token_ids, points.labels, points.scores if settings.distill_weight
                            else None)
        model = self.build(settings.seed)
        try:
            outcome = fine_tune(model, data, self._evaluate, settings, self.pad_id, ranks=False, title=title)
        except Diverged as error:
            return Trained({"score": None, "loss": None, "epoch": 0, "dev": {},
                            "steps": self.steps(settings, len(points)), "diverged": str(error),
                            "seconds": round(time.monotonic() - started, 3)}, -math.inf)
        scores = self.predict(model, self.evaluation.points.token_ids, ranks=False)
        own_loss = loss(self.evaluation.task, self.evaluation.points.labels, scores)
        dev = {}
        if self.evaluation.name == "dev":
            dev = {key: float(value) for key, value in self.evaluation.task.evaluate(self.evaluation.split,
                                                                                     scores).items()}
        elif self.dev is not None:
            dev = {key: float(value) for key, value in self.dev.metrics(model, self.pad_id,
                                                                        ranks=False).items()}
        row = {"score": self.evaluation.score(scores), "loss": own_loss if math.isfinite(own_loss) else None,
               "epoch": outcome.best_epoch + 1, "dev": dev, "steps": outcome.history[-1]["step"],
               "seconds": round(time.monotonic() - started, 3)}
        parameters = {plain(name): np.asarray(array, dtype=np.float32) for name,
                      array in outcome.parameters.items()}
        del model
        gc.collect()  # networks refer to themselves; hundreds of them must not pile up
        return Trained(row, self.evaluation.selection(scores), parameters)

    def _evaluate(self, model: Classifier) -> Dict[str, float]:
        return {"selection": self.evaluation.selection(self.predict(model, self.evaluation.points.token_ids,
                                                                    False))}

    def predict(self, model: Classifier, rows: Sequence[np.ndarray], ranks: bool = True) -> np.ndarray:
        """Scores (N, C) of sequences."""
        return score(model, rows, self.pad_id, ranks=ranks)

    def with_parameters(self, parameters: Mapping[str, np.ndarray]) -> Classifier:
        """A classifier that holds these parameters."""
        model = self.build(0)
        set_parameters(model, dict(parameters), "the best model of the run")
        return model


def plain(name: str) -> str:
    """A classifier's parameter name as ``checkpoints.set_parameters`` takes it."""
    return name[5:] if name.startswith("bort.") else name


def split_evaluation(data: TaskData, tokenizer: Tokenizer, taken: Optional[np.ndarray],
                     whole: Optional[Split], max_length: int, cache_dir: Optional[PathLike]) -> Tuple[Points,
                                                                                                      Evaluation,
                                                                                                      np.ndarray]:
    """X and E.

    Args:
        taken: indices of the training examples to hold out; None takes the dev set as E.
        whole: the training split before anything was discarded, for tasks whose questions E must hold with
            all options.

    Returns:
        X, E, and the indices of X in the training split.
    """
    task, train = data.task, data.train
    everything = np.arange(len(train.tokens))
    kept = everything if taken is None else np.setdiff1d(everything, taken)
    x = Points([train.tokens.token_ids[index] for index in kept], train.tokens.labels[kept],
               [f"train/{index}" for index in kept])
    if taken is None:
        tokens, split, name = data.dev.tokens, data.dev.split, "dev"
    elif whole is None:
        name, split = "held-out", train.split.subset(taken)
        points = Points([train.tokens.token_ids[index] for index in taken], train.tokens.labels[taken],
                        [f"held-out/{index}" for index in taken])
        return x, Evaluation(task, split, points, name), kept
    else:
        groups = {train.split.examples[index].group for index in taken}
        name, split = "held-out", whole.subset([index for index, example in enumerate(whole.examples)
                                                if example.group in groups])
        tokens = encode(task, split, tokenizer, max_length, cache_dir)
    points = Points(list(tokens.token_ids), tokens.labels,
                    [f"{name}/{index}" for index in range(len(tokens))])
    return x, Evaluation(task, split, points, name), kept
