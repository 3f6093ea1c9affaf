"""Pre-training (section 4): the masked language model alone, or distilled from a teacher, on any
number of ranks.

Everything random is a function of the seed, the step and the rank, so a run that was killed goes on from its
last checkpoint as if nothing had happened. A step's gradient is the sum over the masked positions of the
global batch divided by their number: K ranks with batch b, K accumulated micro-batches of b, and one batch of
K b are the same step.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Dict, Optional

import numpy as np

from bort.backend import distributed
from bort.backend.mxnet import autograd
from bort.backend.numpy_views import threads
from bort.checkpoints import model_folder
from bort.files import PathLike
from bort.masked_lm.batches import (
    BatchPlan,
    BatchStream,
    MaskedLMBatch,
    check_corpus,
    evaluation_batches,
)
from bort.masked_lm.losses import BackwardOptions, LossSums, head_backward, head_losses
from bort.masked_lm.teacher import masked_states, on_device
from bort.masked_lm.vocabulary_product import product_of
from bort.models import Bert
from bort.models.precision import products_in, set_products
from bort.pretraining.settings import Corpus, Intervals, Settings
from bort.training.console import progress
from bort.training.events import EventWriter
from bort.training.interruption import Interruption
from bort.training.optimizer import BertAdam
from bort.training.plots import draw_curves, summary
from bort.training.run_folder import RunFolder, on_root
from bort.training.schedules import make_schedule
from bort.training.step import (
    StepOptions,
    StepResult,
    StepState,
    TrainingStep,
    initial_loss_scale,
    products_of,
)

EVALUATION_TOKENS = 8192
SECONDS_BETWEEN_DRAWINGS = 60
DROPOUT_STREAM = (0x505245,)
FIGURES = (*LossSums._fields, "tokens")
"""Of a step: both losses, right predictions and masked positions, and all tokens; sums."""


@dataclass
class Progress(StepState):
    """Where a training stands; a checkpoint holds this, the parameters and the optimizer's moments."""

    epoch: int = 0
    index: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_accuracy: float = -1.0
    best_step: int = -1
    window: Dict[str, float] = field(default_factory=dict)


