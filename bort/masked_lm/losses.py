"""Losses over the vocabulary: masked language model and distillation, with a gradient in closed
form, in place.

Shapes: N masked positions, n of them at a time, H hidden, V vocabulary. With logits s of the student and t of
the teacher at one masked position, its token y and the temperature T, the loss of that position is

    mlm_weight * -log softmax(s)_y  +  kd_weight * T^2 CE(softmax(t / T), softmax(s / T))

summed over the vocabulary (section 4.2; T^2 as in Hinton et al., 2015), and its gradient with respect to s

    mlm_weight * (softmax(s) - onehot(y))  +  kd_weight * T (softmax(s / T) - softmax(t / T)).

Automatic differentiation would hold five or more arrays of N x V for this. Here the gradient replaces the
student's logits in their own memory, so that one array of n x V for each model is all there is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Optional

import numpy as np

from bort.backend.mxnet import nd
from bort.backend.numpy_views import row_argmax
from bort.errors import BortError
from bort.masked_lm.vocabulary_product import VocabularyProduct

KD_FORMULAS = ("corrected", "released")
MAX_CHUNK_ELEMENTS = 1 << 25
"""Logits held at a time (128 MiB of float32 for each model); more positions are worked on in turns."""

Teacher = Callable[[int, int], Any]
"""``teacher(start, stop)``: probabilities softmax(t / T) of those positions,
(n, V) float32, to be overwritten."""


@dataclass(frozen=True)
class LossWeights:
    """What is minimized; ``kd_weight`` and what follows only matter where there is a teacher.

    ``kd_formula`` "released" is the term of the original release, kept for comparison: it takes the logarithm
    of the softmax of probabilities and a mean over V, so that next to nothing is distilled.
    """

    mlm_weight: float = 0.5
    kd_weight: float = 0.5
    temperature: float = 2.0
    kd_formula: str = "corrected"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise BortError(f"--temperature must be above 0, not {self.temperature}")
        if not (0 <= self.mlm_weight < math.inf and 0 <= self.kd_weight < math.inf):
            raise BortError(
                f"--mlm-weight and --kd-weight must not be negative, not {self.mlm_weight} and "
                f"{self.kd_weight}"
            )
        if self.mlm_weight == self.kd_weight == 0:
            raise BortError("--mlm-weight and --kd-weight are both 0; nothing would be learned")
        if self.kd_formula not in KD_FORMULAS:
            raise BortError(
                f"--kd-formula {self.kd_formula!r} is unknown; choose one of {', '.join(KD_FORMULAS)}"
            )


class PositionLosses(NamedTuple):
    """Of n positions, each (n,): the two losses before weighting (``kd`` is None without a teacher) as
    NDArrays, and whether the student's most probable token is the right one, as a NumPy array of bool."""

    mlm: Any
    kd: Optional[Any]
    correct: np.ndarray


def gradient_in_place(
    scores: Any, labels: Any, weights: LossWeights, teacher: Optional[Any] = None
) -> PositionLosses:
    """Losses of n positions; their sum's gradient replaces the logits.

    Args:
        scores: (n, V) float32 logits s; afterwards the gradient of the weighted sum of all losses.
        labels: (n,) tokens y.
        weights: see :class:`LossWeights`.
        teacher: (n, V) float32 probabilities softmax(t / T), or None for the masked language
            model alone. Overwritten.
    """
    best = row_argmax(scores)
    if teacher is None:
        mlm = _log_softmax_then_softmax(scores, labels)
        scores *= weights.mlm_weight
        kd = None
    elif weights.kd_formula == "released":
        mlm, kd = _released(scores, labels, weights, teacher)
    else:
        mlm, kd = _distilled(
            scores, labels, weights, teacher, nd.array(best, dtype="int32", ctx=scores.context)
        )
    if weights.mlm_weight:
        rows = nd.arange(len(labels), dtype="int32", ctx=scores.context)
        scores[rows, labels] = nd.pick(scores, labels) - weights.mlm_weight
    return PositionLosses(mlm, kd, best == labels.asnumpy())


def _log_softmax_then_softmax(scores: Any, labels: Any) -> Any:
    """-log softmax(s)_y; ``scores`` become softmax(s).
    Twice oneDNN's softmax is four times as fast as one nd.exp."""
    nd.log_softmax(scores, axis=-1, out=scores)
    mlm = -nd.pick(scores, labels)
    nd.softmax(scores, axis=-1, out=scores)
    return mlm


def _row_dot(left: Any, right: Any) -> Any:
    """Inner products of the rows of two (n, V) arrays, (n,), without a third array."""
    return nd.batch_dot(left.expand_dims(1), right.expand_dims(2)).reshape((-1,))


def _distilled(scores: Any, labels: Any, weights: LossWeights, teacher: Any, best: Any) -> Any:
    temperature, vocabulary = weights.temperature, scores.shape[1]
    if temperature != 1:
        scores *= 1 / temperature
    nd.log_softmax(scores, axis=-1, out=scores)  # log q, q = softmax(s / T)
    kd = _row_dot(teacher, scores) * -(temperature**2)
    label_log = nd.pick(scores, labels)
    nd.softmax(scores, axis=-1, out=scores)  # q
    nd.elemwise_sub(scores, teacher, out=teacher)  # q - softmax(t / T)
    # softmax(s) is q^T over its sum Z. Where q underflows, log q does not,
    # so mlm = log Z - T log q_y stays exact.
    if temperature == 2:
        nd.square(scores, out=scores)
        total = nd.FullyConnected(
            scores, nd.ones((1, vocabulary), ctx=scores.context), no_bias=True, num_hidden=1
        )
        mlm = nd.log(total).reshape((-1,)) - label_log * temperature
        nd.broadcast_mul(scores, weights.mlm_weight / total, out=scores)
    else:
        nd.log(scores, out=scores)
        scores *= temperature
        best_power = nd.pick(scores, best)  # log q^T where it is largest
        mlm = best_power + _log_softmax_then_softmax(scores, best) - label_log * temperature
        scores *= weights.mlm_weight
    teacher *= weights.kd_weight * temperature
    nd.elemwise_add(scores, teacher, out=scores)
    return mlm, kd


