"""Losses over the vocabulary: against finite differences, PyTorch's formula and MXNet's own
differentiation."""

from __future__ import annotations

import numpy as np
import pytest

from bort.backend.mxnet import autograd, nd
from bort.backend.numpy_views import host_view, row_argmax
from bort.errors import BortError
from bort.masked_lm.losses import BackwardOptions, LossWeights, gradient_in_place, head_backward, head_losses
from tests.tiny import TINY_TEACHER, VOCAB, tiny_batch, tiny_bert


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def expected_losses(s, t, y, weights):
    """The losses of module ``mlm_losses`` in float64: (mlm (n,), kd (n,))."""
    temperature = weights.temperature
    mlm = -log_softmax(s)[np.arange(len(y)), y]
    q = np.exp(log_softmax(t / temperature))
    if weights.kd_formula == "corrected":
        return mlm, -(q * log_softmax(s / temperature)).sum(-1) * temperature**2
    probabilities = np.exp(log_softmax(s / temperature))
    return mlm, (q * (np.log(q + 1e-12) - log_softmax(probabilities))).mean(-1) * temperature**2


def case(seed, n=5, vocab=17, spread=3.0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(n, vocab)) * spread,
        rng.normal(size=(n, vocab)) * spread,
        rng.integers(0, vocab, n),
    )


def run(s, t, y, weights):
    scores = nd.array(s, dtype="float32")
    teacher = None if t is None else nd.softmax(nd.array(t / weights.temperature, dtype="float32"))
    return gradient_in_place(scores, nd.array(y, dtype="int32"), weights, teacher), scores.asnumpy()


ALL = [
    LossWeights(0.3, 0.7, temperature, formula)
    for temperature in (2.0, 1.0, 0.5, 5.0)
    for formula in ("corrected", "released")
] + [LossWeights(0.0, 1.0), LossWeights(1.0, 0.0)]


