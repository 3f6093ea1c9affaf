"""The three stages of DynaBERT (section 2.2), as one loop over what a stage trains and who teaches it.

    width     the widths at full depth, taught by the fixed fine-tuned network          weights 1 and 0.1
    depth     every width and depth, each taught by the width-adaptive network at that width      1 and 1
    finetune  every width and depth, on labels

Each step adds the gradients of all sub-networks of its stage on one batch, or of those that are drawn
(:mod:`bort.dynabert.sampling`), and updates the shared parameters once. A teacher answers a batch once for
all whom it teaches, and not at all if none of them is trained. The best epoch of a stage is the one with the
highest sum over its sub-networks of the task's first metric.
"""
from __future__ import annotations

import contextlib
import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional

import numpy as np

from bort.backend import distributed
from bort.backend.mxnet import autograd, nd
from bort.batching import chunks, pad_batch, padded_length, share, shuffled_batches
from bort.checkpoints.locate import plain_name
from bort.checkpoints.model_folder import parameter_arrays, set_parameters
from bort.dynabert.grid import Multipliers, grid
from bort.dynabert.losses import LossWeights, Outputs, StepSize, batch_loss
from bort.dynabert.options import AdaptiveOptions
from bort.dynabert.sampling import Passes, batch_flops, count_passes, draw
from bort.dynabert.subnetworks import SubNetwork
from bort.errors import BortError
from bort.finetuning.loop import Settings, TrainingData, accumulate_gradients
from bort.models import Classifier
from bort.training.console import progress
from bort.training.optimizer import BertAdam
from bort.training.run_folder import RunFolder
from bort.training.schedules import make_schedule
from bort.training.step import StepOptions, StepState, TrainingStep, products_of

WEIGHTS: Dict[str, LossWeights] = {"width": LossWeights(1.0, 0.1), "depth": LossWeights(1.0, 1.0),
                                  "finetune": LossWeights(hard=True)}


@dataclass
class Position:
    """Where a training stands; part of its checkpoints."""

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    losses: int = 0
    best_value: float = -1e300
    best_epoch: int = -1
    seconds: float = 0.0
    step: StepState = field(default_factory=StepState)
    history: List[Dict[str, Any]] = field(default_factory=list)
    passes: Passes = field(default_factory=list)


