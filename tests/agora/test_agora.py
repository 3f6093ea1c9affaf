"""Agora: the loop with trainings that cost nothing, then real ones, killed and dealt out over ranks."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bort
import run_finetune
from bort.agora import report
from bort.agora.actors import Evaluation, Trained, read_table
from bort.agora.algorithm import Agora
from bort.agora.journal import LOWEST, Journal, best_of
from bort.agora.plan import Plan
from bort.agora.points import Addition, Points, Queue, balance, held_out, level, level_what_comes, strata
from bort.agora.report import seed_shifts
from bort.agora.token_edits import digest
from bort.errors import BortError, run_command
from bort.finetuning.hyperparameters import CHS, Theta, choose_grid, convergent_set, paper_grid, read_grid
from bort.tasks.base import Example, Split
from bort.tasks.registry import TASKS, get_task
from bort.training.run_folder import RunFolder
from tests.tiny import TINY, TINY_TEACHER, needs_horovod, two_rank_environment

ROOT = Path(__file__).resolve().parents[2]


# ---- hyper-parameters

def test_the_paper_grid_and_the_convergent_sets(tmp_path):
    assert len(paper_grid()) == len(set(paper_grid())) == 500
    trained = [name for name in TASKS if name not in ("Embedded",)]
    assert all(convergent_set(name).batch_size in (8, 16) for name in trained)
    assert CHS["CoLA"].theta == Theta(9e-6, 10, 0.45, 3) and CHS["BoolQ"].note and CHS["RACE-M"].table == 8
    with pytest.raises(BortError, match="--grid"):
        convergent_set("Embedded")
    small = choose_grid("small", 3e-5, 0.01, 0.1, 0)
    assert len(small) == 6 and {theta.seed for theta in small} == {0, 1}
    path = tmp_path / "grid.json"
    path.write_text('{"lr": [1e-5, 2e-5], "weight_decay": [0], "warmup": [0.1], "seed": [0, 1, 2]}')
    assert len(choose_grid(str(path), 1, 0, 0, 0)) == 6
    path.write_text('[{"lr": 1e-5, "weight_decay": 0, "warmup": 0.1, "seed": 7}]')
    assert read_grid(path) == [Theta(1e-5, 0, 0.1, 7)]
    for text, message in (("3", "a grid is"), ("[]", "empty"), ('[{"lr": 1}]', "lacks"),
                          ('{"lr": []}', "lacks"),
                          ('[{"lr": 0, "weight_decay": 0, "warmup": 0.1, "seed": 7}]', "lr 0"),
                          ('[{"lr": 1e-5, "weight_decay": 0, "warmup": 0.1, "seed": 7.5}]', "seed 7.5"),
                          ('[{"lr": 1e-5, "weight_decay": 0, "warmup": 0.1, "seed": 7, "x": 1}]',
                           "unknown x"),
                          ('{"lr": [1e-5, 1e-5], "weight_decay": [0], "warmup": [0.1], "seed": [0]}',
                           "more than once")):
        path.write_text(text)
        with pytest.raises(BortError, match=message):
            read_grid(path)
    with pytest.raises(BortError, match="no such file"):
        choose_grid("nonsense", 1, 0, 0, 0)


# ---- the parts

def some_split(labels, groups=None):
    groups = groups or [None] * len(labels)
    return Split("train", [Example(index, (f"text {index}",), label, group)
                           for index, (label, group) in enumerate(zip(labels, groups))])


@given(st.lists(st.integers(0, 2), min_size=20, max_size=200), st.floats(0.05, 0.5), st.integers(0, 99))
def test_what_is_held_out_is_stratified(labels, fraction, seed):
    labels = np.array(labels)
    try:
        taken = held_out(some_split(labels.tolist()), labels, fraction, seed)
    except BortError:
        assert len(labels) * fraction < 2
        return
    assert (np.diff(taken) > 0).all() and 0 < len(taken) < len(labels)
    for label in set(labels.tolist()):
        size = int((labels == label).sum())
        assert abs((labels[taken] == label).sum() - fraction * size) <= 1
    np.testing.assert_array_equal(taken, held_out(some_split(labels.tolist()), labels, fraction, seed))


def test_whole_questions_are_held_out():
    groups = [index // 4 for index in range(80)]
    taken = held_out(some_split([0, 0, 1, 0] * 20, groups), np.zeros(80, int), 0.2, 3)
    assert len(taken) == 16 and {groups[index] for index in taken}.isdisjoint(
        {groups[index] for index in range(80) if index not in set(taken.tolist())})
    with pytest.raises(BortError, match="fraction"):
        held_out(some_split([0, 1]), np.array([0, 1]), 1.0, 0)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=2, max_size=6),
       st.integers(0, 120))
def test_additions_level_the_labels_within_the_budget(pairs, budget):
    counts, offered = (np.array(column) for column in zip(*pairs))
    accepted = level(counts, offered, budget)
    assert (accepted >= 0).all() and (accepted <= offered).all() and accepted.sum() <= budget
    before, after = counts.max() - counts.min(), (counts + accepted).max() - (counts + accepted).min()
    assert after <= max(before, 1)
    # nobody was left behind while another one went ahead of him by more than one
    for stratum in range(len(counts)):
        if accepted[stratum] < offered[stratum]:
            lifted = (counts + accepted)[accepted > 0]
            assert not len(lifted) or lifted.max() <= (counts + accepted)[stratum] + 1
    enough = np.full(len(counts), budget + 60)
    assert level(counts, enough, budget).sum() == budget


def test_a_class_that_never_comes_does_not_hold_up_the_others():
    counts, offered = np.array([10, 10, 12]), np.array([0, 30, 30])
    assert level(counts, offered, 20).tolist() == [0, 2, 0]
    assert level_what_comes(counts, offered, 20, offered > 0).tolist() == [0, 11, 9]
    offered = np.array([0, 30, 0])  # one class alone cannot be balanced with anything but what is there
    assert level_what_comes(counts, offered, 20, offered > 0).tolist() == [0, 2, 0]


def test_a_class_that_comes_rarely_is_taken_whole_and_holds_up_nobody():
    counts, offered = np.array([39, 40, 5]), np.array([200, 200, 1])
    assert level(counts, offered, 168).tolist() == [1, 0, 1]  # CB, before: 2 points instead of 168
    assert level_what_comes(counts, offered, 168, offered > 0).tolist() == [84, 83, 1]
    assert level_what_comes(counts, np.array([50, 200, 1]), 168, offered > 0).tolist() == [50, 49, 1]
    # of two classes the other one is all there is to be level with
    two, offered = np.array([40, 40]), np.array([200, 3])
    assert level_what_comes(two, offered, 168, offered > 0).tolist() == [3, 3]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=2, max_size=6),
       st.integers(0, 120))
def test_what_comes_is_levelled_among_what_is_left(pairs, budget):
    counts, offered = (np.array(column) for column in zip(*pairs))
    accepted = level_what_comes(counts, offered, budget, offered > 0)
    assert (accepted >= 0).all() and (accepted <= offered).all() and accepted.sum() <= budget
    assert accepted.sum() >= level(counts, offered, budget).sum()
    left = accepted < offered
    if left.sum() > 1:  # more was offered of several classes: the budget is spent, or they stand on one level
        heights = (counts + accepted)[left & (accepted > 0)]
        assert accepted.sum() == budget or not len(heights) or heights.max() - heights.min() <= 1


def test_the_queue_begins_with_what_was_wrong():
    labels = np.array([0, 0, 1, 0, 1, 0])
    queue = Queue.of([3, 4], labels, np.random.default_rng(0))
    zeros = queue.take(0, 6)
    assert zeros[0] == (3, 0) and {point for point, _ in zeros[:4]} == {0, 1, 3, 5} and zeros[4] == (3, 1)
    assert queue.take(0, 1) == [(zeros[2][0], 1)] and queue.take(1, 1) == [(4, 0)] and queue.take(2, 5) == []


def test_an_addition_survives_its_line():
    addition = Addition(1, 0, "train/3", "mlm", np.array([0, 7, 2], np.int32), 1, 0.75,
                        np.array([0.1, 0.3], np.float32))
    again = Addition.from_row(json.loads(json.dumps(addition.row(["x"], "yes"))))
    assert again.row(["x"], "yes") == addition.row(["x"], "yes") and again.scores.dtype == np.float32
    with pytest.raises(BortError, match="additions.jsonl"):
        Addition.from_row({"round": 1})


def test_scores_in_classification_and_regression():
    cola, stsb = get_task("CoLA"), get_task("STS-B")
    split = some_split([0, 1, 1, 0])
    evaluation = Evaluation(cola, split, Points([], np.array([0, 1, 1, 0]), []), "held-out")
    right = np.array([[2, 0], [0, 1], [0, 3], [1, 0]], float)
    assert evaluation.metric == "mcc" and evaluation.score(right) == 1 and evaluation.accuracy(-right) == 0
    surer = evaluation.selection(right * 3)
    assert evaluation.selection(right) < surer < 1 and evaluation.selection(-right) < -0.9
    values = np.array([0.2, 2.5, 4.4, 5.0])
    split = some_split(values.tolist())
    evaluation = Evaluation(stsb, split, Points([], values, []), "held-out")
    assert evaluation.metric == "rounded_accuracy"
    assert evaluation.score(np.array([[0.4], [3.4], [4.6], [9.0]])) == 0.75
    assert balance(stsb, values) == {"0": 1, "1": 0, "2": 0, "3": 1, "4": 1, "5": 1}
    np.testing.assert_array_equal(strata(stsb, np.array([-1.0, 0.5, 4.5])), [0, 1, 5])


def test_a_teacher_can_be_a_table(tmp_path):
    task = get_task("RTE")
    table = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    np.save(tmp_path / "t.npy", table)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"scores": row.tolist()}) + "\n" for row in table))
    np.testing.assert_array_equal(read_table(tmp_path / "t.npy", 5, task), table)
    np.testing.assert_allclose(read_table(tmp_path / "t.jsonl", 5, task), table)
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "several.npz", table)
    (tmp_path / "several.npz").rename(tmp_path / "renamed.npy")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 nothing more")
    for count, name in ((6, "t.npy"), (5, "none.npy"), (5, "empty.npy"), (5, "renamed.npy"), (5, "zip.npy")):
        with pytest.raises(BortError, match=name):
            read_table(tmp_path / name, count, task)


def test_a_teacher_whose_scores_are_not_finite_is_refused(monkeypatch):
    from bort.agora import actors
    from bort.models import Classifier
    from tests.tiny import tiny_bert

    model = Classifier(tiny_bert(0), 2)
    model.initialize_head(0)
    model.classifier[1].bias.set_data(model.classifier[1].bias.data() * float("nan"))
    words = SimpleNamespace(fingerprint="x", pad_id=1)
    socrates = actors.Socrates(model, "the/teacher", words, words, get_task("SST-2"), 24)
    with pytest.raises(BortError, match="the/teacher.*not finite"):
        socrates.of_rows([np.array([0, 7, 2], np.int32)])


def test_seeds_of_repeated_trainings_never_meet():
    """100 a round and 1,000 a replay met in the eleventh round."""
    rows = [{"round": number, "attempt": attempt} for number in range(40) for attempt in range(3)]
    shifts = seed_shifts(rows, [0, 3, 4])
    assert shifts[0, 0] == 0
    assert len({shift + seed for shift in shifts.values() for seed in (0, 3, 4)}) == 40 * 3 * 3


# ---- the loop, with trainings that cost nothing

class Simulated:
    """A student whose score on E is a function of theta and of the size of D; nothing is computed."""

    def __init__(self, evaluation, gain=0.0, noise=0.0):
        self.evaluation, self.gain, self.noise, self.calls = evaluation, gain, noise, []

    def settings(self, theta, soft, **changes):
        return SimpleNamespace(theta=theta, soft=soft)

    def train(self, settings, points, title):
        self.calls.append((settings.theta, len(points)))
        theta = settings.theta
        rng = np.random.default_rng([int(theta.lr * 1e6), theta.seed, len(points),
                                     sum(int(t) for ids in points.token_ids for t in ids) % 1000])
        score = 0.5 + 0.01 * theta.lr * 1e3 + self.gain * len(points) / 1000 + self.noise * rng.random()
        if theta.weight_decay == 13:
            return Trained({"score": None, "loss": None, "epoch": 0, "dev": {}, "steps": 3, "seconds": 0.0},
                           -np.inf)
        return Trained({"score": score, "loss": 1.0, "epoch": 1, "dev": {"accuracy": score / 2},
                        "steps": len(points), "seconds": 0.0}, score,
                       {"w": np.array([theta.lr, theta.seed, len(points)], np.float32)})

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


def simulate(folder, resume=False, x=None, oracle=None, tau=shuffle, after=None, forbidden=(),
             teacher_score=None, gain=0.0, noise=0.0, task="RTE", **plan):
    task = get_task(task)
    e = points(20, 1, "held-out")
    evaluation = Evaluation(task, some_split(e.labels.tolist()), e, "held-out")
    timaeus = Simulated(evaluation, gain, noise)
    plan = Plan(**{**dict(thetas=THETAS, budget=20, max_rounds=4), **plan})
    with RunFolder(folder, {}, resume) as run:
        agora = Agora(task, timaeus, oracle or Oracle(), tau, x or points(40, 0), plan, Journal(run, after),
                      Words(), forbidden, teacher_score)
        agora.run()
    agora.calls = timaeus.calls
    return agora


def lines(folder, name):
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize("prune, left", [("one", [6, 5, 4, 3]), ("half", [6, 3, 2, 1]),
                                          ("none", [6, 6, 6, 6])])
def test_theta_shrinks_from_the_worst(tmp_path, prune, left):
    agora = simulate(tmp_path, prune=prune, gain=1.0)
    assert [row["thetas"] for row in agora.state.history] == left
    assert agora.state.stopped == "--max-rounds 4" and agora.state.trainings == sum(left) == len(agora.calls)
    assert sum(left) == agora.plan.trainings()
    # the score grows with lr; of equal ones the first is better, so the last of the smallest goes first
    rows = lines(tmp_path, "agora.jsonl")
    assert {row["theta_index"] for row in rows if row["round"] == 1} == {
        "one": {0, 2, 3, 4, 5}, "half": {2, 4, 5}, "none": set(range(6))}[prune]
    assert agora.state.best["round"] == 3 and agora.state.best["theta_index"] == 4
    np.testing.assert_array_equal(agora.best_parameters["w"], np.array([3e-3, 0, 100], np.float32))
    assert [row["size"] for row in agora.state.history] == [40, 60, 80, 100]


def test_it_stops_when_one_theta_is_left_and_nothing_is_gained(tmp_path):
    agora = simulate(tmp_path / "a", thetas=THETAS[:1], max_rounds=0, gain=0.0)
    assert agora.state.stopped.startswith("one theta") and len(agora.state.history) == 2 and agora.state.best[
                                                                                                              "round"] == 0
    agora = simulate(tmp_path / "b", thetas=THETAS[:1], max_rounds=0, min_rounds=4)
    assert len(agora.state.history) == 4
    agora = simulate(tmp_path / "c", max_rounds=0, gain=1.0, teacher_score=0.55)
    assert "teacher" in agora.state.stopped and len(agora.state.history) == 1
    agora = simulate(tmp_path / "d", max_rounds=0, gain=1.0, teacher_score=0.55, min_rounds=2)
    assert "teacher" in agora.state.stopped and len(agora.state.history) == 2
    agora = simulate(tmp_path / "e", max_rounds=0, tau=None, prune="half")
    assert "nothing was added" in agora.state.stopped and [row["size"] for row in agora.state.history] == [40]


@pytest.mark.parametrize("tau", [None, shuffle])
def test_rounds_that_add_nothing_prune_without_a_training(tmp_path, tau):
    """A one-sided teacher, or none, of balanced labels: the trainings would be the first round's again."""
    x = points(40, 0)
    x.labels = np.arange(40) % 2
    agora = simulate(tmp_path, tau=tau, x=x, oracle=Oracle(one_sided=True), max_rounds=0, min_rounds=4,
                     prune="half")
    assert "nothing was added" in agora.state.stopped or agora.state.stopped.startswith("one theta")
    assert [row["thetas"] for row in agora.state.history] == [6, 3, 2, 1]
    assert [row["size"] for row in agora.state.history] == [40] * 4
    assert len({row["score"] for row in agora.state.history}) == 1
    assert agora.state.trainings == 6 == len(agora.calls) == len(lines(tmp_path, "agora.jsonl"))
    assert agora.state.best["theta_index"] == 4 and agora.state.left == [4]


