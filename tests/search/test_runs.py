"""Whole searches: shared, killed and resumed."""
from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bort.architecture import Architecture, parse
from bort.backend import distributed
from bort.errors import run_command
from bort.json_files import read_json, read_jsonl
from bort.paper import TABLE_1
from tests.search.tiny_search import (
    SPACE,
    TEACHER,
    TINY_RUN,
    process,
    results,
    run,
)
from tests.tiny import ROOT, needs_horovod, two_rank_environment

pytestmark = pytest.mark.filterwarnings("ignore:the teacher .* has no weights")


def test_a_run_leaves_its_files_and_is_not_repeated(alone, corpus, capsys):
    rows = read_jsonl(alone / "candidates.jsonl")
    assert len(rows) == 8 and len({row["name"] for row in rows}) == 8
    limit = next(row for row in read_json(alone / "space.json")["tuples"] if row["name"] == TEACHER)
    for row in rows:
        assert row["W"] == pytest.approx((limit["size"] - row["size"]) * (limit["speed"] - row["speed"])
                                         / (limit["size"] * limit["speed"] * row["ce"]))
        assert row["size"] == row["parameters"] and row["speed"] == row["flops"] and len(row["losses"]) == 3
    best = max(rows, key=lambda row: row["W"])
    assert parse(str(alone / "best.json")) == Architecture.from_dict(best["architecture"])
    assert read_json(alone / "best.json")["W"] == best["W"] and len(read_json(alone
                                                                              / "best.json")["top"]) == 3
    with open(alone / "table1.csv", encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["rank"] for row in table[:3]] == ["1", "2", "3"]
    text = (alone / "table1.md").read_text(encoding="utf-8")
    assert len(table) == 3 and "⟨4, 8, 1024, 768⟩" not in text and "paper's W" not in text
    assert f"Not in this search space: {', '.join(row.name for row in TABLE_1[:4])}." in text
    assert (alone / "search.png").read_bytes()[:4] == b"\x89PNG"

    before = (alone / "candidates.jsonl").read_bytes()
    assert run(alone, corpus, "--resume") == 0
    assert (alone / "candidates.jsonl").read_bytes() == before
    assert run(alone, corpus) == 2
    assert "--resume" in capsys.readouterr().err
    assert run(alone, corpus, "--resume", "--lr", "0.4") == 2
    assert "lr was 0.5 and is 0.4" in capsys.readouterr().err
    assert (alone / "candidates.jsonl").read_bytes() == before


def wait_for_rows(folder: Path, count: int, running: subprocess.Popen) -> None:
    path = folder / "candidates.jsonl"
    while not (path.is_file() and path.read_bytes().count(b"\n") >= count):
        assert running.poll() is None, running.stderr.read().decode()
        time.sleep(0.005)


def test_a_killed_run_goes_on_to_the_same_result(alone, corpus, tmp_path):
    folder = tmp_path / "run"
    first = process(folder, corpus)
    wait_for_rows(folder, 2, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    finished = read_jsonl(folder / "candidates.jsonl")
    with open(folder / "candidates.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"name": "1,2,8,')  # killed in the middle of a line
    assert 2 <= len(finished) < 8
    second = process(folder, corpus, "--resume")
    assert second.wait() == 0, second.stderr.read().decode()
    assert results(folder) == results(alone)
    assert read_jsonl(folder / "candidates.jsonl")[:len(finished)] == finished
    assert read_json(folder / "best.json") == read_json(alone / "best.json")


def test_processes_share_a_run_and_outlive_one_another(alone, corpus, tmp_path):
    """Two processes join one folder; the one that holds a candidate is killed, the other does that candidate
    too."""
    folder = tmp_path / "run"
    running = [process(folder, corpus, "--resume") for _ in range(2)]
    wait_for_rows(folder, 2, running[0])
    running[0].send_signal(signal.SIGKILL)
    running[0].wait()
    assert running[1].wait() == 0, running[1].stderr.read().decode()
    assert results(folder) == results(alone)
    assert read_json(folder / "best.json") == read_json(alone / "best.json")


@needs_horovod
def test_ranks_share_a_run(alone, corpus, tmp_path):
    folder = tmp_path / "run"
    command = ["horovodrun", "-np", "2", sys.executable, str(ROOT / "run_search.py"), "--corpus", str(corpus),
               "--output", str(folder), *TINY_RUN]
    done = subprocess.run(command, env=dict(two_rank_environment(), OMP_NUM_THREADS="1"),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    assert done.returncode == 0, done.stdout.decode()
    assert results(folder) == results(alone)
    assert read_json(folder / "best.json") == read_json(alone / "best.json")


@needs_horovod
def test_a_rank_that_dies_ends_the_launch_and_resume_goes_on(alone, corpus, tmp_path):
    folder = tmp_path / "run"
    command = ["horovodrun", "-np", "2", sys.executable, str(ROOT / "run_search.py"), "--corpus", str(corpus),
               "--output", str(folder), *TINY_RUN]
    running = subprocess.Popen(command, env=dict(two_rank_environment(), OMP_NUM_THREADS="1"),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for_rows(folder, 1, running)
    finished = read_jsonl(folder / "candidates.jsonl")
    os.kill(int(finished[0]["worker"].split()[-1]), signal.SIGKILL)
    running.communicate(timeout=60)
    assert running.returncode != 0
    second = process(folder, corpus, "--resume")  # one process, which starts in half the time of two ranks
    assert second.wait() == 0, second.stderr.read().decode()
    assert results(folder) == results(alone)
    assert read_jsonl(folder / "candidates.jsonl")[:len(finished)] == finished
    assert read_json(folder / "best.json") == read_json(alone / "best.json")


def test_a_rank_that_is_not_the_root_waits_for_the_rows_and_prints_nothing(tmp_path, monkeypatch, capsys):
    import run_search

    arguments = ["--steps", "0", "--teacher", TEACHER, *SPACE, "--output", str(tmp_path / "run")]
    monkeypatch.setattr(distributed, "is_root", lambda: False)
    assert run_command(run_search.main, arguments) == 0
    assert len(read_jsonl(tmp_path / "run" / "candidates.jsonl")) == 8 and capsys.readouterr().out == ""
    monkeypatch.undo()
    assert run_command(run_search.main, arguments[:-1] + [str(tmp_path / "root")]) == 0
    # Nor does it fail where no candidate has a W; the root says so.
    monkeypatch.setattr("bort.search.fptas.search", lambda *_: [
        {**row, "W": None} for row in read_jsonl(tmp_path / "root" / "candidates.jsonl")])
    assert run_command(run_search.main, [*arguments[:-1], str(tmp_path / "root"), "--resume"]) == 2
    assert "every candidate diverged" in capsys.readouterr().err
    monkeypatch.setattr(distributed, "is_root", lambda: False)
    assert run_command(run_search.main, [*arguments[:-1], str(tmp_path / "root"), "--resume"]) == 0


def test_the_benchmark_adds_up_what_a_run_took_over_all_calls(tmp_path):
    from benchmarks.harness.search_runs import used

    assert used(tmp_path / "run", 60.0, 900.0) == (60.0, 900.0)
    assert used(tmp_path / "run", 2.0, 100.0) == (62.0, 900.0)  # a call that found everything finished
    assert used(tmp_path / "other", 1.0, 2.0) == (1.0, 2.0)
