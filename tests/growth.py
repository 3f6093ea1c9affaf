"""Whether time grows in proportion to the input."""

from __future__ import annotations

import time
from typing import Any, Callable

ENOUGH_SECONDS = 0.004
MOST = 24


def assert_linear(function: Callable[[Any], Any], make: Callable[[int], Any], largest: int = 16_000) -> None:
    """Call ``function(make(size))`` at a size that takes measurable time, and at eight times that size.

    Linear work takes 8 times as long, quadratic work 64 times; :data:`MOST` is between. Work on ``largest``
    (characters, rows, files) that is too short to be measured passes: quadratic work would be long. Processor
    time is measured, so that other processes disturb little.
    """
    size = 1000
    while size < largest and _seconds(function, make(size)) < ENOUGH_SECONDS:
        size *= 2
    small, large = make(size), make(8 * size)
    for _ in range(3):  # again where a garbage collection or another process disturbed
        once, eight = max(_seconds(function, small) for _ in range(3)), _seconds(function, large)
        if once < ENOUGH_SECONDS / 2 or eight <= MOST * once:
            return
    raise AssertionError(f"{size} took {once:.3f} s, {8 * size} took {eight:.3f} s")


def _seconds(function: Callable[[Any], Any], value: Any) -> float:
    begun = time.process_time()
    function(value)
    return time.process_time() - begun
