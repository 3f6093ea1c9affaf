r"""Pre-train a member of the family, alone or distilled from a teacher (section 4 of the paper).

    python run_pretrain.py --architecture bort --data SHARDS --teacher roberta-large --output runs/bort
    python run_pretrain.py --architecture 4,4,256,1024 --data SHARDS --method mlm --lr 1e-3 \
        --output runs/teacher
    python run_pretrain.py --architecture best.json --data SHARDS --teacher runs/teacher/model \
        --cache-teacher 64 --output runs/kd
    python run_pretrain.py --architecture best.json --data SHARDS --teacher runs/teacher/model \
        --warm-start runs/teacher/model --output runs/kd      # little text: from the teacher's weights
    horovodrun -np 8 python run_pretrain.py --architecture bort --data SHARDS --teacher roberta-large \
        --batch-size 32 --total-batch-size 1024 --output runs/bort
    python run_pretrain.py --architecture bort --data SHARDS --teacher roberta-large --dtype bfloat16 \
        --precision bfloat16 --output runs/bort    # on a CPU with AMX or AVX512-BF16: less time
    python run_pretrain.py ... --resume        # the same command again: goes on from the last checkpoint

    # A model without an MLM head becomes a teacher: first the head alone, then all of it.
    python run_pretrain.py --init minilm --data SHARDS --method mlm --train head --output runs/head
    python run_pretrain.py --init runs/head/model --data SHARDS --method mlm --output runs/minilm

    # Before self-supervised training, choose batch, rate and warmup on a subset, as the paper did.
    python run_pretrain.py --architecture bort --data SHARDS --method mlm --subset 20000 --steps 300 \
        --grid total-batch-size=256,1024 lr=1e-4,3e-4,1e-3 warmup-ratio=0.01,0.05 --output runs/grid

SHARDS is made by `python -m bort.text prepare`. The output gets metrics.jsonl, curves.png, checkpoints/,
best/ and model/ (model folders for run_finetune.py) and results.json; with --grid a folder for each
combination, and grid.json.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

from bort.engines.base import EngineOptions, prefer
from bort.errors import RESUME, BortError, run_command
from bort.pretraining.command import arguments, settings_of


def train(args: argparse.Namespace, output: Path) -> Dict[str, Any]:
    """One training in ``output``; its results."""
    from bort.pretraining.run import DataOptions, StudentOptions, TeacherOptions, run_pretraining
    from bort.pretraining.settings import Intervals

    method = args.method or ("kd" if args.teacher else "mlm")
    if (method == "kd") != (args.teacher is not None):
        raise BortError(f"--method {method} {'needs' if args.teacher is None else 'takes no'} --teacher")
    if args.cache_teacher and method == "mlm":
        raise BortError("--cache-teacher needs --method kd")
    data = DataOptions(
        folder=args.data, mask_ratio=args.mask_ratio, whole_words=args.whole_words, subset=args.subset
    )
    student = StudentOptions(
        architecture=args.architecture,
        init=args.init,
        dropout=args.dropout,
        max_length=args.max_length,
        warm_start=args.warm_start,
    )
    teacher = (
        None
        if args.teacher is None
        else TeacherOptions(
            path=args.teacher,
            architecture=args.teacher_architecture,
            cache_top_k=args.cache_teacher,
            cache_folder=args.cache_folder,
        )
    )
    intervals = Intervals(
        log=args.log_interval,
        evaluate=args.eval_interval,
        checkpoint=args.checkpoint_interval,
        keep=args.keep,
        evaluation_sequences=args.eval_sequences,
        tensorboard=args.tensorboard,
    )
    return run_pretraining(data, student, settings_of(args, method), output, teacher, intervals, args.resume)


def main(argv: Optional[List[str]] = None) -> int:
    args = arguments(__doc__, argv)
    prefer(EngineOptions(args.engine, args.precision))
    from bort.backend import distributed
    from bort.pretraining import grid
    from bort.training.console import say

    output = Path(args.output)
    distributed.expect_long_steps()
    with distributed.context():  # the device inputs are put on; MXNet's own default is the CPU
        if args.grid:

            def run(point: grid.Point, folder: Path) -> Dict[str, Any]:
                values = {name.replace("-", "_"): value for name, value in point.items()}
                return train(argparse.Namespace(**{**vars(args), **values}), folder)

            for line in grid.table(grid.search_grid(grid.parse_grid(args.grid), run, output)):
                say(line)
            return 0
        results = train(args, output)
    shown = {name: math.nan if value is None else value for name, value in results.items()}
    say(
        "{steps} steps, {tokens:,} tokens, {seconds:.0f} s ({tokens_per_second:,.0f} tokens/s): evaluation "
        "MLM loss {eval_mlm_loss:.3f}, accuracy {eval_mlm_accuracy:.2%}; {0}".format(
            output / "model", **shown
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, interrupted=RESUME))
