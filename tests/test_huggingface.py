"""Conversions from and to Hugging Face: exact round trips, transformers' own outputs, and hostile files."""
from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bort
from bort.architecture import Architecture
from bort.checkpoints import parameter_arrays
from bort.errors import BortError, run_command
from bort.huggingface import export_folder, import_folder, import_params
from bort.huggingface.__main__ import main
from bort.huggingface.names import HEAD_NAMES, MLM_NAMES, name_map
from bort.huggingface.safetensors import open_folder, read_safetensors, write_safetensors
from bort.models import Bert, Classifier, initialize
from bort.text.tokenizer import train_sentencepiece
from tests.tiny import MAX_LENGTH, VOCAB, tiny_batch, tiny_bert

SHAPES = [Architecture(2, 2, 8, 12), Architecture(1, 4, 16, 8), Architecture(3, 1, 6, 24)]


def trained(architecture=SHAPES[0], seed=3, **options):
    """A Bert with no parameter left as it was initialized, and the epsilons that transformers can express."""
    return tiny_bert(seed, architecture, mlm_layer_norm_eps=options.pop("mlm_layer_norm_eps", 1e-5), **options)


def classifier(head, outputs=3, seed=3):
    model = Classifier(trained(seed=seed), outputs, head, dropout=0.1)
    model.initialize_head(seed)
    model.labels = [f"class {index}" for index in range(outputs)] if outputs > 1 else None
    return model


def equal(left, right, only=""):
    left, right = parameter_arrays(left), parameter_arrays(right)
    assert set(left) == set(right)
    return all(np.array_equal(left[name], right[name]) for name in left if name.startswith(only))


def rewrite(folder, **changes):
    """Change members of a folder's config.json."""
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))


def retensor(folder, change, dtype="float32"):
    """Pass a folder's tensors through ``change`` (a dict to a dict)."""
    tensors = {name: tensor.array() for name, tensor in open_folder(folder)[0].items()}
    tensors = {name: np.asarray(array, dtype="float32") for name, array in change(tensors).items()}
    shapes = {name: array.shape for name, array in tensors.items()}
    write_safetensors(folder / "model.safetensors", tensors, shapes, dtype)


@pytest.fixture
def exported(tmp_path):
    """A tiny MLM at Hugging Face."""
    bort.save(trained(), tmp_path / "m")
    export_folder(tmp_path / "m", tmp_path / "hf")
    return tmp_path / "hf"


# ---- round trips

@pytest.mark.parametrize("layout", ["bert", "roberta"])
@pytest.mark.parametrize("architecture", SHAPES, ids=str)
def test_a_round_trip_is_exact(tmp_path, architecture, layout):
    model = trained(architecture)
    bort.save(model, tmp_path / "m")
    assert export_folder(tmp_path / "m", tmp_path / "hf", layout=layout).notes == [
        "a tokenizer: the model's folder has none (--tokenizer DIR adds one)"]
    import_folder(tmp_path / "hf", tmp_path / "back")
    back = bort.load(tmp_path / "back")
    assert equal(model, back)
    assert (back.architecture, back.max_length, back.vocab_size, back.layer_norm_eps, back.mlm_layer_norm_eps) == (
        architecture, MAX_LENGTH, VOCAB, 1e-5, 1e-5)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["max_position_embeddings"] == MAX_LENGTH + (2 if layout == "roberta" else 0)
    assert config["type_vocab_size"] == 1 and config["architectures"] == [f"{layout.capitalize()}ForMaskedLM"]


@pytest.mark.parametrize("layout", ["bert", "roberta"])
@pytest.mark.parametrize("head, outputs", [("pooled", 3), ("linear", 2), ("linear_extra", 1)])
def test_a_classifiers_round_trip_is_exact(tmp_path, head, outputs, layout):
    model = classifier(head, outputs)
    model.task_name, model.encoding = "CB", "paper"
    bort.save(model, tmp_path / "m")
    report = export_folder(tmp_path / "m", tmp_path / "hf", layout=layout)
    assert any("MLM head" in note for note in report.notes)
    import_folder(tmp_path / "hf", tmp_path / "back", seed=5)
    back = bort.load(tmp_path / "back")
    assert equal(model, back, only="classifier.") and equal(model, back, only="bort.encoder") and equal(
        model, back, only="bort.word_embed")
    assert (back.head, back.num_outputs, back.labels, back.task_name, back.encoding) == (
        head, outputs, model.labels, "CB", "paper")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["mlm_head"] == "absent"


