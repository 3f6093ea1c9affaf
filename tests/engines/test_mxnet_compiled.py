"""Compiled inference gives what the model gives, for every form, head and shape, and follows further
training."""
from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from bort.architecture import Architecture
from bort.backend.mxnet import autograd, mx
from bort.engines import mxnet_compiled, mxnet_graph
from bort.engines.mxnet_compiled import InferenceModel, compile_for_inference, trim
from bort.errors import BortError
from bort.models import HEADS, Classifier
from tests.tiny import MAX_LENGTH, NARROW, TINY, TYPED, VOCAB, pair_batch, tiny_batch, tiny_bert

WIDE = Architecture(3, 4, 16, 20)
EXACT = bool(mxnet_compiled.cpu_flags().intersection(mxnet_compiled.EXACT_INT8_FLAGS))
exact_int8 = pytest.mark.skipif(not EXACT,
                                reason="this CPU adds 8-bit products in 16 bits, where they can overflow")


def tiny_classifier(head="linear", outputs=3, architecture=TINY, seed=0):
    model = Classifier(tiny_bert(seed, architecture), outputs, head, dropout=0.0)
    model.initialize_head(seed + 5)
    return model


@pytest.mark.parametrize("form", ["product", "convolution", None])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("architecture", [TINY, WIDE, NARROW, Architecture(1, 1, 6, 5)], ids=str)
def test_hidden_states_and_logits_equal_the_models(architecture, padded, form):
    model = tiny_bert(1, architecture)
    compiled = InferenceModel(model, form=form)
    for batch, length in ((3, 7), (1, 5), (2, 8)):
        ids, valid, positions = tiny_batch(batch, batch, length, padded=padded)
        sequence, logits = model(ids, valid, positions)
        ours, our_logits = compiled(ids, valid, positions)
        np.testing.assert_allclose(ours.asnumpy(), sequence.asnumpy(), atol=2e-5)
        np.testing.assert_allclose(our_logits.asnumpy(), logits.asnumpy(), atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(compiled(ids, valid).asnumpy(), sequence.asnumpy(), atol=2e-5)
        for row, count in enumerate(valid.asnumpy().astype(int)):
            assert (ours.asnumpy()[row, count:] == 0).all()


@pytest.mark.parametrize("form", ["product", "convolution"])
@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("architecture", [WIDE, NARROW, Architecture(1, 2, 8, 12)], ids=str)
def test_classifiers_need_position_0_only(architecture, head, form):
    model = tiny_classifier(head, architecture=architecture)
    compiled = InferenceModel(model, form=form)
    for padded in (False, True):
        ids, valid, _ = tiny_batch(4, padded=padded)
        np.testing.assert_allclose(compiled(ids, valid).asnumpy(), model(ids, valid).asnumpy(), atol=1e-5)
    with pytest.raises(BortError, match="masked_positions"):
        compiled(ids, valid, tiny_batch(4)[2])


@pytest.mark.parametrize("form", ["product", "convolution"])
def test_token_types_are_the_models(form):
    model = tiny_bert(1, **TYPED)
    head = Classifier(tiny_bert(2, **TYPED), 3, dropout=0.0)
    head.initialize_head(0)
    for length in (9, 16):
        ids, valid, positions = pair_batch(length, length=length)
        for ours, theirs in zip(InferenceModel(model, form=form)(ids, valid, positions),
                                model(ids, valid, positions)):
            np.testing.assert_allclose(ours.asnumpy(), theirs.asnumpy(), atol=1e-4)
        np.testing.assert_allclose(InferenceModel(head, form=form)(ids, valid).asnumpy(),
                                   head(ids, valid).asnumpy(), atol=1e-5)
        untyped = model(ids, valid, None, mx.nd.zeros_like(ids)).asnumpy()
        assert np.abs(untyped - model(ids, valid).asnumpy()).max() > 0.1, "the types matter here"


@exact_int8
def test_int8_has_the_token_types():
    model = tiny_bert(1, Architecture(2, 2, 32, 48), **TYPED)
    ids, valid, _ = pair_batch(1, length=16)
    states = compile_for_inference(model, "int8", [(ids, valid)])(ids, valid).asnumpy()
    assert np.abs(states - model(ids, valid).asnumpy()).max() < 0.2
    assert np.abs(states - model(ids, valid, None, mx.nd.zeros_like(ids)).asnumpy()).max() > 0.5


def test_padding_has_no_effect_and_numpy_inputs_serve():
    compiled = compile_for_inference(tiny_bert(0))
    ids, valid, positions = (array.asnumpy() for array in tiny_batch(2))
    changed = ids.copy()
    for row, count in enumerate(valid.astype(int)):
        changed[row, count:] = (changed[row, count:] + 7) % VOCAB
    first, second = compiled(ids, valid), compiled(changed, valid.astype("int64"))
    np.testing.assert_array_equal(first.asnumpy(), second.asnumpy())
    assert compiled(ids.astype("int64"), valid, positions)[1].shape == (3, 2, VOCAB)
    assert compiled.architecture == TINY and compiled.vocab_size == VOCAB
    assert compiled.max_length == MAX_LENGTH


def test_an_earlier_result_is_not_overwritten():
    compiled = compile_for_inference(tiny_bert(0))
    ids, valid, _ = tiny_batch(0, padded=False)
    first = compiled(ids, valid)
    kept = first.asnumpy().copy()
    compiled(ids[:, ::-1], valid)
    mx.nd.waitall()
    np.testing.assert_array_equal(first.asnumpy(), kept)


def test_many_shapes_in_a_bounded_cache(monkeypatch):
    monkeypatch.setattr(mxnet_compiled, "MAX_GRAPHS", 3)
    model = tiny_bert(0)
    compiled = compile_for_inference(model)
    for batch, length in ((1, 4), (2, 4), (1, 16), (3, 9), (1, 4), (4, 24), (1, 1)):
        ids, valid, _ = tiny_batch(batch, batch, length)
        np.testing.assert_allclose(compiled(ids, valid).asnumpy(), model(ids, valid).asnumpy(), atol=2e-5)
        assert len(compiled._graphs) <= 3
    monkeypatch.setattr(mxnet_compiled, "MAX_GRAPH_BYTES", 1)
    compiled(ids[:, :1], mx.nd.ones((1,)))
    compiled(*tiny_batch(1, 2, 5)[:2])
    assert len(compiled._graphs) == 1


@pytest.mark.parametrize("form", ["product", "convolution"])
def test_refresh_follows_training(form):
    model = tiny_classifier("linear_extra")
    compiled = InferenceModel(model, form=form)
    ids, valid, _ = tiny_batch(0)
    before = compiled(ids, valid).asnumpy()
    trainer = mx.gluon.Trainer(model.collect_params(), "sgd", {"learning_rate": 0.05})
    with autograd.record():
        loss = (model(ids, valid) ** 2).sum()
    loss.backward()
    trainer.step(1, ignore_stale_grad=True)
    compiled.refresh()
    after = compiled(ids, valid).asnumpy()
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, model(ids, valid).asnumpy(), atol=1e-4, rtol=1e-4)
    # Nothing of the compiled form becomes part of the model.
    assert not any("qkv" in name for name in model._collect_params_with_prefix())


