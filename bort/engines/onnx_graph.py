"""The ONNX form of a model, built from its parameters with the ``onnx`` package.

Standard operators of opset 17 only; dynamic batch and length; inputs and outputs as in ``bort.models``:

    token_ids (B, T) int64, valid_length (B,) float32 [, masked_positions (B, M) int64]
    encoder: sequence (B, T, H)     classifier: scores (B, C)     mlm: logits (B, M, V)

and for engines only, with rows (N,) int64, positions counted through the batch, as third input:

    masked_states: states (N, H), what the MLM head multiplies with the vocabulary matrix

Q, K and V are one product, their scale is in the weights, and a classifier's last layer computes position 0
only. OpenVINO gets another form of the same graph (:func:`split_weights`). Nothing here imports MXNet.
"""
from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from bort.architecture import Architecture
from bort.checkpoints.locate import plain_name
from bort.errors import BortError

PARTS = ("encoder", "classifier", "mlm")
"""What a file may hold. Engines also build the part "masked_states"."""
ONLY = {"classifier": "first", "masked_states": "rows"}
"""Part to the positions at which its last layer is computed beyond the keys and values, where these are not
all."""
OPSET = 17
IR_VERSION = 8
MASKED_SCORE = -1e4
HEAD_PREFIX = "head_"
"""Nodes of the classification and MLM heads; quantization leaves them in float32."""
LARGEST = 1e30
"""Beyond any hidden value of a network that is of use; see :func:`split_weights`."""
LEAST_WEIGHTS = 1024
"""Elements from which on an array is one of :func:`split_weights`."""


class Network(NamedTuple):
    """What the graph depends on besides the parameters; ``head`` is a kind of ``bort.models.HEADS`` or
    None."""

    architecture: Architecture
    vocab_size: int
    max_length: int
    epsilon: float
    mlm_epsilon: float
    head: Optional[str] = None
    token_types: int = 0
    separator_id: Optional[int] = None


def network_of(model: Any) -> Network:
    """The :class:`Network` of a ``Bert`` or of a ``Classifier``."""
    body = model.body
    return Network(body.architecture, body.vocab_size, body.max_length, body.layer_norm_eps,
                   body.mlm_layer_norm_eps, getattr(model, "head", None), body.token_types,
                   body.separator_id)


def build(network: Network, arrays: Mapping[str, np.ndarray], part: str, metadata: Mapping[str, str]) -> Any:
    """The ``onnx.ModelProto`` of one part.

    Args:
        arrays: parameters named as in ``bort.checkpoints.parameter_arrays``, with or without ``bort.`` in
            front.
        metadata: strings stored in the file (labels, padding id, ...).

    Raises:
        BortError: the part is unknown, or a classifier without a head is asked for.
    """
    if part not in (*PARTS, "masked_states"):
        raise BortError(f"part {part!r} is unknown; choose one of {', '.join(PARTS)}")
    return _builder(network, arrays, part).build(metadata)


def split_weights(network: Network, arrays: Mapping[str, np.ndarray], part: str, clip: bool = False
                  ) -> Tuple[Any, Dict[str, np.ndarray]]:
    """The same graph for OpenVINO: without its large arrays, which are inputs of it instead, and these by
    name.

    OpenVINO can take weights where they lie. Copying them in and out of a ``ModelProto`` takes most of the
    time that reading one takes, and bounds it to 2 GiB. Its form of the graph has Q, K and V as three
    products, and K turned in two steps, which OpenVINO makes part of the attention's product: 3 % less time
    in float32 and bfloat16, 6 % in int8 (Bort, 128 tokens, AVX-512).

    Args:
        clip: let products that nothing follows be followed by a Clip at +-:data:`LARGEST`. In float32
            OpenVINO computes products alone by MLAS, and products with an activation by oneDNN, which takes
            5 to 8 % less of the network's time, Clip included.
    """
    builder = _builder(network, arrays, part)
    builder.for_openvino, builder.clip = True, clip
    model = builder.build({}, split=True)
    return model, builder.large()


def _builder(network: Network, arrays: Mapping[str, np.ndarray], part: str) -> "_Builder":
    if part == "classifier" and network.head is None:
        raise BortError("this model has no classification head: export its encoder or mlm part")
    plain = {plain_name(name): np.asarray(array, "float32") for name, array in arrays.items()}
    return _Builder(network, plain, part)


