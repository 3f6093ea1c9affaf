"""Linear layers in bfloat16: gradients within its rounding, whatever is recorded, added or compiled."""

from __future__ import annotations

import numpy as np
import pytest

from bort.backend.mxnet import autograd, gluon, nd
from bort.masked_lm.batches import make_batch
from bort.masked_lm.losses import BackwardOptions, LossWeights, head_backward
from bort.masked_lm.teacher import LiveTeacher
from bort.masked_lm.vocabulary_product import product_of
from bort.models.precision import Linear, products_in, set_products
from tests.pretraining.common import corpus
from tests.tiny import MAX_LENGTH, TINY_TEACHER, VOCAB, needs_bfloat16, tiny_batch, tiny_bert

ROUNDING = 2.0**-8
"""The largest relative error of one number in bfloat16."""


def relative(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@needs_bfloat16
@pytest.mark.parametrize("hybridize", [False, True])
@pytest.mark.parametrize("kind, times", [("write", 1), ("add", 2)])
def test_a_layer_gives_float32_and_gradients_within_rounding(hybridize, kind, times):
    rng = np.random.default_rng(0)
    shapes = (3, 11, 64), (48, 64), 48, (3, 11, 48)
    x, weight, bias, slope = map(rng.standard_normal, shapes)
    layer = Linear(48, in_units=64)
    layer.initialize()
    layer.weight.set_data(nd.array(weight))
    layer.bias.set_data(nd.array(bias))
    layer.collect_params().setattr("grad_req", kind)
    if hybridize:
        layer.hybridize(static_alloc=True)
    inputs = nd.array(x)
    inputs.attach_grad(kind)
    with products_in(layer, "bfloat16"):
        for _ in range(2):
            with autograd.record():
                outputs = layer(inputs)
            outputs.backward(nd.array(slope))
    rows, slopes = x.reshape(-1, 64), slope.reshape(-1, 48)
    for found, expected in (
        (outputs, x @ weight.T + bias),
        (inputs.grad, times * (slope @ weight)),
        (layer.weight.grad(), times * (slopes.T @ rows)),
        (layer.bias.grad(), times * slopes.sum(axis=0)),
    ):
        assert found.dtype == np.float32
        assert 1e-6 < relative(found.asnumpy(), expected) < ROUNDING
    exact = layer(inputs).asnumpy()
    assert relative(exact, x @ weight.T + bias) < 1e-6, "as before once the block is left"


def gradients(model, product, batch, labels, kind, most):
    """Of one masked-LM step, or of two that are added up, by parameter name."""
    parameters = model._collect_params_with_prefix()
    for name, parameter in parameters.items():
        parameter.grad_req = "add" if kind == "add" or name == "word_embed.0.weight" else "write"
        parameter.zero_grad()
    for _ in range(2 if kind == "add" else 1):
        with autograd.record():
            states = model.masked_states(*batch)
        options = BackwardOptions(add=kind == "add", max_elements=most * VOCAB)
        sums = head_backward(states, product, labels, LossWeights(1.0, 0.0), None, options)
    return sums, {name: parameter.grad().asnumpy() for name, parameter in parameters.items()}


@needs_bfloat16
@pytest.mark.parametrize("hybridize", [False, True])
@pytest.mark.parametrize("kind, most", [("write", 100), ("write", 5), ("add", 100)])
def test_a_networks_gradients_are_those_of_float32_within_rounding(hybridize, kind, most):
    model = tiny_bert(0)
    ids, valid, positions = tiny_batch(1, batch=4, length=9, masked=3)
    rows = nd.array((np.arange(4)[:, None] * 9 + positions.asnumpy()).ravel(), dtype="int32")
    labels = np.random.default_rng(0).integers(0, VOCAB, 12)
    if hybridize:
        model.hybridize(static_alloc=True)
    projection, batch = model.vocabulary_projection, (ids, valid, rows)
    exact, expected = gradients(model, product_of(projection, "float32"), batch, labels, kind, most)
    with products_in(model, "bfloat16"):
        product = product_of(projection, "bfloat16")
        rounded, found = gradients(model, product, batch, labels, kind, most)
        again = gradients(model, product, batch, labels, kind, most)[1]
    assert rounded.mlm == pytest.approx(exact.mlm, rel=ROUNDING) and rounded.mlm != exact.mlm
    together = [
        np.concatenate([values[name].ravel() for name in sorted(values)]) for values in (found, expected)
    ]
    assert relative(*together) < 2 * ROUNDING
    for name, values in expected.items():
        if np.linalg.norm(values) > 1e-3 * np.linalg.norm(together[1]):
            assert relative(found[name], values) < 6 * ROUNDING, name
        np.testing.assert_array_equal(again[name], found[name], err_msg=name)
    back = gradients(model, projection, batch, labels, kind, most)[1]
    for name, values in expected.items():
        np.testing.assert_array_equal(back[name], values, err_msg=name)


@needs_bfloat16
def test_a_frozen_vocabulary_leaves_the_bias_its_gradient():
    model = tiny_bert(0)
    states = nd.random.normal(shape=(12, 8))
    states.attach_grad()
    labels = np.arange(12)
    found = {}
    model.word_vectors.grad_req = "null"
    for dtype in ("float32", "bfloat16"):
        with autograd.record():
            recorded = states * 1.0
        head_backward(recorded, product_of(model.vocabulary_projection, dtype), labels, LossWeights(1.0, 0.0))
        found[dtype] = model.vocabulary_projection.bias.grad().asnumpy(), states.grad.asnumpy()
    for rounded, exact in zip(found["bfloat16"], found["float32"]):
        assert 0 < relative(rounded, exact) < 2 * ROUNDING


def test_nothing_is_compiled_again_where_nothing_changes():
    net = gluon.nn.HybridSequential()
    net.add(Linear(3, in_units=2))
    net.initialize()
    net.hybridize()
    net(nd.ones((1, 2)))
    compiled = net._cached_op
    with products_in(net, "float32"):
        assert net._cached_op is compiled
    assert set_products(net, "bfloat16") == "float32" and net._cached_op is None
    assert set_products(net, "float32") == "bfloat16"


@needs_bfloat16
@pytest.mark.parametrize("vocab_size", [VOCAB, VOCAB - 7, VOCAB + 3])
def test_a_teacher_in_bfloat16_answers_within_rounding(vocab_size):
    model = tiny_bert(3, TINY_TEACHER)
    batch = make_batch(corpus().train, np.arange(6), corpus().policy, 0, 0, 1, MAX_LENGTH)
    found, expected = (
        LiveTeacher(model, 2.0, vocab_size, None, dtype).targets(batch)(0, len(batch.rows)).asnumpy()
        for dtype in ("bfloat16", "float32")
    )
    assert found.shape == expected.shape == (len(batch.rows), vocab_size) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert 0 < relative(found, expected) < 2 * ROUNDING
