"""A block that computes one sub-network with the full network's own parameters, sliced in its graph.

Shapes: B batch, T length, H hidden, D layers of the full network, n of the sub-network, C outputs.
"""
from __future__ import annotations

from typing import Any, ContextManager, List, Sequence, Tuple

from bort.architecture import Architecture
from bort.backend.mxnet import gluon
from bort.dynabert.grid import Multipliers
from bort.models import Classifier
from bort.models.layers import TransformerCell
from bort.models.precision import Linear, linear, products_in


class SlicedLinear(Linear):
    """The first rows and columns of another linear layer's weight, cut in the graph: nothing is copied."""

    def __init__(self, whole: Linear, rows: int, columns: int, **kwargs: Any) -> None:
        full_rows, full_columns = whole.weight.shape
        super().__init__(full_rows, in_units=full_columns, params=whole.params, **kwargs)
        self.product_dtype = whole.product_dtype
        self._rows, self._columns = rows, columns
        self._cut_rows, self._cut_columns = rows < full_rows, columns < full_columns

    def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any = None) -> Any:
        """``x`` (..., columns); returns (..., rows)."""
        if self._cut_rows:
            weight = F.slice_axis(weight, axis=0, begin=0, end=self._rows)
            bias = F.slice_axis(bias, axis=0, begin=0, end=self._rows)
        if self._cut_columns:
            weight = F.slice_axis(weight, axis=1, begin=0, end=self._columns)
        return linear(F, x, weight, bias, self._rows, self.product_dtype)


def sliced_cell(cell: TransformerCell, architecture: Architecture, dropout: float,
                epsilon: float) -> TransformerCell:
    """A layer of a sub-network: the family's own layer whose linear layers are slices of ``cell``'s."""
    hidden, inner = architecture.hidden, architecture.intermediate
    units = architecture.heads * architecture.head_size
    small = TransformerCell(architecture, dropout, epsilon)
    attention, own = small.attention_cell, cell.attention_cell
    attention.proj_query = SlicedLinear(own.proj_query, units, hidden)
    attention.proj_key = SlicedLinear(own.proj_key, units, hidden)
    attention.proj_value = SlicedLinear(own.proj_value, units, hidden)
    small.proj = SlicedLinear(cell.proj, hidden, units)
    small.ffn.ffn_1 = SlicedLinear(cell.ffn.ffn_1, inner, hidden)
    small.ffn.ffn_2 = SlicedLinear(cell.ffn.ffn_2, hidden, inner)
    small.layer_norm, small.ffn.layer_norm = cell.layer_norm, cell.ffn.layer_norm
    return small


class SubEncoder(gluon.HybridBlock):
    """All hidden states of a sub-network of an ``Encoder``, whose parameters it shares."""

    def __init__(self, encoder: Any, full: Architecture, chosen: Multipliers, dropout: float, epsilon: float,
                 **kwargs: Any) -> None:
        super().__init__(params=encoder.params, **kwargs)
        self._enter, self._heads = encoder.enter, full.heads
        self._kept = chosen.architecture(full).heads
        self.dropout, self.layer_norm = encoder.dropout, encoder.layer_norm
        self.position_weight = self.params.get("position_weight")
        self.cells = gluon.nn.HybridSequential(prefix="")
        cells = list(encoder.transformer_cells)
        for layer in chosen.layers(full):
            self.cells.add(sliced_cell(cells[layer], chosen.architecture(full), dropout, epsilon))

    def hybrid_forward(self, F: Any, x: Any, valid_length: Any, position_weight: Any) -> Tuple[Any, ...]:
        """``x`` (B, T, H) embedded words, ``valid_length`` (B,);
        returns n + 1 arrays (B, T, H), embeddings first."""
        x, score_mask = self._enter(F, x, valid_length, position_weight)                  # (B*A, T, T)
        if self._kept < self._heads:  # alike for every head
            score_mask = F.reshape(score_mask, shape=(-4, -1, self._heads, 0, 0))
            score_mask = F.slice_axis(score_mask, axis=1, begin=0, end=self._kept)
            score_mask = F.reshape(score_mask, shape=(-3, 0, 0))
        states = [x]
        for cell in self.cells:
            states.append(cell(states[-1], score_mask))
        return tuple(states)


class SubNetwork:
    """One sub-network of a classifier, compiled once; called like a classifier, for scoring too.

    Args:
        model: the full network, rewired; its parameters are shared.
        chosen: what to keep of it.
    """

    def __init__(self, model: Classifier, chosen: Multipliers) -> None:
        body = model.bort
        self.model, self.chosen = model, chosen
        self.architecture = chosen.architecture(body.architecture)
        self.num_outputs, self.max_length = model.num_outputs, body.max_length
        self.vocab_size = body.vocab_size
        self._encoder = SubEncoder(body.encoder, body.architecture, chosen, body.dropout, body.layer_norm_eps)
        self._encoder.hybridize(static_alloc=True)

    def products_in(self, dtype: str) -> ContextManager[None]:
        """See :func:`bort.models.precision.products_in`; other sub-networks are not concerned."""
        return products_in(self._encoder, dtype)

    def states(self, token_ids: Any, valid_length: Any) -> List[Any]:
        """Hidden states, n + 1 arrays (B, T, H), embeddings first; rows of padding are undefined."""
        return list(self._encoder(self.model.bort.embed(token_ids), valid_length))

    def logits(self, states: Sequence[Any]) -> Any:
        """(B, C) from the last hidden states."""
        first = states[-1].slice_axis(axis=1, begin=0, end=1).reshape((0, -1))
        return self.model.classifier(first)

    def __call__(self, token_ids: Any, valid_length: Any) -> Any:
        """``token_ids`` (B, T) integers, ``valid_length`` (B,) float32; returns logits or values (B, C)."""
        return self.logits(self.states(token_ids, valid_length))
