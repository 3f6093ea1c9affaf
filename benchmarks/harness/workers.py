"""Engines in processes of their own, one of which runs at a time.

    python -m benchmarks.harness.workers ENGINE  # reads commands as JSON lines, answers with JSON lines

In one process the engines' thread pools would fight: MXNet's idle threads spin. The parent stops a process
(SIGSTOP) while another one is measured. Commands: ``{"prepare": folder, ...}``, ``{"make": folder}``,
``{"load": folder}``, ``{"forget": true}``, ``{"first": shape, "output": path}``, ``{"time": shape, "count":
n, "warmup": n}``, ``{"peak": size}``. A shape is ``[batch, length, padded]``.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from benchmarks.harness import common, engines, peers, shapes
from bort.errors import BortError


class Ended(BortError):
    """An engine's process is gone, as when it was killed for want of memory."""


Answers = Callable[[str, Dict[str, Any], Dict[str, Any]], Dict[str, Any]]
MODULE = "benchmarks.harness.workers"
ANSWER = "ENGINE-ANSWER "
OUR_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "OPENBLAS_CORETYPE",
    "DNNL_MAX_CPU_ISA",
    "MXNET_CPU_PARALLEL_SIZE",
    "MXNET_USE_OPERATOR_TUNING",
    "MXNET_STORAGE_FALLBACK_LOG_VERBOSE",
    "MXNET_SUBGRAPH_VERBOSE",
)
"""What importing ``bort.backend.mxnet`` sets, which a test's process passes on to its children."""


def environment(engine: str, threads: int) -> Dict[str, str]:
    """What an engine's users would have around it: nothing for stock GluonNLP, which MXNet then runs as it
    likes."""
    inherited = {name: value for name, value in os.environ.items() if name not in OUR_VARIABLES}
    quiet = {
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "BORT_BENCHMARK_THREADS": str(threads),
    }
    if engine != "gluonnlp":
        quiet["OMP_NUM_THREADS"] = str(threads)
    if engine == "gluonnlp-tuned":  # ours set it by themselves
        quiet["OMP_WAIT_POLICY"] = "active"
    return {**inherited, **quiet}


