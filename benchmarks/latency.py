"""Table 1's latency, in every engine a user would pick, with the same weights and inputs.

    python -m benchmarks.latency --minutes 12  # everything, in about 30 minutes on 2 quiet cores
    python -m benchmarks.latency --architectures bort --minutes 6  # without the paper's other networks
    python -m benchmarks.latency --architectures bort --engines mxnet,onnxruntime-hf --batch-sizes 1
    python -m benchmarks.latency --architectures 2,4,256,512 --lengths 64 --trials 5

Every engine runs in a process of its own (see workers.py) that is stopped while another one is measured; they
take turns round by round. Their outputs are compared before anything is timed: an engine that is fast and
wrong is an error. Engines that are not installed, or that the CPU cannot run, are left out with a note.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from benchmarks.harness import common, engines, latency_report, records, shapes
from benchmarks.harness.latency_report import show_shape
from benchmarks.harness.shapes import Shape
from benchmarks.harness.workers import Ended, Worker, opened, peaks
from bort.architecture import PRESETS, ROBERTA_VOCAB_SIZE, parse
from bort.errors import BortError, run_command

ARCHITECTURES = ("bort", "a2", "a3", "bert-base", "roberta-large")
ENGINES_OF_TABLE_1 = (
    "mxnet",
    "mxnet-int8",
    "openvino",
    "onnx",
    "gluonnlp",
    "gluonnlp-tuned",
    "pytorch",
    "onnxruntime-hf",
    "openvino-hf",
)
FLOAT32_TOLERANCE = 1e-4
CORRELATION = 0.99
LEAST_TRIALS, LEAST_SHORT_TRIALS = 3, 9
"""Of every shape, and of one of which all engines together compute a batch in :data:`SHORT_ROUND` seconds."""
SHORT_ROUND = 10.0
MEMORY_OF_AN_ENGINE, MEMORY_SHARE = 2.5, 0.6
"""How many times a network's float32 weights an engine's process is taken to hold (copies in its own order
and its file among them), and the share of the machine's memory that engines measured together may have."""
SHORT = 0.5
"""Seconds: calls below get one more uncounted call whenever their process goes on, whose caches are cold by
then."""


class Measured(NamedTuple):
    """One engine on one architecture and shape: seconds of every timed call, how far its output is off at
    most, and the output's correlation with the network's."""

    architecture: str
    shape: Shape
    engine: str
    seconds: List[float]
    difference: float
    correlation: float = 1.0


class Planned(NamedTuple):
    """What is measured on one architecture."""

    name: str
    architecture: str
    vocab_size: int
    shapes: List[Shape]
    engines: Tuple[str, ...]


def measure(
    workers: Mapping[str, Worker],
    plan: Planned,
    trials: int,
    budget: float,
    threads: int,
    notes: List[str],
    folder: Path,
    mib: Optional[Dict[Tuple[str, Shape], float]] = None,
) -> List[Measured]:
    """All engines on one architecture.

    Args:
        trials: timed calls of each engine and shape at most; ``budget``: seconds that one of them may take,
            warm-up apart, beyond the least number of calls.
        notes: collects what was left out, and why.
        mib: collects the most memory that an engine's process held during a shape's timed calls.

    Raises:
        BortError: an engine's output is not the model's.
    """
    print(f"{plan.name}: preparing", file=sys.stderr, flush=True)
    ready = _prepare(workers, plan, threads, notes, folder)
    if not ready:
        raise BortError(f"{plan.name}: no engine can be measured here: {'; '.join(notes)}")
    results = []
    for number, shape in enumerate(plan.shapes):
        differences, first, correlations = compare(
            {engine: workers[engine] for engine in ready},
            shape,
            plan.vocab_size,
            np.load(folder / f"expected-{number}.npy"),
            folder,
        )
        worst = max(ready, key=lambda engine: differences[engine])
        print(
            f"{plan.name} {show_shape(shape)}: largest difference {differences[worst]:.2g} ({worst}); ms",
            end="",
            file=sys.stderr,
            flush=True,
        )
        least = LEAST_SHORT_TRIALS if sum(first.values()) < SHORT_ROUND else LEAST_TRIALS
        count = max(min(least, trials), LEAST_TRIALS, min(trials, int(budget / max(first.values()))))
        seconds = _rounds(workers, ready, shape, count, first, {} if mib is None else mib)
        results += [
            Measured(plan.name, shape, engine, seconds[engine], differences[engine], correlations[engine])
            for engine in ready
        ]
        print(
            "".join(f"  {engine} {np.median(seconds[engine]) * 1000:.1f}" for engine in ready),
            file=sys.stderr,
        )
    return results


