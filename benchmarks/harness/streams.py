"""What ``streaming.py`` compares: ways of classifying a stream of sentences, each in a process of its own.

    python -m benchmarks.harness.streams ENGINE  # JSON lines in and out (see workers.py)

Commands: ``{"prepare": folder, ...}``, ``{"make": folder}``, ``{"load": folder}``, ``{"start": file, "count":
n}`` (of its lines), ``{"next": n}``, ``{"finish": path}``. Every engine turns an iterator of sentences into
an iterator of the last label's probabilities, in the order of the sentences, and reads no further ahead than
it wants to.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import numpy as np

from benchmarks.harness import peers, shapes, workers
from bort.errors import BortError

CHECKED = 256
"""Sentences on which the engines are compared before anything is timed."""
FLOPS = "flops.npy"
"""What :func:`prepare` leaves beside the models: operations of every sentence."""
Classify = Callable[[Iterator[str]], Iterator[float]]
Network = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Logits (B, 2) of ``input_ids`` and ``attention_mask``, both (B, T) int64."""


def _predictor(engine: str, dtype: str = "float32") -> Callable[[Path], Classify]:
    """``bort.predict``, as its command runs it."""

    def load(folder: Path) -> Classify:
        from bort.engines import openvino, openvino_int8
        from bort.engines.mxnet_compiled import check_dtype
        from bort.predict.predictor import Predictor
        from bort.predict.records import given_records

        try:
            if engine == "openvino":
                openvino.check_precision(dtype)
                if dtype == "int8":
                    openvino_int8.import_nncf()
            else:
                check_dtype(dtype)
            file = {"onnx": folder / f"{engine}.onnx"} if engine.startswith("onnx") else {}
            predictor = Predictor(
                folder / "model", engine="onnx" if file else engine, precision=dtype, **file
            )
        except BortError as error:
            raise shapes.Unavailable(str(error)) from error
        last = str(predictor.task.spell(1))

        def classify(sentences: Iterator[str]) -> Iterator[float]:
            for row in predictor.stream(given_records(predictor.task, sentences), strict=True):
                yield row["probabilities"][last]

        return classify

    return load


def _make_onnx(engine: str, method: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401

        from bort.checkpoints import model_folder
        from bort.export import onnx_export

        onnx_export.export(
            model_folder.load(folder / "model"), folder / f"{engine}.onnx", "classifier", method
        )

    return make


def _pipeline(batch_size: int) -> Callable[[Path], Classify]:
    """transformers' text classification on a generator of sentences."""

    def load(folder: Path) -> Classify:
        import torch
        from transformers import pipeline

        torch.set_num_threads(shapes.threads())
        run = pipeline(
            "text-classification",
            str(folder / "huggingface"),
            device="cpu",
            batch_size=batch_size,
            top_k=None,
        )
        last = run.model.config.id2label[1]

        def classify(sentences: Iterator[str]) -> Iterator[float]:
            # a generator is what it takes for a stream
            for scores in run(sentence for sentence in sentences):
                yield next(score["score"] for score in scores if score["label"] == last)

        return classify

    return load


def _loop(batch_size: int, engine: str, precision: str = "float32") -> Callable[[Path], Classify]:
    """The loop that one writes around an engine: batches as they come, padded to their longest.

    Args:
        engine: "onnxruntime", "openvino" or "pytorch", with transformers' model.
    """

    def load(folder: Path) -> Classify:
        import tokenizers

        network = NETWORKS[engine](folder, precision)
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "huggingface" / "tokenizer.json"))
        settings = json.loads((folder / "huggingface" / "config.json").read_text())
        tokenizer.enable_padding(pad_id=settings["pad_token_id"])

        def classify(sentences: Iterator[str]) -> Iterator[float]:
            for batch in iter(lambda: list(itertools.islice(sentences, batch_size)), []):
                rows = tokenizer.encode_batch(batch)
                logits = network(
                    np.array([row.ids for row in rows]), np.array([row.attention_mask for row in rows])
                )
                weights = np.exp(logits - logits.max(axis=1, keepdims=True))
                yield from (weights[:, 1] / weights.sum(axis=1)).tolist()

        return classify

    return load


def _onnxruntime(folder: Path, precision: str) -> Network:
    opened = peers.session(folder / ("huggingface-int8.onnx" if precision == "int8" else "huggingface.onnx"))
    return lambda ids, mask: opened.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def _openvino(folder: Path, precision: str) -> Network:
    name = "openvino-int8.xml" if precision == "int8" else "openvino.xml"
    return peers.openvino_network(folder / name, precision)


def _pytorch(folder: Path, precision: str) -> Network:
    torch, model = _torch_classifier(folder)
    model = peers.in_precision(torch, model, precision)

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
            return logits.float().numpy()

    return run


NETWORKS: Dict[str, Callable[[Path, str], Network]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "pytorch": _pytorch,
}


