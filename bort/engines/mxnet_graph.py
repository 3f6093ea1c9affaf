"""The network once more, as the symbolic graph that inference runs: same function, same parameters, other
operators.

What differs from ``bort.models.bert`` and why (figures: ``benchmarks/results``):

* Q, K and V are one product with interleaved weights, which MXNet's subgraph pass fuses with the attention
  products.
* The score mask exists only when a batch is padded, and is gathered to the full shape of the scores: adding
  arrays of one shape is a oneDNN kernel, broadcasting is not. Positions are gathered for the same reason.
* LayerNorm and softmax are MXNet's own operators, whose slow part is the backward pass.
* Few tokens: linear layers become 1x1 convolutions, whose weights oneDNN packs once; many tokens: its plain
  product is as fast and needs no transposition.
* A classifier reads position 0 only, so the last layer computes its queries, output and feed-forward there
  only.

Shapes: B batch, T length, M masked positions, A heads, U units of all heads (H, or fewer), H hidden,
I intermediate, V vocabulary, C outputs.
Activations are (T, B, H), the order that MXNet's interleaved attention operators want. Parameter names here
are internal: they are never saved.
"""
from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Union

import numpy as np

from bort.architecture import Architecture
from bort.backend.mxnet import mx
from bort.batching import token_types
from bort.models.bert import Bert
from bort.models.classifier import Classifier
from bort.models.layers import MASKED_SCORE

CONVOLUTION_TOKENS = 128
"""Batches of at most this many tokens (padding included) may run their linear layers as convolutions."""
CONVOLUTION_MULTIPLE = 16
"""... if their tokens are a multiple of this: every graph holds packed weights of its own, so there must be
few."""
MAX_PACKED_BYTES = 512 << 20
FORMS = ("product", "convolution", "bfloat16")
"""How a graph computes the linear layers of the encoder: float32 products, float32 1x1 convolutions with
weights of the shape (O, I, 1, 1), or products of bfloat16 weights, biases and activations. Heads are always
float32 products."""
LAYER_MATRICES = ("qkv", "query", "kv", "proj", "ffn1", "ffn2")
HEAD_MATRICES = ("query", "key", "value")


class Shape(NamedTuple):
    """What a graph is compiled for. ``masked`` is M, or 0 without the MLM head."""

    batch: int
    length: int
    padded: bool
    masked: int = 0


class Spec(NamedTuple):
    """Everything of a model but its parameters that its graph depends on."""

    architecture: Architecture
    vocab_size: int
    max_length: int
    epsilon: float
    mlm_epsilon: float
    head: Optional[str]
    num_outputs: int
    token_types: int = 0
    separator_id: Optional[int] = None


def spec_of(model: Union[Bert, Classifier]) -> Spec:
    """The :class:`Spec` of a ``Bert`` (``head`` None) or of a ``Classifier``."""
    bert = model.body
    head, outputs = (model.head, model.num_outputs) if isinstance(model, Classifier) else (None, 0)
    return Spec(bert.architecture, bert.vocab_size, bert.max_length, bert.layer_norm_eps,
                bert.mlm_layer_norm_eps, head, outputs, bert.token_types, bert.separator_id)


def fused_parameters(model: Union[Bert, Classifier]) -> Dict[str, Any]:
    """Arrays of the graph by name; those that need no other layout share the model's memory.

    A full layer has ``qkv`` (3U, H), rows ordered head by head as its queries, keys, values; the last layer
    of a classifier has ``query`` (U, H) and ``kv`` (2U, H) instead.
    """
    bert = model.body
    given = {name: parameter.data() for name, parameter in bert._collect_params_with_prefix().items()}
    heads, depth = bert.architecture.heads, bert.architecture.depth
    fused = {"word_weight": given["word_embed.0.weight"], "position_weight": given["encoder.position_weight"],
             "embedding_gamma": given["encoder.layer_norm.gamma"],
             "embedding_beta": given["encoder.layer_norm.beta"]}
    if bert.token_types:
        fused["token_type_weight"] = given["token_type_embed.0.weight"]
    for index in range(depth):
        cell, here = f"encoder.transformer_cells.{index}.", f"layer{index}_"
        whole = index < depth - 1 or not isinstance(model, Classifier)
        for part in ("weight", "bias"):
            wanted = HEAD_MATRICES if whole else HEAD_MATRICES[1:]
            fused[f"{here}{'qkv' if whole else 'kv'}_{part}"] = _interleave(
                [given[f"{cell}attention_cell.proj_{name}.{part}"] for name in wanted], heads)
            if not whole:
                fused[f"{here}query_{part}"] = given[f"{cell}attention_cell.proj_query.{part}"]
            for name, source in (("proj", "proj"), ("ffn1", "ffn.ffn_1"), ("ffn2", "ffn.ffn_2")):
                fused[f"{here}{name}_{part}"] = given[f"{cell}{source}.{part}"]
        for part in ("gamma", "beta"):
            fused[f"{here}norm1_{part}"] = given[f"{cell}layer_norm.{part}"]
            fused[f"{here}norm2_{part}"] = given[f"{cell}ffn.layer_norm.{part}"]
    if isinstance(model, Classifier):
        dense = [layer for layer in model.classifier if isinstance(layer, mx.gluon.nn.Dense)]
        for number, layer in enumerate(dense):
            fused[f"head{number}_weight"] = layer.weight.data()
            fused[f"head{number}_bias"] = layer.bias.data()
    else:
        fused.update({"mlm_dense_weight": given["decoder.0.weight"],
                      "mlm_dense_bias": given["decoder.0.bias"], "mlm_norm_gamma": given["decoder.2.gamma"],
                      "mlm_norm_beta": given["decoder.2.beta"],
                      "mlm_vocab_weight": given["word_embed.0.weight"],
                      "mlm_vocab_bias": given["decoder.3.bias"]})
    return fused


