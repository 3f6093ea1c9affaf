"""Two ranks: three launches in all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import bort
from bort.backend import distributed
from bort.checkpoints.model_folder import parameter_arrays
from bort.masked_lm.losses import LossWeights
from bort.masked_lm.teacher import LiveTeacher
from tests.pretraining.common import assert_close, assert_identical, metrics, student, train
from tests.tiny import TINY_TEACHER, needs_horovod, tiny_bert, two_rank_environment


def on_two_ranks(folder, job):
    """What each rank of the launches below runs."""

    def run(name, dropout, **arguments):
        train(
            folder / name,
            {"steps": 12, "batch_size": 4, "loss": LossWeights(0.4, 0.6)},
            student(dropout),
            LiveTeacher(tiny_bert(3, TINY_TEACHER), 2.0),
            evaluate=4,
            checkpoint=5,
            **arguments,
        )

    def kill(step):
        if job == "kill" and step == 8 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    assert distributed.size() == 2
    if job == "whole":
        run("plain", 0.0)
        run("whole", 0.2)
    else:
        run("killed", 0.2, resume=True, after_step=kill)


def launch(folder, job):
    script = folder / "job.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom tests.pretraining.test_ranks import "
        f"on_two_ranks\non_two_ranks(Path({str(folder)!r}), sys.argv[1])\n"
    )
    return subprocess.run(
        ["horovodrun", "-np", "2", sys.executable, str(script), job],
        env=two_rank_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


@needs_horovod
def test_two_ranks_equal_one_and_survive_the_kill_of_a_rank(tmp_path):
    done = launch(tmp_path, "whole")
    assert done.returncode == 0, done.stdout + done.stderr
    one, _ = train(
        tmp_path / "one",
        {"steps": 12, "batch_size": 8, "loss": LossWeights(0.4, 0.6)},
        student(),
        LiveTeacher(tiny_bert(3, TINY_TEACHER), 2.0),
        evaluate=4,
        checkpoint=5,
    )
    assert_close(one, parameter_arrays(bort.load(tmp_path / "plain" / "model")), 1e-4)
    for left, right in zip(metrics(tmp_path / "one"), metrics(tmp_path / "plain")):
        assert left == pytest.approx(right, rel=1e-3)
    killed = launch(tmp_path, "kill")
    assert killed.returncode != 0 and not (tmp_path / "killed" / "results.json").exists()
    resumed = launch(tmp_path, "resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert_identical(
        *(parameter_arrays(bort.load(tmp_path / name / "model")) for name in ("whole", "killed"))
    )
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
