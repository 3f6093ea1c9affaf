"""Conversions from and to Hugging Face: exact round trips, and what is refused."""
from __future__ import annotations

import json

import numpy as np
import pytest

import bort
from bort.architecture import Architecture
from bort.checkpoints.model_folder import parameter_arrays
from bort.errors import BortError, run_command
from bort.huggingface import export_folder, import_folder
from bort.huggingface.__main__ import main
from bort.huggingface.names import HEAD_NAMES, MLM_NAMES, name_map
from bort.huggingface.tensor_files import open_folder, write_safetensors
from bort.models import Bert, Classifier, initialize
from bort.text.tokenizers.loading import train_sentencepiece
from tests.tiny import MAX_LENGTH, VOCAB, tiny_bert

SHAPES = [Architecture(2, 2, 8, 12), Architecture(1, 4, 16, 8), Architecture(3, 1, 6, 24)]


def trained(architecture=SHAPES[0], seed=3, **options):
    """A Bert with no parameter left as it was initialized, and the epsilons that transformers can express."""
    return tiny_bert(seed, architecture, mlm_layer_norm_eps=options.pop("mlm_layer_norm_eps", 1e-5),
                     **options)


def classifier(head, outputs=3, seed=3, **options):
    model = Classifier(trained(seed=seed, **options), outputs, head, dropout=0.1)
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
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value
                                                    != "absent"}))


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
    assert (back.architecture, back.max_length, back.vocab_size, back.layer_norm_eps,
            back.mlm_layer_norm_eps) == (architecture, MAX_LENGTH, VOCAB, 1e-5, 1e-5)
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
    from tests.checkpoints.test_model_folder import released_file

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
                 "⟨2, 2, 8, 12⟩", "BertForSequenceClassification", tokenizer.fingerprint[:16],
                 "linear, 2 outputs", "MLM head", "The tokenizer here does so by itself"):
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
    assert run_command(main, ["export", str(tmp_path / "back"), str(tmp_path / "hf2"), "--dtype",
                              "float16"]) == 0
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
    assert json.loads((tmp_path / "a" / "config.json").read_text())["mlm_head"] == "absent"
    assert "RANDOM" in caplog.text
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


def test_token_types_may_be_folded_or_refused(exported, tmp_path):
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(1, 8)), rng.normal(size=(2, 8))
    retensor(exported, with_types(one))
    assert any("added to the position" in note for note in import_folder(exported, tmp_path / "one").notes)
    np.testing.assert_array_equal(
        bort.load(tmp_path / "one").encoder.position_weight.data().asnumpy(),
        trained().encoder.position_weight.data().asnumpy() + one.astype("float32"))
    retensor(exported, with_types(two))
    with pytest.raises(BortError, match="--token-types fold"):
        import_folder(exported, tmp_path / "x", token_types="refuse")
    notes = import_folder(exported, tmp_path / "two", token_types="fold").notes
    assert any("types 1 to 1 were left out" in note for note in notes)
    np.testing.assert_array_equal(
        bort.load(tmp_path / "two").encoder.position_weight.data().asnumpy(),
        trained().encoder.position_weight.data().asnumpy() + two[:1].astype("float32"))
    retensor(exported, with_types(np.concatenate([one, one])))
    import_folder(exported, tmp_path / "same", token_types="refuse")
    retensor(exported, with_types(rng.normal(size=(2, 9))))
    for choice in ("keep", "fold"):
        with pytest.raises(BortError, match="token_?.type"):
            import_folder(exported, tmp_path / "x", token_types=choice)


def test_other_parts_are_reported_or_refused(exported, tmp_path):
    retensor(exported, lambda tensors: {**tensors, "bert.pooler.dense.weight": np.zeros((8, 8)),
                                        "bert.pooler.dense.bias": np.zeros(8),
                                        "cls.seq_relationship.bias": np.zeros(2),
                                        "bert.embeddings.position_ids": np.arange(24.0)[None],
                                        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"]})
    report = import_folder(exported, tmp_path / "a")
    assert any("has them: cls.seq_relationship (1" in note for note in report.notes)
    assert equal(bort.load(tmp_path / "a"), trained(pooler=True)), "a pooler of zeros is carried"
    assert any("bert.pooler, cls." in note for note in import_folder(exported, tmp_path / "b",
                                                                        body_only=True).notes)
    retensor(exported,
             lambda tensors: {**tensors, "cls.predictions.decoder.bias": tensors["cls.predictions.bias"] + 1})
    with pytest.raises(BortError, match="differ"):
        import_folder(exported, tmp_path / "x")
    retensor(exported,
             lambda tensors: {**{name: array for name, array in tensors.items() if "decoder" not in name},
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
        return {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias",
                                                                            "LayerNorm.beta"): array for name,
                array in tensors.items()}

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


def test_the_table_of_names_is_one_to_one():
    for layout in ("bert", "roberta"):
        for mlm, head in ((True, False), (False, True), (False, False)):
            names = name_map(layout, 3, mlm, head)
            assert len(set(names.values())) == len(names)
        model = classifier("pooled")
        assert {name[5:] if name.startswith("bort.") else name for name in parameter_arrays(model)} == set(
            name_map(layout, 2, True, True))
        assert len(HEAD_NAMES[layout]) == 4


# ---- training on an exported head

@pytest.mark.parametrize("layout, layer", [("bert", "model.bert.pooler"),
                                           ("roberta", "model.classifier.dense")])
@pytest.mark.parametrize("head", ["linear", "linear_extra", "pooled"])
def test_the_export_of_a_head_without_tanh_says_what_to_freeze(tmp_path, caplog, head, layout, layer):
    bort.save(classifier(head), tmp_path / "m")
    notes = export_folder(tmp_path / "m", tmp_path / "hf", layout=layout).notes
    for text in (" ".join(notes), caplog.text, (tmp_path / "hf" / "README.md").read_text()):
        assert (f"freeze the first of the two: {layer}.requires_grad_(False)" in text) == (head != "pooled")
