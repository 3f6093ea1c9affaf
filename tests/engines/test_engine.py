"""One door to forward passes: every engine gives the network's outputs, and ``auto`` takes what is there."""
from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from bort.architecture import Architecture
from bort.checkpoints.model_folder import parameter_arrays
from bort.engines import engine as door
from bort.engines import onnx_graph
from bort.engines import openvino as openvino_engine
from bort.engines.base import EngineOptions, Unavailable, Work
from bort.engines.engine import open_engine, padded_batch, plain_outputs
from bort.errors import BortError
from bort.models import HEADS, Classifier
from tests.tiny import MAX_LENGTH, VOCAB, tiny_batch, tiny_bert

LIBRARIES = ("openvino", "onnxruntime")
have_both = pytest.mark.skipif(not all(map(importlib.util.find_spec, (*LIBRARIES, "onnx"))),
                               reason="openvino, onnxruntime or onnx is not installed")
have_openvino = pytest.mark.skipif(not all(map(importlib.util.find_spec, ("openvino", "onnx"))),
                                   reason="openvino or onnx is not installed")
KINDS = (*LIBRARIES, "mxnet")


def classifier(head="linear", outputs=3, seed=0):
    model = Classifier(tiny_bert(seed), outputs, head, dropout=0.0)
    model.initialize_head(seed + 5)
    return model


def given(seed, batch=3, length=9):
    return tuple(array.asnumpy() for array in tiny_batch(seed, batch, length))


def open_or_skip(network, part, kind, precision="float32", **more):
    # found, not imported: openvino's own import counts itself at its maker's
    if kind in LIBRARIES and not importlib.util.find_spec(kind):
        pytest.skip(f"{kind} is not installed")
    return open_engine(network, part, EngineOptions(kind, precision), **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["encoder", "mlm", "masked_states"])
def test_parts_of_a_body_are_the_networks_on_padded_batches(part, kind):
    network = tiny_bert(1)
    engine = open_or_skip(network, part, kind)
    assert engine.report.kind == kind and engine.report.difference < 1e-4 and engine.num_outputs == 0
    for seed, batch, length in ((0, 3, 9), (1, 1, 5), (2, 2, MAX_LENGTH)):
        ids, valid, positions = given(seed, batch, length)
        rows = (np.arange(batch)[:, None] * length + positions).ravel().astype("int32")
        more = {"encoder": (), "mlm": (positions,), "masked_states": (rows,)}[part]
        found, expected = engine(ids, valid, *more), plain_outputs(network, part, (ids, valid, *more))
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
        assert found.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", list(HEADS))