def test_what_the_model_refuses_is_refused():
    compiled = compile_for_inference(tiny_bert(0))
    for ids, valid, message in (([[0, VOCAB]], [2], "token id"), ([[0, 1]], [3], "valid_length"),
                                ([[0, 1]], [0], "valid_length"),
                                ([[0] * (MAX_LENGTH + 1)], [1], "max_length"), ([0, 1], [1], "shape")):
        with pytest.raises(BortError, match=message):
            compiled(np.array(ids), np.array(valid, dtype="float32"))


def test_trim_keeps_what_counts():
    ids = np.arange(3 * 20).reshape(3, 20) % VOCAB
    assert trim(ids, np.array([3, 9, 2])).shape == (3, 16)
    assert trim(ids, np.array([3, 17, 2])).shape == (3, 32)
    assert trim(ids, np.array([3, 17, 2]), max_length=24).shape == (3, 24)
    assert trim(np.zeros((40, 64), int), np.full(40, 33)).shape == (40, 36)
    assert trim(np.zeros((40, 64), int), np.full(40, 33), dtype="int8").shape == (40, 40)
    assert trim(np.zeros((1, 512), int), np.array([300])).shape == (1, 300)
    assert trim(np.zeros((1, 512), int), np.array([100])).shape == (1, 112)
    compiled = compile_for_inference(tiny_bert(0))
    for batch, length in ((1, 5), (3, 11), (3, 24)):
        ids, valid, _ = (array.asnumpy() for array in tiny_batch(7, batch, length))
        short = trim(ids, valid, MAX_LENGTH)
        whole, cut = compiled(ids, valid).asnumpy(), compiled(short, valid).asnumpy()
        width = min(whole.shape[1], cut.shape[1])
        np.testing.assert_allclose(cut[:, :width], whole[:, :width], atol=2e-5)


