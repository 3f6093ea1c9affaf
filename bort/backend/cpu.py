"""Instruction sets of this machine's processor. Nothing here imports MXNet."""
from __future__ import annotations

import functools


@functools.lru_cache(maxsize=None)
def cpu_flags() -> frozenset:
    """As Linux names them; empty where that cannot be read."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if line.startswith(("flags", "Features")):  # x86, ARM
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()
