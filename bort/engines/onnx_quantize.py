"""8-bit forms of an exported encoder, made by onnxruntime's own quantizer: the linear layers, per output
channel.

Dynamic quantization measures every activation as it comes and needs no data; static quantization fixes the
ranges of activations beforehand. Attention, LayerNorm, embeddings and heads stay in float32. Nothing here
imports MXNet.
"""
from __future__ import annotations

import contextlib
import logging
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

import numpy as np

from bort.engines.base import Batch
from bort.errors import BortError
from bort.files import PathLike, atomic_write

METHODS = ("dynamic", "static")


class _Reader:
    """Feeds calibration batches to onnxruntime one by one; the part "mlm" gets a position, whose head stays
    in float32."""

    def __init__(self, batches: Sequence[Batch], masked: bool) -> None:
        self._batches, self._masked = iter(batches), masked

    def get_next(self) -> Optional[Dict[str, np.ndarray]]:
        batch = next(self._batches, None)
        if batch is None:
            return None
        feed = {"token_ids": np.asarray(batch[0], "int64"), "valid_length": np.asarray(batch[1], "float32")}
        if self._masked:
            feed["masked_positions"] = np.zeros((len(batch[0]), 1), "int64")
        return feed

    def __iter__(self) -> Iterator[Any]:
        return iter(self.get_next, None)


def write(model: Any, path: PathLike) -> None:
    """Write an ``onnx.ModelProto`` whole or not at all.

    Raises:
        BortError: it is larger than a file of this format can be, or the folder cannot be written to.
    """
    if model.ByteSize() >= 2 ** 31:
        raise BortError(f"{path}: {model.ByteSize() / 2 ** 30:.1f} GiB are more than an ONNX file can hold "
                        "(2 GiB); export a smaller architecture")
    with atomic_write(path, "wb") as stream:
        stream.write(model.SerializeToString())


def quantize(model: Any, path: PathLike, method: str, batches: Sequence[Batch] = (),
             reduce_range: bool = False) -> None:
    """Write the 8-bit form of ``model`` to ``path``.

    Args:
        model: the ``onnx.ModelProto`` of ``bort.engines.onnx_graph``.
        method: "dynamic", or "static", which needs ``batches`` of ``token_ids`` (B, T) and ``valid_length``
            (B,).
        reduce_range: 7-bit weights, for CPUs without VNNI instructions, whose 8-bit products can overflow.

    Raises:
        BortError: the method is unknown, static has no data, or a package is missing.
    """
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise BortError("quantization needs onnxruntime and onnx: pip install onnxruntime onnx "
                        f"[{error}]") from error
    if method not in METHODS:
        raise BortError(f"int8 method {method!r} is unknown; choose one of {', '.join(METHODS)}")
    if method == "static" and not batches:
        raise BortError("static quantization needs calibration data: give --calibration")
    common = {"per_channel": True, "reduce_range": reduce_range, "weight_type": quantization.QuantType.QInt8,
              "op_types_to_quantize": ["MatMul"], "nodes_to_exclude": _float_nodes(model),
              "extra_options": {"MatMulConstBOnly": True}}
    with tempfile.TemporaryDirectory(dir=str(Path(path).parent)) as folder, _quiet():
        source, result = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        write(model, source)
        if method == "dynamic":
            quantization.quantize_dynamic(source, result, **common)
        else:
            # "min max" over a few hundred sequences; the percentile methods were no better here and far
            # slower.
            quantization.quantize_static(source, result, _reader(model, batches),
                                         quant_format=quantization.QuantFormat.QDQ,
                                         activation_type=quantization.QuantType.QUInt8, **common)
        data = result.read_bytes()
    with atomic_write(path, "wb") as stream:
        stream.write(_with_metadata(data, model))


def _reader(model: Any, batches: Sequence[Batch]) -> Any:
    from onnxruntime import quantization

    class Reader(_Reader, quantization.CalibrationDataReader):
        """The same, of the class that the quantizer asks for."""

    return Reader(batches, any(given.name == "masked_positions" for given in model.graph.input))


def _float_nodes(model: Any) -> List[str]:
    from bort.engines.onnx_graph import HEAD_PREFIX

    return [node.name for node in model.graph.node if node.op_type == "MatMul"
            and node.name.startswith(HEAD_PREFIX)]


def _with_metadata(data: bytes, source: Any) -> bytes:
    """The quantizer drops the file's properties; put them back."""
    import onnx

    model = onnx.load_from_string(data)
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in source.metadata_props})
    return model.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer advises, at warning level, a preprocessing that this graph does not need."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
