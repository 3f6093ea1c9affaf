"""8-bit networks in OpenVINO: close to float32, kept in a folder with a limit; and nothing is sent."""
from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bort
from bort.architecture import Architecture
from bort.engines import engine as door
from bort.engines import openvino_int8
from bort.engines.base import EngineOptions, Unavailable
from bort.engines.engine import open_engine, plain_outputs
from bort.models import Classifier
from tests.tiny import VOCAB, tiny_bert

pytestmark = pytest.mark.skipif(not all(map(importlib.util.find_spec, ("openvino", "onnx", "nncf"))),
                                reason="openvino, onnx or nncf is not installed")
INT8 = EngineOptions("openvino", "int8")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bort" / "int8"


@pytest.fixture(scope="module")
def network():
    model = Classifier(tiny_bert(0, Architecture(2, 2, 32, 48)), 3, "linear", dropout=0.0)
    model.initialize_head(3)
    return model


def batches(seed, count):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, VOCAB, (4, 12)).astype("int32"), np.array([12, 12, 11, 10], "float32"))
            for _ in range(count)]


def test_8_bits_are_close_and_made_once(network, cache, monkeypatch):
    engine = open_engine(network, None, INT8, batches(0, 6))
    assert engine.report.to_dict()["precision"] == "int8"
    found = np.concatenate(list(engine.map(batches(1, 4))))
    expected = np.concatenate([plain_outputs(network, "classifier", batch) for batch in batches(1, 4)])
    assert 0 < np.abs(found - expected).max() < 0.2 * np.ptp(expected)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
    (entry,) = cache.iterdir()

    def made(*arguments):
        raise AssertionError("made again")
    with monkeypatch.context() as patched:
        patched.setattr(openvino_int8, "quantize", made)
        again = np.concatenate(list(open_engine(network, None, INT8, batches(0, 6)).map(batches(1, 4))))
        np.testing.assert_allclose(again, found, atol=1e-5)
        # Other inputs or other weights are another entry.
        with pytest.raises(AssertionError, match="made again"):
            open_engine(network, None, INT8, batches(2, 6))
        with pytest.raises(AssertionError, match="made again"):
            open_engine(tiny_bert(1), None, INT8, batches(0, 6))
    # A damaged entry is made again, and the oldest are deleted beyond the limit.
    (entry / "model.xml").write_text("<net", encoding="utf-8")
    made_calls = []
    monkeypatch.setattr(openvino_int8, "MAX_CACHE_BYTES", 1)
    monkeypatch.setattr(openvino_int8, "quantize", lambda model, *_: made_calls.append(1) or model)
    open_engine(network, None, INT8, batches(0, 6))
    open_engine(network, None, INT8, batches(2, 6))
    assert len(made_calls) == 2 and len(list(cache.iterdir())) == 1 and not entry.exists()


def test_auto_prints_why_and_takes_what_agrees(network, cache, monkeypatch, caplog):
    monkeypatch.setattr(openvino_int8, "quantize", lambda model, *_: model)  # exact "8 bits"
    auto = EngineOptions("openvino", "auto")
    with caplog.at_level(logging.WARNING, "bort.engines"):
        assert open_engine(network, None, auto, batches(0, 3)).report.precision == "int8"
    assert "12 of 12 labels as in float32" in caplog.text and "bound" in caplog.text
    monkeypatch.setattr(door, "LOGIT_BOUND", -1.0)
    assert open_engine(network, None, auto, batches(0, 3)).report.precision == "float32"
    assert "not taken" in caplog.text


def test_without_nncf_there_are_no_8_bits_in_openvino(network, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(Unavailable, match="need nncf: pip install"):
        open_engine(network, None, INT8, batches(0, 1))
    report = open_engine(network, None, EngineOptions("auto", "int8"), batches(0, 1)).report
    assert report.kind in ("mxnet", "onnxruntime") and "nncf" in report.refused["openvino"]


WATCHED = """
import socket, threading
tried = []
def refuse(*arguments, **more):
    tried.append(arguments)
    raise OSError("no network in this test")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import numpy as np
from bort.architecture import Architecture
from bort.engines import onnx_graph, openvino_int8
from bort.engines.base import Batch
rng = np.random.default_rng(0)
facts = onnx_graph.Network(Architecture(1, 1, 4, 4), 9, 8, 1e-5, 1e-12)
shapes = {"word_embed.0.weight": (9, 4), "encoder.position_weight": (8, 4)}
cell = "encoder.transformer_cells.0."
for name in ("attention_cell.proj_query", "attention_cell.proj_key", "attention_cell.proj_value", "proj",
             "ffn.ffn_1", "ffn.ffn_2"):
    shapes.update({f"{cell}{name}.weight": (4, 4), f"{cell}{name}.bias": (4,)})
for name in ("encoder.layer_norm", f"{cell}layer_norm", f"{cell}ffn.layer_norm"):
    shapes.update({f"{name}.gamma": (4,), f"{name}.beta": (4,)})
arrays = {name: rng.standard_normal(shape).astype("float32") for name, shape in shapes.items()}
batch = (np.ones((2, 5), "int32"), np.full(2, 5, "float32"))
from bort.engines import openvino
engine = openvino.make(facts, arrays, "encoder", "int8", [batch])
assert engine(*batch).shape == (2, 5, 4) and len(list(engine.map([batch] * 3))) == 3
for thread in threading.enumerate():
    if thread is not threading.current_thread() and not thread.daemon:
        thread.join(20)
assert not tried, tried
"""


def test_nothing_is_sent_and_nothing_is_left_in_the_home_folder(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD")}
    environment.update(HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"),
                       PYTHONPATH=str(Path(bort.__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", WATCHED], env=environment, cwd=str(tmp_path),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}
    assert not done.stdout
