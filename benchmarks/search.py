"""The paper's search on a small machine: where Bort's tuple ranks, how stable the winners are, what epsilon
costs.

    python -m benchmarks.search  # everything; about 25 minutes on 2 quiet cores
    python -m benchmarks.search --parts table1  # ten minutes; recorded by itself as search-table1
    python -m benchmarks.search --batch-size 8 --max-length 128 --speed-lines 64  # nearer to the paper, hours

Parts (a killed one goes on where it stopped, in --work):
  space    all 300 tuples. Sizes and FLOPs are the paper's own (V = 50,265, s = 512) and latencies are
           measured; only the errors come from a smaller problem: batch, length and vocabulary as given,
           RoBERTa-large without weights.
  table1   the tuples of Table 1 and the largest of the space at s = 512 with RoBERTa's vocabulary; memory.

What a teacher that knows the language changes, and how many steps tell tuples apart, is in
``benchmarks.showcase``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from benchmarks.harness import common, records
from benchmarks.harness.data import add_data_option, vocabulary
from benchmarks.harness.search_runs import corpus, prepare, run
from benchmarks.harness.search_tables import (
    BORT,
    PAPER,
    TABLE_1_TUPLES,
    epsilon_rows,
    errors_of,
    paper_costs,
    rank_rows,
    space_notes,
    table1_rows,
    winners,
)
from bort.architecture import ROBERTA_VOCAB_SIZE, Architecture, parse
from bort.errors import run_command
from bort.json_files import read_jsonl
from bort.search.settings import SearchSettings

LARGEST = Architecture(12, 16, 1024, 3072)
TRAINED_TEACHER = "4,4,128,512"
TRAINED_SPACE = {"depths": "2,4", "heads": "2,4", "hidden": "32,64", "intermediate": "32,64,128"}
Errors = Dict[Architecture, Dict[str, float]]


def space_part(args: argparse.Namespace, work: Path, shards: Path) -> Tuple[Dict[str, Any], List[str]]:
    """All 300 tuples: ranks, the top three over seeds, epsilon's loss, a picture."""
    from bort.search import report
    from bort.search.fptas import representatives
    from bort.search.shared_folder import SearchFolder
    from bort.search.timing import Trials, measured_speed

    top = parse("roberta-large")
    folder = SearchFolder(
        work / "speed", {"length": args.speed_length, "passes": args.speed_passes}, resume=True
    )
    seconds = measured_speed(
        folder, [*SearchSettings().space, top], Trials(args.speed_length, 1, args.speed_passes)
    )
    costs = paper_costs(seconds)
    wanted = {xi for some in costs.values() for xi in representatives(some.of, some.limit, 2)} | set(
        TABLE_1_TUPLES
    )
    errors, minutes, peak = {}, 0.0, 0.0
    for seed in args.seeds:
        # The first seed trains everything, so that epsilon's loss and every kind of cost can be looked at
        # afterwards.
        chosen = (
            ["--epsilon", 1]
            if seed == args.seeds[0]
            else ["--epsilon", 300, "--include", *sorted(map(str, wanted))]
        )
        took, memory = run(
            "run_search.py",
            work / f"seed-{seed}",
            [
                "--corpus",
                shards,
                "--teacher",
                "roberta-large",
                "--vocab-size",
                ROBERTA_VOCAB_SIZE,
                "--seed",
                seed,
                "--batch-size",
                args.batch_size,
                "--max-length",
                args.max_length,
                "--speed-lines",
                args.speed_lines,
                *chosen,
            ],
            args.workers,
        )
        errors[seed], minutes, peak = errors_of(work / f"seed-{seed}"), minutes + took / 60, max(peak, memory)
    tables = {
        f"Where {BORT.display} ranks, and the winners (ε = 2)": rank_rows(costs, errors),
        "Errors and W of Table 1's tuples": table1_rows(costs, errors, args.seeds),
        "What ε costs on the paper's space (one seed)": epsilon_rows(
            {
                f"{name}, {kind}": (some, errors[args.seeds[0]], kind)
                for name, some in costs.items()
                for kind in ("ce", "kl")
            }
        ),
    }
    counted, first = costs["FLOPs"], errors[args.seeds[0]]
    rows = [
        {"architecture": xi.to_dict(), "W": w, **counted.of[xi]._asdict(), "error": first[xi]["ce"]}
        for xi, w in winners(counted, first, "ce", 2, [BORT])
    ]
    report.plot(work / "search.png", rows, [], SearchSettings())
    return tables, space_notes(costs, errors, args, minutes, peak)


