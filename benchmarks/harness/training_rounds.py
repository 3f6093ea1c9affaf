"""Training steps of every engine in turns, and what they say to the project's targets, for throughput.py."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np

from benchmarks.harness import common, workers
from benchmarks.harness.training_steps import (
    ENGINES,
    OF_OURS,
    OURS,
    OURS_BFLOAT16,
    OURS_TEACHER,
    PARTS,
    TORCH,
    TORCH_AS_IT_COMES,
    TORCH_BFLOAT16,
)

LEAST_ROUNDS = 3
STEPS = "benchmarks.harness.training_steps"
Answers = Dict[str, List[float]]


class Rounds(NamedTuple):
    """How often every engine makes a step: ``most`` times, or as often as ``seconds`` allow, but at least
    :data:`LEAST_ROUNDS` times."""

    most: int
    seconds: float


def groups(engines: Sequence[str], distil: bool) -> List[List[str]]:
    """Engines that take turns. With a teacher of RoBERTa-large's size each holds 4 to 7 GiB, so that they
    come in two groups, the float32 students that are compared first: 17 GiB are enough."""
    if not distil:
        return [list(engines)]
    later = (OURS_BFLOAT16, TORCH_BFLOAT16, TORCH_AS_IT_COMES)
    split = [[one for one in engines if one not in later], [one for one in engines if one in later]]
    return [group for group in split if group]


def take_turns(name: str, distil: bool, engines: Sequence[str], rounds: Rounds) -> Dict[str, Answers]:
    """``{"seconds": [...], "processor": [...]}`` of the steps of every engine that can run here; each is a
    process of its own that is stopped meanwhile."""
    found: Dict[str, Answers] = {}
    with contextlib.ExitStack() as stack:
        running: Dict[str, workers.Worker] = {}
        for engine in engines:
            worker = stack.enter_context(
                workers.Worker(engine, common.usable_cores(), STEPS, **ENGINES[engine])
            )
            reason = worker.ask(make=name, distil=distil).get("left_out")
            if reason:
                print(f"{engine}: left out: {reason}", flush=True)
                worker.close()
            else:
                running[engine], found[engine] = worker, {"seconds": [], "processor": []}
                worker.ask(steps=2)
        end, done = time.perf_counter() + rounds.seconds, 0
        while running and done < rounds.most and (done < LEAST_ROUNDS or time.perf_counter() < end):
            for engine, worker in running.items():
                answer = worker.ask(steps=1)
                for kind, values in found[engine].items():
                    values += answer[kind]
            done += 1
    return found


def compare(name: str, distil: bool, engines: Sequence[str], rounds: Rounds) -> List[Dict[str, Any]]:
    """Rows for the table: steps of every engine, in turns (:func:`groups`)."""
    part, rows = PARTS[name], []
    found: Dict[str, Answers] = {}
    together = groups(engines, distil)
    for group in together:
        found.update(take_turns(name, distil, group, Rounds(rounds.most, rounds.seconds / len(together))))
    seconds, processor = (
        {engine: answers[kind] for engine, answers in found.items()} for kind in ("seconds", "processor")
    )
    for engine, values in seconds.items():
        middle = float(np.median(values))
        rows.append(
            {
                "part": name,
                "step": "distillation" if distil else "masked LM",
                "engine": engine,
                **common.summarize(values),
                "tokens/s": round(part.batch * part.length / middle),
                "CPU ms": round(1000 * float(np.median(processor[engine]))),
                **{
                    f"{ours} is faster by": round(middle / float(np.median(seconds[ours])), 3)
                    if ours in seconds and engine not in OF_OURS
                    else None
                    for ours in (OURS, OURS_BFLOAT16)
                },
            }
        )
        print(rows[-1], flush=True)
    return rows


def targets(rows: Sequence[Dict[str, Any]], amx: bool) -> List[Dict[str, Any]]:
    """What the rows of :func:`compare` say to the project's targets, as ratios of tokens/s to PyTorch's with
    tuned memory and threads; those that were not measured are left out."""
    speed = {(row["part"], row["step"], row["engine"]): row["tokens/s"] for row in rows}
    found = []
    for step, ours, peer, least in (
        ("masked LM", OURS, TORCH, 0.95),
        ("masked LM", OURS_BFLOAT16, TORCH_BFLOAT16, 0.9),
        ("distillation", OURS_TEACHER, TORCH, 1.3 if amx else 1.0),
        ("distillation", OURS, TORCH, None),
        ("distillation", OURS_BFLOAT16, TORCH_BFLOAT16, None),
    ):
        for part in dict.fromkeys(row["part"] for row in rows):
            if (part, step, ours) in speed and (part, step, peer) in speed:
                ratio = speed[part, step, ours] / speed[part, step, peer]
                found.append(
                    {
                        "part": part,
                        "step": step,
                        "ours": ours,
                        "peer": peer,
                        "of the peer's tokens/s": round(ratio, 3),
                        "target": least,
                        "met": None if least is None else ratio >= least,
                    }
                )
    return found
