"""OpenVINO: this project's ONNX graph with the network's own weights, compiled for the processor at hand.

OpenVINO reads the graph without its weights and takes these where they lie in memory, so that a network of
300 MB is ready within some tenths of a second and nothing is written. Only the 8-bit form, whose making takes
long, is kept in a folder (:mod:`bort.engines.openvino_int8`).
"""
from __future__ import annotations

from collections import deque
from typing import Any, Deque, Dict, Iterable, Iterator, Mapping, Optional, Sequence

import numpy as np

from bort.engines import onnx_graph, openvino_int8
from bort.engines.base import POSITION_INPUTS, Batch, Engine, Report, Unavailable, check_batch
from bort.engines.cpu import BFLOAT16_FLAGS, INT8_FLAGS, cpu_flags, openmp_threads
from bort.engines.openvino_model import import_openvino, read, shared_core

KIND = "openvino"
WAITING_REQUESTS = 2
"""Batches handed over beyond those that are being computed, so that no core waits for Python."""


def check_precision(precision: str) -> None:
    """Refuse what this processor has no instructions for.

    Raises:
        Unavailable: with the reason.
    """
    wanted = {"bfloat16": (*BFLOAT16_FLAGS, "bf16"), "int8": (*INT8_FLAGS, "asimd")}.get(precision, ())
    if wanted and not cpu_flags().intersection(wanted):
        raise Unavailable(f"{precision} needs a CPU with {' or '.join(wanted)}; without these instructions "
                          "it is no faster than float32")


class OpenVinoEngine(Engine):
    """A graph that OpenVINO has read, compiled for one batch at a time at once, for many when asked.

    Args:
        model: an ``openvino.Model`` with the inputs of :mod:`bort.engines.onnx_graph`.
        part: one of ``PARTS``.
        vocab_size, max_length: of the network.
        precision: of the products: "float32", "bfloat16" or "int8" (the model itself is 8-bit then).
        threads: 0 leaves the number to OpenVINO.
    """

    length_multiple = 1
    any_batch = True

    def __init__(self, model: Any, part: str, vocab_size: int, max_length: int, precision: str = "float32",
                 threads: int = 0) -> None:
        openvino = import_openvino()
        self.part, self.max_length, self._vocab_size = part, max_length, vocab_size
        self.num_outputs = model.outputs[0].partial_shape[1].get_length() if part == "classifier" else 0
        self.report = Report(KIND, openvino.get_version().split("-")[0], precision)
        self.model, self._threads = model, threads
        self._request: Any = None
        self._throughput: Any = None

    def _compile(self, hint: str) -> Any:
        # Left to itself, OpenVINO computes in bfloat16 where the processor can.
        # Beside 8-bit products, what is not in 8 bits (attention's sums, activations) takes 4 to 10 % of the
        # time more in float32.
        low = self.report.precision == "bfloat16" or (self.report.precision == "int8"
                                                      and cpu_flags().intersection(BFLOAT16_FLAGS))
        settings: Dict[str, Any] = {"PERFORMANCE_HINT": hint,
                                    "INFERENCE_PRECISION_HINT": "bf16" if low else "f32",
                                    # Pinned threads of two processes would share cores and leave others idle.
                                    "ENABLE_CPU_PINNING": False}
        if self._threads:
            settings["INFERENCE_NUM_THREADS"] = self._threads
        return shared_core().compile_model(self.model, "CPU", settings)

    def _feed(self, batch: Sequence[Optional[np.ndarray]]) -> Dict[str, np.ndarray]:
        arrays = tuple(np.asarray(array) for array in batch if array is not None)
        check_batch(self, self._vocab_size, arrays)
        feed: Dict[str, np.ndarray] = {
            "token_ids": arrays[0].astype(np.int64),
            "valid_length": arrays[1].astype(np.float32),
        }
        if len(arrays) > 2:
            feed[POSITION_INPUTS[self.part]] = arrays[2].astype(np.int64)
        return feed

    def __call__(self, token_ids: np.ndarray, valid_length: np.ndarray,
                 positions: Optional[np.ndarray] = None) -> np.ndarray:
        if self._request is None:
            self._request = self._compile("LATENCY").create_infer_request()
        feed = self._feed((token_ids, valid_length, positions))
        self._request.infer(feed, share_inputs=True)
        return self._request.get_output_tensor(0).data.copy()

    def map(self, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        """As :meth:`Engine.map`; several batches at a time, each by fewer threads, and Python prepares the
        next ones meanwhile."""
        if self._throughput is None:
            self._throughput = self._compile("THROUGHPUT")
        count = self._throughput.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") + WAITING_REQUESTS
        idle = deque(self._throughput.create_infer_request() for _ in range(count))
        running: Deque[Any] = deque()
        try:
            for batch in batches:
                if not idle:
                    idle.append(running.popleft())
                    yield _result(idle[-1])
                request = idle.popleft()
                request.start_async(self._feed(batch), share_inputs=True)
                running.append(request)
            while running:
                yield _result(running.popleft())
        finally:  # whoever asked may have had enough: the arrays of a batch must outlive its request
            for request in running:
                request.wait()


def _result(request: Any) -> np.ndarray:
    request.wait()
    return request.get_output_tensor(0).data.copy()


def make(facts: onnx_graph.Network, arrays: Mapping[str, np.ndarray], part: str, precision: str,
         calibration: Sequence[Batch]) -> OpenVinoEngine:
    """The engine of a network's part; see :func:`bort.engines.engine.open_engine`."""
    import_openvino()
    check_precision(precision)
    if precision == "int8":
        model = openvino_int8.quantized(facts, arrays, part, calibration)
    else:
        model = read(facts, arrays, part, precision)
    return OpenVinoEngine(model, part, facts.vocab_size, facts.max_length, precision, openmp_threads())
