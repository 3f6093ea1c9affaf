"""The FPTAS for optimal subarchitecture extraction (section 3; de Wynter, arXiv:2010.08512), over the family
``Bert``.

    Input: a search space Xi, a maximum point T, a corpus, n training steps, an interval size epsilon.

    1.  for every xi in Xi:           p(xi), i(xi)  <-  surrogates of size and speed, no training
    2.  sort Xi by p and i, cut it into intervals of epsilon, keep of each the member with the
        largest (p(T) - p(xi)) (i(T) - i(xi))
    3.  for every representative:     train it for n steps on T's outputs;
                                      e(xi)  <-  its cross-entropy to T on held-out lines
    4.                                W(xi)  <-  (p(T) - p(xi)) (i(T) - i(xi)) / (p(T) i(T) e(xi))
    5.  return the argmax of W, and the top k

They are :func:`surrogates`, :func:`representatives`, ``bort.search.candidate``, :func:`w_coefficient` and
:func:`search`. Equations, hyper-parameters and Xi are the paper's. Ours, as the paper leaves them open: the
order and the representative in step 2, the scored positions (``bort.search.lines``), that all candidates
share the batches, the held-out lines and the initial values of the parts they have in common, and that W is
taken without error (e = 1) when n = 0.
"""
from __future__ import annotations

import gc
import math
import time
import warnings
from dataclasses import asdict
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from bort.architecture import ROBERTA_VOCAB_SIZE, Architecture
from bort.backend import distributed
from bort.errors import BortError
from bort.files import PathLike
from bort.json_files import write_sealed
from bort.search.candidate import InitialValues, error, train, training_work
from bort.search.lines import Lines, shared_lines
from bort.search.settings import SearchInputs, SearchSettings
from bort.search.shared_folder import SearchFolder
from bort.search.teacher import (
    Maximum,
    TeacherOutputs,
    build_teacher,
    check_teacher,
    find_maximum,
    teacher_outputs,
)
from bort.search.timing import Trials, measured_speed

Row = Dict[str, Any]
SPACE_FILE = "space.json"
SMALLEST_ERROR = 1e-6
"""Divergences of a candidate that equals T are rounding errors of either sign; W stays finite."""
WITHOUT_TRAINING = {"ce": 1.0, "kl": 1.0}
"""e of every candidate when n = 0: W then weighs size against speed only, and needs neither corpus nor
teacher."""


class Surrogates(NamedTuple):
    """p and i of one network: parameters; FLOPs, or seconds per sample."""

    size: float
    speed: float


def surrogates(architectures: Sequence[Architecture], settings: SearchSettings, vocab_size: int,
               seconds: Optional[Mapping[Architecture, float]] = None) -> Dict[Architecture, Surrogates]:
    """p and i of every network (step 1): Lemmas 1 and 2, exact counts, or measured ``seconds`` per sample for
    i."""
    found = {}
    for xi in architectures:
        size = (xi.lemma2_parameters(vocab_size) if settings.counts == "lemma"
                else xi.parameters(vocab_size, settings.positions)["total"])
        flops = xi.lemma1_flops() if settings.counts == "lemma" else xi.flops(settings.max_length, vocab_size)
        found[xi] = Surrogates(size, flops if seconds is None else seconds[xi])
    return found


def check_maximum(costs: Mapping[Architecture, Surrogates], maximum: Architecture) -> None:
    """Refuse a T that is not the maximum point.

    Raises:
        BortError: some candidate is larger or slower than T.
    """
    limit = costs[maximum]
    for xi, cost in sorted(costs.items()):
        for what, unit, value, most in (("larger", "parameters", cost.size, limit.size),
                                        ("slower", "per sample", cost.speed, limit.speed)):
            if value > most:
                raise BortError(f"candidate {xi.display} is {what} than the teacher {maximum.display} "
                                f"({value:,.6g} {unit} against {most:,.6g}), which must be the maximum "
                                "point; take a larger --teacher, or leave values out of --depths, --heads, "
                                "--hidden and --intermediate")


