"""Model folders and bare files: exact round trips, released layouts, and every problem named at once."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bort
from bort.architecture import Architecture
from bort.checkpoints.inspection import mlm_head_state, verify
from bort.checkpoints.locate import Located, bare_config
from bort.checkpoints.model_folder import describe, load_or_initialize, parameter_arrays, read, write
from bort.checkpoints.params_file import read_ndarrays, write_ndarrays
from bort.errors import BortError
from bort.models import Bert, Classifier
from tests.tiny import MAX_LENGTH, NARROW, SEPARATOR, TINY, TYPED, VOCAB, pair_batch, tiny_batch, tiny_bert


def released_file(path, model, dtype="float32", dropout=True):
    """A file as the original release wrote it: the tied matrix twice; a classifier's body under ``bort.``,
    without MLM head."""
    arrays = parameter_arrays(model)
    if isinstance(model, Classifier):
        arrays = {name: array for name, array in arrays.items() if ".decoder." not in name}
    else:
        arrays["decoder.3.weight"] = arrays["word_embed.0.weight"]
    if not dropout:
        arrays = {name.replace("classifier.1", "classifier.0").replace("classifier.3", "classifier.1"): array
                  for name, array in arrays.items()}
    write_ndarrays(path, {name: array.astype(dtype) for name, array in arrays.items()})


def same_parameters(left, right):
    left, right = parameter_arrays(left), parameter_arrays(right)
    return set(left) == set(right) and all((left[name] == right[name]).all() for name in left)


def test_a_folder_round_trip_is_exact(tmp_path):
    model = tiny_bert(1, layer_norm_eps=1e-6, mlm_layer_norm_eps=1e-9)
    bort.save(model, tmp_path / "m", extra={"trained_on": "nothing"})
    back = bort.load(tmp_path / "m")
    assert isinstance(back, Bert) and same_parameters(model, back)
    assert (back.architecture, back.layer_norm_eps, back.mlm_layer_norm_eps) == (TINY, 1e-6, 1e-9)
    assert back.max_length == MAX_LENGTH
    assert json.loads((tmp_path / "m" / "config.json").read_text())["trained_on"] == "nothing"
    for one, other in zip(model(*tiny_batch()), back(*tiny_batch())):
        np.testing.assert_array_equal(one.asnumpy(), other.asnumpy())
    assert same_parameters(bort.load(tmp_path / "m" / "model.params"), model)


@pytest.mark.parametrize("head", ["linear", "linear_extra", "pooled"])
def test_a_classifiers_round_trip_keeps_its_head(tmp_path, head):
    model = Classifier(tiny_bert(1), 3, head, dropout=0.2)
    model.initialize_head(0)
    model.task_name, model.labels = "CB", ["a", "b", "c"]
    back = bort.load(bort.save(model, tmp_path / "m"))
    assert isinstance(back, Classifier) and same_parameters(model, back)
    assert (back.head, back.num_outputs, back.head_dropout, back.task_name, back.labels) == (
        head, 3, 0.2, "CB", ["a", "b", "c"])


def test_a_network_cut_out_of_a_wider_one_round_trips(tmp_path):
    model = tiny_bert(3, NARROW)
    bort.save(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["architecture"] == NARROW.to_dict()
    again = bort.load(tmp_path / "model", architecture="2,3,16,10,4")
    assert again.architecture == NARROW and same_parameters(model, again)
    with pytest.raises(BortError, match="holds ⟨2, 3, 16, 10, 4⟩, not ⟨2, 4, 16, 10⟩"):
        bort.load(tmp_path / "model", architecture="2,4,16,10")
    bare = tmp_path / "bare.params"
    (tmp_path / "model" / "model.params").rename(bare)
    assert bort.load(bare, heads=3).architecture == NARROW


def test_token_types_and_the_pooler_round_trip(tmp_path):
    model = tiny_bert(3, pooler=True, **TYPED)
    rng = np.random.default_rng(0)
    model.pooler = (rng.normal(size=(8, 8)).astype("float32"), rng.normal(size=8).astype("float32"))
    config = json.loads((bort.save(model, tmp_path / "m") / "config.json").read_text())
    assert (config["token_types"], config["separator_id"], config["pooler"]) == (2, SEPARATOR, True)
    back = bort.load(tmp_path / "m")
    assert back.options == model.options and same_parameters(model, back)
    np.testing.assert_array_equal(back(*pair_batch())[1].asnumpy(), model(*pair_batch())[1].asnumpy())
    head = Classifier(back, 2)
    head.initialize_head(0)
    again = bort.load(bort.save(head, tmp_path / "c"))
    assert (again.bort.token_types, again.bort.separator_id) == (2, SEPARATOR)
    assert again.bort.pooler is None, "a classifier has a head in its place"
    plain = json.loads((bort.save(tiny_bert(), tmp_path / "plain") / "config.json").read_text())
    assert not {"token_types", "separator_id", "pooler"} & set(plain), "as before there were any"


def test_released_files_load_bare(tmp_path):
    model = tiny_bert(2)
    released_file(tmp_path / "bort.params", model)
    assert same_parameters(bort.load(tmp_path / "bort.params", architecture="2,2,8,12"), model)
    assert same_parameters(bort.load(tmp_path / "bort.params", heads=2), model)
    assert same_parameters(bort.load(tmp_path, heads=2), model)
    with pytest.raises(BortError, match="--architecture"):
        bort.load(tmp_path / "bort.params")
    with pytest.raises(BortError, match="divisible"):
        bort.load(tmp_path / "bort.params", heads=3)
    released_file(tmp_path / "half.params", model, "float16")
    half = bort.load(tmp_path / "half.params", heads=2)
    assert all(array.dtype == np.float32 for array in parameter_arrays(half).values())
    for name, array in parameter_arrays(half).items():
        np.testing.assert_array_equal(array,
                                      parameter_arrays(model)[name].astype("float16").astype("float32"))


@pytest.mark.parametrize("dropout", [True, False])
def test_released_classifiers_load_with_their_head(tmp_path, dropout):
    model = Classifier(tiny_bert(2), 2, "pooled")
    model.initialize_head(1)
    released_file(tmp_path / "c.params", model, dropout=dropout)
    back = bort.load(tmp_path / "c.params", heads=2, dropout=0.0)
    assert (back.head, back.num_outputs, back.labels) == ("pooled", 2, None)
    stored = read(tmp_path / "c.params", heads=2)
    assert stored.config["mlm_head"] == "absent" == mlm_head_state(stored.arrays, stored.config)
    assert len(read_ndarrays(tmp_path / "c.params")) == 40  # as many as the release's have with two layers
    # Outside autograd dropout does nothing, so the two probabilities give the same output.
    np.testing.assert_array_equal(back(*tiny_batch()[:2]).asnumpy(), model(*tiny_batch()[:2]).asnumpy())


def test_a_bare_body_without_an_mlm_head_loads_and_half_a_head_does_not(tmp_path):
    model = tiny_bert(2)
    arrays = {name: array for name, array in parameter_arrays(model).items()
              if not name.startswith("decoder.")}
    write_ndarrays(tmp_path / "body.params", arrays)
    back = bort.load(tmp_path / "body.params", heads=2)
    np.testing.assert_array_equal(back(*tiny_batch()[:2]).asnumpy(), model(*tiny_batch()[:2]).asnumpy())
    write_ndarrays(tmp_path / "half.params", {**arrays, "decoder.0.bias": np.zeros(8, "float32")})
    with pytest.raises(BortError, match=r"missing decoder.0.weight \(8, 8\)"):
        bort.load(tmp_path / "half.params", heads=2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    model = tiny_bert(2)
    arrays = parameter_arrays(model)
    arrays["encoder.layer_norm.beta"][3] = value
    write_ndarrays(tmp_path / "bare.params", arrays)
    folder = write(tmp_path / "m", describe(model), arrays)
    for path in (tmp_path / "bare.params", folder):
        with pytest.raises(BortError, match="NaN or infinity in encoder.layer_norm.beta: [^\n]*$"):
            bort.load(path, heads=2)
    checks = {check.name: check.outcome for check in verify(folder)}
    assert checks["finite values"] == "failed"


def test_missing_extra_and_misshapen_parameters_are_reported_together(tmp_path):
    arrays = parameter_arrays(tiny_bert(0))
    del arrays["decoder.0.weight"], arrays["encoder.layer_norm.beta"]
    arrays["pooler.weight"] = np.zeros((8, 8), "float32")
    arrays["decoder.3.bias"] = np.zeros((VOCAB + 1,), "float32")
    write_ndarrays(tmp_path / "x.params", arrays)
    with pytest.raises(BortError) as caught:
        bort.load(tmp_path / "x.params", heads=2)
    for part in ("missing decoder.0.weight (8, 8)", "missing encoder.layer_norm.beta (8,)",
                 "extra pooler.weight (8, 8)", "decoder.3.bias is (41,) instead of (40,)", "x.params"):
        assert part in str(caught.value)


def test_two_copies_of_the_tied_matrix_must_agree(tmp_path):
    arrays = parameter_arrays(tiny_bert(0))
    arrays["decoder.3.weight"] = arrays["word_embed.0.weight"] + 1
    write_ndarrays(tmp_path / "x.params", arrays)
    with pytest.raises(BortError, match="differ"):
        bort.load(tmp_path / "x.params", heads=2)
    arrays["decoder.3.weight"] = arrays.pop("word_embed.0.weight")
    write_ndarrays(tmp_path / "x.params", arrays)
    assert same_parameters(bort.load(tmp_path / "x.params", heads=2), tiny_bert(0))


def test_a_damaged_folder_is_a_clear_error(tmp_path):
    folder = bort.save(tiny_bert(0), tmp_path / "m")
    data = (folder / "model.params").read_bytes()
    (folder / "model.params").write_bytes(data[:-100] + b"\1" + data[-99:])
    with pytest.raises(BortError, match="checksum"):
        bort.load(folder)
    (folder / "model.params").write_bytes(data[:1000])
    with pytest.raises(BortError, match="truncated"):
        bort.load(folder, verify=False)
    (folder / "model.params").unlink()
    with pytest.raises(BortError, match="cannot be read"):
        bort.load(folder)
    with pytest.raises(BortError, match="no such model"):
        bort.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BortError, match="not a model folder"):
        bort.load(tmp_path / "empty")


@pytest.mark.parametrize("change, message", [({"format_version": 99}, "format_version 99"),
                                             ({"format": "other"}, "not the config"),
                                             ({"vocab_size": "x"}, "vocab_size"),
                                             ({"vocab_size": 10 ** 12}, "vocab_size"),
                                             ({"architecture": {"depth": 2}}, "exactly the keys"),
                                             ({"architecture": {"depth": 100000, "heads": 2, "hidden": 8,
                                                                "intermediate": 12}}, "layers"),
                                             ({"head": 3}, "head"), ({"head": {"kind": "linear"}}, "output"),
                                             ({"dropout": 1.5}, "dropout"), ({"max_length": 0}, "max_length"),
                                             ({"layer_norm_eps": None}, "layer_norm_eps"),
                                             ({"token_types": -1}, "token_types"),
                                             ({"token_types": 2}, "missing token_type_embed"),
                                             ({"separator_id": VOCAB}, "separator_id"),
                                             ({"pooler": 1}, "pooler"), ({"vocab_size": 39}, "instead of")])
def test_a_wrong_config_is_a_clear_error(tmp_path, change, message):
    folder = bort.save(tiny_bert(0), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(BortError, match=message):
        bort.load(folder)


def test_saving_again_replaces_and_a_failed_save_does_not(tmp_path):
    folder = bort.save(tiny_bert(0), tmp_path / "m")
    bort.save(tiny_bert(1), folder)
    assert same_parameters(bort.load(folder), tiny_bert(1))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.params"]
    broken = tiny_bert(2)
    broken._collect_params_with_prefix = lambda: (_ for _ in ()).throw(RuntimeError("killed"))
    with pytest.raises(RuntimeError):
        bort.save(broken, folder)
    assert same_parameters(bort.load(folder), tiny_bert(1))


def test_mxnet_and_gluonnlp_read_our_files(tmp_path):
    from gluonnlp.model import BERTEncoder, BERTModel

    released_file(tmp_path / "bort.params", tiny_bert(4, mlm_layer_norm_eps=1e-5))
    encoder = BERTEncoder(num_layers=2, units=8, hidden_size=12, max_length=MAX_LENGTH, num_heads=2,
                          dropout=0.0, layer_norm_eps=1e-5)
    twin = BERTModel(encoder, VOCAB, units=8, embed_size=8, use_pooler=False, use_token_type_embed=False,
                     use_classifier=False)
    twin.load_parameters(str(tmp_path / "bort.params"))
    ids, valid, positions = tiny_batch()
    np.testing.assert_allclose(twin(ids, None, valid, positions)[0].asnumpy(),
                               tiny_bert(4)(ids, valid).asnumpy(), atol=2e-5)


def test_load_or_initialize_takes_both(tmp_path):
    model = tiny_bert(3)
    classifier = Classifier(model, 2)
    classifier.initialize_head(0)
    for folder in (bort.save(model, tmp_path / "m"), bort.save(classifier, tmp_path / "c")):
        assert same_parameters(load_or_initialize(folder, VOCAB, 0), model)
    fresh = load_or_initialize("2,2,8,12", VOCAB, 5)
    assert fresh.architecture == Architecture(2, 2, 8, 12) and fresh.vocab_size == VOCAB
    with pytest.raises(BortError, match="preset"):
        load_or_initialize(tmp_path / "nowhere", VOCAB, 0)


def test_a_bare_robertas_mlm_head_has_fairseqs_epsilon():
    arrays = {"word_embed.0.weight": np.zeros((3, 2)), "encoder.position_weight": np.zeros((5, 2))}
    for name, epsilon in (("roberta-large", 1e-5), ("roberta-base", 1e-5), ("bort", None)):
        config = bare_config(Located(Path("x.params"), None, Path(".")), arrays, False, name, None)
        assert config.get("mlm_layer_norm_eps") == epsilon and config["vocab_size"] == 3
    for name, depth, epsilon in (("roberta_12_768_12_owt-5cf21fcd.params", 12, 1e-5),
                                 ("bort_2_16_512_1024.params", 2, None)):
        config = bare_config(Located(Path(name), None, Path(".")), arrays, False, None, None)
        assert config.get("mlm_layer_norm_eps") == epsilon and config["architecture"]["depth"] == depth
    config = bare_config(Located(Path("roberta-tiny.params"), None, Path(".")), arrays, False, "2,2,8,12",
                         None)
    assert config["mlm_layer_norm_eps"] == 1e-5
