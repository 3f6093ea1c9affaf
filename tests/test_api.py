"""The functions of ``import bort``: the runners' work and the same results."""
from __future__ import annotations

import json
import subprocess
import sys

import pytest

import bort
from bort.architecture import PRESETS, Architecture
from bort.errors import BortError
from tests.tasks.test_end_to_end import vocabulary  # noqa: F401  a fixture
from tests.tiny import ROOT
from tests.tiny_tasks import make_task


def test_every_name_is_there_and_documented_with_an_example():
    for name in bort.__all__:
        assert getattr(bort, name).__doc__
    for name in ("find_architecture", "pretrain", "finetune", "export_onnx"):
        assert f"bort.{name}(" in getattr(bort, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bort.nothing  # noqa: B018


def test_importing_the_package_loads_no_network_code():
    code = ("import sys, bort; bort.Architecture; bort.finetune; bort.get_task('CoLA'); "
            "print('mxnet' in sys.modules, 'pandas' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), capture_output=True, text=True,
                          check=True)
    assert done.stdout.split()[0] == "False"


def test_architectures_are_parsed():
    assert Architecture.parse("bort") == PRESETS["bort"].architecture == Architecture.parse("4,8,1024,768")
    with pytest.raises(BortError, match="four"):
        Architecture.parse("1,2,3")


def test_finetuning_equals_the_runner(vocabulary, tmp_path):  # noqa: F811
    import run_finetune

    data = make_task("RTE", tmp_path / "RTE", rows=12)
    ours = bort.finetune("RTE", data, "random:1,2,8,8", tmp_path / "api", tokenizer=vocabulary, max_length=48,
                         epochs=1, lr=1e-3, batch_size=4)
    assert run_finetune.main([
        "--task", "RTE", "--data-dir", str(data), "--model", "random:1,2,8,8", "--tokenizer", str(vocabulary),
        "--output", str(tmp_path / "runner"), "--max-length", "48", "--epochs", "1", "--lr", "1e-3",
        "--batch-size", "4"]) == 0
    theirs = json.loads((tmp_path / "runner" / "results.json").read_text())
    assert ours["metrics"] == theirs["metrics"] and ours["history"] == theirs["history"]
    with pytest.raises(BortError, match="takes no learning_rate"):
        bort.finetune("RTE", data, "random:1,2,8,8", tmp_path / "no", tokenizer=vocabulary, learning_rate=1)


def test_a_search_gives_a_table(tmp_path):
    table = bort.find_architecture(tmp_path / "search", teacher="6,4,96,256", steps=0, depths=(2, 4),
                                   heads=(2, 4), hidden=(32, 64), intermediate=(32, 64), max_length=32)
    assert list(table["W"]) == sorted(table["W"], reverse=True) and len(table) == 8
    best = json.loads((tmp_path / "search" / "best.json").read_text())
    assert best["architecture"] == table.iloc[0]["architecture"]


def test_a_script_without_a_main_guard_is_told_so_by_its_workers(monkeypatch, tmp_path):
    import multiprocessing

    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    for call in (lambda: bort.find_architecture(tmp_path), lambda: bort.pretrain("shards", tmp_path),
                 lambda: bort.finetune("RTE", "rte", "random:1,2,8,8", tmp_path)):
        with pytest.raises(BortError, match="__main__"):
            call()
