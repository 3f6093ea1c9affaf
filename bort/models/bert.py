"""``Bert``: the one network of the project, from Bort to the RoBERTa-large teacher, parametrized
by the 4-tuple.

Shapes: B batch, T length, M masked positions of a sequence, A heads, H hidden, I intermediate, V vocabulary.
Parameter names are those of the released checkpoints (their table is in ``bort.checkpoints``).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Tuple

import numpy as np

from bort import batching
from bort.architecture import Architecture
from bort.backend.mxnet import gluon, mx
from bort.errors import BortError
from bort.models.inputs import check_inputs, check_range
from bort.models.layers import MASKED_SCORE, LayerNorm, TiedProjection, TransformerCell
from bort.models.precision import Linear
from bort.models.selected_positions import SelectedStates

RELEASED_EPSILON = 1e-5
RELEASED_MLM_EPSILON = 1e-12


@dataclass(frozen=True)
class Options:
    """What a network has beside its architecture and vocabulary; each is a member of ``config.json`` too.

    Attributes:
        max_length: rows of the position embedding; longer inputs are an error.
        dropout: probability on embeddings, attention weights, attention output and feed-forward output.
        layer_norm_eps: epsilon of the encoder's LayerNorms; ``mlm_layer_norm_eps`` that of the MLM head (the
            release uses 1e-5 and 1e-12).
        token_types: rows of the token type embedding: 0 for RoBERTa and Bort, 2 for BERT, MiniLM, TinyBERT.
        separator_id: the token after whose first appearance the second segment, type 1, begins: ``[SEP]``.
            None gives every token type 0 unless a call says otherwise.
        pooler: carry BERT's pooler, which nothing here computes with, from and to Hugging Face.
    """

    max_length: int = 512
    dropout: float = 0.1
    layer_norm_eps: float = RELEASED_EPSILON
    mlm_layer_norm_eps: float = RELEASED_MLM_EPSILON
    token_types: int = 0
    separator_id: Optional[int] = None
    pooler: bool = False


class Encoder(gluon.HybridBlock):
    """Positions, LayerNorm and D post-LayerNorm layers over embedded words."""

    def __init__(self, architecture: Architecture, max_length: int, dropout: float, epsilon: float,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._heads, self._hidden, self._max_length = architecture.heads, architecture.hidden, max_length
        with self.name_scope():
            self.position_weight = self.params.get("position_weight", shape=(max_length, architecture.hidden))
            self.dropout = gluon.nn.Dropout(dropout)
            self.layer_norm = LayerNorm(architecture.hidden, epsilon)
            self.transformer_cells = gluon.nn.HybridSequential(prefix="")
            for index in range(architecture.depth):
                self.transformer_cells.add(TransformerCell(architecture, dropout, epsilon,
                                                           prefix=f"cell{index}_"))

    def hybrid_forward(self, F: Any, x: Any, valid_length: Any, position_weight: Any) -> Any:
        """``x`` (B, T, H), ``valid_length`` (B,); returns (B, T, H) with zeros in the rows of padding."""
        x, score_mask = self.enter(F, x, valid_length, position_weight)
        for cell in self.transformer_cells:
            x = cell(x, score_mask)
        return F.SequenceMask(x, valid_length, use_sequence_length=True, axis=1)

    def enter(self, F: Any, x: Any, valid_length: Any, position_weight: Any) -> Any:
        """What goes into the first layer, (B, T, H), and what every layer adds to its scores, (B*A, T, T)."""
        first_unit = F.BlockGrad(F.slice_axis(x, axis=2, begin=0, end=1))        # (B, T, 1)
        # (B, T)
        positions = F.broadcast_add(F.zeros_like(F.reshape(first_unit, shape=(0, 0))),
                                    F.expand_dims(F.contrib.arange_like(first_unit, axis=1), axis=0))
        x = x + F.Embedding(positions, position_weight, input_dim=self._max_length, output_dim=self._hidden)
        x = self.layer_norm(self.dropout(x))
        padding = F.broadcast_greater_equal(positions, F.expand_dims(valid_length, axis=1)) * MASKED_SCORE
        # The mask is expanded once for all layers: adding arrays of one shape is fast here,
        # broadcasting is not.
        rows = F.zeros_like(F.BlockGrad(F.slice_axis(x, axis=2, begin=0, end=self._heads)))       # (B, T, A)
        score_mask = F.broadcast_add(F.expand_dims(F.transpose(rows, axes=(0, 2, 1)), axis=3),  # (B, A, T, 1)
                                     F.expand_dims(F.expand_dims(padding, axis=1), axis=1))     # (B, 1, 1, T)
        return x, F.reshape(score_mask, shape=(-3, 0, 0))


class Bert(gluon.HybridBlock):
    """A member of the family BERT(D, A, H, I) of section 3.1 with a tied MLM head: Bort's and RoBERTa's
    embeddings by default, BERT's with ``token_types=2``.

    ``model(token_ids, valid_length)`` returns the last hidden states, ``model(token_ids, valid_length,
    masked_positions)`` those and the vocabulary logits at the masked positions only. A network with token
    types finds them itself, from where the first ``separator_id`` is.

    Args:
        architecture: the 4-tuple.
        vocab_size: V.
        max_length, dropout, **options: members of :class:`Options`.

    Attributes:
        options: all of them.
        pooler: weight (H, H) and bias (H,) float32 of BERT's pooler with the option of that name, else None.
    """

    def __init__(self, architecture: Architecture, vocab_size: int, max_length: int = 512,
                 dropout: float = 0.1, **options: Any) -> None:
        super().__init__()
        self._selected: Tuple[SelectedStates, ...] = ()  # not a child: its blocks are the encoder's
        hidden = architecture.hidden
        self.architecture, self.vocab_size = architecture, vocab_size
        self.options = Options(max_length, dropout, **options)
        self.pooler = (np.zeros((hidden, hidden), "float32"), np.zeros(hidden, "float32")) \
            if self.options.pooler else None
        with self.name_scope():
            self.word_embed = gluon.nn.HybridSequential(prefix="word_embed_")
            with self.word_embed.name_scope():
                self.word_embed.add(gluon.nn.Embedding(vocab_size, hidden), gluon.nn.Dropout(dropout))
            if self.token_types:
                self.token_type_embed = gluon.nn.HybridSequential(prefix="token_type_embed_")
                with self.token_type_embed.name_scope():
                    self.token_type_embed.add(gluon.nn.Embedding(self.token_types, hidden))
            self.encoder = Encoder(architecture, max_length, dropout, self.layer_norm_eps)
            self.decoder = gluon.nn.HybridSequential(prefix="decoder_")
            with self.decoder.name_scope():
                self.decoder.add(Linear(hidden, in_units=hidden), gluon.nn.GELU(),
                                 LayerNorm(hidden, self.mlm_layer_norm_eps),
                                 TiedProjection(self.word_embed[0], vocab_size))

    @property
    def body(self) -> "Bert":
        """Itself; of a classifier, the network under the head."""
        return self

    @property
    def word_vectors(self) -> Any:
        """The parameter with a row per word of the vocabulary, (V, H)."""
        return self.word_embed[0].weight

    @property
    def vocabulary_projection(self) -> TiedProjection:
        """The last layer of the MLM head: states (..., H) to logits (..., V)."""
        return self.decoder[3]

    @property
    def max_length(self) -> int:
        """The longest sequence it takes."""
        return self.options.max_length

    @property
    def dropout(self) -> float:
        """The probability in training."""
        return self.options.dropout

    @property
    def layer_norm_eps(self) -> float:
        """Epsilon of the encoder's LayerNorms."""
        return self.options.layer_norm_eps

    @property
    def mlm_layer_norm_eps(self) -> float:
        """Epsilon of the MLM head's LayerNorm."""
        return self.options.mlm_layer_norm_eps

    @property
    def token_types(self) -> int:
        """How many types of tokens it tells apart; 0 without such an embedding."""
        return self.options.token_types

    @property
    def separator_id(self) -> Optional[int]:
        """The token after whose first appearance tokens are of type 1."""
        return self.options.separator_id

    def __call__(self, token_ids: Any, valid_length: Any, masked_positions: Optional[Any] = None,
                 token_types: Optional[Any] = None) -> Any:
        check_inputs(self, token_ids, valid_length, masked_positions)
        return super().__call__(token_ids, valid_length, masked_positions, token_types)

    def forward(self, token_ids: Any, valid_length: Any, masked_positions: Optional[Any] = None,
                token_types: Optional[Any] = None) -> Any:
        """Run the network.

        Args:
            token_ids: (B, T) integers below V; the content of padding has no effect.
            valid_length: (B,) float32, tokens of each sequence that are not padding, from 1 to T.
            masked_positions: (B, M) integers below T, or None.
            token_types: (B, T) integers below the number of types, in place of what the separators say.

        Returns:
            Hidden states (B, T, H), zero in padded rows; with ``masked_positions`` a pair of them and the
            logits (B, M, V).

        Raises:
            BortError: an id, length or position is out of range, or the shapes do not fit together.
        """
        # Not `hybrid_forward`: a compiled block is bound to one set of arguments, and this one has two.
        sequence = self.encoder(self.embed(token_ids, token_types), self._lengths(valid_length))
        if masked_positions is None:
            return sequence
        return sequence, self.decode(sequence, masked_positions)

    def embed(self, token_ids: Any, token_types: Optional[Any] = None) -> Any:
        """Words, and their types where there are any, (B, T) to (B, T, H); arguments are :meth:`forward`'s.

        Raises:
            BortError: types are given to a network without, or do not fit the tokens.
        """
        words = self.word_embed(token_ids)
        if token_types is not None:
            if not self.token_types or token_types.shape != token_ids.shape:
                raise BortError(f"token_types {token_types.shape} are given for token_ids {token_ids.shape} "
                                f"to a network with {self.token_types} types of tokens")
            check_range("token type", token_types, 0, self.token_types - 1, "the network has no such type")
        elif self.token_types:
            F = mx.sym if isinstance(token_ids, mx.sym.Symbol) else mx.nd
            token_types = batching.token_types(F, token_ids, self.separator_id, self.token_types)
        return words if token_types is None else words + self.token_type_embed(token_types)

    def _lengths(self, valid_length: Any) -> Any:
        """In the network's dtype, in which the encoder compares them with positions."""
        if isinstance(valid_length, mx.sym.Symbol):
            return valid_length
        return valid_length.astype(self.word_vectors.dtype, copy=False)

    def decode(self, sequence: Any, masked_positions: Any) -> Any:
        """Vocabulary logits (B, M, V) of hidden states (B, T, H) at ``masked_positions`` (B, M)."""
        F = mx.sym if isinstance(sequence, mx.sym.Symbol) else mx.nd
        # (B, T)
        first_unit = F.BlockGrad(F.reshape(F.slice_axis(sequence, axis=2, begin=0, end=1), shape=(0, 0)))
        row_start = F.slice_axis(F.contrib.arange_like(first_unit), axis=1, begin=0, end=1)  # (B, 1)
        index = F.broadcast_add(F.cast(masked_positions, dtype="float32"), row_start)
        return self.decoder(F.take(F.reshape(sequence, shape=(-3, 0)), index))

    def states_at(self, token_ids: Any, valid_length: Any, rows: Any) -> Any:
        """The last hidden states at some positions, for less than the whole costs
        (:mod:`bort.models.selected_positions`).

        Args:
            token_ids, valid_length: as for :meth:`forward`, NDArrays.
            rows: (N,) int32, positions counted through the batch: b * T + t.

        Returns:
            (N, H): ``model(token_ids, valid_length)`` there, with the gradients it would have. Rows of
            padding are undefined.

        Raises:
            BortError: as :meth:`forward`, or a row is outside the batch.
        """
        check_inputs(self, token_ids, valid_length)
        check_range("row", rows, 0, token_ids.size - 1, "rows count positions through the batch, b * T + t")
        if not self._selected:
            self._selected = (SelectedStates(self.encoder, self._active, **dict(self._flags)),)
        return self._selected[0](self.embed(token_ids), self._lengths(valid_length), rows)

    def masked_states(self, token_ids: Any, valid_length: Any, rows: Any) -> Any:
        """What the MLM head multiplies with the vocabulary matrix, for training without an array of logits
        per batch.

        Arguments and errors are those of :meth:`states_at`, ``rows`` the masked positions; returns (N, H), of
        which :attr:`vocabulary_projection` makes the logits (N, V).
        """
        return self.mlm_states(self.states_at(token_ids, valid_length, rows))

    def mlm_states(self, states: Any) -> Any:
        """The MLM head without its last layer: what :attr:`vocabulary_projection` takes, (N, H), from hidden
        states (N, H)."""
        for layer in list(self.decoder)[:-1]:
            states = layer(states)
        return states

    def _clear_cached_op(self) -> None:
        self._selected = ()  # compiled with flags and for a dtype that may be about to change
        super()._clear_cached_op()
