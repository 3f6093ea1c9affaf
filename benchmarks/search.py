"""The paper's search on a small machine: where Bort's tuple ranks, how stable the winners are, what epsilon
costs.

    python -m benchmarks.search  # everything; about 25 minutes on 2 quiet cores
    python -m benchmarks.search --parts trained  # three minutes: a small space and a teacher that was trained
    python -m benchmarks.search --parts table1  # ten minutes; recorded by itself as search-table1
    python -m benchmarks.search --batch-size 8 --max-length 128 --speed-lines 64  # nearer to the paper, hours

Parts (a killed one goes on where it stopped, in --work):
  space    all 300 tuples. Sizes and FLOPs are the paper's own (V = 50,265, s = 512) and latencies are
           measured; only the errors come from a smaller problem: batch, length and vocabulary as given,
           RoBERTa-large without weights.
  table1   the tuples of Table 1 and the largest of the space at s = 512 with RoBERTa's vocabulary; memory.
  trained  a small space against a small teacher that was pre-trained here, after few steps and after many.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from benchmarks.harness import common, records
from benchmarks.harness.data import add_data_option, vocabulary
from benchmarks.harness.search_runs import corpus, prepare, run
from bort.architecture import PRESETS, ROBERTA_VOCAB_SIZE, Architecture, parse
from bort.errors import run_command
from bort.files import read_jsonl
from bort.paper import TABLE_1
from bort.search.settings import SearchSettings

BORT = parse("bort")
PAPER = {PRESETS[row.preset].architecture: row for row in TABLE_1}
TABLE_1_TUPLES = [xi for xi in PAPER if xi != parse("roberta-large")]
LARGEST = Architecture(12, 16, 1024, 3072)
TRAINED_TEACHER = "4,4,128,512"
TRAINED_SPACE = {"depths": "2,4", "heads": "2,4", "hidden": "32,64", "intermediate": "32,64,128"}
Errors = Dict[Architecture, Dict[str, float]]


class Costs(NamedTuple):
    """One way to count size and speed: every tuple's (p, i), and T's."""

    of: Dict[Architecture, Any]
    limit: Any


def errors_of(folder: Path) -> Errors:
    """ce and kl of every candidate of a run that did not diverge."""
    return {
        Architecture.from_dict(row["architecture"]): {"ce": row["ce"], "kl": row["kl"]}
        for row in read_jsonl(folder / "candidates.jsonl")
        if row["W"] is not None
    }


def winners(
    costs: Costs, errors: Errors, kind: str, epsilon: int, also: Sequence[Architecture] = ()
) -> List[Tuple[Architecture, float]]:
    """(tuple, W) of the representatives for ``epsilon`` and of ``also``, the largest W first."""
    from bort.search.fptas import representatives, w_coefficient

    chosen = [*representatives(costs.of, costs.limit, epsilon), *also]
    found = {xi: w_coefficient(costs.of[xi], costs.limit, errors[xi][kind]) for xi in chosen if xi in errors}
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))


def paper_costs(seconds: Mapping[Architecture, float]) -> Dict[str, Costs]:
    """Size and speed of the paper's space in the paper's own units (V = 50,265, s = 512), and with measured
    seconds."""
    from bort.search.fptas import surrogates

    space, top = SearchSettings().space, parse("roberta-large")
    found = {}
    for name, counts, measured in (
        ("FLOPs", "exact", None),
        ("measured", "exact", seconds),
        ("Lemmas 1, 2", "lemma", None),
    ):
        costs = surrogates([*space, top], SearchSettings(counts=counts), ROBERTA_VOCAB_SIZE, measured)
        limit = costs.pop(top)
        found[name] = Costs(costs, limit)
    return found


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


def rank_rows(costs: Mapping[str, Costs], errors: Mapping[int, Errors]) -> List[Dict[str, Any]]:
    """For every kind of speed and error: Bort's rank per seed, the winners, and how many of three all seeds
    share."""
    rows = []
    for name, some in costs.items():
        for kind in ("ce", "kl"):
            found = {seed: winners(some, rates, kind, 2, [BORT]) for seed, rates in errors.items()}
            tops = [[xi for xi, _ in ranking[:3]] for ranking in found.values()]
            rows.append(
                {
                    "speed": name,
                    "error": kind,
                    "Bort's rank": ", ".join(
                        str([xi for xi, _ in ranking].index(BORT) + 1) for ranking in found.values()
                    ),
                    "of": len(next(iter(found.values()))),
                    "Bort's W": dict(next(iter(found.values())))[BORT],
                    "largest W": next(iter(found.values()))[0][1],
                    "top three of the first seed": ", ".join(xi.display for xi in tops[0]),
                    "in all seeds' top three": len(set(tops[0]).intersection(*tops[1:])),
                    "same order": all(top == tops[0] for top in tops),
                }
            )
    return rows


def implied_error(xi: Architecture) -> Optional[float]:
    """The error that equation 2 and the paper's own figures in Table 1 imply for a row."""
    row, top = PAPER[xi], PAPER[parse("roberta-large")]
    share = (1 - row.parameters_millions / top.parameters_millions) * (1 - row.seconds / top.seconds)
    return share / row.w if row.w else None


