"""The targets of the latency benchmark: ratios, and what bounds them, from times made up by hand."""

from __future__ import annotations

import pytest

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
    torch = rows["mxnet beside pytorch, 1 x 512"]
    # at the peak it takes 60 ms
    assert (torch["measured"], torch["met"], torch["at the peak"]) == (1.5, False, 2.5)
    assert rows["mxnet beside onnxruntime-hf, 1 x 512"]["met"] is False
    stock = rows["bort in gluonnlp beside bert-base in gluonnlp"]
    assert stock["measured"] == 4 and stock["of the work"] == pytest.approx(
        work["bert-base"] / work["bort"], abs=0.01
    )
    assert rows["bort in mxnet beside bert-base in gluonnlp"]["met"] is True
    assert not any("int8" in target or "roberta" in target for target in rows)
    assert "bort" in PRESETS
