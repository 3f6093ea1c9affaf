"""The options of ``run_search.py``."""
from __future__ import annotations

import argparse
from typing import Any, Dict, List, Optional, Tuple

from bort.architecture import PAPER_SPACE
from bort.engines.options import add_engine_options

PRESETS: Dict[str, Dict[str, Any]] = {
    # As section 3.3: seconds per sample. Everything else in it is the default.
    "paper": {"speed": "measured"},
    # The paper's space and teacher; batch, length and held-out lines that two cores can bear.
    "laptop": {"batch_size": 8, "max_length": 64, "speed_lines": 16, "corpus": "embedded"},
    "tiny": {"depths": (2, 4), "heads": (2, 4), "hidden": (32, 64), "intermediate": (32, 64, 128),
             "batch_size": 32, "max_length": 32, "speed_lines": 64,
             "lr": 0.5, "dropout": 0.0, "teacher": "6,4,96,256",
             "corpus": "embedded", "tokenizer_size": 1000},
}


def numbers(text: str) -> Tuple[int, ...]:
    """``"2,4,6"`` as integers, for argparse."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers like 2,4,6") from None


def arguments(description: str, argv: Optional[List[str]]) -> argparse.Namespace:
    """The command line; ``description`` is the runner's docstring."""
    # an abbreviated --preset would miss its defaults
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument_group("what").add_argument
    add("--output", required=True,
        help="run folder: candidates.jsonl, table1.md, table1.csv, best.json, search.png")
    add("--preset", choices=sorted(PRESETS),
        help="defaults of what follows (none: the paper's, but the speed by FLOPs, which take no time)")
    add("--corpus",
        help="shards, a text file or a folder of them, or 'embedded': the text that Python carries")
    add("--tokenizer",
        help="folder (default: the shards', the teacher's, RoBERTa's, else one made of the text)")
    add("--tokenizer-size", type=int, default=8000, help="ids of a SentencePiece vocabulary made of the text")
    add("--teacher", default="roberta-large",
        help="the maximum point T: a model folder, or a preset or D,A,H,I, whose "
        "weights are then drawn at random (default: roberta-large)")
    add("--teacher-architecture", help="architecture of a bare .params teacher")
    for name in ("depths", "heads", "hidden", "intermediate"):
        add(f"--{name}", type=numbers, default=tuple(PAPER_SPACE[name]), metavar="N,N,...",
            help=f"default {','.join(map(str, PAPER_SPACE[name]))}")
    add("--include", nargs="+", default=[], metavar="D,A,H,I", help="tuples to train whatever their interval")
    add("--resume", action="store_true", help="go on with, or join, the search in --output")
    add("--seed", type=int, default=0)
    add = parser.add_argument_group("the algorithm").add_argument
    add("--epsilon", type=int, default=2,
        help="interval size: one of so many neighbours is trained (default 2)")
    add("--steps", type=int, default=3,
        help="n training steps of a candidate (default 3); 0 takes W without error")
    add("--batch-size", type=int, default=1024, help="lines of a step (default 1024)")
    add("--max-length", type=int, default=512, help="s, tokens of a line (default 512)")
    add("--lr", type=float, default=5e-4, help="of SGD, falling to 0 (default 5e-4)")
    add("--clip", type=float, default=1.0, help="largest gradient norm (default 1; 0: none)")
    add("--warmup-ratio", type=float, default=0.05, help="share of the steps (default 0.05)")
    add("--dropout", type=float, default=0.1, help="default 0.1, RoBERTa's")
    add("--mask-ratio", type=float, default=0.15, help="share of a line's tokens that is masked and compared")
    add("--error", choices=("ce", "kl"), default="ce",
        help="cross-entropy to T, or that less T's entropy (default ce)")
    add("--counts", choices=("exact", "lemma"), default="exact", help="of our network, or Lemmas 2 and 1")
    add("--vocab-size", type=int, default=0, help="vocabulary that sizes count (default: the tokenizer's)")
    add("--speed", choices=("flops", "measured"), default="flops", help="FLOPs or seconds per line")
    add("--speed-lines", type=int, default=11828,
        help="held-out lines: scored, and timed if measured (default 11828)")
    add("--trials", type=int, default=0,
        help="timed passes of every network (default: as many as the held-out lines take; the paper's Table "
        "1: 6250 of one line)")
    add("--speed-batch-size", type=int, default=0, help="lines of a timed pass (default: --micro-batch-size)")
    add("--micro-batch-size", type=int, default=0,
        help="lines in memory at once (default: 2048 tokens of them)")
    add("--top", type=int, default=3, help="candidates to report (default 3)")
    add_engine_options(parser.add_argument_group("engine"), "the teacher")
    add = parser.add_argument_group("over a trained network",
                                    "instead of a corpus and a teacher").add_argument
    add("--supernet", metavar="RUN", help="run of run_finetune.py --algorithm dynabert with --keep-fraction: "
        "choose among its sub-networks by their real errors")
    add("--task", help="default: the one it was trained for")
    add("--data-dir", help="the task's official files, or the folder above")
    add("--widths", help="shares to look at (default: those trained)")
    add("--shares-of-depth", help="shares to look at (default: those trained)")
    add("--supernet-error", choices=("loss", "wrong"), default="loss",
        help="mean loss, or share of wrong answers, on the kept examples")
    add("--extract", metavar="FOLDER", help="write the winner as a model folder")
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset")
    parser.set_defaults(**PRESETS.get(early.parse_known_args(argv)[0].preset, {}))
    return parser.parse_args(argv)
