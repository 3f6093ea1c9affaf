"""Linear layers in bfloat16 while everything else, the parameters among it, stays in float32.

Products of matrices are nearly all of a training step. A :class:`Linear` layer rounds what it multiplies to
bfloat16 and gives float32, forwards and backwards: oneDNN adds up in float32, and processors with the
instructions (``bort.engines.cpu.BFLOAT16_FLAGS``) take half the time. Which format it is belongs to a
training, not to a network: :func:`products_in` sets it for as long as a training lasts.

In bfloat16, MXNet 1.9.1 has linear layers and ``amp_cast`` only. Others refuse it, or write where they must
not (a transposed copy ends the process), so everything else here sees float32.
"""
from __future__ import annotations

import contextlib
from typing import Any, Iterator

from bort.backend.mxnet import gluon

PRODUCT_DTYPES = ("float32", "bfloat16")


def rounded(F: Any, x: Any) -> Any:
    """``x``, float32, in bfloat16.

    ``amp_cast`` forgets a gradient that is to be *added* to another one; the identity before it adds.
    """
    return F.amp_cast(F.identity(x), dtype="bfloat16")


def linear(F: Any, x: Any, weight: Any, bias: Any, units: int, dtype: str = "float32") -> Any:
    """x W^T + b over the last axis, (..., I) to (..., ``units``), float32 whatever ``dtype`` the product is
    in.

    Args:
        F: ``mx.nd`` or ``mx.sym``.
        weight: (``units``, I).
        bias: (``units``,) or None.
    """
    arrays = [array for array in (x, weight, bias) if array is not None]
    if dtype == "bfloat16":
        arrays = [rounded(F, array) for array in arrays]
    product = F.FullyConnected(*arrays, no_bias=bias is None, num_hidden=units, flatten=False)
    return F.amp_cast(product, dtype="float32") if dtype == "bfloat16" else product


class Linear(gluon.nn.Dense):
    """A linear layer over the last axis whose product :func:`products_in` chooses the format of."""

    product_dtype = "float32"

    def __init__(self, units: int, in_units: int, **kwargs: Any) -> None:
        super().__init__(units, flatten=False, in_units=in_units, **kwargs)

    def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any = None) -> Any:
        """``x`` (..., I); returns (..., units)."""
        return linear(F, x, weight, bias, self._units, self.product_dtype)


@contextlib.contextmanager
def products_in(network: gluon.HybridBlock, dtype: str) -> Iterator[None]:
    """Have the linear layers of a network multiply in ``dtype``, one of :data:`PRODUCT_DTYPES`, until the
    block is left; then as before.

    Compiled graphs are made again at their next use where this changes anything.
    """
    before = set_products(network, dtype)
    try:
        yield
    finally:
        set_products(network, before)


def set_products(network: gluon.HybridBlock, dtype: str) -> str:
    """:func:`products_in` without an end; what the linear layers multiplied in before."""
    before = "float32"

    def change(block: Any) -> None:
        nonlocal before
        if isinstance(block, Linear):
            before, block.product_dtype = block.product_dtype, dtype

    network.apply(change)
    if before != dtype:
        network.apply(lambda block: block._clear_cached_op() if hasattr(block, "_clear_cached_op") else None)
    return before
