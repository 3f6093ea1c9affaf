"""Ranks. The only module that knows Horovod; one process alone is the ordinary case and needs none of it.

Horovod is imported only in a process that ``horovodrun`` (or ``mpirun``) started. Everything else asks this
module for its rank, and the functions below do the obvious thing when there is one rank.
"""
from __future__ import annotations

import json
import os
from typing import Any, Iterable, List, Mapping, Optional

import numpy as np

from bort.backend.mxnet import gluon, mx, nd
from bort.errors import BortError

_LAUNCHED = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_horovod: Optional[Any] = None
_cycle_milliseconds: Optional[str] = None
CYCLE_MILLISECONDS, LONG_STEP_CYCLE_MILLISECONDS = "25", "100"
"""How often Horovod's own thread asks the other ranks whether there is anything to exchange, unless
HOROVOD_CYCLE_TIME says otherwise. Its default of 1 ms is for GPUs: where ranks compute on the same cores,
every question interrupts them, and at 5 ms that took a tenth of a training step. An exchange waits for up to
this time, so steps of seconds want it longer."""


def expect_long_steps() -> None:
    """Say, before anything asks for a rank, that this process will exchange
    something every few seconds only."""
    global _cycle_milliseconds
    _cycle_milliseconds = LONG_STEP_CYCLE_MILLISECONDS


def _ranks() -> Optional[Any]:
    """Horovod, initialized, when this process is one of several; else None."""
    global _horovod
    if _horovod is None and any(variable in os.environ for variable in _LAUNCHED):
        try:
            import horovod.mxnet as horovod
        except ImportError as error:
            raise BortError("this process was started as one of several ranks, but Horovod with MXNet is not "
                            "installed: pip install 'bort[distributed]' as the README says") from error
        if not mx.context.num_gpus():
            os.environ.setdefault("HOROVOD_CYCLE_TIME", _cycle_milliseconds or CYCLE_MILLISECONDS)
        horovod.init()
        _horovod = horovod
    return _horovod if _horovod is not None and _horovod.size() > 1 else None


def rank() -> int:
    """This process's number, from 0."""
    ranks = _ranks()
    return ranks.rank() if ranks else 0


def size() -> int:
    """How many processes take part."""
    ranks = _ranks()
    return ranks.size() if ranks else 1


def local_rank() -> int:
    """This process's number on its machine, from 0."""
    ranks = _ranks()
    return ranks.local_rank() if ranks else 0


def is_root() -> bool:
    """Whether this process writes the files and prints."""
    return rank() == 0


def context() -> Any:
    """The device this rank computes on: its own GPU where MXNet sees any, else the CPU."""
    gpus = mx.context.num_gpus()
    return mx.gpu(local_rank() % gpus) if gpus else mx.cpu()


def allreduce_step(gradients: Iterable[Any], values: np.ndarray) -> np.ndarray:
    """Sum what one step of training has to exchange over the ranks; both parts are under way before
    either is awaited.

    Args:
        gradients: NDArrays, the same on every rank, summed in place. Losses are already divided by the size
            of the global batch.
        values: a float32 array of figures to report.

    Returns:
        The sum of ``values`` (for one rank: the array itself).
    """
    ranks = _ranks()
    if not ranks:
        return values
    total = nd.array(values, dtype="float32")
    ranks.grouped_allreduce_(list(gradients), average=False, name="gradients")
    ranks.allreduce_(total, average=False, name="figures")
    return total.asnumpy()


def allreduce_sum(values: np.ndarray) -> np.ndarray:
    """Element-wise sum of an array over the ranks, float32 (exact for one rank: the array itself)."""
    ranks = _ranks()
    if not ranks:
        return values
    return ranks.allreduce(nd.array(values, dtype="float32"), average=False, name="sum").asnumpy()


def broadcast_parameters(parameters: Mapping[str, gluon.Parameter]) -> None:
    """Give every rank the root's values; all are under way before the first is awaited."""
    ranks = _ranks()
    if not ranks:
        return
    arrays = {name: parameter.data().copy() for name, parameter in sorted(parameters.items())}
    for name, array in arrays.items():
        ranks.broadcast_(array, root_rank=0, name=f"parameter/{name}")
    for name, array in arrays.items():
        parameters[name].set_data(array)


def broadcast(values: np.ndarray, name: str) -> np.ndarray:
    """The root's array on every rank; shapes and dtypes must agree."""
    ranks = _ranks()
    if not ranks:
        return values
    return ranks.broadcast(nd.array(values, dtype=values.dtype), root_rank=0, name=name).asnumpy()


def gather(value: Any) -> List[Any]:
    """Every rank's JSON-able value, in the order of the ranks, on every rank."""
    ranks = _ranks()
    if not ranks:
        return [value]
    encoded = np.frombuffer(json.dumps(value).encode("utf-8"), dtype=np.uint8)
    lengths = ranks.allgather(nd.array([len(encoded)], dtype="int32"), name="gather/lengths").asnumpy()
    joined = ranks.allgather(nd.array(encoded, dtype="uint8"), name="gather/values").asnumpy().tobytes()
    ends = np.cumsum(lengths)
    return [json.loads(joined[end - length:end].decode("utf-8")) for length, end in zip(lengths, ends)]


def from_root(value: Any) -> Any:
    """The root's JSON-able value on every rank."""
    return gather(value if is_root() else None)[0]


def barrier() -> None:
    """Wait for every rank."""
    gather(None)