def table1_rows(
    costs: Mapping[str, Costs], errors: Mapping[int, Errors], seeds: Sequence[int]
) -> List[Dict[str, Any]]:
    """The paper's rows beside ours."""
    rows = []
    for xi in TABLE_1_TUPLES:
        rates = errors[seeds[0]][xi]
        rows.append(
            {
                "row": PAPER[xi].name,
                "⟨D,A,H,I⟩": xi.display,
                "paper's W": PAPER[xi].w,
                "error that W implies": implied_error(xi),
                "our ce": ", ".join(f"{errors[seed][xi]['ce']:.3f}" for seed in seeds),
                "our kl": ", ".join(f"{errors[seed][xi]['kl']:.3f}" for seed in seeds),
                **{
                    f"W ({name}, {kind})": dict(winners(some, {xi: rates}, kind, 1))[xi]
                    for name, some in costs.items()
                    for kind in ("ce", "kl")
                    if name != "Lemmas 1, 2"
                },
            }
        )
    return rows


def epsilon_rows(cases: Mapping[str, Tuple[Costs, Errors, str]]) -> List[Dict[str, Any]]:
    """How much smaller the best W is than with ε = 1, in percent, and what was trained for it."""
    rows = []
    for name, (costs, errors, kind) in cases.items():
        best = winners(costs, errors, kind, 1)[0]
        row: Dict[str, Any] = {"case": name, "optimum": best[0].display}
        for epsilon in (1, 2, 4, 8):
            ranking = winners(costs, errors, kind, epsilon)
            row[f"ε = {epsilon}: trained"] = len(ranking)
            row[f"loss, % (ε = {epsilon})"] = 100 * (1 - ranking[0][1] / best[1])
        rows.append(row)
    return rows


def space_notes(
    costs: Mapping[str, Costs],
    errors: Mapping[int, Errors],
    args: argparse.Namespace,
    minutes: float,
    peak: float,
) -> List[str]:
    """What the figures say, in sentences made of the figures."""
    from bort.search.fptas import w_coefficient

    first = errors[args.seeds[0]]
    ce, kl = ([rates[kind] for rates in first.values()] for kind in ("ce", "kl"))
    share = {xi: w_coefficient(cost, costs["FLOPs"].limit, 1.0) for xi, cost in costs["FLOPs"].of.items()}
    widths = np.array([[xi.hidden, xi.depth] for xi in first], dtype="float64")
    by_width = [float(np.corrcoef(widths[:, column], ce)[0, 1]) for column in (0, 1)]
    bound = sum(1 - step / 3 for step in range(3)) * 5e-4
    return [
        f"space: {len(first)} tuples for seed {args.seeds[0]}, {len(errors[args.seeds[-1]])} for the "
        f"others. They took {minutes:.0f} minutes, over all calls that went on with them, at most "
        f"{peak / 1024:.1f} GiB a process.",
        f"The size and speed part of W goes from {min(share.values()):.2f} to {max(share.values()):.2f}, "
        f"Bort's is {share[BORT]:.2f}; the cross-entropy goes from {min(ce):.2f} to {max(ce):.2f}. For "
        f"Bort's tuple to win, its error must be {100 * (1 - share[BORT] / max(share.values())):.0f}% "
        "below the smallest tuple's.",
        "Three SGD steps at 5e-4 with gradients clipped to 1 move all weights together by at most "
        f"{bound:.0e} in norm, so the error is that of the initial weights, whatever the batch. Its "
        f"correlation with the hidden size is {by_width[0]:.2f}, with the depth {by_width[1]:.2f}.",
        "The paper's own W, parameters and latencies imply errors of "
        + ", ".join(f"{implied_error(xi):.3f} ({PAPER[xi].name})" for xi in TABLE_1_TUPLES)
        + f". A cross-entropy over {ROBERTA_VOCAB_SIZE:,} words cannot be that small after three steps, "
        "so the paper's error is scaled in a way it does not describe, and its W values cannot be "
        "compared with ours as they stand.",
    ]


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


