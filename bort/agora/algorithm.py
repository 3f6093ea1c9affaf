"""Agora: fine-tuning by augmentation, distillation and pruning of hyper-parameters (paper, sections 5 to
5.3).

    D <- X
    while not converged:
        for theta in Theta: fine-tune Timaeus from the pre-trained weights on D with theta; score it on E
        keep the best model seen so far;  drop the worst of Theta
        P <- tau(points of E and of D that the best Timaeus of this round gets wrong, then others)
        D <- D + {(x, S(x)) : x in P}, keeping the labels balanced

The paper names the parts (Timaeus, Socrates, tau, Theta, balanced labels, repeated iterations); its companion
(arXiv:2010.07990) has the pseudo-code. Stopping rules, ties, budgets, the order of sources and the treatment
of more than two classes are this project's. :meth:`Agora.run` is the loop above, written out.
"""

from __future__ import annotations

import time
from typing import List, Optional, Sequence, Tuple

import numpy as np

from bort.agora.evaluation import Goal
from bort.agora.expansion import Expansion, Moment
from bort.agora.journal import Journal, Parameters
from bort.agora.plan import DEV, Plan
from bort.agora.points import Addition, Points
from bort.agora.state import Attempt, Best, Metrics, Round, State, Training, best_of
from bort.agora.student import Timaeus, Trained
from bort.errors import BortError
from bort.training.console import say


