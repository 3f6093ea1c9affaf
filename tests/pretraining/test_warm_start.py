"""A student out of a larger network: nothing changes at equal sizes, the right parts stay at smaller ones."""

from __future__ import annotations

import numpy as np
import pytest

from bort.architecture import Architecture
from bort.backend.mxnet import mx
from bort.checkpoints.model_folder import parameter_arrays, set_parameters
from bort.errors import BortError
from bort.models import Bert, initialize
from bort.pretraining.inputs import make_student
from bort.pretraining.warm_start import layers_kept, principal_components, shrunk

LARGE = Architecture(3, 4, 32, 48)
VOCAB = 60


@pytest.fixture(scope="module")
def arrays():
    model = Bert(LARGE, VOCAB, max_length=16, token_types=2, separator_id=2)
    initialize(model, 3)
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(0.1, 0.3, array.shape).astype("float32")
        for name, array in parameter_arrays(model).items()
    }


def outputs(xi, arrays):
    model = Bert(xi, VOCAB, max_length=16, token_types=2, separator_id=2)
    initialize(model, 0)
    set_parameters(model, arrays, "here")
    tokens = mx.nd.array([[5, 6, 2, 8, 9, 2], [7, 5, 2, 1, 1, 1]], dtype="int32")
    return model(tokens, mx.nd.array([6, 3])).asnumpy()


def test_a_network_of_the_same_size_is_the_same_network(arrays):
    same = shrunk(arrays, LARGE, LARGE)
    assert set(same) == set(arrays)
    assert all(np.array_equal(same[name], arrays[name]) for name in arrays)


def test_parts_that_weigh_nothing_are_those_that_go(arrays):
    silent = {name: array.copy() for name, array in arrays.items()}
    for layer in range(3):
        cell = f"encoder.transformer_cells.{layer}."
        silent[cell + "proj.weight"][:, 8:16] = 0  # the second of four heads
        silent[cell + "ffn.ffn_2.weight"][:, ::2] = 0  # every other neuron
    small = Architecture(3, 3, 32, 24, head_size=8)
    found = outputs(small, shrunk(silent, LARGE, small))
    assert np.abs(found - outputs(LARGE, silent)).max() < 1e-5


def test_layers_are_evenly_spaced_and_the_last_one_stays(arrays):
    assert [layers_kept(6, kept) for kept in (1, 2, 3, 6)] == [[5], [2, 5], [1, 3, 5], [0, 1, 2, 3, 4, 5]]
    assert layers_kept(12, 5)[-1] == 11 and len(set(layers_kept(12, 5))) == 5
    one = shrunk(arrays, LARGE, Architecture(1, 4, 32, 48))
    first, last = (f"encoder.transformer_cells.{layer}.ffn.ffn_1.bias" for layer in (0, 2))
    assert np.array_equal(one[first], arrays[last])


def test_word_vectors_keep_what_tells_them_apart(arrays):
    flat = dict(arrays)
    rng = np.random.default_rng(1)
    flat["word_embed.0.weight"] = (rng.normal(size=(VOCAB, 8)) @ rng.normal(size=(8, 32))).astype("float32")
    words = flat["word_embed.0.weight"]
    small = shrunk(flat, LARGE, Architecture(2, 2, 8, 16))["word_embed.0.weight"]
    distances = [np.linalg.norm(table[:, None] - table[None], axis=2) for table in (words, small)]
    assert small.shape == (VOCAB, 8) and np.abs(distances[0] - distances[1]).max() < 1e-3
    basis = principal_components(words, 8)
    assert np.abs(basis.T @ basis - np.eye(8)).max() < 1e-10
    student = Architecture(2, 2, 8, 16)
    assert outputs(student, shrunk(flat, LARGE, student)).shape == (2, 6, 8)


@pytest.mark.parametrize("xi", [(4, 4, 32, 48), (3, 4, 64, 48), (3, 4, 32, 49)])
def test_what_is_larger_is_refused(arrays, xi):
    with pytest.raises(BortError, match="is larger than its ⟨3, 4, 32, 48⟩"):
        shrunk(arrays, LARGE, Architecture(*xi))


def test_it_needs_an_architecture_and_no_other_start():
    for architecture, init in ((None, None), ("2,2,8,16", "folder")):
        with pytest.raises(BortError, match="--warm-start needs --architecture, and no --init"):
            make_student(architecture, init, None, 0, warm_start="large")
