"""The engines that ``latency.py`` compares: the same weights in each, and all of them called alike.

``MAKERS`` write what ``ENGINES`` load: in two steps, so that the memory of an export is not the engine's.
``workers.py`` runs every engine in a process of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import numpy as np

from benchmarks.harness import peers
from benchmarks.harness.shapes import Run, Unavailable, make_batch, threads
from bort.errors import BortError


def _model(folder: Path) -> Any:
    from bort.checkpoints import model_folder

    model = model_folder.load(folder / "model")
    model.collect_params().setattr("grad_req", "null")  # nothing is trained: no memory for gradients
    return model


def _reference(folder: Path) -> Run:
    """The uncompiled model, which the other engines' outputs are compared with."""
    from bort.backend.mxnet import mx

    model = _model(folder)
    return lambda ids, valid: model(mx.nd.array(ids, dtype="int32"), mx.nd.array(valid)).asnumpy()


def _compiled(dtype: str) -> Callable[[Path], Run]:
    def load(folder: Path) -> Run:
        from bort.engines.mxnet_compiled import check_dtype, compile_for_inference

        try:
            check_dtype(dtype)
        except BortError as error:
            raise Unavailable(str(error)) from error
        model = _model(folder)
        samples = [
            make_batch((4, min(length, model.max_length), False), model.vocab_size, 1) for length in (32, 128)
        ]
        compiled = compile_for_inference(model, dtype, samples)
        return lambda ids, valid: compiled(ids, valid).asnumpy()

    return load


def _openvino(precision: str) -> Callable[[Path], Run]:
    """This project's engine of that name, as predictions and teachers use it."""

    def load(folder: Path) -> Run:
        from bort.engines.base import EngineOptions
        from bort.engines.engine import open_engine

        model = _model(folder)
        samples = [
            make_batch((4, min(length, model.max_length), False), model.vocab_size, 1) for length in (32, 128)
        ]
        try:
            return open_engine(model, "encoder", EngineOptions("openvino", precision), samples)
        except BortError as error:
            raise Unavailable(str(error)) from error

    return load


def _gluonnlp(folder: Path) -> Run:
    """Stock BERTModel, imported and called as its documentation shows; only the numbers are ours."""
    from bort import numpy_aliases
    from bort.checkpoints.params_file import read_ndarrays

    numpy_aliases.restore()
    import mxnet as mx
    from gluonnlp.model import BERTEncoder, BERTModel

    config = json.loads((folder / "model" / "config.json").read_text())
    arrays, a = read_ndarrays(folder / "model" / "model.params"), config["architecture"]
    encoder = BERTEncoder(
        num_layers=a["depth"],
        units=a["hidden"],
        hidden_size=a["intermediate"],
        max_length=config["max_length"],
        num_heads=a["heads"],
        dropout=0.1,
        layer_norm_eps=config["layer_norm_eps"],
    )
    model = BERTModel(
        encoder,
        config["vocab_size"],
        units=a["hidden"],
        embed_size=a["hidden"],
        use_pooler=False,
        use_decoder=False,
        use_token_type_embed=False,
        use_classifier=False,
    )
    model.initialize(init="zeros")
    for name, parameter in model._collect_params_with_prefix().items():
        parameter.set_data(mx.nd.array(arrays[name]))
    model.collect_params().setattr("grad_req", "null")
    model.hybridize(static_alloc=True)
    return lambda ids, valid: model(mx.nd.array(ids, dtype="int32"), None, mx.nd.array(valid)).asnumpy()


def _onnx(method: Optional[str]) -> Callable[[Path], Run]:
    def load(folder: Path) -> Run:
        from bort.engines.onnxruntime import OnnxRunner

        return OnnxRunner(folder / f"bort-{method or 'float32'}.onnx", threads())

    return load


