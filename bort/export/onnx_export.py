"""A model as an ONNX file that runs where MXNet is not installed.

The file is checked before it appears: its outputs on random padded batches must be the model's. Its tokenizer
is put beside it, so that ``bort.engines.onnxruntime.OnnxRunner(OUT.onnx).classify(texts)`` needs nothing
else.
"""
from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np

from bort.checkpoints import model_folder
from bort.engines import onnx_graph, onnx_quantize
from bort.engines.base import Batch, Engine
from bort.engines.onnxruntime import FORMAT, OnnxRunner, parameters_digest
from bort.errors import BortError
from bort.files import PathLike, require_replaceable
from bort.models import Bert, Classifier
from bort.text.tokenizers.loading import Tokenizer, find_tokenizer_files, load_tokenizer

TOLERANCE = 1e-3
"""Largest difference between the file and the model that passes, relative to the largest output."""
LEAST_CORRELATION = 0.5
"""Between an 8-bit file's outputs and the model's on random batches. Honest files reach 0.99 as a rule and
0.8 in the worst case tried (a tiny random network, calibrated on one repeated token); below this, 8 bits are
of no use or something is wrong. Outputs that hardly differ from one another pass by being close instead,
within a twentieth of their size."""


def to_onnx(model: Union[Bert, Classifier], part: str, settings: Dict[str, Any]) -> Any:
    """The ``onnx.ModelProto`` of a model's part, with ``settings`` stored in it as JSON."""
    bert = model.body
    stored = {"part": part, "vocab_size": bert.vocab_size, "max_length": bert.max_length,
              "architecture": bert.architecture.to_dict(), **settings}
    return onnx_graph.build(onnx_graph.network_of(model), model_folder.parameter_arrays(model), part,
                            {"bort": FORMAT, "settings": json.dumps(stored)})


def compare(model: Union[Bert, Classifier], runner: Engine, seed: int = 0, batches: int = 4
            ) -> Dict[str, float]:
    """Outputs of the file beside the model's on random padded batches of different shapes.

    Returns:
        ``max_difference``, ``scale`` (the largest output of the model) and ``correlation``.
    """
    from bort.backend.mxnet import mx

    rng = np.random.default_rng(seed)
    network: Any = model if runner.part == "classifier" or isinstance(model, Bert) else model.bort
    ours: List[np.ndarray] = []
    theirs: List[np.ndarray] = []
    for number in range(batches):
        batch, length = (1, 3, 2, 4)[number % 4], int(rng.integers(1, min(network.max_length, 64) + 1))
        ids = rng.integers(0, network.vocab_size, (batch, length))
        valid = rng.integers(1, length + 1, batch).astype("float32")
        arguments = [mx.nd.array(ids, dtype="int32"), mx.nd.array(valid)]
        positions = rng.integers(0, length, (batch, 2)) if runner.part == "mlm" else None
        if positions is None:
            expected = network(*arguments)
        else:
            expected = network(*arguments, mx.nd.array(positions, dtype="int32"))[1]
        ours.append(runner(ids, valid, positions).ravel())
        theirs.append(expected.asnumpy().ravel())
    found, wanted = np.concatenate(ours), np.concatenate(theirs)
    return {"max_difference": float(np.abs(found - wanted).max()), "scale": float(np.abs(wanted).max()),
            "correlation": float(np.corrcoef(found, wanted)[0, 1])}


def export(model: Union[Bert, Classifier], path: PathLike, part: Optional[str] = None,
           int8: Optional[str] = None, batches: Sequence[Batch] = (), tokenizer: Optional[Tokenizer] = None,
           reduce_range: bool = False, settings: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    """Write a model's part as ONNX, checked.

    Args:
        part: "encoder", "classifier" or "mlm"; by default "classifier" if there is a head, else "encoder".
        int8: None, "dynamic", or "static" with ``batches`` (``token_ids``, ``valid_length``) to calibrate on.
        tokenizer: saved beside the file.
        reduce_range: see :func:`bort.engines.onnx_quantize.quantize`.
        settings: more for :attr:`OnnxRunner.settings`.

    Returns:
        What the command prints: the part, the file's size, the differences.

    Raises:
        BortError: a package is missing, the folder cannot be written to or holds another tokenizer, or the
            file computes something else than the model (it is not written then).
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise BortError("the export needs onnx and onnxruntime: pip install onnx onnxruntime "
                        f"[{error}]") from error
    require_replaceable(path)
    path = Path(path)
    part = part or ("classifier" if isinstance(model, Classifier) else "encoder")
    stored = dict(settings or {})
    if isinstance(model, Classifier):
        stored.update({"labels": model.labels, "task": model.task_name,
                       "num_outputs": model.num_outputs})
    stored.update({"tokenizer": tokenizer.fingerprint if tokenizer is not None else None, "int8": int8})
    stored["parameters"] = parameters_digest(model_folder.parameter_arrays(model))
    graph = to_onnx(model, part, stored)
    there = [file for file in find_tokenizer_files(path.parent) if file.name != "tokenizer_config.json"]
    if tokenizer is not None and there and load_tokenizer(path.parent).fingerprint != tokenizer.fingerprint:
        raise BortError(f"{path.parent}: holds another tokenizer than the model's, which would take its "
                        "place; choose another folder for the file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=str(path.parent), prefix=".export-") as folder:
            checked = Path(folder) / "float32.onnx"
            onnx_quantize.write(graph, checked)
            report = compare(model, OnnxRunner(checked))
            check_exact(report, path)
            result: Dict[str, Any] = {"file": str(path), "part": part, "bytes": 0, "float32": report}
            if int8 is not None:
                checked = Path(folder) / "int8.onnx"
                onnx_quantize.quantize(graph, checked, int8, batches, reduce_range)
                result["int8"] = {"method": int8, **checked_int8(compare(model, OnnxRunner(checked)), path)}
            os.replace(checked, path)
    except OSError as error:
        raise BortError(f"{path}: cannot be written ({error.strerror})") from error
    if tokenizer is not None:
        tokenizer.save(path.parent)
    result["bytes"] = path.stat().st_size
    return result


def check_exact(report: Dict[str, float], path: Path) -> None:
    """Refuse a float32 form of which :func:`compare` reports a difference."""
    if not report["max_difference"] <= TOLERANCE * max(1.0, report["scale"]):
        raise BortError(f"{path}: the exported graph differs from the model by "
                        f"{report['max_difference']:.2g}; it is not written (a bug, or parameters that are "
                        "not finite)")


def checked_int8(report: Dict[str, float], path: Path) -> Dict[str, float]:
    """Refuse an 8-bit form that has little in common with the model; returns :func:`compare`'s report."""
    close = report["max_difference"] <= 0.05 * report["scale"] or report["correlation"] >= LEAST_CORRELATION
    if not (np.isfinite(report["max_difference"]) and close):
        raise BortError(f"{path}: the 8-bit form computes something else than the model (correlation "
                        f"{report['correlation']:.3f}, largest difference {report['max_difference']:.2g}); "
                        "it is not written. Other --calibration data, --int8 dynamic or, on an old CPU, "
                        "--reduce-range may do better")
    return report