def _torch_classifier(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(shapes.threads())
    return torch, AutoModelForSequenceClassification.from_pretrained(str(folder / "huggingface")).eval()


def _make_hf(folder: Path) -> None:
    if not (folder / "huggingface.onnx").exists():
        torch, model = _torch_classifier(folder)
        peers.export_torch(torch, model, "logits", folder / "huggingface.onnx")


def _make_hf_int8(folder: Path) -> None:
    _make_hf(folder)
    peers.quantize_onnx(folder / "huggingface.onnx", folder / "huggingface-int8.onnx")


def _make_openvino(folder: Path) -> None:
    if not (folder / "openvino.xml").exists():
        torch, model = _torch_classifier(folder)
        peers.convert_openvino(model, folder / "openvino.xml", torch)


def _make_openvino_int8(folder: Path) -> None:
    """Calibrated on the sentences on which ours is."""
    import tokenizers

    _make_openvino(folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "huggingface" / "tokenizer.json"))
    lines = (folder / "sentences.txt").read_text(encoding="utf-8").splitlines()[:CHECKED]
    feeds = [
        {"input_ids": np.array([row.ids]), "attention_mask": np.array([row.attention_mask])}
        for row in tokenizer.encode_batch(lines)
    ]
    peers.quantize_openvino(folder / "openvino.xml", folder / "openvino-int8.xml", feeds)


def prepare(
    folder: Path, architecture: str, model: Optional[str], tokenizer: Optional[str], vocab_size: Optional[int]
) -> str:
    """Write ``folder/model`` and ``folder/huggingface``, the same classifier twice; what it is.

    Args:
        model: a fine-tuned one; otherwise ``architecture`` with random weights.
        tokenizer: its folder; otherwise the model's, or one of ``vocab_size`` trained on
            ``folder/sentences.txt``.

    Raises:
        BortError: the model is no classifier of two classes, or there is no tokenizer.
    """
    from bort.architecture import parse
    from bort.checkpoints import inspection, model_folder
    from bort.huggingface import export_folder
    from bort.models import Bert, Classifier, initialize
    from bort.text.tokenizers.loading import load_tokenizer, train_sentencepiece

    texts = (folder / "sentences.txt").read_text(encoding="utf-8").splitlines()
    if model:
        network, found = (
            model_folder.load(model),
            inspection.find_tokenizer(model_folder.read(model), tokenizer),
        )
        if found is None or not isinstance(network, Classifier) or network.num_outputs != 2:
            raise BortError(f"{model}: a classifier of two classes with its tokenizer is needed")
        name = f"{model} {network.bort.architecture.display}"
    else:
        found = load_tokenizer(tokenizer) if tokenizer else train_sentencepiece(texts, vocab_size or 8000)
        bert = Bert(parse(architecture), found.vocab_size)
        initialize(bert, 0)
        network = Classifier(bert, 2, "pooled")
        network.initialize_head(1)
        network.task_name, network.labels = "SST-2", ["0", "1"]
        _spread(network, found, texts[:CHECKED])
        name = f"{architecture} {bert.architecture.display}, random weights, {found.kind} tokenizer"
    model_folder.save(network, folder / "model", found)
    export_folder(folder / "model", folder / "huggingface")
    np.save(folder / FLOPS, least_flops(network, found, texts))
    return f"{name}, V = {found.vocab_size:,}"


