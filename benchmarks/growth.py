"""How time and memory of a forward pass grow with batch and length, in ours and in the best peers.

    python -m benchmarks.growth --minutes 10  # Bort; about 20 minutes on 2 quiet cores
    python -m benchmarks.growth --architecture 2,4,64,128 --vocab-size 500 --batch-sizes 1,4 --lengths 16,32

Batches of 1 to 64 sequences of 128 tokens, and single sequences of 16 to 512. Engines run as in
``benchmarks.latency``: in processes of their own, in turns, their outputs compared first. The memory is the
most that a process held while it computed a shape (``VmHWM``, set back before each).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from benchmarks import latency
from benchmarks.harness import common, engines, records
from benchmarks.harness.shapes import Shape
from benchmarks.harness.workers import Worker
from bort.architecture import PRESETS, ROBERTA_VOCAB_SIZE, parse
from bort.errors import BortError, run_command

ENGINES = (
    "openvino",
    "openvino-int8",
    "openvino-bf16",
    "mxnet",
    "pytorch",
    "pytorch-bf16",
    "onnxruntime-hf",
    "onnxruntime-hf-int8",
    "openvino-hf",
    "openvino-hf-int8",
    "ctranslate2",
)
BATCH_SIZES = [1, 2, 4, 8, 16, 32, 64]
LENGTHS = [16, 32, 64, 128, 256, 512]
Row = Dict[str, Any]


def rows_of(results: List[latency.Measured], mib: Dict[Tuple[str, Shape], float]) -> List[Row]:
    """One row an engine and shape."""
    return [
        {
            "engine": result.engine,
            "batch": result.shape[0],
            "length": result.shape[1],
            "ms": round(float(np.median(result.seconds)) * 1000, 3),
            "tokens/s": round(result.shape[0] * result.shape[1] / float(np.median(result.seconds))),
            "peak MiB": mib[result.engine, result.shape],
            "trials": len(result.seconds),
        }
        for result in results
    ]


def chart(tables: Dict[str, List[Row]], title: str, path: Path) -> Optional[str]:
    """Tokens per second above, memory below, by batch and by length; the file's name, or None without
    matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(2, len(tables), figsize=(7 * len(tables), 8.5), squeeze=False)
    for column, (heading, rows) in enumerate(tables.items()):
        along = "batch" if len({row["batch"] for row in rows}) > 1 else "length"
        colours = pyplot.get_cmap("tab20")
        for place, engine in enumerate(dict.fromkeys(row["engine"] for row in rows)):
            mine = [row for row in rows if row["engine"] == engine]
            ours = engine in engines.OURS
            style: Dict[str, Any] = {"marker": "o", "markersize": 3.5, "color": colours(place)}
            style["label"] = engine
            style.update({"linewidth": 2.4} if ours else {"linewidth": 1.2, "linestyle": "--"})
            for axes, measure in zip(places[:, column], ("tokens/s", "peak MiB")):
                axes.plot([row[along] for row in mine], [row[measure] for row in mine], **style)
                axes.set_ylabel(measure)
        for axes in places[:, column]:
            ticks = sorted({row[along] for row in rows})
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.set_xlabel("sequences in a batch" if along == "batch" else "tokens of a sequence")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        places[0, column].set_title(f"{title}: {heading}")
    lines, labels = places[0, 0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0, 0.88, 1))
    figure.legend(lines, labels, fontsize=8, loc="center right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(str(path), dpi=110)
    pyplot.close(figure)
    return path.name


def _parser() -> argparse.ArgumentParser:
    def numbers(text: str) -> List[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", default="bort", help="a preset or D,A,H,I")
    parser.add_argument("--engines", default=",".join(ENGINES), help="default: %(default)s")
    parser.add_argument("--batch-sizes", type=numbers, default=BATCH_SIZES, help="default: 1 to 64")
    parser.add_argument("--batch-length", type=int, default=128, help="of the batches (default: 128)")
    parser.add_argument("--lengths", type=numbers, default=LENGTHS, help="of one sequence")
    parser.add_argument("--trials", type=int, default=15, help="timed calls at most (default: 15)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=10.0,
        help="that all timed calls may take together (default: 10); conversions and the "
        f"{latency.LEAST_TRIALS} calls that everything gets take some minutes more",
    )
    parser.add_argument("--threads", type=int, default=common.usable_cores(), help="default: all cores")
    parser.add_argument("--vocab-size", type=int, default=ROBERTA_VOCAB_SIZE, help="of D,A,H,I")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder to write to")
    parser.add_argument("--name", default="growth", help="of the result's files, with the kind of CPU")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run the comparison and write the record, the tables and the chart."""
    args = _parser().parse_args(argv)
    chosen = tuple(name for name in args.engines.split(",") if name)
    unknown = [name for name in chosen if name not in engines.DESCRIPTIONS]
    if unknown or not chosen:
        raise BortError(
            f"--engines: {', '.join(unknown) or 'none'} unknown; there are {', '.join(engines.DESCRIPTIONS)}"
        )
    if min(args.trials, args.batch_length, *args.lengths, *args.batch_sizes) < 1:
        raise BortError("--trials, --batch-length, --lengths and --batch-sizes must be positive")
    if not 1 <= args.threads <= common.usable_cores():
        raise BortError(f"--threads {args.threads}: this process has {common.usable_cores()} cores")
    by_batch: List[Shape] = [(size, args.batch_length, False) for size in sorted(args.batch_sizes)]
    by_length: List[Shape] = [(1, length, False) for length in sorted(args.lengths)]
    preset = PRESETS.get(args.architecture.lower())
    plan = latency.Planned(
        args.architecture,
        str(parse(args.architecture)),
        preset.vocab_size if preset is not None else args.vocab_size,
        list(dict.fromkeys([*by_length, *by_batch])),
        chosen,
    )
    load, name = common.load_average(), records.file_name(args.name, args.results)
    notes: List[str] = []
    workers: Dict[str, Worker] = {}
    budget = 60 * args.minutes / (len(plan.shapes) * len(chosen))
    mib: Dict[Tuple[str, Shape], float] = {}
    try:
        for engine in chosen:
            workers[engine] = Worker(engine, args.threads)
        with tempfile.TemporaryDirectory(prefix="bort-growth-") as folder:
            results = latency.measure(
                workers, plan, args.trials, budget, args.threads, notes, Path(folder), mib
            )
    finally:
        for worker in workers.values():
            worker.close()
    rows = rows_of(results, mib)
    shown = parse(args.architecture).display
    tables = {
        f"{args.batch_length} tokens": [
            row for row in rows if (row["batch"], row["length"], False) in by_batch
        ],
        "one sequence": [row for row in rows if (row["batch"], row["length"], False) in by_length],
    }
    tables = {heading: table for heading, table in tables.items() if len(table) > len(chosen)}
    image = chart(tables, f"{args.architecture} {shown}", args.results / f"{name}.png")
    measured = {result.engine for result in results}
    notes += [f"{engine}: {text}" for engine, text in engines.DESCRIPTIONS.items() if engine in measured]
    notes.append("Ours are made from a network in MXNet, which stays in memory with them.")
    settings = {
        "architecture": f"{args.architecture} {shown}",
        "threads": args.threads,
        "trials": args.trials,
        "seconds for an engine and shape": round(budget, 1),
    }
    title = "Growth of a forward pass with batch and length"
    path = records.record(
        name, tables, settings, notes, title, argv, args.results, load, [image] if image else []
    )
    print(path.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
