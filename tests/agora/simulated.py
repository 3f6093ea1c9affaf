"""Agora with trainings that cost nothing: for tests of the loop and of its files."""
from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from bort.agora.algorithm import Agora
from bort.agora.classes import LabelClasses
from bort.agora.evaluation import EvaluationSet, Scores
from bort.agora.expansion import Expansion
from bort.agora.journal import Journal
from bort.agora.plan import Plan
from bort.agora.points import Points
from bort.agora.student import Trained
from bort.finetuning.hyperparameters import Theta
from bort.tasks.base import Example, Split
from bort.tasks.registry import get_task
from bort.training.run_folder import RunFolder


def some_split(labels, groups=None):
    groups = groups or [None] * len(labels)
    return Split("train", [Example(index, (f"text {index}",), label, group)
                           for index, (label, group) in enumerate(zip(labels, groups))])


class Simulated:
    """A student whose score on E is a function of theta and of the size of D; nothing is computed."""

    def __init__(self, evaluation, gain=0.0, noise=0.0):
        self.evaluation, self.gain, self.noise, self.calls = evaluation, gain, noise, []

    def settings(self, theta, soft):
        return SimpleNamespace(theta=theta, soft=soft)

    def train(self, settings, points, title):
        self.calls.append((settings.theta, len(points)))
        theta = settings.theta
        rng = np.random.default_rng([int(theta.lr * 1e6), theta.seed, len(points),
                                     sum(int(t) for ids in points.token_ids for t in ids) % 1000])
        score = 0.5 + 0.01 * theta.lr * 1e3 + self.gain * len(points) / 1000 + self.noise * rng.random()
        if theta.weight_decay == 13:
            return Trained(steps=3, seconds=0.0, diverged="gradients")
        return Trained(steps=len(points), seconds=0.0, scores=Scores(score, score, 1.0), epoch=1,
                       dev={"accuracy": score / 2},
                       parameters={"w": np.array([theta.lr, theta.seed, len(points)], np.float32)})

    def with_parameters(self, parameters):
        return SimpleNamespace(seed=int(parameters["w"].sum()))

    def predict(self, model, rows, ranks=True):
        rng = np.random.default_rng(model.seed)
        return rng.standard_normal((len(rows), 2)).astype(np.float32)


class Oracle:
    """A teacher that labels by the first token; of three classes it never gives the last."""

    def __init__(self, one_sided=False, classes=2):
        self.one_sided, self.rows, self.classes = one_sided, [], classes

    def of_rows(self, rows):
        self.rows += [np.array(row) for row in rows]
        if self.classes == 3:
            return np.stack([np.array([int(row[1]) % 2 == value for row in rows], dtype=np.float32)
                             for value in (0, 1, 2)], axis=1)
        labels = np.array([1 if self.one_sided else int(row[1]) % 2 for row in rows])
        return np.stack([1.0 - labels, 0.0 + labels], axis=1).astype(np.float32)


def shuffle(rows, draws, patterns, turns):
    """A tau: a random token in a random place."""
    made = []
    for row, draw in zip(rows, draws):
        rng, row = np.random.default_rng(list(draw)), np.array(row)
        row[rng.integers(1, len(row) - 1)] = rng.integers(6, 40)
        made.append(("noise", row))
    return made


class Words:
    eos_id, bos_id = 2, 0

    @staticmethod
    def decode(ids):
        return " ".join(map(str, ids))


def points(count, seed, prefix="train", unbalanced=False):
    rng = np.random.default_rng(seed)
    rows = [np.array([0, *rng.integers(6, 40, 6), 2], np.int32) for _ in range(count)]
    labels = np.array([row[1] % 2 for row in rows]) if not unbalanced else (np.arange(count) % 4
                                                                            > 0).astype(int)
    return Points(rows, labels, [f"{prefix}/{index}" for index in range(count)])


THETAS = tuple(Theta(lr * 1e-3, 0, 0.1, seed) for lr in (1, 2, 3) for seed in (0, 1))


def evaluation_of(e, task="RTE", rounding="fifths"):
    """E of these points."""
    classes = LabelClasses(get_task(task), rounding)
    return EvaluationSet(some_split(e.labels.tolist()), e, "evaluation", classes)


def simulate(folder, resume=False, x=None, oracle=None, tau=shuffle, after=None, forbidden=(), goal=None,
             gain=0.0, noise=0.0, task="RTE", **plan):
    evaluation = evaluation_of(points(20, 1, "evaluation"), task)
    timaeus = Simulated(evaluation, gain, noise)
    plan = Plan(**{**dict(thetas=THETAS, budget=20, max_rounds=4), **plan})
    expansion = Expansion(tau, oracle or Oracle(), evaluation, Words(), plan, forbidden) if tau else None
    with RunFolder(folder, {}, resume) as run:
        agora = Agora(timaeus, x or points(40, 0), expansion, plan, Journal(run, after), goal)
        agora.run()
    agora.calls = timaeus.calls
    return agora


def lines(folder, name):
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (folder / name).read_text().splitlines()]


def cut_after(folder, trainings, **settings):
    """A run that was stopped after so many trainings."""
    class Stop(Exception):
        pass

    calls = []

    def after():
        calls.append(1)
        if len(calls) == trainings:
            raise Stop

    with pytest.raises(Stop):
        simulate(folder, after=after, **settings)
