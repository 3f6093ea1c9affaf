"""Fine-tuning: equal batches however they are split, exact resume, and the whole runner on tiny files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import bort
import run_finetune
from bort.checkpoints.model_folder import parameter_arrays
from bort.errors import run_command
from bort.files import read_jsonl
from bort.finetuning.loop import LoopOptions, Settings, TrainingData, fine_tune
from bort.models import Bert, Classifier, initialize
from bort.text.tokenizers.loading import train_sentencepiece
from bort.training.run_folder import RunFolder
from bort.training.step import Diverged
from tests.tiny import MAX_LENGTH, TINY, VOCAB, needs_horovod, two_rank_environment

ROOT = Path(__file__).resolve().parents[2]


def classifier(seed=0, dropout=0.0, outputs=2):
    body = Bert(TINY, VOCAB, max_length=MAX_LENGTH, dropout=dropout)
    initialize(body, seed)
    model = Classifier(body, outputs, dropout=dropout)
    model.initialize_head(seed)
    return model


def learnable(count=60, seed=0):
    """Sequences whose class is whether the token 5 is in them."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(6, VOCAB, rng.integers(4, 20)).astype(np.int32) for _ in range(count)]
    labels = rng.integers(0, 2, count)
    for sequence, label in zip(ids, labels):
        sequence[0] = 0
        if label:
            sequence[rng.integers(1, len(sequence))] = 5
    return TrainingData(ids, labels)


def loss_of(model):
    return {"score": -float(np.abs(parameter_arrays(model)["classifier.1.weight"]).sum())}


def train(model, data, run=None, **settings):
    settings = Settings(**{"lr": 1e-3, "epochs": 2, "batch_size": 4, "warmup": 0.1, **settings})
    return fine_tune(model, data, loss_of, settings, 1, run)


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
    from bort.finetuning.scoring import score

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


