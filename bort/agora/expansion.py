"""How D grows: P <- tau(wrong points, then others); D <- D + {(x, S(x)) : x in P}, keeping the labels
balanced."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from bort.agora.evaluation import EvaluationSet
from bort.agora.plan import Plan
from bort.agora.points import Addition, Points, Queue, level_what_comes
from bort.agora.tau import Tau
from bort.agora.teacher import Socrates, confidences
from bort.agora.token_edits import Known, texts
from bort.backend import distributed
from bort.text.tokenizers.base import Tokenizer

MAX_PASSES = 6
"""How often tau is asked for what is still missing before a round goes on with less than its budget. Classes
of which half of these passes brought nothing are no longer asked for."""


@dataclass
class Grown:
    """What an expansion brought.

    Attributes:
        additions: the points that were accepted.
        asked: sequences made by tau; ``labelled`` those that were new, which the teacher labelled.
        seconds: by part of the work.
    """

    additions: List[Addition] = field(default_factory=list)
    asked: int = 0
    labelled: int = 0
    seconds: Dict[str, float] = field(default_factory=lambda: {"tau": 0.0, "labelling": 0.0})


@dataclass(frozen=True)
class Moment:
    """The round and attempt that an expansion is for; with the seed they decide its draws."""

    round: int
    attempt: int


@dataclass
class Expansion:
    """Makes the additions of a round.

    Attributes:
        tau: the transformation.
        socrates: the teacher that labels what it makes.
        evaluation: E.
        tokenizer: the student's.
        plan: the run's.
        forbidden: sequences that must never enter D besides E's and D's own: those of the dev and test sets.
    """

    tau: Tau
    socrates: Socrates
    evaluation: EvaluationSet
    tokenizer: Tokenizer
    plan: Plan
    forbidden: Sequence[Sequence[np.ndarray]] = ()

    def grow(self, settled: Points, x_size: int, wrong: Sequence[int], moment: Moment) -> Grown:
        """The additions to a settled D.

        Args:
            settled: D, of which the first ``x_size`` points are X.
            wrong: places in the pool (D, then E) of what the best model got wrong.
        """
        grown, classes = Grown(), self.evaluation.classes
        counts = classes.counts(settled.labels)
        offers = self.ask(settled, self.queue(settled, x_size, wrong, moment), moment, counts, grown)
        accepted = level_what_comes(counts, _sizes(offers), self.plan.budget, _sizes(offers) > 0)
        fresh = [addition for offer, count in zip(offers, accepted.tolist()) for addition in offer[:count]]
        grown.additions = self._as_the_root_has_them(fresh)
        return grown

    # ---- P <- tau(wrong points, then others)

    def queue(self, settled: Points, x_size: int, wrong: Sequence[int], moment: Moment) -> Queue:
        """The pool's points in the order in which they are transformed."""
        plan, classes = self.plan, self.evaluation.classes
        allowed = np.ones(len(settled) + len(self.evaluation.points), dtype=bool)
        if plan.expand_from == "train":
            allowed[len(settled) :] = False
        elif plan.expand_from == "evaluation":
            allowed[:x_size] = False
        labels = np.concatenate([settled.labels, self.evaluation.points.labels])
        return Queue.of(
            wrong,
            classes.of(labels),
            np.random.default_rng([plan.seed, 1, moment.round, moment.attempt]),
            allowed,
        )

    def ask(
        self, settled: Points, queue: Queue, moment: Moment, counts: np.ndarray, grown: Grown
    ) -> List[List[Addition]]:
        """Have tau make, and the teacher label, points of every class until the budget could be filled.

        Args:
            counts: int (C,), D's points of each class.
            grown: its counters and times go up.

        Returns:
            The new points of each class, in the order in which they came.
        """
        plan, classes = self.plan, self.evaluation.classes
        e = self.evaluation.points
        pool = Points(
            [*settled.token_ids, *e.token_ids],
            np.concatenate([settled.labels, e.labels]),
            [*settled.names, *e.names],
        )
        known = Known(settled.token_ids, e.token_ids, *self.forbidden)
        offers: List[List[Addition]] = [[] for _ in range(classes.count)]
        come, full = np.ones(classes.count, dtype=bool), np.full(classes.count, plan.budget)
        missing = level_what_comes(counts, full, plan.budget, come)
        for turn in range(MAX_PASSES):
            # What was asked for and came out as something else tells how much more to ask for.
            yields = max(0.2, int(_sizes(offers).sum()) / grown.asked) if grown.asked else 0.8
            sources = [
                source
                for stratum in range(classes.count)
                if missing[stratum] > 0
                for source in queue.take(stratum, int(np.ceil(missing[stratum] / yields)) + 1)
            ]
            if not sources:
                break
            for addition in self._labelled(pool, sources, known, moment, grown):
                offers[classes.one(addition.label)].append(addition)
            offered = _sizes(offers)
            if turn + 1 >= MAX_PASSES // 2:
                come = offered > 0
                # What comes rarely will have come twice as often by the end: the others need not wait for
                # more of it.
                wanted = level_what_comes(counts, full, plan.budget, come)
                full = np.where(2 * offered < wanted, 2 * offered, full)
            missing = np.maximum(0, level_what_comes(counts, full, plan.budget, come) - offered)
        return offers

    def _labelled(
        self, pool: Points, sources: Sequence[Tuple[int, int]], known: Known, moment: Moment, grown: Grown
    ) -> List[Addition]:
        """Transform sources, drop what exists already, and have the teacher label the rest."""
        seed, started = self.plan.seed, time.monotonic()
        draws = [(seed, 2, moment.round, moment.attempt, point, turn) for point, turn in sources]
        patterns = [(moment.round * 64 + moment.attempt) * 64 + turn for _, turn in sources]
        turns = [point + turn + moment.round for point, turn in sources]
        made = self.tau([pool.token_ids[point] for point, _ in sources], draws, patterns, turns)
        fresh = [(point, kind, row) for (point, _), (kind, row) in zip(sources, made) if known.add(row)]
        transformed = time.monotonic()
        scores = self.socrates.of_rows([row for _, _, row in fresh])
        grown.seconds["tau"] += transformed - started
        grown.seconds["labelling"] += time.monotonic() - transformed
        grown.asked += len(sources)
        grown.labelled += len(fresh)
        task = self.evaluation.task
        labels = scores[:, 0] if task.is_regression else scores.argmax(axis=1)
        return [
            Addition(
                moment.round, moment.attempt, pool.names[point], kind, row, label.item(), confidence, score
            )
            for (point, kind, row), label, confidence, score in zip(
                fresh, labels, confidences(task, scores), scores
            )
        ]

    def _as_the_root_has_them(self, fresh: List[Addition]) -> List[Addition]:
        """The root's additions: another machine's arithmetic might have made, or labelled, one of them
        differently."""
        if distributed.size() == 1:
            return fresh
        return [
            Addition.from_row(row) for row in distributed.from_root([dict(self.line(one)) for one in fresh])
        ]

    def line(self, addition: Addition) -> Mapping[str, Any]:
        """The line of ``additions.jsonl``."""
        labels = self.evaluation.task.labels
        name = addition.label if labels is None else labels[int(addition.label)]
        return addition.row(texts(addition.token_ids.tolist(), self.tokenizer), name)


def _sizes(offers: Sequence[Sequence[Addition]]) -> np.ndarray:
    """int64 (C,): how many of each class were offered."""
    return np.array([len(offer) for offer in offers], dtype=np.int64)