def _prepare(
    workers: Mapping[str, Worker], plan: Planned, threads: int, notes: List[str], folder: Path
) -> List[str]:
    """Make the weights, the expected outputs and the engines' files, load the engines; those that can be
    measured.

    What needs much memory once has a process that ends before the engines are loaded.
    """
    with Worker("reference", threads) as maker:
        maker.ask(prepare=str(folder), architecture=plan.architecture, vocab_size=plan.vocab_size)
    with Worker("reference", threads) as reference:
        reference.ask(load=str(folder))
        for number, shape in enumerate(plan.shapes):
            reference.ask(first=shape, output=str(folder / f"expected-{number}.npy"))
    left_out = {}
    for engine in plan.engines:
        workers[engine].ask(forget=True)
        if engine in engines.MAKERS:
            with Worker(engine, threads) as maker:
                left_out[engine] = maker.ask(make=str(folder)).get("left_out")
    for engine in plan.engines:
        left_out[engine] = left_out.get(engine) or workers[engine].ask(load=str(folder)).get("left_out")
        note = f"{engine} left out: {left_out[engine]}"
        notes.extend([note] if left_out[engine] and note not in notes else [])
    return [engine for engine in plan.engines if not left_out[engine]]


def compare(
    workers: Mapping[str, Any], shape: Shape, vocab_size: int, expected: np.ndarray, folder: Path
) -> Tuple[Dict[str, float], Dict[str, float], Dict[str, float]]:
    """Every engine's largest difference from the ``expected`` output (B, T, H), a first timing, and the
    correlation with that output.

    float32 engines must agree to :data:`FLOAT32_TOLERANCE` of the largest output; others must correlate.
    Padding is not compared.

    Raises:
        BortError: an engine is wrong.
    """
    _, valid = shapes.make_batch(shape, vocab_size)
    real = np.arange(shape[1]) < valid[:, None]
    expected = expected[real]
    differences, first, correlations = {}, {}, {}
    for engine, worker in workers.items():
        first[engine] = worker.ask(first=shape, output=str(folder / "output.npy"))["seconds"][0]
        output = np.load(folder / "output.npy")[real]
        differences[engine] = float(np.abs(output - expected).max())
        correlations[engine] = float(np.corrcoef(output.ravel(), expected.ravel())[0, 1])
        if shapes.number_format(engine) == "float32":
            right = differences[engine] <= FLOAT32_TOLERANCE * max(1.0, float(np.abs(expected).max()))
        else:
            right = correlations[engine] >= CORRELATION
        if not right:  # so that NaN is wrong too
            raise BortError(
                f"{engine} is wrong: its output for {show_shape(shape)} is off by {differences[engine]:.3g}"
            )
    return differences, first, correlations


def _rounds(
    workers: Mapping[str, Worker],
    timed: Sequence[str],
    shape: Shape,
    count: int,
    first: Mapping[str, float],
    mib: Dict[Tuple[str, Shape], float],
) -> Dict[str, List[float]]:
    seconds: Dict[str, List[float]] = {engine: [] for engine in timed}
    done = 0
    while done < count:
        batch = min(3 if max(first[engine] for engine in timed) < SHORT else 1, count - done)
        for engine in timed:
            answer = workers[engine].ask(time=shape, count=batch, warmup=1 if first[engine] < SHORT else 0)
            seconds[engine] += answer["seconds"]
            mib[engine, shape] = max(mib.get((engine, shape), 0.0), answer["mib"])
        done += batch
    return seconds


def _groups(plan: Planned) -> List[Planned]:
    """The plan's engines, as many at a time as memory holds networks of."""
    memory = common.memory_gib()
    if memory is None:
        return [plan]
    each = MEMORY_OF_AN_ENGINE * 4 * parse(plan.architecture).parameters(plan.vocab_size)["total"]
    count = max(2, int(memory * 2**30 * MEMORY_SHARE / each))
    starts = range(0, len(plan.engines), count)
    return [plan._replace(engines=plan.engines[start : start + count]) for start in starts]


def _plan(args: argparse.Namespace) -> List[Planned]:
    """The first architecture gets every shape and engine; the others, by default, Table 1's one sample and
    the engines that a table of ratios needs, since the largest takes ten times as long."""
    chosen = [name for name in (args.engines or ",".join(engines.DESCRIPTIONS)).split(",") if name]
    unknown = [name for name in chosen if name not in engines.DESCRIPTIONS]
    if unknown:
        raise BortError(
            f"--engines: {', '.join(unknown)} unknown; there are {', '.join(engines.DESCRIPTIONS)}"
        )
    names = _architectures(args.architectures)
    whole = [(batch, length, False) for batch in args.batch_sizes for length in args.lengths]
    whole += [(batch, length, True) for batch in args.batch_sizes if batch > 1 for length in args.lengths]
    plan = []
    for name in names:
        preset = PRESETS.get(name.lower())
        all_of_it = args.all or name == names[0]
        some = tuple(engine for engine in chosen if all_of_it or args.engines or engine in ENGINES_OF_TABLE_1)
        plan.append(
            Planned(
                name,
                str(parse(name)),
                preset.vocab_size if preset is not None else args.vocab_size,
                whole if all_of_it else whole[:1],
                some,
            )
        )
    return plan


