"""Grids and convergent sets."""

from __future__ import annotations

import json

import pytest

from bort.errors import BortError
from bort.finetuning.hyperparameters import CHS, Theta, choose_grid, convergent_set, paper_grid, read_grid
from bort.tasks.registry import TASKS


def test_the_paper_grid_and_the_convergent_sets(tmp_path):
    assert len(paper_grid()) == len(set(paper_grid())) == 500
    trained = [name for name in TASKS if name not in ("Embedded",)]
    assert all(convergent_set(name).batch_size in (8, 16) for name in trained)
    assert CHS["CoLA"].theta == Theta(9e-6, 10, 0.45, 3) and CHS["BoolQ"].note and CHS["RACE-M"].table == 8
    with pytest.raises(BortError, match="--grid"):
        convergent_set("Embedded")
    small = choose_grid("small", 3e-5, 0.01, 0.1, 0)
    assert len(small) == 6 and {theta.seed for theta in small} == {0, 1}
    path = tmp_path / "grid.json"
    path.write_text('{"lr": [1e-5, 2e-5], "weight_decay": [0], "warmup": [0.1], "seed": [0, 1, 2]}')
    assert len(choose_grid(str(path), 1, 0, 0, 0)) == 6
    path.write_text('[{"lr": 1e-5, "weight_decay": 0, "warmup": 0.1, "seed": 7}]')
    assert read_grid(path) == [Theta(1e-5, 0, 0.1, 7)]
    for text, message in (
        ("3", "a grid is"),
        ("[]", "empty"),
        ('[{"lr": 1}]', "lacks"),
        ('{"lr": []}', "lacks"),
        ('[{"lr": 0, "weight_decay": 0, "warmup": 0.1, "seed": 7}]', "lr 0"),
        ('[{"lr": 1e-5, "weight_decay": 0, "warmup": 0.1, "seed": 7.5}]', "seed 7.5"),
        ('[{"lr": 1e-5, "weight_decay": 0, "warmup": 0.1, "seed": 7, "x": 1}]', "unknown x"),
        ('{"lr": [1e-5, 1e-5], "weight_decay": [0], "warmup": [0.1], "seed": [0]}', "more than once"),
    ):
        path.write_text(text)
        with pytest.raises(BortError, match=message):
            read_grid(path)
    with pytest.raises(BortError, match="no such file"):
        choose_grid("nonsense", 1, 0, 0, 0)


def test_a_grid_is_counted_before_it_is_made(tmp_path):
    many = list(range(1, 201))
    path = tmp_path / "grid.json"
    path.write_text(json.dumps({"lr": [value / 1000 for value in many], "weight_decay": many,
                                "warmup": [value / 1000 for value in many], "seed": many}))
    with pytest.raises(BortError, match="makes 1,600,000,000 sets"):
        read_grid(path)
