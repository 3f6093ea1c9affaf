"""Many requests: a stream of real sentences through bort.predict, transformers' pipeline and a plain loop.

    python -m benchmarks.streaming --minutes 15  # Bort; as many sentences as fit
    python -m benchmarks.streaming --model runs/sst2/model  # a fine-tuned model instead of random weights
    python -m benchmarks.streaming --architecture 2,4,128,256 --vocab-size 2000 --sentences 500

The sentences are SST-2's dev and test sets and as much of its training set as is needed, shuffled, from
``--data FOLDER`` (else sentences out of Python's own documentation). Every engine reads them one by one,
has the same weights, and answers in their order. Engines run in processes of their own and take turns: each
does a slice of its stream while the others are stopped. Their predictions are compared on the first sentences
before, and on all of them afterwards.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from benchmarks.harness import common, records, streams
from benchmarks.harness.data import add_data_option, task_folder, vocabulary
from benchmarks.harness.shapes import number_format
from benchmarks.harness.stream_report import Streamed, check, compared, floor, rows
from benchmarks.harness.workers import Worker, opened, peaks
from bort.architecture import parse
from bort.errors import BortError, run_command

CHECKED = streams.CHECKED
PRODUCTS = ("mxnet", "mxnet-bf16", "onnx", "onnx-int8")
"""Engines whose products of square matrices tell the processor's rates."""
class Plan(NamedTuple):
    """How many sentences at most, in how many turns, in how many minutes (None: all of them), on how many
    cores."""

    count: int
    slices: int
    minutes: Optional[float]
    threads: int


def sentences(data: Optional[Path], count: int, seed: int = 0) -> List[str]:
    """``count`` sentences: SST-2's dev, test and training sets in that order, or those that Python carries;
    shuffled.

    Raises:
        BortError: there are fewer.
    """
    from bort.text.corpus.embedded import embedded_sentences

    found: List[str] = []
    for name, column in (("dev", 0), ("test", 1), ("train", 0)):
        path = None if data is None else task_folder(task_folder(data, "glue"), "SST-2") / f"{name}.tsv"
        if path is not None and path.is_file():
            rows = path.read_text(encoding="utf-8").splitlines()[1:]
            found += [row.split("\t")[column].strip() for row in rows if row.strip()]
    found = [sentence for sentence in found or embedded_sentences() if sentence][:count]
    if len(found) < count:
        raise BortError(f"--sentences {count}: there are {len(found)}")
    return [found[index] for index in np.random.default_rng(seed).permutation(count)]


