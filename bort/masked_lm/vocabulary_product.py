"""The product of hidden states with the vocabulary matrix and its gradients, without an array that could be
spared: matrix and logits are the largest arrays of a training.

Shapes: n positions, H hidden, V vocabulary.
"""
from __future__ import annotations

from typing import Any, Callable, Optional

import numpy as np

from bort.backend.mxnet import autograd, nd

BLOCK = 4096
"""Rows of the vocabulary matrix whose gradient is computed at a time in bfloat16: few enough for the
processor's cache to hold it until it is float32."""


class VocabularyProduct:
    """Logits of some positions after others, and gradients, in the parameters' own dtype.

    Args:
        projection: holds the parameters ``weight`` (V, H), which may be frozen (``grad_req="null"``), and
            ``bias`` (V,): a model's ``vocabulary_projection``.
    """

    def __init__(self, projection: Any) -> None:
        self.weight, self.bias = projection.weight, projection.bias

    @property
    def frozen(self) -> bool:
        """Whether only the bias is trained."""
        return self.weight.grad_req == "null"

    def start(self) -> None:
        """Take the parameters as they are now, for the passes to come."""
        self._matrix, self._offset = self.weight.data().detach(), self.bias.data().detach()

    def forward(self, states: Any, gradient: Any, add: bool) -> Any:
        """Logits (n, V), float32, to be overwritten.

        Args:
            states: (n, H).
            gradient: (n, H), where :meth:`backward` leaves that of ``states``.
            add: whether it adds to the gradients of the parameters instead of replacing them.
        """
        self._add = add
        kind = "add" if add else "write"
        if self.frozen:
            autograd.mark_variables([states], [gradient], ["write"])
        else:
            variables = [states, self._matrix, self._offset]
            gradients = [gradient, self.weight.grad(), self.bias.grad()]
            autograd.mark_variables(variables, gradients, ["write", kind, kind])
        with autograd.record():
            self._recorded = nd.FullyConnected(
                states, self._matrix, self._offset, num_hidden=self._matrix.shape[0]
            )
        # Its memory serves twice: a linear layer's backward pass does not look at its output.
        scores = self._recorded.detach()
        return scores if scores.dtype == np.float32 else scores.astype("float32")

    def backward(self, scores: Any) -> None:
        """Leave the gradients of the last forward pass where they belong.

        Args:
            scores: (n, V), the gradient with respect to the logits.
        """
        self._recorded.backward(scores.astype(self._recorded.dtype, copy=False))
        if self.frozen:  # oneDNN's layer has no gradient of the bias without one of the matrix
            self._set_bias(scores)

    def _set_bias(self, scores: Any) -> None:
        ones = nd.ones((1, len(scores)), ctx=scores.context)
        gradient = nd.dot(ones, scores).reshape((-1,)).astype(self.bias.dtype, copy=False)
        target = self.bias.grad()
        target[:] = target + gradient if self._add else gradient


class RoundedProduct(VocabularyProduct):
    """The same in bfloat16; parameters and gradients are float32.

    It keeps an array of V x H bfloat16. oneDNN's own gradient of so large a matrix is no faster than
    float32's, so it is computed as a forward pass with transposed operands.
    """

    _low: Optional[Any] = None

    def start(self) -> None:
        """Round the parameters as they are now."""
        self._low = nd.amp_cast(
            self.weight.data().detach(), dtype="bfloat16", **({} if self._low is None else {"out": self._low})
        )
        self._offset = _low(self.bias.data().detach())

    def forward(self, states: Any, gradient: Any, add: bool) -> Any:
        self._add, self._states, self._gradient = add, states, gradient
        rounded = _low(states)
        self._low_gradient = _low(gradient)
        autograd.mark_variables([rounded], [self._low_gradient], ["write"])
        with autograd.record():
            self._recorded = nd.FullyConnected(
                rounded, self._low, self._offset, num_hidden=self.weight.shape[0]
            )
        return nd.amp_cast(self._recorded.detach(), dtype="float32")

    def backward(self, scores: Any) -> None:
        self._recorded.backward(_low(scores))
        self._recorded = None
        self._gradient[:] = nd.amp_cast(self._low_gradient, dtype="float32")
        self._set_bias(scores)
        if self.frozen:
            return
        columns, states = scores.T, _low(self._states.T)  # (V, n), (H, n)
        target, hidden = self.weight.grad(), states.shape[0]
        for start in range(0, len(columns), BLOCK):
            part = nd.FullyConnected(
                _low(columns[start : start + BLOCK]), states, no_bias=True, num_hidden=hidden
            )
            place = target[start : start + BLOCK]
            if self._add:
                place += nd.amp_cast(part, dtype="float32")
            else:
                nd.amp_cast(part, dtype="float32", out=place)


def product_of(projection: Any, dtype: str) -> VocabularyProduct:
    """The product with ``projection`` in ``dtype``, one of ``bort.models.precision.PRODUCT_DTYPES``."""
    return (RoundedProduct if dtype == "bfloat16" else VocabularyProduct)(projection)


def vocabulary_logits(weight: Any, bias: Any, dtype: str) -> Callable[[Any], Any]:
    """A function from states (n, H) to float32 logits (n, V) with parameters (V, H) and (V,) that stay."""
    low = dtype == "bfloat16"
    if low:
        weight, bias = _low(weight), _low(bias)

    def logits(states: Any) -> Any:
        found = nd.FullyConnected(_low(states) if low else states, weight, bias, num_hidden=weight.shape[0])
        return nd.amp_cast(found, dtype="float32") if low else found.astype("float32", copy=False)

    return logits


def _low(array: Any) -> Any:
    return nd.amp_cast(array, dtype="bfloat16")
