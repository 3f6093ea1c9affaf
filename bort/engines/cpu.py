"""What this machine's processor can compute in fewer bits. Nothing here imports MXNet."""
from __future__ import annotations

import functools
import os

BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
INT8_FLAGS = ("avx512f", "avx2")
EXACT_INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Instructions that add 8-bit products in 32 bits. Without them pairs are added in 16, where large ones are
cut off."""


@functools.lru_cache(maxsize=None)
def cpu_flags() -> frozenset:
    """Instruction sets of this processor as Linux names them; empty where that cannot be read."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if line.startswith(("flags", "Features")):  # x86, ARM
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def openmp_threads() -> int:
    """The first number of ``OMP_NUM_THREADS`` ("2,1" is one for each level of nesting); 0 where it sets
    none."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0
