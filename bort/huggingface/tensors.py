"""Tensors that are made only when they are asked for, so that a conversion holds one at a time."""
from __future__ import annotations

import collections.abc
from typing import Callable, Dict, Iterator, Mapping, NamedTuple, Tuple

import numpy as np

from bort.errors import BortError

FLOATS = ("F64", "F32", "F16")
MAX_TENSORS = 1 << 14
"""A file that claims to hold more is damaged: a network of 24 layers has 400."""

Makers = Dict[str, Callable[[], np.ndarray]]
"""Arrays by name, not yet made."""


class Tensor(NamedTuple):
    """A tensor of a file that is read when :meth:`array` is called."""

    dtype: str
    shape: Tuple[int, ...]
    where: str
    read: Callable[[], np.ndarray]

    def array(self) -> np.ndarray:
        """The values as float32 (float16 and bfloat16 widen exactly), without a copy when they
        are that already.

        Raises:
            BortError: they are not floating-point numbers, or they are too large for float32.
        """
        if self.dtype == "BF16":
            return (self.read().astype(np.uint32) << 16).view(np.float32)
        if self.dtype not in FLOATS:
            raise BortError(f"{self.where} holds {self.dtype}, not floating-point numbers (a quantized "
                            "model?)")
        values = self.read()
        if self.dtype != "F64":
            return values.astype(np.float32, copy=False)
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        if np.isinf(narrow).sum() != np.isinf(values).sum():
            raise BortError(f"{self.where} has values beyond float32")
        return narrow


class Lazy(collections.abc.Mapping):
    """Arrays by name, each read when it is asked for and not kept."""

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self.makers: Makers = dict(makers)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)