def representatives(costs: Mapping[Architecture, Surrogates], maximum: Surrogates,
                    epsilon: int) -> List[Architecture]:
    """One member of every interval of ``epsilon`` candidates in the order of (p, i, tuple) (step 2).

    Returns:
        ceil(len(costs) / epsilon) candidates in that order; of equals in an interval the first. The order in
        which ``costs`` holds them does not matter.
    """
    ordered = sorted(costs, key=lambda xi: (costs[xi], xi))
    intervals = [ordered[start:start + epsilon] for start in range(0, len(ordered), epsilon)]
    return [max(interval, key=lambda xi: (maximum.size - costs[xi].size) * (maximum.speed - costs[xi].speed))
            for interval in intervals]


def w_coefficient(cost: Surrogates, maximum: Surrogates, error_rate: float) -> float:
    """Equation 2."""
    return ((maximum.size - cost.size) * (maximum.speed - cost.speed)
            / (maximum.size * maximum.speed * max(error_rate, SMALLEST_ERROR)))


def search(output: PathLike, settings: SearchSettings, inputs: Optional[SearchInputs] = None,
           resume: bool = False) -> List[Row]:
    """Run the FPTAS in the folder ``output``, together with every other process that does so.

    Args:
        inputs: None for those of :class:`SearchInputs`.
        resume: go on with, or join, the search in ``output``.

    Returns:
        One row per trained candidate, the largest W first. The first one is the result; rows whose training
        diverged have no W and come last. Keys are those of ``candidates.jsonl``.

    Raises:
        BortError: bad settings or files, other settings than the folder's, or T is not the maximum point.

    >>> rows = search("runs/by-cost", SearchSettings(steps=0))  # doctest: +SKIP
    >>> rows[0]["architecture"]                                 # doctest: +SKIP
    {'depth': 2, 'heads': 4, 'hidden': 512, 'intermediate': 256}
    """
    inputs = inputs or SearchInputs()
    maximum = find_maximum(inputs.teacher, inputs.teacher_architecture)
    described = {**asdict(settings), "teacher": str(maximum.architecture), "weights": maximum.identity,
                 "corpus": str(inputs.corpus), "tokenizer": str(inputs.tokenizer),
                 "tokenizer_size": inputs.tokenizer_size}
    with SearchFolder(output, described, resume) as folder:
        return _search_in(folder, settings, inputs, maximum)


def _search_in(folder: SearchFolder, settings: SearchSettings, inputs: SearchInputs, maximum: Maximum
               ) -> List[Row]:
    """Steps 1 to 5."""
    lines, vocab_size, space = None, settings.vocab_size or ROBERTA_VOCAB_SIZE, settings.space
    if settings.steps:
        lines = shared_lines(folder, inputs, settings, maximum.folder)
        check_teacher(maximum, lines)  # now, and not after hours of timing
        vocab_size = settings.vocab_size or lines.vocab_size

    everything = list(dict.fromkeys([*space, *settings.include, maximum.architecture]))
    costs = surrogates(everything, settings, vocab_size)  # step 1
    check_maximum(costs, maximum.architecture)
    if settings.steps and maximum.folder is None and distributed.is_root():
        warnings.warn(f"the teacher {maximum.architecture.display} has no weights and is drawn at random "
                      f"from seed {settings.seed}: errors say how well candidates imitate noise; give "
                      "--teacher a model folder", stacklevel=2)
    seconds = None
    if settings.speed == "measured":
        seconds = measured_speed(folder, everything, Trials(settings.max_length, settings.timed_lines,
                                                            settings.passes))
        costs = surrogates(everything, settings, vocab_size, seconds)
        check_maximum(costs, maximum.architecture)
    limit = costs[maximum.architecture]

    chosen = representatives({xi: costs[xi] for xi in space}, limit, settings.epsilon)  # step 2
    interval = {xi: number for number, xi in enumerate(chosen)}
    described = {str(xi): describe(xi, costs[xi], settings, vocab_size, seconds, interval.get(xi))
                 for xi in everything}
    if distributed.is_root():
        write_sealed(folder.path / SPACE_FILE,
                     {"vocab_size": vocab_size, "maximum": str(maximum.architecture),
                      "weights": maximum.identity, "tuples": list(described.values())})

    candidates = {str(xi): xi for xi in [*chosen, *settings.include]}  # steps 3, 4
    if lines is None:
        def append_missing(_: str) -> None:
            known = {row["name"] for row in folder.rows()}
            folder.append(*(scored(described[name], limit, WITHOUT_TRAINING, [], settings)
                            for name in candidates if name not in known))

        # One process does it, and all wait until it is done.
        folder.deal({"costs": 1.0}, lambda: ["costs"] if set(candidates)
                    <= {row["name"] for row in folder.rows()} else [], append_missing)
    else:
        train_candidates(folder, candidates, described, limit, lines, teacher_outputs(
            folder, lines, lambda: build_teacher(maximum, lines, settings.positions, settings.seed),
            settings.micro_batch), settings)
    return ranked(folder.rows())  # step 5