@pytest.mark.parametrize("weights", ALL, ids=str)
def test_gradient_equals_finite_differences(weights):
    s, t, y = case(0)

    def total(values):
        mlm, kd = expected_losses(values, t, y, weights)
        return (weights.mlm_weight * mlm + weights.kd_weight * kd).sum()

    losses, gradient = run(s, t, y, weights)
    mlm, kd = expected_losses(s, t, y, weights)
    np.testing.assert_allclose(losses.mlm.asnumpy(), mlm, rtol=1e-5)
    np.testing.assert_allclose(losses.kd.asnumpy(), kd, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(losses.correct, s.argmax(-1) == y)
    numeric = np.zeros_like(s)
    for place in np.ndindex(*s.shape):
        step = np.zeros_like(s)
        step[place] = 1e-5
        numeric[place] = (total(s + step) - total(s - step)) / 2e-5
    np.testing.assert_allclose(gradient, numeric, atol=3e-6)


@pytest.mark.parametrize("weights", ALL, ids=str)
def test_losses_and_gradient_equal_pytorchs(weights):
    torch = pytest.importorskip("torch")
    functional, temperature = torch.nn.functional, weights.temperature
    s, t, y = case(1, n=6, vocab=300, spread=6.0)
    student = torch.tensor(s, requires_grad=True)
    mlm = functional.cross_entropy(student, torch.tensor(y), reduction="none")
    target = torch.softmax(torch.tensor(t) / temperature, -1)
    if weights.kd_formula == "corrected":
        kd = functional.cross_entropy(student / temperature, target, reduction="none") * temperature**2
    else:
        kd = (
            functional.kl_div(
                torch.log_softmax(torch.softmax(student / temperature, -1), -1), target, reduction="none"
            ).mean(-1)
            * temperature**2
        )
    (weights.mlm_weight * mlm + weights.kd_weight * kd).sum().backward()
    losses, gradient = run(s, t, y, weights)
    np.testing.assert_allclose(losses.mlm.asnumpy(), mlm.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(losses.kd.asnumpy(), kd.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, student.grad.numpy(), atol=2e-6)


def test_without_a_teacher_only_the_masked_language_model_is_left():
    s, _, y = case(2)
    losses, gradient = run(s, None, y, LossWeights(1.0, 0.0))
    assert losses.kd is None
    p = np.exp(log_softmax(s))
    p[np.arange(len(y)), y] -= 1
    np.testing.assert_allclose(gradient, p, atol=1e-6)


def test_logits_far_apart_stay_finite():
    s = np.array([[1000.0, -1000.0, 0.0], [-400.0, 0.0, 400.0]])
    t = np.array([[-1000.0, 1000.0, 0.0], [400.0, 0.0, -400.0]])
    y = np.array([1, 2])
    for weights in ALL[:8]:
        losses, gradient = run(s, t, y, weights)
        assert np.isfinite(losses.mlm.asnumpy()).all() and np.isfinite(losses.kd.asnumpy()).all()
        np.testing.assert_allclose(losses.mlm.asnumpy(), [2000, 0], atol=1e-2)
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0.2


def test_the_released_term_distils_next_to_nothing():
    s, t, y = case(3, vocab=2000)
    corrected, released = (
        run(s, t, y, LossWeights(0.0, 1.0, 2.0, formula))[1] for formula in ("corrected", "released")
    )
    assert np.abs(released).sum() < 1e-3 * np.abs(corrected).sum()


def test_gradient_takes_the_place_of_the_logits():
    s, t, y = case(4)
    scores, teacher = nd.array(s, dtype="float32"), nd.softmax(nd.array(t, dtype="float32"))
    where = host_view(scores)
    gradient_in_place(scores, nd.array(y, dtype="int32"), LossWeights(), teacher)
    assert host_view(scores).ctypes.data == where.ctypes.data
    np.testing.assert_array_equal(where, scores.asnumpy())
    # The teacher's array became its part of the gradient: no third array of this shape is needed.
    q = np.exp(log_softmax(s / 2)) - np.exp(log_softmax(t))
    np.testing.assert_allclose(teacher.asnumpy(), q * 0.5 * 2, atol=1e-6)


@pytest.mark.parametrize("hybridize", [False, True])
@pytest.mark.parametrize("positions_at_a_time", [100, 5, 1])
def test_head_backward_equals_automatic_differentiation(hybridize, positions_at_a_time):
    model, teacher = tiny_bert(0), tiny_bert(3, TINY_TEACHER)
    ids, valid, positions = tiny_batch(1, batch=4, length=9, masked=3)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, VOCAB, 12)
    rows = nd.array((np.arange(4)[:, None] * 9 + positions.asnumpy()).ravel(), dtype="int32")
    target = nd.softmax(teacher(ids, valid, positions)[1].reshape((-1, VOCAB)) / 2)
    parameters = model._collect_params_with_prefix()
    with autograd.record():
        logits = model(ids, valid, positions)[1].reshape((-1, VOCAB))
        mlm = -nd.pick(nd.log_softmax(logits), nd.array(labels))
        kd = -(target * nd.log_softmax(logits / 2)).sum(-1) * 4
        loss = (0.3 * mlm + 0.7 * kd).sum()
    loss.backward()
    expected = {name: parameter.grad().asnumpy() for name, parameter in parameters.items()}
    if hybridize:
        model.hybridize(static_alloc=True)
    parameters["word_embed.0.weight"].grad_req = "add"
    parameters["word_embed.0.weight"].grad()[:] = 777.0  # replaced, not added to
    arguments = (
        model.vocabulary_projection,
        labels,
        LossWeights(0.3, 0.7),
        lambda start, stop: target[start:stop].copy(),
    )
    most = positions_at_a_time * VOCAB
    with autograd.record():
        states = model.masked_states(ids, valid, rows)
    sums = head_backward(states, *arguments, BackwardOptions(scale=4.0, max_elements=most))
    for name, parameter in parameters.items():
        tolerance = 1e-5 * np.abs(expected[name]).max() + 1e-6
        np.testing.assert_allclose(
            parameter.grad().asnumpy() / 4, expected[name], atol=tolerance, err_msg=name
        )
    assert sums.mlm == pytest.approx(mlm.sum().asscalar(), rel=1e-5)
    assert sums.kd == pytest.approx(kd.sum().asscalar(), rel=1e-5)
    assert sums.positions == 12 and sums.correct == (logits.asnumpy().argmax(-1) == labels).sum()
    for parameter in parameters.values():
        parameter.grad_req = "add"
    with autograd.record():
        states = model.masked_states(ids, valid, rows)
    head_backward(states, *arguments, BackwardOptions(add=True, max_elements=most))
    with autograd.record():
        states = model.masked_states(ids, valid, rows)
    head_backward(states, *arguments, BackwardOptions(add=True, max_elements=most))
    for name, parameter in parameters.items():
        # the others were emptied by grad_req
        start = 4 if name in ("word_embed.0.weight", "decoder.3.weight") else 0
        tolerance = 1e-4 * np.abs(expected[name]).max() + 1e-5
        np.testing.assert_allclose(
            parameter.grad().asnumpy(), (start + 2) * expected[name], atol=tolerance, err_msg=name
        )
    evaluated = head_losses(states, *arguments[:2], max_elements=most)
    assert evaluated.mlm == pytest.approx(sums.mlm, rel=1e-5) and evaluated.correct == sums.correct
    # With a body, and the vocabulary matrix, that are fixed, the rest of the head learns the same.
    head = [f"decoder.{name}" for name in ("0.weight", "0.bias", "2.gamma", "2.beta", "3.bias")]
    for name, parameter in parameters.items():
        parameter.grad_req = "write" if name in head else "null"
    body = model.states_at(ids, valid, rows)
    with autograd.record():
        states = model.mlm_states(body)
    head_backward(states, *arguments, BackwardOptions(max_elements=most))
    for name in head:
        tolerance = 1e-5 * np.abs(expected[name]).max() + 1e-6
        np.testing.assert_allclose(
            parameters[name].grad().asnumpy(), expected[name], atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"temperature": 0.0}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"mlm_weight": -1.0}, "negative"),
        ({"kd_weight": float("inf")}, "negative"),
        ({"mlm_weight": 0.0, "kd_weight": 0.0}, "both 0"),
        ({"kd_formula": "fixed"}, "corrected, released"),
    ],
)
def test_impossible_weights_are_refused(wrong, message):
    with pytest.raises(BortError, match=message):
        LossWeights(**wrong)


def test_host_views_are_of_the_same_memory():
    array = nd.array(np.arange(6).reshape(2, 3), dtype="float32")
    host_view(array)[0, 2] = 9
    assert array.asnumpy().tolist() == [[0, 1, 9], [3, 4, 5]]
    assert row_argmax(array).tolist() == [2, 2]
    assert host_view(array.astype("float64")) is None
    assert row_argmax(array.astype("float64")).tolist() == [2, 2]