class Pretraining:
    """One training; see :func:`pretrain` for the arguments. ``folder`` is the run's, for messages."""

    def __init__(
        self, student: Bert, corpus: Corpus, settings: Settings, teacher: Any = None, folder: PathLike = "RUN"
    ) -> None:
        self.student, self.corpus, self.settings, self.teacher = student, corpus, settings, teacher
        check_corpus(corpus.dev, student.max_length)
        self.rank, self.ranks = distributed.rank(), distributed.size()
        plan = BatchPlan(**{name: getattr(settings, name) for name in BatchPlan.__dataclass_fields__})
        self.stream = BatchStream(
            corpus.train, corpus.policy, corpus.pad_id, student.max_length, plan, self.rank, self.ranks
        )
        self.rate = make_schedule(settings.schedule, settings.lr, settings.steps, settings.warmup_ratio)
        self.progress = Progress(loss_scale=initial_loss_scale(settings.dtype))
        if settings.dtype == "float16":
            student.cast(settings.dtype)
        set_products(student, products_of(settings.dtype))
        parameters = student._collect_params_with_prefix()
        distributed.broadcast_parameters(parameters)
        self.adds = settings.accumulate > 1
        tied = student.word_vectors
        for name, parameter in parameters.items():
            if settings.train == "head" and (parameter is tied or not name.startswith("decoder.")):
                parameter.grad_req = "null"
            else:
                parameter.grad_req = "add" if self.adds or parameter is tied else "write"
        self.optimizer = BertAdam(parameters, settings.weight_decay, settings.clip)
        student.hybridize(static_alloc=True)
        self.product = product_of(student.vocabulary_projection, products_of(settings.dtype))
        options = StepOptions(
            seed=settings.seed,
            stream=DROPOUT_STREAM,
            dtype=settings.dtype,
            max_skipped=settings.max_skipped,
            accumulates=self.adds,
            mean_over="positions",
            advice=_advice(settings, folder),
        )
        self._update = TrainingStep(self.optimizer, self.rate, options, FIGURES, self.progress)

    def step(self) -> StepResult:
        """One update from the next global batch."""
        began, now = time.perf_counter(), self.progress
        done = self._update(self.stream.next(), self._backward)
        now.epoch, now.index = self.stream.epoch, self.stream.index
        seconds = time.perf_counter() - began
        now.seconds += seconds
        now.tokens += int(done.figures["tokens"])
        # A skipped step took its time, but its losses are no numbers and would make the whole window's none.
        counted = done.figures if done.finite else {"tokens": done.figures["tokens"]}
        for name, value in {**counted, "seconds": seconds}.items():
            now.window[name] = now.window.get(name, 0.0) + value
        return done

    def _backward(self, batch: MaskedLMBatch) -> Dict[str, float]:
        inputs = on_device(batch)
        teacher = self.teacher.targets(batch) if self.teacher is not None else None
        if self.settings.train == "head":
            body = self.student.states_at(*inputs)  # not recorded: neither gradients nor dropout
            with autograd.record():
                states = self.student.mlm_states(body)
        else:
            with autograd.record():
                states = masked_states(self.student, *inputs)
        options = BackwardOptions(add=self.adds, scale=self.progress.loss_scale)
        sums = head_backward(states, self.product, batch.labels, self.settings.loss, teacher, options)
        return {**sums._asdict(), "tokens": batch.tokens}

    def window(self) -> Dict[str, Any]:
        """The averages since the last call, as a row for ``metrics.jsonl``;
        None where every step was skipped."""
        now, loss = self.progress, self.settings.loss
        sums, now.window = now.window, {}
        row: Dict[str, Any] = {
            "step": now.step,
            "epoch": now.epoch,
            "lr": self.rate(now.step - 1),
            "mlm_loss": None,
            "mlm_accuracy": None,
            "loss": None,
        }
        if self.teacher is not None:
            row["kd_loss"] = None
        if "positions" in sums:
            positions = max(1.0, sums["positions"])
            row.update(mlm_loss=sums["mlm"] / positions, mlm_accuracy=sums["correct"] / positions)
            row["loss"] = loss.mlm_weight * row["mlm_loss"]
            if self.teacher is not None:
                row["kd_loss"] = sums["kd"] / positions
                row["loss"] += loss.kd_weight * row["kd_loss"]
        return {
            **row,
            "tokens": now.tokens,
            "tokens_per_second": sums["tokens"] / max(1e-9, sums["seconds"]),
            "seconds": now.seconds,
            "skipped": now.skipped,
        }

    def evaluate(self, limit: int) -> Dict[str, float]:
        """Loss and accuracy on the evaluation set, whose masks are the same for every run; in float32 even
        where training multiplies in bfloat16."""
        with products_in(self.student, "float32"):
            return self._evaluate(limit)

    def _evaluate(self, limit: int) -> Dict[str, float]:
        projection, totals = self.student.vocabulary_projection, np.zeros(3)
        batches, make = evaluation_batches(
            self.corpus.dev,
            self.corpus.policy,
            self.corpus.pad_id,
            self.student.max_length,
            EVALUATION_TOKENS,
            limit,
        )
        for examples in batches[self.rank :: self.ranks]:
            batch = make(examples)
            if len(batch.rows):
                states = masked_states(self.student, *on_device(batch))
                sums = head_losses(states, projection, batch.labels)
                totals += (sums.mlm, sums.correct, sums.positions)
        mlm, correct, positions = np.sum(distributed.gather(totals.tolist()), axis=0)
        return {
            "eval_mlm_loss": mlm / max(1.0, positions),
            "eval_mlm_accuracy": correct / max(1.0, positions),
            "eval_positions": int(positions),
        }

    def save(self, run: RunFolder, keep: int) -> None:
        """Write a checkpoint."""
        arrays = (
            {}
            if not distributed.is_root()
            else {
                "model.params": model_folder.parameter_arrays(self.student),
                "optimizer.params": self.optimizer.state_arrays(),
            }
        )
        run.save(self.progress.step, asdict(self.progress), arrays, keep)

    def restore(self, run: RunFolder) -> None:
        """Go on from the run's newest whole checkpoint, if it has one."""
        checkpoint = run.latest(Progress.restored)
        if checkpoint is None:
            return
        self.progress = self._update.state = Progress.restored(checkpoint.state)
        model_folder.set_parameters(self.student, checkpoint.arrays["model.params"], str(run.path))
        self.optimizer.load_state_arrays(checkpoint.arrays["optimizer.params"])
        self.stream.epoch, self.stream.index = self.progress.epoch, self.progress.index


def _advice(settings: Settings, folder: PathLike) -> str:
    return (
        f"the last checkpoint is intact. Go on from the best weights with a smaller rate (it is "
        f"{settings.lr:g}), in a new folder as this one keeps its settings: --init {folder}/best "
        f"--output NEW --lr {settings.lr / 4:.1g}; a longer --warmup-ratio or a smaller --clip also help"
    )


