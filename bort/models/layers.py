"""The layers of the family, written for what MXNet is fast at on a CPU.

Shapes: B batch, T length, A heads, d units of a head, H hidden (A*d, or more in a network cut out of a wider
one), I intermediate. Attribute names give the parameter names of the released checkpoints
(``attention_cell.proj_query.weight``, ``ffn.layer_norm.gamma``, ...): they are part of the file format.
"""
from __future__ import annotations

import math
from typing import Any

from bort.architecture import Architecture
from bort.backend.mxnet import gluon
from bort.models.precision import Linear

MASKED_SCORE = -1e4
"""Added to the score of a padded key: far below any real score, and finite in float16 too."""


class LayerNorm(gluon.HybridBlock):
    """Layer normalization over the last axis: (x - mean) / sqrt(var + eps) * gamma + beta.

    MXNet's own operator spends thirty times its forward pass in the backward pass, which reduces over rows
    one element at a time. The same function out of what is fast here in both directions trains several times
    faster and is equal to rounding: sums over rows and copies along them are matrix products with vectors,
    all else is between arrays of one shape. (``bort.engines.mxnet_compiled`` uses MXNet's operator, as
    inference needs only the forward pass.)
    """

    def __init__(self, units: int, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self._units = units
        with self.name_scope():
            self.gamma = self.params.get("gamma", shape=(units,), init="ones")
            self.beta = self.params.get("beta", shape=(units,), init="zeros")

    def hybrid_forward(self, F: Any, x: Any, gamma: Any, beta: Any) -> Any:
        units = self._units
        rows = F.reshape(x, shape=(-1, units))                                    # (B*T, H)
        ones = F.BlockGrad(F.ones_like(gamma))
        average = F.reshape(ones / units, shape=(1, units))

        def row_mean(values: Any) -> Any:                                         # (B*T, H) -> (B*T, 1)
            return F.FullyConnected(values, average, no_bias=True, num_hidden=1)

        def outer(column: Any, row: Any) -> Any:                                  # (B*T, 1), (H,) -> (B*T, H)
            return F.FullyConnected(column, F.reshape(row, shape=(units, 1)), no_bias=True, num_hidden=units)

        mean = row_mean(rows)
        centred = rows + outer(mean, -ones)
        inverse_deviation = F.rsqrt(row_mean(F.square(centred)) + self.epsilon)   # (B*T, 1)
        column = F.BlockGrad(F.ones_like(mean))
        return F.reshape_like(centred * outer(inverse_deviation, gamma) + outer(column, beta), x)


class SelfAttention(gluon.HybridBlock):
    """Multi-head self-attention without its output projection (equation 7).

    Three matrix products instead of one over concatenated weights: MXNet would concatenate again
    at every call.
    """

    def __init__(self, architecture: Architecture, dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        hidden, units = architecture.hidden, architecture.attention_units
        self._heads = architecture.heads
        self._scale = 1.0 / math.sqrt(architecture.head_size)
        with self.name_scope():
            self.proj_query = Linear(units, in_units=hidden, prefix="query_")
            self.proj_key = Linear(units, in_units=hidden, prefix="key_")
            self.proj_value = Linear(units, in_units=hidden, prefix="value_")
            self.dropout = gluon.nn.Dropout(dropout)

    def _split(self, F: Any, x: Any) -> Any:
        x = F.reshape(x, shape=(0, 0, -4, self._heads, -1))                     # (B, T, A, d)
        return F.reshape(F.transpose(x, axes=(0, 2, 1, 3)), shape=(-3, 0, 0))   # (B*A, T, d)

    def hybrid_forward(self, F: Any, x: Any, score_mask: Any) -> Any:
        """``x`` (B, T, H), ``score_mask`` (B*A, T, T) added to the scores; returns (B, T, A*d)."""
        return self.attend(F, x, x, score_mask)

    def attend(self, F: Any, asking: Any, x: Any, score_mask: Any) -> Any:
        """What ``asking`` (B, M, H) draws from ``x`` (B, T, H), with a mask (B*A, M, T); returns (B, M,
        A*d)."""
        query = self._split(F, self.proj_query(asking) * self._scale)
        key = self._split(F, self.proj_key(x))
        value = self._split(F, self.proj_value(x))
        scores = F.batch_dot(query, key, transpose_b=True) + score_mask         # (B*A, M, T)
        weights = self.dropout(F.softmax(scores, axis=-1))
        context = F.reshape(F.batch_dot(weights, value), shape=(-4, -1, self._heads, 0, 0))
        return F.reshape(F.transpose(context, axes=(0, 2, 1, 3)), shape=(0, 0, -3))


class FeedForward(gluon.HybridBlock):
    """The position-wise network of a layer with its residual and LayerNorm (equation 5); erf-GELU, no dropout
    after it."""

    def __init__(self, architecture: Architecture, dropout: float, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        hidden, inner = architecture.hidden, architecture.intermediate
        with self.name_scope():
            self.ffn_1 = Linear(inner, in_units=hidden, prefix="ffn_1_")
            self.activation = gluon.nn.GELU()
            self.ffn_2 = Linear(hidden, in_units=inner, prefix="ffn_2_")
            self.dropout = gluon.nn.Dropout(dropout)
            self.layer_norm = LayerNorm(hidden, epsilon)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        """``x`` (B, T, H); returns (B, T, H)."""
        return self.layer_norm(self.dropout(self.ffn_2(self.activation(self.ffn_1(x)))) + x)


class TransformerCell(gluon.HybridBlock):
    """One post-LayerNorm encoder layer (equations 5 and 6)."""

    def __init__(self, architecture: Architecture, dropout: float, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        hidden = architecture.hidden
        with self.name_scope():
            self.attention_cell = SelfAttention(architecture, dropout)
            self.proj = Linear(hidden, in_units=architecture.attention_units,
                                       prefix="proj_")
            self.dropout = gluon.nn.Dropout(dropout)
            self.layer_norm = LayerNorm(hidden, epsilon)
            self.ffn = FeedForward(architecture, dropout, epsilon)

    def hybrid_forward(self, F: Any, x: Any, score_mask: Any) -> Any:
        """``x`` (B, T, H), ``score_mask`` (B*A, T, T); returns (B, T, H)."""
        attended = self.dropout(self.proj(self.attention_cell(x, score_mask)))
        return self.ffn(self.layer_norm(attended + x))


class TiedProjection(gluon.HybridBlock):
    """Hidden states to vocabulary logits with the word embedding's own matrix and a bias of its own."""

    def __init__(self, embedding: gluon.nn.Embedding, vocab_size: int, **kwargs: Any) -> None:
        super().__init__(params=embedding.params, **kwargs)
        self._vocab_size = vocab_size
        with self.name_scope():
            self.weight = self.params.get("weight")
            self.bias = self.params.get("bias", shape=(vocab_size,), init="zeros")

    def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any) -> Any:
        """``x`` (..., H); returns (..., V)."""
        return F.FullyConnected(x, weight, bias, num_hidden=self._vocab_size, flatten=False)
