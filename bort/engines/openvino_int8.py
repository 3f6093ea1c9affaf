"""The 8-bit form of a network for OpenVINO, by NNCF's post-training quantization, and the folder for it.

Making one takes from seconds to minutes; reading it again takes tenths of a second. It is kept under a digest
of all that it depends on (weights, calibration inputs, versions), in ``$XDG_CACHE_HOME/bort/int8`` (by
default ``~/.cache/bort/int8``), up to :data:`MAX_CACHE_BYTES`. Deleting that folder loses time only.
"""
from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

import numpy as np

from bort.engines import onnx_graph
from bort.engines.base import Batch, Unavailable
from bort.engines.cpu import EXACT_INT8_FLAGS, cpu_flags
from bort.engines.onnxruntime import parameters_digest
from bort.engines.openvino_model import import_openvino, read, shared_core

logger = logging.getLogger("bort.engines")
MAX_CACHE_BYTES = 4 << 30
"""The longest unused forms are deleted beyond this."""
FORMAT = "2"
"""Changes with what this module makes of the same network."""


def quantized(facts: onnx_graph.Network, arrays: Mapping[str, np.ndarray], part: str,
              calibration: Sequence[Batch], kept: Sequence[str] = ()) -> Any:
    """The ``openvino.Model`` with 8-bit weights and activations in its linear layers and attention.

    Args:
        calibration: batches ``(token_ids, valid_length)``; the part's positions are made up.
        kept: patterns of node names that stay in float32, besides the heads.

    Raises:
        Unavailable: NNCF is not installed.
    """
    nncf = import_nncf()
    key = _digest(facts, arrays, part, calibration, [nncf.__version__, *kept])
    folder = cache_folder() / key
    known = _read(folder)
    if known is not None:
        return known
    model = quantize(read(facts, arrays, part, "int8"), part, calibration, kept)
    _keep(model, folder)
    return model


def import_nncf() -> Any:
    """The package ``nncf``, which sends nothing to anybody.

    Raises:
        Unavailable: it is not installed.
    """
    import_openvino()  # which takes telemetry out of nncf's reach, too
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import nncf
    except (ImportError, OSError) as error:
        raise Unavailable(f"8-bit networks in OpenVINO need nncf: pip install 'bort[fast]' [{error}]"
                          ) from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


def quantize(model: Any, part: str, calibration: Sequence[Batch], kept: Sequence[str] = ()) -> Any:
    """``model`` (an ``openvino.Model``) in 8 bits; see :func:`quantized`."""
    nncf = import_nncf()
    feeds = [_feed(part, batch) for batch in calibration]
    exact = cpu_flags().intersection(EXACT_INT8_FLAGS)
    advanced = nncf.AdvancedQuantizationParameters(
        # Half the range of weights where the processor adds products in 16 bits.
        overflow_fix=nncf.OverflowFix.DISABLE if exact else nncf.OverflowFix.ENABLE)
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        return nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds),
                             model_type=nncf.ModelType.TRANSFORMER, advanced_parameters=advanced,
                             ignored_scope=nncf.IgnoredScope(
                                 patterns=[f"{onnx_graph.HEAD_PREFIX}.*", "logits.*", *kept],
                                 validate=False))


def _feed(part: str, batch: Batch) -> Mapping[str, np.ndarray]:
    feed: Dict[str, np.ndarray] = {"token_ids": np.asarray(batch[0], np.int64),
                                   "valid_length": np.asarray(batch[1], np.float32)}
    count = len(batch[0])
    if part == "mlm":
        feed["masked_positions"] = np.zeros((count, 1), np.int64)
    elif part == "masked_states":
        feed["rows"] = np.arange(count, dtype=np.int64) * batch[0].shape[1]
    return feed


def _digest(facts: onnx_graph.Network, arrays: Mapping[str, np.ndarray], part: str,
            calibration: Sequence[Batch], more: Sequence[str]) -> str:
    version = import_openvino().get_version()
    exact = sorted(cpu_flags().intersection(EXACT_INT8_FLAGS))
    digest = hashlib.sha256(repr([FORMAT, version, list(more), bool(exact), facts, part]).encode())
    digest.update(parameters_digest(arrays).encode())
    for batch in calibration:
        for array in batch[:2]:
            digest.update(f"{array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:40]


def cache_folder() -> Path:
    """Where 8-bit forms are kept; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "bort" / "int8"


def _read(folder: Path) -> Any:
    """The model of an entry; None if there is none, or none that can be read."""
    file = folder / "model.xml"
    if not file.is_file():
        return None
    try:
        model = shared_core().read_model(str(file))
        os.utime(folder)
        return model
    except (RuntimeError, OSError) as error:
        logger.info("%s: cannot be read, made again (%s)", folder, str(error).splitlines()[0])
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _keep(model: Any, folder: Path) -> None:
    """Write an entry whole or not at all, and delete the longest unused ones beyond the limit."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=str(folder.parent), prefix=".new-") as fresh:
            inside = Path(fresh) / "entry"
            inside.mkdir()
            import_openvino().save_model(model, str(inside / "model.xml"), compress_to_fp16=False)
            if not folder.exists():
                os.replace(inside, folder)
        _trim(folder)
    except (RuntimeError, OSError) as error:
        logger.info("%s: cannot be kept (%s)", folder, str(error).splitlines()[0])


def _trim(newest: Path) -> None:
    entries: List[Path] = [entry for entry in newest.parent.iterdir() if not entry.name.startswith(".")]
    entries.sort(key=lambda entry: entry.stat().st_mtime)
    sizes = {entry: sum(file.stat().st_size for file in entry.iterdir()) for entry in entries}
    total = sum(sizes.values())
    for entry in entries:
        if total <= MAX_CACHE_BYTES or entry == newest:
            return
        total -= sizes[entry]
        shutil.rmtree(entry, ignore_errors=True)
