"""Fine-tuning: one loop for plain training and distillation, for students and teachers, for
Agora's trainings too.

Everything random is a function of the seed and the step (and, for dropout, the rank), so a run that was
killed goes on from its last checkpoint to the same figures. Each rank's loss is divided by the size of the
*global* batch and gradients are summed, over micro-batches and over ranks alike: K ranks with batch b, or K
accumulated batches of b, are one batch of K b.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from bort.backend import distributed
from bort.backend.mxnet import autograd, nd
from bort.batching import chunks, pad_batch, share, shuffled_batches
from bort.checkpoints.model_folder import parameter_arrays, set_parameters
from bort.errors import BortError
from bort.finetuning import losses
from bort.models import Classifier
from bort.models.precision import products_in
from bort.training.console import progress
from bort.training.interruption import Interruption
from bort.training.optimizer import BertAdam
from bort.training.run_folder import RunFolder, finite
from bort.training.schedules import make_schedule
from bort.training.step import (
    StepOptions,
    StepState,
    TrainingStep,
    check_dtype,
    initial_loss_scale,
    products_of,
)

WORST = -1e300
"""Below every metric; JSON has no infinity."""


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of one training. ``batch_size`` is per rank and micro-batch."""

    lr: float = 3e-5
    weight_decay: float = 0.01
    warmup: float = 0.1
    seed: int = 0
    batch_size: int = 8
    accumulate: int = 1
    epochs: int = 3
    schedule: str = "linear"
    clip: float = 1.0
    distill_weight: float = 0.5
    temperature: float = 2.0
    patience: int = 0
    max_steps: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        for name in ("batch_size", "accumulate", "epochs"):
            if getattr(self, name) < 1:
                raise BortError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        for name in ("weight_decay", "clip", "patience", "max_steps", "seed"):
            if getattr(self, name) < 0:
                raise BortError(f"--{name.replace('_', '-')} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.distill_weight <= 1:
            raise BortError(f"--distill-weight is a share from 0 to 1, not {self.distill_weight}")
        if not self.temperature > 0:
            raise BortError(f"--temperature must be above 0, not {self.temperature}")
        make_schedule(self.schedule, self.lr, 1, self.warmup)


@dataclass
class TrainingData:
    """What a model is trained on.

    Attributes:
        token_ids: N int32 arrays.
        labels: (N,) class indices or float values.
        teacher_scores: (N, C) float32 logits to distil, or None.
    """

    token_ids: Sequence[np.ndarray]
    labels: np.ndarray
    teacher_scores: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass
class Outcome:
    """The best epoch of a training: its metrics and its parameters, and what happened on the way."""

    best_epoch: int
    metrics: Dict[str, float]
    parameters: Dict[str, np.ndarray] = field(repr=False)
    history: List[Dict[str, Any]] = field(default_factory=list)
    skipped_steps: int = 0


@dataclass
class _Progress(StepState):
    """Where a training stands; ``loss_sum`` adds the epoch's ``counted`` finite losses."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    counted: int = 0
    best_epoch: int = -1
    best_value: float = WORST
    finished: bool = False
    history: List[Dict[str, Any]] = field(default_factory=list)

    @property
    def mean_loss(self) -> float:
        """Of this epoch so far; NaN where every step was skipped."""
        return self.loss_sum / self.counted if self.counted else math.nan


def _restored(state: Dict[str, Any]) -> _Progress:
    """The state in a checkpoint; earlier versions did not count what is in ``loss_sum``."""
    return _Progress.restored({"counted": state.get("batch", 0), **state})


@dataclass(frozen=True)
class LoopOptions:
    """How a training is run; none of it changes what is learned.

    Attributes:
        checkpoint_interval: steps between checkpoints; there is one after every epoch as well.
        ranks: train data-parallel over all ranks; off for trainings that are dealt out over them.
        title: of the progress bar.
        stop_when: asked after every step; a true answer raises KeyboardInterrupt, as a kill would (for
            tests).
    """

    checkpoint_interval: int = 500
    ranks: bool = True
    title: str = "training"
    stop_when: Optional[Callable[[], bool]] = None


def fine_tune(
    model: Classifier,
    data: TrainingData,
    evaluate: Callable[[Classifier], Dict[str, float]],
    settings: Settings,
    pad_id: int,
    run: Optional[RunFolder] = None,
    options: Optional[LoopOptions] = None,
) -> Outcome:
    """Train ``model`` and give it the parameters of its best epoch.

    Args:
        model: a network that holds its initial parameters.
        evaluate: metrics of the model after an epoch; the first one, larger is better, selects
            the best epoch.
        pad_id: what to pad batches with.
        run: where checkpoints and ``metrics.jsonl`` go, and what is resumed from.

    Raises:
        Diverged: losses or gradients were not finite in too many steps in a row
            (:data:`~bort.training.step.MAX_SKIPPED_IN_A_ROW`).
        BortError: there is nothing to train on.
    """
    options = options or LoopOptions()
    ranks = options.ranks
    if not len(data):
        raise BortError("there are no training examples")
    rank, size = (distributed.rank(), distributed.size()) if ranks else (0, 1)
    per_step = settings.batch_size * settings.accumulate * size
    steps_per_epoch = -(-len(data) // per_step)
    total = steps_per_epoch * settings.epochs
    if settings.max_steps:
        total = min(total, settings.max_steps)
    rate = make_schedule(settings.schedule, settings.lr, total, settings.warmup)
    if settings.dtype == "float16":
        model.cast(settings.dtype)
    parameters = model._collect_params_with_prefix()
    adds = settings.accumulate > 1
    accumulate_gradients(model, adds)
    if ranks:
        distributed.broadcast_parameters(parameters)
    optimizer = BertAdam(parameters, settings.weight_decay, settings.clip)
    model.hybridize(static_alloc=True)
    state, best = _Progress(loss_scale=initial_loss_scale(settings.dtype)), {}
    checkpoint = run.latest(_restored) if run else None
    if run is not None and checkpoint is not None:
        state = _restored(checkpoint.state)
        set_parameters(model, checkpoint.arrays["model.params"], "the checkpoint")
        optimizer.load_state_arrays(checkpoint.arrays["optimizer.params"])
        best = {name: np.array(array) for name, array in checkpoint.arrays.get("best.params", {}).items()}
    step_options = StepOptions(
        seed=settings.seed,
        dtype=settings.dtype,
        ranks=ranks,
        accumulates=adds,
        advice=f"use a smaller --lr (it is {settings.lr:g}) or a longer --warmup",
    )
    update = TrainingStep(optimizer, rate, step_options, ["loss"], state)
    lengths = np.array([len(ids) for ids in data.token_ids])
    elements = sum(parameter.data().size for _, parameter in optimizer.parameters)
    with (
        progress(total=total, initial=state.step, desc=options.title, unit="step") as bar,
        Interruption(run, elements) as interruption,
        products_in(model, products_of(settings.dtype)),
    ):
        while state.epoch < settings.epochs and not state.finished:
            batches = shuffled_batches(
                lengths, per_step, np.random.default_rng([settings.seed, 1, state.epoch])
            )
            while state.batch < len(batches) and state.step < total:
                batch = batches[state.batch]
                mine = list(chunks(share(batch, rank, size), settings.batch_size))
                backward = partial(_backward, model, data, settings, pad_id, len(batch), state.loss_scale)
                with interruption.step():
                    done = update(mine, backward)
                state.batch += 1
                if done.finite:
                    state.loss_sum += done.figures["loss"]
                    state.counted += 1
                bar.update(1)
                if run and state.step % max(1, total // 200) == 0:
                    run.log(
                        {
                            "step": state.step,
                            "epoch": state.epoch,
                            "loss": state.mean_loss,
                            "lr": rate(state.step - 1),
                            "gradient_norm": done.norm,
                        }
                    )
                if options.stop_when is not None and options.stop_when():
                    raise KeyboardInterrupt
                wanted = state.step % options.checkpoint_interval == 0 and state.batch < len(batches)
                if run and (wanted or interruption.requested):
                    _save(run, state, model, optimizer, best)
                if interruption.requested:
                    raise interruption.saved(state.step)
            _end_epoch(model, evaluate, settings, state, best, run, bar)
            state.finished |= state.step >= total
            if run:
                _save(run, state, model, optimizer, best)
    set_parameters(model, best, "the best epoch")
    metrics = {
        name: math.nan if value is None else value
        for name, value in state.history[state.best_epoch]["metrics"].items()
    }
    return Outcome(state.best_epoch, metrics, best, state.history, state.skipped)


def accumulate_gradients(model: Classifier, adds: bool = True) -> None:
    """Have gradients added up, for micro-batches or sub-networks; or, without ``adds``, written by a step's
    one backward pass, which is faster. The MLM head takes no part in classification and gets none: MXNet
    would refuse to read a stale one."""
    for name, parameter in model.bort.decoder._collect_params_with_prefix().items():
        if name != "3.weight":
            parameter.grad_req = "null"
    for parameter in model._collect_params_with_prefix().values():
        if parameter.grad_req != "null":
            parameter.grad_req = "add" if adds else "write"


def _backward(
    model: Classifier,
    data: TrainingData,
    settings: Settings,
    pad_id: int,
    batch_size: int,
    loss_scale: float,
    chunk: np.ndarray,
) -> Dict[str, Any]:
    """Add the gradient of a micro-batch to the parameters';
    its part of the global batch's mean loss, as an NDArray."""
    ids, valid = pad_batch([data.token_ids[index] for index in chunk], pad_id, model.max_length)
    with autograd.record():
        scores = model(
            nd.array(ids, dtype="int32", ctx=distributed.context()),
            nd.array(valid, ctx=distributed.context()),
        )
        loss = _loss(scores.astype("float32"), data, chunk, settings).sum() / batch_size
        scaled = loss * loss_scale
    scaled.backward()
    return {"loss": loss}


def _loss(scores: Any, data: TrainingData, chunk: np.ndarray, settings: Settings) -> Any:
    labels = nd.array(data.labels[chunk], dtype="float32", ctx=scores.context)
    hard = (
        losses.regression_loss(scores, labels) if scores.shape[-1] == 1 else losses.hard_loss(scores, labels)
    )
    if data.teacher_scores is None or settings.distill_weight == 0:
        return hard
    teacher = nd.array(data.teacher_scores[chunk], dtype="float32", ctx=scores.context)
    soft = losses.soft_loss(scores, teacher, settings.temperature)
    return (1 - settings.distill_weight) * hard + settings.distill_weight * soft


def _end_epoch(
    model: Classifier,
    evaluate: Callable[[Classifier], Dict[str, float]],
    settings: Settings,
    state: _Progress,
    best: Dict[str, np.ndarray],
    run: Optional[RunFolder],
    bar: Any,
) -> None:
    started = time.monotonic()
    with products_in(model, "float32"):
        metrics = {name: float(value) for name, value in evaluate(model).items()}
    name, value = next(iter(metrics.items()))
    value = value if math.isfinite(value) else WORST
    loss = state.mean_loss
    state.history.append(finite({"epoch": state.epoch, "step": state.step, "loss": loss, "metrics": metrics}))
    if value > state.best_value or not best:
        state.best_epoch, state.best_value = state.epoch, value
        best.clear()
        best.update(parameter_arrays(model))
    bar.set_postfix_str(f"epoch {state.epoch + 1}/{settings.epochs} loss {loss:.4f} {name} {100 * value:.2f}")
    if run:
        run.log(
            {
                "step": state.step,
                "epoch": state.epoch,
                "train_loss": loss,
                "evaluation_seconds": round(time.monotonic() - started, 3),
                **{f"dev_{key}": number for key, number in metrics.items()},
            }
        )
    state.finished = bool(settings.patience) and state.epoch - state.best_epoch >= settings.patience
    state.epoch, state.batch, state.loss_sum, state.counted = state.epoch + 1, 0, 0.0, 0


def _save(
    run: RunFolder, state: _Progress, model: Classifier, optimizer: BertAdam, best: Dict[str, np.ndarray]
) -> None:
    arrays = {"model.params": parameter_arrays(model), "optimizer.params": optimizer.state_arrays()}
    if best:
        arrays["best.params"] = best
    run.save(state.step, asdict(state), arrays)
