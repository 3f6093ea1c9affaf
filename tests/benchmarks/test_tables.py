"""Tables 4 to 6 on tiny data: what is run, what is not and why, and what the estimate adds up."""

from __future__ import annotations

import json

import pytest

from benchmarks import tables
from benchmarks.harness import task_costs
from bort.architecture import Architecture
from bort.errors import BortError
from bort.finetuning.hyperparameters import convergent_set
from bort.paper import TABLE_4, TABLE_5, TABLE_6
from bort.tasks.registry import get_task
from bort.text.tokenizers.loading import train_sentencepiece
from tests.tiny_tasks import BAD, GOOD, WORDS, make_task

FOLDERS = {"MNLI-m": "MNLI", "AX": "diagnostic", "SuperGLUE-RTE": "RTE"}
QUICK = ["--", "--max-steps", "1", "--max-length", "32"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data of some tasks of every suite, and a tokenizer."""
    folder = tmp_path_factory.mktemp("tables")
    words = [*WORDS, *GOOD, *BAD, *"The was because so what it came by .".split()]
    train_sentencepiece([" ".join(words)] * 20, 120).save(folder / "tokenizer")
    for suite, names in (
        ("glue", ("MRPC", "MNLI-m", "AX", "STS-B")),
        ("superglue", ("CB", "SuperGLUE-RTE", "AX-b")),
        ("race", ("RACE",)),
    ):
        for name in names:
            make_task(name, folder / suite / FOLDERS.get(name, name), rows=6)
    return folder


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr("bort.finetuning.results.plot_curves", lambda *args, **settings: None)


def run(suite, place, *arguments):
    """The rows of a table by task, and the notes of its record."""
    assert (
        tables.main(
            [
                suite,
                "--model",
                "random:1,2,8,8",
                "--tokenizer",
                str(place / "tokenizer"),
                "--data",
                str(place),
                "--output",
                str(place / "runs" / suite),
                "--folder",
                str(place / "results"),
                *arguments,
            ]
        )
        == 0
    )
    record = json.loads(
        (place / "results" / f"{suite}{'-cost' * ('--estimate' in arguments)}.json").read_text()
    )
    return {row["task"]: row for row in record["rows"]}, record


def test_the_paper_and_ours_side_by_side(place):
    rows, record = run("glue", place, *QUICK, "--seeds", "0,1")
    assert list(rows) == list(TABLE_4) and record["settings"]["run"] == 4
    assert rows["MRPC"]["metric"] == "f1/accuracy" and rows["MRPC"]["Bort (paper)"] == "94.1/92.3"
    results = json.loads((place / "runs" / "glue" / "MRPC" / "results.json").read_text())
    for column, kind in (("ours", "median"), ("maximum", "maximum")):
        scores = results[kind]["dev"]
        assert rows["MRPC"][column] == f"{100 * scores['f1']:.1f}/{100 * scores['accuracy']:.1f}"
    assert "2 seeds" in rows["MRPC"]["how"] and rows["MRPC"]["on"] == "dev"
    assert rows["STS-B"]["constant"] == "0.0/0.0"
    for name in ("CoLA", "QQP", "QNLI"):
        assert rows[name]["ours"] == "not run" and rows[name]["how"] == "no train data"
    assert rows["AX"]["ours"] is None and "submission file" in rows["AX"]["how"]
    assert list((place / "runs" / "glue" / "MNLI-m").rglob("AX.tsv"))
    assert "--max-steps 1" in record["notes"][1]


def test_companion_sets_and_labelled_test_sets(place):
    rows, _ = run("superglue", place, *QUICK)
    assert list(rows) == list(TABLE_5)
    scores = json.loads((place / "runs" / "superglue" / "SuperGLUE-RTE" / "results.json").read_text())[
        "metrics"
    ]
    assert rows["AX-b"]["ours"] == f"{100 * scores['AX-b/test']['mcc']:.1f}" and rows["AX-b"]["on"] == "test"
    assert rows["AX-g"]["ours"] == "not run" and rows["AX-g"]["how"] == "no test data"
    assert rows["CB"]["metric"] == "macro_f1/accuracy" and rows["CB"]["maximum"] is None
    rows, _ = run("race", place, *QUICK)
    assert list(rows) == list(TABLE_6) and {row["on"] for row in rows.values()} == {"test"}


def test_the_paper_sets_are_used_and_a_second_run_repeats_nothing(place, capsys):
    run("superglue", place, "--tasks", "CB", *QUICK)
    first = capsys.readouterr().out
    chosen = convergent_set("CB")
    settings = json.loads((place / "runs" / "superglue" / "CB" / "results.json").read_text())["settings"]
    assert (
        settings["lr"],
        settings["weight_decay"],
        settings["warmup"],
        settings["seed"],
        settings["batch_size"],
    ) == (*chosen.theta, chosen.batch_size)
    before = (place / "runs" / "superglue" / "CB" / "results.json").read_bytes()
    run("superglue", place, "--tasks", "CB", *QUICK)
    assert "has ended already" in capsys.readouterr().out + first
    assert (place / "runs" / "superglue" / "CB" / "results.json").read_bytes() == before


def test_with_teachers_it_is_agora(place, tmp_path, monkeypatch):
    import run_finetune

    asked = []
    monkeypatch.setattr(run_finetune, "main", lambda command: asked.append(command) or 1)
    base = [
        "glue",
        "--model",
        "random:1,2,8,8",
        "--data",
        str(place / "glue"),
        "--tasks",
        "MRPC",
        "--folder",
        str(tmp_path),
        "--teachers",
        str(tmp_path / "teachers"),
    ]
    with pytest.raises(BortError, match="no teacher for MRPC"):
        tables.main(base)
    (tmp_path / "teachers" / "MRPC" / "model").mkdir(parents=True)
    for extra, expected in (([], "--chs"), (["--", "--grid", "small"], "--grid")):
        with pytest.raises(BortError, match="the run failed"):
            tables.main([*base, *extra])
        command = asked.pop()
        assert command[command.index("--teacher") + 1] == str(tmp_path / "teachers" / "MRPC" / "model")
        assert "agora" in command and expected in command and ("--chs" in command) == (not extra)
    for tasks, message in (("RACE-M", "not in this table"), ("QQP", "no training data")):
        with pytest.raises(BortError, match=message):
            tables.main([*base[:-2], "--tasks", tasks])


def test_the_estimate_multiplies_what_was_measured(place, monkeypatch):
    architecture = Architecture(4, 8, 1024, 768)
    speeds = {32: 100.0, 128: 200.0, 512: 400.0}
    assert task_costs.seconds_per_example(speeds, 10) == 32 / 100
    assert task_costs.seconds_per_example(speeds, 80) == pytest.approx((32 / 100 + 128 / 200) / 2)
    rows = task_costs.rows_of(["CoLA", "AX", "WNLI"], "nowhere", speeds, architecture, None, 512)
    assert [row["task"] for row in rows] == ["CoLA", "WNLI", "together"] and rows[0]["from"] == "estimate"
    hours = 8551 * 32 / 100 / 3600
    assert rows[0]["hours per epoch"] == pytest.approx(hours, abs=1e-3)
    assert rows[0]["Agora (h)"] == pytest.approx(18 * hours, abs=1e-3)
    flops = 8551 * (54 * architecture.flops(11) + 11 * task_costs.TEACHER.flops(11))
    assert rows[0]["Agora and teacher (PFLOP)"] == pytest.approx(flops / 1e15, abs=1e-3)
    assert rows[2]["Agora (h)"] == pytest.approx(rows[0]["Agora (h)"] + rows[1]["Agora (h)"], abs=2e-3)
    monkeypatch.setattr(task_costs, "LENGTHS", (8, 16))
    found, record = run("race", place, "--estimate")
    assert found["RACE-M"]["from"] == "data" and found["RACE-M"]["training examples"] == 50800
    assert "at 16" in record["settings"]["tokens/s"] and record["title"] == "Cost of Table 6: RACE"


def test_every_row_of_the_tables_is_a_task_with_the_papers_metrics():
    for table in (TABLE_4, TABLE_5, TABLE_6):
        for name, columns in table.items():
            task = get_task(name)
            assert {len(cell) for cell in columns.values()} == {len(columns["Bort"])} and len(
                task.metrics
            ) >= len(columns["Bort"])
            assert task.model_task in table or name in task_costs.TOKENS
