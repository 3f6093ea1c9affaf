"""MXNet as an engine: the network itself, or its graphs compiled for inference."""
from __future__ import annotations

from typing import Any, Iterable, Iterator, Optional, Sequence

import numpy as np

from bort.backend.mxnet import autograd, mx
from bort.engines.base import Batch, Engine, Report, Unavailable
from bort.engines.mxnet_compiled import check_dtype, compile_for_inference
from bort.errors import BortError

KIND = "mxnet"


class MXNetEngine(Engine):
    """A network, called with numpy arrays.

    Args:
        network: a ``Bert`` or ``Classifier``, or what is called like it.
        part: one of ``PARTS``; all but "classifier" are those of the body.
        compiled: what computes it in the network's place
            (:func:`bort.engines.mxnet_compiled.compile_for_inference`); the part "masked_states" has no
            compiled form.
        device: where it computes; by default where its parameters are.
    """

    def __init__(self, network: Any, part: str, compiled: Any = None, device: Any = None) -> None:
        source = network if part == "classifier" else network.body
        self.part, self.max_length = part, source.max_length
        self.num_outputs = network.num_outputs if part == "classifier" else 0
        self.report = Report(KIND, mx.__version__, compiled.dtype if compiled is not None else "float32")
        self._run = source if compiled is None else compiled
        self._device = device or next(iter(source.collect_params().values())).list_ctx()[0]

    def __call__(self, token_ids: np.ndarray, valid_length: np.ndarray,
                 positions: Optional[np.ndarray] = None) -> np.ndarray:
        return self._start((token_ids, valid_length, positions)).asnumpy()

    def map(self, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        """As :meth:`Engine.map`: MXNet computes a batch while the last one is copied out."""
        last: Any = None
        for batch in batches:
            outputs = self._start(batch)
            if last is not None:
                yield last.asnumpy()
            last = outputs
        if last is not None:
            yield last.asnumpy()

    def _start(self, batch: Sequence[Any]) -> Any:
        ids = mx.nd.array(batch[0], dtype="int32", ctx=self._device)
        lengths = mx.nd.array(batch[1], dtype="float32", ctx=self._device)
        if len(batch) < 3 or batch[2] is None:
            if self.part in ("mlm", "masked_states"):
                raise BortError(f"the part {self.part!r} takes positions")
            arguments = [ids, lengths]
        else:
            arguments = [ids, lengths, mx.nd.array(batch[2], dtype="int32", ctx=self._device)]
        with autograd.pause(train_mode=False):
            if self.part == "masked_states":
                return self._run.masked_states(*arguments)
            outputs = self._run(*arguments)
        return outputs[1] if self.part == "mlm" else outputs


def make(network: Any, part: str, precision: str, calibration: Sequence[Batch], compiled: bool = True
         ) -> Engine:
    """The engine of a network's part; see :func:`bort.engines.engine.open_engine`.

    Args:
        compiled: False runs the network as it is, which costs no preparation.
    """
    if part == "masked_states" or not compiled:
        if precision != "float32":
            raise Unavailable(f"mxnet computes the part {part!r} in float32 only, not in {precision}")
        return MXNetEngine(network, part)
    source = network if part == "classifier" else network.body
    try:
        check_dtype(precision, next(iter(source.collect_params().values())).list_ctx()[0])
        return MXNetEngine(network, part, compile_for_inference(source, precision, calibration))
    except BortError as error:
        raise Unavailable(str(error)) from error
