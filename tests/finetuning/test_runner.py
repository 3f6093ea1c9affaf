"""``run_finetune.py`` on tiny files: what a run leaves behind, and what goes from it to later commands."""

from __future__ import annotations

import json

import numpy as np

import bort
from bort.finetuning.task_data import read_task
from bort.finetuning.teacher import open_teacher
from bort.models import Bert, initialize
from bort.text.tokenizers.loading import load_tokenizer, train_sentencepiece
from tests.finetuning.common import run
from tests.tiny import TINY


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
    """--tokenizer is the student's; the teacher's is beside it, and may have more rows than ids."""
    other = train_sentencepiece((workplace / "SST-2" / "train.tsv").read_text().splitlines(), 45)
    other.save(workplace / "other" / "tokenizer")
    model = Bert(TINY, other.vocab_size + 8, max_length=32)
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
