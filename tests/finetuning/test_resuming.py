"""Runs of ``run_finetune.py`` that are resumed: after a kill, after their end, and with another model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

import bort
from tests.finetuning.common import command_line, run
from tests.tiny import ROOT


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


def test_resuming_an_ended_run_changes_nothing(workplace):
    first = run(workplace, "--epochs", "1", output="ended")
    assert run(workplace, "--epochs", "1", "--resume", output="ended") == first


def test_an_exchanged_model_ends_a_resumed_run(workplace, capsys):
    shutil.copytree(workplace / "bort", workplace / "body")
    arguments = ("--epochs", "1", "--max-steps", "2", "--model", str(workplace / "body"))
    run(workplace, *arguments, output="exchanged")
    model = bort.load(workplace / "body")
    model.decoder[0].bias.set_data(model.decoder[0].bias.data() + 1)
    bort.save(model, workplace / "body", bort.load_tokenizer(workplace / "body"))
    run(workplace, *arguments, "--resume", output="exchanged", code=2)
    assert "models was" in capsys.readouterr().err
