"""Search for the best architecture between size, speed and error: section 3 of the paper, from a corpus to
best.json.

    # The paper's search (Bookcorpus, a trained RoBERTa-large, 300 tuples, n = 3, epsilon = 2, seconds per
    # sample); hours on many GPUs:
    python run_search.py --preset paper --corpus SHARDS --teacher roberta-large-folder --output runs/search

    # The same tuples by size and FLOPs alone, in seconds; nothing is trained and nothing is read:
    python run_search.py --steps 0 --output runs/by-cost

    # Twelve tiny tuples on the text that Python carries, in well under a minute:
    python run_search.py --preset tiny --output runs/tiny

    # All 300 at a fraction of the paper's batch and length, two processes, measured latencies; goes on with
    # --resume:
    horovodrun -np 2 python run_search.py --preset laptop --corpus articles.txt --tokenizer bpe \\
        --speed measured --output runs/laptop --resume

    # Table 1's latencies as the paper took them, 6,250 passes of one line each; nothing is trained:
    python run_search.py --steps 0 --preset paper --trials 6250 --speed-batch-size 1 --output runs/table1

    # A process that dies loses the candidate it was at. Others that were started apart on the same --output
    # (each with --resume) take it over; horovodrun ends all its ranks when one dies, and the same command
    # with --resume goes on.

    # Among the sub-networks of one adaptive network, by their real errors; nothing is trained:
    python run_search.py --supernet runs/sst2-dynabert --data-dir glue/SST-2 --output runs/sst2-search \\
        --extract best

    # Then distil into what was found:
    python run_pretrain.py --architecture runs/search/best.json --data SHARDS --teacher FOLDER \\
        --output runs/pretrain
"""
from __future__ import annotations

import argparse
import sys
from typing import List, Optional

from bort.engines.base import EngineOptions, prefer
from bort.errors import RESUME, BortError, run_command
from bort.search.command import arguments


def search_supernet(args: argparse.Namespace) -> int:
    """``--supernet``: W over the sub-networks of one trained network."""
    if args.data_dir is None:
        raise BortError("--supernet needs --data-dir, the data of the task it was trained for")
    from pathlib import Path

    from bort.dynabert.command import search_run
    from bort.dynabert.options import shares

    rows = search_run(args.supernet, args.task, args.data_dir, Path(args.output), {
        "widths": args.widths and shares(args.widths, "--widths"),
        "depths": args.shares_of_depth and shares(args.shares_of_depth, "--shares-of-depth"),
        "error": args.supernet_error}, args.extract)
    print(f"\nbest: width {rows[0]['width']:g}, depth {rows[0]['depth']:g}, {rows[0]['architecture']} with "
          f"W = {rows[0]['W']:.4g}; it is in {args.output}/best.json")
    return 0


def main(argv: Optional[List[str]] = None) -> int:
    args = arguments(__doc__, argv)
    prefer(EngineOptions(args.engine, args.precision))
    if args.supernet is not None:
        return search_supernet(args)
    if args.corpus is None and args.steps:
        raise BortError("--corpus is missing: shards (python -m bort.text prepare), a text file, or "
                        "'embedded'")
    from pathlib import Path

    from bort.architecture import parse
    from bort.backend import distributed
    from bort.search import report
    from bort.search.fptas import search
    from bort.search.settings import SearchInputs, SearchSettings
    from bort.training.console import say

    chosen = {name: getattr(args, name) for name in SearchSettings.__dataclass_fields__}
    settings = SearchSettings(**{**chosen,
                                 "include": tuple(parse(text, "--include") for text in args.include)})
    with distributed.context():
        inputs = SearchInputs(teacher=args.teacher, teacher_architecture=args.teacher_architecture,
                              corpus=args.corpus or "none", tokenizer=args.tokenizer,
                              tokenizer_size=args.tokenizer_size)
        rows = search(args.output, settings, inputs, args.resume)
    if distributed.is_root():  # which also refuses a search of which no candidate has a W
        say(report.report(Path(args.output), rows, settings))
        say(f"\nbest: {report.architecture_of(rows[0]).display} with W = {rows[0]['W']:.4g}; it is in "
            f"{args.output}/best.json, which run_pretrain.py --architecture reads")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, interrupted=RESUME))
