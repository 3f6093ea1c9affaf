"""The grid search before a training: all combinations, in folders of their own, best first."""

from __future__ import annotations

import math

import pytest

from bort.errors import BortError
from bort.json_files import read_json
from bort.pretraining.grid import name_of, parse_grid, search_grid, table


def test_a_grid_is_all_combinations():
    points = parse_grid(["lr=1e-4,3e-4", "total-batch-size=256,1024"])
    assert points == [{"lr": rate, "total-batch-size": size} for rate in (1e-4, 3e-4) for size in (256, 1024)]
    assert name_of(points[1]) == "lr-0.0001,total-batch-size-1024"
    for words, message in (
        (["steps=1"], "NAME=VALUE"),
        (["lr"], "NAME=VALUE"),
        (["lr=x"], "could not convert"),
        (["lr=1", "lr=2"], "lr stands twice"),
        (["lr=1,1.0"], "a value stands twice"),
        (["total-batch-size=1.5"], "invalid literal"),
        (
            [
                "lr=" + ",".join(map(str, range(1, 102))),
                "warmup-ratio=" + ",".join(str(n / 100) for n in range(10)),
            ],
            "1010 combinations",
        ),
    ):
        with pytest.raises(BortError, match=message):
            parse_grid(words)


def test_points_are_ranked_by_loss_and_diverged_ones_come_last(tmp_path):
    losses = {1e-4: 3.0, 1e-3: 2.0, 1.0: None, 0.1: math.nan}

    def run(point, folder):
        assert folder == tmp_path / name_of(point)
        return {"eval_mlm_loss": losses[point["lr"]], "eval_mlm_accuracy": 0.5, "tokens": 7, "seconds": 1.0}

    rows = search_grid([{"lr": rate} for rate in losses], run, tmp_path)
    assert [row["lr"] for row in rows] == [1e-3, 1e-4, 1.0, 0.1]
    stored = read_json(tmp_path / "grid.json")
    assert [row["lr"] for row in stored] == [1e-3, 1e-4, 1.0, 0.1] and stored[3]["eval_mlm_loss"] is None
    lines = table(rows)
    assert lines[-1] == "best: --lr 0.001" and "2.0000" in lines[1] and len(lines) == 6