def test_draws_after_a_round_without_additions_are_used(tmp_path):
    """Nothing comes of tau in the first round; D grows, and trainings go on, as soon as something does."""
    asked = []

    def late(rows, draws, patterns, turns):
        asked.append(draws[0][2])
        return shuffle(rows, draws, patterns, turns) if draws[0][2] > 1 else [("noise", np.array(row))
                                                                              for row in rows]

    agora = simulate(tmp_path, tau=late, max_rounds=4, min_rounds=2, gain=1.0)
    assert [row["size"] for row in agora.state.history] == [40, 40, 60, 80] and set(asked) == {1, 2, 3}
    assert [row["thetas"] for row in agora.state.history] == [6, 5, 4, 3] and len(agora.calls) == 6 + 4 + 3
    assert agora.state.stopped == "--max-rounds 4"


def test_a_run_goes_on_when_the_teacher_never_gives_a_class(tmp_path):
    x = points(45, 0)
    x.labels = np.arange(45) % 3
    agora = simulate(tmp_path, x=x, oracle=Oracle(classes=3), task="MNLI", gain=1.0)
    assert [row["size"] for row in agora.state.history] == [45, 65, 85, 105]
    for number, row in enumerate(agora.state.history):
        assert row["labels"] == {"contradiction": 15 + 10 * number, "neutral": 15 + 10 * number,
                                 "entailment": 15} or sorted(row["labels"].values()) == [15, 15 + 10 * number,
                                                                                         15 + 10 * number]


