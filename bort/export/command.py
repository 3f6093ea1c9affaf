"""The command ``python -m bort.export``: a model as an ONNX file, or as a folder that runs by itself."""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from bort.checkpoints import inspection, model_folder
from bort.engines import onnx_graph, onnx_quantize
from bort.engines.calibration import EXAMPLES, Batch, calibration_batches
from bort.engines.onnxruntime import OnnxRunner
from bort.errors import BortError
from bort.export.evaluation import DevSet
from bort.export.folder import FORMATS, PRECISIONS, FolderOptions, export_folder
from bort.export.onnx_export import export
from bort.models import Bert, Classifier
from bort.tasks.base import Task
from bort.tasks.labels import name_outputs, output_task, stated_labels, task_of
from bort.tasks.registry import ENCODINGS, get_task
from bort.text.tokenizers.loading import Tokenizer

COMMANDS = """examples:
  python -m bort.export runs/sst2/model sst2.onnx
  python -m bort.export runs/sst2/model sst2-int8.onnx --int8 dynamic --evaluate data/glue
  python -m bort.export runs/rte/model rte-int8.onnx --int8 static --calibration data/glue
  python -m bort.export bort.params bort.onnx --architecture bort --part mlm

a folder with tokenizer, labels and an example, for machines without MXNet and without this project:
  python -m bort.export runs/sst2/model deployed --format openvino
  python -m bort.export runs/rte/model deployed --format openvino --precision int8 --calibration data/glue \\
      --evaluate data/glue
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bort.export", description=__doc__,
                                     epilog=COMMANDS, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a model folder or a .params file")
    parser.add_argument("output", metavar="OUT", help="a file OUT.onnx, or a folder with --format")
    parser.add_argument("--format", choices=FORMATS, help="write a folder that runs by itself")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32",
                        help="of the folder; int8 learns from --calibration (default: float32)")
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
    parser.add_argument("--encoding", choices=ENCODINGS,
                        help="input format of the task (default: as the model was fine-tuned)")
    parser.add_argument("--labels", metavar="A,B,C",
                        help="the classes of the outputs in their order, for a model that does not name them")
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
    task = _task(args, model)
    training = stored.config.get("training")
    used = training.get("max_length") if isinstance(training, dict) else None
    if args.max_length is not None and not 4 <= args.max_length <= model.max_length:
        raise BortError(f"--max-length {args.max_length}: {args.model} takes from 4 to {model.max_length} "
                        "tokens")
    if not isinstance(used, int) or not 4 <= used <= model.max_length:
        used = model.max_length  # not recorded: nothing that the model takes is cut
    return model, inspection.find_tokenizer(stored, args.tokenizer), task, args.max_length or used


def _task(args: argparse.Namespace, model: Union[Bert, Classifier]) -> Optional[Task]:
    """The task of the command, with whose names the outputs of a classifier without names go along."""
    labels = stated_labels(args.labels)
    if not isinstance(model, Classifier):
        if labels is not None:
            raise BortError(f"--labels {args.labels}: {args.model} has no classification head")
        return get_task(args.task, args.encoding or "paper") if args.task else None
    name_outputs(model, labels, args.model)
    task = task_of(model, args.task, args.encoding, args.model)
    if task is not None and model.labels is None and model.task_name is None and model.num_outputs > 1:
        order = output_task(task, model.num_outputs, args.model).unnamed_order
        model.labels = None if order is None else list(order)
    return task


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; a JSON report goes to stdout."""
    args = _parser().parse_args(argv)
    _check(args)
    model, tokenizer, task, length = _open(args)
    if tokenizer is None and (args.calibration or args.evaluate or args.format):
        raise BortError(f"{args.model}: there is no tokenizer with it; give --tokenizer DIR")
    batches: Sequence[Batch] = ()
    if args.calibration and tokenizer is not None:
        batches = calibration_batches(args.calibration, tokenizer, length, task,
                                      EXAMPLES if args.examples is None else args.examples, args.seed)
    dev: Optional[DevSet] = None
    if args.evaluate:
        if task is None or not isinstance(model, Classifier) or args.part not in (None, "classifier"):
            raise BortError("--evaluate needs a classifier and its task; give --task NAME if the model does "
                            "not name one")
        assert tokenizer is not None
        dev = DevSet(model, task, args.evaluate, tokenizer, length)
    truncation = task.truncation if task is not None else "even"
    report: Dict[str, Any]
    if args.format is not None:
        assert tokenizer is not None
        options = FolderOptions(args.format, args.precision, args.part, length, truncation)
        report = export_folder(model, args.output, options, tokenizer, batches, dev)
    else:
        settings = {"used_length": length, "truncation": truncation}
        report = export(model, args.output, args.part, args.int8, batches, tokenizer, args.reduce_range,
                        settings)
        if dev is not None:
            report["dev"] = {"model": dev.own, "onnx": dev.metrics(OnnxRunner(args.output))}
    print(json.dumps(report, indent=2, ensure_ascii=False))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if args.format is None and args.precision != "float32":
        raise BortError(f"--precision {args.precision}: is for a folder; add --format onnx or openvino, or "
                        "take --int8 for a file")
    if args.format is None and Path(args.output).is_dir():
        raise BortError(f"{args.output}: is a folder; name a file OUT.onnx, or add --format onnx or openvino")
    if args.format is not None and (args.int8 or args.reduce_range):
        raise BortError("--int8 and --reduce-range are for a file OUT.onnx; with --format take --precision "
                        "int8")
    if args.int8 == "static" and not args.calibration:
        raise BortError("--int8 static needs --calibration DATA: a text file or the task's data folder")
    if args.calibration and args.int8 != "static" and args.precision != "int8":
        raise BortError(f"--calibration {args.calibration}: only --int8 static and --precision int8 learn "
                        "from data")
    if args.examples is not None and not args.calibration:
        raise BortError("--examples: is a number of calibration examples, and there is no --calibration")
    if args.reduce_range and args.int8 is None:
        raise BortError("--reduce-range: is for 8-bit weights; add --int8 dynamic or static")
