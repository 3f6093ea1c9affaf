"""Agora: fine-tuning by augmentation, distillation and pruning of hyper-parameters (paper, sections 5 to
5.3).

    D <- X
    while not converged:
        for theta in Theta: fine-tune Timaeus from the pre-trained weights on D with theta; score it on E
        keep the best model seen so far;  drop the worst of Theta
        P <- tau(points of E and of D that the best Timaeus of this round gets wrong, then others, until the budget)
        D <- D + {(x, S(x)) : x in P}, keeping the labels balanced

The paper names the parts (Timaeus, Socrates, tau, Theta, balanced labels, repeated iterations); its companion
has the pseudo-code. Stopping rules, ties, budgets, the order of sources and the treatment of more than two
classes are this project's. :meth:`Agora.run` is the loop above, written out.
"""
from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from bort.agora.actors import Socrates, Timaeus, confidences, wrong
from bort.agora.journal import Journal, best_of
from bort.agora.plan import Plan, State
from bort.agora.points import Addition, Points, Queue, balance, level_what_comes, number_of_strata, strata
from bort.agora.tau import Tau
from bort.agora.token_edits import Known, texts
from bort.backend import distributed
from bort.errors import BortError
from bort.tasks.base import Task
from bort.text.tokenizers.base import Tokenizer
from bort.training.console import say

MAX_PASSES = 6
"""How often tau is asked for what is still missing before a round goes on with less than its budget. Classes
of which half of these passes brought nothing are no longer asked for."""


