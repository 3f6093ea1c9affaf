"""The DynaBERT benchmark: settings of tasks, compute by hand, and all parts on tiny networks."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import run_finetune
import run_search
from benchmarks import dynabert
from benchmarks.harness import dynabert_runs, dynabert_tables
from benchmarks.harness.dynabert_runs import TaskSettings
from bort.architecture import Architecture
from bort.dynabert import __main__ as commands
from bort.dynabert.grid import Multipliers
from bort.errors import BortError
from tests.tasks.test_end_to_end import vocabulary  # noqa: F401  a fixture
from tests.tiny_tasks import make_task

FULL = Architecture(4, 4, 16, 12)
HALF = Multipliers(0.5, 0.5)


def test_settings_of_one_task():
    changed = TaskSettings(lr=1e-3).changed("limit=1000,max-length=128, dropout=0,augment=mlm+noise")
    assert changed == replace(
        TaskSettings(lr=1e-3), limit=1000, max_length=128, dropout=0.0, augment="mlm+noise"
    )
    for text, message in (("limits=3", "limits"), ("limit", "NAME=VALUE"), ("limit=1.5", "no int")):
        with pytest.raises(BortError, match=message):
            TaskSettings().changed(text)


def passes(stage, one, forward, flops, role="student"):
    row = {"stage": stage, "role": role, "width": one.width, "depth": one.depth, "flops": flops}
    return {**row, "forward": forward, "backward": forward, "sequences": 8 * forward}


def test_compute_by_hand():
    whole, wide = Multipliers(), Multipliers(1, 0.5)
    results = {
        "rows": 40,
        "history": [{"stage": "width", "step": 10}, {"stage": "depth", "step": 20}],
        "passes": [
            passes("width", whole, 10, 2400),  # 240 a step of 8 sequences: 10 a sequence's forward pass
            passes("depth", whole, 20, 4800),
            passes("depth", wide, 5, 600),  # drawn 5 times: 120 a step
            passes("depth", HALF, 20, 1200),
            passes("width", whole, 10, 800, "teacher"),
        ],
    }
    found = dynabert_tables.cost(results, [whole, wide, HALF], FULL)
    assert found.adaptive == 2400 + 4800 + 600 + 1200 + 800
    # Alone: every step of its stages, and the teacher's 40 answers of 10 FLOPs.
    assert found.each == {(1, 1): 7200 + 400, (1, 0.5): 20 * 120 + 400, (0.5, 0.5): 1200 + 400}
    assert found.alone == sum(found.each.values())
    with pytest.raises(BortError, match="no record of its passes"):
        dynabert_tables.cost({**results, "passes": None}, [whole], FULL)


def test_the_pareto_front_and_steps():
    points = [(3.0, 90.0), (1.0, 80.0), (2.0, 79.0), (1.0, 70.0), (4.0, 90.0)]
    assert dynabert_tables.pareto(points) == [(1.0, 80.0), (3.0, 90.0)]
    results = {"history": [{"stage": "width", "step": 5}, {"stage": "width", "step": 9},
                           {"stage": "depth", "step": 7}]}  # fmt: skip
    assert dynabert_tables.steps_of(results, Multipliers(0.5, 1)) == 16
    assert dynabert_tables.steps_of(results, HALF) == 7
    assert dynabert_tables.percent([None, 0.5, 0.25]) == 37.5 and dynabert_tables.percent([None]) is None


def test_the_aims_in_words():
    rows = [
        {"width": 1, "depth": 1, "ours": 88.0, "cut": 88.6, "alone": 87.0},
        {"width": 0.5, "depth": 1, "ours": 86.7, "cut": 80.0, "alone": 86.7},
        {"width": 0.5, "depth": 0.5, "ours": 50.0, "cut": 51.0, "alone": None},
    ]
    assert dynabert_tables.aims(rows) == (
        "full size -0.60 points from the teacher (aim: -0.5 at most); half width -1.90 points from the "
        "teacher (aim: -2 at most); 1 of 2 above cut (aim: all); 1 of 2 above alone (aim: most)"
    )
    assert dynabert_tables.aims([{"width": 1, "depth": 1, "ours": 88.0}]) == ""


@pytest.fixture(scope="module")
def prepared(vocabulary, tmp_path_factory):  # noqa: F811
    """Data and a teacher."""
    base = tmp_path_factory.mktemp("dynabert-benchmark")
    data = make_task("SST-2", base / "data" / "glue" / "SST-2", rows=24)
    (base / "data" / "text").mkdir()
    (base / "data" / "text" / "small.txt").write_text("The crew of a small boat.\n\n" * 40)
    run_finetune.main(
        [
            *("--task", "SST-2", "--data-dir", str(data), "--max-length", "48", "--model"),
            *("random:4,4,16,12", "--tokenizer", str(vocabulary), "--output", str(base / "teacher")),
            *("--max-steps", "3"),
        ]
    )
    return base


def test_every_part_in_miniature(prepared, tmp_path, monkeypatch, capsys):
    called = []

    def in_this_process(self, command):
        called.append(command)
        runner = {"run_finetune.py": run_finetune.main, "run_search.py": run_search.main, "-m": commands.main}
        runner[command[0]](list(command[2:] if command[0] == "-m" else command[1:]))

    monkeypatch.setattr(dynabert_runs.Bench, "call", in_this_process)
    monkeypatch.setattr(
        dynabert_runs,
        "SEARCH",
        ("--steps", "1", "--batch-size", "2", "--speed-lines", "2", "--max-length", "16", "--epsilon", "1"),
    )
    options = [
        *("--data", str(prepared / "data"), "--teacher", f"SST-2={prepared / 'teacher' / 'model'}"),
        *("--output", str(tmp_path / "runs"), "--results", str(tmp_path), "--seeds", "0", "--sampled", "1"),
        *("--widths", "1,0.5", "--depths", "1,0.5", "--alone-networks", "0.5/0.5", "--augment", "noise"),
        *("--batch-size", "8", "--trials", "1", "--keep-fraction", "0.25", "--budgets", "flops"),
        *("--setting", "SST-2:max_length=48,lr=1e-3,dropout=0", "--parts", "main,cut,alone,fptas"),
    ]
    assert dynabert.main(options) == 0
    record = json.loads((tmp_path / "dynabert.json").read_text())
    table, searches = record["rows"].values()
    assert (tmp_path / "dynabert.png").is_file() and record["images"] == ["dynabert.png"]
    assert [(row["width"], row["depth"]) for row in table] == [(1, 1), (0.5, 1), (1, 0.5), (0.5, 0.5)]
    assert [row["alone"] is None for row in table] == [True, True, True, False]
    assert all(row["ms"] > 0 and 0 <= row["ours"] <= 100 for row in table)
    assert searches[0]["choice of"] == "the supernet search" and len(searches) == 3
    assert len({row["⟨D,A,H,I⟩"] for row in searches[1:]}) == 1
    assert searches[0]["training PFLOP"] > 0.5 * searches[1]["training PFLOP"]
    main = next(command for command in called if "dynabert" in command and "none" not in command)
    assert "--dropout" in main and "1e-3" not in main and "0.001" in main
    assert "times those of training every sub-network alone" in " ".join(record["notes"])
    # Everything is reused; other options are refused before anything is overwritten.
    count = len(called)
    assert dynabert.main([*options, "--no-record"]) == 0 and len(called) == count
    with pytest.raises(BortError, match="another command"):
        dynabert.main([*options, "--sampled", "2"])
    capsys.readouterr()


@pytest.mark.parametrize(
    "more, message",
    [
        (["--parts", "main,none"], "--parts"),
        (["--budgets", "hours"], "--budgets"),
        (["--seeds", "a"], "--seeds"),
        (["--alone-networks", "0.3/1"], "no WIDTH/DEPTH among"),
        (["--setting", "RTE:limit=3"], "no --teacher is given for 'RTE'"),
        (["--teacher", "MNLI=x"], "expected TASK=FOLDER"),
    ],
)
def test_what_is_refused(prepared, tmp_path, more, message):
    options = ["--data", str(prepared / "data"), "--teacher", f"SST-2={prepared / 'teacher' / 'model'}"]
    with pytest.raises(BortError, match=message):
        dynabert.main([*options, "--output", str(tmp_path / "runs"), *more])
    assert not (tmp_path / "runs").exists()