def test_a_round_without_gain_is_replayed_with_fresh_draws(tmp_path):
    agora = simulate(tmp_path, max_rounds=2, replays=2, gain=0.0)
    rows = lines(tmp_path, "agora.jsonl")
    assert [(row["round"], row["attempt"]) for row in rows if row["theta_index"] == 4] == [(0, 0), (1, 0),
                                                                                           (1, 1), (1, 2)]
    made = lines(tmp_path, "additions.jsonl")
    drawn = [{tuple(row["token_ids"]) for row in made if row["attempt"] == attempt} for attempt in range(3)]
    assert all(len(part) == 20 for part in drawn) and drawn[0] != drawn[1] != drawn[2]
    assert [row["size"] for row in rows if row["theta_index"] == 4] == [40, 60, 60, 60]
    assert agora.state.kept == [[0, 0], [1, 0]] and agora.state.history[1]["attempts"] == 3
    # with luck in the trainings, the attempt that went best is the one that counts
    agora = simulate(tmp_path / "lucky", max_rounds=3, replays=3, noise=0.3, gain=-2.0)
    rows = lines(tmp_path / "lucky", "agora.jsonl")
    for entry in agora.state.history:
        scores = {}
        for row in rows:
            if row["round"] == entry["round"]:
                scores[row["attempt"]] = max(row["score"], scores.get(row["attempt"], 0))
        assert scores[entry["attempt"]] == max(scores.values()) == entry["score"]