@pytest.mark.parametrize("stop_after", [1, 7, 15, 16, 29])
def test_a_killed_run_goes_on_to_the_same_figures(tmp_path, stop_after):
    data = learnable()
    whole = classifier(dropout=0.1)
    with RunFolder(tmp_path / "whole", {}) as run:
        expected = fine_tune(
            whole,
            data,
            loss_of,
            Settings(lr=1e-3, epochs=2, batch_size=4),
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
            Settings(lr=1e-3, epochs=2, batch_size=4),
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
            Settings(lr=1e-3, epochs=2, batch_size=4),
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


# ---- the runner


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """SST-2 in miniature, a tokenizer trained on it, and a small fine-tuned teacher."""
    folder = tmp_path_factory.mktemp("finetune")
    rng = np.random.default_rng(0)
    good, bad, plain = (
        "fine lovely great warm".split(),
        "dull awful poor cold".split(),
        "the film a story is and of".split(),
    )

    def sentence(label):
        words = list(rng.choice(plain, 5)) + list(rng.choice(good if label else bad, 2))
        return " ".join(rng.permutation(words))

    (folder / "SST-2").mkdir()
    for split, count in (("train", 160), ("dev", 40)):
        labels = rng.integers(0, 2, count)
        rows = [f"{sentence(label)} \t{label}" for label in labels]
        (folder / "SST-2" / f"{split}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    rows = [f"{i}\t{sentence(i % 2)}" for i in range(20)]
    (folder / "SST-2" / "test.tsv").write_text("index\tsentence\n" + "\n".join(rows) + "\n")
    lines = (folder / "SST-2" / "train.tsv").read_text().splitlines()
    tokenizer = train_sentencepiece(lines, 60)
    tokenizer.save(folder / "tokenizer")
    model = Bert(TINY, tokenizer.vocab_size, max_length=32)
    initialize(model, 0)
    bort.save(model, folder / "bort", tokenizer)
    return folder


def run(folder, *extra, output="run", code=0):
    command = [
        "--task",
        "SST-2",
        "--data-dir",
        str(folder / "SST-2"),
        "--model",
        str(folder / "bort"),
        "--output",
        str(folder / output),
        "--lr",
        "5e-3",
        "--batch-size",
        "8",
        *extra,
    ]
    assert run_command(run_finetune.main, command) == code
    results = folder / output / "results.json"
    return json.loads(results.read_text()) if results.exists() else None


def test_plain_then_distilled_then_predicted(workplace, capsys):
    results = run(workplace, "--epochs", "6", output="teacher")
    assert results["metrics"]["dev"]["accuracy"] > 0.8
    assert capsys.readouterr().out.splitlines()[-1].startswith("SST-2: dev accuracy")
    for name in ("metrics.jsonl", "model/config.json", "model/model.params", "config.json"):
        assert (workplace / "teacher" / name).is_file()
    assert not (workplace / "teacher" / "checkpoints").exists()
    lines = (workplace / "teacher" / "predictions" / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 21

    results = run(
        workplace,
        "--algorithm",
        "distill",
        "--teacher",
        str(workplace / "teacher" / "model"),
        "--seeds",
        "0,1",
        "--epochs",
        "3",
        output="student",
    )
    assert results["seeds"] == [0, 1] and results["best_seed"] in (0, 1)
    both = [
        json.loads((workplace / "student" / f"seed-{seed}" / "results.json").read_text())["metrics"]["dev"][
            "accuracy"
        ]
        for seed in (0, 1)
    ]
    assert results["maximum"]["dev"]["accuracy"] == max(both) and results["median"]["dev"][
        "accuracy"
    ] == np.median(both)
    assert (workplace / "student" / "model" / "model.params").is_file()

    # the length of the inputs is remembered, and what exports and predicts takes it from there
    config = json.loads((workplace / "student" / "model" / "config.json").read_text())
    assert config["training"]["max_length"] == 32 and results["max_length"] == 32

    before = (workplace / "teacher" / "predictions" / "SST-2.tsv").read_text()
    results = run(
        workplace, "--predict-only", "--model", str(workplace / "teacher" / "model"), output="predicted"
    )
    assert (workplace / "predicted" / "predictions" / "SST-2.tsv").read_text() == before
    assert results["metrics"]["dev"]["accuracy"] > 0.8


def test_a_teacher_keeps_its_own_tokenizer_whatever_the_students_is(workplace, capsys):
    """--tokenizer is the student's; the teacher's is beside it."""
    other = train_sentencepiece((workplace / "SST-2" / "train.tsv").read_text().splitlines(), 45)
    other.save(workplace / "other" / "tokenizer")
    model = Bert(TINY, other.vocab_size, max_length=32)
    initialize(model, 0)
    bort.save(model, workplace / "other" / "bort", other)
    run(workplace, "--epochs", "4", "--model", str(workplace / "other" / "bort"), output="other-teacher")
    teacher = workplace / "other-teacher" / "model"
    distil = (
        "--algorithm",
        "distill",
        "--teacher",
        str(teacher),
        "--epochs",
        "1",
        "--tokenizer",
        str(workplace / "tokenizer"),
    )
    assert run(workplace, *distil, output="foreign")["metrics"]["dev"]["accuracy"] > 0.4
    from bort.finetuning.task_data import read_task
    from bort.finetuning.teacher import open_teacher
    from bort.text.tokenizers.loading import load_tokenizer

    own, students = load_tokenizer(teacher), load_tokenizer(workplace / "tokenizer")
    asked, direct = (read_task("SST-2", workplace / "SST-2", tokenizer, 32) for tokenizer in (students, own))
    found = open_teacher(teacher, students, asked.task, 32).of_split(
        asked.train.split, asked.train.tokens.token_ids
    )
    expected = open_teacher(teacher, own, asked.task, 32).scores(direct.train.tokens.token_ids)
    np.testing.assert_array_equal(found, expected)
    assert (found.argmax(1) == asked.train.tokens.labels).mean() > 0.7
    run(workplace, *distil[:3], str(workplace / "bort"), output="none", code=2)
    assert "the teacher must be a classifier with 2 outputs" in capsys.readouterr().err


def test_weights_that_are_no_numbers_are_refused_as_such(workplace, capsys):
    model = bort.load(workplace / "bort")
    model.word_embed[0].weight.data()[3] = float("nan")
    bort.save(model, workplace / "nan", bort.load_tokenizer(workplace / "tokenizer"))
    run(workplace, "--model", str(workplace / "nan"), output="from-nan", code=2)
    error = capsys.readouterr().err
    assert "NaN or infinity" in error and "--lr" not in error


def test_the_length_as_trained_reaches_export_and_prediction(workplace):
    from bort.export import command
    from bort.predict.predictor import Predictor

    run(workplace, "--epochs", "1", "--max-steps", "2", "--max-length", "12", output="short")
    run(
        workplace,
        "--predict-only",
        "--model",
        str(workplace / "short" / "model"),
        "--max-length",
        "10",
        output="shorter",
    )
    for name, length in (("short", 12), ("shorter", 10)):
        folder = workplace / name / "model"
        assert json.loads((folder / "config.json").read_text())["training"]["max_length"] == length
        assert Predictor(folder).max_length == length
        assert command._open(command._parser().parse_args([str(folder), "x.onnx"]))[3] == length
    body = workplace / "bort"  # never fine-tuned: all that the model takes
    assert command._open(command._parser().parse_args([str(body), "x.onnx"]))[3] == 32


def test_the_help_shows_all_options_in_groups_with_examples(capsys):
    with pytest.raises(SystemExit):
        run_finetune.main(["--help"])
    text = capsys.readouterr().out
    for word in (
        "what:",
        "training:",
        "agora:",
        "dynabert:",
        "--evaluation-fraction",
        "--lr",
        "examples:",
        "--algorithm distill --teacher runs/rte-teacher/model --seeds 0,1,2",
    ):
        assert word in text
    assert text.index("--resume ") < text.index("examples:")


def test_the_batch_is_the_papers_unless_it_is_given():
    for task, given, expected in (
        ("SST-2", [], 16),
        ("MNLI", [], 16),
        ("QNLI", [], 16),
        ("QQP", [], 16),
        ("RTE", [], 8),
        ("SST-2", ["--batch-size", "4"], 4),
    ):
        args = run_finetune.arguments(
            ["--task", task, "--data-dir", "d", "--model", "m", "--output", "o", *given]
        )
        assert args.given == (["batch_size"] if given else [])
        (settings,) = run_finetune.settings_of(args).values()
        assert settings.batch_size == expected and settings.lr == 3e-5


def test_an_exchanged_model_ends_a_resumed_run(workplace, capsys):
    import shutil

    shutil.copytree(workplace / "bort", workplace / "body")
    arguments = ("--epochs", "1", "--max-steps", "2", "--model", str(workplace / "body"))
    run(workplace, *arguments, output="exchanged")
    model = bort.load(workplace / "body")
    model.decoder[0].bias.set_data(model.decoder[0].bias.data() + 1)
    bort.save(model, workplace / "body", bort.load_tokenizer(workplace / "body"))
    run(workplace, *arguments, "--resume", output="exchanged", code=2)
    assert "models was" in capsys.readouterr().err


def test_bad_input_is_exit_code_2_and_saves_nothing_over(workplace, capsys):
    run(workplace, "--epochs", "1", output="first")
    kept = (workplace / "first" / "results.json").read_text()
    for extra, message in (((), "--resume"), (("--resume", "--lr", "1e-3"), "lr was")):
        assert run(workplace, *extra, output="first", code=2) == json.loads(kept)
        assert message in capsys.readouterr().err
    for extra, message in (
        (("--task", "nonsense"), "unknown task"),
        (("--data-dir", "/nowhere"), "/nowhere"),
        (("--model", "/nowhere"), "/nowhere"),
        (("--seeds", "0,x"), "--seeds"),
        (("--seeds", "1,1"), "twice"),
        (("--algorithm", "distill"), "needs --teacher"),
        (("--teacher", "x"), "takes no --teacher"),
        (("--max-length", "999"), "--max-length"),
        (("--lr", "0"), "rate"),
        (("--epochs", "0"), "--epochs"),
        (("--predict-only",), "--predict-only"),
        (("--task", "AX"), "MNLI"),
        (("--warmup", "2"), "warmup"),
    ):
        run(workplace, *extra, output="refused", code=2)
        assert message in capsys.readouterr().err, extra
    assert not (workplace / "refused").exists()
    with pytest.raises(SystemExit) as caught:
        run_finetune.main(["--nonsense"])
    assert caught.value.code == 2


def test_resuming_an_ended_run_changes_nothing(workplace):
    first = run(workplace, "--epochs", "1", output="ended")
    assert run(workplace, "--epochs", "1", "--resume", output="ended") == first


def test_a_delivered_folder_holds_no_leftovers_and_lost_curves_come_back(workplace):
    arguments = ("--epochs", "1", "--max-steps", "2", "--seeds", "0,1")
    best = run(workplace, *arguments, output="delivered")["best_seed"]
    folder = workplace / "delivered" / f"seed-{best}"
    left = [folder / "model" / name for name in (".model.params.new", ".config.json.abcd1234.tmp")]
    left.append(workplace / "delivered" / "model" / ".config.json.abcd1234.tmp")
    for path in left:
        path.write_text("half")
    (folder / "curves.png").unlink()
    run(workplace, *arguments, "--resume", output="delivered")
    assert not any(path.exists() for path in left) and (folder / "curves.png").is_file()
    names = [
        sorted(path.name for path in place.iterdir())
        for place in (folder / "model", workplace / "delivered" / "model")
    ]
    assert names[0] == names[1]


def command_line(folder, output, *extra):
    return [
        sys.executable,
        str(ROOT / "run_finetune.py"),
        "--task",
        "SST-2",
        "--data-dir",
        str(folder / "SST-2"),
        "--model",
        str(folder / "bort"),
        "--output",
        str(folder / output),
        "--lr",
        "5e-3",
        "--epochs",
        "3",
        *extra,
    ]


def test_killed_with_signal_9_and_resumed_it_ends_the_same(workplace):
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_WAIT_POLICY="passive")
    expected = run(workplace, "--epochs", "3", "--batch-size", "4", output="uncut")
    process = subprocess.Popen(
        command_line(workplace, "cut", "--batch-size", "4", "--checkpoint-interval", "3"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    checkpoints = workplace / "cut" / "checkpoints"
    while time.monotonic() < deadline and process.poll() is None:
        if checkpoints.is_dir() and any(path.name.startswith("step-") for path in checkpoints.iterdir()):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    process.wait()
    resumed = run(
        workplace,
        "--epochs",
        "3",
        "--batch-size",
        "4",
        "--checkpoint-interval",
        "3",
        "--resume",
        output="cut",
    )
    assert resumed["history"] == expected["history"] and resumed["metrics"] == expected["metrics"]


@needs_horovod
def test_two_ranks_equal_one_with_twice_the_batch(workplace):
    environment = two_rank_environment()
    options = ("--dropout", "0", "--epochs", "2")
    one = run(workplace, *options, "--batch-size", "8", output="one-rank")
    command = ["horovodrun", "-np", "2", *command_line(workplace, "two-ranks", *options, "--batch-size", "4")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    two = json.loads((workplace / "two-ranks" / "results.json").read_text())
    assert two["ranks"] == 2
    for ours, theirs in zip(one["history"], two["history"]):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    first, second = (
        parameter_arrays(bort.load(workplace / name / "model")) for name in ("one-rank", "two-ranks")
    )
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, atol=2e-3, err_msg=name)