class AdaptiveTraining:
    """The training of one adaptive network.

    Args:
        model: the full network, rewired; trained in place.
        teacher: the fixed fine-tuned network; it may be None if no stage distils.
        data: of every stage, by its name.
        evaluate: the task's metrics of a sub-network; the first one counts.
        settings: learning rate, batch size and so on; ``epochs`` are those of every stage.
        run: where checkpoints and ``metrics.jsonl`` go, and what is resumed from.
    """

    def __init__(self, model: Classifier, teacher: Optional[Classifier], data: Mapping[str, TrainingData],
                 evaluate: Callable[[SubNetwork], Dict[str, float]], settings: Settings,
                 options: AdaptiveOptions, run: RunFolder) -> None:
        self.model, self.teacher, self.data, self.evaluate = model, teacher, data, evaluate
        self.settings, self.options, self.run = settings, options, run
        self.position, self.best = Position(), {}  # type: Position, Dict[str, np.ndarray]
        full = model.architecture
        everything = grid(options.widths, options.depths, full)
        self.networks = {chosen: SubNetwork(model, chosen) for chosen in everything}
        self.chosen = {name: [one for one in everything if name != "width" or one.depth == 1]
                       for name in options.stages}
        self._counted = time.monotonic()
        self._teachers: Dict[Multipliers, SubNetwork] = {}

    def train(self, pad_id: int, checkpoint_interval: int = 500,
              stop_when: Optional[Callable[[], bool]] = None) -> List[Dict[str, Any]]:
        """Train all stages; the model ends with the parameters of the last stage's best epoch.

        Args:
            pad_id: what to pad batches with.
            checkpoint_interval: steps between checkpoints; there is one after every epoch as well.
            stop_when: asked after every step; a true answer raises KeyboardInterrupt, as a kill would.

        Returns:
            One row an epoch: stage, loss, and the metrics of every sub-network.

        Raises:
            Diverged: losses or gradients stay not finite.
        """
        accumulate_gradients(self.model)
        distributed.broadcast_parameters(self.model._collect_params_with_prefix())
        checkpoint = self.run.latest()
        if checkpoint is not None:
            state = dict(checkpoint.state)
            self.position = Position(**{**state, "step": StepState(**state["step"])})
            set_parameters(self.model, checkpoint.arrays["model.params"], str(self.run.path))
            self.best = dict(checkpoint.arrays.get("best.params", {}))
        with contextlib.ExitStack() as training:
            for network in self.networks.values():  # teachers and evaluations stay in float32
                training.enter_context(network.products_in(products_of(self.settings.dtype)))
            while self.position.stage < len(self.options.stages):
                moments = checkpoint.arrays.get("optimizer.params") if checkpoint is not None else None
                self._stage(pad_id, checkpoint_interval, moments, stop_when)
                checkpoint = None
        return self.position.history

    def _stage(self, pad_id: int, checkpoint_interval: int, moments: Optional[Mapping[str, np.ndarray]],
               stop_when: Optional[Callable[[], bool]]) -> None:
        name, settings, position = self.options.stages[self.position.stage], self.settings, self.position
        data = self.data[name]
        self._teachers = self._teachers_of(name)
        size = distributed.size()
        per_step = settings.batch_size * settings.accumulate * size
        total = -(-len(data) // per_step) * settings.epochs
        total = min(total, settings.max_steps) if settings.max_steps else total
        optimizer = BertAdam(self.model._collect_params_with_prefix(), settings.weight_decay, settings.clip)
        if moments:
            optimizer.load_state_arrays(moments)
        seed = StepOptions(seed=settings.seed, stream=(3, position.stage), dtype=settings.dtype,
                           advice=f"use a smaller --lr (it is {settings.lr:g}) or a longer --warmup")
        step = TrainingStep(optimizer, make_schedule(settings.schedule, settings.lr, total, settings.warmup),
                            seed, ("loss",), position.step)
        lengths = np.array([len(ids) for ids in data.token_ids])
        bar = progress(total=total, initial=position.step.step, desc=f"stage {name}", unit="step")
        while position.epoch < settings.epochs and position.step.step < total:
            order = np.random.default_rng([settings.seed, 1, position.stage, position.epoch])
            batches = shuffled_batches(lengths, per_step, order)
            while position.batch < len(batches) and position.step.step < total:
                self._step(step, batches[position.batch], data, WEIGHTS[name], pad_id, bar)
                position.batch += 1
                bar.update(1)
                if stop_when is not None and stop_when():
                    raise KeyboardInterrupt
                if position.step.step % checkpoint_interval == 0 and position.batch < len(batches):
                    self._save(optimizer)
            self._end_epoch(name, bar)
            if position.epoch < settings.epochs and position.step.step < total:
                self._save(optimizer)
        bar.close()
        set_parameters(self.model, self.best, "the best epoch")
        self.position = Position(stage=position.stage + 1, seconds=position.seconds, history=position.history,
                                 passes=position.passes)
        self.best = {}
        self._save(None)

    def _teachers_of(self, name: str) -> Dict[Multipliers, SubNetwork]:
        """Who teaches each sub-network of a stage."""
        if name == "finetune":
            return {}
        if name == "width":
            if self.teacher is None:
                raise BortError("the width stage needs a teacher")
            whole = SubNetwork(self.teacher, Multipliers())
            return dict.fromkeys(self.chosen[name], whole)
        frozen = self._frozen()
        by_width = {width: SubNetwork(frozen, Multipliers(width, 1.0))
                    for width in {one.width for one in self.chosen[name]}}
        return {one: by_width[one.width] for one in self.chosen[name]}

    def _frozen(self) -> Classifier:
        """The width-adaptive network as the width stage left it (or the rewired teacher without that
        stage), kept in the run's folder so that a resumed depth stage has the same teacher."""
        from bort.checkpoints import model_folder
        from bort.training.run_folder import on_root

        folder = self.run.path / "width-adaptive"
        if self.position.step.step == 0 and self.position.epoch == 0:
            on_root(lambda: model_folder.save(self.model, folder) and None)
        return model_folder.load(folder)

    def _step(self, step: TrainingStep, batch: np.ndarray, data: TrainingData, weights: LossWeights,
              pad_id: int, bar: Any) -> None:
        size = StepSize(len(batch), int(sum(len(data.token_ids[index]) for index in batch)))
        mine = share(batch, distributed.rank(), distributed.size())
        name = self.options.stages[self.position.stage]
        trained = draw(self.chosen[name], self.options.sampled, self.settings.seed, self.position.stage,
                       step.state.step)

        def backward(part: np.ndarray) -> Dict[str, float]:
            ids, valid = pad_batch([data.token_ids[index] for index in part], pad_id, self.model.max_length)
            context = distributed.context()
            inputs = nd.array(ids, dtype="int32", ctx=context), nd.array(valid, ctx=context)
            labels = nd.array(data.labels[part], dtype="float32", ctx=context)
            said: Dict[int, Outputs] = {}
            total = 0.0
            for one in trained:
                bar.set_postfix_str(str(one), refresh=False)
                teacher = self._teachers.get(one)
                if teacher is not None and id(teacher) not in said:
                    states = teacher.states(*inputs)
                    said[id(teacher)] = Outputs(teacher.logits(states), states)
                with autograd.record():
                    states = self.networks[one].states(*inputs)
                    loss = batch_loss(Outputs(self.networks[one].logits(states), states),
                                      said[id(teacher)] if teacher is not None else None,
                                      one.matched(self.model.architecture), labels, inputs[1], weights, size)
                loss.backward()
                total += float(loss.asscalar())
            return {"loss": total}

        result = step(list(chunks(mine, self.settings.batch_size)), backward)
        self._count(name, trained, batch, data)
        if result.finite:
            self.position.loss_sum += result.figures["loss"]
            self.position.losses += 1

    def _count(self, stage: str, trained: List[Multipliers], batch: np.ndarray, data: TrainingData) -> None:
        """Note what a step has computed, as if its batch were padded as a whole."""
        longest = max(len(data.token_ids[index]) for index in batch)
        length = padded_length(longest, self.model.max_length)
        taught = {teacher.chosen: None for teacher in map(self._teachers.get, trained) if teacher is not None}
        for role, networks in (("teacher", list(taught)), ("student", trained)):
            for one in networks:
                flops = batch_flops(one, self.model.architecture, len(batch), length)
                count_passes(self.position.passes, stage, role, one, flops, len(batch))

    def metrics(self) -> Dict[Multipliers, Dict[str, float]]:
        """The task's metrics of every sub-network as trained; what the last stage's best epoch was judged by
        is not computed again."""
        last = [row for row in self.position.history if row["stage"] == self.options.stages[-1]]
        known = {(row["width"], row["depth"]): {name: value for name, value in row.items()
                                                if name not in ("width", "depth")}
                 for row in (max(last, key=lambda row: row["sum"])["metrics"] if last else [])}
        return {one: known.get((one.width, one.depth)) or self.evaluate(network)
                for one, network in self.networks.items()}

    def _end_epoch(self, name: str, bar: Any) -> None:
        position = self.position
        metrics = {}
        for one in self.chosen[name]:
            with self.networks[one].products_in("float32"):
                found = self.evaluate(self.networks[one])
            metrics[one] = {key: float(value) for key, value in found.items()}
        first = [next(iter(found.values())) for found in metrics.values()]
        value = sum(number if math.isfinite(number) else 0.0 for number in first)
        loss = position.loss_sum / max(1, position.losses)
        row = {"stage": name, "epoch": position.epoch, "step": position.step.step, "loss": loss, "sum": value,
               "metrics": [{**asdict(one), **found} for one, found in metrics.items()]}
        position.history.append(row)
        self.run.log(row)
        if value > position.best_value or not self.best:
            position.best_value, position.best_epoch = value, position.epoch
            self.best = plain_arrays(self.model)
        bar.set_postfix_str(f"epoch {position.epoch + 1}/{self.settings.epochs} loss {loss:.4f} mean metric "
                            f"{100 * value / len(first):.2f}")
        position.epoch, position.batch, position.loss_sum, position.losses = position.epoch + 1, 0, 0.0, 0

    def _save(self, optimizer: Optional[BertAdam]) -> None:
        arrays: Dict[str, Dict[str, np.ndarray]] = {"model.params": plain_arrays(self.model)}
        if optimizer is not None:
            arrays["optimizer.params"] = optimizer.state_arrays()
        if self.best:
            arrays["best.params"] = self.best
        now = time.monotonic()
        self.position.seconds, self._counted = self.position.seconds + now - self._counted, now
        number = self.position.stage * 10_000_000 + self.position.step.step
        self.run.save(number, asdict(self.position), arrays)


def plain_arrays(model: Classifier) -> Dict[str, np.ndarray]:
    """Every distinct parameter by its name in model files, without the classifier's ``bort.``."""
    return {plain_name(name): array for name, array in parameter_arrays(model).items()}
