"""``run_finetune.py --algorithm agora``: its options, from the command line to :class:`AgoraOptions`.

MXNet is imported when a run begins, so that ``run_finetune.py --help`` answers at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping

from bort.agora.classes import ROUNDINGS
from bort.agora.plan import DEV, EVALUATION, PRUNINGS, SOURCES

if TYPE_CHECKING:
    from bort.agora.options import AgoraOptions
    from bort.finetuning.loop import Settings
    from bort.finetuning.task_data import TaskData
    from bort.text.tokenizers.base import Tokenizer

OLD_NAMES = {"heldout": EVALUATION}
"""Earlier names of ``--evaluate-on``'s values."""


def add_agora_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``--algorithm agora``. ``--lr``, ``--weight-decay`` and ``--warmup`` are then what
    ``--grid small`` is built around, and given with ``--chs`` they take the place of that set's own;
    ``--seed`` draws the evaluation set and the tau-function, and 10,000 times it is added to the seeds of
    Theta."""
    group = parser.add_argument_group("agora")
    theta = group.add_mutually_exclusive_group()
    theta.add_argument(
        "--grid",
        default="paper",
        help="Theta: paper (500 sets, the default), small (6 sets around --lr), or a JSON file",
    )
    theta.add_argument(
        "--chs",
        action="store_true",
        help="only the task's convergent set, with its batch size (Tables "
        "7-9); --lr, --weight-decay, --warmup and --batch-size win where they are given",
    )
    group.add_argument(
        "--prune",
        choices=PRUNINGS,
        default="one",
        help="drop the worst of Theta after a round, the worse half, or none of it",
    )
    group.add_argument(
        "--max-rounds", type=int, default=0, help="0: until one set is left and nothing is gained"
    )
    group.add_argument(
        "--min-rounds",
        type=int,
        default=1,
        help="rounds before a reached goal, or a round without additions, may end the run",
    )
    group.add_argument(
        "--budget", type=int, help="new points of a round (default: as many as there are training examples)"
    )
    group.add_argument(
        "--tau", default="mlm", help="transformations: mlm, noise, embedding, several with commas, or none"
    )
    group.add_argument(
        "--tau-model",
        help="pre-trained model of the student's vocabulary for mlm and embedding (default: --model)",
    )
    group.add_argument("--tau-rate", type=float, default=0.15, help="probability of a change at each token")
    group.add_argument("--tau-top-k", type=int, default=10, help="candidates that may replace a token")
    group.add_argument(
        "--expand-from",
        choices=SOURCES,
        default="both",
        help="whose members tau transforms: the evaluation set's and the training set's, or, for "
        "ablations, those of one",
    )
    group.add_argument(
        "--evaluate-on",
        choices=(EVALUATION, DEV, *OLD_NAMES),
        default=EVALUATION,
        help="E: an evaluation set taken out of the training set, or the dev set as in the paper",
    )
    group.add_argument(
        "--evaluation-fraction",
        "--held-out-fraction",
        type=float,
        default=0.1,
        help="share of the training set that is the evaluation set (default 0.1)",
    )
    group.add_argument(
        "--rounding",
        choices=tuple(ROUNDINGS),
        default="fifths",
        help="STS-B as classes: multiples of 0.2 as in Raffel et al. (default), or whole numbers",
    )
    group.add_argument("--replays", type=int, default=0, help="repetitions of a round that brings nothing")
    group.add_argument(
        "--soft", action="store_true", help="learn the teacher's logits too (--distill-weight, --temperature)"
    )
    group.add_argument(
        "--compare", action="store_true", help="also plain fine-tuning and distillation at equal compute"
    )


def options_of(args: argparse.Namespace) -> AgoraOptions:
    """The command line's values."""
    from bort.agora.options import AgoraOptions, LoopOptions, ModelOptions, TauOptions
    from bort.agora.sets import EvaluationOptions

    given = {name: getattr(args, name) for name in getattr(args, "given", ())}
    models = ModelOptions(**{name: getattr(args, name) for name in ModelOptions.__dataclass_fields__})
    loop = LoopOptions(
        given=given,
        **{name: getattr(args, name) for name in LoopOptions.__dataclass_fields__ if name != "given"},
    )
    tau = TauOptions(
        kinds=() if args.tau == "none" else tuple(args.tau.split(",")),
        model=args.tau_model,
        rate=args.tau_rate,
        top_k=args.tau_top_k,
    )
    evaluation = EvaluationOptions(
        on=OLD_NAMES.get(args.evaluate_on, args.evaluate_on),
        fraction=args.evaluation_fraction,
        split_file=args.split_file,
        rounding=args.rounding,
    )
    return AgoraOptions(
        models=models,
        data_dir=args.data_dir,
        output=Path(args.output),
        loop=loop,
        tau=tau,
        evaluation=evaluation,
        cache_dir=args.cache_dir,
        resume=args.resume,
    )


def run_agora(
    args: argparse.Namespace,
    data: TaskData,
    source: Callable[[int], Any],
    tokenizer: Tokenizer,
    settings: Mapping[int, Settings],
    max_length: int,
) -> int:
    """Run Agora once for every seed of ``settings``; write the outputs; print the figures.

    Args:
        args: the command line, with :func:`add_agora_arguments`.
        source: the pre-trained network for a seed.

    Raises:
        BortError: options, files or models that do not fit together.
    """
    from bort.agora.report import table_lines
    from bort.agora.run import prepare, run_seed
    from bort.finetuning.results import deliver, final_line
    from bort.training.console import say

    options = options_of(args)
    shared = prepare(options, data, source, tokenizer, max_length)
    rows = [
        run_seed(shared, seed, one, options.output if len(settings) == 1 else options.output / f"seed-{seed}")
        for seed, one in settings.items()
    ]
    results = deliver(rows, options.output)
    for row in rows:
        for line in table_lines(row):
            say(line)
    say(final_line(results))
    return 0