class Worker:
    """The parent's side of one engine; the process has the first ``threads`` cores of this one's.

    ``python -m MODULE ENGINE`` must call :func:`serve`; this module does. ``variables`` are added to its
    environment.
    """

    def __init__(
        self, engine: str, threads: int, module: str = MODULE, **variables: str
    ) -> None:
        self.engine = engine
        self._stderr = tempfile.TemporaryFile(mode="w+")
        self._process = subprocess.Popen(
            common.module_command(module, engine),
            env=common.module_environment({**environment(engine, threads), **variables}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        if hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(self._process.pid, sorted(os.sched_getaffinity(0))[:threads])

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def ask(self, **command: Any) -> Dict[str, Any]:
        """The answer; ``{"left_out": reason}`` when the engine cannot run here.

        Raises:
            BortError: it should have worked and did not.
            Ended: its process is gone.
        """
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                self._process.send_signal(signal.SIGSTOP)
                answer = json.loads(line[len(ANSWER) :])
                if "error" in answer:
                    raise BortError(f"engine {self.engine}: {answer['error']}")
                return answer
        status = self._process.wait()
        self._stderr.seek(0)
        raise Ended(f"engine {self.engine} ended with status {status}: {self._stderr.read()[-800:]}")

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        self._process.communicate()
        self._stderr.close()


@contextlib.contextmanager
def opened(names: Sequence[str], threads: int, module: str = MODULE) -> Iterator[Dict[str, Worker]]:
    """A process for each engine, which ends with the block."""
    workers: Dict[str, Worker] = {}
    try:
        for engine in names:
            workers[engine] = Worker(engine, threads, module)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def serve(engine: str, answers: Answers, ours: bool) -> int:
    """The child's side: answer commands until the input ends.

    Args:
        answers: ``answers(engine, command, state)``; the state is a dict of its own.
        ours: whatever goes wrong is a bug then, and no reason to leave the engine out.
    """
    # a stopped child would outlive a killed parent (Linux)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    state: Dict[str, Any] = {}
    for line in sys.stdin:
        command = json.loads(line)
        answer: Dict[str, Any]
        try:
            answer = answers(engine, command, state)
        except (ImportError, shapes.Unavailable) as error:
            answer = {"left_out": str(error)}
        except BortError as error:
            answer = {"error": str(error)}
        # versions of a peer that do not get along are no reason to measure nothing
        except Exception as error:
            if ours or not {"make", "load"} & set(command):
                raise
            answer = {"left_out": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        print(ANSWER + json.dumps(answer), flush=True)
    return 0


def _answer(engine: str, command: Dict[str, Any], state: Dict[str, Any]) -> Dict[str, Any]:
    if "prepare" in command:
        engines.prepare(Path(command["prepare"]), command["architecture"], command["vocab_size"])
        return {}
    if "make" in command:
        engines.MAKERS[engine](Path(command["make"]))
        return {}
    if "forget" in command:
        state.clear()
        gc.collect()
        return {}
    if "load" in command:
        folder = Path(command["load"])
        state["run"] = engines.ENGINES[engine](folder)
        state["vocab_size"] = json.loads((folder / "model" / "config.json").read_text())["vocab_size"]
        return {}
    if "peak" in command:
        return {"rate": peak(engine, command["peak"])}
    ids, valid = shapes.make_batch(tuple(command.get("first") or command["time"]), state["vocab_size"])
    if "time" in command:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        seconds = _timed(state["run"], ids, valid, command["count"], command["warmup"])
        return {"seconds": seconds, "mib": memory_mib("VmHWM")}
    np.save(command["output"], state["run"](ids, valid))
    return {"seconds": _timed(state["run"], ids, valid, 1, 0)}


def memory_mib(field: str) -> float:
    """``VmHWM``, the most memory this process has held, or ``VmRSS``, what it holds; in MiB.

    getrusage would count what the parent held when it started this process.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return round(int(status.split(f"{field}:")[1].split()[0]) / 1024, 1)


def _timed(run: shapes.Run, ids: np.ndarray, valid: np.ndarray, count: int, warmup: int) -> List[float]:
    seconds = []
    for number in range(-warmup, count):
        start = time.perf_counter()
        run(ids, valid)
        if number >= 0:
            seconds.append(time.perf_counter() - start)
    return seconds


def peak(engine: str, size: int, seconds: float = 1.5) -> Optional[float]:
    """Best rate of a square matrix product in the engine's number format, in operations (2 n^3) per second.

    None where an engine has no product of its own to offer.
    """
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, size, size), dtype="float32")
    if engine in ("mxnet", "mxnet-int8", "mxnet-bf16"):
        call = _mxnet_product(shapes.number_format(engine), left, right)
    elif engine in ("pytorch", "pytorch-bf16"):
        if engine.endswith("bf16"):
            shapes.check_bfloat16()
        import torch

        torch.set_num_threads(shapes.threads())
        kind = torch.bfloat16 if engine.endswith("bf16") else torch.float32
        first, second = torch.from_numpy(left).to(kind), torch.from_numpy(right).to(kind)
        call = lambda: torch.mm(first, second)  # noqa: E731
    elif engine in ("onnx", "onnx-int8"):
        call = _onnx_product(engine == "onnx-int8", left, right)
    else:
        return None
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peaks(workers: Mapping[str, Any], size: int) -> Dict[str, Tuple[float, str]]:
    """The best rate of a matrix product in any engine: number format to operations per second, and the
    engine."""
    best: Dict[str, Tuple[float, str]] = {}
    for engine, worker in workers.items():
        rate, kind = worker.ask(peak=size).get("rate"), shapes.number_format(engine)
        if rate and rate > best.get(kind, (0.0, ""))[0]:
            best[kind] = (rate, engine)
    return best


def _mxnet_product(dtype: str, left: np.ndarray, right: np.ndarray) -> Callable[[], Any]:
    from bort.backend.mxnet import mx
    from bort.engines import mxnet_int8
    from bort.engines.mxnet_compiled import check_dtype

    try:
        check_dtype(dtype)
    except BortError as error:
        raise shapes.Unavailable(str(error)) from error
    symbol = mx.sym.FullyConnected(
        mx.sym.var("x"), mx.sym.var("w_weight"), no_bias=True, num_hidden=len(right), name="w"
    )
    arrays = {"x": mx.nd.array(left), "w_weight": mx.nd.array(right)}
    if dtype == "int8":
        weights = {"w_weight": arrays["w_weight"]}
        thresholds: mxnet_int8.Thresholds = {}
        mxnet_int8.calibrate(symbol, weights, [{"x": arrays["x"]}], thresholds)
        thresholds["x"] = (float(left.min()), float(left.max()))
        symbol, quantized = mxnet_int8.quantize(symbol, weights, thresholds)
        arrays.update(quantized)
    else:
        symbol = symbol.optimize_for("MKLDNN", skip_infer=True)
        if dtype == "bfloat16":
            arrays = {name: mx.nd.amp_cast(array, dtype="bfloat16") for name, array in arrays.items()}
    operator = mx.nd.CachedOp(symbol, (("static_alloc", True), ("static_shape", True)))
    return lambda: operator(*[arrays[name] for name in symbol.list_arguments()]).wait_to_read()


def _onnx_product(whole_numbers: bool, left: np.ndarray, right: np.ndarray) -> Callable[[], Any]:
    from onnx import TensorProto, helper, numpy_helper

    if whole_numbers:
        left, right = (
            (left * 30 + 128).clip(0, 255).astype("uint8"),
            (right * 30).clip(-127, 127).astype("int8"),
        )
    kinds = (
        (TensorProto.UINT8, TensorProto.INT32) if whole_numbers else (TensorProto.FLOAT, TensorProto.FLOAT)
    )
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if whole_numbers else "MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kinds[0], list(left.shape))],
        [helper.make_tensor_value_info("y", kinds[1], list(left.shape))],
        [numpy_helper.from_array(right, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        path.write_bytes(model.SerializeToString())
        opened = peers.session(path)
    return lambda: opened.run(None, {"x": left})


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1], _answer, sys.argv[1] in engines.OURS))
