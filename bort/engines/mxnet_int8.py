"""MXNet's own 8-bit inference: symmetric int8 products with per-channel weights and calibrated activations.

Calibration runs the float32 graph over sample batches and keeps, for every array that will be 8-bit, its
smallest and largest value. They are kept under the names of ``bort.engines.mxnet_graph``, which do not depend
on a batch's shape, so one calibration serves the graphs of all shapes. Classification and MLM heads stay in
float32: they cost little and decide.
"""
from __future__ import annotations

import json
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Tuple

from bort.backend.mxnet import mx
from bort.errors import BortError

SUBGRAPH = "MKLDNN_QUANTIZE"
KEPT_OPERATORS = ["elemwise_add", "Embedding"]
KEPT_WEIGHTS = ("head", "mlm_")
ATTENTION_OPERATORS = ["_sg_mkldnn_selfatt_qk", "_sg_mkldnn_selfatt_valatt"]
Thresholds = Dict[str, Tuple[float, float]]
"""Stable name of an array to its smallest and largest value over the calibration data."""


class _Collected(NamedTuple):
    """What MXNet's calibration reads off a collector."""

    min_max_dict: Thresholds


def _nodes(symbol: Any) -> List[Dict[str, Any]]:
    return json.loads(symbol.tojson())["nodes"]


def _stable_names(symbol: Any) -> Dict[str, str]:
    """Output name to stable output name: a fused node, numbered by the pass, takes its last inner operator's
    name."""
    names = {}
    for node in _nodes(symbol):
        if node["op"] == "null":
            continue
        inner = [entry["name"] for graph in node.get("subgraphs", ()) for entry in graph["nodes"]]
        names[f"{node['name']}_output"] = f"{inner[-1] if inner else node['name']}_output"
    return names


def _kept_nodes(symbol: Any) -> List[str]:
    """Names of the fused nodes that belong to heads."""
    nodes = _nodes(symbol)
    weights = {number for number, node in enumerate(nodes)
               if node["op"] == "null" and node["name"].startswith(KEPT_WEIGHTS)}
    return [node["name"] for node in nodes if node["op"].startswith("_sg_")
            and any(entry[0] in weights for entry in node["inputs"])]


def _quantize(symbol: Any, parameters: Mapping[str, Any], attention: bool, calibration: str) -> Any:
    return mx.contrib.quantization.quantize_graph(
        symbol, dict(parameters), {}, excluded_sym_names=_kept_nodes(symbol), calib_mode=calibration,
        excluded_op_names=KEPT_OPERATORS + ([] if attention else ATTENTION_OPERATORS), quantized_dtype="auto",
        quantize_mode="full", quantize_granularity="channel-wise")


def calibrate(symbol: Any, parameters: Mapping[str, Any], batches: Iterable[Mapping[str, Any]],
              thresholds: Thresholds, attention: bool = True) -> None:
    """Widen ``thresholds`` by what the float32 graph ``symbol`` computes on ``batches``.

    Args:
        symbol: a graph of ``bort.engines.mxnet_graph`` without convolutions.
        parameters: its parameters by name; ``batches`` give its other arguments.
        attention: also of the attention products.
    """
    fused = symbol.get_backend_symbol(SUBGRAPH)
    stable = _stable_names(fused)
    wanted = [name for name in _quantize(fused, parameters, attention, "naive")[3].include_layer
              if name in stable]
    inside = fused.get_internals()
    watched = mx.sym.Group([inside[name] for name in wanted])
    run = mx.nd.CachedOp(watched)
    for batch in batches:
        arrays = run(*[batch[name] if name in batch else parameters[name]
                       for name in watched.list_arguments()])
        for name, array in zip(wanted, arrays):
            low, high = array.min().asscalar(), array.max().asscalar()
            if not (abs(low) < float("inf") and abs(high) < float("inf")):
                raise BortError(f"int8: {stable[name]} is not finite on the calibration data; the model is "
                                "broken")
            known = thresholds.get(stable[name], (low, high))
            thresholds[stable[name]] = (float(min(low, known[0])), float(max(high, known[1])))


def quantize(symbol: Any, parameters: Mapping[str, Any], thresholds: Thresholds,
             attention: bool = True) -> Tuple[Any, Dict[str, Any]]:
    """The int8 form of the float32 graph ``symbol`` and its parameters (weights are packed at the first
    call)."""
    fused = symbol.get_backend_symbol(SUBGRAPH)
    found = {name: thresholds[stable] for name, stable in _stable_names(fused).items()
             if stable in thresholds}
    quantized = _quantize(fused, parameters, attention, "none")[0]
    quantized, arrays, _ = mx.contrib.quantization.calib_graph(
        quantized, dict(parameters), {}, _Collected(found), calib_mode="naive", quantized_dtype="auto")
    return quantized.get_backend_symbol(SUBGRAPH), arrays
