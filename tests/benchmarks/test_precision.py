"""The benchmark of training in bfloat16: distances from float32's curve."""

from __future__ import annotations

import pytest

from benchmarks import precision
from bort.engines import mxnet_compiled
from bort.errors import BortError


def test_distances_are_between_means_over_the_last_steps_at_the_same_step():
    assert precision.smoothed([4.0, 2.0, 0.0, 6.0], [10, 20, 30, 40], 20) == [4.0, 3.0, 1.0, 3.0]
    curves = {
        name: {"steps": [50, 100], "losses": losses, "eval_steps": [0, 100], "eval_losses": [9.0, last]}
        for name, losses, last in (("float32", [5.0, 4.0], 4.0), ("bfloat16", [5.5, 4.1], 3.75))
    }
    result = {"eval_mlm_loss": 4.0, "eval_mlm_accuracy": 0.25, "tokens_per_second": 9.6, "skipped": 0}
    results = {"float32": {**result, "seconds": 90.0}, "bfloat16": {**result, "seconds": 60.0}}
    exact, rounded = precision.compare(curves, results)
    assert rounded["largest distance of losses over 50 steps"] == 0.5
    assert rounded["largest distance of evaluation losses"] == 0.25 and rounded["faster by"] == 1.5
    assert exact["faster by"] is None and exact["evaluation accuracy (%)"] == 25


def test_a_processor_without_bfloat16_prepares_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(mxnet_compiled, "cpu_flags", lambda: frozenset({"avx2"}))
    with pytest.raises(BortError, match="bfloat16 needs a CPU with"):
        precision.main(["--work", str(tmp_path / "work")])
    assert not (tmp_path / "work").exists()
