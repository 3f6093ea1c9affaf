"""The options of ``run_pretrain.py``."""
from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, List, Optional

from bort.engines.options import add_engine_options

if TYPE_CHECKING:
    from bort.pretraining.settings import Settings


def arguments(documentation: str, argv: Optional[List[str]]) -> argparse.Namespace:
    """The command line; ``documentation`` is the runner's docstring."""
    description, _, examples = documentation.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--architecture", help="a preset (bort, bert-base, ...), D,A,H,I, or the best.json of a search"
    )
    what.add_argument("--init", help="start from this model folder or .params file instead of random weights")
    what.add_argument(
        "--warm-start",
        metavar="MODEL",
        help="start --architecture from this larger model's weights: projected, the heaviest kept",
    )
    what.add_argument("--data", required=True, help="folder made by python -m bort.text prepare")
    what.add_argument(
        "--train",
        choices=("all", "head"),
        default="all",
        help="head: the MLM head alone, on a fixed body (default all)",
    )
    what.add_argument(
        "--subset",
        type=int,
        default=0,
        metavar="N",
        help="train on N sequences only, drawn from --seed (default 0: all)",
    )
    what.add_argument(
        "--grid",
        nargs="+",
        metavar="NAME=V,V",
        help="one training for each combination of lr, warmup-ratio and total-batch-size; a table",
    )
    what.add_argument("--output", required=True, help="run folder; a run in it needs --resume")
    what.add_argument("--resume", action="store_true", help="go on with the run in --output")
    what.add_argument(
        "--seed", type=int, default=0, help="decides order, dropout, initial weights, and --mask-seed"
    )
    what.add_argument("--dropout", type=float, help="dropout of the student (default 0.1, or that of --init)")
    what.add_argument("--max-length", type=int, default=512, help="positions of a new student (default 512)")
    loss = parser.add_argument_group("loss")
    loss.add_argument(
        "--method",
        choices=("kd", "mlm"),
        help="kd distils --teacher, mlm learns from the text alone (default: kd with a --teacher, else mlm)",
    )
    loss.add_argument("--teacher", help="model folder or .params file with the same vocabulary")
    loss.add_argument("--teacher-architecture", help="architecture of a bare .params teacher")
    loss.add_argument("--mlm-weight", type=float, default=0.5, help="with kd; default 0.5")
    loss.add_argument("--kd-weight", type=float, default=0.5, help="default 0.5")
    loss.add_argument("--temperature", type=float, default=2.0, help="default 2")
    loss.add_argument(
        "--kd-formula",
        choices=("corrected", "released"),
        default="corrected",
        help="'released' has the release's defect, for comparison",
    )
    loss.add_argument(
        "--cache-teacher",
        type=int,
        default=0,
        metavar="K",
        help="compute the teacher once and keep its K likeliest tokens for each masked position on disk",
    )
    loss.add_argument("--cache-folder", help="where (default: teacher-cache in --data)")
    mask = parser.add_argument_group("masking")
    mask.add_argument("--mask-ratio", type=float, default=0.15, help="default 0.15")
    mask.add_argument("--whole-words", action="store_true", help="mask whole words")
    mask.add_argument(
        "--mask-passes",
        type=int,
        default=0,
        help="repeat the masks after this many epochs (default 0: never; 1 with --cache-teacher)",
    )
    mask.add_argument(
        "--mask-seed",
        type=int,
        help="decides the masks (default: --seed, but 0 with --cache-teacher, "
        "so that students of any --seed share a cache)",
    )
    how = parser.add_argument_group("optimization")
    how.add_argument("--batch-size", type=int, help="sequences per rank and micro-batch (default 8)")
    how.add_argument(
        "--max-tokens", type=int, default=0, help="bound padded tokens per rank and micro-batch instead"
    )
    how.add_argument("--accumulate", type=int, help="micro-batches per step (default 1)")
    how.add_argument(
        "--total-batch-size",
        type=int,
        metavar="N",
        help="sequences per step over all ranks, instead of "
        "--accumulate (default the paper's 1024 where none of these four is given)",
    )
    how.add_argument("--steps", type=int, default=25000, help="default 25000")
    how.add_argument("--lr", type=float, default=1e-4, help="largest learning rate (default 1e-4)")
    how.add_argument("--schedule", choices=("noam", "linear", "released"), default="noam")
    how.add_argument("--warmup-ratio", type=float, default=0.01, help="default 0.01")
    how.add_argument("--clip", type=float, default=1.0, help="largest gradient norm, 0 for none (default 1)")
    how.add_argument("--weight-decay", type=float, default=0.01, help="default 0.01")
    how.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
                     help="bfloat16: of the products, on CPUs with AMX or AVX512-BF16; float16 needs a GPU")
    add_engine_options(how, "the teacher")
    how.add_argument(
        "--max-skipped", type=int, default=20, help="stop after so many non-finite steps in a row"
    )
    often = parser.add_argument_group("intervals, in steps")
    often.add_argument("--log-interval", type=int, default=10)
    often.add_argument("--eval-interval", type=int, default=500)
    often.add_argument(
        "--eval-sequences", type=int, default=2000, help="size of the evaluation set, 0 for all of dev"
    )
    often.add_argument("--checkpoint-interval", type=int, default=500)
    often.add_argument("--keep", type=int, default=2, help="checkpoints to keep (default 2)")
    often.add_argument(
        "--tensorboard", action="store_true", help="write TensorBoard events (extra 'tensorboard')"
    )
    return parser.parse_args(argv)


def settings_of(args: argparse.Namespace, method: str) -> "Settings":
    """Everything that decides what is learned."""
    from bort.masked_lm.losses import LossWeights
    from bort.pretraining.inputs import batches_of_step
    from bort.pretraining.settings import Settings

    loss = (
        LossWeights(mlm_weight=1.0, kd_weight=0.0)
        if method == "mlm"
        else LossWeights(
            mlm_weight=args.mlm_weight,
            kd_weight=args.kd_weight,
            temperature=args.temperature,
            kd_formula=args.kd_formula,
        )
    )
    # Students of any seed share a cache, whose masks are repeated.
    mask_seed = args.mask_seed if args.mask_seed is not None else 0 if args.cache_teacher else args.seed
    batch_size, accumulate = batches_of_step(
        args.batch_size, args.accumulate, args.max_tokens, args.total_batch_size
    )
    return Settings(
        steps=args.steps,
        batch_size=batch_size,
        accumulate=accumulate,
        max_tokens=args.max_tokens,
        lr=args.lr,
        schedule=args.schedule,
        warmup_ratio=args.warmup_ratio,
        clip=args.clip,
        weight_decay=args.weight_decay,
        seed=args.seed,
        mask_passes=args.mask_passes or (1 if args.cache_teacher else 0),
        dtype=args.dtype,
        max_skipped=args.max_skipped,
        loss=loss,
        mask_seed=None if mask_seed == args.seed else mask_seed,
        train=args.train,
    )
