"""Learning-rate schedules as plain functions of the step, which counts from 0."""

from __future__ import annotations

from typing import Callable, Dict

from bort.errors import BortError

Schedule = Callable[[int], float]
FLOOR = 1e-7
"""The release never lets the fine-tuning rate fall below this."""


def linear(peak: float, steps: int, warmup_ratio: float) -> Schedule:
    """The release's fine-tuning schedule: linear warmup over int(steps * warmup_ratio) steps,
    then linear decay.

    With W warmup steps of N, step s < W has the rate peak * s / W (the first one is 0), and a later one
    max(1e-7, peak * (1 - (s - W) / (N - W))).
    """
    warmup = int(steps * warmup_ratio)

    def rate(step: int) -> float:
        if step < warmup:
            return peak * step / warmup
        return max(FLOOR, peak * (1 - (step - warmup) / max(1, steps - warmup)))

    return rate


def released_pretraining(peak: float, steps: int, warmup_ratio: float) -> Schedule:
    """The release's pre-training schedule, with steps s counted from 1.

    With W = int(steps * warmup_ratio): peak * s / W up to and including step W, then peak * (1 - s / steps).
    """
    warmup = int(steps * warmup_ratio)

    def rate(step: int) -> float:
        step += 1
        return peak * step / warmup if step <= warmup else peak * max(0.0, 1 - step / steps)

    return rate


def noam(peak: float, steps: int, warmup_ratio: float) -> Schedule:
    """Vaswani et al.'s schedule, scaled so that its maximum, at the end of the warmup, is ``peak`` (section
    4.2).

    Linear up to W = max(1, int(steps * warmup_ratio)), then peak * sqrt(W / step), with steps counted from 1.
    """
    warmup = max(1, int(steps * warmup_ratio))

    def rate(step: int) -> float:
        step += 1
        return peak * min(step / warmup, (warmup / step) ** 0.5)

    return rate


SCHEDULES: Dict[str, Callable[[float, int, float], Schedule]] = {
    "linear": linear,
    "noam": noam,
    "released": released_pretraining,
}


def make_schedule(name: str, peak: float, steps: int, warmup_ratio: float) -> Schedule:
    """A schedule by name; ``peak`` is the largest rate, ``steps`` the length of the training.

    Raises:
        BortError: the name is unknown, or a number is out of range.
    """
    if name not in SCHEDULES:
        raise BortError(f"schedule {name!r} is unknown; choose one of {', '.join(SCHEDULES)}")
    if not peak > 0 or not 0 <= warmup_ratio < 1:
        raise BortError(
            f"a schedule needs a rate above 0 and a warmup ratio in [0, 1), not {peak} and {warmup_ratio}"
        )
    return SCHEDULES[name](peak, steps, warmup_ratio)