def pretrain(
    student: Bert,
    corpus: Corpus,
    settings: Settings,
    run: RunFolder,
    teacher: Any = None,
    intervals: Optional[Intervals] = None,
    after_step: Optional[Callable[[int], None]] = None,
) -> Dict[str, Any]:
    """Train ``student`` and write ``model/`` (the last step), ``best/`` (the best evaluation),
    curves and results.

    Args:
        student: a network that holds its initial parameters.
        run: an open run folder; a checkpoint in it is continued.
        teacher: a :class:`~bort.masked_lm.teacher.LiveTeacher` or
            :class:`~bort.pretraining.teacher_cache.CachedTeacher`; None trains the masked language model
            alone.
        after_step: called with the number of steps done (for tests).

    Returns:
        What ``results.json`` holds; there, numbers that are not finite are null.

    Raises:
        Diverged: losses or gradients were not finite ``settings.max_skipped`` times in a row.
        BortError: the corpus does not fit the model, a file of it or of the teacher is damaged, or the disk
            is full.
    """
    intervals = intervals or Intervals()
    training = Pretraining(student, corpus, settings, teacher, run.path)
    training.restore(run)
    now = training.progress
    events = EventWriter(run.path / "events", intervals.tensorboard, now.step or None)
    last: Dict[str, float] = {}
    drawn = time.monotonic()

    def draw_now_and_then() -> None:
        nonlocal drawn
        if time.monotonic() - drawn >= SECONDS_BETWEEN_DRAWINGS:
            draw_curves(run.path)
            drawn = time.monotonic()

    def evaluate() -> None:
        last.update(training.evaluate(intervals.evaluation_sequences))
        row = {"step": now.step, "seconds": now.seconds, **last}
        run.log(row)
        events.add(row)
        if last["eval_mlm_accuracy"] > now.best_accuracy:
            now.best_accuracy, now.best_step = last["eval_mlm_accuracy"], now.step
            _save_model(student, run, "best", corpus, settings, now)
        on_root(draw_now_and_then)

    elements = sum(parameter.data().size for _, parameter in training.optimizer.parameters)
    with (
        progress(total=settings.steps, initial=now.step, desc=run.path.name, unit="step") as bar,
        Interruption(run, elements) as interruption,
    ):
        if now.step == 0:
            evaluate()
        while now.step < settings.steps:
            with interruption.step():
                done = training.step()
            bar.update(1)
            if now.step % intervals.log == 0 or now.step == settings.steps:
                row = {**training.window(), "gradient_norm": done.norm}
                run.log(row)
                events.add(row)
                bar.set_postfix_str(summary(row))
            if now.step % intervals.evaluate == 0 or now.step == settings.steps:
                evaluate()
            if interruption.requested or now.step % intervals.checkpoint == 0 and now.step < settings.steps:
                training.save(run, intervals.keep)
            if interruption.requested:
                raise interruption.saved(now.step)
            if after_step is not None:
                after_step(now.step)
    events.close()
    if not last:
        last.update(training.evaluate(intervals.evaluation_sequences))
    set_products(student, "float32")
    _save_model(student, run, "model", corpus, settings, now)
    cores = distributed.size() * threads()
    results = {
        **last,
        "best_eval_mlm_accuracy": now.best_accuracy,
        "best_step": now.best_step,
        "steps": now.step,
        "epochs": now.epoch,
        "tokens": now.tokens,
        "seconds": now.seconds,
        "tokens_per_second": now.tokens / max(1e-9, now.seconds),
        "core_hours": now.seconds * cores / 3600,
        "ranks": distributed.size(),
        "cores": cores,
        "skipped": now.skipped,
    }
    run.finish(results)
    on_root(lambda: draw_curves(run.path))
    return results


def draw_missing_curves(run: RunFolder) -> None:
    """Draw ``curves.png`` of a run that has ended, if it was deleted or never drawn."""
    on_root(lambda: None if (run.path / "curves.png").is_file() else draw_curves(run.path))


def _save_model(
    student: Bert, run: RunFolder, name: str, corpus: Corpus, settings: Settings, now: Progress
) -> None:
    extra = {"pretraining": {"step": now.step, "tokens": now.tokens, "settings": asdict(settings)}}
    on_root(lambda: model_folder.save(student, run.path / name, corpus.tokenizer, extra) and None)
