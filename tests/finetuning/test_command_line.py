"""The options of ``run_finetune.py``: help, defaults, and input that is refused."""

from __future__ import annotations

import json
import logging
import shutil

import pytest

import bort
import run_finetune
from bort.models import Classifier
from tests.finetuning.common import run


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
            run_finetune.__doc__,
            ["--task", task, "--data-dir", "d", "--model", "m", "--output", "o", *given]
        )
        assert args.given == (["batch_size"] if given else [])
        (settings,) = run_finetune.settings_of(args).values()
        assert settings.batch_size == expected and settings.lr == 3e-5


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
        (("--algorithm", "dynabert", "--teacher", "x", "--dtype", "float16"), "float32 or bfloat16"),
        (("--algorithm", "dynabert", "--teacher", "x", "--labels", "a,b"), "has to name its classes"),
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


def test_weights_that_are_no_numbers_are_refused_as_such(workplace, capsys):
    model = bort.load(workplace / "bort")
    model.word_embed[0].weight.data()[3] = float("nan")
    bort.save(model, workplace / "nan", bort.load_tokenizer(workplace / "tokenizer"))
    run(workplace, "--model", str(workplace / "nan"), output="from-nan", code=2)
    error = capsys.readouterr().err
    assert "NaN or infinity" in error and "--lr" not in error


def test_rows_that_are_bad_or_cut_are_warnings_like_all_others(workplace, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest has its own there, a command's process none
    folder = tmp_path / "SST-2"
    shutil.copytree(workplace / "SST-2", folder)
    with open(folder / "dev.tsv", "a") as stream:
        stream.write("no label\n")
    shutil.copytree(workplace / "bort", tmp_path / "bort")
    shutil.copytree(workplace / "bort", tmp_path / "classifier")
    model = Classifier(bort.load(tmp_path / "bort"), 2)
    model.initialize_head(0)
    bort.save(model, tmp_path / "classifier", bort.load_tokenizer(tmp_path / "bort"))
    run(tmp_path, "--predict-only", "--model", str(tmp_path / "classifier"), "--max-length", "8")
    lines = capsys.readouterr().err.splitlines()
    for end in ("the row is skipped", "1 of 41 rows are bad and were skipped", "were cut to 8 tokens"):
        assert any(line.startswith("WARNING: ") and line.endswith(end) for line in lines), end
