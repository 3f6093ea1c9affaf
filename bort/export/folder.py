"""A model as a folder that runs where neither MXNet nor this project is installed.

    OUT/model.onnx, or model.xml and model.bin     the network
    OUT/tokenizer.json                             for the package ``tokenizers``; the vocabulary's own files
    OUT/settings.json                              labels, longest input, precision, where it comes from
    OUT/example.py                                 answers from these files: python OUT/example.py "A text."
"""
from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Union

from bort.checkpoints import model_folder
from bort.engines import onnx_graph, openvino
from bort.engines.base import Batch
from bort.engines.onnxruntime import OnnxRunner
from bort.engines.openvino_model import import_openvino
from bort.errors import BortError
from bort.export.evaluation import DevSet
from bort.export.int8 import least_harmful
from bort.export.onnx_export import check_exact, checked_int8, compare, export
from bort.files import PathLike, atomic_write
from bort.huggingface.tokenizer import write_tokenizer
from bort.json_files import read_json, write_json
from bort.models import Bert, Classifier
from bort.text.tokenizers.base import Tokenizer

FORMATS = ("onnx", "openvino")
PRECISIONS = ("float32", "bfloat16", "int8")
FORMAT = "bort-deployment-1"
EXAMPLE = '''"""{title}, with {package}, tokenizers and numpy: python {name} "A text." ["A second text."]"""
import json
import sys
from pathlib import Path

{imports}
import numpy as np
from tokenizers import Tokenizer

here = Path(__file__).resolve().parent
settings = json.loads((here / "settings.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(here / "tokenizer.json"))
tokenizer.enable_truncation(settings["max_length"])
ids = tokenizer.encode(*sys.argv[1:3]).ids
inputs = {{"token_ids": np.array([ids]), "valid_length": np.array([len(ids)], dtype=np.float32)}}
{more}{run}
{answer}
'''
IMPORTS = {"onnx": "import onnxruntime",
           "openvino": 'sys.modules["openvino_telemetry"] = None  # openvino reports its use otherwise\n'
           "import openvino"}
RUN = {"onnx": 'network = onnxruntime.InferenceSession(str(here / "model.onnx"))\n'
       "outputs = network.run(None, inputs)[0][0]",
       "openvino": 'core = openvino.Core()\n'
       'network = core.compile_model(here / "model.xml", "CPU", settings["openvino"])\n'
       "outputs = network(inputs)[0][0]"}
MORE = {"mlm": 'masks = [place for place, token in enumerate(ids) if token == settings["mask_id"]]\n'
        'inputs["masked_positions"] = np.array([masks])\n'}
LABELS = '''weights = np.exp(outputs - outputs.max())
print(json.dumps(dict(zip(settings["labels"], (weights / weights.sum()).tolist()))))'''
ANSWERS = {"encoder": "print(json.dumps({\"shape\": outputs.shape, \"first\": outputs[0].tolist()}))",
           "regression": "print(json.dumps({\"score\": float(outputs[0])}))", "classifier": LABELS,
           "mlm": "print(json.dumps([tokenizer.decode([int(row.argmax())]) for row in outputs]))"}


@dataclass(frozen=True)
class FolderOptions:
    """What the folder holds.

    Attributes:
        format: one of :data:`FORMATS`.
        precision: one of :data:`PRECISIONS`; "bfloat16" is a setting of the example, for OpenVINO only.
        part: "encoder", "classifier" or "mlm"; by default "classifier" if there is a head, else "encoder".
        max_length: longer inputs are cut.
        truncation: how pairs are cut, see ``bort.tasks.encoding``.

    Raises:
        BortError: a value is unknown, or two do not go together.
    """

    format: str
    precision: str = "float32"
    part: Optional[str] = None
    max_length: Optional[int] = None
    truncation: str = "even"

    def __post_init__(self) -> None:
        for what, value, choices in (("format", self.format, FORMATS), ("precision", self.precision,
                                                                        PRECISIONS)):
            if value not in choices:
                raise BortError(f"{what} {value!r} is unknown; choose one of {', '.join(choices)}")
        if self.format == "onnx" and self.precision == "bfloat16":
            raise BortError("ONNX Runtime does not compute in bfloat16 on CPUs; choose --format openvino, or "
                            "another precision")


