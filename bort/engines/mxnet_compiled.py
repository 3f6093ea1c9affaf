"""Inference: a trained model as graphs compiled for MXNet's fast CPU operators.

``compile_for_inference(model)`` is called like the model and gives the same outputs to rounding. A graph is
compiled per batch shape at its first use (some hundredths of a second) and kept; ``trim`` keeps shapes few
and batches short, which classifiers do by themselves.
The model stays the owner of its parameters: nothing is saved from here, and ``refresh`` follows further
training.
"""
from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from bort.backend.mxnet import AMX, autograd, mx
from bort.engines import mxnet_graph, mxnet_int8
from bort.engines.cpu import BFLOAT16_FLAGS, EXACT_INT8_FLAGS, INT8_FLAGS, cpu_flags
from bort.errors import BortError
from bort.models.bert import Bert
from bort.models.classifier import Classifier
from bort.models.inputs import check_inputs

DTYPES = ("float32", "int8", "bfloat16")
LENGTH_MULTIPLES = {"float32": 4, "int8": 8, "bfloat16": 8}
"""What the widths of large batches are rounded up to. A float32 graph costs little, a column of padding costs
more."""
MAX_GRAPHS = 64
MAX_GRAPH_BYTES = 1 << 30
MAX_PRODUCT_BYTES = 256 << 20
"""Of the above for graphs of plain products, which hold no weights and are made again in some 20 ms."""
FLAGS = (("static_alloc", True), ("static_shape", True))
Batch = Tuple[Any, ...]


def trim(token_ids: np.ndarray, valid_length: np.ndarray, max_length: int = 512,
         dtype: str = "float32") -> np.ndarray:
    """``token_ids`` (B, T) cut or padded to the width at which its longest member is computed fastest.

    Widths are rounded up, so that few graphs serve all lengths: to a multiple of 16 while the batch is small
    enough for packed weights (see :func:`bort.engines.mxnet_graph.float32_form`), then to one of
    :data:`LENGTH_MULTIPLES`. New columns hold zeros, whose value has no effect. A longer single sequence
    keeps its exact width and needs no mask.
    """
    batch, width = token_ids.shape
    longest = int(np.max(valid_length))
    small = -(-longest // mxnet_graph.CONVOLUTION_MULTIPLE) * mxnet_graph.CONVOLUTION_MULTIPLE
    if batch * small <= mxnet_graph.CONVOLUTION_TOKENS:
        target = small
    else:
        multiple = 1 if batch == 1 else LENGTH_MULTIPLES[dtype]
        target = -(-longest // multiple) * multiple
    target = min(target, max_length)
    if target <= width:
        return token_ids[:, :target]
    return np.pad(token_ids, ((0, 0), (0, target - width)))


def check_dtype(dtype: str, device: Any = None) -> None:
    """Refuse a number format that this machine computes slower than float32, or not at all.

    Raises:
        BortError: with the reason.
    """
    if dtype not in DTYPES:
        raise BortError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}"
                        + (" (MXNet cannot compute in float16 on a CPU)" if dtype == "float16" else ""))
    if dtype == "float32":
        return
    if device is not None and device.device_type != "cpu":
        raise BortError(f"{dtype} inference is for CPUs; the model is on {device}")
    if "MKLDNN" not in mx.runtime.Features() or not mx.runtime.Features().is_enabled("MKLDNN"):
        raise BortError(f"{dtype} needs an MXNet built with oneDNN; this one is not")
    wanted, flags = BFLOAT16_FLAGS if dtype == "bfloat16" else INT8_FLAGS, cpu_flags()
    if not any(flag in flags for flag in wanted):
        raise BortError(f"{dtype} needs a CPU with {' or '.join(wanted)}; without these instructions it is "
                        "emulated, slower than float32")
    if dtype == "bfloat16" and "amx_bf16" in flags and not AMX:
        raise BortError("bfloat16 needs AMX on this CPU, whose vector instructions for it are slower than "
                        "float32, and the system does not let this process use AMX (Linux 5.16 and later do)")


class Compiled(NamedTuple):
    """A graph ready to run, what it is estimated to hold in bytes, and its form (or "int8")."""

    run: Callable[[Dict[str, Any]], Any]
    size: int
    kind: str


