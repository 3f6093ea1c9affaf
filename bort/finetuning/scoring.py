"""A classifier's outputs for many sequences: length-sorted batches of bounded size, dealt out over the
ranks."""
from __future__ import annotations

from typing import Any, List, Optional, Sequence

import numpy as np

from bort.backend import distributed
from bort.backend.mxnet import nd
from bort.batching import LENGTH_MULTIPLE, pad_batch
from bort.engines.mxnet_compiled import compile_for_inference
from bort.models import Classifier
from bort.training import console

MAX_TOKENS = 8192
"""Padded tokens of an evaluation batch: enough to fill the cores, small enough for a few hundred
megabytes."""

SECONDS_PER_FLOP = 1e-11
COMPILING_SECONDS = 0.2
"""What a compiled graph costs for each shape of batch, against which what it saves is weighed. A rough figure
will do."""


def token_batches(lengths: np.ndarray, max_tokens: int, max_batch: int = 256) -> List[np.ndarray]:
    """Indices in batches of similar length, longest first, each of at most ``max_tokens`` padded tokens (or
    one sequence).

    Sizes depend on the padded length alone, so that batches come in few shapes.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches: List[np.ndarray] = []
    start = 0
    while start < len(order):
        longest = -(-max(1, int(lengths[order[start]])) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        count = max(1, min(max_batch, max_tokens // longest))
        batches.append(order[start:start + count])
        start += count
    return batches


def score(model: Any, token_ids: Sequence[np.ndarray], pad_id: int, max_tokens: int = MAX_TOKENS,
          ranks: bool = True, describe: Optional[str] = None) -> np.ndarray:
    """Outputs of a classifier for every sequence, in the order given.

    Args:
        model: a :class:`bort.models.Classifier`, or anything called like it with a ``num_outputs``.
        token_ids: N int arrays.
        pad_id: what to pad batches with.
        ranks: share the work among the Horovod ranks; every rank gets all scores. Off inside work that is
            itself dealt out.
        describe: title of a progress bar; none without.

    Returns:
        (N, C) float32 logits, or values in regression.
    """
    rank, size = (distributed.rank(), distributed.size()) if ranks else (0, 1)
    scores = np.zeros((len(token_ids), model.num_outputs), dtype=np.float32)
    lengths = np.array([len(ids) for ids in token_ids])
    batches = token_batches(lengths, max_tokens)
    # Decided from the whole work, so that all ranks, however many there are, compute by the same graphs.
    if isinstance(model, Classifier) and _compiling_pays(model, lengths, batches):
        model = compile_for_inference(model)
    batches = batches[rank::size]
    pending: Any = None
    for batch in console.progress(batches, desc=describe, unit="batch", leave=False) if describe else batches:
        ids, valid = pad_batch([token_ids[index] for index in batch], pad_id, model.max_length)
        outputs = model(nd.array(ids, dtype="int32", ctx=distributed.context()),
                        nd.array(valid, ctx=distributed.context()))
        if pending is not None:  # MXNet computes this batch while the last one is copied out
            scores[pending[0]] = pending[1].asnumpy()
        pending = (batch, outputs)
    if pending is not None:
        scores[pending[0]] = pending[1].asnumpy()
    return distributed.allreduce_sum(scores) if ranks else scores


def _compiling_pays(model: Classifier, lengths: np.ndarray, batches: List[np.ndarray]) -> bool:
    """Whether the fused graphs save more time than making one for every shape costs. They are for CPUs."""
    if distributed.context().device_type != "cpu":
        return False
    shapes = {(len(batch), -(-int(lengths[batch].max()) // LENGTH_MULTIPLE)) for batch in batches}
    flops = sum(len(batch) * model.architecture.flops(int(lengths[batch].max())) for batch in batches)
    return flops * SECONDS_PER_FLOP > COMPILING_SECONDS * len(shapes)
