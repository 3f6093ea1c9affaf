"""The engines that ``latency.py`` compares: the same weights in each, and all of them called alike.

``MAKERS`` write what ``ENGINES`` load: in two steps, so that the memory of an export is not the engine's.
``workers.py`` runs every engine in a process of its own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

import numpy as np

from benchmarks.harness import common
from bort.errors import BortError

BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
"""As in ``bort.engines.mxnet_compiled``, which a process with PyTorch must not import: MXNet would come with
it."""

Shape = Tuple[int, int, bool]
"""Batch, length, and whether the batch is padded."""
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""``run(token_ids (B, T) int64, valid_length (B,) float32)`` -> hidden states (B, T, H) float32."""


class Unavailable(BortError):
    """This machine cannot run the engine: it is left out with the reason. Everything else that fails is an
    error."""


def make_batch(shape: Shape, vocab_size: int, seed: int = 0) -> Tuple[np.ndarray, np.ndarray]:
    """The same ``token_ids`` (B, T) int64 and ``valid_length`` (B,) float32 for every engine.

    Padded batches have lengths from half of T to T; the first sequence is whole.
    """
    batch, length, padded = shape
    rng = np.random.default_rng([seed, batch, length])
    ids = rng.integers(0, vocab_size, (batch, length))
    valid = rng.integers(max(1, length // 2), length + 1, batch) if padded else np.full(batch, length)
    valid[0] = length
    ids[np.arange(length) >= valid[:, None]] = 1
    return ids, valid.astype("float32")


def threads() -> int:
    """What the worker was started with."""
    return int(os.environ["BORT_BENCHMARK_THREADS"])


def attention_mask(ids: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(B, T) int64, as the peers want it."""
    return (np.arange(ids.shape[1]) < valid[:, None]).astype("int64")


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


def _torch_model(folder: Path) -> Any:
    import torch
    from transformers import BertModel

    torch.set_num_threads(threads())
    return torch, BertModel.from_pretrained(str(folder / "huggingface"), add_pooling_layer=False).eval()


def check_bfloat16() -> None:
    """Refuse bfloat16 where it is emulated: a hundred times slower, it would leave no time for the others.

    Raises:
        Unavailable: the processor has no instructions for it.
    """
    if not set(BFLOAT16_FLAGS).intersection(common.cpu_info()["flags"]):
        raise Unavailable(
            f"bfloat16 needs a CPU with {' or '.join(BFLOAT16_FLAGS)}; without them it is emulated"
        )


def _pytorch(dtype: str) -> Callable[[Path], Run]:
    def load(folder: Path) -> Run:
        if dtype == "bfloat16":
            check_bfloat16()
        torch, model = _torch_model(folder)
        if dtype == "int8":
            model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
        elif dtype == "bfloat16":
            model = model.to(torch.bfloat16)

        def run(ids: np.ndarray, valid: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                mask = torch.from_numpy(attention_mask(ids, valid))
                return (
                    model(input_ids=torch.from_numpy(ids), attention_mask=mask)
                    .last_hidden_state.float()
                    .numpy()
                )

        return run

    return load


def _pytorch_compiled(dtype: str) -> Callable[[Path], Run]:
    """``torch.compile``, which needs a C++ compiler; shapes are compiled as they come."""

    def load(folder: Path) -> Run:
        if dtype == "bfloat16":
            check_bfloat16()
        torch, model = _torch_model(folder)
        compiled = torch.compile(model.to(torch.bfloat16) if dtype == "bfloat16" else model)

        def run(ids: np.ndarray, valid: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                mask = torch.from_numpy(attention_mask(ids, valid))
                states = compiled(input_ids=torch.from_numpy(ids), attention_mask=mask).last_hidden_state
                return states.float().numpy()

        try:
            run(*make_batch((1, 8, False), 8))
        except Exception as error:  # dynamo's and the compiler's own exceptions
            raise Unavailable(f"torch.compile fails here: {str(error).splitlines()[0]}") from error
        return run

    return load


def openvino_network(path: Path, precision: str) -> Any:
    """OpenVINO on an ONNX file of transformers' model, called with ``input_ids`` and ``attention_mask``.

    int8 is NNCF's post-training quantization, as OpenVINO's documentation shows it, on random batches like
    ours.
    """
    from bort.engines.cpu import cpu_flags
    from bort.engines.openvino_int8 import import_nncf
    from bort.engines.openvino_model import import_openvino

    openvino = import_openvino()
    if precision == "bfloat16":
        check_bfloat16()
    core = openvino.Core()
    model = core.read_model(str(path))
    if precision == "int8":
        nncf = import_nncf()
        batches = [make_batch((4, length, False), 1000, 1) for length in (32, 128)]
        feeds = [{"input_ids": ids, "attention_mask": attention_mask(ids, valid)} for ids, valid in batches]
        model = nncf.quantize(model, nncf.Dataset(feeds), model_type=nncf.ModelType.TRANSFORMER)
    low = precision == "bfloat16" or (precision == "int8" and "amx_bf16" in cpu_flags())
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if low else "f32",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda ids, mask: next(iter(request.infer({"input_ids": ids, "attention_mask": mask}).values()))


def _openvino_hf(precision: str) -> Callable[[Path], Run]:
    def load(folder: Path) -> Run:
        network = openvino_network(folder / "huggingface.onnx", precision)
        return lambda ids, valid: network(ids, attention_mask(ids, valid)).copy()

    return load


def session(path: Path) -> Any:
    """An ONNX Runtime session as a user would open it, with our number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _onnxruntime_hf(name: str) -> Callable[[Path], Run]:
    def load(folder: Path) -> Run:
        opened = session(folder / name)
        return lambda ids, valid: opened.run(
            None, {"input_ids": ids, "attention_mask": attention_mask(ids, valid)}
        )[0]

    return load


def _make_hf(folder: Path) -> None:
    """transformers' BertModel through PyTorch's own exporter."""
    import onnxruntime  # noqa: F401

    torch, model = _torch_model(folder)
    export_torch(torch, model, "last_hidden_state", folder / "huggingface.onnx")


def _make_hf_once(folder: Path) -> None:
    if not (folder / "huggingface.onnx").exists():
        _make_hf(folder)


def _make_hf_int8(folder: Path) -> None:
    from onnxruntime import quantization

    whole = folder / "huggingface.onnx"
    _make_hf_once(folder)
    quantization.quantize_dynamic(
        whole, folder / "huggingface-int8.onnx", per_channel=True, weight_type=quantization.QuantType.QInt8
    )


def export_torch(torch: Any, model: Any, output: str, path: Path) -> None:
    """``path``: the ONNX form of a transformers model with dynamic batch and length.

    Args:
        output: which of its outputs, by attribute.
    """

    class Wrapped(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, mask: Any) -> Any:
            return getattr(self.model(input_ids=input_ids, attention_mask=mask), output)

    sample = torch.ones(2, 16, dtype=torch.long)
    axes = {
        "input_ids": {0: "batch", 1: "length"},
        "attention_mask": {0: "batch", 1: "length"},
        output: {0: "batch"},
    }
    if output == "last_hidden_state":
        axes[output][1] = "length"
    torch.onnx.export(
        Wrapped(),
        (sample, sample),
        str(path),
        input_names=["input_ids", "attention_mask"],
        output_names=[output],
        opset_version=17,
        dynamo=False,
        dynamic_axes=axes,
    )


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
    "pytorch": _pytorch("float32"),
    "pytorch-int8": _pytorch("int8"),
    "pytorch-bf16": _pytorch("bfloat16"),
    "pytorch-compile": _pytorch_compiled("float32"),
    "pytorch-compile-bf16": _pytorch_compiled("bfloat16"),
    "onnxruntime-hf": _onnxruntime_hf("huggingface.onnx"),
    "onnxruntime-hf-int8": _onnxruntime_hf("huggingface-int8.onnx"),
    "openvino-hf": _openvino_hf("float32"),
    "openvino-hf-int8": _openvino_hf("int8"),
    "openvino-hf-bf16": _openvino_hf("bfloat16"),
}
MAKERS: Dict[str, Callable[[Path], None]] = {
    "onnx": _make_onnx(None),
    "onnx-int8": _make_onnx("dynamic"),
    "onnxruntime-hf": _make_hf,
    "onnxruntime-hf-int8": _make_hf_int8,
    **dict.fromkeys(("openvino-hf", "openvino-hf-int8", "openvino-hf-bf16"), _make_hf_once),
}
DESCRIPTIONS = {
    "mxnet": "this project, float32 (bort.engines.mxnet_compiled)",
    "mxnet-int8": "this project, MXNet's int8",
    "mxnet-bf16": "this project, MXNet's bfloat16",
    "onnx": "bort.export in ONNX Runtime, float32",
    "onnx-int8": "bort.export --int8 dynamic in ONNX Runtime",
    "openvino": "this project's engine openvino, float32",
    "openvino-int8": "the same, int8 by NNCF, the rest in bfloat16 with AMX and else in float32",
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
    "openvino-hf": "transformers' model through torch.onnx in OpenVINO, float32",
    "openvino-hf-int8": "the same, int8 by NNCF as its documentation shows",
    "openvino-hf-bf16": "the same in bfloat16",
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
INT8_PEERS = ("pytorch-int8", "onnxruntime-hf-int8", "openvino-hf-int8")


def number_format(engine: str) -> str:
    """float32, int8 or bfloat16: of the linear layers."""
    return "int8" if engine.endswith("int8") else "bfloat16" if engine.endswith("bf16") else "float32"