def _architectures(text: str) -> List[str]:
    """``bort,a2`` or ``2,4,256,512`` or ``bort,2,4,256,512``: presets, and tuples of four numbers."""
    names: List[str] = []
    numbers: List[str] = []
    for part in (part.strip() for part in text.split(",")):
        numbers += [part] if part.isdigit() else []
        names += [] if part.isdigit() or not part else [part]
        if len(numbers) == 4:
            names.append(",".join(numbers))
            numbers = []
    if numbers or not names:
        raise BortError(f"--architectures: {text!r} is not a list of presets and of tuples D,A,H,I")
    return list(dict.fromkeys(names))


def _parser() -> argparse.ArgumentParser:
    def numbers(text: str) -> List[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--architectures", default=",".join(ARCHITECTURES), help="presets or D,A,H,I (default: Table 1's)"
    )
    parser.add_argument(
        "--engines",
        help=f"of {','.join(engines.DESCRIPTIONS)} (default: all, fewer beside the first architecture)",
    )
    parser.add_argument("--lengths", type=numbers, default=[512, 128], help="tokens (default: 512,128)")
    parser.add_argument("--batch-sizes", type=numbers, default=[1, 8], help="sequences (default: 1,8)")
    parser.add_argument("--all", action="store_true", help="every shape and engine for every architecture")
    parser.add_argument("--trials", type=int, default=15, help="timed calls at most (default: 15)")
    parser.add_argument(
        "--budget", type=float, default=8.0, help="seconds for an engine and shape (default: 8)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="that all timed calls may take together, instead of --budget; exports, conversions and the "
        f"{LEAST_TRIALS} calls that everything gets take some minutes more",
    )
    parser.add_argument("--threads", type=int, default=common.usable_cores(), help="default: all cores")
    parser.add_argument(
        "--vocab-size", type=int, default=ROBERTA_VOCAB_SIZE, help="of D,A,H,I (presets have their own)"
    )
    parser.add_argument("--peak-size", type=int, default=2048, help="of the matrices that measure the floor")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder to write to")
    parser.add_argument("--name", default="latency", help="of the result's files, with the kind of CPU")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run the comparison and write the record, the table and the chart."""
    args = _parser().parse_args(argv)
    if min(args.trials, args.peak_size, *args.lengths, *args.batch_sizes) < 1:
        raise BortError("--trials, --peak-size, --lengths and --batch-sizes must be positive")
    if not 1 <= args.threads <= common.usable_cores():
        raise BortError(f"--threads {args.threads}: this process has {common.usable_cores()} cores")
    load, plan, notes = common.load_average(), _plan(args), []
    name = records.file_name(args.name, args.results)
    if args.minutes is not None:
        args.budget = 60 * args.minutes / sum(len(each.shapes) * len(each.engines) for each in plan)
    results: List[Measured] = []
    with opened(plan[0].engines, args.threads) as workers:
        rates = peaks(workers, args.peak_size)
    for planned in plan:
        try:
            for group in _groups(planned):
                with opened(group.engines, args.threads) as workers, tempfile.TemporaryDirectory(
                    prefix="bort-latency-"
                ) as folder:
                    results += measure(
                        workers, group, args.trials, args.budget, args.threads, notes, Path(folder)
                    )
        except Ended as error:  # what was measured before is not lost
            if not results:
                raise
            notes.append(f"{planned.name} left out, or a part of it: {error}".rstrip(": "))
    measured = {result.engine for result in results}
    notes += [f"{engine}: {text}" for engine, text in engines.DESCRIPTIONS.items() if engine in measured]
    notes.append(
        "Weights are random and the same in all engines; outputs were compared with the uncompiled "
        "Gluon model's on every shape before it was timed."
    )
    notes.append(
        "Peers are what users run transformers' model with; 'ours' are this project's engines. gluonnlp is "
        "the paper's baseline and no peer."
    )
    notes.append(
        "Targets: 'at the peak' is the ratio if the faster side ran at the machine's peak rate of "
        "matrix products, an upper bound; 'of the work' is how many times more operations the other "
        "network has, which no engine that computes both equally well can exceed."
    )
    seen = {result.architecture for result in results}
    report = latency_report.Report(
        results, {each.name: parse(each.architecture) for each in plan if each.name in seen}, rates
    )
    image = report.chart(args.results / f"{name}.png")
    settings = {
        "threads": args.threads,
        "trials": args.trials,
        "seconds for an engine and shape": round(args.budget, 1),
        "lengths": args.lengths,
        "batch sizes": args.batch_sizes,
    }
    path = records.record(
        name,
        report.tables(),
        settings,
        notes,
        "Latency of a forward pass (Table 1)",
        argv,
        args.results,
        load,
        [image] if image else [],
    )
    print(path.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
