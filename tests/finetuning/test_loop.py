"""The loop: equal batches however they are split, exact resume, distillation, regression, skipped steps."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bort.checkpoints.model_folder import parameter_arrays
from bort.finetuning.loop import LoopOptions, Settings, TrainingData, fine_tune
from bort.finetuning.scoring import score
from bort.json_files import read_jsonl
from bort.training.run_folder import RunFolder
from bort.training.step import Diverged
from tests.finetuning.common import classifier, learnable, loss_of, train
from tests.tiny import needs_bfloat16


def test_accumulation_equals_the_large_batch():
    data = learnable(30)
    results = []
    for batch_size, accumulate in ((12, 1), (4, 3), (1, 12)):
        model = classifier()
        train(model, data, batch_size=batch_size, accumulate=accumulate)
        results.append(parameter_arrays(model))
    start = parameter_arrays(classifier())
    for other in results[1:]:
        for name, value in results[0].items():
            np.testing.assert_allclose(other[name], value, atol=2e-5, err_msg=name)
    assert np.abs(results[0]["classifier.1.weight"] - start["classifier.1.weight"]).max() > 1e-3


def test_it_learns_and_keeps_the_best_epoch():
    data, held = learnable(300), learnable(100, seed=1)
    model = classifier()

    def accuracy(network):
        return {"accuracy": float((score(network, held.token_ids, 1).argmax(1) == held.labels).mean())}

    outcome = fine_tune(model, data, accuracy, Settings(lr=5e-3, epochs=12, batch_size=16, weight_decay=0), 1)
    values = [row["metrics"]["accuracy"] for row in outcome.history]
    assert max(values) > 0.9 and outcome.best_epoch == int(np.argmax(values))
    assert accuracy(model)["accuracy"] == max(values) == outcome.metrics["accuracy"]


def test_the_same_seed_gives_the_same_figures_and_another_does_not():
    data = learnable()
    runs = [parameter_arrays(train_one(seed, data)) for seed in (0, 0, 1)]
    assert all((runs[0][name] == runs[1][name]).all() for name in runs[0])
    assert any((runs[0][name] != runs[2][name]).any() for name in runs[0])


def train_one(seed, data):
    model = classifier(dropout=0.1)
    train(model, data, seed=seed)
    return model


@needs_bfloat16
def test_bfloat16_learns_what_float32_does_and_leaves_a_float32_network():
    data, models = learnable(300), {}
    for dtype in ("float32", "bfloat16"):
        models[dtype] = classifier()
        settings = Settings(lr=5e-3, epochs=4, batch_size=16, dtype=dtype)
        outcome = fine_tune(models[dtype], data, loss_of, settings, 1)
        models[dtype] = [row["loss"] for row in outcome.history], score(models[dtype], data.token_ids, 1)
    (exact, logits), (rounded, found) = models["float32"], models["bfloat16"]
    assert exact[-1] < exact[0] - 0.1 and rounded == pytest.approx(exact, abs=0.02) and rounded != exact
    assert (found.argmax(1) == logits.argmax(1)).mean() > 0.97


@pytest.mark.parametrize("dtype, stop_after", [("float32", stop) for stop in (1, 7, 15, 16, 29)] + [
    pytest.param("bfloat16", 7, marks=needs_bfloat16)])
def test_a_killed_run_goes_on_to_the_same_figures(tmp_path, dtype, stop_after):
    data, settings = learnable(), Settings(lr=1e-3, epochs=2, batch_size=4, dtype=dtype)
    whole = classifier(dropout=0.1)
    with RunFolder(tmp_path / "whole", {}) as run:
        expected = fine_tune(
            whole,
            data,
            loss_of,
            settings,
            1,
            run,
            LoopOptions(checkpoint_interval=4),
        )
    calls = []

    def stop():
        calls.append(1)
        return len(calls) == stop_after

    with RunFolder(tmp_path / "cut", {}) as run, pytest.raises(KeyboardInterrupt):
        fine_tune(
            classifier(dropout=0.1),
            data,
            loss_of,
            settings,
            1,
            run,
            LoopOptions(checkpoint_interval=4, stop_when=stop),
        )
    # whatever it held is replaced by the checkpoint, if there is one yet
    model = classifier(seed=9, dropout=0.1)
    if stop_after < 4:
        model = classifier(dropout=0.1)
    with RunFolder(tmp_path / "cut", {}, resume=True) as run:
        outcome = fine_tune(
            model,
            data,
            loss_of,
            settings,
            1,
            run,
            LoopOptions(checkpoint_interval=4),
        )
    assert outcome.history == expected.history and outcome.metrics == expected.metrics
    for name, value in parameter_arrays(whole).items():
        np.testing.assert_array_equal(parameter_arrays(model)[name], value)
    assert stripped(tmp_path / "cut") == stripped(tmp_path / "whole")


def stripped(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "evaluation_seconds"} for row in rows]


def test_patience_ends_a_run_early():
    calls = []

    def worse(_):
        calls.append(1)
        return {"x": -len(calls)}

    outcome = fine_tune(classifier(), learnable(12), worse, Settings(epochs=9, patience=2), 1)
    assert len(outcome.history) == 3 and outcome.best_epoch == 0


def test_distillation_draws_the_student_to_the_teacher():
    data = learnable(64)
    teacher = np.stack([np.where(data.labels == 1, -4.0, 4.0), np.where(data.labels == 1, 4.0, -4.0)], 1)
    flipped = TrainingData(data.token_ids, 1 - data.labels, teacher.astype("float32"))
    from bort.finetuning.scoring import score

    def agreement(network):
        return {"agreement": float((score(network, data.token_ids, 1).argmax(1) == data.labels).mean())}

    settings = Settings(lr=5e-3, epochs=10, batch_size=16, distill_weight=1.0)
    assert fine_tune(classifier(), flipped, agreement, settings, 1).metrics["agreement"] > 0.8


def test_regression_and_divergence():
    data = learnable(40)
    model = classifier(outputs=1)
    outcome = train(model, TrainingData(data.token_ids, data.labels.astype("float32")), lr=1e-3)
    assert outcome.history[1]["loss"] < outcome.history[0]["loss"]
    model.classifier[1].bias.data()[:] = float("nan")
    with pytest.raises(Diverged, match="--lr"):
        train(model, TrainingData(data.token_ids, data.labels.astype("float32")), epochs=9)


def unlabelled(*rows):
    """A regression whose given examples have no number for a label; batches of one, in two epochs of 30."""
    data = learnable(30)
    labels = data.labels.astype("float32")
    labels[list(rows)] = np.nan
    return TrainingData(data.token_ids, labels)


def test_a_loss_that_is_no_number_is_left_out_and_checkpoints_go_on(tmp_path):
    settings = Settings(lr=1e-3, epochs=2, batch_size=1)
    with RunFolder(tmp_path, {}) as run:
        outcome = fine_tune(
            classifier(outputs=1),
            unlabelled(7),
            loss_of,
            settings,
            1,
            run,
            LoopOptions(checkpoint_interval=4),
        )
        assert run.latest().state["skipped"] == 2 == outcome.skipped_steps
    assert all(np.isfinite(row["loss"]) and row["loss"] > 0 for row in outcome.history)
    rows = [row for row in read_jsonl(tmp_path / "metrics.jsonl") if "gradient_norm" in row]
    assert sum(row["gradient_norm"] is None for row in rows) == 2
    assert all(row["loss"] is not None for row in rows)


def test_skipped_steps_in_a_row_are_counted_across_a_resumption(tmp_path):
    settings, data = Settings(lr=1e-3, epochs=2, batch_size=1), unlabelled(*range(30))
    calls = []

    def stop():
        calls.append(1)
        return len(calls) == 14

    with RunFolder(tmp_path, {}) as run, pytest.raises(KeyboardInterrupt):
        fine_tune(classifier(outputs=1), data, loss_of, settings, 1, run, LoopOptions(4, stop_when=stop))
    calls.clear()
    with RunFolder(tmp_path, {}, resume=True) as run:
        assert run.latest().state["skipped_in_a_row"] == 12
        with pytest.raises(Diverged, match="20 steps in a row.*--lr"):
            fine_tune(classifier(outputs=1), data, loss_of, settings, 1, run, LoopOptions(4, stop_when=stop))
    assert len(calls) == 7