def _make_onnx(method: Optional[str]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401

        from bort.export import onnx_export

        onnx_export.export(_model(folder), folder / f"bort-{method or 'float32'}.onnx", "encoder", method)

    return make


def prepare(folder: Path, architecture: Any, vocab_size: int, seed: int = 0) -> None:
    """Write the same random weights for all engines: ``folder/model`` and ``folder/huggingface``.

    Biases, gammas and betas are not at their initial zeros and ones, so that a lost one would show.
    """
    from bort.architecture import parse
    from bort.checkpoints import model_folder
    from bort.huggingface import export_folder
    from bort.models import Bert, initialize

    model = Bert(parse(architecture), vocab_size)
    initialize(model, seed)
    rng = np.random.default_rng(seed + 1)
    for name, parameter in sorted(model._collect_params_with_prefix().items()):
        if not name.endswith("weight"):
            noise = rng.normal(0, 0.05, parameter.shape).astype("float32")
            parameter.set_data(parameter.data().asnumpy() + noise)
    model_folder.save(model, folder / "model")
    export_folder(folder / "model", folder / "huggingface", mlm_head="drop")


ENGINES: Dict[str, Callable[[Path], Run]] = {
    "reference": _reference,
    "mxnet": _compiled("float32"),
    "mxnet-int8": _compiled("int8"),
    "mxnet-bf16": _compiled("bfloat16"),
    "onnx": _onnx(None),
    "onnx-int8": _onnx("dynamic"),
    "openvino": _openvino("float32"),
    "openvino-int8": _openvino("int8"),
    "openvino-bf16": _openvino("bfloat16"),
    "gluonnlp": _gluonnlp,
    "gluonnlp-tuned": _gluonnlp,
    "pytorch": peers.pytorch("float32"),
    "pytorch-int8": peers.pytorch("int8"),
    "pytorch-bf16": peers.pytorch("bfloat16"),
    "pytorch-compile": peers.pytorch_compiled("float32"),
    "pytorch-compile-bf16": peers.pytorch_compiled("bfloat16"),
    "onnxruntime-hf": peers.onnxruntime_hf("huggingface.onnx"),
    "onnxruntime-hf-int8": peers.onnxruntime_hf("huggingface-int8.onnx"),
    "openvino-hf": peers.openvino_hf("float32"),
    "openvino-hf-int8": peers.openvino_hf("int8"),
    "openvino-hf-bf16": peers.openvino_hf("bfloat16"),
    "ctranslate2": peers.ctranslate2_encoder("float32"),
    "ctranslate2-int8": peers.ctranslate2_encoder("int8"),
}
MAKERS: Dict[str, Callable[[Path], None]] = {
    "onnx": _make_onnx(None),
    "onnx-int8": _make_onnx("dynamic"),
    "onnxruntime-hf": peers.make_hf_once,
    "onnxruntime-hf-int8": peers.make_hf_int8,
    **dict.fromkeys(("openvino-hf", "openvino-hf-bf16"), peers.make_openvino),
    "openvino-hf-int8": peers.make_openvino_int8,
    **dict.fromkeys(("ctranslate2", "ctranslate2-int8"), peers.make_ctranslate2),
}
DESCRIPTIONS = {
    "mxnet": "this project, float32 (bort.engines.mxnet_compiled)",
    "mxnet-int8": "this project, MXNet's int8",
    "mxnet-bf16": "this project, MXNet's bfloat16",
    "onnx": "bort.export in ONNX Runtime, float32",
    "onnx-int8": "bort.export --int8 dynamic in ONNX Runtime",
    "openvino": "this project's engine openvino, float32",
    "openvino-int8": "the same, int8 by NNCF, the rest in bfloat16 where the CPU has it",
    "openvino-bf16": "the same in bfloat16",
    "gluonnlp": "stock gluonnlp BERTModel, hybridized, in MXNet's default environment",
    "gluonnlp-tuned": "the same with this project's OpenMP settings",
    "pytorch": "transformers BertModel, float32, sdpa",
    "pytorch-int8": "the same, dynamic int8",
    "pytorch-bf16": "the same in bfloat16",
    "pytorch-compile": "the same through torch.compile, float32",
    "pytorch-compile-bf16": "the same in bfloat16",
    "onnxruntime-hf": "transformers' model through torch.onnx in ONNX Runtime, float32",
    "onnxruntime-hf-int8": "the same, dynamic int8 per channel",
    "openvino-hf": "transformers' model through openvino.convert_model, as optimum-intel does, float32",
    "openvino-hf-int8": "the same, int8 by NNCF as its documentation shows",
    "openvino-hf-bf16": "the same in bfloat16",
    "ctranslate2": "transformers' model through CTranslate2's converter, float32",
    "ctranslate2-int8": "the same in int8",
}
OURS = (
    "reference",
    "mxnet",
    "mxnet-int8",
    "mxnet-bf16",
    "onnx",
    "onnx-int8",
    "openvino",
    "openvino-int8",
    "openvino-bf16",
)
