"""Classification and regression heads around a :class:`~bort.models.bert.Bert`."""
from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from bort.architecture import Architecture
from bort.backend.mxnet import gluon, mx
from bort.errors import BortError
from bort.models.bert import Bert
from bort.models.initial_values import initial_deviation

HEADS: Dict[str, str] = {"linear": "one linear layer, drawn from U(-1/2, 1/2) (section 5.1)",
                         "linear_extra": "the same with one more linear layer before it, which the paper "
                         "uses for CoLA (section 5.1)",
                         "pooled": "Dense(H, tanh), then a linear layer: the classifier of the original "
                         "release",}
CLASSIFIER_RANGE = 0.5


class Classifier(gluon.HybridBlock):
    """A ``Bert`` and a head over the hidden state of position 0 (``<s>``).

    Args:
        bert: the body; its parameters are saved under ``bort.``.
        num_outputs: classes C, or 1 for regression.
        head: a key of :data:`HEADS`.
        dropout: probability before every linear layer of the head. Layers keep their names with dropout 0, as
            the numbering of ``classifier.1`` and ``classifier.3`` counts the dropout layers.

    Attributes:
        task_name, encoding: what it was fine-tuned for (see ``bort.tasks``), or None.
        labels: the class of each output, or None (regression, or unknown).
    """

    def __init__(self, bert: Bert, num_outputs: int, head: str = "linear", dropout: float = 0.1,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if head not in HEADS:
            raise BortError(f"head {head!r} is unknown; choose one of {', '.join(HEADS)}")
        if isinstance(num_outputs, bool) or not isinstance(num_outputs, int) or num_outputs < 1:
            raise BortError(f"a head needs at least one output, not {num_outputs!r}")
        hidden = bert.architecture.hidden
        self.head, self.num_outputs, self.head_dropout = head, num_outputs, dropout
        self.task_name: Optional[str] = None
        self.encoding: Optional[str] = None
        self.labels: Optional[List[str]] = None
        with self.name_scope():
            self.bort = bert
            self.classifier = gluon.nn.HybridSequential(prefix="classifier_")
            with self.classifier.name_scope():
                self.classifier.add(gluon.nn.Dropout(dropout))
                if head != "linear":
                    activation = "tanh" if head == "pooled" else None
                    self.classifier.add(gluon.nn.Dense(hidden, in_units=hidden, activation=activation),
                                        gluon.nn.Dropout(dropout))
                self.classifier.add(gluon.nn.Dense(num_outputs, in_units=hidden))

    @property
    def body(self) -> Bert:
        """The network under the head."""
        return self.bort

    @property
    def architecture(self) -> Architecture:
        """The body's 4-tuple."""
        return self.bort.architecture

    @property
    def vocab_size(self) -> int:
        """The body's vocabulary size V."""
        return self.bort.vocab_size

    @property
    def max_length(self) -> int:
        """The longest sequence the body takes."""
        return self.bort.max_length

    def forward(self, token_ids: Any, valid_length: Any) -> Any:
        """``token_ids`` (B, T) integers, ``valid_length`` (B,) float32; returns logits or values (B, C)."""
        batch, length = token_ids.shape
        first = mx.nd.arange(0, batch * length, length, dtype="int32", ctx=token_ids.context)
        return self.classifier(self.bort.states_at(token_ids, valid_length, first))

    def reorder_outputs(self, order: Sequence[int]) -> None:
        """Put the output that was ``order[i]`` in place ``i``, by moving the rows of the last layer."""
        last = self.classifier[-1]
        for parameter in (last.weight, last.bias):
            parameter.set_data(mx.nd.array(parameter.data().asnumpy()[list(order)], dtype=parameter.dtype))

    def initialize_head(self, seed: int) -> None:
        """Draw the classifier uniformly from (-1/2, 1/2), as section 5.1 does for every task; biases are 0.

        A layer between the body and the classifier (CoLA's, or the pooled head's) is drawn like the body's.
        """
        rng = np.random.default_rng([seed, 0x48454144])
        layers = [layer for layer in self.classifier if isinstance(layer, gluon.nn.Dense)]
        for layer in layers:
            if layer is layers[-1]:
                weight = rng.uniform(-CLASSIFIER_RANGE, CLASSIFIER_RANGE, layer.weight.shape)
            else:
                weight = np.clip(rng.standard_normal(layer.weight.shape), -2, 2) * initial_deviation(
                    layer.weight.shape[1])
            for parameter, value in ((layer.weight, weight), (layer.bias, np.zeros(layer.bias.shape))):
                if parameter._data is None:
                    parameter.initialize(init="zeros")
                parameter.set_data(mx.nd.array(value, dtype=parameter.dtype))