def test_a_head_trained_on_elsewhere_comes_back_as_pooled(tmp_path):
    bort.save(classifier("linear"), tmp_path / "m")
    export_folder(tmp_path / "m", tmp_path / "hf")

    def train(tensors):
        tensors["bert.pooler.dense.weight"] = tensors["bert.pooler.dense.weight"] + 0.5
        return tensors

    retensor(tmp_path / "hf", train)
    assert any("trained on since" in note for note in import_folder(tmp_path / "hf", tmp_path / "back").notes)
    assert bort.load(tmp_path / "back").head == "pooled"


def test_half_precision_is_exact_where_it_can_be(tmp_path):
    model = trained()
    bort.save(model, tmp_path / "m")
    export_folder(tmp_path / "m", tmp_path / "half", dtype="float16")
    assert {tensor.dtype for tensor in open_folder(tmp_path / "half")[0].values()} == {"F16"}
    import_folder(tmp_path / "half", tmp_path / "back")
    for name, array in parameter_arrays(bort.load(tmp_path / "back")).items():
        np.testing.assert_array_equal(array, parameter_arrays(model)[name].astype("float16"))
    export_folder(tmp_path / "back", tmp_path / "again", dtype="float16")
    again, half = (tmp_path / name / "model.safetensors" for name in ("again", "half"))
    assert again.read_bytes() == half.read_bytes()
    bort.save(classifier("linear"), tmp_path / "c")
    with pytest.raises(BortError, match="float32"):
        export_folder(tmp_path / "c", tmp_path / "x", dtype="float16")
    model.word_embed[0].weight.set_data(model.word_embed[0].weight.data() * 1e7)
    bort.save(model, tmp_path / "large")
    with pytest.raises(BortError, match="beyond float16"):
        export_folder(tmp_path / "large", tmp_path / "x", dtype="float16")
    assert not (tmp_path / "x" / "model.safetensors").exists()


def test_bare_files_export_too(tmp_path):
    from tests.test_checkpoints import released_file

    released_file(tmp_path / "bort.params", trained())
    export_folder(tmp_path / "bort.params", tmp_path / "hf", heads=2)
    import_folder(tmp_path / "hf", tmp_path / "back")
    assert equal(bort.load(tmp_path / "back"), trained())
    model = classifier("pooled")
    released_file(tmp_path / "classifier.params", model, dropout=False)
    export_folder(tmp_path / "classifier.params", tmp_path / "hf2", architecture="2,2,8,12")
    import_folder(tmp_path / "hf2", tmp_path / "back2")
    assert equal(bort.load(tmp_path / "back2"), model, only="classifier")