class Agora:
    """One run of the algorithm.

    Args:
        socrates: the teacher; may be None only without ``tau``.
        tau: the transformation; None never adds a point: D stays X, so that the rounds after the first (up to
            :attr:`Plan.min_rounds`) only prune, without a training.
        x: the training points X; with :attr:`Plan.soft` they have the teacher's scores.
        forbidden: sequences that must never enter D besides E's and D's own: those of the dev and test sets.
        teacher_score: the teacher's score on E, or None when it is not known.
    """

    def __init__(self, task: Task, timaeus: Timaeus, socrates: Optional[Socrates], tau: Optional[Tau],
                 x: Points, plan: Plan, journal: Journal, tokenizer: Tokenizer,
                 forbidden: Sequence[Sequence[np.ndarray]] = (),
                 teacher_score: Optional[float] = None) -> None:
        if tau is not None and socrates is None:
            raise BortError("tau makes points that only a teacher model can label; give one, or --tau none")
        self.task, self.timaeus, self.socrates, self.tau = task, timaeus, socrates, tau
        self.x, self.evaluation, self.plan, self.journal = x, timaeus.evaluation, plan, journal
        self.tokenizer, self.forbidden, self.teacher_score = tokenizer, forbidden, teacher_score
        self.state, self.best_parameters = State(left=list(range(len(plan.thetas)))), {}  # type: ignore[var-annotated]
        self.additions: List[Addition] = []

    def run(self) -> State:
        """Carry the run to its end, from wherever it stands; the best model is in ``best_parameters``.

        Raises:
            BortError: every training of the first round diverged.
        """
        self._restore()
        state = self.state
        while state.stopped is None:
            improved = False
            if state.unchanged:
                self.repeat_round()
            else:
                d = self.dataset()
                rows, parameters = self.train_all(d)
                improved = self.keep_best(rows, parameters)
                self.note_attempt(d, rows, parameters, improved)
            if not (improved or state.unchanged) and state.round and state.attempt < self.plan.replays \
                    and self.tau is not None:
                state.attempt += 1  # a replay: the same D before its last additions, and fresh draws of tau
                self.expand()
            else:
                self.end_round()
                state.unchanged = state.stopped is None and not self.expand()
                if state.unchanged and state.round >= self.plan.min_rounds:
                    state.stopped = "nothing was added to D, so a further round would repeat the last one"
            self._save()
        return state

    # ---- for theta in Theta: fine-tune Timaeus on D; score it on E

    def dataset(self) -> Points:
        """D: X, the additions of earlier rounds, and those of the present attempt."""
        return self._with_additions([*self.state.kept, [self.state.round, self.state.attempt]])

    def _with_additions(self, kept: Sequence[Sequence[int]]) -> Points:
        wanted = {tuple(pair) for pair in kept}
        lines = [line for line, addition in enumerate(self.additions) if (addition.round,
                                                                          addition.attempt) in wanted]
        return self.x.with_additions([self.additions[line] for line in lines], lines)

    def train_all(self, d: Points) -> Tuple[List[Dict[str, Any]], Optional[Dict[str, np.ndarray]]]:
        """Train with every theta that is left; their lines, and the parameters of the best."""
        state, plan = self.state, self.plan
        labels = balance(self.task, d.labels)
        settings = [self.timaeus.settings(plan.thetas[index], plan.soft) for index in state.left]
        jobs = [(index, {"round": state.round, "attempt": state.attempt,
                         "theta": plan.thetas[index]._asdict(), "theta_index": index, "size": len(d),
                         "labels": labels, "evaluated_on": self.evaluation.name}) for index in state.left]

        def train(place: int) -> Any:
            title = (f"round {state.round + 1}{f' replay {state.attempt}' if state.attempt else ''}, "
                     f"{place + 1} of {len(jobs)} {plan.thetas[state.left[place]]}")
            return self.timaeus.train(settings[place], d, title)

        return self.journal.deal(self._tag(state.round, state.attempt), jobs, train)

    def keep_best(self, rows: Sequence[Dict[str, Any]], parameters: Optional[Dict[str, np.ndarray]]) -> bool:
        """Keep the best model seen so far; whether this attempt raised the best score on E.

        Of models with the same score the one with the smaller loss on E is kept, but that alone counts as no
        gain.
        """
        state, best = self.state, best_of(rows)
        state.trainings += len(rows)
        state.steps += sum(row["steps"] for row in rows)
        self._add_seconds("training", sum(row["seconds"] for row in rows))
        if best is None:
            if state.best is None:
                raise BortError("every training of the first round diverged; use smaller learning rates or "
                                "weight decays (--grid FILE.json)")
            return False
        improved = state.best is None or best["score"] > state.best["score"]
        if state.best is None or best["selection"] > state.best["selection"]:
            state.best = {key: best[key] for key in ("round", "attempt", "theta", "theta_index", "score",
                                                     "loss", "dev", "size", "selection")}
            self.best_parameters = parameters or {}
        return improved

    def note_attempt(self, d: Points, rows: Sequence[Dict[str, Any]],
                     parameters: Optional[Dict[str, np.ndarray]], improved: bool) -> None:
        """Remember how the attempt went: the order of its thetas, and what its best model gets wrong in D and
        E."""
        state, best = self.state, best_of(rows)
        ordered = sorted(rows, key=lambda row: (-row["selection"], row["index"]))
        mistaken: List[int] = []
        if parameters is not None:
            started = time.monotonic()
            model = self.timaeus.with_parameters(parameters)
            for points, offset in ((d, 0), (self.evaluation.points, len(d))):
                scores = self.timaeus.predict(model, points.token_ids)
                mistaken += (offset + np.flatnonzero(wrong(self.task, points.labels, scores))).tolist()
            self._add_seconds("errors", time.monotonic() - started)
        state.attempts.append({"attempt": state.attempt, "size": len(d),
                               "labels": balance(self.task, d.labels), "wrong": mistaken,
                               "order": [row["index"] for row in ordered], "improved": improved,
                               "score": best["score"] if best else None, "dev": best["dev"] if best else {},
                               "selection": best["selection"] if best else None})
        shown = "all trainings diverged" if best is None else f"{self.evaluation.metric} {100 * best['score']:.2f}"
        say(f"round {state.round + 1}{f' replay {state.attempt}' if state.attempt else ''}: {len(d)} points, "
            f"{len(rows)} trainings, best on {self.evaluation.name} {shown}, best so far "
            f"{100 * state.best['score']:.2f}")  # type: ignore[index]

    def repeat_round(self) -> None:
        """Note a round on the D of the last one: its trainings would be the same again, so their results are
        taken."""
        state, last = self.state, self.state.history[-1]
        # the only attempt, so that nothing is compared with it
        state.attempts.append({"attempt": 0, "size": last["size"], "labels": last["labels"],
                               "wrong": state.wrong, "improved": False,
                               "order": [index for index in state.order if index in state.left],
                               "score": last["score"], "dev": last["dev"], "selection": None})
        say(f"round {state.round + 1}: D has not grown, so the last round's results stand for the "
            f"{len(state.left)} sets left")

    # ---- drop the worst of Theta; is it over?

    def end_round(self) -> None:
        """Settle on the best attempt of the round, drop the worst of Theta, and decide whether the run is
        over."""
        state, plan = self.state, self.plan
        chosen = state.attempts[0]
        for attempt in state.attempts[1:]:
            if attempt["selection"] is not None and (chosen["selection"] is None
                                                     or attempt["selection"] > chosen["selection"]):
                chosen = attempt
        state.kept.append([state.round, chosen["attempt"]])
        improved = any(attempt["improved"] for attempt in state.attempts)
        state.wrong = chosen["wrong"]
        count = len(state.left)
        state.history.append({
            "round": state.round, "attempts": len(state.attempts), "attempt": chosen["attempt"], "size": chosen["size"],
            "labels": chosen["labels"], "thetas": count, "score": chosen["score"], "dev": chosen["dev"],
            "best_score": state.best["score"], "best_dev": state.best["dev"],  # type: ignore[index]
            "errors": len(chosen["wrong"])})
        state.order, state.left = chosen["order"], sorted(chosen["order"][:plan.remaining(count)])
        rounds = state.round + 1
        if plan.max_rounds and rounds >= plan.max_rounds:
            state.stopped = f"--max-rounds {plan.max_rounds}"
        elif rounds >= plan.min_rounds and self.teacher_score is not None \
                and state.best["score"] >= self.teacher_score:  # type: ignore[index]
            state.stopped = "the student reached the teacher's score"
        elif count == 1 and not improved and rounds >= plan.min_rounds:
            state.stopped = "one theta was left and the last round brought nothing"
        state.round, state.attempt, state.attempts = rounds, 0, []

    # ---- P <- tau(wrong points, then others); D <- D + {(x, S(x))}

    def expand(self) -> int:
        """Make the additions of the present attempt from D as it was settled, and append them; how many they
        are."""
        if self.tau is None or not self.plan.budget:
            return 0
        state, plan = self.state, self.plan
        settled = self._with_additions(state.kept)
        pool, classes = self._pool(settled), number_of_strata(self.task)
        counts = np.bincount(strata(self.task, settled.labels), minlength=classes)
        queue = Queue.of(state.wrong, strata(self.task, pool.labels),
                         np.random.default_rng([plan.seed, 1, state.round, state.attempt]))
        known = Known(settled.token_ids, self.evaluation.points.token_ids, *self.forbidden)
        offers: List[List[Addition]] = [[] for _ in range(classes)]
        come, full, made, asked = np.ones(classes, dtype=bool), np.full(classes, plan.budget), 0, 0
        missing = level_what_comes(counts, full, plan.budget, come)
        for turn in range(MAX_PASSES):
            # What was asked for and came out as something else tells how much more to ask for.
            yields = max(0.2, sum(map(len, offers)) / asked) if asked else 0.8
            sources = [source for stratum in range(classes) if missing[stratum] > 0
                       for source in queue.take(stratum, int(np.ceil(missing[stratum] / yields)) + 1)]
            if not sources:
                break
            asked += len(sources)
            for addition in self._labelled(pool, sources, known):
                offers[int(strata(self.task, np.array([addition.label]))[0])].append(addition)
                made += 1
            offered = np.array([len(offer) for offer in offers])
            if turn + 1 >= MAX_PASSES // 2:
                come = offered > 0
                # What comes rarely will have come twice as often by the end: the others need not wait for
                # more of it.
                wanted = level_what_comes(counts, full, plan.budget, come)
                full = np.where(2 * offered < wanted, 2 * offered, full)
            missing = np.maximum(0, level_what_comes(counts, full, plan.budget, come) - offered)
        offered = np.array([len(offer) for offer in offers])
        accepted = level_what_comes(counts, offered, plan.budget, offered > 0)
        fresh = [addition for offer, count in zip(offers, accepted.tolist()) for addition in offer[:count]]
        fresh = self._as_the_root_has_them(fresh)
        state.generated, state.labelled = state.generated + asked, state.labelled + made
        self.additions += fresh
        self.journal.append_additions([self._line(addition) for addition in fresh])
        labels = balance(self.task, np.array([addition.label for addition in fresh]))
        shown = ", ".join(f"{name} {number}" for name, number in labels.items())
        say(f"round {state.round + 1}: {len(fresh)} points added to {len(settled)} ({asked} made by tau, "
            f"{made} of them new; labels {shown})" if fresh
            else f"round {state.round + 1}: tau brought no new point that keeps the labels balanced")
        return len(fresh)

    def _as_the_root_has_them(self, fresh: List[Addition]) -> List[Addition]:
        """The root's additions: another machine's arithmetic might have made, or labelled, one of them
        differently."""
        if distributed.size() == 1:
            return fresh
        return [Addition.from_row(row)
                for row in distributed.from_root([dict(self._line(one)) for one in fresh])]

    def _pool(self, settled: Points) -> Points:
        """D and then E: what tau draws from, in the order that :attr:`State.wrong` counts in."""
        e = self.evaluation.points
        return Points([*settled.token_ids, *e.token_ids], np.concatenate([settled.labels, e.labels]),
                      [*settled.names, *e.names])

    def _labelled(self, pool: Points, sources: Sequence[Tuple[int, int]], known: Known) -> List[Addition]:
        """Transform sources, drop what exists already, and have the teacher label the rest."""
        state, seed, started = self.state, self.plan.seed, time.monotonic()
        draws = [(seed, 2, state.round, state.attempt, point, turn) for point, turn in sources]
        patterns = [(state.round * 64 + state.attempt) * 64 + turn for _, turn in sources]
        turns = [point + turn + state.round for point, turn in sources]
        made = self.tau([pool.token_ids[point] for point, _ in sources], draws, patterns, turns)  # type: ignore[misc]
        fresh = [(point, kind, row) for (point, _), (kind, row) in zip(sources, made) if known.add(row)]
        self._add_seconds("tau", time.monotonic() - started)
        started = time.monotonic()
        scores = self.socrates.of_rows([row for _, _, row in fresh])  # type: ignore[union-attr]
        self._add_seconds("labelling", time.monotonic() - started)
        labels = scores[:, 0] if self.task.is_regression else scores.argmax(axis=1)
        return [Addition(state.round, state.attempt, pool.names[point], kind, row, label.item(), confidence,
                         score) for (point, kind, row), label, confidence,
                score in zip(fresh, labels, confidences(self.task, scores), scores)]

    def _line(self, addition: Addition) -> Mapping[str, Any]:
        name = addition.label if self.task.labels is None else self.task.labels[int(addition.label)]
        return addition.row(texts(addition.token_ids, self.tokenizer), name)

    # ---- going on after a kill

    @staticmethod
    def _tag(round_number: int, attempt: int) -> str:
        return f"round-{round_number:03d}-{attempt:02d}"

    def _add_seconds(self, part: str, seconds: float) -> None:
        self.state.seconds[part] = round(self.state.seconds.get(part, 0.0) + seconds, 3)

    def _restore(self) -> None:
        found = self.journal.restore()
        if found is None:
            return
        stored, self.best_parameters, self.additions = found
        self.state = State(**stored)
        say(f"goes on with round {self.state.round + 1}, {len(self.state.left)} of {len(self.plan.thetas)} "
            f"sets left, {len(self.additions)} points made")

    def _save(self) -> None:
        state = self.state
        done = [self._tag(number, attempt) for number in range(max(0, state.round - 1), state.round + 1)
                for attempt in range(self.plan.replays + 1)]
        state.number += 1
        self.journal.save(state.number, asdict(state), self.best_parameters)
        for tag in done:
            self.journal.forget(tag)


__all__ = ["Agora", "Plan", "State"]
