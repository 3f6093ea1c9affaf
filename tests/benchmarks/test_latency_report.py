"""The targets of the latency benchmark: ratios, and what bounds them, from times made up by hand."""

from __future__ import annotations

import pytest

from benchmarks import growth
from benchmarks.harness.latency_report import Report
from benchmarks.latency import Measured
from bort.architecture import PRESETS, parse

SHAPE = (1, 512, False)


def test_targets_say_what_was_measured_and_what_bounds_it():
    seconds = {
        ("bort", "mxnet"): 0.1,
        ("bort", "pytorch"): 0.15,
        ("bort", "onnxruntime-hf"): 0.08,
        ("bort", "gluonnlp"): 0.3,
        ("bert-base", "gluonnlp"): 1.2,
    }
    results = [Measured(name, SHAPE, engine, [value] * 3, 0.0) for (name, engine), value in seconds.items()]
    networks = {name: parse(name) for name in ("bort", "bert-base")}
    work = {name: network.flops(512) for name, network in networks.items()}
    rows = {
        row["target"]: row
        for row in Report(results, networks, {"float32": (work["bort"] / 0.06, "x")}).targets()
    }
    stock = rows["bort in mxnet beside bert-base in gluonnlp"]
    # at the peak it takes 60 ms
    assert (stock["measured"], stock["met"], stock["at the peak"]) == (12, True, 20)
    stock = rows["bort in gluonnlp beside bert-base in gluonnlp"]
    assert stock["measured"] == 4 and stock["of the work"] == pytest.approx(
        work["bert-base"] / work["bort"], abs=0.01
    )
    assert not any("roberta" in target or "openvino" in target for target in rows)
    assert "bort" in PRESETS


def test_ours_is_held_against_the_best_peer_of_the_same_accuracy(tmp_path):
    seconds = {
        "mxnet": 0.1,
        "openvino": 0.08,
        "openvino-int8": 0.03,
        "pytorch": 0.09,
        "ctranslate2": 0.084,
        "pytorch-bf16": 0.04,
        "gluonnlp": 0.01,
    }
    results = [
        Measured("bort", shape, engine, [value * shape[0]] * 3, 0.1, 0.999)
        for engine, value in seconds.items()
        for shape in (SHAPE, (8, 512, True))
    ]
    report = Report(results, {"bort": parse("bort")}, {})
    tables = report.tables()
    exact, fewer, *batches = tables["Ours beside the best peer of the same accuracy"]
    assert (exact["ours"], exact["best peer"]) == ("openvino", "ctranslate2")
    assert exact["ours is faster by"] == 1.05 and exact["met"] == (0.084 / 0.08 >= 1.05)
    assert (fewer["ours"], fewer["best peer"], fewer["met"]) == ("openvino-int8", "pytorch-bf16", True)
    assert [row["met"] for row in batches] == [None, None]  # the targets are for one sequence
    slower = {row["engine"]: row for row in tables["bort: reduced precision"]}
    assert slower["pytorch-bf16"]["best peer / this"] == 1 and slower["openvino-int8"]["correlation"] == 0.999
    assert "mxnet" in {row["engine"] for row in tables["bort: float32"]}
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot

    image = pyplot.imread(str(tmp_path / report.chart(tmp_path / "chart.png")))
    columns = (image[:, :, :3].min(axis=2) < 0.9).any(axis=0)
    assert columns[int(len(columns) * 0.6) :].any()  # no half of it is blank


def test_growth_shows_time_and_memory_of_every_shape(tmp_path):
    shapes = [(1, 16, False), (1, 32, False), (4, 16, False)]
    results = [
        Measured("bort", shape, engine, [0.01 * shape[0], 0.02 * shape[0]], 0.0)
        for engine in ("openvino", "pytorch")
        for shape in shapes
    ]
    mib = {(result.engine, result.shape): 100.0 + result.shape[0] for result in results}
    rows = growth.rows_of(results, mib)
    assert [row["tokens/s"] for row in rows[:3]] == [1067, 2133, 1067] and rows[2]["peak MiB"] == 104
    tables = {
        "16 tokens": [row for row in rows if row["length"] == 16],
        "one sequence": [row for row in rows if row["batch"] == 1],
    }
    pytest.importorskip("matplotlib")
    assert growth.chart(tables, "bort", tmp_path / "growth.png") == "growth.png"
    assert (tmp_path / "growth.png").stat().st_size > 10_000