def hold_int8_beside_float32(attention, largest, states, logits):
    """``largest``: difference allowed of the largest state; ``states`` and ``logits``: correlations to
    exceed."""
    model = tiny_bert(0, WIDE)
    calibration = [tuple(a.asnumpy() for a in tiny_batch(seed, 4, 12)[:2]) for seed in range(6)]
    compiled = compile_for_inference(model, "int8", calibration, attention)
    assert any(name.startswith("layer0_context") for name in compiled.thresholds)
    for batch, length, padded in ((1, 12, False), (3, 9, True), (2, 20, True)):  # none of them calibrated on
        ids, valid, positions = tiny_batch(40 + batch, batch, length, padded=padded)
        expected, expected_logits = (array.asnumpy() for array in model(ids, valid, positions))
        ours, our_logits = (array.asnumpy() for array in compiled(ids, valid, positions))
        assert 0 < np.abs(ours - expected).max() < largest * np.abs(expected).max()
        assert np.corrcoef(ours.ravel(), expected.ravel())[0, 1] > states
        assert np.corrcoef(our_logits.ravel(), expected_logits.ravel())[0, 1] > logits
        assert (ours[expected == 0] == 0).all()


@exact_int8
@pytest.mark.parametrize("attention", [True, False])
def test_int8_is_close_for_shapes_it_was_not_calibrated_on(attention):
    hold_int8_beside_float32(attention, 0.25, 0.995, 0.99)


@pytest.mark.filterwarnings("ignore:this CPU has no VNNI")
@pytest.mark.parametrize("attention", [True, False])
def test_int8_resembles_float32_on_any_processor(attention):
    hold_int8_beside_float32(attention, 0.5, 0.95, 0.9)


def test_int8_says_where_products_can_overflow(monkeypatch):
    arguments = (tiny_bert(0), "int8", [tuple(a.asnumpy() for a in tiny_batch(0, padded=False)[:2])])
    monkeypatch.setattr(mxnet_compiled, "cpu_flags", lambda: frozenset({"avx2"}))
    with pytest.warns(UserWarning, match="no VNNI.*int8_accuracy"):
        compile_for_inference(*arguments)
    monkeypatch.setattr(mxnet_compiled, "cpu_flags", lambda: frozenset({"avx2", "avx_vnni"}))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="this CPU has no VNNI")
        compile_for_inference(*arguments)


def test_int8_thresholds_do_not_depend_on_the_calibrations_shape():
    model = tiny_classifier("pooled", architecture=WIDE)
    ids, valid, _ = tiny_batch(0, 2, 6, padded=False)
    plain = compile_for_inference(model, "int8", [(ids, valid)])
    # The same sequences with padding behind them, whose values must not widen any range.
    padded = compile_for_inference(model, "int8", [(mx.nd.concat(ids, ids, dim=1), valid)])
    assert set(plain.thresholds) == set(padded.thresholds)
    for name, values in plain.thresholds.items():
        np.testing.assert_allclose(padded.thresholds[name], values, atol=1e-5)
    if EXACT:
        np.testing.assert_allclose(plain(ids, valid).asnumpy(), model(ids, valid).asnumpy(), atol=0.1)


def test_int8_wants_data_that_is_sound():
    with pytest.raises(BortError, match="at least one batch"):
        compile_for_inference(tiny_bert(0), "int8")
    model = tiny_bert(0)
    model.encoder.position_weight.set_data(model.encoder.position_weight.data() * float("nan"))
    with pytest.raises(BortError, match="not finite"):
        compile_for_inference(model, "int8", [tiny_batch(0)[:2]])


def test_formats_without_instructions_are_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(mxnet_compiled, "cpu_flags", lambda: frozenset({"avx512f", "avx2"}))
    with pytest.raises(BortError, match="avx512_bf16 or amx_bf16"):
        compile_for_inference(tiny_bert(0), "bfloat16")
    monkeypatch.setattr(mxnet_compiled, "cpu_flags", lambda: frozenset({"sse4_2"}))
    with pytest.raises(BortError, match="int8 needs a CPU"):
        compile_for_inference(tiny_bert(0), "int8", [tiny_batch(0)[:2]])
    for dtype in ("float16", "int4"):
        with pytest.raises(BortError, match="dtype"):
            compile_for_inference(tiny_bert(0), dtype)


