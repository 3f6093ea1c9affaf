"""The teacher of a distillation: forward passes without gradients, at the masked positions of the student's
batches."""
from __future__ import annotations

from typing import Any

import numpy as np

from bort.backend import distributed
from bort.backend.mxnet import nd
from bort.masked_lm.batches import MaskedLMBatch
from bort.masked_lm.losses import Teacher
from bort.models import Bert


def on_device(batch: MaskedLMBatch) -> Any:
    """``token_ids``, ``valid_length`` and ``rows`` of a batch as NDArrays on this rank's device."""
    device = distributed.context()
    return (nd.array(batch.token_ids, dtype="int32", ctx=device), nd.array(batch.valid_length, ctx=device),
            nd.array(batch.rows, dtype="int32", ctx=device))


def masked_states(model: Bert, token_ids: Any, valid_length: Any, rows: Any) -> Any:
    """What ``model``'s vocabulary projection takes at the masked positions, (N, H); recorded if the caller
    records."""
    return model.masked_states(token_ids, valid_length, rows)


class LiveTeacher:
    """A network asked anew for every batch; its parameters are frozen and hold no gradients.

    Args:
        model: the teacher; the vocabulary must be the student's.
        temperature: T.
    """

    def __init__(self, model: Bert, temperature: float) -> None:
        self.model, self.temperature = model, temperature
        for parameter in model._collect_params_with_prefix().values():
            parameter.grad_req = "null"
        model.hybridize(static_alloc=True)

    def targets(self, batch: MaskedLMBatch) -> Teacher:
        """The function that :func:`bort.masked_lm.losses.head_backward` asks for probabilities."""
        states = masked_states(self.model, *on_device(batch))
        projection = self.model.decoder[3]
        scale = 1 / self.temperature

        def probabilities(start: int, stop: int) -> Any:
            logits = nd.FullyConnected(states[start:stop], projection.weight.data(), projection.bias.data(),
                                       num_hidden=self.model.vocab_size).astype("float32", copy=False)
            if scale != 1:
                logits *= scale
            return nd.softmax(logits, axis=-1, out=logits)

        return probabilities

    def close(self) -> None:
        """Nothing to close."""


def expected_positions(batch: MaskedLMBatch) -> np.ndarray:
    """int64 (B,): masked positions of each sequence of a batch."""
    return np.bincount(batch.rows // batch.token_ids.shape[1], minlength=len(batch.token_ids))