def _interleave(arrays: List[Any], heads: int) -> Any:
    rows, rest = arrays[0].shape[0], arrays[0].shape[1:]
    split = [array.reshape((heads, rows // heads) + rest) for array in arrays]
    return mx.nd.concat(*split, dim=1).reshape((len(arrays) * rows,) + rest)


def graph_inputs(spec: Spec, shape: Shape) -> Dict[str, np.ndarray]:
    """The inputs of a graph that depend on its shape alone: gather indices for positions and for the mask."""
    batch, length, heads = shape.batch, shape.length, spec.architecture.heads
    constants = {"position_ids": np.repeat(np.arange(length, dtype="int32"), batch).reshape(length, batch)}
    rows = np.repeat(np.arange(batch, dtype="int32"), heads)                                   # (B*A,)
    if shape.padded:
        constants["mask_rows"] = np.repeat(rows, length).reshape(batch * heads, length)
        if spec.head is not None:
            constants["first_mask_rows"] = rows.reshape(batch * heads, 1)
    return constants


def batch_inputs(spec: Spec, shape: Shape, token_ids: np.ndarray, valid_length: np.ndarray,
                 masked_positions: Optional[np.ndarray]) -> Dict[str, np.ndarray]:
    """The inputs of a graph that hold a batch: ids (B, T), lengths (B,), masked positions (B, M) or None."""
    inputs = {"token_ids": np.ascontiguousarray(token_ids.T, dtype="int32")}
    if spec.token_types:
        types = token_types(np, token_ids, spec.separator_id, spec.token_types)
        inputs["token_types"] = np.ascontiguousarray(types.T, dtype="int32")
    if shape.padded:
        past = np.arange(shape.length) >= valid_length[:, None]
        inputs["padding"] = np.where(past, MASKED_SCORE, 0).astype("float32")
        inputs["valid_length"] = valid_length.astype("float32")
    if masked_positions is not None:
        inputs["masked_rows"] = masked_positions.astype("int32") * shape.batch + np.arange(shape.batch)[:,
                                                                                                        None]
    return inputs


def build_graph(spec: Spec, shape: Shape, form: str) -> Any:
    """The symbol for one shape, with the linear layers in one of :data:`FORMS`.

    Its arguments are those of :func:`fused_parameters`, :func:`graph_inputs` and :func:`batch_inputs`.

    Returns:
        For a ``Bert`` hidden states (B, T, H), with ``shape.masked`` also logits (B, M, V); for a
        ``Classifier`` logits (B, C).
    """
    return _Builder(spec, shape, form).build()


def float32_form(spec: Spec, shape: Shape) -> str:
    """The faster float32 form for a shape, unless its packed weights take too much memory."""
    tokens = shape.batch * shape.length
    few = tokens <= CONVOLUTION_TOKENS and tokens % CONVOLUTION_MULTIPLE == 0
    return "convolution" if few and packed_bytes(spec, "convolution") <= MAX_PACKED_BYTES else "product"


def reshape_parameters(parameters: Dict[str, Any], form: str) -> Dict[str, Any]:
    """``parameters`` as the graphs of ``form`` want them: views for convolutions, copies for bfloat16."""
    if form == "product":
        return parameters
    changed = {}
    for name, array in parameters.items():
        layer, _, rest = name.partition("_")
        if layer.startswith("layer") and rest.rpartition("_")[0] in LAYER_MATRICES:
            if form == "bfloat16":
                changed[name] = mx.nd.amp_cast(array, dtype="bfloat16")
            elif name.endswith("weight"):
                changed[name] = array.reshape(array.shape + (1, 1))
    return {**parameters, **changed}


class _Builder:
    """Builds one graph; every node is named, since int8 thresholds are looked up by name."""

    def __init__(self, spec: Spec, shape: Shape, form: str) -> None:
        self.spec, self.shape, self.form = spec, shape, form
        self.hidden, self.inner = spec.architecture.hidden, spec.architecture.intermediate
        self.heads, self.units = spec.architecture.heads, spec.architecture.attention_units

    def build(self) -> Any:
        x = self.embed()
        depth = self.spec.architecture.depth
        mask = self.mask("mask_rows", self.shape.length) if self.shape.padded else None
        for index in range(depth if self.spec.head is None else depth - 1):
            x = self.finish_layer(f"layer{index}_", x, self.attend(f"layer{index}_", x, mask),
                                  self.shape.length)
        if self.spec.head is not None:
            return self.classify(self.first_position_layer(f"layer{depth - 1}_", x))
        if self.shape.padded:
            x = mx.sym.SequenceMask(x, mx.sym.var("valid_length"), use_sequence_length=True,
                                    name="zero_padding")
        rows = mx.sym.transpose(x, axes=(1, 0, 2), name="sequence")                                # (B, T, H)
        return mx.sym.Group([rows, self.vocabulary_logits(x)]) if self.shape.masked else rows

    def embed(self) -> Any:
        words = mx.sym.Embedding(mx.sym.var("token_ids"), mx.sym.var("word_weight"), name="words",
                                 input_dim=self.spec.vocab_size, output_dim=self.hidden)           # (T, B, H)
        if self.spec.token_types:
            types = mx.sym.Embedding(mx.sym.var("token_types"), mx.sym.var("token_type_weight"), name="types",
                                     input_dim=self.spec.token_types, output_dim=self.hidden)
            words = mx.sym.elemwise_add(words, types, name="typed_words")
        positions = mx.sym.Embedding(mx.sym.var("position_ids"), mx.sym.var("position_weight"),
                                     name="positions", input_dim=self.spec.max_length, output_dim=self.hidden)
        return self.norm(mx.sym.elemwise_add(words, positions, name="embedding_sum"), "embedding")

    def norm(self, x: Any, name: str, epsilon: Optional[float] = None) -> Any:
        return mx.sym.LayerNorm(x, mx.sym.var(f"{name}_gamma"), mx.sym.var(f"{name}_beta"), name=name,
                                eps=self.spec.epsilon if epsilon is None else epsilon)

    def mask(self, rows: str, queries: int) -> Any:
        """Row b of ``padding`` (B, T) for every head and query of sequence b: (B*A, queries, T)."""
        return mx.sym.Embedding(mx.sym.var(rows), mx.sym.var("padding"), name=f"{rows}_gathered",
                                input_dim=self.shape.batch, output_dim=self.shape.length)

    def linear(self, x: Any, name: str, units: int) -> Any:
        """A product with weights and bias over the last axis, in the number format of ``x``."""
        return mx.sym.FullyConnected(x, mx.sym.var(f"{name}_weight"), mx.sym.var(f"{name}_bias"), name=name,
                                     num_hidden=units, flatten=False)

    def cast(self, x: Any, dtype: str) -> Any:
        return mx.sym.amp_cast(x, dtype=dtype) if self.form == "bfloat16" else x

    def to_image(self, x: Any, name: str) -> Any:
        """(T, B, C) as a picture of one row with C channels: (1, C, 1, T*B)."""
        row = mx.sym.reshape(x, shape=(1, 1, -1, 0), reverse=True, name=f"{name}_row")
        return mx.sym.transpose(row, axes=(0, 3, 1, 2), name=f"{name}_image")

    def from_image(self, x: Any, name: str, length: int, units: int) -> Any:
        rows = mx.sym.transpose(x, axes=(0, 2, 3, 1), name=f"{name}_rows")
        return mx.sym.reshape(rows, shape=(length, self.shape.batch, units), name=f"{name}_sequence")

    def convolution(self, x: Any, name: str, units: int) -> Any:
        return mx.sym.Convolution(x, mx.sym.var(f"{name}_weight"), mx.sym.var(f"{name}_bias"), name=name,
                                  kernel=(1, 1), num_filter=units)

    def project(self, x: Any, name: str, units: int, length: int) -> Any:
        """A linear layer of the encoder, (length, B, C) to (length, B, units)."""
        if self.form == "convolution":
            return self.from_image(self.convolution(self.to_image(x, name), name, units), name, length, units)
        return self.cast(self.linear(self.cast(x, "bfloat16"), name, units), "float32")

    def feed_forward(self, here: str, x: Any, length: int) -> Any:
        """Both linear layers and the GELU between them, which stays in the layout or number format of its
        form."""
        images = self.form == "convolution"
        layer = self.convolution if images else self.linear
        x = self.to_image(x, f"{here}ffn1") if images else self.cast(x, "bfloat16")
        x = mx.sym.LeakyReLU(layer(x, f"{here}ffn1", self.inner), act_type="gelu", name=f"{here}gelu")
        x = layer(x, f"{here}ffn2", self.hidden)
        return self.from_image(x, f"{here}ffn2", length, self.hidden) if images else self.cast(x, "float32")

    def attend(self, here: str, x: Any, mask: Any) -> Any:
        """Self-attention without its output projection, (T, B, H) to (T, B, U)."""
        qkv = self.project(x, f"{here}qkv", 3 * self.units, self.shape.length)
        scores = mx.sym.contrib.interleaved_matmul_selfatt_qk(qkv, heads=self.heads, name=f"{here}scores")
        if mask is not None:
            scores = mx.sym.elemwise_add(scores, mask, name=f"{here}masked_scores")              # (B*A, T, T)
        weights = mx.sym.softmax(scores, axis=-1, name=f"{here}attention")
        return mx.sym.contrib.interleaved_matmul_selfatt_valatt(qkv, weights, heads=self.heads,
                                                                name=f"{here}context")

    def finish_layer(self, here: str, x: Any, context: Any, length: int) -> Any:
        """Output projection, residual, LayerNorm, feed-forward, residual, LayerNorm over (length, B, H)."""
        attended = self.project(context, f"{here}proj", self.hidden, length)
        x = self.norm(mx.sym.elemwise_add(attended, x, name=f"{here}sum1"), f"{here}norm1")
        outer = self.feed_forward(here, x, length)
        return self.norm(mx.sym.elemwise_add(outer, x, name=f"{here}sum2"), f"{here}norm2")

    def first_position_layer(self, here: str, x: Any) -> Any:
        """A whole layer for the queries of position 0: (T, B, H) to (1, B, H)."""
        first = mx.sym.slice_axis(x, axis=0, begin=0, end=1, name=f"{here}first")
        query = self.project(first, f"{here}query", self.units, 1)
        pair = self.project(x, f"{here}kv", 2 * self.units, self.shape.length)
        scores = mx.sym.contrib.interleaved_matmul_encdec_qk(query, pair, heads=self.heads,
                                                             name=f"{here}scores")
        if self.shape.padded:
            scores = mx.sym.elemwise_add(scores, self.mask("first_mask_rows", 1), name=f"{here}masked_scores")
        weights = mx.sym.softmax(scores, axis=-1, name=f"{here}attention")  # (B*A, 1, T)
        context = mx.sym.contrib.interleaved_matmul_encdec_valatt(pair, weights, heads=self.heads,
                                                                  name=f"{here}context")
        return self.finish_layer(here, first, context, 1)

    def classify(self, first: Any) -> Any:
        x = mx.sym.reshape(first, shape=(-1, self.hidden), name="first_position")                   # (B, H)
        if self.spec.head != "linear":
            x = self.linear(x, "head0", self.hidden)
            if self.spec.head == "pooled":
                x = mx.sym.tanh(x, name="head_tanh")
            return self.linear(x, "head1", self.spec.num_outputs)
        return self.linear(x, "head0", self.spec.num_outputs)

    def vocabulary_logits(self, x: Any) -> Any:
        rows = mx.sym.reshape(x, shape=(-3, 0), name="all_rows")                                    # (T*B, H)
        x = mx.sym.take(rows, mx.sym.var("masked_rows"), name="masked_hidden")  # (B, M, H)
        x = mx.sym.LeakyReLU(self.linear(x, "mlm_dense", self.hidden), act_type="gelu", name="mlm_gelu")
        return self.linear(self.norm(x, "mlm_norm", self.spec.mlm_epsilon), "mlm_vocab", self.spec.vocab_size)


def packed_bytes(spec: Spec, form: str) -> int:
    """Memory of the weights that a graph keeps for itself.

    A plain product reads them where they are; oneDNN's other kernels want a layout of their own, and the
    product that MXNet fuses with a GELU copies them as well.
    """
    a = spec.architecture
    before_gelu = a.depth * a.hidden * a.intermediate
    weights = a.depth * 4 * a.hidden * a.attention_units + 2 * before_gelu
    return {"product": 4 * before_gelu, "convolution": 4 * weights, "bfloat16": 2 * weights,
            "int8": weights}[form]


def graph_bytes(spec: Spec, shape: Shape, form: str) -> int:
    """An upper estimate of the memory that one compiled graph holds: intermediate results and packed
    weights."""
    tokens, a = shape.batch * shape.length, spec.architecture
    scores = shape.batch * a.heads * shape.length * shape.length
    arrays = (tokens * (8 * a.hidden + 2 * a.intermediate) + scores * (3 if shape.padded else 2)
              + shape.batch * shape.masked * spec.vocab_size)
    # bfloat16's results also exist in float32, beside each cast.
    return (10 if form == "bfloat16" else 4) * arrays + packed_bytes(spec, form)
