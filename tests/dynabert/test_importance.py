"""Importance by hand and against a head mask; rewiring changes nothing; slices equal extraction."""
from __future__ import annotations

import numpy as np
import pytest

from bort.architecture import Architecture
from bort.dynabert.adaptive import measure_importance, rewire_classifier
from bort.dynabert.extraction import cut
from bort.dynabert.grid import Multipliers, grid
from bort.dynabert.importance import Importance
from bort.dynabert.rewiring import head_units, rewire
from bort.dynabert.subnetworks import SubNetwork
from bort.errors import BortError
from bort.finetuning.loop import TrainingData
from tests.tiny import VOCAB, tiny_bert

FULL = Architecture(4, 4, 16, 12)


def classifier(seed=0, outputs=3, architecture=FULL, **settings):
    from bort.models import Classifier, initialize

    model = Classifier(tiny_bert(seed, architecture, **settings), outputs, "linear", 0.0)
    initialize(model, seed, only_missing=True)
    model.initialize_head(seed)
    return model


def examples(count=12, seed=0, outputs=3):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(4, VOCAB, rng.integers(3, 12)).astype(np.int32) for _ in range(count)]
    labels = rng.integers(0, outputs, count) if outputs > 1 else rng.random(count).astype("float32")
    return TrainingData(rows, labels)


def batch(seed=1, size=5, length=9):
    from bort.backend.mxnet import nd

    rng = np.random.default_rng(seed)
    ids = rng.integers(4, VOCAB, (size, length)).astype("int32")
    return nd.array(ids, dtype="int32"), nd.array(rng.integers(2, length + 1, size).astype("float32"))


def test_importance_of_a_hand_computed_layer():
    architecture = Architecture(1, 2, 2, 2)
    cell = "encoder.transformer_cells.0."
    weights = {cell + "proj.weight": np.array([[1., 2.], [3., 4.]]),
               cell + "ffn.ffn_1.weight": np.array([[1., -1.], [2., 0.]]),
               cell + "ffn.ffn_1.bias": np.array([1., 3.]),
               cell + "ffn.ffn_2.weight": np.array([[1., 2.], [-1., 1.]])}
    gradients = {cell + "proj.weight": np.array([[1., -1.], [1., 1.]]),
                 cell + "ffn.ffn_1.weight": np.array([[1., 2.], [1., 5.]]),
                 cell + "ffn.ffn_1.bias": np.array([-2., 1.]),
                 cell + "ffn.ffn_2.weight": np.array([[1., 1.], [3., 1.]])}
    found = Importance.zeros(architecture)
    found.add(architecture, weights, gradients)
    # heads: |1*1 + 3*1| = 4 and |2*-1 + 4*1| = 2; neurons: |1*1 - 1*2 + 1*-2| + |1*1 - 1*3| = 3 + 2, and
    # |2*1 + 0 + 3*1| + |2*1 + 1*1| = 5 + 3.
    np.testing.assert_array_equal(found.heads, [[4, 2]])
    np.testing.assert_array_equal(found.neurons, [[5, 8]])
    found.add(architecture, weights, {name: -array for name, array in gradients.items()})
    np.testing.assert_array_equal(found.heads, [[8, 4]])  # absolute values are added, not gradients


