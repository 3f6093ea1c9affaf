"""The options of ``run_finetune.py``."""
from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Dict, List, Optional

from bort.engines.options import add_engine_options
from bort.errors import BortError

if TYPE_CHECKING:
    from bort.finetuning.loop import Settings

DEFAULTS = {"lr": 3e-5, "weight_decay": 0.01, "warmup": 0.1}
"""Of what Agora's ``--chs`` takes from the paper's tables where it is not given."""


def arguments(documentation: str, argv: Optional[List[str]]) -> argparse.Namespace:
    """The command line; ``documentation`` is the runner's docstring."""
    from bort.agora.command import add_agora_arguments
    from bort.dynabert.options import add_dynabert_arguments

    description, _, examples = documentation.partition("\n\n")
    parser = argparse.ArgumentParser(description=description, epilog="examples:\n\n" + examples,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what")
    what.add_argument("--task", required=True, help="python -m bort.tasks list shows them all")
    what.add_argument("--data-dir", required=True, help="the task's official files, or the folder above")
    what.add_argument("--model", help="model folder, .params file, or random:D,A,H,I (dynabert: the teacher)")
    what.add_argument("--architecture", help="D,A,H,I or a preset, for a bare .params file")
    what.add_argument("--heads", type=int, help="attention heads alone, for a bare .params file")
    what.add_argument("--tokenizer", help="folder of tokenizer files (default: beside the model)")
    what.add_argument("--output", required=True, help="run folder")
    what.add_argument("--algorithm", choices=("plain", "distill", "agora", "dynabert"), default="plain")
    what.add_argument("--teacher", help="fine-tuned classifier folder, for distill and agora")
    what.add_argument("--encoding", choices=("paper", "released"), default="paper",
                      help="input format of the task")
    what.add_argument("--labels", metavar="A,B,C", help="classes of the outputs, in order, of a --model that "
                      "is a classifier and does not name them")
    what.add_argument("--head", choices=("linear", "linear_extra", "pooled"),
                      help="default: the paper's for the task")
    what.add_argument("--limit", type=int, default=0, help="train on this many examples only (0: all)")
    what.add_argument("--split-file", metavar="FILE", help="an evaluation set that several runs share: Agora "
                      "scores on it, other trainings leave it out; the first run that names it draws it")
    what.add_argument("--predict-only", action="store_true", help="score and predict with --model as it is")
    what.add_argument("--resume", action="store_true", help="go on with a killed run")
    how = parser.add_argument_group("training")
    how.add_argument("--epochs", type=int, default=3, help="default 3")
    how.add_argument("--batch-size", type=int,
                     help="per process (default the paper's: 16 for SST-2, QNLI, QQP and MNLI, else 8)")
    how.add_argument("--accumulate", type=int, default=1, help="batches per optimizer step")
    how.add_argument("--lr", type=float, help="largest learning rate (default 3e-5)")
    how.add_argument("--weight-decay", type=float, help="default 0.01")
    how.add_argument("--warmup", type=float, help="share of all steps (default 0.1)")
    how.add_argument("--schedule", choices=("linear", "noam", "released"), default="linear")
    how.add_argument("--clip", type=float, default=1.0, help="largest gradient norm (0: none)")
    how.add_argument("--dropout", type=float, help="default: the model's own")
    how.add_argument("--seed", type=int, default=0, help="default 0")
    how.add_argument("--seeds", help="several, as 0,1,2: one training each, median and maximum reported")
    how.add_argument("--max-length", type=int, default=0,
                     help="tokens of an input (default: all the model takes)")
    how.add_argument("--max-steps", type=int, default=0, help="stop after this many steps (0: epochs decide)")
    how.add_argument("--patience", type=int, default=0,
                     help="stop after this many epochs without a better dev score")
    how.add_argument("--distill-weight", type=float, default=0.5,
                     help="share of the teacher's soft labels in the loss")
    how.add_argument("--temperature", type=float, default=2.0, help="of the soft labels")
    how.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
                     help="bfloat16: of the products, on CPUs with AMX or AVX512-BF16; float16 needs a GPU")
    add_engine_options(how, "evaluations, teachers and tau")
    how.add_argument("--checkpoint-interval", type=int, default=500, help="steps between checkpoints")
    how.add_argument("--cache-dir", help="keep token ids here between runs")
    add_agora_arguments(parser)
    add_dynabert_arguments(parser)
    args = parser.parse_args(argv)
    if args.algorithm == "dynabert":
        args.model = args.model or args.teacher
        if args.labels is not None:
            raise BortError("--labels: is of --model; dynabert's --teacher has to name its classes itself")
    if args.model is None:
        parser.error("the following arguments are required: --model")
    args.given = [name for name in (*DEFAULTS, "batch_size") if getattr(args, name) is not None]
    return args


def seeds_of(args: argparse.Namespace) -> List[int]:
    """The seeds of ``--seed`` or ``--seeds``.

    Raises:
        BortError: no whole numbers, or one twice.
    """
    if args.seeds is None:
        return [args.seed]
    try:
        seeds = [int(part) for part in args.seeds.split(",")]
    except ValueError as error:
        raise BortError(f"--seeds: {args.seeds!r} is not a list of whole numbers like 0,1,2") from error
    if len(set(seeds)) != len(seeds):
        raise BortError(f"--seeds: {args.seeds!r} names a seed twice")
    return seeds


def settings_of(args: argparse.Namespace) -> "Dict[int, Settings]":
    """The hyper-parameters of every seed; what was not given takes its default."""
    from bort.finetuning.hyperparameters import batch_size_of
    from bort.finetuning.loop import Settings
    from bort.tasks.registry import get_task

    for name, value in {**DEFAULTS, "batch_size": batch_size_of(get_task(args.task).name)}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return {seed: Settings(
        lr=args.lr, weight_decay=args.weight_decay, warmup=args.warmup, seed=seed, batch_size=args.batch_size,
        accumulate=args.accumulate, epochs=args.epochs, schedule=args.schedule, clip=args.clip,
        distill_weight=args.distill_weight, temperature=args.temperature, patience=args.patience,
        max_steps=args.max_steps, dtype=args.dtype) for seed in seeds_of(args)}
