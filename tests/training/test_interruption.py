"""Ctrl-C and SIGTERM: a checkpoint where that is quick, one line that says how to go on, below the bars."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import bort.finetuning.loop
from bort.checkpoints.model_folder import parameter_arrays
from bort.errors import RESUME, BortError, Interrupted, run_command
from bort.finetuning.loop import LoopOptions, Settings, TrainingData, fine_tune
from bort.models import Classifier
from bort.training import interruption
from bort.training.console import progress
from bort.training.run_folder import RunFolder
from tests.tiny import ROOT, VOCAB, tiny_bert


def train(folder, model=None, resume=False):
    """Four steps in each of two epochs, with checkpoints after every third step and every epoch."""
    rng = np.random.default_rng(0)
    data = TrainingData(
        [rng.integers(6, VOCAB, 8).astype(np.int32) for _ in range(16)], rng.integers(0, 2, 16)
    )
    if model is None:
        model = Classifier(tiny_bert(0, dropout=0.1), 2, dropout=0.1)
        model.initialize_head(0)
    settings = Settings(lr=1e-3, epochs=2, batch_size=4)
    with RunFolder(folder, {}, resume) as run:
        fine_tune(
            model, data, lambda network: {"score": 1.0}, settings, 1, run, LoopOptions(checkpoint_interval=3)
        )
    return parameter_arrays(model)


REAL = "BORT_TEST_REAL_SIGNALS"


def send(number):
    """A real signal in a process of its own; else what Python would call for it, since a test's process, a
    worker of pytest-xdist, is not to die with it.

    Workers did, after tests of engines: cores of OpenVINO that went in the order of their making left the
    main thread with a signal stack that was no longer mapped (``bort.engines.openvino_model.shared_core``).
    What makes cores of its own (NNCF, the example of an exported folder) may still leave one.
    """
    if os.environ.get(REAL):
        signal.raise_signal(number)
        return
    handler = signal.getsignal(number)
    assert callable(handler) and handler is not signal.default_int_handler, "no handler is installed"
    handler(number, None)


def test_real_signals_in_a_process_of_their_own():
    if os.environ.get(REAL):
        pytest.skip("this is that process")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", __file__],
        cwd=str(ROOT), env={**os.environ, REAL: "1"}, capture_output=True, text=True, timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def signalled(monkeypatch):
    """``signalled(number, step)`` sends a signal while that step is computed; no step is too slow to wait
    for, however busy the machine is."""
    monkeypatch.setattr(interruption, "PATIENCE_SECONDS", 1e6)
    monkeypatch.setattr(interruption.distributed, "size", lambda: 1)
    original = bort.finetuning.loop._backward

    def arrange(number, step, times=1):
        seen = []

        def backward(*arguments):
            seen.append(1)
            for _ in range(times if len(seen) == step else 0):
                send(number)
            return original(*arguments)

        monkeypatch.setattr(bort.finetuning.loop, "_backward", backward)

    return arrange


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [2, 4, 7, 8])
def test_a_signal_ends_a_training_after_its_step_with_a_checkpoint(
    tmp_path, signalled, monkeypatch, number, step
):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    expected = train(tmp_path / "whole")
    signalled(number, step)
    with pytest.raises(Interrupted, match=f"a checkpoint of step {step} is written.*--resume") as caught:
        train(tmp_path / "cut")
    assert caught.value.number == number
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.undo()
    found = train(tmp_path / "cut", resume=True)
    assert all((found[name] == array).all() for name, array in expected.items())


def test_a_signal_that_cannot_wait_names_the_last_checkpoint(tmp_path, signalled, monkeypatch):
    monkeypatch.setattr(interruption, "PATIENCE_SECONDS", 0.0)
    signalled(signal.SIGTERM, 2)
    with pytest.raises(Interrupted, match="--resume goes on from the beginning"):
        train(tmp_path)
    signalled(signal.SIGINT, 5)
    with pytest.raises(Interrupted, match="--resume goes on from the checkpoint of step 4"):
        train(tmp_path, resume=True)
    monkeypatch.setattr(interruption, "PATIENCE_SECONDS", 2.0)
    signalled(signal.SIGINT, 2, times=2)  # the second one means now
    with pytest.raises(Interrupted, match="from the checkpoint of step 4"):
        train(tmp_path, resume=True)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.skipif(not os.environ.get(REAL), reason="runs in a process of its own, see above")
def test_commands_say_it_in_one_line_below_their_bars(monkeypatch):
    def killed(_):
        bar = progress(range(9), desc="work")
        next(iter(bar))
        signal.raise_signal(signal.SIGTERM)

    def failed(_):
        progress(total=3).update(1)
        raise BortError("file.txt,\nline 3: mend it")

    for main, code, last in ((killed, 143, RESUME), (failed, 2, "error: file.txt, line 3: mend it")):
        for stream in (Terminal(), io.StringIO()):
            monkeypatch.setattr(sys, "stderr", stream)
            assert run_command(main, interrupted=RESUME) == code
            lines = stream.getvalue().split("\n")
            assert lines[-1] == "" and lines[-2] == last
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_bars_are_one_line_each_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for _ in progress(range(1000), desc="count", unit="row"):
        pass
    with progress(total=5, desc="other") as bar:
        for _ in range(5):
            bar.update(1)
            bar.set_postfix_str("loss 1.5")
    for _ in progress(range(3), desc="passing", leave=False):
        pass
    lines = sys.stderr.getvalue().splitlines()
    assert len(lines) == 2 and "\r" not in sys.stderr.getvalue()
    assert lines[0].startswith("count: 100%") and "1000/1000" in lines[0]
    assert lines[1].startswith("other: 100%") and "loss 1.5" in lines[1]
    monkeypatch.setattr("bort.training.console.SECONDS_BETWEEN_LINES", 0)
    with progress(total=2, desc="long", mininterval=0) as bar:
        bar.update(1)
        bar.update(1)
    assert len(sys.stderr.getvalue().splitlines()) > 3
