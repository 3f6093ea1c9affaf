"""Fine-tune a model of the family on a task of GLUE, SuperGLUE or RACE; write scores, predictions and a model
folder.

    # A Bort on CoLA:
    python run_finetune.py --task CoLA --data-dir glue/CoLA --model bort.params --architecture bort \\
        --tokenizer tokenizer --output runs/cola --epochs 5 --lr 3e-5

    # A teacher, then the student from it, three seeds; and by Agora (--algorithm agora --help shows its
    # options):
    python run_finetune.py --task RTE --data-dir glue/RTE --model roberta-large --output runs/rte-teacher
    python run_finetune.py --task RTE --data-dir glue/RTE --model bort --output runs/rte --algorithm distill
    \\
        --teacher runs/rte-teacher/model --seeds 0,1,2
    python run_finetune.py --task RTE --data-dir glue/RTE --model bort --output runs/rte-agora --algorithm
    agora \\
        --teacher runs/rte-teacher/model --tau noise,embedding --prune half

    # Two processes share every batch; a killed run goes on with --resume:
    horovodrun -np 2 python run_finetune.py --task SST-2 --data-dir glue/SST-2 --model bort --output runs/sst2
    --resume

    # A network from scratch, or predictions alone from a fine-tuned one:
    python run_finetune.py --task SST-2 --data-dir glue/SST-2 --model random:2,4,128,256 --tokenizer DIR
    --output runs/s python run_finetune.py --task SST-2 --data-dir glue/SST-2 --model runs/s/model
    --predict-only --output runs/p
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

from bort.errors import RESUME, BortError, run_command


def arguments(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
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
    what.add_argument("--head", choices=("linear", "linear_extra", "pooled"),
                      help="default: the paper's for the task")
    what.add_argument("--limit", type=int, default=0, help="train on this many examples only (0: all)")
    what.add_argument("--split-file", metavar="FILE", help="an evaluation set that several runs share: Agora "
                      "scores on it, other trainings leave it out; the first run that names the file draws it")
    what.add_argument("--predict-only", action="store_true", help="score and predict with --model as it is")
    what.add_argument("--resume", action="store_true", help="go on with a killed run")
    how = parser.add_argument_group("training")
    how.add_argument("--epochs", type=int, default=3)
    how.add_argument("--batch-size", type=int, default=8, help="per process (default 8; the paper: 8 or 16)")
    how.add_argument("--accumulate", type=int, default=1, help="batches per optimizer step")
    how.add_argument("--lr", type=float, default=3e-5)
    how.add_argument("--weight-decay", type=float, default=0.01)
    how.add_argument("--warmup", type=float, default=0.1, help="share of all steps")
    how.add_argument("--schedule", choices=("linear", "noam", "released"), default="linear")
    how.add_argument("--clip", type=float, default=1.0, help="largest gradient norm (0: none)")
    how.add_argument("--dropout", type=float, help="default: the model's own")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--seeds", help="several, as 0,1,2: one training each, median and maximum reported")
    how.add_argument("--max-length", type=int, default=0,
                     help="tokens of an input (default: all the model takes)")
    how.add_argument("--max-steps", type=int, default=0, help="stop after this many steps (0: epochs decide)")
    how.add_argument("--patience", type=int, default=0,
                     help="stop after this many epochs without a better dev score")
    how.add_argument("--distill-weight", type=float, default=0.5,
                     help="share of the teacher's soft labels in the loss")
    how.add_argument("--temperature", type=float, default=2.0, help="of the soft labels")
    how.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="float16 needs a GPU")
    how.add_argument("--checkpoint-interval", type=int, default=500, help="steps between checkpoints")
    how.add_argument("--cache-dir", help="keep token ids here between runs")
    if any(argument == "agora" or argument.endswith("=agora") for argument in (sys.argv[1:] if argv is None
                                                                               else argv)):
        from bort.agora.command import add_agora_arguments
        add_agora_arguments(parser)
    from bort.dynabert.options import add_dynabert_arguments
    add_dynabert_arguments(parser)
    own = {name: parser.get_default(name) for name in ("lr", "weight_decay", "warmup", "batch_size")}
    # None: not given, whatever the default is
    args = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(own)))
    if args.algorithm == "dynabert":
        args.model = args.model or args.teacher
    if args.model is None:
        parser.error("the following arguments are required: --model")
    args.given = [name for name in own if getattr(args, name) is not None]
    vars(args).update({name: own[name] for name in own if name not in args.given})
    return args


def seeds_of(args: argparse.Namespace) -> List[int]:
    if args.seeds is None:
        return [args.seed]
    try:
        seeds = [int(part) for part in args.seeds.split(",")]
    except ValueError as error:
        raise BortError(f"--seeds: {args.seeds!r} is not a list of whole numbers like 0,1,2") from error
    if len(set(seeds)) != len(seeds):
        raise BortError(f"--seeds: {args.seeds!r} names a seed twice")
    return seeds


def main(argv: Optional[List[str]] = None) -> int:
    args = arguments(argv)
    from bort.files import write_json
    from bort.finetuning import experiment
    from bort.finetuning.evaluation_split import leave_out, shared_split
    from bort.finetuning.loop import Settings
    from bort.finetuning.teacher import open_teacher
    from bort.models import Classifier
    from bort.tasks.labels import align
    from bort.training.console import say
    from bort.training.run_folder import on_root

    output, tokenizer = Path(args.output), experiment.choose_tokenizer(args.model, args.tokenizer)
    settings = {seed: Settings(args.lr, args.weight_decay, args.warmup, seed, args.batch_size,
                               args.accumulate, args.epochs, args.schedule, args.clip, args.distill_weight,
                               args.temperature, args.patience, args.max_steps, args.dtype)
                for seed in seeds_of(args)}
    if (args.algorithm != "plain") != (args.teacher is not None) and not args.predict_only:
        raise BortError(f"--algorithm {args.algorithm} {'needs' if args.teacher is None else 'takes no'} "
                        "--teacher")

    def source(seed: int) -> Any:
        return experiment.load_source(args.model, tokenizer, args.architecture, args.heads, args.dropout,
                                      seed)

    first = source(min(settings))
    max_length = args.max_length or first.max_length
    if not 8 <= max_length <= first.max_length:
        raise BortError(f"--max-length {max_length}: the model takes from 8 to {first.max_length} tokens")
    reading: Dict[str, Any] = {"encoding": args.encoding, "cache_dir": args.cache_dir, "seed": min(settings),
                               "limit": args.limit, "train": not args.predict_only}
    data = experiment.read_task(args.task, args.data_dir, tokenizer, max_length, **reading)
    if args.predict_only:
        if not isinstance(first, Classifier):
            raise BortError(f"{args.model}: --predict-only needs a classifier fine-tuned for "
                            f"{data.task.name}")
        align(first, data.task, args.model)
        record = {"task": data.task.name, "model": args.model, "max_length": max_length}
        metrics = experiment.write_outputs(first, data, tokenizer, output, record)
        results: Dict[str, Any] = {**record, "metrics": metrics}
        on_root(lambda: write_json(output / "results.json", results))
        say(experiment.final_line(results))
        return 0
    if args.algorithm == "agora":
        from bort.agora.command import run_agora
        return run_agora(args, data, source, tokenizer, settings, max_length)
    if args.algorithm == "dynabert":
        from bort.dynabert.command import DynabertRun, run_dynabert
        from bort.dynabert.options import options_of
        return run_dynabert(DynabertRun(args.teacher, data, tokenizer, max_length, output, options_of(args),
                                        reading, args.dropout, args.resume, args.checkpoint_interval),
                            settings)
    split = None
    if args.split_file is not None:
        fraction = getattr(args, "evaluation_fraction", 0.1)
        split = shared_split(args.split_file, data, args.data_dir, fraction, min(settings))
        data = leave_out(data, split)
    soft = None
    if args.algorithm == "distill":
        teacher = open_teacher(args.teacher, tokenizer, data.task, max_length)
        soft = teacher.of_split(data.train.split, data.train.tokens.token_ids, args.cache_dir)
    described = {"task": data.task.name, "algorithm": args.algorithm, "model": args.model,
                 "teacher": args.teacher, "encoding": args.encoding, "head": args.head,
                 "dropout": args.dropout, "max_length": max_length, "limit": args.limit,
                 "data": data.train.tokens.fingerprint, "tokenizer": tokenizer.fingerprint,
                 **({} if split is None else {"split": split.digest}),
                 **experiment.contents(data, args.model, args.teacher)}
    results_of = [experiment.run_once(data, lambda seed: experiment.classifier_for(data.task, source(seed),
                                                                                   seed, args.head,
                                                                                   args.dropout), tokenizer,
                                      settings[seed], soft, output if len(settings) == 1 else output
                                      / f"seed-{seed}", described, args.resume, args.checkpoint_interval)
                  for seed in settings]
    say(experiment.final_line(experiment.deliver(results_of, output)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, interrupted=RESUME))
