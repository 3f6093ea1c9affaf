"""Tiny things made in code for the tests: architectures, models, batches."""
from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
import pytest

from bort.architecture import Architecture
from bort.engines.cpu import BFLOAT16_FLAGS, cpu_flags

TINY = Architecture(2, 2, 8, 12)
TINY_TEACHER = Architecture(3, 4, 16, 20)
NARROW = Architecture(2, 3, 16, 10, head_size=4)
"""Cut out of a wider network: 12 units of attention over hidden states of 16."""
ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
needs_horovod = pytest.mark.skipif(shutil.which("horovodrun", path=str(BIN)) is None,
                                   reason="Horovod is not installed")
needs_bfloat16 = pytest.mark.skipif(not cpu_flags().intersection(BFLOAT16_FLAGS),
                                    reason="the processor has no instructions for bfloat16")
VOCAB = 40
MAX_LENGTH = 24


def tiny_bert(seed: int = 0, architecture: Architecture = TINY, vocab_size: int = VOCAB, dropout: float = 0.0,
              scale: float = 1.0, max_length: int = MAX_LENGTH, **settings: Any) -> Any:
    """A ``Bert`` no parameter of which is as it was initialized; weights are ``scale`` times larger."""
    from bort.models import Bert, initialize

    model = Bert(architecture, vocab_size, max_length=max_length, dropout=dropout, **settings)
    initialize(model, seed)
    rng = np.random.default_rng(seed + 1)
    for name, parameter in sorted(model._collect_params_with_prefix().items()):
        if name != "decoder.3.weight":
            noise = rng.normal(0, 0.1, parameter.shape)
            parameter.set_data(parameter.data() * (scale if name.endswith("weight") else 1.0) + _array(noise))
    return model


def _array(values: np.ndarray) -> Any:
    from bort.backend.mxnet import mx

    return mx.nd.array(values, dtype="float32")


def tiny_batch(seed: int = 0, batch: int = 3, length: int = 7, vocab_size: int = VOCAB, padded: bool = True,
               masked: int = 2) -> Tuple[Any, Any, Any]:
    """``token_ids`` (B, T) int32, ``valid_length`` (B,) float32, ``masked_positions`` (B, M) int32 as
    NDArrays."""
    from bort.backend.mxnet import mx

    rng = np.random.default_rng(seed)
    valid = rng.integers(max(1, length // 2), length + 1, batch) if padded else np.full(batch, length)
    ids = rng.integers(0, vocab_size, (batch, length))
    positions = np.stack([rng.choice(int(count), masked, replace=int(count) < masked) for count in valid])
    return (mx.nd.array(ids, dtype="int32"), mx.nd.array(valid, dtype="float32"),
            mx.nd.array(positions, dtype="int32"))


SEPARATOR = 3
TYPED = {"token_types": 2, "separator_id": SEPARATOR}
"""Options of a tiny BERT that tells the texts of a pair apart."""


def pair_batch(seed: int = 0, batch: int = 4, length: int = 9, masked: int = 2) -> Tuple[Any, Any, Any]:
    """:func:`tiny_batch` of pairs ``[CLS] A [SEP] B [SEP]`` with texts of random lengths, padded with 0; the
    last row is a single text."""
    from bort.backend.mxnet import mx

    rng = np.random.default_rng(seed)
    ids, valid = np.zeros((batch, length), "int32"), np.full(batch, length, "float32")
    for row in range(batch):
        ids[row] = rng.integers(SEPARATOR + 1, VOCAB, length)
        valid[row] = length if row == 0 else rng.integers(6, length + 1)
        last = int(valid[row]) - 1
        ids[row, [0, last]] = 2, SEPARATOR
        if row < batch - 1:
            ids[row, rng.integers(2, last - 1)] = SEPARATOR
        ids[row, last + 1:] = 0
    positions = np.stack([rng.choice(int(count) - 1, masked, replace=False) for count in valid])
    return (mx.nd.array(ids, dtype="int32"), mx.nd.array(valid, dtype="float32"),
            mx.nd.array(positions, dtype="int32"))


def two_rank_environment() -> Dict[str, str]:
    """Environment for ``subprocess.run(["horovodrun", "-np", "2", sys.executable, ...], env=...)``.

    Horovod's launcher imports MXNet itself, so NumPy's old aliases are restored for it as the README
    describes.
    """
    aliases = ROOT / ".ci" / "numpy-aliases"
    return dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{aliases}",
                PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}", OMP_WAIT_POLICY="passive",
                HOROVOD_CYCLE_TIME="2")
