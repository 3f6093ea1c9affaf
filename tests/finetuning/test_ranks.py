"""Fine-tuning on several ranks."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest

import bort
from bort.checkpoints.model_folder import parameter_arrays
from tests.finetuning.common import command_line, run
from tests.tiny import needs_horovod, two_rank_environment


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
