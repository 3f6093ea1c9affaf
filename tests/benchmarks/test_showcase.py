"""The steps of the showcase: commands that the runners understand, their states, what a failure leaves."""

from __future__ import annotations

import json
import sys

import pytest

import run_finetune
import run_pretrain
import run_search
from benchmarks import showcase
from benchmarks.harness import showcase_plots, showcase_tables
from benchmarks.harness.showcase_plan import Plan, Step
from bort.errors import BortError
from tests.tiny_tasks import make_task

RUNNERS = {"run_pretrain.py": run_pretrain, "run_search.py": run_search, "run_finetune.py": run_finetune}


@pytest.fixture()
def line(tmp_path):
    """A command line over the data of two tasks."""
    make_task("SST-2", tmp_path / "data" / "glue" / "SST-2", rows=6)
    make_task("CB", tmp_path / "data" / "superglue" / "CB", rows=6)
    (tmp_path / "data" / "text").mkdir()
    (tmp_path / "data" / "text" / "a.txt").write_text("Some text.\n")
    return ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "run")]


def test_every_step_is_a_command_that_the_runners_read(line):
    plan = Plan(showcase.arguments([*line, "--scale", "0.01"]))
    steps = plan.steps()
    assert plan.tasks == ["SST-2", "CB"] and len({step.name for step in steps}) == len(steps)
    for step in steps:
        script, *rest = step.command
        if script in RUNNERS:
            if "--train" in rest and step.name == "mlm-head":  # an option of the runner of its own
                place = rest.index("--train")
                rest = rest[:place] + rest[place + 2 :]
            args = RUNNERS[script].arguments(RUNNERS[script].__doc__, [*rest, "--resume"])
            assert str(step.ends).startswith(args.output)
    names = [step.name for step in steps]
    assert names.index("teacher") < names.index("search-3") < names.index("kd-0") < names.index("SST-2-full")
    fine = next(step.command for step in steps if step.name == "SST-2-half-budget")
    assert fine[-3] != "{half}" and "{half}" not in fine


def test_the_student_is_the_one_the_search_found(line):
    plan = Plan(showcase.arguments(line))
    assert plan.student_tuple() == "FOUND"
    plan.found.parent.mkdir(parents=True)
    found = {"architecture": {"depth": 2, "heads": 4, "hidden": 128, "intermediate": 256}}
    plan.found.write_text(json.dumps(found))
    assert plan.student_tuple() == "2,4,128,256"
    assert Plan(showcase.arguments([*line, "--student", "3,4,128,128"])).student_tuple() == "3,4,128,128"


def test_a_step_that_ended_is_left_alone_and_a_failure_is_shown(tmp_path):
    ends = tmp_path / "one" / "end.txt"
    code = f"import pathlib; p = pathlib.Path({str(ends)!r}); p.parent.mkdir(); p.write_text('x')"
    step = Step("one", "a step", ("-c", code), ends, resumable=False)
    run = showcase.Run(tmp_path)
    assert run.state(step) == "to do"
    run.execute(lambda: [step], ["one"])
    run = showcase.Run(tmp_path)
    assert run.state(step) == "done" and run.table([step])[0]["peak MiB"] > 0
    assert run.state(step._replace(command=("-c", "pass"))) == "cut off"
    ends.unlink()
    assert run.state(step) == "cut off"
    bad = Step("two", "a step", ("-c", "import sys; sys.exit('no luck')"), tmp_path / "two" / "x", False)
    third = tmp_path / "three" / "end.txt"
    other = Step("three", "a step", ("-c", code.replace("one", "three")), third, False)
    needs = other._replace(name="four", after=("two",))
    with pytest.raises(BortError, match="step two failed(.|\n)*no luck"):
        run.execute(lambda: [bad, other, needs], ["two", "three", "four"])
    assert (run.state(other), run.state(needs)) == ("done", "to do")
    assert showcase.Run(tmp_path).state(bad) == "cut off"


