"""What this machine's processor can compute in fewer bits. Nothing here imports MXNet."""
from __future__ import annotations

import os

from bort.backend.cpu import cpu_flags

__all__ = ["BFLOAT16_FLAGS", "EXACT_INT8_FLAGS", "INT8_FLAGS", "cpu_flags", "openmp_threads"]

BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
INT8_FLAGS = ("avx512f", "avx2")
EXACT_INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Instructions that add 8-bit products in 32 bits. Without them pairs are added in 16, where large ones are
cut off."""


def openmp_threads() -> int:
    """The first number of ``OMP_NUM_THREADS`` ("2,1" is one for each level of nesting); 0 where it sets
    none."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0
