"""The benchmark of training steps: its targets, and that every engine of ours makes its steps."""

from __future__ import annotations

import pytest

from benchmarks.harness import shapes, training_rounds, training_steps
from benchmarks.harness.training_steps import (
    OF_OURS,
    OURS,
    OURS_BFLOAT16,
    OURS_TEACHER,
    TORCH,
    TORCH_BFLOAT16,
)
from tests.tiny import TINY, TINY_TEACHER, needs_bfloat16

PART = training_steps.Part(TINY, TINY_TEACHER, 40, 2, 8)


def row(step, engine, speed):
    return {"part": "bort", "step": step, "engine": engine, "tokens/s": speed}


def test_targets_are_ratios_to_pytorch_in_the_same_numbers():
    rows = [
        row("masked LM", OURS, 96),
        row("masked LM", TORCH, 100),
        row("masked LM", OURS_BFLOAT16, 130),
        row("masked LM", TORCH_BFLOAT16, 150),
        row("distillation", OURS, 30),
        row("distillation", OURS_TEACHER, 36),
        row("distillation", TORCH, 30),
    ]
    found = {(one["step"], one["ours"]): one for one in training_rounds.targets(rows, amx=False)}
    assert found["masked LM", OURS]["of the peer's tokens/s"] == 0.96 and found["masked LM", OURS]["met"]
    assert found["masked LM", OURS_BFLOAT16]["met"] is False
    kd = found["distillation", OURS_TEACHER]
    assert (kd["of the peer's tokens/s"], kd["target"], kd["met"]) == (1.2, 1.0, True)
    assert found["distillation", OURS]["met"] is None, "no target"
    assert len(found) == 4, "PyTorch's distillation in bfloat16 was not measured"
    (kd,) = [one for one in training_rounds.targets(rows, amx=True) if one["ours"] == OURS_TEACHER]
    assert (kd["target"], kd["met"]) == (1.3, False)


@needs_bfloat16
@pytest.mark.parametrize("engine, distil", [(OURS, True), (OURS_TEACHER, True), (OURS_BFLOAT16, False)])
def test_ours_makes_steps(monkeypatch, engine, distil):
    pytest.importorskip("openvino")
    monkeypatch.setitem(training_steps.PARTS, "tiny", PART)
    state = {}
    assert training_steps.answer(engine, {"make": "tiny", "distil": distil}, state) == {}
    assert len(training_steps.answer(engine, {"steps": 2}, state)["seconds"]) == 2


def test_without_bfloat16_ours_and_pytorch_are_left_out(monkeypatch):
    monkeypatch.setattr(shapes.common, "cpu_info", lambda: {"model": "any", "flags": {"avx2"}})
    for engine in (OURS_BFLOAT16, OURS_TEACHER, TORCH_BFLOAT16):
        with pytest.raises(shapes.Unavailable, match="bfloat16 needs a CPU with"):
            training_steps.answer(engine, {"make": "small", "distil": True}, {})
    assert set(OF_OURS) < set(training_steps.ENGINES)


def test_engines_take_turns_for_as_long_as_they_may(monkeypatch):
    class Worker:
        def __init__(self, engine, *rest, **variables):
            self.engine = engine

        def __enter__(self):
            return self

        def __exit__(self, *error):
            asked.append((self.engine, "closed"))

        close = __exit__

        def ask(self, **command):
            asked.append((self.engine, *command))
            if "make" in command:
                return {"left_out": "none here"} if self.engine == TORCH_BFLOAT16 else {}
            return {"seconds": [2.0 if self.engine == TORCH else 1.0], "processor": [3.0]}

    asked = []
    monkeypatch.setattr(training_rounds.workers, "Worker", Worker)
    engines = [OURS, OURS_BFLOAT16, TORCH, TORCH_BFLOAT16]
    rounds = training_rounds.Rounds(most=5, seconds=0.0)
    rows = training_rounds.compare("small", True, engines, rounds)
    assert [row["engine"] for row in rows] == [OURS, TORCH, OURS_BFLOAT16]
    assert {row["trials"] for row in rows} == {training_rounds.LEAST_ROUNDS}
    assert rows[1][f"{OURS} is faster by"] == rows[1][f"{OURS_BFLOAT16} is faster by"] == 2
    assert rows[0]["tokens/s"] == 16 * 128 and rows[1]["CPU ms"] == 3000
    last = asked.index((TORCH, "closed"))
    assert (OURS_BFLOAT16, "make", "distil") not in asked[:last], "for want of memory"
    assert len(training_rounds.take_turns("small", False, [OURS], training_rounds.Rounds(5, 60.0))[OURS][
        "seconds"]) == 5