class InferenceModel:
    """A compiled model; made by :func:`compile_for_inference`.

    Attributes:
        model: the model it was made from.
        dtype: "float32", "int8" or "bfloat16".
        thresholds: int8's calibration, empty otherwise.
    """

    def __init__(self, model: Union[Bert, Classifier], dtype: str = "float32", attention: bool = True,
                 form: Optional[str] = None) -> None:
        self.model, self.dtype = model, dtype
        self.spec = mxnet_graph.spec_of(model)
        self.thresholds: mxnet_int8.Thresholds = {}
        self._attention, self._form = attention, form
        self._graphs: "OrderedDict[mxnet_graph.Shape, Compiled]" = OrderedDict()
        self._symbols: Dict[mxnet_graph.Shape, Any] = {}
        self.refresh()

    @property
    def architecture(self) -> Any:
        """The 4-tuple."""
        return self.spec.architecture

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.spec.vocab_size

    @property
    def max_length(self) -> int:
        """The longest sequence it takes."""
        return self.spec.max_length

    @property
    def num_outputs(self) -> int:
        """C of a classifier, 0 of a ``Bert``."""
        return self.spec.num_outputs

    def refresh(self) -> None:
        """Read the model's parameters again, after training steps or ``set_parameters``.

        Costs a copy of the attention weights; graphs are made anew at their next use, as their operators keep
        packed weights. Thresholds of int8 are kept: calibrate again if the model has changed much.
        """
        self.parameters = mxnet_graph.fused_parameters(self.model)
        self._device = self.parameters["word_weight"].context
        self._reshaped: Dict[str, Dict[str, Any]] = {}
        self._graphs.clear()

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Collect the ranges of activations for int8 from batches ``(token_ids, valid_length)``.

        Raises:
            BortError: there is no batch, or its values are refused by the model.
        """
        thresholds: mxnet_int8.Thresholds = {}
        for token_ids, valid_length in ((batch[0], batch[1]) for batch in batches):
            ids, lengths, _ = self._checked(token_ids, valid_length, None)
            # without padding, whose values must not widen any range
            for length in np.unique(lengths).astype(int):
                alike = ids[lengths == length][:, :length]
                shape = mxnet_graph.Shape(len(alike), length, False)
                inputs = self._inputs(shape, alike, np.full(len(alike), length, "float32"), None)
                mxnet_int8.calibrate(mxnet_graph.build_graph(self.spec, shape, "product"), self.parameters,
                                     [inputs], thresholds, self._attention)
        if not thresholds:
            raise BortError("int8 needs calibration data: at least one batch of token ids and lengths")
        self.thresholds = thresholds
        self._graphs.clear()

    def __call__(self, token_ids: Any, valid_length: Any, masked_positions: Optional[Any] = None) -> Any:
        """What the model returns for the same arguments, as NDArrays.

        Args:
            token_ids: (B, T) integers; NDArray or numpy array, as all three.
            valid_length: (B,) float32 (any number type when it is a numpy array).
            masked_positions: (B, M) integers, for a ``Bert`` only.

        Returns:
            ``Bert``: hidden states (B, T, H), zero in padded rows, or a pair of them and logits (B, M, V).
            ``Classifier``: (B, C).

        Raises:
            BortError: what the model itself refuses.
        """
        ids, lengths, positions = self._checked(token_ids, valid_length, masked_positions)
        if self.spec.head is not None:  # nobody sees how wide a classifier's batch was
            ids = trim(ids, lengths, self.max_length, self.dtype)
        shape = mxnet_graph.Shape(len(ids), ids.shape[1], bool(lengths.min() < ids.shape[1]),
                            0 if positions is None else positions.shape[1])
        run = self._graph(shape)
        with autograd.pause(train_mode=False):
            outputs = run(self._inputs(shape, ids, lengths, positions))
        return tuple(outputs) if shape.masked else outputs

    def _checked(self, token_ids: Any, valid_length: Any, masked_positions: Optional[Any]) -> Tuple[Any, ...]:
        """The arguments as numpy arrays, once the model has nothing against them."""
        if masked_positions is not None and self.spec.head is not None:
            raise BortError("a classifier takes no masked_positions")
        given = [_array(token_ids, "int32"), _array(valid_length, "float32"),
                 None if masked_positions is None else _array(masked_positions, "int32")]
        check_inputs(self.model, *given)
        return tuple(None if array is None else array.asnumpy() for array in given)

    def _inputs(self, shape: mxnet_graph.Shape, ids: np.ndarray, lengths: np.ndarray,
                positions: Optional[np.ndarray]) -> Dict[str, Any]:
        inputs = {**mxnet_graph.batch_inputs(self.spec, shape, ids, lengths, positions),
                  **mxnet_graph.graph_inputs(self.spec, shape)}
        return {name: mx.nd.array(value, ctx=self._device, dtype=value.dtype) for name,
                value in inputs.items()}

    def _graph(self, shape: mxnet_graph.Shape) -> Callable[[Dict[str, Any]], Any]:
        if shape in self._graphs:
            self._graphs.move_to_end(shape)
            return self._graphs[shape].run
        form = self._form_of(shape)
        kind = "int8" if self.dtype == "int8" else form
        size = mxnet_graph.graph_bytes(self.spec, shape, kind)
        self._make_room(size, MAX_GRAPH_BYTES, list(self._graphs))
        if kind == "product":
            self._make_room(size, MAX_PRODUCT_BYTES, [key for key in self._graphs if self._graphs[key].kind
                                                      == kind])
        self._graphs[shape] = Compiled(self._compile(shape, form), size, kind)
        return self._graphs[shape].run

    def _make_room(self, size: int, limit: int, old: List[mxnet_graph.Shape]) -> None:
        """Forget graphs of ``old``, the longest unused first, until ``size`` bytes more stay within
        ``limit``."""
        total = size + sum(self._graphs[key].size for key in old)
        for key in old:
            if total <= limit and len(self._graphs) < MAX_GRAPHS:
                return
            total -= self._graphs.pop(key).size

    def _compile(self, shape: mxnet_graph.Shape, form: str) -> Callable[[Dict[str, Any]], Any]:
        if form not in self._reshaped:
            self._reshaped[form] = mxnet_graph.reshape_parameters(self.parameters, form)
        parameters = self._reshaped[form]
        if len(self._symbols) > 16 * MAX_GRAPHS:
            self._symbols.clear()
        if shape not in self._symbols:
            symbol = mxnet_graph.build_graph(self.spec, shape, form)
            self._symbols[shape] = symbol if self.dtype == "int8" else _optimize(symbol, self._device, form)
        symbol = self._symbols[shape]
        if self.dtype == "int8":
            if not self.thresholds:
                raise BortError("int8 needs calibration data: give compile_for_inference batches, or call "
                                "calibrate")
            symbol, parameters = mxnet_int8.quantize(symbol, parameters, self.thresholds, self._attention)
        operator = mx.nd.CachedOp(symbol, FLAGS)
        names = symbol.list_arguments()
        fixed: List[Optional[Any]] = [parameters.get(name) for name in names]

        def run(inputs: Dict[str, Any]) -> Any:
            return operator(*[inputs[name] if array is None else array for name, array in zip(names, fixed)])
        return run

    def _form_of(self, shape: mxnet_graph.Shape) -> str:
        if self.dtype == "bfloat16":
            return "bfloat16"
        if self.dtype == "int8" or self._device.device_type != "cpu":
            return "product"
        return self._form or mxnet_graph.float32_form(self.spec, shape)


def _array(value: Any, dtype: str) -> Any:
    if isinstance(value, mx.nd.NDArray):
        return value
    value = np.asarray(value)
    whole = value.dtype.kind in "iu" or dtype == "float32"
    return mx.nd.array(value, dtype=dtype if whole else value.dtype)


def _optimize(symbol: Any, device: Any, form: str) -> Any:
    if device.device_type != "cpu" or not mx.runtime.Features().is_enabled("MKLDNN"):
        return symbol
    symbol = symbol.optimize_for("MKLDNN", skip_infer=True)
    return _unfuse(symbol) if form == "product" else symbol


def _unfuse(symbol: Any) -> Any:
    """Turn the pass's fused products that have nothing fused with them into plain ones again.

    They are no faster, and each keeps a copy of its weights: 79 of Bort's 92 MB in every compiled graph.
    """
    graph_json = json.loads(symbol.tojson())
    for node in graph_json["nodes"]:
        inner = [entry for part in node.get("subgraphs", ()) for entry in part["nodes"] if entry["op"]
                 != "null"]
        if node["op"] == "_sg_mkldnn_fully_connected" and len(inner) == 1:
            node["op"], node["attrs"] = "FullyConnected", inner[0]["attrs"]
            del node["subgraphs"]
    return mx.sym.load_json(json.dumps(graph_json))


def compile_for_inference(model: Union[Bert, Classifier], dtype: str = "float32",
                          calibration: Sequence[Batch] = (), attention: bool = True) -> InferenceModel:
    """Prepare a trained model for fast inference on a CPU (on a GPU it runs the same graphs without oneDNN).

    Args:
        model: with its parameters; it stays usable and unchanged.
        dtype: "float32" (equal to the model to rounding), "int8" (linear layers and attention in 8 bits;
            warns where the CPU lacks :data:`EXACT_INT8_FLAGS`) or "bfloat16" (linear layers; needs the
            instructions).
        calibration: for int8, batches ``(token_ids (B, T), valid_length (B,))`` like those to come; a few
            dozen sequences do.
        attention: False keeps int8's attention products in float32.

    Raises:
        BortError: this machine lacks the instructions for ``dtype``, or int8 has no calibration data.
    """
    check_dtype(dtype, next(iter(model.collect_params().values())).list_ctx()[0])
    compiled = InferenceModel(model, dtype, attention)
    if dtype == "int8":
        compiled.calibrate(calibration)
        if not cpu_flags().intersection(EXACT_INT8_FLAGS):
            warnings.warn("this CPU has no VNNI: int8 adds products in pairs of 16 bits, which can overflow; "
                          "hold the accuracy on your task against float32's "
                          "(python -m benchmarks.int8_accuracy)",
                          stacklevel=2)
    return compiled