def run(
    workers: Mapping[str, Any], folder: Path, plan: "Plan", notes: List[str]
) -> Dict[str, Streamed]:
    """Every engine over the lines of ``folder/sentences.txt``, in turns of a slice each.

    Raises:
        BortError: predictions of one of ours differ; a peer's that do are left out, and a note says so.
    """
    count, slices, minutes = plan.count, plan.slices, plan.minutes
    loads: Dict[str, Dict[str, Any]] = {}
    for engine, worker in workers.items():
        answer: Dict[str, Any] = {}
        if engine in streams.MAKERS:
            with Worker(engine, plan.threads, streams.__name__) as maker:
                answer = maker.ask(make=str(folder))
        answer = answer if "left_out" in answer else worker.ask(load=str(folder))
        if "left_out" in answer:
            notes.append(f"{engine} left out: {answer['left_out']}")
        else:
            loads[engine] = answer
    if not loads:
        raise BortError(f"no engine can be measured here: {'; '.join(notes)}")
    lines = str(folder / "sentences.txt")
    expected: Optional[np.ndarray] = None
    needed = 0.0
    for engine in list(loads):
        for _ in range(2):  # the second time, everything is loaded and compiled
            workers[engine].ask(start=lines, count=min(count, CHECKED))
            seconds = workers[engine].ask(next=min(count, CHECKED))["seconds"]
            workers[engine].ask(finish=str(folder / "found.npy"))
        found = np.load(folder / "found.npy")
        expected = found if expected is None else expected
        try:
            far = check(engine, found, expected)
        except BortError as error:
            if engine in streams.OURS:
                raise
            notes.append(f"{engine} left out: {error}")  # a peer's, which this project cannot mend
            del loads[engine]
            continue
        needed += seconds / min(count, CHECKED)
        print(f"{engine}: largest difference {far['largest difference']:.2g}", file=sys.stderr, flush=True)
    if minutes is not None:
        count = max(min(count, CHECKED), min(count, int(60 * minutes / needed)))
    for engine in loads:
        workers[engine].ask(start=lines, count=count)
    times: Dict[str, List[float]] = {engine: [] for engine in loads}
    step = -(-count // slices)
    for start in range(0, count, step):
        for engine in loads:
            times[engine].append(workers[engine].ask(next=min(step, count - start))["seconds"])
        print(
            f"{min(start + step, count):,} sentences:"
            + "".join(f"  {engine} {sum(times[engine]):.1f} s" for engine in loads),
            file=sys.stderr,
            flush=True,
        )
    result = {}
    for engine, loaded in loads.items():
        peak = workers[engine].ask(finish=str(folder / "found.npy"))["mib"]
        result[engine] = Streamed(
            times[engine], loaded["seconds"], loaded["mib"], peak, np.load(folder / "found.npy")
        )
    return result


def _peaks(chosen: List[str], threads: int, size: int) -> Dict[str, Tuple[float, str]]:
    """In the number formats of ``chosen``, of matrices of that size."""
    formats = {number_format(engine) for engine in chosen}
    with opened([engine for engine in PRODUCTS if number_format(engine) in formats], threads) as workers:
        return peaks(workers, size)


def _tokenizer(args: argparse.Namespace) -> Optional[str]:
    """The folder to take the tokenizer from; None to train one, or to take the model's."""
    if args.tokenizer or args.model or args.vocab_size or vocabulary(args.data) is None:
        return args.tokenizer
    return str(vocabulary(args.data))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", default="bort", help="a preset or D,A,H,I, with random weights")
    parser.add_argument("--model", help="a fine-tuned classifier of two classes instead")
    parser.add_argument("--tokenizer", help="its folder (default: the model's, or bpe/ of --data)")
    parser.add_argument(
        "--vocab-size", type=int, help="train a SentencePiece tokenizer of this size on the sentences instead"
    )
    parser.add_argument("--engines", default=",".join(streams.ENGINES), help="default: %(default)s")
    parser.add_argument("--sentences", type=int, default=10000, help="default: 10000")
    add_data_option(parser)
    parser.add_argument(
        "--minutes",
        type=float,
        help="that all engines may take together: fewer sentences, then; conversions take some minutes more",
    )
    parser.add_argument("--slices", type=int, default=5, help="turns that every engine takes (default: 5)")
    parser.add_argument("--threads", type=int, default=common.usable_cores(), help="default: all cores")
    parser.add_argument("--peak-size", type=int, default=2048, help="of the matrices that measure the floor")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder to write to")
    parser.add_argument("--name", default="streaming", help="of the result's files")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run the comparison and write the record."""
    args = _parser().parse_args(argv)
    chosen = [name for name in args.engines.split(",") if name]
    unknown = [name for name in chosen if name not in streams.ENGINES]
    if unknown or not chosen:
        raise BortError(
            f"--engines: {', '.join(unknown) or 'none'} unknown; there are {', '.join(streams.ENGINES)}"
        )
    if min(args.sentences, args.slices, args.peak_size) < 1 or not 1 <= args.threads <= common.usable_cores():
        raise BortError(
            "--sentences, --slices and --peak-size must be positive, --threads at most the cores of this "
            "process"
        )
    parse(args.architecture)
    load, notes = common.load_average(), []
    texts = sentences(args.data, args.sentences)
    with tempfile.TemporaryDirectory(prefix="bort-streaming-") as name:
        folder = Path(name)
        (folder / "sentences.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        with Worker("prepare", args.threads, streams.__name__) as maker:
            network = maker.ask(
                prepare=str(folder),
                architecture=args.architecture,
                model=args.model,
                tokenizer=_tokenizer(args),
                vocab_size=args.vocab_size,
            )["network"]
        rates, flops = _peaks(chosen, args.threads, args.peak_size), np.load(folder / streams.FLOPS)
        with opened(chosen, args.threads, streams.__name__) as workers:
            plan = Plan(len(texts), args.slices, args.minutes, args.threads)
            result = run(workers, folder, plan, notes)
    notes.append(
        f"Before its time was taken, every engine had classified the first {CHECKED} sentences: "
        "that is where int8 learned the ranges of activations."
    )
    words = [len(text.split()) for text in texts]
    settings = {
        "network": network,
        "sentences": len(next(iter(result.values())).probabilities),
        "words per sentence": f"{np.mean(words):.1f} (at most {max(words)})",
        "threads": args.threads,
        "slices": args.slices,
    }
    table = rows(result)
    tables = {
        "Engines": table,
        "Ours beside the best of the same accuracy": compared(table),
        "The floor: what products alone would allow": floor(table, rates, flops[: settings["sentences"]]),
    }
    path = records.record(
        args.name,
        tables,
        settings,
        notes,
        "Many requests: a stream of sentences",
        argv,
        args.results,
        load,
    )
    print(path.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
