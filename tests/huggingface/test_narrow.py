"""A network with fewer heads than fill its hidden states, at Hugging Face and back."""
from __future__ import annotations

import numpy as np
import pytest

import bort
from bort.architecture import Architecture
from bort.errors import BortError
from bort.huggingface import export_folder, import_folder
from tests.tiny import VOCAB, tiny_bert

NARROW = Architecture(2, 3, 16, 10, head_size=4)


def test_heads_of_zeros_change_no_output(tmp_path):
    from bort.backend.mxnet import nd

    bort.save(tiny_bert(3, NARROW, scale=2.0), tmp_path / "narrow")
    export_folder(tmp_path / "narrow", tmp_path / "hf")
    import_folder(tmp_path / "hf", tmp_path / "back")
    narrow, back = bort.load(tmp_path / "narrow"), bort.load(tmp_path / "back")
    assert back.architecture == Architecture(2, 4, 16, 10)
    ids = nd.array(np.random.default_rng(0).integers(4, VOCAB, (3, 9)), dtype="int32")
    valid = nd.array([9, 4, 7])
    np.testing.assert_allclose(back(ids, valid).asnumpy(), narrow(ids, valid).asnumpy(), rtol=1e-6, atol=1e-6)


def test_transformers_computes_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from bort.backend.mxnet import nd

    bort.save(tiny_bert(4, NARROW, scale=2.0), tmp_path / "narrow")
    export_folder(tmp_path / "narrow", tmp_path / "hf")
    model = transformers.AutoModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False).eval()
    ids = np.random.default_rng(1).integers(4, VOCAB, (2, 7))
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).last_hidden_state.numpy()
    ours = bort.load(tmp_path / "narrow")(nd.array(ids, dtype="int32"), nd.array([7.0, 7.0])).asnumpy()
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)


def test_heads_that_do_not_fill_the_hidden_states_are_refused(tmp_path):
    bort.save(tiny_bert(3, Architecture(1, 2, 16, 10, head_size=5)), tmp_path / "narrow")
    with pytest.raises(BortError, match="2 heads of 5 units"):
        export_folder(tmp_path / "narrow", tmp_path / "hf")
    assert not (tmp_path / "hf" / "config.json").exists()
