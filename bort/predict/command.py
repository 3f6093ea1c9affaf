"""The command ``python -m bort.predict``: classify texts, or fill masks."""
from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import IO, Iterator, List, Optional

from bort.engines.base import PRECISIONS, EngineOptions
from bort.engines.options import add_engine_options
from bort.errors import BortError
from bort.files import atomic_write
from bort.predict.fill_mask import MaskFiller
from bort.predict.inputs import FORMATS, open_records
from bort.predict.outputs import JsonWriter, TsvWriter, write_rows
from bort.predict.predictor import Predictor
from bort.predict.running import CALIBRATED, ENGINES
from bort.tasks.labels import stated_labels
from bort.tasks.registry import ENCODINGS

EXAMPLES = """examples:
  python -m bort.predict runs/sst2/model --input sentences.txt              one text per line
  python -m bort.predict runs/rte/model --input pairs.tsv --output out.tsv  columns sentence1 and sentence2
  python -m bort.predict runs/sst2/model --input reviews.csv                a column named sentence or text
  python -m bort.predict runs/copa/model --task COPA --input test.jsonl     official records, official answers
  python -m bort.predict runs/race/model --task RACE-M --input race         official folders
  cat reviews.txt | python -m bort.predict model.params --heads 8 --tokenizer ~/.mxnet/models --input -
  python -m bort.predict fill-mask bort --text "The capital of France is <mask>."

Output: one JSON line per input line, or columns when --output ends in .tsv. An unreadable line gives an
"error".
"""
MASK_EXAMPLES = """examples:
  python -m bort.predict fill-mask bort --text "The capital of France is <mask>."
  python -m bort.predict fill-mask bort.params --architecture bort --tokenizer ~/.mxnet/models \\
      --text "A <mask> day."
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(prog="python -m bort.predict", epilog=EXAMPLES,
                                     description="Classify texts with a fine-tuned model.",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("model", metavar="MODEL",
                        help="a model folder or a .params file with a head ('fill-mask' as "
                        "MODEL: see fill-mask --help)")
    result.add_argument("--input", required=True, metavar="FILE",
                        help="a file (also .gz, .bz2, .xz), a folder of the task's official files, or - for "
                        "standard input")
    result.add_argument("--task", help="the task whose format and labels to use (default: the model's own)")
    result.add_argument("--encoding", choices=ENCODINGS,
                        help="input format of the task (default: as the model was fine-tuned)")
    result.add_argument("--labels", metavar="A,B,C",
                        help="the classes of the outputs in their order, for a model that does not name them")
    result.add_argument("--format", choices=FORMATS, default="auto",
                        help="of the input (default: by its name or first line)")
    result.add_argument("--output", metavar="FILE",
                        help="where to write, columns if it ends in .tsv (default: stdout)")
    result.add_argument("--strict", action="store_true", help="stop at the first line that cannot be read")
    result.add_argument("--batch-size", type=int, default=128, metavar="N",
                        help="sequences per batch at most (default: 128); long ones come in smaller batches")
    result.add_argument("--max-length", type=int, metavar="N",
                        help="cut longer inputs (default: as fine-tuned)")
    result.add_argument("--tokenizer", metavar="DIR", help="take the tokenizer from here")
    result.add_argument("--architecture", metavar="D,A,H,I", help="of a bare .params file")
    result.add_argument("--heads", type=int, metavar="A", help="of a bare .params file, instead")
    result.add_argument("--engine", choices=ENGINES, default="auto",
                        help="what runs the network: the fastest that is installed and suits this machine, "
                        "the one named, or onnx for an exported file (default: auto)")
    result.add_argument("--precision", choices=PRECISIONS, default="float32",
                        help="what it computes in; auto: the fastest whose answers to the calibration inputs "
                        "are float32's (default: float32)")
    result.add_argument("--dtype", choices=PRECISIONS, help="another name for --precision")
    result.add_argument("--calibration", metavar="DATA",
                        help="for --precision int8 and auto: a text file or the task's data folder "
                        "(default: the first inputs)")
    result.add_argument("--evaluate", metavar="DATA",
                        help="for --precision int8: the task's data folder; layers stay in float32 until its "
                        "dev set loses at most half a point")
    result.add_argument("--onnx", metavar="FILE", help="for --engine onnx (default: model.onnx in MODEL)")
    return result


def mask_parser() -> argparse.ArgumentParser:
    """The arguments of ``fill-mask``."""
    result = argparse.ArgumentParser(prog="python -m bort.predict fill-mask", epilog=MASK_EXAMPLES,
                                     description="The likeliest tokens at the masks of a text.",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("model", metavar="MODEL", help="a model folder or a .params file")
    result.add_argument("--text", action="append",
                        help="a text with <mask> in it; may be repeated (default: lines of stdin)")
    result.add_argument("--top", type=int, default=5, metavar="N", help="tokens per mask (default: 5)")
    result.add_argument("--force", action="store_true", help="use the MLM head even if it is of no use")
    result.add_argument("--tokenizer", metavar="DIR", help="take the tokenizer from here")
    result.add_argument("--architecture", metavar="D,A,H,I", help="of a bare .params file")
    result.add_argument("--heads", type=int, metavar="A", help="of a bare .params file, instead")
    add_engine_options(result, "the network")
    return result


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; bad lines and a summary go to stderr."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["fill-mask"]:
        return fill_masks(arguments[1:])
    args = parser().parse_args(arguments)
    predictor = Predictor(args.model, args.tokenizer, args.task, batch_size=args.batch_size,
                          max_length=args.max_length, encoding=args.encoding,
                          labels=stated_labels(args.labels), engine=args.engine,
                          onnx=args.onnx, precision=args.precision, dtype=args.dtype,
                          calibration=args.calibration, evaluate=args.evaluate,
                          architecture=args.architecture, heads=args.heads)
    columns = args.output is not None and Path(args.output).suffix.lower() == ".tsv"
    with contextlib.ExitStack() as stack:
        records = stack.enter_context(open_records(args.input, predictor.task, args.format))
        target = _stdout() if args.output is None else stack.enter_context(atomic_write(args.output))
        writer = (TsvWriter if columns else JsonWriter)(target, predictor.task)
        bad, lines = write_rows(predictor.stream(records), writer, args.input, args.strict)
        if lines and bad == lines:
            raise BortError(f"{args.input}: none of its {lines} lines could be read; is --format or --task "
                            "another?")
    if bad:
        print(f"{args.input}: {bad} of {lines} lines could not be read", file=sys.stderr)
    return 0


def fill_masks(argv: List[str]) -> int:
    """Run ``fill-mask``: number of the mask, probability, token and text, in columns."""
    args = mask_parser().parse_args(argv)
    if args.top < 1:
        raise BortError(f"--top must be positive, not {args.top}")
    chosen = EngineOptions(args.engine, args.precision)
    if args.precision in CALIBRATED:
        raise BortError(f"--precision {args.precision}: there is nothing to calibrate on; take float32 or "
                        "bfloat16")
    few = bool(args.text) and chosen == EngineOptions()  # the network as it is answers these first
    filler = MaskFiller(args.model, args.tokenizer, args.force, args.architecture, args.heads,
                        None if few else chosen)
    target = _stdout()
    for text in args.text or _lines():
        for number, candidates in enumerate(filler(text, args.top), start=1):
            for candidate in candidates:
                print(f"{number}\t{candidate.probability:.4f}\t{candidate.token}\t{candidate.text}",
                      file=target)
    return 0


def _lines() -> Iterator[str]:
    yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())


def _stdout() -> IO[str]:
    if sys.stdout is None:  # started with >&-
        raise BortError("standard output is closed; give --output FILE")
    return sys.stdout