def table1_part(args: argparse.Namespace, work: Path, text: Path) -> Tuple[Dict[str, Any], List[str]]:
    """Table 1's tuples as near to the paper's settings as a few minutes allow."""
    known = args.tokenizer or vocabulary(args.data)
    options = {"tokenizer": known} if known else {"vocab_size": 8000}
    shards = prepare(work, "shards-512", text, max_length=512, split="1,0,0", **options)
    paper_w, paper_ms, paper_m = "paper's W", "paper's ms", "paper's (M)"
    took, peak = run(
        "run_search.py",
        work / "table1",
        [
            "--corpus",
            shards,
            "--teacher",
            "roberta-large",
            "--depths",
            4,
            "--heads",
            "8,16",
            "--hidden",
            1024,
            "--intermediate",
            "512,768",
            "--epsilon",
            4,
            "--include",
            *TABLE_1_TUPLES,
            LARGEST,
            "--batch-size",
            args.table1_batch,
            "--speed-lines",
            args.table1_lines,
            "--speed",
            "measured",
            "--speed-batch-size",
            1,
        ],
    )
    rows = []
    for row in read_jsonl(work / "table1" / "candidates.jsonl"):
        xi = Architecture.from_dict(row["architecture"])
        theirs = PAPER.get(xi)
        rows.append(
            {
                "row": theirs.name if theirs else "largest of the space",
                "⟨D,A,H,I⟩": xi.display,
                "W": row["W"],
                "paper's W": theirs.w if theirs else None,
                "cross-entropy": row["ce"],
                "KL": row["kl"],
                "loss before step 1": row["losses"][0],
                "before step 3": row["losses"][2],
                "parameters (M)": row["parameters"] / 1e6,
                "paper's (M)": theirs.parameters_millions if theirs else None,
                "ms, 1 x 512": 1000 * row["seconds_per_sample"],
                "paper's ms": 1000 * theirs.seconds if theirs else None,
            }
        )
    rows.sort(key=lambda row: -row["W"])
    known = [row for row in rows if row["paper's W"] is not None]
    by_name = {row["row"]: row for row in known}
    first, last = by_name["A1 (Bort)"], by_name["BERT-base"]
    errors = [row["cross-entropy"] for row in known]
    theirs_in_order = ", ".join(row["row"] for row in sorted(known, key=lambda row: -row[paper_w]))
    return {"Table 1's tuples at s = 512 (n = 3, lr 5e-4, clip 1)": rows}, [
        f"Order by W here: {', '.join(by_name)}; in the paper: {theirs_in_order}. The cross-entropies "
        f"differ by {max(errors) / min(errors) - 1:.1%} at most, as three steps at 5e-4 leave every network "
        "near its initial weights, so size and speed decide here; the paper's W needs errors that differ "
        "several times over.",
        f"BERT-base takes {last['ms, 1 x 512'] / first['ms, 1 x 512']:.2f} times as long as A1 here and "
        f"{last[paper_ms] / first[paper_ms]:.2f} times in the paper; A1 has {first['parameters (M)']:.1f} "
        f"million parameters here and {first[paper_m]:.1f} in the paper, which counts otherwise (see "
        "parameters.md).",
        f"table1: batch {args.table1_batch} instead of 1,024, {args.table1_lines} held-out lines instead of "
        f"11,828, RoBERTa-large without weights; {took / 60:.1f} minutes and {peak / 1024:.1f} GiB at "
        "most, the teacher with 355 M parameters and the largest candidate included.",
    ]


PARTS = ("space", "table1")


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--work", default=str(common.ROOT / "runs" / "benchmark-search"), help="folder that is resumed"
    )
    add_data_option(parser)
    parser.add_argument("--corpus", help="a text (default: that of --data, else Python's own)")
    parser.add_argument("--tokenizer", help="RoBERTa's, for table1 (default: bpe/ of --data)")
    parser.add_argument(
        "--workers", type=int, default=common.usable_cores(), help="processes (default: one a core)"
    )
    parser.add_argument(
        "--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2]
    )
    parser.add_argument(
        "--batch-size", type=int, default=4, help="space: lines of a step (default 4; the paper 1024)"
    )
    parser.add_argument("--max-length", type=int, default=32, help="space: tokens of a line (the paper: 512)")
    parser.add_argument(
        "--speed-lines", type=int, default=16, help="space: held-out lines (the paper: 11,828)"
    )
    parser.add_argument(
        "--speed-length", type=int, default=128, help="space: tokens of a timed line (default 128)"
    )
    parser.add_argument(
        "--speed-passes", type=int, default=4, help="space: timed passes of a tuple (default 4)"
    )
    parser.add_argument("--table1-batch", type=int, default=8, help="table1: lines of a step")
    parser.add_argument("--table1-lines", type=int, default=8, help="table1: held-out and timed lines")
    args = parser.parse_args(argv)
    load, begun, work = common.load_average(), time.perf_counter(), Path(args.work)
    text = corpus(work, args.data, args.corpus)
    shards = prepare(work, "shards", text, vocab_size=8000, max_length=64)
    tables: Dict[str, Any] = {}
    notes: List[str] = []
    for part in PARTS:
        if part in args.parts:
            one = {
                "space": lambda: space_part(args, work, shards),
                "table1": lambda: table1_part(args, work, text),
            }[part]
            found, said = one()
            tables.update(found)
            notes += said
    name, title = "search", "The FPTAS on the paper's search space"
    if list(args.parts) == ["table1"]:
        name, title = "search-table1", "Table 1's tuples at full size"
    images = []
    if "space" in args.parts and (work / "search.png").is_file():
        common.RESULTS.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(work / "search.png", common.RESULTS / "search-space.png")
        images = ["search-space.png"]
    settings: Dict[str, Any] = {"corpus": f"{text.stat().st_size:,} bytes"}
    if name == "search":
        settings.update(
            {
                "space: batch": args.batch_size,
                "length": args.max_length,
                "held-out lines": args.speed_lines,
                "vocabulary": "SentencePiece 8,000",
                "seeds": args.seeds,
                "timed": f"{args.speed_passes} passes over 1 x {args.speed_length}",
            }
        )
    settings["minutes of the last call"] = round((time.perf_counter() - begun) / 60, 1)
    path = records.record(name, tables, settings, notes, title, argv, started_load=load, images=images)
    print(path.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
