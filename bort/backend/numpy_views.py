"""NDArrays seen by NumPy where they lie, for the few things that NumPy does many times faster on a CPU."""
from __future__ import annotations

import ctypes
import os
from typing import Any, Dict, NamedTuple, Optional, Tuple

import numpy as np

from bort.backend.mxnet import mx

ADAM_BLOCK = 1 << 17
"""Elements worked on at a time: few enough calls of NumPy, whose threads wait for each other at every one,
and five arrays that the processor's last cache still holds."""
VANISHED = np.float32(1e-20)
"""Added and subtracted, it rounds to multiples of 6e-28, and leaves what is above 1e-12 as it was."""


def threads() -> int:
    """Threads that OpenMP gives this process: the first number of ``OMP_NUM_THREADS`` ("2,1" nests), 1
    without one."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return max(1, int(first)) if first.isdigit() else 1


def host_view(array: Any) -> Optional[np.ndarray]:
    """A float32 NDArray's own memory as a NumPy array; None where there is none to share (a GPU, another
    dtype).

    Waits for pending writes. Valid as long as ``array`` lives and MXNet is not asked to write to it meanwhile
    (or to read it, while NumPy writes, for which pending reads must be over too).
    """
    if not _on_host(array):
        return None
    array.wait_to_read()
    return _view(array)


def _view(array: Any) -> Optional[np.ndarray]:
    address, size = _address(array), array.size
    if not address or not size:
        return None
    buffer = (ctypes.c_float * size).from_address(address)
    return np.frombuffer(buffer, dtype=np.float32).reshape(array.shape)


def _on_host(array: Any) -> bool:
    return array.context.device_type in ("cpu", "cpu_pinned", "cpu_shared") and array.dtype == np.float32


def _address(array: Any) -> Optional[int]:
    """Where an array on a CPU lies."""
    pointer = ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(pointer)))
    return pointer.value


class HostViews:
    """:func:`host_view` of flattened arrays that are asked for at every step.

    Making a view costs some 50 microseconds, of which asking MXNet for shape, dtype and device is most, and
    waiting for an array that will be written as much again. A view that was made before is given again while
    the array stands at the same address, and the caller waits: for everything at once, by
    ``mx.nd.waitall()``.
    """

    def __init__(self) -> None:
        self._known: Dict[int, Tuple[Any, int, np.ndarray]] = {}

    def flat(self, array: Any) -> Optional[np.ndarray]:
        """The array's elements as one row, as :func:`host_view` gives them but
        without waiting for anything."""
        # which no other array can have while the entry keeps this one alive
        known = self._known.get(id(array))
        if known is not None and _address(array) == known[1]:
            return known[2]
        view = _view(array) if _on_host(array) else None
        if view is None:
            return None
        view = view.reshape(-1)
        self._known[id(array)] = (array, view.ctypes.data, view)
        return view


def square_sum(row: np.ndarray) -> float:
    """Sum of squares of a flat float32 array, exact to about 1e-6,
    the same whatever the number of threads."""
    return float(sum(np.einsum("i,i->", part, part) for part in (
        row[start:start + ADAM_BLOCK] for start in range(0, len(row), ADAM_BLOCK))))


def row_argmax(array: Any) -> np.ndarray:
    """Index of the largest element of each row of (n, V), int64;
    MXNet's own takes forty times as long on a CPU."""
    view = host_view(array)
    return np.argmax(view, axis=1) if view is not None else array.argmax(axis=1).asnumpy().astype(np.int64)


class AdamFactors(NamedTuple):
    """Of one BERTAdam update: learning rate, factor on the gradient, weight decay, and Adam's constants."""

    rate: float
    scale: float
    decay: float
    beta1: float
    beta2: float
    epsilon: float


def adam_update(weight: np.ndarray, gradient: np.ndarray, mean: np.ndarray, variance: np.ndarray,
                factors: AdamFactors) -> None:
    """One BERTAdam update (see :class:`bort.training.optimizer.BertAdam`) of flat float32 arrays, in place.

    Exactly the same whatever the number of threads it is dealt out to. Less processor time than MXNet's
    operator, and much less once words that no longer occur would have means below 1e-38, which processors are
    slow at: these stay zero or above 1e-28 here.
    """
    rate, scale, decay, beta1, beta2, epsilon = factors
    first = np.float32(scale * (1 - beta1))
    second = np.float32((1 - beta2) / (1 - beta1) ** 2)
    decay1, decay2, least = np.float32(beta1), np.float32(beta2), np.float32(epsilon)
    keep = np.float32(1 - rate * decay)
    scratch = np.empty(min(ADAM_BLOCK, len(weight)), dtype=np.float32)
    for start in range(0, len(weight), ADAM_BLOCK):
        part = slice(start, start + ADAM_BLOCK)
        w, m, v = weight[part], mean[part], variance[part]
        x = scratch[:len(w)]
        np.multiply(gradient[part], first, out=x)      # (1 - b1) g
        m *= decay1
        m += x
        m += VANISHED
        m -= VANISHED
        np.multiply(x, x, out=x)
        x *= second                                    # (1 - b2) g^2
        v *= decay2
        v += x
        np.sqrt(v, out=x)
        x += least
        np.divide(m, x, out=x)
        x *= np.float32(rate)
        if decay:
            w *= keep
        w -= x