def test_bfloat16_is_close(monkeypatch):
    # oneDNN emulates bfloat16 on AVX-512, which is too slow to offer but enough to check the graph.
    if "avx512f" not in mxnet_compiled.cpu_flags():
        pytest.skip("no AVX-512")
    monkeypatch.setattr(mxnet_compiled, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    model = tiny_bert(0, WIDE)
    compiled = compile_for_inference(model, "bfloat16")
    ids, valid, positions = tiny_batch(0)
    expected, ours = model(ids, valid).asnumpy(), compiled(ids, valid, positions)[0].asnumpy()
    assert 0 < np.abs(ours - expected).max() < 0.05 * np.abs(expected).max()


def test_packed_weights_count_against_the_cache():
    spec = mxnet_graph.spec_of(tiny_bert(0))
    one = mxnet_graph.Shape(1, 16, False)
    linear = 2 * (4 * 8 * 8 + 2 * 8 * 12)
    before_gelu = 2 * 8 * 12
    plain = mxnet_graph.graph_bytes(spec, one, "product") - 4 * before_gelu
    assert mxnet_graph.graph_bytes(spec, one, "convolution") - plain == 4 * linear
    assert mxnet_graph.graph_bytes(spec, one, "int8") - plain == linear
    assert mxnet_graph.float32_form(spec, one) == "convolution"
    assert mxnet_graph.float32_form(spec, mxnet_graph.Shape(1, 17, False)) == mxnet_graph.float32_form(
        spec, mxnet_graph.Shape(1, 256, False)) == "product"


def test_float32_graphs_share_the_weights_of_their_products():
    compiled = compile_for_inference(tiny_bert(0))
    ids, valid, _ = tiny_batch(1)
    compiled(ids, valid)
    (shape,) = compiled._graphs
    nodes = json.loads(compiled._symbols[shape].tojson())["nodes"]
    fused_products = [node for node in nodes if node["op"] == "_sg_mkldnn_fully_connected"]
    assert len([node for node in nodes if node["op"] == "FullyConnected"]) == 3 * TINY.depth
    assert len(fused_products) == TINY.depth and all("gelu" in str(node["subgraphs"])
                                                     for node in fused_products)
    assert any(node["op"].startswith("_sg_mkldnn_selfatt") for node in nodes)


def test_a_classifier_trims_its_batches_itself():
    compiled = compile_for_inference(tiny_classifier())
    ids, valid, _ = tiny_batch(0, 3, 20)
    wide = compiled(ids, mx.nd.array([5.0, 16, 3]))
    np.testing.assert_allclose(wide.asnumpy(), compiled(ids[:, :16], mx.nd.array([5.0, 16, 3])).asnumpy(),
                               atol=1e-6)
    assert [shape.length for shape in compiled._graphs] == [16] and compiled.num_outputs == 3


def test_bfloat16_wants_amx_where_the_cpu_has_it(monkeypatch):
    monkeypatch.setattr(mxnet_compiled, "cpu_flags", lambda: frozenset({"avx512_bf16", "amx_bf16"}))
    monkeypatch.setattr(mxnet_compiled, "AMX", False)
    with pytest.raises(BortError, match="does not let this process use AMX"):
        mxnet_compiled.check_dtype("bfloat16")
    monkeypatch.setattr(mxnet_compiled, "AMX", True)
    mxnet_compiled.check_dtype("bfloat16")


def test_plain_products_are_forgotten_first(monkeypatch):
    compiled = InferenceModel(tiny_bert(0), form="product")
    one = mxnet_graph.graph_bytes(compiled.spec, mxnet_graph.Shape(1, 9, False), "product")
    monkeypatch.setattr(mxnet_compiled, "MAX_PRODUCT_BYTES", 2 * one)
    for length in (9, 8, 7, 8, 9):
        compiled(*(array.asnumpy() for array in tiny_batch(0, 1, length, padded=False)[:2]))
    assert [shape.length for shape in compiled._graphs] == [8, 9]
    compiled = InferenceModel(tiny_bert(0), form="convolution")
    for length in (9, 8, 7):
        compiled(*(array.asnumpy() for array in tiny_batch(0, 1, length, padded=False)[:2]))
    assert [shape.length for shape in compiled._graphs] == [9, 8, 7]
