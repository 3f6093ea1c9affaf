r"""Pre-train a member of the family, alone or distilled from a teacher (section 4 of the paper).

    python run_pretrain.py --architecture bort --data SHARDS --teacher roberta-large --output runs/bort
    python run_pretrain.py --architecture 4,4,256,1024 --data SHARDS --method mlm --lr 1e-3 --output
    runs/teacher python run_pretrain.py --architecture best.json --data SHARDS --teacher runs/teacher/model
    --cache-teacher 64 \
        --output runs/kd
    horovodrun -np 8 python run_pretrain.py --architecture bort --data SHARDS --teacher roberta-large
    --batch-size 32 \
        --total-batch-size 1024 --output runs/bort
    python run_pretrain.py ... --resume        # the same command again: goes on from the last checkpoint

SHARDS is made by `python -m bort.text prepare`. The output gets metrics.jsonl, curves.png, checkpoints/,
best/ and model/ (model folders for run_finetune.py) and results.json.
"""
from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Optional

from bort.errors import RESUME, BortError, run_command


def arguments(argv: Optional[List[str]]) -> argparse.Namespace:
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=description, epilog=examples,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what to train")
    what.add_argument("--architecture",
                      help="a preset (bort, bert-base, ...), D,A,H,I, or the best.json of a search")
    what.add_argument("--init", help="start from this model folder or .params file instead of random weights")
    what.add_argument("--data", required=True, help="folder made by python -m bort.text prepare")
    what.add_argument("--output", required=True, help="run folder; a run in it needs --resume")
    what.add_argument("--resume", action="store_true", help="go on with the run in --output")
    what.add_argument("--seed", type=int, default=0,
                      help="decides order, dropout, initial weights, and --mask-seed")
    what.add_argument("--dropout", type=float, help="dropout of the student (default 0.1, or that of --init)")
    what.add_argument("--max-length", type=int, default=512, help="positions of a new student (default 512)")
    loss = parser.add_argument_group("loss")
    loss.add_argument("--method", choices=("kd", "mlm"),
                      help="kd distils --teacher, mlm learns from the text alone "
                      "(default: kd with a --teacher, else mlm)")
    loss.add_argument("--teacher", help="model folder or .params file with the same vocabulary")
    loss.add_argument("--teacher-architecture", help="architecture of a bare .params teacher")
    loss.add_argument("--mlm-weight", type=float, default=0.5, help="with kd; default 0.5")
    loss.add_argument("--kd-weight", type=float, default=0.5, help="default 0.5")
    loss.add_argument("--temperature", type=float, default=2.0, help="default 2")
    loss.add_argument("--kd-formula", choices=("corrected", "released"), default="corrected",
                      help="'released' has the release's defect, for comparison")
    loss.add_argument("--cache-teacher", type=int, default=0, metavar="K",
                      help="compute the teacher once and keep its K likeliest tokens for each masked "
                      "position on disk")
    loss.add_argument("--cache-folder", help="where (default: teacher-cache in --data)")
    mask = parser.add_argument_group("masking")
    mask.add_argument("--mask-ratio", type=float, default=0.15, help="default 0.15")
    mask.add_argument("--whole-words", action="store_true", help="mask whole words")
    mask.add_argument("--mask-passes", type=int, default=0,
                      help="repeat the masks after this many epochs (default 0: never; 1 with "
                      "--cache-teacher)")
    mask.add_argument("--mask-seed", type=int,
                      help="decides the masks (default: --seed, but 0 with --cache-teacher, "
                      "so that students of any --seed share a cache)")
    how = parser.add_argument_group("optimization")
    how.add_argument("--batch-size", type=int, help="sequences per rank and micro-batch (default 8)")
    how.add_argument("--max-tokens", type=int, default=0,
                     help="bound padded tokens per rank and micro-batch instead")
    how.add_argument("--accumulate", type=int, help="micro-batches per step (default 1)")
    how.add_argument("--total-batch-size", type=int, metavar="N",
                     help="sequences per step over all ranks, instead of "
                     "--accumulate (default the paper's 1024 where none of these four is given)")
    how.add_argument("--steps", type=int, default=25000, help="default 25000")
    how.add_argument("--lr", type=float, default=1e-4, help="largest learning rate (default 1e-4)")
    how.add_argument("--schedule", choices=("noam", "linear", "released"), default="noam")
    how.add_argument("--warmup-ratio", type=float, default=0.01, help="default 0.01")
    how.add_argument("--clip", type=float, default=1.0, help="largest gradient norm, 0 for none (default 1)")
    how.add_argument("--weight-decay", type=float, default=0.01, help="default 0.01")
    how.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="float16 needs a GPU")
    how.add_argument("--max-skipped", type=int, default=20,
                     help="stop after so many non-finite steps in a row")
    often = parser.add_argument_group("intervals, in steps")
    often.add_argument("--log-interval", type=int, default=10)
    often.add_argument("--eval-interval", type=int, default=500)
    often.add_argument("--eval-sequences", type=int, default=2000,
                       help="size of the evaluation set, 0 for all of dev")
    often.add_argument("--checkpoint-interval", type=int, default=500)
    often.add_argument("--keep", type=int, default=2, help="checkpoints to keep (default 2)")
    often.add_argument("--tensorboard", action="store_true",
                       help="write TensorBoard events (extra 'tensorboard')")
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> int:
    args = arguments(argv)
    method = args.method or ("kd" if args.teacher else "mlm")
    if (method == "kd") != (args.teacher is not None):
        raise BortError(f"--method {method} {'needs' if args.teacher is None else 'takes no'} --teacher")
    if args.cache_teacher and method == "mlm":
        raise BortError("--cache-teacher needs --method kd")
    from bort.backend import distributed

    distributed.expect_long_steps()
    with distributed.context():  # the device inputs are put on; MXNet's own default is the CPU
        return train(args, method)