class Agora:
    """One run of the algorithm.

    Args:
        timaeus: the student, which knows E.
        x: the training points X; with :attr:`Plan.soft` they have the teacher's scores.
        expansion: tau and the teacher; None never adds a point: D stays X, so that the rounds after the first
            (up to :attr:`Plan.min_rounds`) only prune, without a training.
        plan: the settings.
        journal: the run's files.
        goal: the teacher's figures on E, or None when they are not known.

    Attributes:
        state: where the run stands.
        best_parameters: of the best model so far.
        additions: all points made, kept or not, in the order of ``additions.jsonl``.
    """

    def __init__(
        self,
        timaeus: Timaeus,
        x: Points,
        expansion: Optional[Expansion],
        plan: Plan,
        journal: Journal,
        goal: Optional[Goal] = None,
    ) -> None:
        self.timaeus, self.x, self.expansion, self.plan = timaeus, x, expansion, plan
        self.journal, self.goal, self.evaluation = journal, goal, timaeus.evaluation
        self.state = State(left=list(range(len(plan.thetas))))
        self.best_parameters: Parameters = {}
        self.additions: List[Addition] = []

    def run(self) -> State:
        """Carry the run to its end, from wherever it stands.

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
                trainings, parameters = self.train_all(d)
                improved = self.keep_best(trainings, parameters)
                self.note_attempt(d, trainings, parameters, improved)
            if (
                not (improved or state.unchanged)
                and state.round
                and state.attempt < self.plan.replays
                and self.expansion is not None
            ):
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
        return self._with_additions([*self.state.kept, (self.state.round, self.state.attempt)])

    def _with_additions(self, kept: Sequence[Tuple[int, int]]) -> Points:
        wanted = set(kept)
        lines = [
            line
            for line, addition in enumerate(self.additions)
            if (addition.round, addition.attempt) in wanted
        ]
        return self.x.with_additions([self.additions[line] for line in lines], lines)

    def train_all(self, d: Points) -> Tuple[List[Training], Optional[Parameters]]:
        """Train with every theta that is left; what came of it, and the parameters of the best."""
        state, plan = self.state, self.plan
        labels = self.evaluation.classes.balance(d.labels)
        settings = [self.timaeus.settings(plan.thetas[index], plan.soft) for index in state.left]
        jobs = [
            Training(
                index=index,
                theta=plan.thetas[index],
                theta_index=index,
                round=state.round,
                attempt=state.attempt,
                size=len(d),
                labels=labels,
                evaluated_on=self.evaluation.name,
            )
            for index in state.left
        ]

        def train(place: int) -> Trained:
            title = f"{self._title()}, {place + 1} of {len(jobs)} {jobs[place].theta}"
            return self.timaeus.train(settings[place], d, title)

        return self.journal.deal(self._tag(state.round, state.attempt), jobs, train)

    def keep_best(self, trainings: List[Training], parameters: Optional[Parameters]) -> bool:
        """Keep the best model seen so far; whether this attempt raised the best score on E.

        Of models with the same score the one with the smaller loss on E is kept, but that alone counts as no
        gain.
        """
        state, best = self.state, best_of(trainings)
        state.trainings += len(trainings)
        state.steps += sum(training.steps for training in trainings)
        state.add_seconds("training", sum(training.seconds for training in trainings))
        if best is None:
            if state.best is None:
                raise BortError(
                    "every training of the first round diverged; use smaller learning rates or "
                    "weight decays (--grid FILE.json)"
                )
            return False
        found = Best.of(best)
        improved = state.best is None or found.score > state.best.score
        if state.best is None or found.selection > state.best.selection:
            state.best, self.best_parameters = found, parameters or {}
        return improved

    def note_attempt(
        self, d: Points, trainings: List[Training], parameters: Optional[Parameters], improved: bool
    ) -> None:
        """Remember how the attempt went: the order of its thetas, and what its best model gets wrong in D and
        E."""
        state, best = self.state, best_of(trainings)
        classes = self.evaluation.classes
        ordered = sorted(trainings, key=lambda training: (-training.selection, training.index))
        wrong: List[int] = []
        if parameters is not None:
            started = time.monotonic()
            model = self.timaeus.with_parameters(parameters)
            for points, offset in ((d, 0), (self.evaluation.points, len(d))):
                scores = self.timaeus.predict(model, points.token_ids)
                wrong += (offset + np.flatnonzero(classes.wrong(points.labels, scores))).tolist()
            state.add_seconds("errors", time.monotonic() - started)
        state.attempts.append(
            Attempt(
                attempt=state.attempt,
                size=len(d),
                labels=classes.balance(d.labels),
                wrong=wrong,
                order=[training.index for training in ordered],
                improved=improved,
                score=best.score if best else None,
                selection=best.selection if best else None,
                dev=best.dev if best else {},
            )
        )
        say(
            f"{self._title()}: {len(d)} points, {len(trainings)} trainings; best of the round: "
            + ("all trainings diverged" if best is None else self._shown(best.score, best.dev))
            + f"; best so far: {self._shown(state.best_so_far.score, state.best_so_far.dev)}"
        )

    def repeat_round(self) -> None:
        """Note a round on the D of the last one: its trainings would be the same again, so their results are
        taken."""
        state, last = self.state, self.state.history[-1]
        # the only attempt, so that nothing is compared with it
        state.attempts.append(
            Attempt(
                attempt=0,
                size=last.size,
                labels=last.labels,
                wrong=state.wrong,
                order=[index for index in state.order if index in state.left],
                improved=False,
                score=last.score,
                selection=None,
                dev=last.dev,
            )
        )
        say(
            f"{self._title()}: D has not grown, so the last round's results stand for the "
            f"{len(state.left)} sets left"
        )

    # ---- drop the worst of Theta; is it over?

    def end_round(self) -> None:
        """Settle on the best attempt of the round, drop the worst of Theta, and decide whether the run is
        over."""
        state = self.state
        chosen = state.attempts[0]
        for attempt in state.attempts[1:]:
            if attempt.selection is not None and (
                chosen.selection is None or attempt.selection > chosen.selection
            ):
                chosen = attempt
        state.kept.append((state.round, chosen.attempt))
        improved = any(attempt.improved for attempt in state.attempts)
        count, best = len(state.left), state.best_so_far
        state.history.append(
            Round(
                round=state.round,
                attempts=len(state.attempts),
                attempt=chosen.attempt,
                size=chosen.size,
                labels=chosen.labels,
                thetas=count,
                score=chosen.score,
                dev=chosen.dev,
                best_score=best.score,
                best_dev=best.dev,
                errors=len(chosen.wrong),
            )
        )
        state.wrong, state.order = chosen.wrong, chosen.order
        state.left = sorted(chosen.order[: self.plan.remaining(count)])
        state.round, state.attempt, state.attempts = state.round + 1, 0, []
        state.stopped = self._reason_to_stop(count, improved)

    def _reason_to_stop(self, thetas: int, improved: bool) -> Optional[str]:
        """Why a run is over after a round with so many sets of Theta; None while it goes on."""
        rounds, plan, best = self.state.round, self.plan, self.state.best_so_far
        if plan.max_rounds and rounds >= plan.max_rounds:
            return f"--max-rounds {plan.max_rounds}"
        if rounds < plan.min_rounds:
            return None
        if self.goal is not None and self.goal.reached(best.score, best.accuracy):
            return "the student reached the teacher's score"
        return (
            "one theta was left and the last round brought nothing" if thetas == 1 and not improved else None
        )

    # ---- P <- tau(wrong points, then others); D <- D + {(x, S(x))}

    def expand(self) -> int:
        """Make the additions of the present attempt from D as it was settled, and append them; how many they
        are."""
        if self.expansion is None or not self.plan.budget:
            return 0
        state = self.state
        settled = self._with_additions(state.kept)
        grown = self.expansion.grow(settled, len(self.x), state.wrong, Moment(state.round, state.attempt))
        fresh = grown.additions
        state.generated, state.labelled = state.generated + grown.asked, state.labelled + grown.labelled
        for part, seconds in grown.seconds.items():
            state.add_seconds(part, seconds)
        self.additions += fresh
        self.journal.append_additions([self.expansion.line(addition) for addition in fresh])
        labels = self.evaluation.classes.balance(np.array([addition.label for addition in fresh]))
        shown = ", ".join(f"{name} {number}" for name, number in labels.items() if number)
        say(
            f"{self._title()}: {len(fresh)} points added to {len(settled)} ({grown.asked} made by tau, "
            f"{grown.labelled} of them new; labels {shown})"
            if fresh
            else f"{self._title()}: tau brought no new point that keeps the labels balanced"
        )
        return len(fresh)

    # ---- what people see

    def _title(self) -> str:
        replay = f" replay {self.state.attempt}" if self.state.attempt else ""
        return f"round {self.state.round + 1}{replay}"

    def _shown(self, score: Optional[float], dev: Metrics) -> str:
        """A model's figures in percent, those on the dev set first."""
        return figures(self.evaluation.metric, self.evaluation.name, score, dev)

    # ---- going on after a kill

    @staticmethod
    def _tag(round_number: int, attempt: int) -> str:
        return f"round-{round_number:03d}-{attempt:02d}"

    def _restore(self) -> None:
        found = self.journal.restore()
        if found is None:
            return
        self.state, self.best_parameters, self.additions = found
        say(
            f"goes on with round {self.state.round + 1}, {len(self.state.left)} of {len(self.plan.thetas)} "
            f"sets left, {len(self.additions)} points made"
        )

    def _save(self) -> None:
        state = self.state
        state.number += 1
        self.journal.save(state, self.best_parameters)
        for number in range(max(0, state.round - 1), state.round + 1):
            for attempt in range(self.plan.replays + 1):
                self.journal.forget(self._tag(number, attempt))


def figures(metric: str, evaluated_on: str, score: Optional[float], dev: Metrics) -> str:
    """A model's figures in percent: on the dev set, where there is one, and beside them on the evaluation
    set.

    Args:
        metric: the one that decides; ``score`` is its value on E.
        evaluated_on: what E is.
    """
    parts = [f"dev {name} {100 * value:.2f}" for name, value in dev.items()]
    if score is not None and not (evaluated_on == DEV and metric in dev):
        parts.append(
            f"{metric} on the {'dev' if evaluated_on == DEV else 'evaluation'} set {100 * score:.2f}"
        )
    return ", ".join(parts) or "not scored"
