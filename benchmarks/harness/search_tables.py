"""Rows and sentences of ``benchmarks.search``, from the candidates that its searches trained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from bort.architecture import PRESETS, ROBERTA_VOCAB_SIZE, Architecture, parse
from bort.json_files import read_jsonl
from bort.paper import TABLE_1
from bort.search.settings import SearchSettings

BORT = parse("bort")
PAPER = {PRESETS[row.preset].architecture: row for row in TABLE_1}
TABLE_1_TUPLES = [xi for xi in PAPER if xi != parse("roberta-large")]
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
