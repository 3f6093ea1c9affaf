"""Memory and speed of ``python -m bort.text prepare``: ten times the text must not take more memory.

    python -m benchmarks.preparation  # 50 and 500 MB; about 8 minutes on 2 cores
    python -m benchmarks.preparation --megabytes 5,50  # a minute
    python -m benchmarks.preparation --text corpus.txt --tokenizer roberta/ --workers 1

The text is that of ``--data FOLDER`` (else what Python carries), repeated with its paragraphs in another
order each time until it has the size; the tokenizer is RoBERTa's of that folder, else a SentencePiece one
trained on the text.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np

from benchmarks.harness import common, records
from benchmarks.harness.data import add_data_option, read_text, vocabulary
from bort.errors import BortError, run_command
from bort.json_files import read_json

VOCAB_SIZE = 4000
"""Of the tokenizer that is trained where there is none."""


def paragraphs(data: Optional[Path], given: Optional[str]) -> List[str]:
    """The documents that the corpora are made of."""
    found = [text.strip() for text in read_text(data, given).split("\n\n") if text.strip()]
    if not found:
        raise BortError(f"{given or data}: no text in it")
    return found


def write_corpus(path: Path, documents: List[str], size: int) -> int:
    """Repeat ``documents``, shuffled anew each time, until the file has ``size`` bytes or a little more."""
    rng, written = np.random.default_rng(0), 0
    with open(path, "wb") as stream:
        while written < size:
            for index in rng.permutation(len(documents)):
                written += stream.write(documents[index].encode("utf-8") + b"\n\n")
                if written >= size:
                    break
    return written


def measure(
    work: Path, megabytes: int, documents: List[str], tokenizer: List[str], workers: int
) -> Dict[str, Any]:
    """Prepare a corpus of so many megabytes in a process of its own; its row."""
    text, output = work / f"{megabytes}.txt", work / f"shards-{megabytes}"
    size = write_corpus(text, documents, megabytes * 10**6)
    before = os.times()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bort.text",
            "prepare",
            "--input",
            str(text),
            "--output",
            str(output),
            *tokenizer,
            "--workers",
            str(workers),
            "--quiet",
        ],
        cwd=str(common.ROOT),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    after = os.times()
    if done.returncode:
        raise BortError(
            f"the preparation of {megabytes} MB failed: {done.stdout.decode('utf-8', 'replace')[-1000:]}"
        )
    report = read_json(output / "report.json")
    row = {
        "MB of text": round(size / 1e6, 1),
        "documents": report["documents"],
        "sentences": report["sentences"],
        "tokens": report["tokens"],
        "seconds": round(after.elapsed - before.elapsed, 1),
        "CPU seconds": round(
            after.children_user + after.children_system - before.children_user - before.children_system, 1
        ),
        "MB/s": report["megabytes_per_second"],
        "tokens/s": report["tokens_per_second"],
        "peak MB, main process": report["peak_memory_mb"].get("main_process"),
        "peak MB, largest worker": report["peak_memory_mb"].get("largest_worker"),
    }
    text.unlink()
    shutil.rmtree(output)
    print(row, flush=True)
    return row


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", default="50,500", help="sizes, with commas (default: 50,500)")
    add_data_option(parser)
    parser.add_argument("--text", help="the text that is repeated")
    parser.add_argument("--tokenizer", help="its folder")
    parser.add_argument("--workers", type=int, default=common.usable_cores(), help="default: one a core")
    parser.add_argument("--folder", type=Path, help="where to record instead of benchmarks/results")
    args = parser.parse_args(argv)
    try:
        sizes = [int(size) for size in args.megabytes.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise BortError(f"--megabytes {args.megabytes}: positive whole numbers with commas, such as 50,500")
    load = common.load_average()
    known = args.tokenizer or (str(vocabulary(args.data)) if vocabulary(args.data) else None)
    tokenizer = (
        ["--tokenizer", known]
        if known
        else ["--train-tokenizer", "sentencepiece", "--vocab-size", str(VOCAB_SIZE)]
    )
    documents = paragraphs(args.data, args.text)
    with tempfile.TemporaryDirectory(prefix="bort-preparation-") as work:
        rows = [measure(Path(work), size, documents, tokenizer, args.workers) for size in sizes]
    peaks = [row["peak MB, main process"] for row in rows]
    print(
        records.record(
            "preparation",
            rows,
            {
                "tokenizer": "RoBERTa's"
                if known and not args.tokenizer
                else known or f"SentencePiece of {VOCAB_SIZE:,}, trained",
                "workers": args.workers,
                "documents that are repeated": len(documents),
            },
            [
                "Peaks are resident memory as the system counts it; the smallest and the largest corpus "
                f"differ by {max(peaks) - min(peaks):.1f} MB in the main process."
            ],
            "From text to shards: memory and speed",
            argv,
            args.folder,
            load,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