def train_candidates(folder: SearchFolder, candidates: Mapping[str, Architecture],
                     described: Mapping[str, Row], limit: Surrogates, lines: Lines, teacher: TeacherOutputs,
                     settings: SearchSettings) -> None:
    """Train and score every candidate once, among all processes that search in ``folder``."""
    initial = InitialValues(settings.seed)

    def evaluate(name: str) -> None:
        start = time.perf_counter()
        model, losses = train(candidates[name], lines, teacher, settings, initial)
        row = scored(described[name], limit, error(model, lines, teacher, settings), losses, settings)
        folder.append({**row, "seconds": round(time.perf_counter() - start, 3), "worker": folder.worker()})
        del model
        gc.collect()  # a network and its graph are a cycle; the next one should not have to fit beside it

    # The largest first: ranks finish together, and memory that does not suffice shows at once.
    work = {name: training_work(xi, settings, lines.vocab_size) for name, xi in candidates.items()}
    folder.deal(dict(sorted(work.items(), key=lambda item: -item[1])),
                lambda: {row["name"] for row in folder.rows()}, evaluate, "candidates")


def describe(xi: Architecture, cost: Surrogates, settings: SearchSettings, vocab_size: int,
             seconds: Optional[Mapping[Architecture, float]], interval: Optional[int]) -> Row:
    """What is known of a tuple before any training: the members of ``space.json``."""
    return {"name": str(xi), "architecture": xi.to_dict(), "interval": interval, "size": cost.size,
            "speed": cost.speed, "parameters": xi.parameters(vocab_size, settings.positions)["total"],
            "lemma2_parameters": xi.lemma2_parameters(vocab_size), "flops": xi.flops(settings.max_length,
                                                                                     vocab_size),
            "lemma1_flops": xi.lemma1_flops(), "seconds_per_sample": None if seconds is None else seconds[xi]}


def scored(described: Row, limit: Surrogates, rates: Mapping[str, float], losses: Sequence[float],
           settings: SearchSettings) -> Row:
    """The same with the error, the loss of every step and W (step 4); null where the training diverged."""
    cost = Surrogates(described["size"], described["speed"])
    row = {**described, "losses": list(losses), **rates, "error": rates[settings.error],
           "W": w_coefficient(cost, limit, rates[settings.error])}
    if not all(map(math.isfinite, [*rates.values(), *losses])):
        row.update(losses=[], ce=None, kl=None, error=None, W=None)
    return row


def ranked(rows: Sequence[Row]) -> List[Row]:
    """Rows by falling W, those without one last; each candidate once. The order of ``rows`` does not
    matter."""
    distinct = {row["name"]: row for row in rows}
    return sorted(distinct.values(), key=lambda row: (
        math.inf if row["W"] is None else -row["W"], *row["architecture"].values()))
