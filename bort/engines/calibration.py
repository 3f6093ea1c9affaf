"""Sample batches from which int8 inference learns the ranges of activations. Nothing here imports MXNet."""
from __future__ import annotations

from pathlib import Path
from typing import List, Optional, Sequence

import numpy as np

from bort.batching import pad_batch
from bort.engines.base import Batch
from bort.errors import BortError
from bort.files import PathLike
from bort.tasks.base import Task
from bort.tasks.encoding import encode, encode_pair
from bort.text.compressed import file_lines
from bort.text.tokenizers.loading import Tokenizer

EXAMPLES = 256
BATCH_SIZE = 8


def batches_of(sequences: Sequence[np.ndarray], pad_id: int, max_length: int,
               batch_size: int = BATCH_SIZE) -> List[Batch]:
    """Batches ``token_ids`` (B, T) int32 and ``valid_length`` (B,) float32 of similar lengths, shortest
    first."""
    ordered = sorted(sequences, key=len)
    return [pad_batch(ordered[start:start + batch_size], pad_id, max_length)
            for start in range(0, len(ordered), batch_size)]


def calibration_batches(source: PathLike, tokenizer: Tokenizer, max_length: int, task: Optional[Task] = None,
                        count: int = EXAMPLES, seed: int = 0) -> List[Batch]:
    """``count`` inputs drawn from ``source``, encoded and batched.

    Args:
        source: a text file with one input per line, two texts separated by a tab for pairs; or a data folder,
            of which the training split of ``task`` is read.
        task: needed for a folder; for a file it only says how long pairs are cut.
        seed: of the draw, without replacement.

    Raises:
        BortError: there is nothing to read, or a folder is given without a task.
    """
    source = Path(source)
    rng = np.random.default_rng(seed)
    if count < 1:
        raise BortError(f"calibration needs at least one example, not {count}")
    if source.is_dir():
        if task is None:
            raise BortError(f"{source}: a folder of task data needs --task NAME; otherwise give a text file")
        split = task.read(source, "train")
        chosen = rng.permutation(len(split))[:count]
        encoded = encode(task, split.subset(chosen), tokenizer, max_length)
        return batches_of(encoded.token_ids, tokenizer.pad_id, max_length)
    found = list(file_lines(source))
    wrong = next((line for line in found if line.problem), None)
    if wrong is not None:
        raise BortError(f"{source}, line {wrong.number}: {wrong.problem}")
    lines = [line.text for line in found if line.text.strip()]
    if not lines:
        raise BortError(f"{source}: no text in it")
    sequences = []
    for index in rng.permutation(len(lines))[:count]:
        ids = tokenizer.encode_batch(lines[index].split("\t")[:2])
        sequences.append(encode_pair(tokenizer, ids[0], ids[1] if len(ids) > 1 else None, max_length,
                                     task.truncation if task is not None else "even"))
    return batches_of(sequences, tokenizer.pad_id, max_length)
