"""What runs the network of a prediction: MXNet's compiled graphs, or an exported file."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping, Optional, Sequence

import numpy as np

from bort.checkpoints import model_folder
from bort.engines.calibration import Batch
from bort.engines.mxnet_compiled import check_dtype, compile_for_inference
from bort.errors import BortError
from bort.files import PathLike
from bort.models import Classifier
from bort.text.tokenizers.base import Tokenizer

ENGINES = ("mxnet", "onnx")
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""``run(token_ids (B, T) int32, valid_length (B,) float32)`` -> outputs (B, C)."""


@dataclass(frozen=True)
class EngineOptions:
    """What computes, and in which precision.

    Attributes:
        engine: "mxnet", or "onnx": the file ``onnx`` (by default ``model.onnx`` in the model's folder).
        dtype: "float32", "int8" or "bfloat16", what the engine "mxnet" computes in.
        calibration: a text file or the task's data folder, from which int8 learns the ranges of activations;
            by default it learns them from the first inputs it is given.

    Raises:
        BortError: a value is unknown, two do not go together, or this machine computes slower in ``dtype``
            than in float32.
    """

    engine: str = "mxnet"
    onnx: Optional[PathLike] = None
    dtype: str = "float32"
    calibration: Optional[PathLike] = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise BortError(f"engine {self.engine!r} is unknown; choose one of {', '.join(ENGINES)}")
        check_dtype(self.dtype)
        if self.engine == "onnx" and self.dtype != "float32":
            raise BortError("an onnx file computes in what it was exported for (python -m bort.export "
                            "--int8); --dtype is for the engine mxnet")
        if self.calibration is not None and self.dtype != "int8":
            raise BortError("calibration data is for the dtype int8")


def open_engine(network: Classifier, options: EngineOptions, tokenizer: Tokenizer,
                arrays: Optional[Mapping[str, np.ndarray]], folder: Optional[Path],
                calibration: Sequence[Batch]) -> Run:
    """The forward pass of a classifier.

    Args:
        arrays: its parameters where the network does not have them itself.
        folder: the model's, where an exported file is looked for.

    Raises:
        BortError: the exported file is missing or another model's.
    """
    if options.engine == "mxnet":
        return inference_function(network, options.dtype, calibration)
    path = options.onnx or (folder / "model.onnx" if folder is not None else None)
    if path is None:
        raise BortError("the onnx engine needs a file that python -m bort.export wrote; give --onnx FILE")
    return _exported(path, network, model_folder.parameter_arrays(network) if arrays is None else arrays,
                     tokenizer)


def inference_function(model: Classifier, dtype: str = "float32", calibration: Sequence[Batch] = ()) -> Run:
    """A network with its parameters by MXNet's compiled graphs."""
    compiled = compile_for_inference(model, dtype, calibration)
    return lambda token_ids, valid_length: compiled(token_ids, valid_length).asnumpy()


def _exported(path: PathLike, network: Classifier, arrays: Mapping[str, np.ndarray],
              tokenizer: Tokenizer) -> Run:
    """The exported file, which must be this model's: another one's answers would look as good."""
    from bort.engines.onnxruntime import OnnxRunner, parameters_digest

    runner = OnnxRunner(path)
    runner.require(part="classifier", num_outputs=network.num_outputs,
                   task=network.task_name, labels=network.labels,
                   vocab_size=network.vocab_size, parameters=parameters_digest(arrays))
    if runner.settings.get("tokenizer") is not None:
        runner.require(tokenizer=tokenizer.fingerprint)
    return lambda token_ids, valid_length: np.asarray(runner(token_ids, valid_length))