def export_folder(model: Union[Bert, Classifier], out: PathLike, options: FolderOptions,
                  tokenizer: Tokenizer, batches: Sequence[Batch] = (), dev: Optional[DevSet] = None
                  ) -> Dict[str, Any]:
    """Write the folder, its model checked against ``model``.

    Args:
        batches: calibration inputs ``(token_ids, valid_length)``, which int8 in OpenVINO needs, and int8 in
            ONNX takes ("dynamic" without).
        dev: a dev set on which the exported model is measured; in OpenVINO's int8, layers stay in float32
            when it shows a loss of more than half a point.

    Returns:
        What the command prints.

    Raises:
        BortError: a package is missing, the tokenizer has no form for ``tokenizers``, the folder holds
            something else, or the exported network computes something else than ``model``.
    """
    out, part = Path(out), options.part or ("classifier" if isinstance(model, Classifier) else "encoder")
    _refuse_foreign(out)
    report: Dict[str, Any] = {"folder": str(out), "format": options.format, "part": part,
                              "precision": options.precision}
    settings = _settings(model, part, options, tokenizer)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=str(out.parent), prefix=".export-") as name:
            fresh = Path(name)
            note = write_tokenizer(tokenizer, fresh, settings["max_length"])
            if not (fresh / "tokenizer.json").is_file():
                raise BortError(f"{note or 'its tokenizer has no tokenizer.json'}, which the example needs; "
                                f"export a file instead: python -m bort.export MODEL {out}.onnx")
            if note:
                report["note"] = note
            write = _write_openvino if options.format == "openvino" else _write_onnx
            report.update(write(model, fresh, out, settings, batches, dev))
            write_json(fresh / "settings.json", settings)
            with atomic_write(fresh / "example.py") as stream:
                stream.write(example(options.format, part, settings))
            out.mkdir(exist_ok=True)
            for file in fresh.iterdir():
                os.replace(file, out / file.name)
    except OSError as error:
        raise BortError(f"{out}: cannot be written ({error.strerror})") from error
    report["bytes"] = sum(file.stat().st_size for file in out.glob("model.*"))
    return report


def _refuse_foreign(out: Path) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        known = out / "settings.json"
        if not known.is_file() or read_json(known).get("format") != FORMAT:
            raise BortError(f"{out}: holds something else than an export of this project; choose a new "
                            "folder")


def _settings(model: Union[Bert, Classifier], part: str, options: FolderOptions,
              tokenizer: Tokenizer) -> Dict[str, Any]:
    low = "bf16" if options.precision == "bfloat16" else "f32"
    settings: Dict[str, Any] = {
        "format": FORMAT, "part": part, "precision": options.precision,
        "max_length": options.max_length or model.max_length, "truncation": options.truncation,
        "pad_id": tokenizer.pad_id, "mask_id": tokenizer.mask_id,
        "architecture": model.architecture.to_dict(), "vocab_size": model.vocab_size}
    if options.format == "openvino":
        settings["openvino"] = {"INFERENCE_PRECISION_HINT": low}
    if isinstance(model, Classifier) and part == "classifier":
        labels = [str(label) for label in model.labels or range(model.num_outputs)]
        settings.update({"task": model.task_name, "num_outputs": model.num_outputs,
                         "labels": labels if model.num_outputs > 1 else None})
    return settings


def example(format_name: str, part: str, settings: Dict[str, Any]) -> str:
    """The text of ``example.py``."""
    kind = "regression" if part == "classifier" and settings["num_outputs"] == 1 else part
    return EXAMPLE.format(title=f"Answers of the {part} in this folder", name="example.py",
                          package="onnxruntime" if format_name == "onnx" else "openvino",
                          imports=IMPORTS[format_name], more=MORE.get(part, ""), run=RUN[format_name],
                          answer=ANSWERS[kind])


def _write_onnx(model: Union[Bert, Classifier], fresh: Path, out: Path, settings: Dict[str, Any],
                batches: Sequence[Batch], dev: Optional[DevSet]) -> Dict[str, Any]:
    method = None if settings["precision"] == "float32" else "static" if batches else "dynamic"
    stored = {"used_length": settings["max_length"], "truncation": settings["truncation"]}
    report = export(model, fresh / "model.onnx", settings["part"], method, batches, settings=stored)
    result: Dict[str, Any] = {name: report[name] for name in ("float32", "int8") if name in report}
    if dev is not None:
        result["dev"] = {"model": dev.own, "onnx": dev.metrics(OnnxRunner(fresh / "model.onnx"))}
    return result


def _write_openvino(model: Union[Bert, Classifier], fresh: Path, out: Path, settings: Dict[str, Any],
                    batches: Sequence[Batch], dev: Optional[DevSet]) -> Dict[str, Any]:
    facts, arrays = onnx_graph.network_of(model), model_folder.parameter_arrays(model)
    part, precision = settings["part"], settings["precision"]
    engine = openvino.make(facts, arrays, part, "float32", ())
    result: Dict[str, Any] = {"float32": compare(model, engine)}
    check_exact(result["float32"], out)
    if precision == "int8":
        if not batches:
            raise BortError("int8 in OpenVINO needs calibration data: give --calibration DATA")
        engine, result["kept"] = least_harmful(model, batches, part, dev)
        result["int8"] = checked_int8(compare(model, engine), out)
    if precision == "bfloat16":
        engine = openvino.make(facts, arrays, part, "bfloat16", ())
        result["bfloat16"] = compare(model, engine)
    if dev is not None:
        result["dev"] = {"model": dev.own, "openvino": dev.metrics(engine)}
    import_openvino().save_model(engine.model, str(fresh / "model.xml"), compress_to_fp16=False)
    return result