def test_head_importance_is_the_gradient_of_a_mask_on_the_attention():
    from bort.backend.mxnet import nd
    from bort.finetuning.losses import hard_loss

    model, data = classifier(scale=2.0), examples(6)
    found = measure_importance(model, data, 6, 6, 1, seed=0)
    from bort.batching import pad_batch
    ids, valid = pad_batch([data.token_ids[i] for i in np.argsort([len(r) for r in data.token_ids])], 1, 24)
    order = np.argsort([len(row) for row in data.token_ids])
    labels = nd.array(np.asarray(data.labels)[order], dtype="float32")

    def loss():
        scores = model(nd.array(ids, dtype="int32"), nd.array(valid))
        return float(hard_loss(scores, labels).mean().asscalar())

    def slope(weight, original, head, step):
        values = []
        for factor in (1 + step, 1 - step):
            changed = original.copy()
            changed[:, head_units(np.array([head]), FULL.head_size)] *= factor
            weight.set_data(nd.array(changed))
            values.append(loss())
        weight.set_data(nd.array(original))
        return (values[0] - values[1]) / (2 * step)

    # A factor on a head's attention probabilities is one on its columns of the output projection.
    for layer in (0, 3):
        weight = list(model.bort.encoder.transformer_cells)[layer].proj.weight
        original = weight.data().asnumpy()
        for head in range(FULL.heads):
            numeric = (4 * slope(weight, original, head, 0.02) - slope(weight, original, head, 0.04)) / 3
            assert found.heads[layer, head] == pytest.approx(abs(numeric), rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("outputs", [3, 1])
def test_rewiring_sorts_and_leaves_the_function_as_it_was(outputs):
    model, data = classifier(outputs=outputs, scale=2.0), examples(20, outputs=outputs)
    ids, valid = batch()
    before = model(ids, valid).asnumpy()
    first = measure_importance(model, data, 20, 4, 1, seed=3)
    assert (np.diff(first.heads, axis=1) > 0).any() and (np.diff(first.neurons, axis=1) > 0).any()
    rewire_classifier(model, first)
    np.testing.assert_allclose(model(ids, valid).asnumpy(), before, rtol=1e-5, atol=1e-6)
    again = measure_importance(model, data, 20, 4, 1, seed=3)
    np.testing.assert_allclose(again.heads, -np.sort(-first.heads, axis=1), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(again.neurons, -np.sort(-first.neurons, axis=1), rtol=1e-3, atol=1e-7)


def test_rewiring_a_masked_language_model_leaves_its_logits_as_they_were():
    from bort.backend.mxnet import nd
    from bort.checkpoints.model_folder import parameter_arrays, set_parameters

    model = tiny_bert(4, FULL)
    ids, valid = batch()
    positions = nd.zeros((ids.shape[0], 1), dtype="int32")
    before = [array.asnumpy() for array in model(ids, valid, positions)]
    rng = np.random.default_rng(0)
    importance = Importance(rng.random((4, 4)), rng.random((4, 12)))
    arrays = parameter_arrays(model)
    set_parameters(model, rewire(arrays, FULL, importance), "")
    assert any(not np.array_equal(arrays[name], array) for name, array in parameter_arrays(model).items())
    for old, new in zip(before, model(ids, valid, positions)):
        np.testing.assert_allclose(new.asnumpy(), old, rtol=1e-5, atol=2e-6)


def test_importance_needs_finite_gradients_and_data():
    model = classifier()
    with pytest.raises(BortError, match="no batch"):
        measure_importance(model, TrainingData([], np.zeros(0)), 4, 2, 1, 0)
    bad = Importance(np.full((1, 2), np.nan), np.ones((1, 2)))
    with pytest.raises(BortError, match="not finite"):
        bad.check()


def test_layers_heads_and_neurons_that_stay():
    base = Architecture(12, 12, 768, 3072)
    assert Multipliers(1, 0.75).layers(base) == (0, 1, 2, 4, 5, 6, 8, 9, 10)
    assert Multipliers(1, 0.5).layers(base) == (0, 2, 4, 6, 8, 10)
    assert Multipliers(1, 0.5).matched(base) == (0, 2, 4, 6, 8, 10, 12)
    half = Multipliers(0.5, 0.75).architecture(base)
    assert (half.depth, half.heads, half.hidden, half.intermediate, half.head_size) == (9, 6, 768, 1536, 64)
    assert Multipliers(0.1, 1).architecture(Architecture(2, 4, 16, 12)).heads == 1  # never none
    assert Multipliers(0.1, 0.1).layers(Architecture(3, 4, 16, 12)) == (0,)
    assert Multipliers(1, 1).architecture(base) == base
    assert [str(one) for one in grid([0.5, 1], [1], base)] == ["width 1, depth 1", "width 0.5, depth 1"]
    assert len(grid([1, 0.99], [1], Architecture(2, 2, 8, 8))) == 1  # both come to the full network
    with pytest.raises(BortError, match="must both contain 1"):
        grid([0.5], [1], base)
    with pytest.raises(BortError, match="share above 0"):
        Multipliers(0, 1)


TYPES = {"token_types": 2, "separator_id": 5}


@pytest.mark.parametrize("types", [{}, TYPES])
def test_rewiring_with_token_types_or_none(types):
    model, data = classifier(outputs=3, scale=2.0, **types), examples(12)
    ids, valid = batch()
    before = model(ids, valid).asnumpy()
    rewire_classifier(model, measure_importance(model, data, 12, 4, 1, seed=3))
    np.testing.assert_allclose(model(ids, valid).asnumpy(), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chosen, types", [
    (Multipliers(1, 1), TYPES), (Multipliers(0.5, 1), {}), (Multipliers(0.75, 0.5), TYPES),
    (Multipliers(0.25, 0.75), {})])
def test_a_sliced_network_equals_the_extracted_one_and_shares_its_parameters(chosen, types):
    from bort.checkpoints.model_folder import parameter_arrays, set_parameters
    from bort.models import Bert, Classifier

    model = classifier(7, scale=2.0, **types)
    ids, valid = batch()
    sub = SubNetwork(model, chosen)
    arrays = {name[5:] if name.startswith("bort.") else name: array
              for name, array in parameter_arrays(model).items()}
    own = Classifier(Bert(chosen.architecture(FULL), VOCAB, 24, 0.0, **types), 3, "linear", 0.0)
    set_parameters(own, cut(arrays, FULL, chosen), "")
    np.testing.assert_allclose(sub(ids, valid).asnumpy(), own(ids, valid).asnumpy(), rtol=1e-5, atol=1e-6)
    if chosen == Multipliers(1, 1):
        np.testing.assert_allclose(sub(ids, valid).asnumpy(), model(ids, valid).asnumpy(), rtol=1e-5,
                                   atol=1e-6)
    weight = list(model.bort.encoder.transformer_cells)[0].ffn.ffn_1.weight
    before = sub(ids, valid).asnumpy()
    weight.set_data(weight.data() * 2)
    assert np.abs(sub(ids, valid).asnumpy() - before).max() > 1e-4  # nothing was copied
