"""The network is gluonnlp's BERTModel to rounding, and refuses what MXNet would silently clip."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bort.architecture import Architecture
from bort.backend.mxnet import autograd, mx
from bort.batching import token_types
from bort.errors import BortError
from bort.models import Bert, Classifier, initialize
from bort.models.initial_values import initial_value
from bort.models.selected_positions import by_sequence
from tests.models.numpy_reference import hidden_states, types_of
from tests.tiny import (
    MAX_LENGTH,
    NARROW,
    SEPARATOR,
    TINY,
    TYPED,
    VOCAB,
    pair_batch,
    tiny_batch,
    tiny_bert,
)


def gluonnlp_twin(model):
    """gluonnlp's own network with our parameters: an independent implementation of the same function."""
    from gluonnlp.model import BERTEncoder, BERTModel

    a = model.architecture
    encoder = BERTEncoder(num_layers=a.depth, units=a.hidden, hidden_size=a.intermediate,
                          max_length=MAX_LENGTH, num_heads=a.heads, dropout=0.0,
                          layer_norm_eps=model.layer_norm_eps)
    twin = BERTModel(encoder, VOCAB, units=a.hidden, embed_size=a.hidden, use_pooler=False,
                     token_type_vocab_size=model.token_types or None,
                     use_token_type_embed=bool(model.token_types), use_classifier=False)
    twin.initialize()
    ours, theirs = model._collect_params_with_prefix(), twin._collect_params_with_prefix()
    assert set(ours) == set(theirs)
    for name, parameter in theirs.items():
        assert all(extent in (0, ours[name].shape[axis]) for axis, extent in enumerate(parameter.shape))
        parameter.set_data(ours[name].data())
    return twin


@pytest.mark.parametrize("hybridize", [False, True])
@pytest.mark.parametrize("batch", [tiny_batch(5, padded=False), tiny_batch(5), pair_batch(5)],
                         ids=["whole", "padded", "pairs"])
@pytest.mark.parametrize("architecture", [TINY, Architecture(1, 4, 16, 5), Architecture(3, 1, 6, 30)],
                         ids=str)