def test_additions_are_new_balanced_and_within_the_budget(tmp_path):
    x = points(40, 0, unbalanced=True)
    secret = points(30, 5)
    agora = simulate(tmp_path, x=x, budget=15, gain=1.0, forbidden=[secret.token_ids], max_rounds=5)
    made = lines(tmp_path, "additions.jsonl")
    keys = [digest(np.array(row["token_ids"])) for row in made]
    existing = {digest(ids) for part in (x, agora.evaluation.points, secret) for ids in part.token_ids}
    assert len(set(keys)) == len(keys) and not existing & set(keys)
    for entry in agora.state.history:
        assert sum(row["round"] == entry["round"] for row in made) == (15 if entry["round"] else 0)
    spread = [abs(row["labels"]["entailment"] - row["labels"]["not_entailment"])
              for row in agora.state.history]
    assert spread[0] == 20 and spread[2] <= 1 and spread[4] <= 1
    for row in made:
        assert row["label"] == row["token_ids"][1] % 2 and row["confidence"] == pytest.approx(0.7311,
                                                                                              abs=1e-3)
        assert row["label_name"] == ("entailment", "not_entailment")[row["label"]] and len(row["text"]) == 1
        assert row["source"].split("/")[0] in ("train", "held-out", "added")
    sources = {row["source"].split("/")[0] for row in made}
    assert sources == {"train", "held-out", "added"}


def test_a_one_sided_teacher_cannot_unbalance_d(tmp_path):
    agora = simulate(tmp_path, oracle=Oracle(one_sided=True), gain=1.0)
    labels = [row["labels"] for row in agora.state.history]
    most = max(labels[0].values())
    assert all(max(row.values()) == most for row in labels)


def test_wrong_points_are_transformed_first(tmp_path):
    agora = simulate(tmp_path, max_rounds=2, budget=8, gain=1.0)
    made, pool = lines(tmp_path, "additions.jsonl"), [*agora.x.names, *agora.evaluation.points.names]
    mistaken = {pool[index] for index in agora.state.wrong if index < len(pool)}
    first = simulate(tmp_path / "one", max_rounds=1).state.wrong
    assert {row["source"] for row in made} <= {pool[index] for index in first} and mistaken


def test_diverged_trainings_come_last(tmp_path):
    thetas = (Theta(9e-3, 13, 0.1, 0), *THETAS[:3])
    agora = simulate(tmp_path / "a", thetas=thetas, gain=1.0, max_rounds=2)
    assert lines(tmp_path / "a", "agora.jsonl")[0]["score"] is None and agora.state.best["theta_index"] == 3
    assert len(agora.calls) == 7 and not any(theta.weight_decay for theta, _ in agora.calls[4:])
    with pytest.raises(BortError, match="diverged"):
        simulate(tmp_path / "b", thetas=(thetas[0],))


@pytest.mark.parametrize("replays", [0, 2])
def test_stopped_after_any_training_it_goes_on_to_the_same(tmp_path, replays):
    settings = dict(replays=replays, noise=0.1, max_rounds=3, thetas=THETAS[:3])
    whole = simulate(tmp_path / "whole", **settings)

    class Stop(Exception):
        pass

    count = whole.state.trainings
    for stop in range(1, count + 1):
        folder, calls = tmp_path / f"cut-{stop}", []

        def after():
            calls.append(1)
            if len(calls) == stop:
                raise Stop

        with pytest.raises(Stop):
            simulate(folder, after=after, **settings)
        resumed = simulate(folder, resume=True, **settings)
        assert len(resumed.calls) == count - stop  # nothing is trained twice
        assert resumed.state.history == whole.state.history and resumed.state.best == whole.state.best
        for name in ("agora.jsonl", "additions.jsonl"):
            assert lines(folder, name) == lines(tmp_path / "whole", name)
        np.testing.assert_array_equal(resumed.best_parameters["w"], whole.best_parameters["w"])


def test_stopped_while_lists_and_checkpoints_are_written(tmp_path, monkeypatch):
    settings = dict(noise=0.1, max_rounds=3, thetas=THETAS[:3])
    whole = simulate(tmp_path / "whole", **settings)

    class Stop(Exception):
        pass

    for name in ("append_additions", "save", "forget"):
        for when in ("before", "after"):
            folder, original, calls = tmp_path / f"{name}-{when}", getattr(Journal, name), []

            def broken(self, *args, **kwargs):
                calls.append(1)
                if len(calls) == 2 and when == "before":
                    raise Stop
                value = original(self, *args, **kwargs)
                if len(calls) == 2:
                    raise Stop
                return value

            with monkeypatch.context() as patch, pytest.raises(Stop):
                patch.setattr(Journal, name, broken)
                simulate(folder, **settings)
            resumed = simulate(folder, resume=True, **settings)
            assert resumed.state.history == whole.state.history
            for listed in ("agora.jsonl", "additions.jsonl"):
                assert lines(folder, listed) == lines(tmp_path / "whole", listed), (name, when)


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


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("best", [0, 1, 2])
def test_a_damaged_training_is_repeated_and_a_shortened_list_refused(tmp_path, best, missing):
    thetas = [Theta(1e-3, 0, 0.1, 0), Theta(2e-3, 0, 0.1, 0)]
    thetas.insert(best, Theta(9e-3, 0, 0.1, 0))
    settings = dict(gain=0.1, max_rounds=2, thetas=tuple(thetas))
    whole = simulate(tmp_path / "whole", **settings)
    cut_after(tmp_path / "cut", 3, **settings)
    kept = sorted((tmp_path / "cut" / "trainings" / "round-000-00").glob("*.params"))
    # only the best of a rank keeps its parameters
    assert [path.name for path in kept] == [f"theta-{best:04d}.params"]
    if missing:
        kept[0].unlink()
    else:
        kept[0].write_bytes(b"\0" * kept[0].stat().st_size)
    resumed = simulate(tmp_path / "cut", resume=True, **settings)
    assert resumed.state.history == whole.state.history and len(resumed.calls) == 3
    np.testing.assert_array_equal(resumed.best_parameters["w"], whole.best_parameters["w"])
    assert lines(tmp_path / "cut", "agora.jsonl") == lines(tmp_path / "whole", "agora.jsonl")
    agora = tmp_path / "whole" / "agora.jsonl"
    agora.write_text(agora.read_text()[:100])
    with pytest.raises(BortError, match="shorter"):
        simulate(tmp_path / "whole", resume=True, **settings)


