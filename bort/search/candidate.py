"""Step 3 of the search: a candidate is trained for n steps on T's outputs, then scored on the held-out
lines."""
from __future__ import annotations

import math
from typing import Dict, List, Tuple

import numpy as np

from bort.architecture import Architecture
from bort.backend.mxnet import autograd, nd
from bort.checkpoints.model_folder import TIED
from bort.masked_lm.losses import MAX_CHUNK_ELEMENTS, BackwardOptions, LossWeights, head_backward
from bort.masked_lm.teacher import masked_states, on_device
from bort.models import Bert
from bort.models.initial_values import initial_value
from bort.search.lines import Lines
from bort.search.settings import SearchSettings
from bort.search.teacher import TeacherOutputs, cross_entropy, micro_batches
from bort.training.optimizer import Sgd
from bort.training.schedules import linear
from bort.training.step import StepOptions, StepState, TrainingStep

TO_THE_TEACHER = LossWeights(mlm_weight=0.0, kd_weight=1.0, temperature=1.0)
"""The cross-entropy between the last layers of T and of a candidate, and nothing else."""


class InitialValues:
    """The values that ``bort.models.initialize`` draws, kept between candidates.

    A parameter's values depend on its name and shape alone, and the tuples of a space share most of both.
    Drawing them anew would take longer than a short training.

    Args:
        seed: of the draws.
        limit: bytes to keep at most; what does not fit is drawn anew each time.
    """

    def __init__(self, seed: int, limit: int = 2 << 30) -> None:
        self.seed, self._left = seed, limit
        self._known: Dict[Tuple[str, Tuple[int, ...]], np.ndarray] = {}

    def fill(self, model: Bert) -> None:
        """Give every parameter of ``model`` its initial values."""
        for name, parameter in model._collect_params_with_prefix().items():
            if name != TIED:
                parameter.initialize(init="zeros")
                parameter.set_data(nd.array(self._value(name, tuple(parameter.shape)), dtype="float32"))

    def _value(self, name: str, shape: Tuple[int, ...]) -> np.ndarray:
        value = self._known.get((name, shape))
        if value is None:
            value = initial_value(name, shape, self.seed)
            if value.nbytes <= self._left:
                self._left -= value.nbytes
                self._known[name, shape] = value
        return value


def train(xi: Architecture, lines: Lines, teacher: TeacherOutputs, settings: SearchSettings,
          initial: InitialValues) -> Tuple[Bert, List[float]]:
    """A candidate after n steps of SGD on its cross-entropy to T, and the loss before every step (NaN: the
    step diverged and was skipped).

    Step k takes lines k B to (k + 1) B, B the batch size, in micro-batches whose gradients add up. Everything
    random depends on the seed, the step and the names of the candidate's parameters alone.
    """
    model = Bert(xi, lines.vocab_size, settings.positions, settings.dropout)
    model.collect_params().setattr("grad_req", "add")
    initial.fill(model)
    optimizer = Sgd(model.collect_params().values(), settings.clip)
    rate = linear(settings.lr, settings.steps, settings.warmup_ratio)
    options = StepOptions(seed=settings.seed, max_skipped=settings.steps + 1, ranks=False)
    update, losses = TrainingStep(optimizer, rate, options, ["kd"], StepState()), []
    for step in range(settings.steps):
        first, last = step * settings.batch_size, (step + 1) * settings.batch_size
        scored = max(1, teacher.positions(first, last))

        def backward(span: Tuple[int, int], scored: int = scored) -> Dict[str, float]:
            batch = lines.batch(*span)
            with autograd.record():
                states = masked_states(model, *on_device(batch))
            sums = head_backward(states, model.vocabulary_projection, batch.labels, TO_THE_TEACHER,
                                 teacher.probabilities(*span), BackwardOptions(add=True, scale=1 / scored))
            return {"kd": sums.kd}

        done = update(micro_batches(first, last, settings.micro_batch), backward)
        losses.append(done.figures["kd"] / scored if done.finite else math.nan)
    return model, losses


def error(model: Bert, lines: Lines, teacher: TeacherOutputs, settings: SearchSettings) -> Dict[str, float]:
    """e of a trained candidate: mean cross-entropy to T on the held-out lines ("ce"), and less T's entropy
    ("kl")."""
    first, last = settings.steps * settings.batch_size, settings.lines
    total, rows = 0.0, max(1, MAX_CHUNK_ELEMENTS // lines.vocab_size)
    for start, stop in micro_batches(first, last, settings.micro_batch):
        states = masked_states(model, *on_device(lines.batch(start, stop)))
        probabilities = teacher.probabilities(start, stop)
        for begin in range(0, len(states), rows):
            logits = model.vocabulary_projection(states[begin:begin + rows])
            logits = nd.log_softmax(logits, axis=-1, out=logits)
            total += cross_entropy(logits, probabilities(begin, begin + rows)).sum()
    scored = max(1, teacher.positions(first, last))
    return {"ce": total / scored, "kl": (total - teacher.entropy(first, last)) / scored}


def training_work(xi: Architecture, settings: SearchSettings, vocab_size: int) -> float:
    """About how many floating-point operations a candidate takes, drawing and updating its parameters
    included.

    For the order of the work and the time left, which it need not know better than by a factor of two.
    """
    scored = int(settings.max_length * settings.mask_ratio)
    line = xi.flops(settings.max_length, vocab_size, 2 * scored)  # T's decoder runs too
    return ((3 * settings.steps * settings.batch_size + settings.speed_lines) * float(line)
            + xi.parameters(vocab_size)["total"] * (2000.0 + 1000.0 * settings.steps))