def test_steps_run_side_by_side_in_their_order(tmp_path):
    log = tmp_path / "log"

    def step(name, *after, alone=False):
        code = (
            f"import pathlib, time; o = open({str(log)!r}, 'a'); print('+{name}', file=o, flush=True); "
            f"time.sleep(0.3); print('-{name}', file=o, flush=True); "
            f"pathlib.Path({str(tmp_path / name)!r}).write_text('x')"
        )
        return Step(name, name, ("-c", code), tmp_path / name, False, after, alone)

    steps = [step("a-1"), step("b", "a-"), step("c", "a-1"), step("last", alone=True), step("unasked")]
    showcase.Run(tmp_path).execute(lambda: steps, ["a-1", "b", "c", "last"], jobs=2)
    seen = log.read_text().split()
    at = {event: place for place, event in enumerate(seen)}
    assert at["-a-1"] < min(at["+b"], at["+c"]) and max(at["+b"], at["+c"]) < min(at["-b"], at["-c"])
    assert seen[-2:] == ["+last", "-last"] or seen[:2] == ["+last", "-last"]
    assert "unasked" not in str(seen)


def test_tables_of_a_run_with_nothing_in_it_are_empty(tmp_path):
    tables, notes = showcase_tables.tables_of(tmp_path, ["SST-2"], {"SST-2": str(tmp_path)})
    assert tables == {} and notes == []


def test_a_teacher_that_does_not_know_the_task_is_told_from_one_that_does():
    assert showcase_tables.knows({"accuracy": 0.86}, {"accuracy": 0.5})
    assert not showcase_tables.knows({"accuracy": 0.6}, {"accuracy": 0.5})
    assert not showcase_tables.knows({"mcc": 0.3, "accuracy": 0.7}, {"mcc": 0.0, "accuracy": 0.69})


def test_distillation_beside_mlm(tmp_path):
    for method, curve in (("kd", (0.2, 0.3, 0.4)), ("mlm", (0.1, 0.2, 0.3))):
        folder = tmp_path / f"{method}-0"
        folder.mkdir()
        rows = [{"step": 10 * (n + 1), "eval_mlm_accuracy": value} for n, value in enumerate(curve)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "results.json").write_text(json.dumps({"eval_mlm_loss": 3.0, "seconds": 36.0}))
    mlm, kd = showcase_tables.table_3(tmp_path)
    assert (mlm["step of 30.0%"], kd["step of 30.0%"]) == (30, 20)
    assert kd["best MLM accuracy (%)"] == 40 and mlm["hours"] == pytest.approx(0.01)
    assert (
        "step 20 instead of 30"
        in showcase_tables.headline([mlm, kd], {"Tables 4 and 5, dev sets": []})[0]["here"]
    )


def test_list_runs_nothing(line, capsys, monkeypatch):
    monkeypatch.setattr(showcase.Run, "execute", lambda self, step: sys.exit("ran"))
    assert showcase.main([*line, "--list"]) == 0
    assert "| SST-2-scarce |" in capsys.readouterr().out
    with pytest.raises(BortError, match="the steps are"):
        showcase.main([*line, "--only", "nothing"])


def test_pictures_of_what_there_is(tmp_path):
    pytest.importorskip("matplotlib")
    assert showcase_plots.plot_all(tmp_path, {}, tmp_path, "x") == []
    rows = [
        {"⟨D,A,H,I⟩": name, "parameters (M)": size, "rank, n = 3": rank, "rank, n = 30": 3 - rank}
        for rank, (name, size) in enumerate((("a", 1.0), ("b", 2.0)), start=1)
    ]
    rows = [{**row, "error, n = 3": 2.0, "error, n = 30": row["parameters (M)"]} for row in rows]
    lines = [
        {"task": "CB", "metric": "accuracy", "method": method, "median": 50.0, "all": "40.0 60.0"}
        for method in showcase_plots.METHODS
    ]
    for method in ("kd", "mlm"):
        (tmp_path / f"{method}-0").mkdir()
        row = {"step": 1, "seconds": 2.0, "eval_mlm_accuracy": 0.1}
        (tmp_path / f"{method}-0" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        (tmp_path / f"{method}-0" / "results.json").write_text("{}")
    tables = {"Search: ranks": rows, "Agora with scarce data": lines}
    drawn = showcase_plots.plot_all(tmp_path, tables, tmp_path, "x")
    assert drawn == ["x-search.png", "x-distillation.png", "x-tasks.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in drawn)
