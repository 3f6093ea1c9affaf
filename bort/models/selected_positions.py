"""Last hidden states at some positions only, for training: what the last layer would compute elsewhere is
left out.

The masked language model reads 15% of the positions and a classifier the first one. Of the last layer only
the keys and values are needed everywhere; queries, scores, output projection, both LayerNorms and the
feed-forward network only where somebody reads. Values and gradients are those of the whole network.

Shapes: B batch, T length, H hidden, A heads, N positions that are read, M the most of one sequence.
"""
from __future__ import annotations

from typing import Any, Tuple

import numpy as np

from bort.backend.mxnet import gluon, nd


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
        """``x`` (B, T, H), ``valid_length`` (B,);
        returns (B, T, H) and the mask that the last layer wants too."""
        x, score_mask = self._enter(F, x, valid_length, position_weight)
        for cell in self.cells:
            x = cell(x, score_mask)
        return x, score_mask


class LastLayer(gluon.HybridBlock):
    """The last layer of an ``Encoder`` at some positions.
    It is a graph of its own because N changes at every step."""

    def __init__(self, encoder: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cell = list(encoder.transformer_cells)[-1]

    def hybrid_forward(self, F: Any, x: Any, score_mask: Any, rows: Any, asking: Any, places: Any) -> Any:
        """``x`` (B, T, H), ``score_mask`` (B*A, M, T), indices as :func:`by_sequence` makes them; returns (N,
        H)."""
        cell, flat = self.cell, F.reshape(x, shape=(-3, 0))                      # (B*T, H)
        # Without BlockGrad, MXNet's static memory puts the mask's gradient, an output, where that of the
        # scores still is.
        context = cell.attention_cell.attend(F, F.take(flat, asking), x, F.BlockGrad(score_mask))
        attended = F.take(F.reshape(context, shape=(-3, 0)), places)
        return cell.ffn(cell.layer_norm(cell.dropout(cell.proj(attended)) + F.take(flat, rows)))


def by_sequence(rows: np.ndarray, batch: int, length: int) -> Tuple[np.ndarray, np.ndarray]:
    """Rows dealt out to their sequences, which the attention products want to have equally many of.

    Args:
        rows: (N,) integers, b * T + t.

    Returns:
        ``asking`` (B, M): each sequence's rows, filled up with its first position; and ``places`` (N,): where
        in ``asking``, counted through, each row is.
    """
    sequence = rows // length
    counts = np.bincount(sequence, minlength=batch)
    order = np.argsort(sequence, kind="stable")
    within = np.empty(len(rows), dtype=np.int64)
    within[order] = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    most = max(1, int(counts.max()))
    asking = np.repeat(np.arange(batch) * length, most).reshape(batch, most)
    asking[sequence, within] = rows
    return asking, sequence * most + within


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
        asking, places = by_sequence(rows.asnumpy().astype(np.int64), *x.shape[:2])
        x, score_mask = self._lower(x, valid_length)
        # alike for every query
        score_mask = score_mask.detach().slice_axis(axis=1, begin=0, end=asking.shape[1])
        return self._last(x, score_mask, rows, *(nd.array(array, dtype="int32", ctx=x.context)
                                                 for array in (asking, places)))