@pytest.mark.parametrize("name", ["agora.jsonl", "additions.jsonl"])
def test_a_lost_list_is_refused(tmp_path, name):
    settings = dict(noise=0.1, max_rounds=3, thetas=THETAS[:3])
    cut_after(tmp_path, 4, **settings)
    (tmp_path / name).unlink()
    with pytest.raises(BortError, match=f"{name}.*missing"):
        simulate(tmp_path, resume=True, **settings)


def test_damaged_checkpoints_cost_no_lines(tmp_path):
    """The newest damaged: from the one before to the same. All of them: refused, and the lists stay as they
    are."""
    settings = dict(noise=0.1, max_rounds=4, thetas=THETAS[:4])
    whole = simulate(tmp_path / "whole", **settings)
    cut_after(tmp_path / "cut", 8, **settings)  # in the third round
    kept = sorted((tmp_path / "cut" / "checkpoints").glob("step-*"))
    assert len(kept) == 2
    listed = {name: (tmp_path / "cut" / name).read_bytes() for name in ("agora.jsonl", "additions.jsonl")}
    damaged = [(path / "best.params").read_bytes() for path in kept]
    for path in kept:
        (path / "best.params").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(BortError, match="whole|damaged"):
        simulate(tmp_path / "cut", resume=True, **settings)
    assert listed == {name: (tmp_path / "cut" / name).read_bytes() for name in listed}
    (kept[0] / "best.params").write_bytes(damaged[0])
    with pytest.warns(UserWarning, match="damaged"):
        resumed = simulate(tmp_path / "cut", resume=True, **settings)
    assert resumed.state.history == whole.state.history
    for name in listed:
        assert lines(tmp_path / "cut", name) == lines(tmp_path / "whole", name)


def test_best_of_trainings():
    rows = [{"selection": LOWEST, "index": 0}, {"selection": 0.5, "index": 2}, {"selection": 0.5, "index": 1}]
    assert best_of(rows)["index"] == 1 and best_of(rows[:1]) is None
    for bad in (dict(prune="x"), dict(prune="none"), dict(thetas=()), dict(budget=-1)):
        with pytest.raises(BortError):
            Plan(**{**dict(thetas=THETAS), **bad})
    with pytest.raises(BortError, match="teacher"):
        Agora(None, SimpleNamespace(evaluation=None), None, shuffle, None, Plan(THETAS), None, None)


# ---- the runner, with real trainings

