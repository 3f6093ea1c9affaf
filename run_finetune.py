r"""Fine-tune a model of the family on a task of GLUE, SuperGLUE or RACE.

    # A Bort on CoLA:
    python run_finetune.py --task CoLA --data-dir glue/CoLA --model bort.params --architecture bort \
        --tokenizer tokenizer --output runs/cola --epochs 5 --lr 3e-5

    # A teacher, then the student from it, three seeds; and by Agora:
    python run_finetune.py --task RTE --data-dir glue/RTE --model roberta-large --output runs/rte-teacher
    python run_finetune.py --task RTE --data-dir glue/RTE --model bort --output runs/rte \
        --algorithm distill --teacher runs/rte-teacher/model --seeds 0,1,2
    python run_finetune.py --task RTE --data-dir glue/RTE --model bort --output runs/rte-agora \
        --algorithm agora --teacher runs/rte-teacher/model --tau noise,embedding --prune half

    # A network whose width and depth adapt, from a fine-tuned teacher (--sampled 1: at under half the cost):
    python run_finetune.py --task RTE --data-dir glue/RTE --teacher runs/rte-teacher/model \
        --algorithm dynabert --output runs/rte-dynabert --sampled 1

    # Two processes share every batch; a killed run goes on with --resume:
    horovodrun -np 2 python run_finetune.py --task SST-2 --data-dir glue/SST-2 --model bort \
        --output runs/sst2 --resume

    # A network from scratch, or predictions alone from a fine-tuned one:
    python run_finetune.py --task SST-2 --data-dir glue/SST-2 --model random:2,4,128,256 --tokenizer DIR \
        --output runs/s
    python run_finetune.py --task SST-2 --data-dir glue/SST-2 --model runs/s/model --predict-only \
        --output runs/p
"""
from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import List, Optional

from bort.engines.base import EngineOptions, prefer
from bort.errors import RESUME, BortError, run_command
from bort.finetuning.command import arguments, settings_of


def main(argv: Optional[List[str]] = None) -> int:
    args = arguments(__doc__, argv)
    prefer(EngineOptions(args.engine, args.precision))
    from bort.finetuning.results import final_line
    from bort.finetuning.run import (
        RunOptions,
        StudentOptions,
        TaskOptions,
        predict_only,
        prepare,
        run_finetuning,
    )
    from bort.tasks.labels import stated_labels
    from bort.training.console import say

    if (args.algorithm != "plain") != (args.teacher is not None) and not args.predict_only:
        raise BortError(f"--algorithm {args.algorithm} {'needs' if args.teacher is None else 'takes no'} "
                        "--teacher")
    if args.algorithm == "dynabert":
        from bort.dynabert.options import options_of
        adaptive = options_of(args)  # refused, if at all, before the data is read
    settings, output = settings_of(args), Path(args.output)
    student = StudentOptions(model=args.model, architecture=args.architecture, heads=args.heads,
                             tokenizer=args.tokenizer, dropout=args.dropout, head=args.head,
                             labels=stated_labels(args.labels))
    task = TaskOptions(name=args.task, data_dir=args.data_dir, encoding=args.encoding, limit=args.limit,
                       max_length=args.max_length, cache_dir=args.cache_dir)
    prepared = prepare(student, task, seed=min(settings), train=not args.predict_only)
    if args.predict_only:
        results = predict_only(prepared, output)
    elif args.algorithm == "agora":
        from bort.agora.command import run_agora
        return run_agora(args, prepared.data, prepared.network, prepared.tokenizer, settings,
                         prepared.max_length)
    elif args.algorithm == "dynabert":
        from bort.dynabert.command import DynabertRun, run_dynabert
        return run_dynabert(DynabertRun(
            teacher=args.teacher, data=prepared.data, tokenizer=prepared.tokenizer,
            max_length=prepared.max_length, output=output, options=adaptive,
            reading=asdict(prepared.reading), dropout=args.dropout, resume=args.resume,
            checkpoint_interval=args.checkpoint_interval), settings)
    else:
        results = run_finetuning(prepared, list(settings.values()), output, RunOptions(
            teacher=args.teacher, split_file=args.split_file, split_fraction=args.evaluation_fraction,
            resume=args.resume, checkpoint_interval=args.checkpoint_interval))
    say(final_line(results))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, interrupted=RESUME))
