"""Export a model to ONNX: ``python -m bort.export MODEL OUT.onnx``. The file runs where MXNet is not
installed.

The file is checked before it appears: its outputs on random padded batches must be the model's. Its tokenizer
is put beside it, so that ``bort.engines.onnxruntime.OnnxRunner(OUT.onnx).classify(texts)`` needs nothing
else.
"""
from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from bort.checkpoints import inspection, model_folder
from bort.engines import onnx_graph, onnx_quantize
from bort.engines.calibration import EXAMPLES, Batch, calibration_batches
from bort.engines.onnxruntime import FORMAT, OnnxRunner, parameters_digest
from bort.errors import BortError
from bort.files import PathLike
from bort.models import Bert, Classifier
from bort.tasks.base import Task
from bort.tasks.labels import output_order
from bort.tasks.registry import get_task
from bort.text.tokenizers.loading import Tokenizer, find_tokenizer_files, load_tokenizer

TOLERANCE = 1e-3
"""Largest difference between the file and the model that passes, relative to the largest output."""
LEAST_CORRELATION = 0.5
"""Between an 8-bit file's outputs and the model's on random batches. Honest files reach 0.99 as a rule and
0.8 in the worst case tried (a tiny random network, calibrated on one repeated token); below this, 8 bits are
of no use or something is wrong. Outputs that hardly differ from one another pass by being close instead,
within a twentieth of their size."""
COMMANDS = """examples:
  python -m bort.export runs/sst2/model sst2.onnx
  python -m bort.export runs/sst2/model sst2-int8.onnx --int8 dynamic --evaluate data/glue
  python -m bort.export runs/rte/model rte-int8.onnx --int8 static --calibration data/glue
  python -m bort.export bort.params bort.onnx --architecture bort --part mlm
"""


def to_onnx(model: Union[Bert, Classifier], part: str, settings: Dict[str, Any]) -> Any:
    """The ``onnx.ModelProto`` of a model's part, with ``settings`` stored in it as JSON."""
    bert = model.body
    stored = {"part": part, "vocab_size": bert.vocab_size, "max_length": bert.max_length,
              "architecture": bert.architecture.to_dict(), **settings}
    return onnx_graph.build(onnx_graph.network_of(model), model_folder.parameter_arrays(model), part,
                            {"bort": FORMAT, "settings": json.dumps(stored)})


def compare(model: Union[Bert, Classifier], runner: OnnxRunner, seed: int = 0, batches: int = 4) -> Dict[str,
                                                                                                         float]:
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
            if not report["max_difference"] <= TOLERANCE * max(1.0, report["scale"]):
                raise BortError(f"{path}: the exported graph differs from the model by "
                                f"{report['max_difference']:.2g}; it is not written (a bug, or parameters "
                                "that are not finite)")
            result: Dict[str, Any] = {"file": str(path), "part": part, "bytes": 0, "float32": report}
            if int8 is not None:
                checked = Path(folder) / "int8.onnx"
                onnx_quantize.quantize(graph, checked, int8, batches, reduce_range)
                result["int8"] = {"method": int8, **_checked_int8(compare(model, OnnxRunner(checked)), path)}
            os.replace(checked, path)
    except OSError as error:
        raise BortError(f"{path}: cannot be written ({error.strerror})") from error
    if tokenizer is not None:
        tokenizer.save(path.parent)
    result["bytes"] = path.stat().st_size
    return result


def _checked_int8(report: Dict[str, float], path: Path) -> Dict[str, float]:
    close = report["max_difference"] <= 0.05 * report["scale"] or report["correlation"] >= LEAST_CORRELATION
    if not (np.isfinite(report["max_difference"]) and close):
        raise BortError(f"{path}: the 8-bit form computes something else than the model (correlation "
                        f"{report['correlation']:.3f}, largest difference {report['max_difference']:.2g}); "
                        "it is not written. Other --calibration data, --int8 dynamic or, on an old CPU, "
                        "--reduce-range may do better")
    return report