def _released(scores: Any, labels: Any, weights: LossWeights, teacher: Any) -> Any:
    """The release's term: T^2 / V * KL between softmax(t / T) and the softmax of the student's
    *probabilities* r.

    Its gradient is T / V * r (g - <g, r>) with g = softmax(r) - softmax(t / T). Holds three more
    arrays than needed.
    """
    temperature, vocabulary = weights.temperature, scores.shape[1]
    student = nd.softmax(scores / temperature, axis=-1)  # r
    logs = nd.log_softmax(student, axis=-1)
    kd = ((teacher * (nd.log(teacher + 1e-12) - logs)).sum(axis=-1)) * (temperature**2 / vocabulary)
    slope = nd.exp(logs) - teacher
    slope = student * nd.broadcast_sub(slope, _row_dot(slope, student).expand_dims(1))
    mlm = _log_softmax_then_softmax(scores, labels)
    scores *= weights.mlm_weight
    scores += slope * (weights.kd_weight * temperature / vocabulary)
    return mlm, kd


class LossSums(NamedTuple):
    """Sums over N positions: the two losses before weighting, right predictions, and N itself."""

    mlm: float
    kd: float
    correct: int
    positions: int


@dataclass(frozen=True)
class BackwardOptions:
    """How :func:`head_backward` leaves its gradients, and how much memory it takes.

    Attributes:
        add: add to the projection's gradients instead of replacing them.
        scale: factor on all gradients (a loss scale).
        max_elements: positions are taken in turns so that logits have at most this many elements.
    """

    add: bool = False
    scale: float = 1.0
    max_elements: int = MAX_CHUNK_ELEMENTS


def head_backward(
    states: Any,
    projection: Any,
    labels: np.ndarray,
    weights: LossWeights,
    teacher: Optional[Teacher] = None,
    options: Optional[BackwardOptions] = None,
) -> LossSums:
    """Forward and backward pass of the vocabulary projection and the losses, for a sum over all N positions.

    The gradients of the projection are left in its parameters' ``grad()``, that of the states goes on through
    whatever was recorded to make them. The tied matrix is by far the largest parameter: its gradient is
    written where it belongs, and the embedding's must be *added* to it (``weight.grad_req = "add"``), which
    spares a second array of V x H, its zeros, and the sum.

    Args:
        states: (N, H), the head's hidden states; recorded, if a gradient is to go on.
        projection: a model's ``vocabulary_projection``, or a :class:`VocabularyProduct` of it, which says
            what is computed in.
        labels: (N,) integers.
        teacher: see :data:`Teacher`.

    Returns:
        Sums over the positions, before weighting.
    """
    options = options or BackwardOptions()
    product = projection if isinstance(projection, VocabularyProduct) else VocabularyProduct(projection)
    product.start()
    count, vocabulary = len(labels), product.weight.shape[0]
    rows = max(1, options.max_elements // vocabulary)
    rows = -(-count // -(-count // rows))  # turns of equal size
    labels_nd = nd.array(labels, dtype="int32", ctx=states.context)
    leaf = states.detach()
    state_gradient = nd.zeros_like(leaf)
    mlm = kd = 0.0
    correct = 0
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        scores = product.forward(leaf[start:stop], state_gradient[start:stop], options.add or start > 0)
        losses = gradient_in_place(
            scores, labels_nd[start:stop], weights, teacher(start, stop) if teacher else None
        )
        if options.scale != 1:
            scores *= options.scale
        product.backward(scores)
        mlm += float(losses.mlm.sum().asscalar())
        kd += float(losses.kd.sum().asscalar()) if losses.kd is not None else 0.0
        correct += int(losses.correct.sum())
    states.backward(state_gradient)
    return LossSums(mlm, kd, correct, count)


def head_losses(
    states: Any, projection: Any, labels: np.ndarray, max_elements: int = MAX_CHUNK_ELEMENTS
) -> LossSums:
    """Masked-language-model loss and accuracy of N positions, for evaluation; arguments as in
    :func:`head_backward`."""
    weight, bias = projection.weight, projection.bias
    count, vocabulary = len(labels), weight.shape[0]
    rows = max(1, max_elements // vocabulary)
    labels_nd = nd.array(labels, dtype="int32", ctx=states.context)
    mlm, correct = 0.0, 0
    for start in range(0, count, rows):
        scores = nd.FullyConnected(
            states[start : start + rows], weight.data(), bias.data(), num_hidden=vocabulary
        )
        scores = scores.astype("float32", copy=False)
        correct += int((row_argmax(scores) == labels[start : start + rows]).sum())
        nd.log_softmax(scores, axis=-1, out=scores)
        mlm -= float(nd.pick(scores, labels_nd[start : start + rows]).sum().asscalar())
    return LossSums(mlm, 0.0, correct, count)
