"""Last hidden states at some positions only, for training: what the last layer would compute elsewhere is left out.

The masked language model reads 15% of the positions and a classifier the first one. Of the last layer, the queries, keys
and values are needed everywhere; the output projection, both LayerNorms and the feed-forward network, some two thirds of
its operations, only where somebody reads. Values and gradients are those of the whole network.

Shapes: B batch, T length, H hidden, N positions that are read.
"""
from __future__ import annotations

from typing import Any

from bort.compat import gluon


class LowerLayers(gluon.HybridBlock):
    """All of an ``Encoder`` but its last layer, whose parameters it shares."""

    def __init__(self, encoder: Any, **kwargs: Any) -> None:
        super().__init__(params=encoder.params, **kwargs)
        self._enter = encoder.enter
        self.dropout, self.layer_norm = encoder.dropout, encoder.layer_norm
        self.position_weight = self.params.get("position_weight")
        self.cells = gluon.nn.HybridSequential(prefix="")
        self.cells.add(*list(encoder.transformer_cells)[:-1])

    def hybrid_forward(self, F: Any, x: Any, valid_length: Any, position_weight: Any) -> Any:
        """``x`` (B, T, H), ``valid_length`` (B,); returns (B, T, H) and the mask that the last layer wants too."""
        x, score_mask = self._enter(F, x, valid_length, position_weight)
        for cell in self.cells:
            x = cell(x, score_mask)
        return x, score_mask


class LastLayer(gluon.HybridBlock):
    """The last layer of an ``Encoder`` at some positions. It is a graph of its own because N changes at every step."""

    def __init__(self, encoder: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cell = list(encoder.transformer_cells)[-1]

    def hybrid_forward(self, F: Any, x: Any, score_mask: Any, rows: Any) -> Any:
        """``x`` (B, T, H), ``rows`` (N,) as in :meth:`SelectedStates.__call__`; returns (N, H)."""
        cell = self.cell
        # Without BlockGrad, MXNet's static memory puts the mask's gradient, an output, where that of the scores still is.
        attended = cell.attention_cell(x, F.BlockGrad(score_mask))
        attended, x = (F.take(F.reshape(array, shape=(-3, 0)), rows) for array in (attended, x))
        return cell.ffn(cell.layer_norm(cell.dropout(cell.proj(attended)) + x))


class SelectedStates:
    """An encoder's hidden states at some positions.

    Args:
        encoder: a :class:`bort.models.bert.Encoder`; its parameters and blocks are shared, not copied.
        active: compile both graphs, with the flags given (see ``HybridBlock.hybridize``).
    """

    def __init__(self, encoder: Any, active: bool, **flags: Any) -> None:
        self._lower, self._last = LowerLayers(encoder), LastLayer(encoder)
        if active:
            self._lower.hybridize(True, **flags)
            self._last.hybridize(True, **flags)

    def __call__(self, x: Any, valid_length: Any, rows: Any) -> Any:
        """Run the encoder.

        Args:
            x: (B, T, H) embedded words.
            valid_length: (B,) float32.
            rows: (N,) integers, the positions counted through the batch: b * T + t; none of padding.

        Returns:
            (N, H), differentiable.
        """
        x, score_mask = self._lower(x, valid_length)
        return self._last(x, score_mask.detach(), rows)
