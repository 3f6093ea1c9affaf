"""What each step of the fast inference form gains: the same network, one step more in every line.

    python -m benchmarks.optimizations  # Bort; about 6 minutes on 2 quiet cores
    python -m benchmarks.optimizations --shapes 1x128 --trials 20
    python -m benchmarks.optimizations --architecture 2,4,64,128 --vocab-size 500 --shapes 2x16 --trials 3

All variants take turns in one process, with the same weights and inputs; every output is held against the
plain network's before anything is timed. The lines of OpenMP's settings, and OpenVINO's, have processes of
their own.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from benchmarks.harness import common, records, shapes
from bort.architecture import ROBERTA_VOCAB_SIZE, parse
from bort.errors import BortError, run_command

FLOAT32_TOLERANCE = 1e-4
INT8_CORRELATION = 0.98
POLICIES = {
    "threads spin between operators (as shipped)": "active",
    "threads sleep between operators": "passive",
}
Shape = Tuple[int, int]


def network(architecture: str, vocab_size: int, seed: int = 0) -> Any:
    """A network of random weights, that of every variant."""
    from bort.models import Bert, initialize

    model = Bert(parse(architecture), vocab_size)
    initialize(model, seed)
    return model


def variants(
    model: Any, batch: Tuple[np.ndarray, np.ndarray]
) -> Iterator[Tuple[str, Callable[[], np.ndarray]]]:
    """Names and functions that give hidden states (B, T, H); each is compiled by its first call, before the
    next is made."""
    from bort.backend.mxnet import mx
    from bort.engines import mxnet_compiled
    from bort.engines.mxnet_compiled import InferenceModel

    ids, valid = mx.nd.array(batch[0], dtype="int32"), mx.nd.array(batch[1])

    def called(one: Any) -> Callable[[], np.ndarray]:
        return lambda: one(ids, valid).asnumpy()

    yield "Gluon, one operator after the other", called(model)
    whole = type(model)(model.architecture, model.vocab_size)
    for name, parameter in whole._collect_params_with_prefix().items():
        if name != "decoder.3.weight":
            parameter.initialize(init="zeros")
            parameter.set_data(model._collect_params_with_prefix()[name].data())
    whole.hybridize(static_alloc=True, static_shape=True)
    yield "Gluon, hybridized", called(whole)
    optimize = mxnet_compiled._optimize
    passes: Dict[str, Callable[..., Any]] = {
        "a graph for inference: one product for Q, K, V; gathered masks": lambda symbol, *_: symbol,
        "... attention and GELU fused by oneDNN's pass": lambda symbol, *_: symbol.optimize_for(
            "MKLDNN", skip_infer=True
        ),
        "... products with nothing to fuse left plain (as shipped, many tokens)": optimize,
    }
    try:
        for name, function in passes.items():
            mxnet_compiled._optimize = function  # type: ignore[assignment]
            run = called(InferenceModel(model, form="product"))
            run()
            yield name, run
    finally:
        mxnet_compiled._optimize = optimize
    yield (
        "linear layers as 1x1 convolutions, weights packed (as shipped, few tokens)",
        called(InferenceModel(model, form="convolution")),
    )
    for name, attention in (("int8, attention in float32", False), ("int8", True)):
        quantized = InferenceModel(model, "int8", attention)
        quantized.calibrate([batch])
        yield name, called(quantized)


def check(name: str, found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference.

    Raises:
        BortError: it is not the same function.
    """
    worst = float(np.abs(found - expected).max())
    right = (
        np.corrcoef(found.ravel(), expected.ravel())[0, 1] > INT8_CORRELATION
        if name.startswith("int8")
        else worst <= FLOAT32_TOLERANCE * max(1.0, float(np.abs(expected).max()))
    )
    if not right:
        raise BortError(f"{name!r} is wrong: off by {worst:.3g}")
    return worst


def measure(model: Any, shape: Shape, trials: int) -> Tuple[Dict[str, float], Dict[str, float]]:
    """Median milliseconds and largest differences of every variant on a full batch of ``shape``."""
    batch = shapes.make_batch((*shape, False), model.vocab_size)
    calls = dict(variants(model, batch))
    expected = next(iter(calls.values()))()
    differences = {name: check(name, call(), expected) for name, call in calls.items()}
    seconds = common.interleaved(calls, trials)
    return {name: common.summarize(values)["median_ms"] for name, values in seconds.items()}, differences


