"""``python -m bort.text``: make shards for pre-training from text files, or look at them."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Any, Dict, List, Optional

from bort.errors import BortError, run_command
from bort.text.corpus.sources import DOCUMENTS, FORMATS, ReadOptions
from bort.text.shards.dataset import SPLITS, ShardDataset, read_index, split_ratios
from bort.text.shards.plan import PRESETS, SHUFFLES, PrepareOptions
from bort.text.shards.prepare import prepare
from bort.text.shards.report import format_report
from bort.text.tokenizers.loading import load_tokenizer

logger = logging.getLogger("bort.text")

_PREPARE_EXAMPLES = """\
examples:
  python -m bort.text prepare --input corpus/ --output shards --tokenizer ~/.mxnet/models
  python -m bort.text prepare --input articles.txt books/ --output shards \\
      --train-tokenizer sentencepiece --vocab-size 8000 --max-length 128 --workers 2
  python -m bort.text prepare --preset paper --output shards --tokenizer roberta/ \\
      --input enwiki-latest-pages-articles.xml.bz2 enwiktionary-latest-pages-articles.xml.bz2 \\
      urbandict-word-defs.csv 1-billion-word/training-monolingual.tokenized.shuffled/

Killed at any moment, the same command continues. The shards do not depend on --workers.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bort.text", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser(
        "prepare",
        help="make shards from text files",
        epilog=_PREPARE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Clean, split, tokenize, shuffle and pack text files into shards.",
    )
    make.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="files and folders: text, .csv, .tsv, .jsonl and MediaWiki .xml, also as .gz, .xz, .bz2",
    )
    make.add_argument("--output", required=True, metavar="FOLDER", help="new folder for the shards")
    make.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="the tokenizer's folder (default: RoBERTa's in $BORT_HOME or ~/.mxnet/models)",
    )
    make.add_argument(
        "--train-tokenizer", choices=("sentencepiece",), help="make a vocabulary from the text instead"
    )
    make.add_argument("--vocab-size", type=int, metavar="N", help="of the tokenizer to train (default: 8000)")
    make.add_argument(
        "--max-length", type=int, default=512, metavar="N", help="tokens of a sequence (default: 512)"
    )
    make.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="the paper's choices: --shuffle sentences --split 8,1,1 (each option given stands above it)",
    )
    make.add_argument(
        "--split", metavar="A,B,C", help="shares of train, test and validation (default: 8,1,1, the paper's)"
    )
    make.add_argument(
        "--shuffle",
        choices=SHUFFLES,
        help="what is shuffled and split: whole documents (default), sentences (as the paper), "
        "or nothing; </s> stands between what was shuffled",
    )
    make.add_argument(
        "--min-words",
        type=int,
        metavar="N",
        help="leave out documents (of dictionaries: definitions) with fewer words; 11 leaves "
        "out those of ten words or fewer, as the paper does for its dictionaries (default: 11 "
        "for Wiktionary and Urban Dictionary, else 1)",
    )
    make.add_argument(
        "--format",
        choices=FORMATS,
        default="auto",
        help="of the files (default: by their names, which tell enwiktionary-... and "
        "urbandict... too; sentences is one per line, as in One Billion Words)",
    )
    make.add_argument(
        "--documents",
        choices=DOCUMENTS,
        default="paragraph",
        help="what a document of plain text is (default: a paragraph, between blank lines)",
    )
    make.add_argument(
        "--text-column",
        metavar="NAME",
        help="column (name, or number from 1) of .csv and .tsv, field of .jsonl (default: text)",
    )
    make.add_argument("--skip-broken", action="store_true", help="keep what can be read of damaged files")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument(
        "--workers", type=int, default=_cores(), metavar="N", help="processes (default: one per core)"
    )
    make.add_argument("--quiet", action="store_true", help="no progress bars")
    show = commands.add_parser(
        "check",
        help="compare the checksums of shards, and show some text of them",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m bort.text check shards --show 3 --split valid\n",
    )
    show.add_argument("shards", metavar="FOLDER")
    show.add_argument("--split", choices=SPLITS, default="train", help="of the text to show (default: train)")
    show.add_argument("--show", type=int, default=0, metavar="N", help="decode the first N sequences")
    return parser


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare(arguments: argparse.Namespace) -> int:
    size = arguments.vocab_size
    if size is not None and arguments.train_tokenizer is None:
        raise BortError(
            "--vocab-size is for --train-tokenizer sentencepiece; a given tokenizer has its own size"
        )
    if arguments.train_tokenizer is not None and size is None:
        size = 8000
    chosen: Dict[str, Any] = dict(PRESETS.get(arguments.preset, {}))
    chosen.update(
        {name: value for name in ("split", "shuffle") if (value := getattr(arguments, name)) is not None}
    )
    reading = ReadOptions(
        format=arguments.format,
        documents=arguments.documents,
        text_column=arguments.text_column,
        skip_broken=arguments.skip_broken,
    )
    report = prepare(
        PrepareOptions(
            inputs=arguments.input,
            output=arguments.output,
            tokenizer=arguments.tokenizer,
            vocab_size=size,
            max_length=arguments.max_length,
            min_words=arguments.min_words,
            seed=arguments.seed,
            workers=arguments.workers,
            progress=not arguments.quiet,
            read=reading,
            **chosen,
        )
    )
    if report.get("already_finished"):
        print(f"{arguments.output} is already finished; its report:\n")
    print(format_report(report))
    shares = dict(zip(SPLITS, split_ratios(chosen.get("split", PrepareOptions.split))))
    for name, split in report["splits"].items():
        if shares[name] and not split["sequences"]:
            logger.warning("the %s split is empty; give more text or another --split", name)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    for split, content in read_index(arguments.shards)["splits"].items():
        if content["shards"]:
            ShardDataset(arguments.shards, split, verify=False).check()
        print(
            f"{split}: {content['sequences']:,} sequences, {content['tokens']:,} tokens in "
            f"{len(content['shards'])} shards, whole"
        )
    if arguments.show > 0:
        dataset = ShardDataset(arguments.shards, arguments.split)
        tokenizer = load_tokenizer(dataset.tokenizer_path)
        for index in range(min(arguments.show, len(dataset))):
            print(f"\n[{arguments.split} {index}] {tokenizer.decode(dataset[index])}")
    return 0


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return {"prepare": _prepare, "check": _check}[arguments.command](arguments)


if __name__ == "__main__":
    sys.exit(run_command(main))
