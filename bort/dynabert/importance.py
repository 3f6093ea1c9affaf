"""How much each attention head and each intermediate neuron matters (DynaBERT, section 2.1).

Both come from gradients of the loss alone. The published importance of a head is |dL/dm|, m a factor on its
attention probabilities. A head's context is linear in m and meets the rest of the network only through its
columns of the output projection W_o, so that

    dL/dm_h  =  sum over the head's columns k and all rows j of  W_o[j, k] dL/dW_o[j, k]

exactly, and no mask has to be built into the network.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable

import numpy as np

from bort.architecture import Architecture
from bort.errors import BortError

CELL = "encoder.transformer_cells.{}."
PROJECTIONS = tuple(f"attention_cell.proj_{name}" for name in ("query", "key", "value"))


@dataclass
class Importance:
    """Sums over batches of absolute first-order effects on the loss.

    Attributes:
        heads: (D, A) float64.
        neurons: (D, I) float64.
    """

    heads: np.ndarray
    neurons: np.ndarray

    @classmethod
    def zeros(cls, architecture: Architecture) -> Importance:
        """What is known before the first batch."""
        return cls(np.zeros((architecture.depth, architecture.heads)),
                   np.zeros((architecture.depth, architecture.intermediate)))

    def add(self, architecture: Architecture, weights: Dict[str, np.ndarray],
            gradients: Dict[str, np.ndarray]) -> None:
        """Take in one batch.

        Args:
            weights: parameters of the body by their names in model files (without ``bort.``).
            gradients: the loss's gradients by the same names, of this batch alone.
        """
        for layer in range(architecture.depth):
            product = {name: weights[full].astype(np.float64) * gradients[full] for name, full in (
                (name, CELL.format(layer) + name)
                for name in ("proj.weight", "ffn.ffn_1.weight", "ffn.ffn_1.bias", "ffn.ffn_2.weight"))}
            by_column = product["proj.weight"].sum(axis=0)                                   # (A*d,)
            self.heads[layer] += np.abs(by_column.reshape(architecture.heads, -1).sum(axis=1))
            self.neurons[layer] += np.abs(product["ffn.ffn_1.weight"].sum(axis=1) + product["ffn.ffn_1.bias"])
            self.neurons[layer] += np.abs(product["ffn.ffn_2.weight"].sum(axis=0))

    def check(self) -> None:
        """Refuse what would sort by NaN.

        Raises:
            BortError: a value is not finite, or nothing has any effect.
        """
        if not (np.isfinite(self.heads).all() and np.isfinite(self.neurons).all()):
            raise BortError("importance: gradients of the teacher are not finite; fine-tune it again with a "
                            "smaller --lr")
        if not self.heads.any() or not self.neurons.any():
            raise BortError("importance: no head or no neuron has any effect on the loss; is the teacher "
                            "trained?")


def importance_of(architecture: Architecture, parameters: Dict[str, Any], batches: Iterable[Any],
                  backward: Callable[[Any], None]) -> Importance:
    """Importance over ``batches``, gradients zeroed between them.

    Args:
        parameters: the body's Gluon parameters by their names in model files; their gradients are read.
        backward: leaves the gradient of the loss of one batch (dropout off) in the parameters.

    Raises:
        BortError: there are no batches, or their gradients say nothing (see :meth:`Importance.check`).
    """
    found, count = Importance.zeros(architecture), 0
    wanted = {name: parameter for name, parameter in parameters.items()
              if name.startswith("encoder.transformer_cells.")}
    for batch in batches:
        for parameter in parameters.values():
            if parameter.grad_req != "null":
                parameter.zero_grad()
        backward(batch)
        found.add(architecture, {name: parameter.data().asnumpy() for name, parameter in wanted.items()},
                  {name: parameter.grad().asnumpy() for name, parameter in wanted.items()})
        count += 1
    if not count:
        raise BortError("importance: there is no batch to measure it on")
    found.check()
    return found