def classifier_rows(model: Any, length: int, trials: int) -> List[Dict[str, Any]]:
    """What reading only position 0 and trimming a padded batch gain for a classifier of one sequence."""
    from bort.engines.mxnet_compiled import compile_for_inference
    from bort.models import Classifier, initialize

    head = Classifier(model, 2)
    initialize(head, 1, only_missing=True)
    body, classifier = compile_for_inference(model), compile_for_inference(head)
    ids = np.random.default_rng(0).integers(5, model.vocab_size, (1, length)).astype("int32")
    full, short = np.array([length], "float32"), np.array([max(1, length // 4)], "float32")
    calls = {
        "all positions of all layers": lambda: body(ids, full).asnumpy(),
        "the last layer for position 0 only": lambda: classifier(ids, full).asnumpy(),
        "a quarter of the tokens, padded": lambda: body(ids, short).asnumpy(),
        "the same, trimmed": lambda: classifier(ids, short).asnumpy(),
    }
    seconds = common.interleaved(calls, trials)
    return [
        {"1 sequence": name, "length": length, **common.summarize(values)} for name, values in seconds.items()
    ]


def _command(args: argparse.Namespace, shape: Shape, worker: str) -> List[str]:
    return common.module_command(
        "benchmarks.optimizations",
        *("--worker", worker, "--architecture", args.architecture, "--vocab-size", str(args.vocab_size)),
        *("--shapes", f"{shape[0]}x{shape[1]}", "--trials", str(args.trials)),
    )


def policy_rows(args: argparse.Namespace, shape: Shape) -> List[Dict[str, Any]]:
    """The compiled network in a process for each OpenMP policy, twice in turns."""
    command = _command(args, shape, "threads")
    found: Dict[str, List[float]] = {name: [] for name in POLICIES}
    for _ in range(2):
        for name, policy in POLICIES.items():
            found[name] += common.run_workers([command], dict(os.environ, OMP_WAIT_POLICY=policy))[0]
    return [
        {f"OpenMP, {shape[0]} x {shape[1]}": name, **common.summarize(values)}
        for name, values in found.items()
    ]


def openvino_calls(model: Any, shape: Shape) -> Dict[str, Callable[[], np.ndarray]]:
    """What each step of our graph for OpenVINO gains, as functions that give hidden states (B, T, H)."""
    from bort.checkpoints.model_folder import parameter_arrays
    from bort.engines import onnx_graph
    from bort.engines.openvino import OpenVinoEngine
    from bort.engines.openvino_model import import_openvino, read

    facts, arrays = onnx_graph.network_of(model), parameter_arrays(model)
    file = onnx_graph.build(facts, arrays, "encoder", {}).SerializeToString()
    apart, clipped = (read(facts, arrays, "encoder", precision) for precision in ("int8", "float32"))
    fixed = clipped.clone()
    fixed.reshape({"token_ids": list(shape), "valid_length": [shape[0]]})
    forms = {
        "the ONNX file that bort.export writes": (import_openvino().Core().read_model(file), "float32"),
        "Q, K and V three products, K turned in two steps": (apart, "float32"),
        "... a Clip after products that nothing follows (as shipped)": (clipped, "float32"),
        "... compiled for this shape alone": (fixed, "float32"),
        "bfloat16: the first form": (import_openvino().Core().read_model(file), "bfloat16"),
        "bfloat16: three products (as shipped)": (apart, "bfloat16"),
    }
    ids, valid = shapes.make_batch((*shape, False), model.vocab_size)

    def called(form: Any, precision: str) -> Callable[[], np.ndarray]:
        engine = OpenVinoEngine(form, "encoder", model.vocab_size, model.max_length, precision)
        return lambda: engine(ids, valid)

    bfloat16 = set(shapes.BFLOAT16_FLAGS).intersection(common.cpu_info()["flags"])
    return {name: called(*form) for name, form in forms.items() if form[1] == "float32" or bfloat16}


def openvino_rows(args: argparse.Namespace, shape: Shape) -> List[Dict[str, Any]]:
    """The steps in a process without MXNet's threads at work; none where OpenVINO is not installed."""
    if not all(map(importlib.util.find_spec, ("openvino", "onnx"))):
        return []
    command = _command(args, shape, "openvino")
    seconds = common.run_workers([command], dict(os.environ))[0]
    return [
        {f"OpenVINO, {shape[0]} x {shape[1]}": name, **common.summarize(values)}
        for name, values in seconds.items()
    ]


def worker(args: argparse.Namespace) -> None:
    """The seconds of the compiled network, for :func:`policy_rows`, or of OpenVINO's forms."""
    if args.worker == "openvino":
        calls = openvino_calls(network(args.architecture, args.vocab_size), args.shapes[0])
        expected = next(iter(calls.values()))()
        for name, call in calls.items():
            if not name.startswith("bfloat16"):
                check(name, call(), expected)
        common.print_result(common.interleaved(calls, args.trials))
        return
    from bort.engines.mxnet_compiled import compile_for_inference

    compiled = compile_for_inference(network(args.architecture, args.vocab_size))
    ids, valid = shapes.make_batch((*args.shapes[0], False), args.vocab_size)
    seconds = common.interleaved({"compiled": lambda: compiled(ids, valid).asnumpy()}, args.trials)[
        "compiled"
    ]
    common.print_result(seconds)


def _shapes(text: str) -> List[Shape]:
    try:
        pairs = [[int(number) for number in part.split("x")] for part in text.split(",")]
        if pairs and all(len(pair) == 2 and min(pair) > 0 for pair in pairs):
            return [(batch, length) for batch, length in pairs]
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxLENGTH, several with commas: 1x512,8x128")


def rows_of(
    milliseconds: Dict[Shape, Dict[str, float]], differences: Dict[Shape, Dict[str, float]]
) -> List[Dict[str, Any]]:
    """A line per variant: milliseconds at every shape, and how much faster than the first line."""
    rows = []
    shapes: Sequence[Shape] = list(milliseconds)
    for name in milliseconds[shapes[0]]:
        row: Dict[str, Any] = {"variant": name}
        for shape in shapes:
            mine, first = milliseconds[shape][name], next(iter(milliseconds[shape].values()))
            row[f"{shape[0]} x {shape[1]}, ms"] = mine
            row[f"{shape[0]} x {shape[1]}, times"] = round(first / mine, 2)
        rows.append(
            {**row, "largest difference": float(f"{max(differences[shape][name] for shape in shapes):.2g}")}
        )
    return rows


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", default="bort", help="a preset or D,A,H,I (default: bort)")
    parser.add_argument("--vocab-size", type=int, default=ROBERTA_VOCAB_SIZE)
    parser.add_argument(
        "--shapes",
        type=_shapes,
        default=[(1, 512), (1, 128), (8, 128)],
        help="BATCHxLENGTH, with commas (default: 1x512,1x128,8x128)",
    )
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--folder", type=Path, help="where to record instead of benchmarks/results")
    parser.add_argument("--worker", choices=("threads", "openvino"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        worker(args)
        return 0
    load = common.load_average()
    model = network(args.architecture, args.vocab_size)
    milliseconds: Dict[Shape, Dict[str, float]] = {}
    differences: Dict[Shape, Dict[str, float]] = {}
    for shape in args.shapes:
        milliseconds[shape], differences[shape] = measure(model, shape, args.trials)
        print(shape, milliseconds[shape], flush=True)
    tables = {
        "Hidden states": rows_of(milliseconds, differences),
        "Classifiers": classifier_rows(model, args.shapes[0][1], args.trials),
        "Threads": policy_rows(args, args.shapes[0]),
    }
    for shape in args.shapes:
        tables[f"OpenVINO, {shape[0]} x {shape[1]}"] = openvino_rows(args, shape)
    tables = {heading: rows for heading, rows in tables.items() if rows}
    print(
        records.record(
            "optimizations",
            tables,
            {"architecture": args.architecture, "trials": args.trials},
            [
                "'times' is how many times faster than the first line. Variants are not built upon "
                "each other below the convolutions: int8 is the product form in 8 bits."
            ],
            "What each step of fast inference gains",
            argv,
            args.folder,
            load,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
