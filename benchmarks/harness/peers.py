"""The engines that this project is compared with: what users run transformers' models with, each as its own
documentation shows.

Makers write files into a folder that has transformers' model in ``huggingface``; the others read these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Sequence

import numpy as np

from benchmarks.harness.shapes import Run, Unavailable, attention_mask, check_bfloat16, make_batch, threads

Feeds = Sequence[Dict[str, np.ndarray]]
CTRANSLATE2_KINDS = {"float32": "float32", "int8": "int8_float32"}


def torch_model(folder: Path) -> Any:
    """The module ``torch``, set to our threads, and transformers' model."""
    import torch
    from transformers import BertModel

    torch.set_num_threads(threads())
    return torch, BertModel.from_pretrained(str(folder / "huggingface"), add_pooling_layer=False).eval()


def in_precision(torch: Any, model: Any, precision: str) -> Any:
    """A module in "float32", dynamic "int8" or "bfloat16"."""
    if precision == "bfloat16":
        check_bfloat16()
        return model.to(torch.bfloat16)
    if precision == "int8":
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    return model


def pytorch(dtype: str) -> Callable[[Path], Run]:
    def load(folder: Path) -> Run:
        if dtype == "bfloat16":
            check_bfloat16()  # before anything is loaded
        torch, model = torch_model(folder)
        model = in_precision(torch, model, dtype)

        def run(ids: np.ndarray, valid: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                mask = torch.from_numpy(attention_mask(ids, valid))
                states = model(input_ids=torch.from_numpy(ids), attention_mask=mask).last_hidden_state
                return states.float().numpy()

        return run

    return load


def pytorch_compiled(dtype: str) -> Callable[[Path], Run]:
    """``torch.compile``, which needs a C++ compiler; shapes are compiled as they come."""

    def load(folder: Path) -> Run:
        if dtype == "bfloat16":
            check_bfloat16()  # before anything is loaded
        torch, model = torch_model(folder)
        compiled = torch.compile(in_precision(torch, model, dtype))

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


def convert_openvino(model: Any, path: Path, torch: Any) -> None:
    """``path`` (.xml): a transformers model as optimum-intel converts it, straight from PyTorch."""
    from bort.engines.openvino_model import import_openvino

    openvino = import_openvino()
    sample = torch.ones(2, 16, dtype=torch.long)
    with torch.no_grad():
        converted = openvino.convert_model(
            model, example_input={"input_ids": sample, "attention_mask": sample}
        )
    openvino.save_model(converted, str(path), compress_to_fp16=False)


def quantize_openvino(source: Path, path: Path, feeds: Feeds) -> None:
    """``path``: the 8-bit form of ``source``, by NNCF's post-training quantization on ``feeds``."""
    from bort.engines.openvino_int8 import import_nncf
    from bort.engines.openvino_model import import_openvino

    nncf, openvino = import_nncf(), import_openvino()
    model = openvino.Core().read_model(str(source))
    model = nncf.quantize(
        model, nncf.Dataset(feeds), subset_size=len(feeds), model_type=nncf.ModelType.TRANSFORMER
    )
    openvino.save_model(model, str(path), compress_to_fp16=False)


def openvino_network(path: Path, precision: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """OpenVINO on a file of :func:`convert_openvino`, called with ``input_ids`` and ``attention_mask``."""
    from bort.engines.cpu import BFLOAT16_FLAGS, cpu_flags
    from bort.engines.openvino_model import import_openvino

    if precision == "bfloat16":
        check_bfloat16()
    # as OpenVINO chooses by itself beside 8 bits
    low = precision == "bfloat16" or (precision == "int8" and cpu_flags().intersection(BFLOAT16_FLAGS))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if low else "f32",
    }
    core = import_openvino().Core()
    request = core.compile_model(core.read_model(str(path)), "CPU", settings).create_infer_request()
    return lambda ids, mask: next(iter(request.infer({"input_ids": ids, "attention_mask": mask}).values()))


def openvino_hf(precision: str) -> Callable[[Path], Run]:
    def load(folder: Path) -> Run:
        name = "openvino-int8.xml" if precision == "int8" else "openvino.xml"
        network = openvino_network(folder / name, precision)
        return lambda ids, valid: network(ids, attention_mask(ids, valid)).copy()

    return load


def make_openvino(folder: Path) -> None:
    if not (folder / "openvino.xml").exists():
        torch, model = torch_model(folder)
        convert_openvino(model, folder / "openvino.xml", torch)


def make_openvino_int8(folder: Path) -> None:
    make_openvino(folder)
    batches = [make_batch((4, length, False), 1000, 1) for length in (32, 128)]
    feeds = [{"input_ids": ids, "attention_mask": attention_mask(ids, valid)} for ids, valid in batches]
    quantize_openvino(folder / "openvino.xml", folder / "openvino-int8.xml", feeds)


def make_ctranslate2(folder: Path) -> None:
    """transformers' model by CTranslate2's own converter, which wants a pooler that nobody asks for."""
    import ctranslate2  # noqa: F401
    import torch
    from ctranslate2.converters.transformers import BertLoader
    from transformers import BertModel

    if (folder / "ctranslate2").exists():
        return
    model = BertModel.from_pretrained(str(folder / "huggingface")).eval()
    model.config.position_embedding_type = "absolute"  # which transformers 5 no longer says
    with torch.no_grad():
        spec = BertLoader().get_model_spec(model)
    spec.register_vocabulary([str(number) for number in range(model.config.vocab_size)])
    spec.config.layer_norm_epsilon, spec.config.unk_token = model.config.layer_norm_eps, "0"
    spec.validate()
    (folder / "ctranslate2").mkdir()
    spec.save(str(folder / "ctranslate2"))


def ctranslate2_encoder(precision: str) -> Callable[[Path], Run]:
    """CTranslate2's encoder, called with lists of ids as its interface has them."""

    def load(folder: Path) -> Run:
        import ctranslate2

        encoder = ctranslate2.Encoder(
            str(folder / "ctranslate2"),
            device="cpu",
            compute_type=CTRANSLATE2_KINDS[precision],
            intra_threads=threads(),
        )

        def run(ids: np.ndarray, valid: np.ndarray) -> np.ndarray:
            rows = [row[: int(length)].tolist() for row, length in zip(ids, valid)]
            return np.array(encoder.forward_batch(rows).last_hidden_state)

        return run

    return load


def session(path: Path) -> Any:
    """An ONNX Runtime session as a user would open it, with our number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnxruntime_hf(name: str) -> Callable[[Path], Run]:
    def load(folder: Path) -> Run:
        opened = session(folder / name)
        return lambda ids, valid: opened.run(
            None, {"input_ids": ids, "attention_mask": attention_mask(ids, valid)}
        )[0]

    return load


def make_hf(folder: Path) -> None:
    """transformers' BertModel through PyTorch's own exporter."""
    import onnxruntime  # noqa: F401

    torch, model = torch_model(folder)
    export_torch(torch, model, "last_hidden_state", folder / "huggingface.onnx")


def make_hf_once(folder: Path) -> None:
    if not (folder / "huggingface.onnx").exists():
        make_hf(folder)


def make_hf_int8(folder: Path) -> None:
    make_hf_once(folder)
    quantize_onnx(folder / "huggingface.onnx", folder / "huggingface-int8.onnx")


def quantize_onnx(source: Path, path: Path) -> None:
    """``path``: ONNX Runtime's dynamic 8-bit form of ``source``, per channel."""
    from onnxruntime import quantization

    quantization.quantize_dynamic(
        source, path, per_channel=True, weight_type=quantization.QuantType.QInt8
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
