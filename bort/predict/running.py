"""What runs the network of a prediction: an engine of ``bort.engines``, or an exported file."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional, Sequence

import numpy as np

from bort.checkpoints import model_folder
from bort.engines import engine as engines
from bort.engines.base import KINDS, PRECISIONS, Batch, Engine
from bort.errors import BortError
from bort.files import PathLike
from bort.models import Classifier
from bort.text.tokenizers.base import Tokenizer

ENGINES = (*KINDS, "onnx")
CALIBRATED = ("int8", "auto")
"""Precisions that need inputs to learn from, or to be held against float32 on."""


@dataclass(frozen=True)
class EngineOptions:
    """What computes, and in which precision.

    Attributes:
        engine: one of :data:`ENGINES`: "auto" for the fastest that is installed and suits this machine, or
            "onnx" for an exported file.
        onnx: that file, by default ``model.onnx`` in the model's folder.
        precision: one of ``bort.engines.base.PRECISIONS``.
        dtype: another name for the precision, kept from when there was one engine.
        calibration: a text file or the task's data folder, for the precisions "int8" and "auto"; by default
            they take the first inputs they are given.
        evaluate: the task's data folder, on whose dev set "int8" may lose half a point: layers stay in
            float32 (in OpenVINO) until it holds.

    Raises:
        BortError: a value is unknown, or two do not go together.
    """

    engine: str = "auto"
    onnx: Optional[PathLike] = None
    precision: str = "float32"
    dtype: Optional[str] = None
    calibration: Optional[PathLike] = None
    evaluate: Optional[PathLike] = None

    def __post_init__(self) -> None:
        if self.dtype is not None:
            object.__setattr__(self, "precision", self.dtype)
        for what, value, choices in (("engine", self.engine, ENGINES),
                                     ("precision", self.precision, PRECISIONS)):
            if value not in choices:
                raise BortError(f"{what} {value!r} is unknown; choose one of {', '.join(choices)}")
        if self.engine == "onnx" and self.precision != "float32":
            raise BortError("an onnx file computes in what it was exported for (python -m bort.export "
                            "--int8); --precision is for the other engines")
        if self.calibration is not None and self.precision not in CALIBRATED:
            raise BortError(f"calibration data is for the precisions {' and '.join(CALIBRATED)}")
        exact = self.precision != "int8" or self.engine not in ("auto", "openvino")
        if self.evaluate is not None and exact:
            raise BortError("the dev set is for the precision int8 of the engine openvino")


def open_engine(network: Classifier, options: EngineOptions, tokenizer: Tokenizer,
                arrays: Optional[Mapping[str, np.ndarray]], folder: Optional[Path],
                calibration: Sequence[Batch]) -> Engine:
    """The forward pass of a classifier.

    Args:
        arrays: its parameters where the network does not have them itself.
        folder: the model's, where an exported file is looked for.

    Raises:
        BortError: the engine cannot be had here, or the exported file is missing or another model's.
    """
    if options.engine != "onnx":
        chosen = engines.EngineOptions(options.engine, options.precision)
        return engines.open_engine(network, "classifier", chosen, calibration)
    path = options.onnx or (folder / "model.onnx" if folder is not None else None)
    if path is None:
        raise BortError("the onnx engine needs a file that python -m bort.export wrote; give --onnx FILE")
    return _exported(path, network, model_folder.parameter_arrays(network) if arrays is None else arrays,
                     tokenizer)


def _exported(path: PathLike, network: Classifier, arrays: Mapping[str, np.ndarray],
              tokenizer: Tokenizer) -> Engine:
    """The exported file, which must be this model's: another one's answers would look as good."""
    from bort.engines.onnxruntime import OnnxRunner, parameters_digest

    runner = OnnxRunner(path)
    runner.require(part="classifier", num_outputs=network.num_outputs,
                   task=network.task_name, labels=network.labels,
                   vocab_size=network.vocab_size, parameters=parameters_digest(arrays))
    if runner.settings.get("tokenizer") is not None:
        runner.require(tokenizer=tokenizer.fingerprint)
    return runner