def test_classifiers_give_many_batches_in_order(head, kind):
    network = classifier(head)
    engine = open_or_skip(network, None, kind)
    assert engine.part == "classifier" and engine.num_outputs == 3 and engine.max_length == MAX_LENGTH
    batches = [given(seed, 1 + seed % 4, 4 + seed)[:2] for seed in range(9)]
    expected = [plain_outputs(network, "classifier", batch) for batch in batches]
    for _ in range(2):
        found = list(engine.map(iter(batches)))
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    stopped = engine.map(iter(batches))
    np.testing.assert_allclose(next(stopped), expected[0], atol=1e-5)
    stopped.close()
    np.testing.assert_allclose(engine(*batches[3]), expected[3], atol=1e-5)
    # a body's part of a classifier
    body = open_or_skip(network, "encoder", kind)
    expected = plain_outputs(network.bort, "encoder", batches[0])
    np.testing.assert_allclose(body(*batches[0]), expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_token_types_and_heads_of_another_size(kind):
    settings = {"token_types": 2, "separator_id": 7}
    bert = tiny_bert(2, Architecture(2, 2, 8, 12, 3), **settings)
    network = Classifier(bert, 2, "pooled", dropout=0.0)
    network.initialize_head(1)
    ids, valid, _ = given(4, 3, 11)
    ids[:2, 2] = ids[0, 4] = 7
    for part in (None, "encoder"):
        engine = open_or_skip(network, part, kind)
        expected = plain_outputs(network, engine.part, (ids, valid))
        np.testing.assert_allclose(engine(ids, valid), expected, atol=1e-4)
    single = ids.copy()
    single[single == 7] = 8
    assert np.abs(engine(single, valid)[2] - expected[2]).max() < 1e-4  # no separator, one type
    assert (padded_batch("encoder", network)[0] == 7).any(axis=1).all()


def test_an_error_among_the_batches_comes_through():
    engine = open_or_skip(classifier(), None, "openvino")
    ids, valid, _ = given(0)

    def batches():
        yield ids, valid
        yield ids + VOCAB, valid
    outputs = engine.map(batches())
    with pytest.raises(BortError, match="token id"):
        list(outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_values_out_of_range_are_refused(kind):
    engine = open_or_skip(tiny_bert(0), "mlm", kind)
    ids, valid, positions = given(0)
    for wrong, message in (((ids + VOCAB, valid, positions), "token id"),
                           ((ids, valid + 20, positions), "valid_length"),
                           ((ids, valid, positions + 20), "position"), ((ids, valid), "position"),
                           ((ids[0], valid, positions), "shape")):
        with pytest.raises(BortError, match=message):
            engine(*wrong)


@have_both
def test_auto_falls_back_where_a_library_is_missing(monkeypatch):
    network = classifier()
    assert open_engine(network).report.kind == "openvino"
    for gone, taken in (("openvino", "onnxruntime"), ("onnxruntime", "mxnet")):
        monkeypatch.setitem(sys.modules, gone, None)
        report = open_engine(network).report
        assert report.kind == taken and "not installed: pip install" in report.refused[gone]
        with pytest.raises(Unavailable, match=f"{gone} is not installed"):
            open_engine(network, None, EngineOptions(gone))
    assert open_engine(network).report.to_dict()["engine"] == "mxnet"
    # the package that writes graphs is as necessary
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert open_engine(network).report.kind == "mxnet"


@have_openvino
def test_an_engine_that_computes_something_else_is_passed_over(monkeypatch):
    network = tiny_bert(0)
    call = openvino_engine.OpenVinoEngine.__call__
    monkeypatch.setattr(openvino_engine.OpenVinoEngine, "__call__",
                        lambda self, *batch: call(self, *batch) + 0.5)
    report = open_engine(network).report
    assert report.kind != "openvino" and "something else than the network" in report.refused["openvino"]
    with pytest.raises(BortError, match="something else"):
        open_engine(network, None, EngineOptions("openvino"))
    monkeypatch.setattr(openvino_engine.OpenVinoEngine, "__call__",
                        lambda self, *batch: call(self, *batch) * np.nan)
    with pytest.raises(BortError, match="not all finite"):
        open_engine(network, None, EngineOptions("openvino"))


@have_openvino
def test_little_work_is_not_worth_a_conversion():
    network = classifier()
    assert open_engine(network, work=Work(1e6)).report.kind == "mxnet"
    assert open_engine(network, work=Work(1e15, 40)).report.kind == "openvino"
    assert open_engine(network, None, EngineOptions("openvino"), work=Work(1e6)).report.kind == "openvino"
    large = 300 << 20
    cheapest = {flops: min(door.COSTS, key=lambda name: door.COSTS[name].seconds(Work(flops, 5), large))
                for flops in (1e10, 1e14)}
    assert cheapest == {1e10: "plain", 1e14: "openvino"}


@have_openvino
def test_bfloat16_is_close_and_refused_without_instructions(monkeypatch):
    network = classifier()
    for missing in (frozenset({"avx2"}), frozenset()):
        monkeypatch.setattr(openvino_engine, "cpu_flags", lambda flags=missing: flags)
        with pytest.raises(Unavailable, match="bfloat16 needs a CPU with"):
            open_engine(network, None, EngineOptions("openvino", "bfloat16"))
    monkeypatch.undo()
    if not openvino_engine.cpu_flags().intersection(openvino_engine.BFLOAT16_FLAGS):
        pytest.skip("no bfloat16 instructions")
    engine = open_engine(network, None, EngineOptions("openvino", "bfloat16"))
    ids, valid, _ = given(0)
    expected = plain_outputs(network, "classifier", (ids, valid))
    difference = np.abs(engine(ids, valid) - expected).max()
    assert 0 < difference < 0.05 * np.abs(expected).max()
    with pytest.raises(Unavailable, match="no bfloat16"):
        open_engine(network, None, EngineOptions("onnxruntime", "bfloat16"))


def test_float32_is_float32_where_the_processor_could_do_less():
    engine = open_or_skip(tiny_bert(0), "encoder", "openvino")
    batch = padded_batch("encoder", tiny_bert(0))
    engine(*batch)
    assert str(engine._request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")) == \
        "<Type: 'float32'>"


def test_options_are_checked():
    for wrong in ({"kind": "onnx"}, {"precision": "float16"}):
        with pytest.raises(BortError, match="is unknown; choose one of"):
            EngineOptions(**wrong)
    with pytest.raises(BortError, match="part 'pooler' is unknown"):
        open_engine(tiny_bert(0), "pooler")
    with pytest.raises(BortError, match="no classification head"):
        open_engine(tiny_bert(0), "classifier")
    for precision in ("int8", "auto"):
        with pytest.raises(BortError, match="needs calibration inputs"):
            open_engine(tiny_bert(0), None, EngineOptions(precision=precision))


def test_openvino_gets_its_own_form_of_the_graph():
    pytest.importorskip("onnx")
    network = tiny_bert(2)
    facts, arrays = onnx_graph.network_of(network), parameter_arrays(network)

    def kinds(model):
        return [node.op_type for node in model.graph.node]

    file = kinds(onnx_graph.build(facts, arrays, "encoder", {}))
    exact = kinds(onnx_graph.split_weights(facts, arrays, "encoder", clip=True)[0])
    fewer_bits = kinds(onnx_graph.split_weights(facts, arrays, "encoder")[0])
    depth = network.architecture.depth
    assert "Clip" not in file and file.count("Split") == depth and "Split" not in exact
    assert exact.count("Clip") == 5 * depth and "Clip" not in fewer_bits
