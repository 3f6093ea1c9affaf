"""A classifier's outputs for many sequences: length-sorted batches of bounded size,
dealt out over the ranks."""

from __future__ import annotations

from typing import Any, Callable, Iterable, List, Optional, Sequence

import numpy as np

from bort.backend import distributed
from bort.batching import LENGTH_MULTIPLE, pad_batch, token_groups
from bort.engines.base import Batch, Engine, Work, preferred
from bort.engines.engine import open_engine
from bort.engines.mxnet import MXNetEngine
from bort.models import Classifier
from bort.training import console

MAX_TOKENS = 8192
"""Padded tokens of an evaluation batch: enough to fill the cores,
small enough for a few hundred megabytes."""
MAX_BATCH = 256

CALIBRATION_SEQUENCES = 256
"""Of those to be scored, on which an engine of fewer bits is calibrated or held against float32."""


def score(
    model: Any,
    token_ids: Sequence[np.ndarray],
    pad_id: int,
    max_tokens: int = MAX_TOKENS,
    ranks: bool = True,
    describe: Optional[str] = None,
) -> np.ndarray:
    """Outputs of a classifier for every sequence, in the order given.

    Args:
        model: a :class:`bort.models.Classifier`, whose weights may have changed since the last call; a block
            that is called like one, which is then run as it is; or an engine, open already.
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
    batches = list(token_groups(lengths, np.arange(len(lengths)), max_tokens, most=MAX_BATCH))

    def padded(batch: np.ndarray) -> Batch:
        return pad_batch([token_ids[index] for index in batch], pad_id, model.max_length)

    # Chosen for the whole work, so that all ranks, however many there are, compute alike.
    if isinstance(model, Engine):
        engine = model
    elif isinstance(model, Classifier):
        engine = _open(model, token_ids, batches, padded)
    else:
        engine = MXNetEngine(model, "classifier", device=distributed.context())
    mine = batches[rank::size]
    outputs: Iterable[np.ndarray] = engine.map(map(padded, mine))
    if describe:
        outputs = console.progress(outputs, desc=describe, unit="batch", leave=False, total=len(mine))
    for batch, values in zip(mine, outputs):
        scores[batch] = values
    return distributed.allreduce_sum(scores) if ranks else scores


def _open(
    model: Classifier,
    token_ids: Sequence[np.ndarray],
    batches: Sequence[np.ndarray],
    padded: Callable[[np.ndarray], Batch],
) -> Engine:
    longest = [(len(batch), max(len(token_ids[index]) for index in batch)) for batch in batches]
    shapes = {(count, -(-length // LENGTH_MULTIPLE)) for count, length in longest}
    flops = sum(count * model.architecture.flops(length) for count, length in longest)
    calibration: List[Batch] = []
    if preferred().precision in ("int8", "auto"):
        order = np.concatenate(batches) if batches else np.zeros(0, int)
        some = order[:: max(1, len(order) // CALIBRATION_SEQUENCES)]
        calibration = [padded(some[start : start + 8]) for start in range(0, len(some), 8)]
    return open_engine(model, "classifier", None, calibration, Work(flops, len(shapes)))