def test_forward_and_gradients_equal_gluonnlps(architecture, batch, hybridize):
    # gluonnlp has one epsilon for both places; the release has two, tested below.
    ids, valid, positions = batch
    pairs = len(ids) == 4
    model = tiny_bert(3, architecture, mlm_layer_norm_eps=1e-5, **(TYPED if pairs else {}))
    twin = gluonnlp_twin(model)
    if hybridize:
        model.hybridize(static_alloc=True)
    types = mx.nd.array([types_of(row, SEPARATOR) for row in ids.asnumpy()], dtype="int32") if pairs else None
    results = []
    for network, call in ((model, lambda: model(ids, valid, positions)),
                          (twin, lambda: twin(ids, types, valid, positions))):
        with autograd.record():
            sequence, logits = call()
            loss = (sequence ** 3).sum() + (logits ** 2).sum() * 0.01
        loss.backward()
        gradients = {name: p.grad().asnumpy() for name, p in network._collect_params_with_prefix().items()}
        results.append((sequence.asnumpy(), logits.asnumpy(), gradients))
    (sequence, logits, gradients), (their_sequence, their_logits, their_gradients) = results
    np.testing.assert_allclose(sequence, their_sequence, atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(logits, their_logits, atol=1e-4, rtol=1e-4)
    largest = max(np.abs(gradient).max() for gradient in their_gradients.values())
    for name, gradient in gradients.items():
        # The gradient of a key's bias is zero but for rounding (softmax ignores it), hence the floor of the
        # scale.
        scale = np.abs(their_gradients[name]).max() + 1e-3 * largest
        np.testing.assert_allclose(gradient / scale, their_gradients[name] / scale, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("hybridize", [False, True])
@pytest.mark.parametrize("architecture", [TINY, NARROW, Architecture(1, 5, 16, 7, head_size=2)], ids=str)
def test_the_network_is_what_plain_numpy_computes(architecture, hybridize):
    model = tiny_bert(4, architecture)
    model.hybridize(hybridize, static_alloc=True)
    ids, valid, _ = tiny_batch(6, batch=3, length=9)
    states = model(ids, valid).asnumpy()
    for row, count in enumerate(valid.asnumpy().astype(int)):
        np.testing.assert_allclose(states[row, :count], hidden_states(model, ids.asnumpy()[row, :count]),
                                   atol=2e-5)
        assert (states[row, count:] == 0).all()


@pytest.mark.parametrize("hybridize", [False, True])
def test_token_types_follow_the_first_separator(hybridize):
    model = tiny_bert(4, **TYPED)
    model.hybridize(hybridize, static_alloc=True)
    ids, valid, _ = pair_batch(6)
    states, plain = model(ids, valid).asnumpy(), ids.asnumpy()
    kinds = set()
    for row, count in enumerate(valid.asnumpy().astype(int)):
        types = types_of(plain[row, :count], SEPARATOR)
        kinds.update(types)
        np.testing.assert_allclose(states[row, :count], hidden_states(model, plain[row, :count], types),
                                   atol=2e-5)
    assert kinds == {0, 1} and types == [0] * count, "pairs, and a single text as the last row"


def test_token_types_may_be_given():
    ids, valid, positions = pair_batch(6)
    given = mx.nd.array(np.random.default_rng(0).integers(0, 3, ids.shape), dtype="int32")
    model = tiny_bert(4, token_types=3)
    states, logits = model(ids, valid, positions, given)
    np.testing.assert_array_equal(states.asnumpy(), model(ids, valid, token_types=given).asnumpy())
    count = int(valid.asnumpy()[1])
    np.testing.assert_allclose(states.asnumpy()[1, :count], hidden_states(
        model, ids.asnumpy()[1, :count], given.asnumpy()[1, :count]), atol=2e-5)
    zeros = mx.nd.zeros_like(given)
    np.testing.assert_array_equal(model(ids, valid).asnumpy(), model(ids, valid, None, zeros).asnumpy())
    for network, wrong, message in ((model, given + 1, "token type 3 is outside 0..2"),
                                    (model, given[:, :4], "token_types"), (tiny_bert(), given, "0 types")):
        with pytest.raises(BortError, match=message):
            network(ids, valid, None, wrong)


def test_every_segment_past_the_last_type_has_it():
    ids = np.array([[7, 5, 7, 5, 5, 7], [7, 7, 7, 7, 7, 5]])
    for library, array in ((np, ids), (mx.nd, mx.nd.array(ids, dtype="int32"))):
        for separator, count, wanted in ((5, 2, [[0, 0, 1, 1, 1, 1], [0] * 6]),
                                         (5, 3, [[0, 0, 1, 1, 2, 2], [0] * 6]), (None, 2, [[0] * 6] * 2)):
            types = token_types(library, array, separator, count)
            np.testing.assert_array_equal(types if library is np else types.asnumpy(), wanted)


def test_a_head_size_of_its_own_shapes_the_attention_alone():
    wide, narrow = ({name: parameter.shape for name, parameter in tiny_bert(0, architecture)
                     ._collect_params_with_prefix().items()}
                    for architecture in (Architecture(2, 4, 16, 10), NARROW))
    changed = {name.split("cells.0.")[1]: narrow[name] for name in wide if wide[name] != narrow[name]
               and "cells.0." in name}
    projections = [f"attention_cell.proj_{name}" for name in ("query", "key", "value")]
    assert changed == {**{f"{name}.weight": (12, 16) for name in projections},
                       **{f"{name}.bias": (12,) for name in projections}, "proj.weight": (16, 12)}
    counted = sum(int(np.prod(shape)) for name, shape in narrow.items() if name != "decoder.3.weight")
    assert counted == NARROW.parameters(VOCAB, MAX_LENGTH)["total"]


def test_the_mlm_heads_epsilon_is_its_own():
    ids, valid, positions = tiny_batch(1)
    wide, narrow = tiny_bert(2, mlm_layer_norm_eps=1.0), tiny_bert(2, mlm_layer_norm_eps=1e-12)
    sequence, logits = narrow(ids, valid, positions)
    wide_sequence, wide_logits = wide(ids, valid, positions)
    np.testing.assert_array_equal(sequence.asnumpy(), wide_sequence.asnumpy())
    assert np.abs(logits.asnumpy() - wide_logits.asnumpy()).max() > 1e-3
    # By hand, in float64, from the hidden states.
    p = {name: value.data().asnumpy().astype("float64") for name,
         value in narrow._collect_params_with_prefix().items()}
    rows = sequence.asnumpy().astype("float64")[np.arange(3)[:, None], positions.asnumpy()]
    hidden = rows @ p["decoder.0.weight"].T + p["decoder.0.bias"]
    from scipy.special import erf
    hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
    centred = hidden - hidden.mean(-1, keepdims=True)
    hidden = centred / np.sqrt(hidden.var(-1, keepdims=True)
                               + 1e-12) * p["decoder.2.gamma"] + p["decoder.2.beta"]
    np.testing.assert_allclose(logits.asnumpy(), hidden @ p["word_embed.0.weight"].T + p["decoder.3.bias"],
                               atol=1e-3)


def test_padding_is_zero_and_without_effect():
    model = tiny_bert(0)
    ids, valid, _ = tiny_batch(2)
    changed = ids.asnumpy()
    for row, count in enumerate(valid.asnumpy().astype(int)):
        changed[row, count:] = (changed[row, count:] + 7) % VOCAB
    assert (changed != ids.asnumpy()).any()
    first, second = model(ids, valid).asnumpy(), model(mx.nd.array(changed, dtype="int32"), valid).asnumpy()
    np.testing.assert_array_equal(first, second)
    for row, count in enumerate(valid.asnumpy().astype(int)):
        assert (first[row, count:] == 0).all() and (first[row, :count] != 0).any()
    # A sequence alone gives what it gives in a padded batch.
    count = int(valid.asnumpy()[0])
    alone = model(ids[0:1, :count], valid[0:1]).asnumpy()
    np.testing.assert_allclose(alone[0], first[0, :count], atol=1e-5)


def test_one_block_serves_with_and_without_masked_positions():
    model = tiny_bert(0)
    model.hybridize(static_alloc=True)
    ids, valid, positions = tiny_batch(2)
    plain = model(ids, valid).asnumpy()
    sequence, logits = model(ids, valid, positions)
    np.testing.assert_array_equal(plain, sequence.asnumpy())
    assert logits.shape == (3, 2, VOCAB)
    assert model(ids[:, :4], mx.nd.minimum(valid, 4)).shape == (3, 4, 8)


@pytest.mark.parametrize("change, message", [(dict(ids=[[0, VOCAB]]), "token id 40 is outside 0..39"),
                                             (dict(ids=[[0, -1]]), "token id -1"),
                                             (dict(ids=[[0] * (MAX_LENGTH + 1)], valid=[3]),
                                              "longer than the model's max_length 24"),
                                             (dict(valid=[3]), "valid_length 3.0 is outside 1..2"),
                                             (dict(valid=[0]), "valid_length 0.0"),
                                             (dict(valid=[float("nan")]), "valid_length nan"),
                                             (dict(valid=[1, 1]), "shape"), (dict(ids=[1, 2]), "shape"),
                                             (dict(positions=[[2]]), "masked position 2"),
                                             (dict(positions=[[-1]]), "masked position -1"),
                                             (dict(positions=[[0], [1]]), "shape")])
def test_what_mxnet_would_clip_is_refused(change, message):
    model = tiny_bert(0)
    ids = mx.nd.array(change.get("ids", [[0, 1]]), dtype="int32")
    valid = mx.nd.array(change.get("valid", [2]), dtype="float32")
    positions = mx.nd.array(change["positions"], dtype="int32") if "positions" in change else None
    with pytest.raises(BortError, match=message):
        model(ids, valid, positions)
    with pytest.raises(BortError, match="float32"):
        model(mx.nd.zeros((1, 2), dtype="int32"), mx.nd.ones((1,), dtype="int32"))


def test_initialization_depends_on_seed_and_name_only():
    values = [{name: p.data().asnumpy() for name, p in tiny._collect_params_with_prefix().items()}
              for tiny in (make(0, TINY), make(0, Architecture(1, 2, 8, 12)), make(1, TINY))]
    for name, value in values[1].items():
        np.testing.assert_array_equal(value, values[0][name])
    assert (values[0]["word_embed.0.weight"] != values[2]["word_embed.0.weight"]).any()
    weight = values[0]["encoder.transformer_cells.0.ffn.ffn_1.weight"]
    # BERT's at Bort's width, and what keeps outputs as large at others
    deviation = 0.02 * np.sqrt(1024 / TINY.hidden)
    assert 0.5 * deviation < weight.std() < deviation and np.abs(weight).max() <= 2 * deviation
    assert (values[0]["encoder.layer_norm.gamma"] == 1).all() and (values[0]["decoder.3.bias"] == 0).all()
    np.testing.assert_array_equal(values[0]["decoder.3.weight"], values[0]["word_embed.0.weight"])


@pytest.mark.parametrize("name, shape, expected", [("word_embed.0.weight", (5000, 1024), 0.02),
                                                   ("encoder.transformer_cells.1.ffn.ffn_2.weight",
                                                    (64, 4096), 0.08),
                                                   ("encoder.transformer_cells.1.ffn.ffn_1.weight",
                                                    (4096, 64), 0.08), ("decoder.0.weight", (256, 256),
                                                                        0.04)])
def test_initial_deviation_goes_with_the_width(name, shape, expected):
    # A normal distribution cut at two deviations keeps 0.88 of its standard deviation.
    assert initial_value(name, shape, 0).std() == pytest.approx(0.8796 * expected, rel=0.02)


def make(seed, architecture):
    model = Bert(architecture, VOCAB, max_length=MAX_LENGTH)
    initialize(model, seed)
    return model


@pytest.mark.parametrize("head, layers",
                         [("linear", {"1": (3, 8)}), ("linear_extra", {"1": (8, 8), "3": (3, 8)}),
                          ("pooled", {"1": (8, 8), "3": (3, 8)})])
def test_heads_are_the_ones_described(head, layers):
    bert = tiny_bert(1)
    model = Classifier(bert, 3, head, dropout=0.0)
    model.initialize_head(4)
    parameters = model._collect_params_with_prefix()
    assert {name for name in parameters if name.startswith("classifier")} == {
        f"classifier.{number}.{part}" for number in layers for part in ("weight", "bias")}
    p = {name: value.data().asnumpy() for name, value in parameters.items()}
    for number, shape in layers.items():
        assert p[f"classifier.{number}.weight"].shape == shape
    last = p[f"classifier.{max(layers)}.weight"]
    assert 0.15 < np.abs(last).mean() < 0.35 and 0.4 < np.abs(last).max() <= 0.5
    ids, valid, _ = tiny_batch(3)
    x = bert(ids, valid).asnumpy()[:, 0]
    if "3" in layers:
        x = x @ p["classifier.1.weight"].T + p["classifier.1.bias"]
        x = np.tanh(x) if head == "pooled" else x
    np.testing.assert_allclose(model(ids, valid).asnumpy(), x @ last.T + p[f"classifier.{max(layers)}.bias"],
                               atol=1e-5)


def test_an_impossible_head_is_refused():
    for outputs, head in ((0, "linear"), (2, "quadratic"), (True, "linear"), ("2", "linear")):
        with pytest.raises(BortError):
            Classifier(tiny_bert(0), outputs, head)


@pytest.mark.parametrize("architecture, options",
                         [(TINY, {}), (Architecture(1, 2, 8, 12), {}), (NARROW, TYPED)], ids=str)
@pytest.mark.parametrize("hybridize",
                         [None, dict(static_alloc=True), dict(static_alloc=True, static_shape=True)])
def test_states_at_some_positions_are_the_networks_with_its_gradients(architecture, options, hybridize):
    model = tiny_bert(2, architecture, **options)
    ids, valid, positions = (pair_batch if options else tiny_batch)(3, batch=4, length=9, masked=3)
    every = (np.arange(4)[:, None] * 9 + positions.asnumpy()).ravel()
    parameters = {name: p for name, p in model._collect_params_with_prefix().items()
                  if not name.startswith("decoder.")}
    # N changes from call to call
    for turn, chosen in enumerate((every, every[:5], np.arange(0, 36, 9), every)):
        rows = mx.nd.array(chosen, dtype="int32")
        slope = mx.nd.array(np.random.default_rng(turn).normal(size=(len(chosen), architecture.hidden)))
        model.hybridize(False)
        with autograd.record():
            whole = mx.nd.take(model(ids, valid).reshape((-3, 0)), rows)
        whole.backward(slope)
        expected = {name: parameter.grad().asnumpy() for name, parameter in parameters.items()}
        if hybridize:
            model.hybridize(**hybridize)
        with autograd.record():
            states = model.states_at(ids, valid, rows)
        states.backward(slope)
        np.testing.assert_allclose(states.asnumpy(), whole.asnumpy(), rtol=1e-5, atol=1e-5)
        for name, parameter in parameters.items():
            np.testing.assert_allclose(parameter.grad().asnumpy(), expected[name], rtol=1e-4,
                                       atol=1e-5 * np.abs(expected[name]).max() + 1e-6, err_msg=name)


@given(st.integers(1, 6), st.integers(1, 9), st.data())
def test_rows_are_dealt_out_to_their_sequences(batch, length, data):
    rows = np.array(data.draw(st.lists(st.integers(0, batch * length - 1), min_size=1)))
    asking, places = by_sequence(rows, batch, length)
    np.testing.assert_array_equal(asking.reshape(-1)[places], rows)
    assert (asking // length == np.arange(batch)[:, None]).all(), "no sequence asks in another's name"
    assert asking.shape[1] == max(np.bincount(rows // length)) and len(set(places)) == len(rows)


def test_states_at_some_positions_follow_the_model_and_refuse_what_it_refuses():
    model = tiny_bert()
    ids, valid, _ = tiny_batch()
    rows = mx.nd.array([0, 8], dtype="int32")
    names = list(model._collect_params_with_prefix())
    model.hybridize(static_alloc=True)
    for _ in range(2):
        states = model.states_at(ids, valid, rows)
        model.encoder.position_weight.set_data(model.encoder.position_weight.data() * 3)
    assert list(model._collect_params_with_prefix()) == names, "nothing was added to what is saved"
    model.cast("float64")
    again = model.states_at(ids, valid, rows)
    assert again.dtype == np.float64 and np.abs(again.asnumpy() - states.asnumpy()).max() > 1e-3
    np.testing.assert_allclose(again.asnumpy(), model(ids, valid).reshape((-3, 0)).asnumpy()[[0, 8]],
                               rtol=1e-9)
    with pytest.raises(BortError, match="token id"):
        model.states_at(ids + VOCAB, valid, rows)
    for wrong in (-1, ids.size):
        with pytest.raises(BortError, match=f"row {wrong} is outside"):
            model.states_at(ids, valid, mx.nd.array([0, wrong], dtype="int32"))


@pytest.mark.parametrize("classifier_hybrid", [False, True])
def test_a_classifier_reads_the_first_position(classifier_hybrid):
    model = Classifier(tiny_bert(4), 3, "linear_extra", dropout=0.0)
    initialize(model, 0, only_missing=True)
    model.initialize_head(1)
    ids, valid, _ = tiny_batch(5)
    if classifier_hybrid:
        model.hybridize(static_alloc=True)
    expected = model.classifier(model.bort(ids, valid)[:, 0])
    np.testing.assert_allclose(model(ids, valid).asnumpy(), expected.asnumpy(), rtol=1e-5, atol=1e-6)
