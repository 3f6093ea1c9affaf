"""Agora on two ranks."""
from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.agora.runs import DYING, SHORT, command, stable
from tests.agora.simulated import lines
from tests.tiny import ROOT, needs_horovod, two_rank_environment


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
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "goes on with round 2" in resumed.stdout
    assert same_run(folder, two_ranks)[0]["trainings"] == 4
