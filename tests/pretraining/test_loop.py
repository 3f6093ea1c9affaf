"""Pre-training: equal steps however they are split, exact resume, skipped steps, what a run leaves."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import bort
from bort.architecture import Architecture
from bort.checkpoints.model_folder import parameter_arrays
from bort.checkpoints.params_file import read_ndarrays
from bort.errors import BortError
from bort.masked_lm.losses import LossWeights
from bort.masked_lm.teacher import LiveTeacher
from bort.pretraining.loop import Pretraining
from bort.pretraining.settings import Intervals, Settings
from bort.training.run_folder import RunFolder
from bort.training.step import Diverged
from tests.pretraining.common import assert_close, assert_identical, corpus, metrics, student, train
from tests.tiny import TINY_TEACHER, needs_bfloat16, tiny_bert


def test_accumulation_equals_the_large_batch(tmp_path):
    teacher = LiveTeacher(tiny_bert(3, TINY_TEACHER), 2.0)
    loss = LossWeights(0.4, 0.6)
    results = [
        train(
            tmp_path / str(batch),
            {"batch_size": batch, "accumulate": 12 // batch, "loss": loss},
            teacher=teacher,
        )[0]
        for batch in (12, 4, 1)
    ]
    assert_close(results[0], results[1])
    assert_close(results[0], results[2])
    assert (
        np.abs(results[0]["decoder.0.weight"] - parameter_arrays(student())["decoder.0.weight"]).max() > 1e-3
    )
    rows = [metrics(tmp_path / name) for name in ("12", "4")]
    for left, right in zip(*rows):
        assert left == pytest.approx(right, rel=1e-4)
    # 40 sequences: one batch of each epoch has 4 of them, so that some micro-batches of 1 have nothing at
    # all.
    assert [row["epoch"] for row in rows[0] if "epoch" in row] == [0, 0, 0, 0, 1, 1]


def test_both_methods_learn(tmp_path):
    small = Architecture(1, 2, 32, 32)
    settings = {"steps": 40, "batch_size": 16, "lr": 1e-2, "warmup_ratio": 0.1}
    data = corpus(200)
    teacher = student(seed=1, architecture=small)
    _, plain = train(tmp_path / "mlm", settings, teacher, data=data, log=10, evaluate=50)
    first = metrics(tmp_path / "mlm")[0]
    assert plain["eval_mlm_loss"] < first["eval_mlm_loss"] - 0.8
    assert plain["eval_mlm_accuracy"] > first["eval_mlm_accuracy"] + 0.2
    settings["loss"] = LossWeights(0.0, 1.0)
    _, distilled = train(
        tmp_path / "kd",
        settings,
        student(seed=2, architecture=small),
        LiveTeacher(teacher, 2.0),
        data=data,
        log=10,
        evaluate=50,
    )
    # Nothing but the teacher told this student which tokens were there.
    assert distilled["eval_mlm_accuracy"] > first["eval_mlm_accuracy"] + 0.2
    assert plain["tokens"] > 40 * 16 * 4 and plain["steps"] == 40 and plain["skipped"] == 0


def test_a_run_leaves_models_curves_and_metrics(tmp_path):
    arrays, results = train(
        tmp_path / "run", {"steps": 6}, evaluate=2, teacher=LiveTeacher(tiny_bert(3), 2.0), tensorboard=False
    )
    assert_identical(arrays, parameter_arrays(bort.load(tmp_path / "run" / "model")))
    rows = metrics(tmp_path / "run")
    evaluations = {row["step"]: row["eval_mlm_accuracy"] for row in rows if "eval_mlm_accuracy" in row}
    assert list(evaluations) == [0, 2, 4, 6]
    assert results["best_eval_mlm_accuracy"] == max(evaluations.values())
    assert evaluations[results["best_step"]] == max(evaluations.values())
    best = bort.load(tmp_path / "run" / "best")
    again = Pretraining(best, corpus(), Settings()).evaluate(0)
    assert again["eval_mlm_accuracy"] == results["best_eval_mlm_accuracy"]
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == list(range(1, 7))
    for row in training:
        assert row["loss"] == pytest.approx(row["mlm_loss"]) and row["kd_loss"] > 0 and row["tokens"] > 0
    assert (tmp_path / "run" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["pretraining"]["step"] == 6
    assert not (tmp_path / "run" / "checkpoints").exists() and (tmp_path / "run" / "results.json").is_file()


def test_tensorboard_events(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    train(tmp_path / "run", {"steps": 2}, tensorboard=True)
    (events,) = (tmp_path / "run" / "events").iterdir()
    assert b"mlm_accuracy" in events.read_bytes()
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(BortError, match=r"pip install 'bort\[tensorboard\]'"):
        train(tmp_path / "other", {"steps": 2}, tensorboard=True)


@needs_bfloat16
def test_bfloat16_learns_as_float32_does_and_resumes_exactly(tmp_path):
    settings = {"steps": 40, "batch_size": 16, "lr": 1e-2, "loss": LossWeights(0.5, 0.5)}
    data, teacher, small = corpus(200), tiny_bert(3, TINY_TEACHER), Architecture(1, 2, 32, 32)

    def run(name, dtype="bfloat16", **arguments):
        model = student(dropout=0.1, architecture=small)
        return train(tmp_path / name, {**settings, "dtype": dtype}, model, LiveTeacher(teacher, 2.0),
                     data=data, evaluate=20, checkpoint=10, **arguments)

    def kill(step):
        if step == 27:
            raise Interrupted

    arrays, results = run("whole")
    with pytest.raises(Interrupted):
        run("killed", after_step=kill)
    stored = next((tmp_path / "killed" / "checkpoints").glob("*20*")) / "model.params"
    assert {array.dtype for array in read_ndarrays(stored).values()} == {np.dtype("float32")}
    assert_identical(arrays, run("killed", resume=True)[0])
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
    exact, expected = run("float32", "float32")
    losses = [np.array([row["loss"] for row in metrics(tmp_path / name) if "loss" in row])
              for name in ("whole", "float32")]
    assert len(losses[0]) == 40 and losses[1][-1] < losses[1][0] - 0.3
    assert 0 < np.abs(losses[0] - losses[1]).max() < 0.03
    assert results["eval_mlm_loss"] == pytest.approx(expected["eval_mlm_loss"], abs=0.03)
    # Evaluations are float32's: another process, without bfloat16, finds the same.
    again = Pretraining(bort.load(tmp_path / "whole" / "model"), data, Settings()).evaluate(0)
    assert again["eval_mlm_loss"] == results["eval_mlm_loss"]


class Interrupted(Exception):
    """What a kill looks like from inside one process."""


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_is_exact(tmp_path, accumulate):
    settings = {"steps": 14, "batch_size": 8, "accumulate": accumulate, "loss": LossWeights(0.4, 0.6)}

    def run(name, **arguments):
        return train(
            tmp_path / name,
            settings,
            student(dropout=0.2),
            LiveTeacher(tiny_bert(3, TINY_TEACHER), 2.0),
            evaluate=4,
            log=3,
            **arguments,
        )

    expected, results = run("whole")
    killed = {3, 8, 13}  # before the first checkpoint, and after each of the others

    def kill(step):
        if step in killed:
            killed.remove(step)
            raise Interrupted

    for _ in range(3):
        with pytest.raises(Interrupted):
            run("killed", resume=True, after_step=kill)
    arrays, again = run("killed", resume=True, after_step=kill)
    assert_identical(expected, arrays)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
    for name in ("eval_mlm_loss", "best_step", "tokens", "steps"):
        assert results[name] == again[name]
    assert_identical(
        parameter_arrays(bort.load(tmp_path / "whole" / "best")),
        parameter_arrays(bort.load(tmp_path / "killed" / "best")),
    )


class BrokenTeacher(LiveTeacher):
    """Answers with what is no number at the given steps."""

    def __init__(self, bad):
        super().__init__(tiny_bert(3, TINY_TEACHER), 2.0)
        self.bad, self.step = bad, 0

    def targets(self, batch):
        self.step += 1
        answer = super().targets(batch)
        return (lambda start, stop: answer(start, stop) * float("nan")) if self.step in self.bad else answer


def test_steps_without_finite_losses_change_nothing_and_are_counted(tmp_path):
    seen = []
    model = student()

    def look(step):
        seen.append(parameter_arrays(model))

    loss = LossWeights(0.4, 0.6)
    _, results = train(
        tmp_path / "run",
        {"steps": 6, "loss": loss, "max_skipped": 3},
        model,
        BrokenTeacher({3, 4}),
        after_step=look,
    )
    assert results["skipped"] == 2
    assert_identical(seen[1], seen[2])
    assert_identical(seen[1], seen[3])
    assert (seen[3]["decoder.0.weight"] != seen[4]["decoder.0.weight"]).any()
    assert metrics(tmp_path / "run")[3]["gradient_norm"] is None
    with pytest.raises(Diverged, match="3 steps in a row.*--lr"):
        train(
            tmp_path / "stopped",
            {"steps": 20, "loss": loss, "max_skipped": 3},
            student(),
            BrokenTeacher(range(7, 20)),
        )
    with RunFolder(tmp_path / "stopped", {}, resume=True) as run:
        assert run.latest().step == 5
    # The same folder goes on once the cause is gone.
    fine = LiveTeacher(tiny_bert(3, TINY_TEACHER), 2.0)
    again, _ = train(
        tmp_path / "stopped", {"steps": 20, "loss": loss, "max_skipped": 3}, student(), fine, resume=True
    )
    assert_identical(
        train(tmp_path / "good", {"steps": 20, "loss": loss, "max_skipped": 3}, student(), fine)[0], again
    )


def test_a_skipped_step_before_a_checkpoint_or_alone_in_a_window_leaves_nulls(tmp_path):
    settings = {"steps": 6, "loss": LossWeights(0.4, 0.6)}
    _, results = train(tmp_path / "run", settings, teacher=BrokenTeacher({2, 3, 5}), log=1, checkpoint=2)
    assert results["skipped"] == 3 and results["steps"] == 6
    rows = [row for row in metrics(tmp_path / "run") if "loss" in row]
    names = ("mlm_loss", "kd_loss", "mlm_accuracy", "loss")
    assert [[row[name] is None for name in names] for row in rows] == [
        [row["step"] in (2, 3, 5)] * 4 for row in rows
    ]
    # The others of a window are averaged as if the skipped ones had not been there.
    train(tmp_path / "window", settings, teacher=BrokenTeacher({2, 3, 5}), log=3, checkpoint=2)
    first = [row for row in metrics(tmp_path / "window") if "loss" in row][0]
    assert [first[name] for name in names] == [rows[0][name] for name in names]
    train(tmp_path / "last", settings, teacher=BrokenTeacher({5, 6}), log=2, checkpoint=5)
    assert [row for row in metrics(tmp_path / "last") if "loss" in row][-1]["kd_loss"] is None


def test_divergence_says_how_to_go_on(tmp_path):
    with pytest.raises(Diverged, match=f"--init {tmp_path}/run/best --output NEW --lr"):
        train(tmp_path / "run", {"loss": LossWeights(0.4, 0.6), "max_skipped": 1}, teacher=BrokenTeacher({3}))
    assert (tmp_path / "run" / "best" / "config.json").is_file()


def test_curves_are_drawn_while_a_run_goes_on_and_after_its_results_are_safe(tmp_path, monkeypatch):
    drawn = []

    def look(step):
        drawn.append((tmp_path / "run" / "curves.png").is_file())

    train(tmp_path / "run", {"steps": 4}, evaluate=2, after_step=look)
    assert drawn == [False] * 4  # not even a minute
    drawn.clear()
    monkeypatch.setattr(bort.pretraining.loop, "SECONDS_BETWEEN_DRAWINGS", 0)
    (tmp_path / "run").rename(tmp_path / "first")
    train(tmp_path / "run", {"steps": 4}, evaluate=2, after_step=look)
    assert drawn == [True] * 4
    monkeypatch.undo()

    def full(_):
        raise BortError("No space left")

    monkeypatch.setattr(bort.pretraining.loop, "draw_curves", full)
    with pytest.raises(BortError, match="No space left"):
        train(tmp_path / "full", {"steps": 2})
    assert (tmp_path / "full" / "results.json").is_file() and bort.load(tmp_path / "full" / "model")


def test_cores_are_counted_whatever_the_environment_says_of_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert train(tmp_path / "run", {"steps": 1})[1]["cores"] == 3


@pytest.mark.parametrize(
    "wrong, option",
    [
        ({"log": 0}, "--log-interval"),
        ({"evaluate": 0}, "--eval-interval"),
        ({"keep": -1}, "--keep"),
        ({"checkpoint": 0}, "--checkpoint-interval"),
        ({"evaluation_sequences": -5}, "--eval-sequences"),
    ],
)
def test_impossible_intervals_are_refused(wrong, option):
    with pytest.raises(BortError, match=f"{option} must be at least"):
        Intervals(**wrong)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"steps": 0}, "--steps"),
        ({"batch_size": 0}, "--batch-size"),
        ({"clip": -1.0}, "--clip"),
        ({"dtype": "float64"}, "float32 or bfloat16 or float16"),
        ({"schedule": "cosine"}, "cosine"),
        ({"lr": 0.0}, "rate"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(BortError, match=message):
        Settings(**wrong)


@pytest.mark.skipif(bort.backend.mxnet.mx.context.num_gpus() > 0, reason="there is a GPU")
def test_float16_needs_a_gpu():
    with pytest.raises(BortError, match="GPU"):
        Settings(dtype="float16")