@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """SST-2 and COPA in miniature, a tokenizer, a student, and a teacher of either task that knows it."""
    from bort.models import Bert, initialize
    from bort.text.tokenizers.loading import train_sentencepiece

    folder = tmp_path_factory.mktemp("agora")
    rng = np.random.default_rng(0)
    good, bad, plain = "fine lovely great warm".split(), "dull awful poor cold".split(), "the film a story is and of".split()

    def sentence(label):
        words = list(rng.choice(plain, 3)) + list(rng.choice(good if label else bad, 1))
        return " ".join(rng.permutation(words))

    (folder / "SST-2").mkdir()
    for split, count in (("train", 60), ("dev", 30)):
        rows = [f"{sentence(label)} \t{label}" for label in rng.integers(0, 2, count)]
        (folder / "SST-2" / f"{split}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    rows = [f"{index}\t{sentence(index % 2)}" for index in range(20)]
    (folder / "SST-2" / "test.tsv").write_text("index\tsentence\n" + "\n".join(rows) + "\n")
    (folder / "COPA").mkdir()
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        records = []
        for index in range(count):
            label = int(rng.integers(0, 2))
            record = {"premise": sentence(1), "choice1": sentence(1 - label), "choice2": sentence(label),
                      "question": "cause", "idx": index}
            records.append(json.dumps(record if split == "test" else {**record, "label": label}))
        (folder / "COPA" / f"{split}.jsonl").write_text("\n".join(records) + "\n")
    tokenizer = train_sentencepiece([*(folder / "SST-2" / "train.tsv").read_text().splitlines(),
                                     "because so I a n"], 60)
    for name in ("bort", "raw"):
        model = Bert(TINY, tokenizer.vocab_size, max_length=32)
        initialize(model, 0)
        if name == "bort":  # as if its MLM head had been trained, which tau's mlm asks for
            model.decoder[0].bias.set_data(model.decoder[0].bias.data() + 1e-3)
        bort.save(model, folder / name, tokenizer)
    return folder


def command(folder, output, *extra, task="SST-2", teacher="teacher/model"):
    return ["--task", task, "--data-dir", str(folder / task), "--model", str(folder / "bort"), "--output",
            str(folder / output), "--algorithm", "agora", "--teacher", str(folder / teacher), "--grid",
            str(folder / "grid.json"), "--lr", "5e-3", "--batch-size", "16", "--epochs", "1", "--max-length",
            "32", "--held-out-fraction", "0.2", *extra]


@pytest.fixture(scope="module")
def teacher(workplace):
    """Teachers that need no training: random networks, large weights, the head's bias such that both labels
    occur."""
    from bort.finetuning import experiment
    from bort.finetuning.scoring import score
    from bort.models import Bert, initialize

    tokenizer = bort.load_tokenizer(workplace / "bort")
    for name, folder in (("SST-2", "teacher"), ("COPA", "copa-teacher")):
        data = experiment.read_task(name, workplace / name, tokenizer, 32)
        body = Bert(TINY_TEACHER, tokenizer.vocab_size, max_length=32)
        initialize(body, 3)
        for key, parameter in body._collect_params_with_prefix().items():
            if key.endswith("weight") and key != "decoder.3.weight":
                parameter.set_data(parameter.data() * 10)
        model = experiment.classifier_for(data.task, body, 3)
        scores = score(model, data.train.tokens.token_ids, tokenizer.pad_id)
        model.classifier[1].bias.data()[0] = float(np.median(scores[:, 1] - scores[:, 0]))
        bort.save(model, workplace / folder / "model", tokenizer)
    (workplace
     / "grid.json").write_text('{"lr": [5e-3, 1e-2], "weight_decay": [0], "warmup": [0.1], "seed": [0]}')
    return workplace


def stable(results):
    """What a repetition must reproduce: everything but times."""
    return {key: value for key, value in results.items() if not key.startswith("seconds")
            and key not in ("share_by_part", "ranks") and not key.endswith("per_second") and key != "compare"}


SHORT = ("--max-rounds", "2", "--budget", "20", "--min-rounds", "2")


@pytest.fixture(scope="module")
def uncut(teacher):
    assert run_command(run_finetune.main, command(teacher, "uncut", *SHORT, "--compare", "--tau",
                                                  "mlm,noise,embedding")) == 0
    return json.loads((teacher / "uncut" / "results.json").read_text())


def test_the_whole_run_and_its_outputs(teacher, uncut):
    folder = teacher / "uncut"
    assert uncut["algorithm"] == "agora" and uncut["evaluated_on"] == "held-out" and uncut[
                                                                                           "e"] == 12 and uncut[
                                                                                                                "x"] == 48
    assert uncut["trainings"] == 3 == len(lines(folder, "agora.jsonl")) and uncut["additions"] == 20
    assert {row["tau"] for row in lines(folder, "additions.jsonl")} == {"mlm", "noise", "embedding"}
    assert [row["method"] for row in uncut["compare"]] == ["plain", "plain, equal compute",
                                                           "distillation, equal compute", "Agora"]
    steps = [row["steps"] for row in uncut["compare"]]
    assert steps[1] == steps[2] == steps[3] > steps[0]
    assert set(uncut["share_by_part"]) == {"training", "errors", "tau", "labelling"}
    for name in ("model/config.json", "predictions/SST-2.tsv", "agora.png", "config.json"):
        assert (folder / name).is_file()
    assert not (folder / "trainings").exists() and not (folder / "checkpoints").exists()
    row = lines(folder, "agora.jsonl")[0]
    assert row["theta"] == {"lr": 5e-3, "weight_decay": 0.0, "warmup": 0.1, "seed": 0} and row["size"] == 48
    assert sum(row["labels"].values()) == 48 and set(row["dev"]) == {"accuracy"}
    assert json.loads((folder / "model" / "config.json").read_text())["training"]["max_length"] == 32
    # the model that was saved is the one that was chosen
    assert uncut["metrics"]["dev"] == uncut["best"]["dev"]


@pytest.mark.parametrize("soft", [False, True])
def test_the_comparison_takes_agoras_first_trainings_as_they_are(teacher, monkeypatch, soft):
    train, asked = report._trainings, {}

    def again(agora, tag, x, jobs, soft):
        asked[tag] = len(jobs)
        if tag != "compare-plain" and soft == agora.plan.soft:
            first = lines(teacher / f"taken-{soft}", "agora.jsonl")[:2]
            repeated = train(agora, "again", x, [(row["theta_index"], 0, row["steps"]) for row in first],
                             soft)
            assert [[row[name] for name in ("score", "loss", "steps", "dev")] for row in repeated] == [
                [row[name] for name in ("score", "loss", "steps", "dev")] for row in first]
        return train(agora, tag, x, jobs, soft)

    monkeypatch.setattr(report, "_trainings", again)
    assert run_command(run_finetune.main, command(teacher, f"taken-{soft}", *SHORT, "--compare", "--tau",
                                                  "noise", *(["--soft"] if soft else []))) == 0
    results = json.loads((teacher / f"taken-{soft}" / "results.json").read_text())
    assert asked == ({"compare-plain": 2, "compare-long-plain": 3, "compare-distilled": 1} if soft
                     else {"compare-long-plain": 1, "compare-distilled": 3})
    assert [line["trainings"] for line in results["compare"]] == [2, 3, 3, 3]


def test_dev_and_test_stay_outside(teacher, uncut):
    """By hashes: neither X nor D holds a point of dev or test, and another dev set changes nothing but its
    own score."""
    from bort.finetuning import experiment

    tokenizer = bort.load_tokenizer(teacher / "bort")
    data = experiment.read_task("SST-2", teacher / "SST-2", tokenizer, 32)
    official = {digest(ids) for part in (data.dev, data.others["SST-2/test"])
                for ids in part.tokens.token_ids}
    made = {digest(np.array(row["token_ids"])) for row in lines(teacher / "uncut", "additions.jsonl")}
    assert made and not made & official
    other = teacher / "other"
    (other / "SST-2").mkdir(parents=True)
    for name in ("bort", "raw", "teacher", "grid.json"):
        (other / name).symlink_to(teacher / name)
    train = (teacher / "SST-2" / "train.tsv").read_text()
    (other / "SST-2" / "train.tsv").write_text(train)
    flipped = [line[:-1] + str(1 - int(line[-1]))
               for line in (teacher / "SST-2" / "dev.tsv").read_text().splitlines()[1:]]
    (other / "SST-2" / "dev.tsv").write_text("\n".join(["sentence\tlabel", *flipped]) + "\n")
    (other / "SST-2" / "test.tsv").write_text((teacher / "SST-2" / "test.tsv").read_text())
    assert run_command(run_finetune.main, command(other, "run", *SHORT, "--tau", "mlm,noise,embedding")) == 0
    again = json.loads((other / "run" / "results.json").read_text())
    assert again["best"]["score"] == uncut["best"]["score"] and again["theta"] == uncut["theta"]
    assert lines(other / "run", "additions.jsonl") == lines(teacher / "uncut", "additions.jsonl")
    assert again["metrics"]["dev"]["accuracy"] == pytest.approx(1 - uncut["metrics"]["dev"]["accuracy"])
    first, second = ((folder / "predictions" / "SST-2.tsv").read_text() for folder in (teacher / "uncut",
                                                                                       other / "run"))
    assert first == second
    # nor does the dev set choose between seeds, which flipping its labels would turn round
    several = ("--seeds", "0,1,2", "--max-rounds", "1", "--tau", "none")
    for folder in (teacher, other):
        assert run_command(run_finetune.main, command(folder, "several", *several)) == 0
    first, second = (json.loads((folder / "several" / "results.json").read_text()) for folder in (teacher,
                                                                                                  other))
    each = [json.loads((teacher / "several" / f"seed-{seed}" / "results.json").read_text())
            for seed in range(3)]
    assert len({results["metrics"]["dev"]["accuracy"] for results in each}) > 1
    assert first["best_seed"] == second["best_seed"] and first["best"]["selection"] == second["best"][
                                                                                                      "selection"]
    for name in ("model/model.params", "predictions/SST-2.tsv"):
        assert (teacher / "several" / name).read_bytes() == (other / "several" / name).read_bytes()


DYING = """
import os, runpy, signal, sys

_, script, name, count, *arguments = sys.argv
seen = 0


def die(event, details):
    global seen
    if event in ("open", "os.rename") and any(str(detail).endswith(name) for detail in details[:2]):
        seen += 1
        if seen == int(count):
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(die)
sys.path.insert(0, os.path.dirname(script))
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""
"""Runs a script that ends by signal 9 just before it opens, or renames something to, a file for the n-th
time."""


def test_killed_with_signal_9_it_goes_on_to_the_same(teacher, uncut):
    arguments = command(teacher, "cut", *SHORT, "--compare", "--tau", "mlm,noise,embedding")
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_WAIT_POLICY="passive")
    folder = teacher / "cut"
    moments = (("round-000-00/theta-0001.json", 1), ("cut/additions.jsonl", 7),
               ("compare-distilled/theta-0000.json", 1), ("cut/results.json", 1))
    for number, (name, count) in enumerate(moments):
        done = subprocess.run([sys.executable, "-c", DYING, str(ROOT / "run_finetune.py"), name, str(count),
                               *arguments, *(("--resume",) if number else ())], env=environment,
                              capture_output=True, timeout=300)
        assert done.returncode == -signal.SIGKILL, (name, done.stderr.decode())
        assert not (folder / "results.json").exists()
    assert run_command(run_finetune.main, [*arguments, "--resume"]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert stable(results) == stable(uncut)
    for ours, theirs in zip(results["compare"], uncut["compare"]):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    for name in ("agora.jsonl", "additions.jsonl"):
        assert lines(folder, name) == lines(teacher / "uncut", name)
    assert (folder / "model" / "model.params").read_bytes() == (teacher / "uncut" / "model"
                                                                / "model.params").read_bytes()


def test_a_resumed_run_notices_what_was_exchanged(teacher, capsys):
    """Another teacher, student, tau model, dev or test set in the same place is not gone on with."""
    place = teacher / "exchanged"
    shutil.copytree(teacher / "SST-2", place / "SST-2")
    for name in ("bort", "teacher"):
        shutil.copytree(teacher / name, place / name)
    shutil.copytree(teacher / "bort", place / "tau")
    shutil.copy(teacher / "grid.json", place / "grid.json")
    arguments = command(place, "run", "--max-rounds", "1", "--tau", "embedding", "--tau-model",
                        str(place / "tau"))
    assert run_command(run_finetune.main, arguments) == 0
    assert run_command(run_finetune.main, [*arguments, "--resume"]) == 0
    tokenizer = bort.load_tokenizer(place / "bort")
    for folder in ("bort", "teacher/model", "tau"):
        kept = place / "kept"
        shutil.copytree(place / folder, kept)
        model = bort.load(place / folder)
        body = getattr(model, "bort", model)
        body.decoder[0].bias.set_data(body.decoder[0].bias.data() + 1)
        bort.save(model, place / folder, tokenizer)
        assert run_command(run_finetune.main, [*arguments, "--resume"]) == 2
        assert "models was" in capsys.readouterr().err, folder
        shutil.rmtree(place / folder)
        kept.rename(place / folder)
    for name in ("dev.tsv", "test.tsv"):
        text = (place / "SST-2" / name).read_text()
        (place / "SST-2" / name).write_text(text.replace("film", "story"))
        assert run_command(run_finetune.main, [*arguments, "--resume"]) == 2
        assert "sets was" in capsys.readouterr().err, name
        (place / "SST-2" / name).write_text(text)
    assert run_command(run_finetune.main, [*arguments, "--resume"]) == 0


def test_tau_needs_an_mlm_head_that_was_trained(teacher, capsys):
    for tau_model, message in (("raw", "random MLM head"), ("teacher/model", "fine-tuned as a classifier")):
        assert run_command(run_finetune.main, command(teacher, "refused", "--tau-model",
                                                      str(teacher / tau_model))) == 2
        error = capsys.readouterr().err
        assert message in error and "--tau noise,embedding" in error and "--tau-model" in error
    arguments = command(teacher, "refused", "--tokenizer", str(teacher / "bort"), "--tau", "mlm")
    arguments[arguments.index("--model") + 1] = "random:1,2,8,8"
    assert run_command(run_finetune.main, arguments) == 2
    assert "never trained" in capsys.readouterr().err
    # --tokenizer says what the student has, not the tau model, whose own is beside it
    from bort.text.tokenizers.loading import train_sentencepiece

    other = train_sentencepiece(["A B C D E F G H"] * 9, 30)
    body = bort.load(teacher / "bort")
    bort.save(body, teacher / "foreign")
    other.save(teacher / "foreign")
    assert run_command(run_finetune.main, command(teacher, "refused", "--tokenizer", str(teacher / "bort"),
                                                  "--tau-model", str(teacher / "foreign"))) == 2
    assert "another tokenizer" in capsys.readouterr().err
    assert not (teacher / "refused").exists()


def test_given_hyper_parameters_win_over_the_convergent_set(teacher):
    arguments = [argument for argument in command(teacher, "chs", "--chs", "--max-rounds", "1", "--tau",
                                                  "none")]
    place = arguments.index("--grid")
    assert run_command(run_finetune.main, arguments[:place] + arguments[place + 2:]) == 0
    results = json.loads((teacher / "chs" / "results.json").read_text())
    chosen = convergent_set("SST-2")
    assert results["theta"] == [5e-3, *chosen.theta[1:]] and results["settings"]["batch_size"] == 16
    from bort.agora.command import _Setting

    for extra, wanted in (([], (chosen.theta, 16)), (["--warmup", "0.1", "--batch-size", "4"],
                                                     (chosen.theta._replace(warmup=0.1), 4))):
        args = run_finetune.arguments(["--task", "SST-2", "--data-dir", "x", "--model", "x", "--output", "x",
                                       "--algorithm", "agora", "--teacher",
                                       str(teacher / "teacher" / "model"), "--chs", "--tau", "none", *extra])
        setting = _Setting(args, SimpleNamespace(task=get_task("SST-2"), dev=None), None,
                           bort.load_tokenizer(teacher / "bort"), 32, {})
        assert (setting.chs.theta, setting.chs.batch_size) == wanted
    assert args.lr == 3e-5 and args.given == ["warmup", "batch_size"]


def launch(folder, output, ranks, *extra, script=(str(ROOT / "run_finetune.py"),)):
    """Agora in processes of its own; two rounds of two trainings each."""
    start = ["horovodrun", "-np", "2"] if ranks == 2 else []
    arguments = command(folder, output, *SHORT, "--soft", "--prune", "none", *extra)
    return subprocess.run([*start, sys.executable, *script, *arguments], env=dict(two_rank_environment(),
                                                                                  OMP_NUM_THREADS="1"),
                          capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def two_ranks(teacher):
    done = launch(teacher, "ranks-2", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    return teacher / "ranks-2"


def same_run(one, two):
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    assert stable(results[0]) == stable(results[1])
    for name in ("agora.jsonl", "additions.jsonl"):
        assert lines(one, name) == lines(two, name)
    for name in ("model/model.params", "predictions/SST-2.tsv"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    return results


@needs_horovod
def test_two_ranks_give_what_one_gives(teacher, two_ranks):
    done = launch(teacher, "ranks-1", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert same_run(teacher / "ranks-1", two_ranks)[1]["ranks"] == 2


@needs_horovod
def test_a_killed_rank_changes_nothing(teacher, two_ranks, tmp_path):
    """Rank 1 dies by signal 9 while its training of the second round is stored; resumed, the run ends as
    undisturbed."""
    (tmp_path / "dying.py").write_text(DYING)
    folder = teacher / "ranks-killed"
    killed = launch(teacher, "ranks-killed", 2, script=(
        str(tmp_path / "dying.py"), str(ROOT / "run_finetune.py"), "round-001-00/theta-0001.json", "1"))
    assert killed.returncode != 0 and not (folder / "results.json").exists()
    assert (folder / "checkpoints").is_dir() and not list(folder.rglob("round-001-00/theta-0001.json"))
    resumed = launch(teacher, "ranks-killed", 2, "--resume")
    assert resumed.returncode == 0 and "goes on with round 2" in resumed.stdout, resumed.stdout + resumed.stderr
    assert same_run(folder, two_ranks)[0]["trainings"] == 4


def test_questions_dev_as_e_and_tables(teacher, capsys):
    """COPA: whole questions are held out; then E is the dev set as in the paper; then a table in place of a
    teacher."""
    copa = dict(task="COPA", teacher="copa-teacher/model")
    assert run_command(run_finetune.main, command(teacher, "copa", *SHORT, "--tau", "noise", **copa)) == 0
    results = json.loads((teacher / "copa" / "results.json").read_text())
    assert results["e"] == 10 and results["x"] == 38 and results["metric_on_e"] == "accuracy"
    assert len((teacher / "copa" / "predictions" / "COPA.jsonl").read_text().splitlines()) == 8
    assert run_command(run_finetune.main, command(teacher, "copa-dev", *SHORT, "--tau", "noise",
                                                  "--evaluate-on", "dev", "--seeds", "0,1", "--compare",
                                                  **copa)) == 0
    results = json.loads((teacher / "copa-dev" / "results.json").read_text())
    assert results["evaluated_on"] == "dev" and results["x"] == 48 and results["e"] == 16 and results[
                                                                                                      "seeds"] == [
                                                                                                                   0,
                                                                                                                   1]
    assert results["best"]["score"] == results["metrics"]["dev"]["accuracy"] == results["maximum"]["dev"][
                                                                                                          "accuracy"]
    for line in results["compare"]:  # E is the dev set here, and every method is reported on it
        assert set(line["dev"]) == {"accuracy"} and line["dev"]["accuracy"] == line["score"]
    assert (teacher / "copa-dev" / "model" / "config.json").is_file()
    np.save(teacher / "table.npy", np.zeros((60, 2), np.float32))
    assert run_command(run_finetune.main, command(teacher, "table", "--tau", "none", "--soft", "--prune",
                                                  "half", teacher="table.npy")) == 0
    assert json.loads((teacher / "table" / "results.json").read_text())["additions"] == 0
    capsys.readouterr()
    for extra, message, other in ((("--tau", "mlm"), "table of predictions", "table.npy"),
                                  (("--tau", "none"), "classifier", "bort"),
                                  (("--tau", "x"), "--tau", "teacher/model"),
                                  (("--lr", "0"), "rate", "teacher/model"),
                                  (("--grid", "none"), "--grid", "teacher/model"),
                                  (("--held-out-fraction", "0"), "fraction", "teacher/model"),
                                  (("--budget", "-1"), "budget", "teacher/model")):
        assert run_command(run_finetune.main, command(teacher, "refused", *extra, teacher=other)) == 2
        assert message in capsys.readouterr().err, extra
    assert not (teacher / "refused").exists()
    assert run_command(run_finetune.main, command(teacher, "copa", *SHORT, **copa)) == 2
    assert "--resume" in capsys.readouterr().err
