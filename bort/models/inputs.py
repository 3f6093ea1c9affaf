"""Checks of what a network is called with: MXNet would silently clip, wrap or read padding."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from bort.backend.mxnet import mx
from bort.errors import BortError


def check_inputs(
    model: Any, token_ids: Any, valid_length: Any, masked_positions: Optional[Any] = None
) -> None:
    """Refuse what ``model`` (a :class:`~bort.models.bert.Bert`, or what stands for one) cannot take; symbols
    pass unchecked.

    Raises:
        BortError: see :meth:`bort.models.bert.Bert.forward`.
    """
    if isinstance(token_ids, mx.sym.Symbol):
        return
    if token_ids.ndim != 2 or 0 in token_ids.shape:
        raise BortError(f"token_ids must have the shape (batch, length), not {token_ids.shape}")
    batch, length = token_ids.shape
    if length > model.max_length:
        raise BortError(
            f"sequences of {length} tokens are longer than the model's max_length "
            f"{model.max_length}; truncate them"
        )
    check_range(
        "token id", token_ids, 0, model.vocab_size - 1, "the vocabulary and the model do not belong together"
    )
    if valid_length.shape != (batch,):
        raise BortError(f"valid_length must have the shape ({batch},), not {valid_length.shape}")
    if np.dtype(valid_length.dtype) != np.float32:
        raise BortError(f"valid_length must be float32, not {np.dtype(valid_length.dtype).name}")
    check_range(
        "valid_length", valid_length, 1, length, "it counts the tokens of each sequence that are not padding"
    )
    if masked_positions is not None:
        if masked_positions.ndim != 2 or masked_positions.shape[0] != batch or 0 in masked_positions.shape:
            raise BortError(
                f"masked_positions must have the shape ({batch}, M), not {masked_positions.shape}"
            )
        check_range(
            "masked position", masked_positions, 0, length - 1, "positions count from 0 within the sequence"
        )


def check_range(what: str, array: Any, lowest: int, highest: int, hint: str) -> None:
    """Refuse an NDArray with a value outside ``lowest``..``highest`` or a NaN, with a BortError."""
    values = array.asnumpy()
    if not (values.min() >= lowest and values.max() <= highest):  # written so that NaN fails too
        wrong = values[~((values >= lowest) & (values <= highest))][0]
        raise BortError(f"{what} {wrong} is outside {lowest}..{highest}: {hint}")