class _Builder:
    """Collects nodes and initializers; every method returns the name of a value."""

    def __init__(self, network: Network, arrays: Dict[str, np.ndarray], part: str) -> None:
        self.network, self.arrays, self.part = network, arrays, part
        self.nodes: List[Any] = []
        self.constants: Dict[str, np.ndarray] = {}
        self.hidden, self.heads = network.architecture.hidden, network.architecture.heads
        self.for_openvino = self.clip = False
        self.head_size, self.units = network.architecture.head_size, network.architecture.attention_units

    def op(self, kind: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = np.asarray(value, order="C")
        return name

    def integers(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, dtype="int64"))

    def linear(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """``x`` @ weight.T + bias, weight (O, I)."""
        product = self.op("MatMul", f"{name}_product", [x, self.constant(f"{name}_weight", weight.T)])
        return self.op("Add", name, [product, self.constant(f"{name}_bias", bias)])

    def stored(self, x: str, name: str, source: str) -> str:
        return self.linear(x, name, self.arrays[f"{source}.weight"], self.arrays[f"{source}.bias"])

    def clipped(self, x: str) -> str:
        """``x`` where nothing is to be clipped, see :func:`split_weights`."""
        if not self.clip:
            return x
        return self.op("Clip", f"{x}_clipped", [x, self.constant("lowest", np.array(-LARGEST, "float32")),
                                                self.constant("largest", np.array(LARGEST, "float32"))])

    def norm(self, x: str, name: str, source: str, epsilon: float) -> str:
        return self.op("LayerNormalization", name, [
            x, self.constant(f"{name}_gamma", self.arrays[f"{source}.gamma"]),
            self.constant(f"{name}_beta", self.arrays[f"{source}.beta"])], axis=-1, epsilon=epsilon)

    def gelu(self, x: str, name: str) -> str:
        root = self.constant("root_two", np.array(math.sqrt(2), "float32"))
        erf = self.op("Erf", f"{name}_erf", [self.op("Div", f"{name}_scaled", [x, root])])
        grown = self.op("Add", f"{name}_grown", [erf, self.constant("one", np.array(1, "float32"))])
        return self.op("Mul", name, [self.op("Mul", f"{name}_product", [x, grown]),
                                     self.constant("half", np.array(0.5, "float32"))])

    def large(self) -> Dict[str, np.ndarray]:
        """The weights of :func:`split_weights`."""
        return {name: value for name, value in self.constants.items()
                if value.dtype == np.float32 and value.size >= LEAST_WEIGHTS}

    def build(self, metadata: Mapping[str, str], split: bool = False) -> Any:
        from onnx import TensorProto, helper, numpy_helper

        x = self.embed()
        depth = self.network.architecture.depth
        for index in range(depth):
            x = self.layer(index, x, ONLY.get(self.part, "") if index == depth - 1 else "")
        inputs = [helper.make_tensor_value_info("token_ids", TensorProto.INT64, ["batch", "length"]),
                  helper.make_tensor_value_info("valid_length", TensorProto.FLOAT, ["batch"])]
        shape: List[Union[str, int, None]] = ["batch", "length", self.hidden]
        if self.part == "classifier":
            output = self.classify(x)
            shape = ["batch", len(self.arrays[f"classifier.{self.last_layer()}.bias"])]
        elif self.part == "mlm":
            inputs.append(helper.make_tensor_value_info("masked_positions", TensorProto.INT64,
                                                        ["batch", "masked"]))
            output, shape = self.vocabulary_logits(x), ["batch", "masked", self.network.vocab_size]
        elif self.part == "masked_states":
            inputs.append(helper.make_tensor_value_info("rows", TensorProto.INT64, ["count"]))
            output = self.states_at_rows(x)
            shape = ["count", self.hidden]
        else:
            real = self.op("Cast", "real", ["inside"], to=TensorProto.FLOAT)
            rows = self.op("Unsqueeze", "real_rows", [real, self.integers("last", -1)])
            output = self.op("Mul", "sequence", [x, rows])
        apart = self.large() if split else {}
        inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
                   for name, value in apart.items()]
        kept = [numpy_helper.from_array(value, name) for name, value in self.constants.items()
                if name not in apart]
        graph = helper.make_graph(self.nodes, f"bort_{self.part}", inputs,
                                  [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)], kept)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)],
                                  ir_version=IR_VERSION, producer_name="bort")
        helper.set_model_props(model, dict(metadata))
        return model

    def embed(self) -> str:
        vocabulary = self.constant("word_weight", self.arrays["word_embed.0.weight"])
        words = self.op("Gather", "words", [vocabulary, "token_ids"])
        if self.network.token_types:
            words = self.op("Add", "typed_words", [words, self.types()])
        extent = self.op("Shape", "extent", ["token_ids"])
        self.op("Gather", "length", [extent, self.constant("index_one", np.array(1, "int64"))])
        ends = self.op("Unsqueeze", "ends", ["length", self.integers("first_axis", 0)])
        table = self.constant("position_weight", self.arrays["encoder.position_weight"])
        positions = self.op("Slice", "positions", [table, self.integers("start", 0), ends,
                                                   self.integers("axis_zero", 0)])
        steps = self.op("Range", "steps", [self.constant("zero", np.array(0, "int64")), "length",
                                           self.constant("step", np.array(1, "int64"))])
        counts = self.op("Unsqueeze", "counts", ["valid_length", self.integers("second_axis", 1)])
        self.op("Less", "inside", [self.op("Cast", "float_steps", [steps], to=1), counts])          # (B, T)
        added = self.op("Where", "padding", ["inside", self.constant("float_zero", np.array(0, "float32")),
                                             self.constant("masked_score",
                                                           np.array(MASKED_SCORE, "float32"))])
        self.op("Unsqueeze", "score_mask", [added, self.integers("middle_axes", 1, 2)])  # (B, 1, 1, T)
        return self.norm(self.op("Add", "embedding_sum", [words, positions]), "embedding",
                         "encoder.layer_norm", self.network.epsilon)

    def types(self) -> str:
        """What ``bort.batching.token_types`` computes, embedded: (B, T, H)."""
        separator = -1 if self.network.separator_id is None else self.network.separator_id
        separators = self.op("Cast", "separators", [self.op("Equal", "is_separator", [
            "token_ids", self.constant("separator_id", np.array(separator, "int64"))])], to=7)
        before = self.op("CumSum", "separators_before", [
            separators, self.constant("cumulated_axis", np.array(1, "int64"))], exclusive=1)
        last = self.constant("last_type", np.array(self.network.token_types - 1, "int64"))
        table = self.constant("token_type_weight", self.arrays["token_type_embed.0.weight"])
        return self.op("Gather", "types", [table, self.op("Min", "token_types", [before, last])])

    def split_heads(self, x: str, name: str, axes: Sequence[int]) -> str:
        shape = self.integers("head_shape", 0, -1, self.heads, self.head_size)
        parts = self.op("Reshape", f"{name}_split", [x, shape])
        if self.for_openvino and axes[-1] == 1:
            rows = self.op("Transpose", f"{name}_rows", [parts], perm=[0, 2, 1, 3])
            return self.op("Transpose", f"{name}_heads", [rows], perm=[0, 1, 3, 2])
        return self.op("Transpose", f"{name}_heads", [parts], perm=list(axes))

    def layer(self, index: int, x: str, only: str = "") -> str:
        """(B, T, H) to (B, T, H); or to (B, 1, H), position 0, with ``only`` "first", and to (N, H), the
        positions asked for, with "rows"."""
        here, cell = f"layer{index}_", f"encoder.transformer_cells.{index}."
        scale = math.sqrt(self.head_size)
        given = {name: {part: self.arrays[f"{cell}attention_cell.proj_{name}.{part}"] for part in ("weight",
                                                                                                   "bias")}
                 for name in ("query", "key", "value")}
        given["query"] = {part: array / np.float32(scale) for part, array in given["query"].items()}
        kept = x
        if only == "first":
            kept = self.op("Slice", f"{here}first", [x, self.integers("start", 0), self.integers("stop", 1),
                                                     self.integers("axis_one", 1)])
            query, = self.projections(kept, f"{here}q", [given["query"]])
            key, value = self.projections(x, f"{here}kv", [given["key"], given["value"]])
        else:
            query, key, value = self.projections(x, f"{here}qkv", list(given.values()))
        scores = self.op("MatMul", f"{here}scores", [self.split_heads(query, f"{here}query", (0, 2, 1, 3)),
                                                     self.split_heads(key, f"{here}key", (0, 2, 3, 1))])
        masked = self.op("Add", f"{here}masked_scores", [scores, "score_mask"])  # (B, A, T, T)
        weights = self.op("Softmax", f"{here}attention", [masked], axis=-1)
        context = self.op("MatMul", f"{here}context",
                          [weights, self.split_heads(value, f"{here}value", (0, 2, 1, 3))])
        rows = self.op("Transpose", f"{here}context_rows", [context], perm=[0, 2, 1, 3])
        merged = self.op("Reshape", f"{here}merged", [rows, self.integers("merged_shape", 0, 0, self.units)])
        if only == "rows":
            merged, kept = (self.at_rows(values, f"{here}{name}", width) for values, name, width in (
                (merged, "merged", self.units), (x, "kept", self.hidden)))
        attended = self.clipped(self.stored(merged, f"{here}proj", f"{cell}proj"))
        x = self.norm(self.op("Add", f"{here}sum1", [attended, kept]), f"{here}norm1", f"{cell}layer_norm",
                      self.network.epsilon)
        inner = self.gelu(self.stored(x, f"{here}ffn1", f"{cell}ffn.ffn_1"), f"{here}gelu")
        outer = self.clipped(self.stored(inner, f"{here}ffn2", f"{cell}ffn.ffn_2"))
        return self.norm(self.op("Add", f"{here}sum2", [outer, x]), f"{here}norm2", f"{cell}ffn.layer_norm",
                         self.network.epsilon)

    def projections(self, x: str, name: str, parts: Sequence[Mapping[str, np.ndarray]]) -> List[str]:
        """One product for several matrices, and a Split for its parts; or a product for each."""
        from onnx import helper

        if self.for_openvino or len(parts) == 1:
            return [self.clipped(self.linear(x, f"{name}_{number}", part["weight"], part["bias"]))
                    for number, part in enumerate(parts)]
        joined = self.linear(x, name, np.concatenate([part["weight"] for part in parts]),
                             np.concatenate([part["bias"] for part in parts]))
        outputs = [f"{name}_{number}" for number in range(len(parts))]
        sizes = self.integers(f"sizes_{len(parts)}", *[self.units] * len(parts))
        self.nodes.append(helper.make_node("Split", [joined, sizes], outputs, name=f"{name}_split", axis=-1))
        return outputs

    def last_layer(self) -> int:
        return 1 if self.network.head == "linear" else 3

    def classify(self, x: str) -> str:
        x = self.op("Reshape", f"{HEAD_PREFIX}first", [x, self.integers("flat_shape", -1, self.hidden)])
        if self.network.head != "linear":
            x = self.stored(x, f"{HEAD_PREFIX}dense", "classifier.1")
            if self.network.head == "pooled":
                x = self.op("Tanh", f"{HEAD_PREFIX}tanh", [x])
        x = self.stored(x, f"{HEAD_PREFIX}out", f"classifier.{self.last_layer()}")
        return self.op("Identity", "scores", [x])

    def vocabulary_logits(self, x: str) -> str:
        # (B, M, 1)
        indices = self.op("Unsqueeze", "gather_rows", ["masked_positions", self.integers("last", -1)])
        # The rows of padding are zero in the model, and so they are for whoever asks for one.
        real = self.op("Unsqueeze", "real_rows", [self.op("Cast", "real", ["inside"], to=1),
                                                  self.integers("last", -1)])
        x = self.op("GatherND", f"{HEAD_PREFIX}hidden", [self.op("Mul", "sequence", [x, real]), indices],
                    batch_dims=1)
        x = self.masked_lm_dense(x)
        product = self.op("MatMul", f"{HEAD_PREFIX}product", [
            x, self.op("Transpose", f"{HEAD_PREFIX}words", ["word_weight"], perm=[1, 0])])
        return self.op("Add", "logits", [product, self.constant("vocab_bias", self.arrays["decoder.3.bias"])])

    def states_at_rows(self, x: str) -> str:
        return self.op("Identity", "states", [self.masked_lm_dense(x)])

    def at_rows(self, x: str, name: str, width: int) -> str:
        """(B, T, ``width``) to (N, ``width``) at the positions ``rows``."""
        flat = self.op("Reshape", f"{name}_flat", [x, self.integers(f"{name}_flat_shape", -1, width)])
        return self.op("Gather", f"{name}_at_rows", [flat, "rows"], axis=0)

    def masked_lm_dense(self, x: str) -> str:
        x = self.gelu(self.stored(x, f"{HEAD_PREFIX}dense", "decoder.0"), f"{HEAD_PREFIX}gelu")
        return self.norm(x, f"{HEAD_PREFIX}norm", "decoder.2", self.network.mlm_epsilon)