def evaluate(model: Classifier, runner: OnnxRunner, task: Task, data: PathLike, tokenizer: Tokenizer,
             max_length: int) -> Dict[str, Dict[str, float]]:
    """The dev metrics of a task from the model (``model``) and from the file (``onnx``).

    Raises:
        BortError: the data cannot be read, or the model has other labels than the task.
    """
    from bort.engines.base import EngineOptions
    from bort.engines.engine import open_engine
    from bort.finetuning.scoring import score
    from bort.tasks.encoding import encode

    order = output_order(model.labels, model.num_outputs, task, "the model",
                         model.task_name)
    split = task.read(data, "dev")
    token_ids = encode(task, split, tokenizer, max_length).token_ids
    result = {}
    plain = open_engine(model, "classifier", EngineOptions("mxnet"))
    for name, network in (("model", plain), ("onnx", runner)):
        scores = score(network, token_ids, tokenizer.pad_id, ranks=False)
        result[name] = task.evaluate(split, scores if order is None else scores[:, order])
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bort.export", description=__doc__.split("\n\n")[0],
                                     epilog=COMMANDS, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a model folder or a .params file")
    parser.add_argument("output", metavar="OUT.onnx")
    parser.add_argument("--part", choices=onnx_graph.PARTS,
                        help="default: classifier if there is one, else encoder")
    parser.add_argument("--int8", choices=onnx_quantize.METHODS,
                        help="8-bit linear layers; static needs --calibration")
    parser.add_argument("--calibration", metavar="DATA",
                        help="a text file, an input per line, or the task's folder")
    parser.add_argument("--examples", type=int, metavar="N",
                        help=f"drawn from it (default: {EXAMPLES})")
    parser.add_argument("--reduce-range", action="store_true",
                        help="7-bit weights, for CPUs without VNNI instructions")
    parser.add_argument("--evaluate", metavar="DATA",
                        help="the task's folder: print dev metrics before and after")
    parser.add_argument("--task", help="whose data these folders hold (default: the model's own)")
    parser.add_argument("--max-length", type=int, metavar="N", help="of both (default: as trained)")
    parser.add_argument("--tokenizer", metavar="DIR", help="take the tokenizer from here")
    parser.add_argument("--architecture", metavar="D,A,H,I", help="of a bare .params file")
    parser.add_argument("--heads", type=int, metavar="A", help="of a bare .params file, instead")
    parser.add_argument("--seed", type=int, default=0, help="draws the calibration examples (default: 0)")
    return parser


def _open(args: argparse.Namespace) -> Tuple[Any, Optional[Tokenizer], Optional[Task], int]:
    """The model, its tokenizer and task, and the length it was trained with."""
    stored = model_folder.read(args.model, args.architecture, args.heads)
    model = model_folder.build(stored.config, str(args.model))
    model_folder.set_parameters(model, stored.arrays, str(args.model))
    own, encoding = (model.task_name, model.encoding) if isinstance(model, Classifier) else (None, None)
    name = args.task or own
    task = get_task(name, encoding or "paper") if name else None
    training = stored.config.get("training")
    used = training.get("max_length") if isinstance(training, dict) else None
    if args.max_length is not None and not 4 <= args.max_length <= model.max_length:
        raise BortError(f"--max-length {args.max_length}: {args.model} takes from 4 to {model.max_length} "
                        "tokens")
    if not isinstance(used, int) or not 4 <= used <= model.max_length:
        used = model.max_length  # not recorded: nothing that the model takes is cut
    return model, inspection.find_tokenizer(stored, args.tokenizer), task, args.max_length or used


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; a JSON report goes to stdout."""
    args = _parser().parse_args(argv)
    if args.int8 == "static" and not args.calibration:
        raise BortError("--int8 static needs --calibration DATA: a text file or the task's data folder")
    if args.calibration and args.int8 != "static":
        raise BortError(f"--calibration {args.calibration}: only --int8 static learns from data")
    if args.examples is not None and not args.calibration:
        raise BortError("--examples: is a number of calibration examples, and there is no --calibration")
    if args.reduce_range and args.int8 is None:
        raise BortError("--reduce-range: is for 8-bit weights; add --int8 dynamic or static")
    model, tokenizer, task, length = _open(args)
    if tokenizer is None and (args.calibration or args.evaluate):
        raise BortError(f"{args.model}: there is no tokenizer with it; give --tokenizer DIR")
    if args.evaluate and (task is None or not isinstance(model, Classifier) or args.part not in (None,
                                                                                                 "classifier")):
        raise BortError("--evaluate needs a classifier and its task; give --task NAME if the model does not "
                        "name one")
    batches: Sequence[Batch] = ()
    if args.calibration and tokenizer is not None:
        batches = calibration_batches(args.calibration, tokenizer, length, task,
                                      EXAMPLES if args.examples is None else args.examples, args.seed)
    settings = {"used_length": length, "truncation": task.truncation if task is not None else "even"}
    report = export(model, args.output, args.part, args.int8, batches, tokenizer, args.reduce_range, settings)
    if args.evaluate and tokenizer is not None and task is not None:
        report["dev"] = evaluate(model, OnnxRunner(args.output), task, args.evaluate, tokenizer, length)
    print(json.dumps(report, indent=2, ensure_ascii=False))
    return 0