def train(args: argparse.Namespace, method: str) -> int:
    from bort.masked_lm.losses import LossWeights
    from bort.pretraining import inputs, loop
    from bort.training.console import say
    from bort.training.run_folder import RunFolder

    weights = (args.mlm_weight, args.kd_weight, args.temperature, args.kd_formula)
    loss = LossWeights(1.0, 0.0) if method == "mlm" else LossWeights(*weights)
    passes = args.mask_passes or (1 if args.cache_teacher else 0)
    mask_seed = args.mask_seed if args.mask_seed is not None else 0 if args.cache_teacher else args.seed
    batches = inputs.batches_of_step(args.batch_size, args.accumulate, args.max_tokens, args.total_batch_size)
    settings = loop.Settings(args.steps, *batches, args.max_tokens, args.lr, args.schedule, args.warmup_ratio,
                             args.clip, args.weight_decay, args.seed, passes, args.dtype, args.max_skipped,
                             loss, None if mask_seed == args.seed else mask_seed)
    intervals = loop.Intervals(args.log_interval, args.eval_interval, args.checkpoint_interval, args.keep,
                                   args.eval_sequences, args.tensorboard)
    corpus, facts = inputs.read_corpus(args.data, args.mask_ratio, args.whole_words)
    student = inputs.make_student(args.architecture, args.init, corpus.tokenizer, args.seed, args.dropout,
                                  args.max_length)
    teacher_files = None
    if method == "kd":
        teacher_files = inputs.teacher_for(args.teacher, corpus, args.teacher_architecture)
        facts.update(inputs.teacher_facts(teacher_files, args.teacher_architecture))
    described: Dict[str, Any] = {
        "method": method, **asdict(settings), **facts, "architecture": student.architecture.to_dict(),
        "init": args.init, "dropout": student.dropout, "cache_teacher": args.cache_teacher,
        # They decide what best/ holds.
        "eval_interval": args.eval_interval, "eval_sequences": args.eval_sequences,
        "max_length": None if student.max_length == corpus.max_length else student.max_length}
    with RunFolder(args.output, described, args.resume) as run:
        results = run.results
        if results is None:
            teacher: Any = None
            if args.cache_teacher:
                options = inputs.CacheOptions(
                    folder=args.cache_folder or Path(args.data) / "teacher-cache", top_k=args.cache_teacher,
                    passes=passes, mask_seed=mask_seed, temperature=args.temperature)
                teacher = inputs.cached_teacher(options, teacher_files, corpus, facts, student)
                say("teacher cache: {positions:,} positions, KL to the teacher {mean_kl_nats:.4f} nats on "
                    "average and {max_kl_nats:.3f} at most, {mean_mass_outside:.2%} of the mass spread evenly".format(
                                                                                                                      **teacher.error))
            elif method == "kd":
                teacher = inputs.live_teacher(teacher_files, args.temperature, student.vocab_size, args.dtype)
            results = loop.pretrain(student, corpus, settings, run, teacher, intervals)
        else:
            loop.draw_missing_curves(run)
    results = {name: math.nan if value is None else value for name, value in results.items()}
    say("{steps} steps, {tokens:,} tokens, {seconds:.0f} s ({tokens_per_second:,.0f} tokens/s): evaluation "
        "MLM loss {eval_mlm_loss:.3f}, accuracy {eval_mlm_accuracy:.2%}; {0}".format(Path(args.output)
                                                                                     / "model", **results))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, interrupted=RESUME))
