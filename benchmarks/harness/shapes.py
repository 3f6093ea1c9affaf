"""What the benchmarks of forward passes feed to every engine, and what they call an engine."""

from __future__ import annotations

import os
from typing import Callable, Tuple

import numpy as np

from benchmarks.harness import common
from bort.errors import BortError

BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
"""As in ``bort.engines.mxnet_compiled``, which a process with PyTorch must not import: MXNet would come with
it."""

Shape = Tuple[int, int, bool]
"""Batch, length, and whether the batch is padded."""
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""``run(token_ids (B, T) int64, valid_length (B,) float32)`` -> hidden states (B, T, H) float32."""


class Unavailable(BortError):
    """This machine cannot run the engine: it is left out with the reason. Everything else that fails is an
    error."""


def make_batch(shape: Shape, vocab_size: int, seed: int = 0) -> Tuple[np.ndarray, np.ndarray]:
    """The same ``token_ids`` (B, T) int64 and ``valid_length`` (B,) float32 for every engine.

    Padded batches have lengths from half of T to T; the first sequence is whole.
    """
    batch, length, padded = shape
    rng = np.random.default_rng([seed, batch, length])
    ids = rng.integers(0, vocab_size, (batch, length))
    valid = rng.integers(max(1, length // 2), length + 1, batch) if padded else np.full(batch, length)
    valid[0] = length
    ids[np.arange(length) >= valid[:, None]] = 1
    return ids, valid.astype("float32")


def threads() -> int:
    """What the worker was started with."""
    return int(os.environ["BORT_BENCHMARK_THREADS"])


def attention_mask(ids: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(B, T) int64, as the peers want it."""
    return (np.arange(ids.shape[1]) < valid[:, None]).astype("int64")


def check_bfloat16() -> None:
    """Refuse bfloat16 where it is emulated: a hundred times slower, it would leave no time for the others.

    Raises:
        Unavailable: the processor has no instructions for it.
    """
    if not set(BFLOAT16_FLAGS).intersection(common.cpu_info()["flags"]):
        raise Unavailable(
            f"bfloat16 needs a CPU with {' or '.join(BFLOAT16_FLAGS)}; without them it is emulated"
        )


def number_format(engine: str) -> str:
    """float32, int8 or bfloat16: of the linear layers."""
    return "int8" if engine.endswith("int8") else "bfloat16" if engine.endswith("bf16") else "float32"
