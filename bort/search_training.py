"""A candidate of the search: trained for n steps on the teacher's outputs, then scored on the held-out lines (step 3)."""
from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from bort.architecture import Architecture
from bort.compat import autograd, mx, nd
from bort.finetune import dropout_seed
from bort.models import Bert, initialize
from bort.search_costs import TeacherOutputs, cross_entropy, micro_batches
from bort.search_lines import Lines
from bort.search_settings import SearchSettings
from bort.training.mlm_losses import MAX_CHUNK_ELEMENTS, LossWeights, head_backward
from bort.training.schedules import linear
from bort.training.teacher import masked_states, on_device

TO_THE_TEACHER = LossWeights(mlm_weight=0.0, kd_weight=1.0, temperature=1.0)
"""The cross-entropy between the last layers of T and of a candidate, and nothing else."""


def train(xi: Architecture, lines: Lines, teacher: TeacherOutputs, settings: SearchSettings,
          words: Optional[Dict[int, np.ndarray]] = None) -> Tuple[Bert, List[float]]:
    """A candidate after n steps of SGD on its cross-entropy to T, and the loss before every step.

    Step k takes lines k B to (k + 1) B, B the batch size, in micro-batches whose gradients add up. Everything random
    depends on the seed, the step and the names of the candidate's parameters alone.

    Args:
        words: word embeddings drawn for earlier candidates, by hidden size; drawing them anew is most of the work when
            the vocabulary is large. The values are the same with and without.
    """
    model = Bert(xi, lines.vocab_size, settings.positions, settings.dropout)
    model.collect_params().setattr("grad_req", "add")
    embedding, projection = model.word_embed[0].weight, model.decoder[3]
    known = words is not None and xi.hidden in words
    if known:
        embedding.initialize(init="zeros")
        embedding.set_data(nd.array(words[xi.hidden]))
    initialize(model, settings.seed, only_missing=known)
    if words is not None:
        words.setdefault(xi.hidden, embedding.data().asnumpy())
    parameters = list({id(parameter): parameter for parameter in model.collect_params().values()}.values())
    rate, losses = linear(settings.lr, settings.steps, settings.warmup_ratio), []
    for step in range(settings.steps):
        mx.random.seed(dropout_seed(settings.seed, step, 0))
        for parameter in parameters:
            parameter.zero_grad()
        first, last, total = step * settings.batch_size, (step + 1) * settings.batch_size, 0.0
        scored = max(1, teacher.positions(first, last))
        for start, stop in micro_batches(first, last, settings.micro_batch):
            batch = lines.batch(start, stop)
            with autograd.record():
                states = masked_states(model, *on_device(batch))
            total += head_backward(states, projection.weight, projection.bias, batch.labels, TO_THE_TEACHER,
                                   teacher.probabilities(start, stop), add=True, scale=1 / scored).kd
        losses.append(total / scored)
        sgd_step(parameters, rate(step), settings.clip)
    return model, losses


def sgd_step(parameters: Sequence[Any], rate: float, clip: float) -> None:
    """w <- w - rate g, with the gradients together cut to the norm ``clip`` (0: not cut). Section 3.3."""
    flat = [parameter.grad().reshape(-1) for parameter in parameters]
    norm = math.sqrt(sum(nd.dot(gradient, gradient).asscalar() for gradient in flat))
    scale = clip / norm if clip and norm > clip else 1.0
    for parameter in parameters:
        nd.sgd_update(parameter.data(), parameter.grad(), lr=rate, wd=0, rescale_grad=scale, out=parameter.data())


def error(model: Bert, lines: Lines, teacher: TeacherOutputs, settings: SearchSettings) -> Dict[str, float]:
    """e of a trained candidate: mean cross-entropy to T on the held-out lines ("ce"), and that less T's entropy ("kl")."""
    first, last = settings.steps * settings.batch_size, settings.lines
    total, rows = 0.0, max(1, MAX_CHUNK_ELEMENTS // lines.vocab_size)
    for start, stop in micro_batches(first, last, settings.micro_batch):
        states = masked_states(model, *on_device(lines.batch(start, stop)))
        probabilities = teacher.probabilities(start, stop)
        for begin in range(0, len(states), rows):
            logits = model.decoder[3](states[begin:begin + rows])
            total += cross_entropy(nd.log_softmax(logits, axis=-1, out=logits), probabilities(begin, begin + rows)).sum()
    scored = max(1, teacher.positions(first, last))
    return {"ce": total / scored, "kl": (total - teacher.entropy(first, last)) / scored}


def training_work(xi: Architecture, settings: SearchSettings, vocab_size: int) -> float:
    """About how many floating-point operations a candidate takes, drawing and updating its parameters included.

    For the order of the work and the time left; a parameter costs as much time as the constants say (measured).
    """
    scored = int(settings.max_length * settings.mask_ratio)
    line = xi.flops(settings.max_length, vocab_size, 2 * scored)  # T's decoder runs too
    return ((3 * settings.steps * settings.batch_size + settings.speed_lines) * float(line)
            + xi.parameters(vocab_size)["total"] * (5000.0 + 1000.0 * settings.steps))