def trained_part(args: argparse.Namespace, work: Path, shards: Path) -> Tuple[Dict[str, Any], List[str]]:
    """A small space against a small teacher that knows the language, after few and after many steps."""
    from bort.search.fptas import surrogates

    run(
        "run_pretrain.py",
        work / "teacher",
        [
            "--architecture",
            TRAINED_TEACHER,
            "--data",
            shards,
            "--method",
            "mlm",
            "--steps",
            args.teacher_steps,
            "--batch-size",
            32,
            "--lr",
            1e-3,
            "--warmup-ratio",
            0.2,
            "--schedule",
            "linear",
            "--max-length",
            64,
            "--dropout",
            0,
            "--eval-interval",
            args.teacher_steps,
        ],
    )
    cases: Dict[str, Tuple[Costs, Errors, str]] = {}
    rows = []
    for name, teacher, steps, rate, clip in (
        ("random, 3 steps as the paper's", TRAINED_TEACHER, 3, 5e-4, 1.0),
        ("trained, 3 steps as the paper's", work / "teacher" / "model", 3, 5e-4, 1.0),
        (f"trained, {args.steps} steps, lr 1", work / "teacher" / "model", args.steps, 1.0, 1.0),
    ):
        folder = work / f"small-{steps}-{'random' if teacher == TRAINED_TEACHER else 'trained'}"
        space = [part for key, value in TRAINED_SPACE.items() for part in (f"--{key}", value)]
        run(
            "run_search.py",
            folder,
            [
                "--corpus",
                shards,
                "--teacher",
                teacher,
                *space,
                "--epsilon",
                1,
                "--steps",
                steps,
                "--batch-size",
                32,
                "--max-length",
                64,
                "--speed-lines",
                256,
                "--lr",
                rate,
                "--clip",
                clip,
                "--dropout",
                0.0,
            ],
            args.workers,
        )
        errors = errors_of(folder)
        described = {key: tuple(map(int, value.split(","))) for key, value in TRAINED_SPACE.items()}
        settings = SearchSettings(**described, max_length=64)
        top = parse(TRAINED_TEACHER)
        counted = surrogates([*settings.space, top], settings, 8000)
        costs = Costs({xi: counted[xi] for xi in settings.space}, counted[top])
        for kind in ("ce", "kl"):
            cases[f"{name}, {kind}"] = (costs, errors, kind)
            rates = [errors[xi][kind] for xi in settings.space]
            best = winners(costs, errors, kind, 1)
            smallest = min(settings.space, key=lambda xi: costs.of[xi])
            rows.append(
                {
                    "teacher": name,
                    "error": kind,
                    "smallest error": min(rates),
                    "largest": max(rates),
                    "best tuple": best[0][0].display,
                    "second": best[1][0].display,
                    "third": best[2][0].display,
                    "rank of the smallest tuple": [xi for xi, _ in best].index(smallest) + 1,
                }
            )
    return {f"24 small tuples, T = {TRAINED_TEACHER}": rows, "What ε costs there": epsilon_rows(cases)}, []


PARTS = ("space", "table1", "trained")


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
    parser.add_argument("--teacher-steps", type=int, default=400, help="trained: pre-training steps of T")
    parser.add_argument("--steps", type=int, default=100, help="trained: n of the long search")
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
                "trained": lambda: trained_part(args, work, shards),
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