def test_the_tokenizer_goes_along_and_the_card_tells_the_runs_own_figures(tmp_path):
    words = "the cat sat on the mat and the dog lay in the sun near a house of wood".split()
    tokenizer = train_sentencepiece([" ".join(words)] * 5, VOCAB)
    model = classifier("linear", 2)
    model = Classifier(tiny_bert(vocab_size=tokenizer.vocab_size), 2)
    model.initialize_head(0)
    bort.save(model, tmp_path / "run" / "model", tokenizer, extra={"trained_on": "three | lines", "steps": 7})
    (tmp_path / "run" / "results.json").write_text(json.dumps(
        {"task": "CoLA", "seed": 3, "metrics": {"dev": {"mcc": 0.51239, "name": "x"}}}))
    export_folder(tmp_path / "run" / "model", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    for part in ("| dev | mcc | 0.5124 |", "task CoLA, seed 3", '"trained_on": "three | lines"', '"steps": 7',
                 "⟨2, 2, 8, 12⟩", "BertForSequenceClassification", tokenizer.fingerprint[:16], "linear, 2 outputs",
                 "MLM head", "The tokenizer here does so by itself"):
        assert part in card
    assert card.startswith("---\n")
    report = import_folder(tmp_path / "hf", tmp_path / "back")
    assert not any("tokenizer" in note for note in report.notes)
    assert bort.load_tokenizer(tmp_path / "back").fingerprint == tokenizer.fingerprint
    rewrite(tmp_path / "hf", vocab_size=tokenizer.vocab_size - 1)
    with pytest.raises(BortError, match=f"instead of \\({tokenizer.vocab_size - 1}, 8\\)"):
        import_folder(tmp_path / "hf", tmp_path / "x")
    bort.save(tiny_bert(vocab_size=20), tmp_path / "small")
    export_folder(tmp_path / "small", tmp_path / "small-hf")
    with pytest.raises(BortError, match="vocab_size is 20"):
        import_folder(tmp_path / "small-hf", tmp_path / "x", tokenizer=tmp_path / "hf")


def test_no_tokenizer_is_a_warning(exported, tmp_path, caplog):
    import_folder(exported, tmp_path / "back")
    assert "no tokenizer" in caplog.text
    assert json.loads((tmp_path / "back" / "config.json").read_text())["tokenizer"] is None


def test_the_commands(exported, tmp_path, capsys):
    assert run_command(main, ["import", str(exported), str(tmp_path / "back")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "back")
    assert run_command(main, ["export", str(tmp_path / "back"), str(tmp_path / "hf2"), "--dtype", "float16"]) == 0
    assert run_command(main, ["import", str(tmp_path / "none"), str(tmp_path / "x")]) == 2
    assert run_command(main, ["import", str(exported), str(exported)]) == 2
    assert run_command(main, ["export", str(tmp_path / "back"), str(tmp_path / "back")]) == 2
    assert "must be another" in capsys.readouterr().err


# ---- MLM heads that are random

def test_missing_and_untrained_mlm_heads_are_marked(exported, tmp_path, caplog):
    heads = [theirs for _, theirs in MLM_NAMES["bert"]]
    retensor(exported, lambda tensors: {name: array for name, array in tensors.items() if name not in heads})
    rewrite(exported, architectures=["BertModel"])
    import_folder(exported, tmp_path / "a", seed=1)
    import_folder(exported, tmp_path / "b", seed=1)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["mlm_head"] == "absent" and "RANDOM" in caplog.text
    assert equal(bort.load(tmp_path / "a"), bort.load(tmp_path / "b"))
    assert equal(bort.load(tmp_path / "a"), trained(), only="encoder")
    fresh = Bert(SHAPES[0], VOCAB, MAX_LENGTH)
    initialize(fresh, 1)
    assert equal(bort.load(tmp_path / "a"), fresh, only="decoder")
    # Such a head is not handed on unless asked for, and is recognised when it was.
    assert any("random" in note for note in export_folder(tmp_path / "a", tmp_path / "again").notes)
    assert not any(name.startswith("cls.") for name in open_folder(tmp_path / "again")[0])
    export_folder(tmp_path / "a", tmp_path / "kept", mlm_head="keep")
    import_folder(tmp_path / "kept", tmp_path / "c")
    assert json.loads((tmp_path / "c" / "config.json").read_text())["mlm_head"] == "untrained"
    half = tmp_path / "kept"
    retensor(half, lambda tensors: {name: array for name, array in tensors.items() if name != heads[0]})
    with pytest.raises(BortError, match=f"missing {heads[0]}"):
        import_folder(half, tmp_path / "x")


# ---- what is not ours

def with_types(rows):
    return lambda tensors: {**tensors, "bert.embeddings.token_type_embeddings.weight": rows}


def test_token_types_are_folded_or_refused(exported, tmp_path):
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(1, 8)), rng.normal(size=(2, 8))
    retensor(exported, with_types(one))
    assert any("added to the position" in note for note in import_folder(exported, tmp_path / "one").notes)
    np.testing.assert_array_equal(
        bort.load(tmp_path / "one").encoder.position_weight.data().asnumpy(),
        trained().encoder.position_weight.data().asnumpy() + one.astype("float32"))
    retensor(exported, with_types(two))
    with pytest.raises(BortError, match="--token-types fold"):
        import_folder(exported, tmp_path / "x")
    notes = import_folder(exported, tmp_path / "two", token_types="fold").notes
    assert any("types 1 to 1 were left out" in note for note in notes)
    np.testing.assert_array_equal(
        bort.load(tmp_path / "two").encoder.position_weight.data().asnumpy(),
        trained().encoder.position_weight.data().asnumpy() + two[:1].astype("float32"))
    retensor(exported, with_types(np.concatenate([one, one])))
    import_folder(exported, tmp_path / "same")
    retensor(exported, with_types(rng.normal(size=(2, 9))))
    with pytest.raises(BortError, match="token type"):
        import_folder(exported, tmp_path / "x", token_types="fold")


def test_other_parts_are_reported_or_refused(exported, tmp_path):
    retensor(exported, lambda tensors: {**tensors, "bert.pooler.dense.weight": np.zeros((8, 8)),
                                        "cls.seq_relationship.bias": np.zeros(2),
                                        "bert.embeddings.position_ids": np.arange(24.0)[None],
                                        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"]})
    report = import_folder(exported, tmp_path / "a")
    assert any("bert.pooler, cls.seq_relationship" in note for note in report.notes)
    assert equal(bort.load(tmp_path / "a"), trained())
    retensor(exported, lambda tensors: {**tensors, "cls.predictions.decoder.bias": tensors["cls.predictions.bias"] + 1})
    with pytest.raises(BortError, match="differ"):
        import_folder(exported, tmp_path / "x")
    retensor(exported, lambda tensors: {**{name: array for name, array in tensors.items() if "decoder" not in name},
                                        "qa_outputs.weight": np.zeros((2, 8))})
    rewrite(exported, architectures=["BertForQuestionAnswering"])
    with pytest.raises(BortError, match="BertForQuestionAnswering.*--body-only"):
        import_folder(exported, tmp_path / "x")
    notes = import_folder(exported, tmp_path / "b", body_only=True).notes
    assert any("qa_outputs" in note for note in notes) and any("RANDOM" in note for note in notes)
    assert equal(bort.load(tmp_path / "b"), trained(), only="encoder")
    rewrite(exported, architectures=["BertForMaskedLM"])
    with pytest.raises(BortError, match=r"extra qa_outputs.weight \(2, 8\)"):
        import_folder(exported, tmp_path / "x")


def test_names_of_old_checkpoints_are_understood(exported, tmp_path):
    def old(tensors):
        return {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
                for name, array in tensors.items()}

    retensor(exported, old)
    import_folder(exported, tmp_path / "a")
    assert equal(bort.load(tmp_path / "a"), trained())
    retensor(exported, lambda tensors: {**tensors, "bert.embeddings.LayerNorm.weight": np.ones(8)})
    with pytest.raises(BortError, match="under two names"):
        import_folder(exported, tmp_path / "x")


@pytest.mark.parametrize("change, message", [
    ({"model_type": "electra"}, "model_type is 'electra'"),
    ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'.*erf"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type.*absolute"),
    ({"vocab_size": "many"}, "vocab_size is 'many'"), ({"vocab_size": 39}, r"\(40, 8\) instead of \(39, 8\)"),
    ({"vocab_size": 10 ** 15}, "vocab_size"), ({"num_attention_heads": 3}, "divisible"),
    ({"num_hidden_layers": 10 ** 6}, "num_hidden_layers is 1000000"),
    ({"num_hidden_layers": 3}, "missing bert.encoder.layer.2"),
    ({"num_hidden_layers": 1}, "extra bert.encoder.layer.1"), ({"is_decoder": True}, "is_decoder"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings"), ({"max_position_embeddings": 23}, "instead of"),
    ({"layer_norm_eps": "x"}, "layer_norm_eps"), ({"hidden_size": None}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"), ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads"), ({"embedding_size": 4}, "embedding_size"),
    ({"quantization_config": {"bits": 4}}, "quantization_config")])
def test_what_this_family_cannot_do_is_named(exported, tmp_path, change, message):
    rewrite(exported, **change)
    with pytest.raises(BortError, match=message):
        import_folder(exported, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_gluonnlps_bert_is_imported(tmp_path):
    from bort.compat import mx
    from gluonnlp.model import BERTEncoder, BERTModel

    encoder = BERTEncoder(num_layers=2, units=8, hidden_size=12, max_length=MAX_LENGTH, num_heads=2, dropout=0.0)
    twin = BERTModel(encoder, VOCAB, token_type_vocab_size=2, units=8, embed_size=8)
    twin.initialize(mx.init.Normal(0.5))
    ids, valid, positions = tiny_batch()
    types = mx.nd.zeros_like(ids)
    sequence, _, _, logits = twin(ids, types, valid, positions)
    twin.save_parameters(str(tmp_path / "bert.params"))
    with pytest.raises(BortError, match="--token-types fold"):
        import_params(tmp_path / "bert.params", tmp_path / "x", heads=2)
    assert run_command(main, ["import", str(tmp_path / "bert.params"), str(tmp_path / "m"), "--heads", "2",
                              "--token-types", "fold"]) == 0
    model = bort.load(tmp_path / "m")
    for theirs, ours in zip((sequence, logits), model(ids, valid, positions)):
        np.testing.assert_allclose(theirs.asnumpy(), ours.asnumpy(), atol=3e-5)
    assert run_command(main, ["import", str(tmp_path / "bert.params"), str(tmp_path / "x")]) == 2
    notes = json.loads((tmp_path / "m" / "config.json").read_text())["imported_from"]["notes"]
    assert any("pooler.weight" in note for note in notes)


# ---- transformers' own outputs

@pytest.fixture(scope="module")
def hub():
    """transformers and torch, without their messages."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def settings_of(transformers, layout, architecture, **options):
    common = dict(vocab_size=VOCAB, hidden_size=architecture.hidden, num_hidden_layers=architecture.depth,
                  num_attention_heads=architecture.heads, intermediate_size=architecture.intermediate,
                  layer_norm_eps=1e-5, type_vocab_size=1, pad_token_id=1, **options)
    if layout == "bert":
        return transformers.BertConfig(max_position_embeddings=MAX_LENGTH, **common)
    return transformers.RobertaConfig(max_position_embeddings=MAX_LENGTH + 2, **common)


def shaken(model, seed=0):
    """A transformers model none of whose parameters is as it was initialized."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def theirs(model, layout, **options):
    """Outputs of a transformers model on ``tiny_batch``, positions given explicitly."""
    import torch

    ids, valid, _ = (array.asnumpy() for array in tiny_batch())
    mask = (np.arange(ids.shape[1])[None] < valid[:, None]).astype("int64")
    positions = torch.arange(ids.shape[1])[None].expand(len(ids), -1) + (2 if layout == "roberta" else 0)
    with torch.no_grad():
        return mask, model(torch.tensor(ids.astype("int64")), attention_mask=torch.tensor(mask), position_ids=positions,
                           **options)


@pytest.mark.parametrize("layout", ["bert", "roberta"])
@pytest.mark.parametrize("architecture", SHAPES, ids=str)
def test_masked_language_models_agree_with_transformers(hub, tmp_path, layout, architecture):
    kind = {"bert": hub.BertForMaskedLM, "roberta": hub.RobertaForMaskedLM}[layout]
    twin = shaken(kind(settings_of(hub, layout, architecture)))
    twin.save_pretrained(tmp_path / "hf", max_shard_size="2KB")
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists()
    import_folder(tmp_path / "hf", tmp_path / "m")
    model = bort.load(tmp_path / "m")
    ids, valid, positions = tiny_batch()
    mask, output = theirs(twin, layout, output_hidden_states=True)
    sequence, logits = model(ids, valid, positions)
    np.testing.assert_allclose(sequence.asnumpy(), output.hidden_states[-1].numpy() * mask[..., None], atol=1e-5)
    picked = np.take_along_axis(output.logits.numpy(), positions.asnumpy().astype("int64")[..., None], axis=1)
    np.testing.assert_allclose(logits.asnumpy(), picked, rtol=1e-5, atol=1e-5)
    # And out again, in either layout.
    for other in ("bert", "roberta"):
        export_folder(tmp_path / "m", tmp_path / other, layout=other)
        again = hub.AutoModelForMaskedLM.from_pretrained(tmp_path / other).eval()
        _, back = theirs(again, other)
        np.testing.assert_allclose(back.logits.numpy() * mask[..., None], output.logits.numpy() * mask[..., None],
                                   rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["bert", "roberta"])
def test_classifiers_agree_with_transformers(hub, tmp_path, layout):
    kind = {"bert": hub.BertForSequenceClassification, "roberta": hub.RobertaForSequenceClassification}[layout]
    twin = shaken(kind(settings_of(hub, layout, SHAPES[0], num_labels=3, id2label={0: "yes", 1: "no", 2: "maybe"},
                                   label2id={"yes": 0, "no": 1, "maybe": 2})))
    twin.save_pretrained(tmp_path / "hf")
    import_folder(tmp_path / "hf", tmp_path / "m")
    model = bort.load(tmp_path / "m")
    assert (model.head, model.labels) == ("pooled", ["yes", "no", "maybe"])
    expected = theirs(twin, layout)[1].logits.numpy()
    np.testing.assert_allclose(model(*tiny_batch()[:2]).asnumpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["pooled", "linear", "linear_extra"])
@pytest.mark.parametrize("layout", ["bert", "roberta"])
def test_our_heads_give_the_same_there(hub, tmp_path, head, layout):
    model = classifier(head)
    bort.save(model, tmp_path / "m")
    export_folder(tmp_path / "m", tmp_path / "hf", layout=layout)
    twin = hub.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    assert twin.config.id2label == {0: "class 0", 1: "class 1", 2: "class 2"}
    expected = theirs(twin, layout)[1].logits.numpy()
    np.testing.assert_allclose(model(*tiny_batch()[:2]).asnumpy(), expected, rtol=1e-5, atol=1e-5)


def test_the_body_alone_and_stored_types(hub, tmp_path):
    import torch

    twin = shaken(hub.BertModel(settings_of(hub, "bert", SHAPES[0])))
    _, output = theirs(twin, "bert")
    ids, valid, _ = tiny_batch()
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        folder = tmp_path / str(dtype)
        hub.BertModel(settings_of(hub, "bert", SHAPES[0])).to(dtype).save_pretrained(folder)
        cast = {name: tensor.to(dtype) for name, tensor in twin.state_dict().items()}
        from safetensors.torch import save_file
        save_file(cast, folder / "model.safetensors")
        import_folder(folder, tmp_path / "m")
        model = bort.load(tmp_path / "m")
        np.testing.assert_array_equal(model.word_embed[0].weight.data().asnumpy(),
                                      cast["embeddings.word_embeddings.weight"].float().numpy())
        if dtype == torch.float32:
            mask = (np.arange(7)[None] < valid.asnumpy()[:, None])[..., None]
            np.testing.assert_allclose(model(ids, valid).asnumpy(), output.last_hidden_state.numpy() * mask, atol=1e-5)


@pytest.mark.parametrize("legacy", [False, True])
def test_pytorch_files_are_read_as_weights_only(hub, tmp_path, legacy):
    import torch

    twin = shaken(hub.RobertaForMaskedLM(settings_of(hub, "roberta", SHAPES[0])))
    twin.save_pretrained(tmp_path / "hf")
    import_folder(tmp_path / "hf", tmp_path / "a")
    state = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    state["lm_head.decoder.weight"] = state["roberta.embeddings.word_embeddings.weight"]
    (tmp_path / "hf" / "model.safetensors").unlink()
    path = tmp_path / "hf" / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    import_folder(tmp_path / "hf", tmp_path / "b")
    assert equal(bort.load(tmp_path / "a"), bort.load(tmp_path / "b"))

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({**state, "evil": Evil()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BortError, match="not a file of weights"):
        import_folder(tmp_path / "hf", tmp_path / "x")
    assert not (tmp_path / "owned").exists()
    torch.save({**state, "roberta.embeddings.word_embeddings.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, path,
               _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BortError, match="claim more"):
        import_folder(tmp_path / "hf", tmp_path / "x")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BortError):
        import_folder(tmp_path / "hf", tmp_path / "x")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(100_000_000))
    with pytest.raises(BortError, match="compressed archive"):
        import_folder(tmp_path / "hf", tmp_path / "x")


def test_pytorch_files_without_pytorch_say_what_to_do(exported, tmp_path, monkeypatch):
    import sys

    (exported / "model.safetensors").rename(exported / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BortError, match="pip install torch.*save_pretrained"):
        import_folder(exported, tmp_path / "x")
    (exported / "pytorch_model.bin").rename(exported / "tf_model.h5")
    with pytest.raises(BortError, match="only tf_model.h5"):
        import_folder(exported, tmp_path / "x")


def test_transformers_tokenizer_puts_one_separator_and_no_types(hub, tmp_path, real_data):
    import torch
    from bort.tasks.encoding import encode_pair

    tokenizer = bort.load_tokenizer(real_data / "bpe")
    model = tiny_bert(vocab_size=tokenizer.vocab_size, mlm_layer_norm_eps=1e-5)
    bort.save(model, tmp_path / "m", tokenizer)
    export_folder(tmp_path / "m", tmp_path / "hf")
    there = hub.AutoTokenizer.from_pretrained(tmp_path / "hf")
    batch = there(["Schloß Nymphenburg is nice!", "Two"], ["and so", "texts, éh?"], padding=True, return_tensors="pt")
    for row, (first, second) in zip(batch["input_ids"].tolist(), (("Schloß Nymphenburg is nice!", "and so"),
                                                                  ("Two", "texts, éh?"))):
        ours = encode_pair(tokenizer, tokenizer.encode(first), tokenizer.encode(second), MAX_LENGTH)
        assert [token for token in row if token != tokenizer.pad_id] == ours.tolist()
    assert "token_type_ids" not in batch
    assert there("is <mask>.")["input_ids"] == [0, 354, 50264, 4, 2]
    with torch.no_grad():
        output = hub.AutoModelForMaskedLM.from_pretrained(tmp_path / "hf").eval()(**batch, output_hidden_states=True)
    from bort.compat import mx
    ids = mx.nd.array(batch["input_ids"].numpy(), dtype="int32")
    mask = batch["attention_mask"].numpy()
    ours = model(ids, mx.nd.array(mask.sum(axis=1), dtype="float32")).asnumpy()
    np.testing.assert_allclose(ours, output.hidden_states[-1].numpy() * mask[..., None], atol=1e-5)


# ---- the file format, and files that lie

def test_files_agree_with_the_safetensors_library(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(3, 5)).astype("float32"), "b": rng.normal(size=()).astype("float32"),
              "none": np.zeros((0, 4), "float32"), "ü": rng.normal(size=(2, 1, 2)).astype("float32")}
    write_safetensors(tmp_path / "ours.safetensors", arrays, {name: array.shape for name, array in arrays.items()})
    library.save_file({**arrays, "half": arrays["a"].astype("float16"), "ids": np.arange(4)},
                      tmp_path / "theirs.safetensors")
    read = library.load_file(tmp_path / "ours.safetensors")
    found = read_safetensors(tmp_path / "theirs.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        np.testing.assert_array_equal(found[name].array(), array)
        assert found[name].shape == array.shape
    np.testing.assert_array_equal(found["half"].array(), arrays["a"].astype("float16"))
    with pytest.raises(BortError, match="I64, not floating"):
        found["ids"].array()


def forged(path, header, data=b"\0" * 64, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HOSTILE = {
    "huge header": (b"{}", 1 << 60), "header past the end": (b"{}", 1000), "empty header": (b"", 0),
    "huge offsets": {"a": entry([1 << 40], 0, 1 << 42)}, "negative": {"a": entry([-16], 0, -64)},
    "overlap": {"a": entry([8], 0, 32), "b": entry([10], 24, 64)},
    "same": {"a": entry([16], 0, 64), "b": entry([16], 0, 64)},
    "gap": {"a": entry([4], 0, 16), "b": entry([8], 32, 64)}, "unclaimed": {"a": entry([8], 0, 32)},
    "reversed": {"a": entry([16], 64, 0)}, "shape too large": {"a": entry([17], 0, 64)},
    "overflowing shape": {"a": entry([1 << 40, 1 << 40, 1 << 40], 0, 64)}, "dtype": {"a": entry([16], 0, 64, "F31")},
    "float offsets": {"a": entry([16], 0.0, 64.0)}, "bool shape": {"a": entry([True], 0, 64)},
    "too many dimensions": {"a": entry([1] * 9 + [16], 0, 64)}, "list": [1, 2], "no members": {"a": {}},
    "string": {"a": "b"}, "extra member": {"a": {**entry([16], 0, 64), "x": 1}},
    "json bomb": (b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}", None), "not utf-8": (b'{"\xff": 1}', None),
    "many": {f"t{index}": entry([0], 0, 0) for index in range(20_000)}, "nan": (b'{"a": NaN}', None),
    "long number": (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 4000 + b'], "data_offsets": [0, 64]}}', None)}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_quickly_and_cheaply(tmp_path, name):
    header = HOSTILE[name]
    header, length = header if isinstance(header, tuple) else (header, None)
    forged(tmp_path / "x.safetensors", header, length=length)
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(BortError, match="x.safetensors"):
            read_safetensors(tmp_path / "x.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20 and time.process_time() - started < 10
    finally:
        tracemalloc.stop()


@settings(max_examples=80)
@given(data=st.data())
def test_damaged_folders_import_or_are_refused(tmp_path_factory, data):
    """Bytes changed, cut or added anywhere: either a clear error, or tensors of the shapes that the config names."""
    folder = tmp_path_factory.mktemp("fuzz")
    if not hasattr(test_damaged_folders_import_or_are_refused, "content"):
        bort.save(trained(), folder / "m")
        export_folder(folder / "m", folder / "hf")
        test_damaged_folders_import_or_are_refused.content = {
            name: (folder / "hf" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    content = dict(test_damaged_folders_import_or_are_refused.content)
    name = data.draw(st.sampled_from(sorted(content)))
    raw = bytearray(content[name])
    limit = len(raw) if name == "config.json" else data.draw(st.sampled_from([16, 3000, len(raw)]))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, limit - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        raw = raw[:data.draw(st.integers(0, len(raw)))]
    (folder / "config.json").write_bytes(content["config.json"])
    (folder / "model.safetensors").write_bytes(content["model.safetensors"])
    (folder / name).write_bytes(bytes(raw))
    tracemalloc.start()
    try:
        import_folder(folder, folder / "out", token_types="fold")
        bort.load(folder / "out")
    except BortError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 32 << 20


def test_links_out_of_the_folder_are_not_followed(exported, tmp_path):
    secret = tmp_path / "elsewhere" / "model.safetensors"
    secret.parent.mkdir()
    (exported / "model.safetensors").rename(secret)
    (exported / "model.safetensors").symlink_to(secret)
    with pytest.raises(BortError, match="link out of its folder"):
        import_folder(exported, tmp_path / "x")
    (exported / "model.safetensors").unlink()
    (exported / "model.safetensors").symlink_to(tmp_path / "nothing")
    with pytest.raises(BortError, match="link out of its folder"):
        import_folder(exported, tmp_path / "x")
    (exported / "model.safetensors").unlink()
    secret.rename(exported / "model.safetensors")
    (tmp_path / "vocab.json").write_text("{}")
    (exported / "vocab.json").symlink_to(tmp_path / "vocab.json")
    with pytest.raises(BortError, match="link out of its folder"):
        import_folder(exported, tmp_path / "x")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "", ".", "..", ".hidden"])
def test_shard_names_are_plain(exported, tmp_path, name):
    tensors = list(open_folder(exported)[0])
    (exported / "model.safetensors").rename(exported / "shard.safetensors")
    index = exported / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {tensor: "shard.safetensors" for tensor in tensors}}))
    import_folder(exported, tmp_path / "a")
    assert equal(bort.load(tmp_path / "a"), trained())
    index.write_text(json.dumps({"weight_map": {tensor: name for tensor in tensors}}))
    with pytest.raises(BortError, match="plain name"):
        import_folder(exported, tmp_path / "x")
    index.write_text(json.dumps({"weight_map": {tensor: "shard.safetensors" for tensor in tensors[1:]}}))
    with pytest.raises(BortError, match="belong together"):
        import_folder(exported, tmp_path / "x")
    index.write_text(json.dumps({"weight_map": [1]}))
    with pytest.raises(BortError, match="weight_map"):
        import_folder(exported, tmp_path / "x")


def test_the_download_caches_links_are_followed(exported, tmp_path):
    cache = tmp_path / "models--amazon--bort"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "abc").mkdir(parents=True)
    for number, name in enumerate(("config.json", "model.safetensors")):
        (exported / name).rename(cache / "blobs" / str(number))
        (cache / "snapshots" / "abc" / name).symlink_to(f"../../blobs/{number}")
    import_folder(cache / "snapshots" / "abc", tmp_path / "a")
    assert equal(bort.load(tmp_path / "a"), trained())


def test_a_config_bomb_is_refused(exported, tmp_path):
    (exported / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(BortError, match="config.json"):
        import_folder(exported, tmp_path / "x")
    (exported / "config.json").write_text(" " * (2 << 20))
    with pytest.raises(BortError, match="more than a file of this kind"):
        import_folder(exported, tmp_path / "x")


def test_the_table_of_names_is_one_to_one():
    for layout in ("bert", "roberta"):
        for mlm, head in ((True, False), (False, True), (False, False)):
            names = name_map(layout, 3, mlm, head)
            assert len(set(names.values())) == len(names)
        model = classifier("pooled")
        assert {name[5:] if name.startswith("bort.") else name for name in parameter_arrays(model)} == set(
            name_map(layout, 2, True, True))
        assert len(HEAD_NAMES[layout]) == 4