def least_flops(model: Any, tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """Operations (N,) float64 that a label needs at least: no padding, and of the last layer only the keys
    and values of all tokens; only products are counted, 2mn of a token for an m x n matrix."""
    shape = model.bort.architecture
    lengths = np.array([len(ids) for ids in tokenizer.encode_batch(list(texts))], dtype=np.float64)
    lengths = np.minimum(lengths + 2, model.max_length)  # two special tokens
    square, feed_forward = 2 * shape.hidden * shape.attention_units, 4 * shape.hidden * shape.intermediate
    layer = lengths * (4 * square + feed_forward) + 4 * shape.attention_units * lengths**2
    last = 2 * square * (lengths + 1) + feed_forward + 4 * shape.attention_units * lengths
    return (shape.depth - 1) * layer + last


def _spread(model: Any, tokenizer: Any, texts: Sequence[str]) -> None:
    """Scale and shift a random head's outputs, so that the labels of ``texts`` differ and mistakes show in
    them."""
    from bort.backend.mxnet import mx
    from bort.finetuning.scoring import score
    from bort.tasks.encoding import encode_pair

    rows = [
        encode_pair(tokenizer, ids, None, model.max_length) for ids in tokenizer.encode_batch(list(texts))
    ]
    logits = score(model, rows, tokenizer.pad_id, ranks=False)
    apart = logits[:, 1] - logits[:, 0]
    last = model.classifier[len(model.classifier) - 1]
    scale = 2.0 / max(float(apart.std()), 1e-6)
    last.weight.set_data(last.weight.data() * scale)
    last.bias.set_data(mx.nd.array([0.0, -scale * float(np.median(apart))]) + last.bias.data() * scale)


ENGINES: Dict[str, Callable[[Path], Classify]] = {
    "mxnet": _predictor("mxnet"),
    "mxnet-int8": _predictor("mxnet", "int8"),
    "mxnet-bf16": _predictor("mxnet", "bfloat16"),
    "onnx": _predictor("onnx"),
    "onnx-int8": _predictor("onnx-int8"),
    "openvino": _predictor("openvino"),
    "openvino-int8": _predictor("openvino", "int8"),
    "openvino-bf16": _predictor("openvino", "bfloat16"),
    "pipeline-1": _pipeline(1),
    "pipeline-32": _pipeline(32),
    "onnxruntime-1": _loop(1, "onnxruntime"),
    "onnxruntime-32": _loop(32, "onnxruntime"),
    "onnxruntime-32-int8": _loop(32, "onnxruntime", "int8"),
    "openvino-32": _loop(32, "openvino"),
    "openvino-32-int8": _loop(32, "openvino", "int8"),
    "openvino-32-bf16": _loop(32, "openvino", "bfloat16"),
    "pytorch-32": _loop(32, "pytorch"),
    "pytorch-32-int8": _loop(32, "pytorch", "int8"),
    "pytorch-32-bf16": _loop(32, "pytorch", "bfloat16"),
}
MAKERS: Dict[str, Callable[[Path], None]] = {
    "onnx": _make_onnx("onnx", None),
    "onnx-int8": _make_onnx("onnx-int8", "dynamic"),
    **dict.fromkeys(("onnxruntime-1", "onnxruntime-32"), _make_hf),
    "onnxruntime-32-int8": _make_hf_int8,
    **dict.fromkeys(("openvino-32", "openvino-32-bf16"), _make_openvino),
    "openvino-32-int8": _make_openvino_int8,
}
DESCRIPTIONS = {
    "mxnet": "bort.predict --engine mxnet",
    "mxnet-int8": "bort.predict --engine mxnet --precision int8",
    "mxnet-bf16": "bort.predict --engine mxnet --precision bfloat16",
    "onnx": "bort.predict --engine onnx",
    "onnx-int8": "bort.predict --engine onnx, exported with --int8 dynamic",
    "openvino": "bort.predict --engine openvino",
    "openvino-int8": "bort.predict --engine openvino --precision int8",
    "openvino-bf16": "bort.predict --engine openvino --precision bfloat16",
    "pipeline-1": "transformers' pipeline, batches of 1 (its default)",
    "pipeline-32": "transformers' pipeline, batches of 32 as they come",
    "onnxruntime-1": "a loop around ONNX Runtime with the export of transformers' model, batches of 1",
    "onnxruntime-32": "the same, batches of 32 as they come, padded to their longest",
    "onnxruntime-32-int8": "the same in dynamic int8, per channel",
    "openvino-32": "the same loop around OpenVINO, with transformers' model as optimum-intel converts it",
    "openvino-32-int8": "the same in int8 by NNCF, calibrated on 256 of the sentences",
    "openvino-32-bf16": "the same in bfloat16",
    "pytorch-32": "the same loop around transformers' model in PyTorch",
    "pytorch-32-int8": "the same in dynamic int8",
    "pytorch-32-bf16": "the same in bfloat16",
}
OURS = (
    "mxnet",
    "mxnet-int8",
    "mxnet-bf16",
    "onnx",
    "onnx-int8",
    "openvino",
    "openvino-int8",
    "openvino-bf16",
)


def _answer(engine: str, command: Dict[str, Any], state: Dict[str, Any]) -> Dict[str, Any]:
    if "prepare" in command:
        folder = Path(command.pop("prepare"))
        return {"network": prepare(folder, **command)}
    if "make" in command:
        MAKERS[engine](Path(command["make"]))
    elif "load" in command:
        start = time.perf_counter()
        state["classify"] = ENGINES[engine](Path(command["load"]))
        return {"seconds": time.perf_counter() - start, "mib": workers.memory_mib("VmRSS")}
    elif "start" in command:
        lines = Path(command["start"]).read_text(encoding="utf-8").splitlines()[: command["count"]]
        state["found"], state["stream"] = [], state["classify"](iter(lines))
    elif "next" in command:
        start = time.perf_counter()
        found: List[float] = state["found"]
        found.extend(itertools.islice(state["stream"], command["next"]))
        return {"seconds": time.perf_counter() - start, "found": len(found)}
    elif "finish" in command:
        rest = list(state["stream"])
        if rest:
            raise BortError(f"{len(rest)} predictions more than there are sentences")
        np.save(command["finish"], np.array(state["found"]))
    return {"mib": workers.memory_mib("VmHWM")}


if __name__ == "__main__":
    sys.exit(workers.serve(sys.argv[1], _answer, sys.argv[1] in (*OURS, "prepare")))
