"""Converted models against transformers' and gluonnlp's own networks, to 1e-5, on tiny random ones."""
from __future__ import annotations

import json

import numpy as np
import pytest

import bort
from bort.backend.mxnet import mx
from bort.checkpoints.model_folder import parameter_arrays
from bort.errors import BortError, run_command
from bort.huggingface import export_folder, import_folder, import_params
from bort.huggingface.__main__ import main
from bort.huggingface.tensor_files import open_folder
from tests.huggingface.test_folders import SHAPES, classifier, equal, trained
from tests.tiny import MAX_LENGTH, VOCAB, pair_batch, tiny_batch, tiny_bert


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


# ---- gluonnlp

def gluonnlp_network(layout, architecture):
    """gluonnlp's BERT or RoBERTa with no parameter as it was initialized, whatever it calls them."""
    from gluonnlp.model import BERTEncoder, BERTModel, RoBERTaModel


    a = architecture
    encoder = BERTEncoder(num_layers=a.depth, units=a.hidden, hidden_size=a.intermediate,
                          max_length=MAX_LENGTH, num_heads=a.heads, dropout=0.0, layer_norm_eps=1e-12
                          if layout == "bert" else 1e-5)
    kind, options = (BERTModel, {"token_type_vocab_size": 2}) if layout == "bert" else (RoBERTaModel, {})
    network = kind(encoder, VOCAB, units=a.hidden, embed_size=a.hidden, **options)
    network.initialize()
    ids, valid, positions = tiny_batch()
    types = (mx.nd.zeros_like(ids),) if layout == "bert" else ()
    network(ids, *types, valid, positions)  # the shapes are known after a first use
    rng = np.random.default_rng(a.hidden)
    for _, parameter in sorted(network._collect_params_with_prefix().items()):
        parameter.set_data(parameter.data() + mx.nd.array(rng.normal(0, 0.3, parameter.shape),
                                                          dtype="float32"))
    outputs = network(ids, *types, valid, positions)
    return network, [output.asnumpy() for output in (outputs[0], outputs[-1])]


@pytest.mark.parametrize("architecture", SHAPES, ids=str)
def test_gluonnlps_roberta_is_loaded_as_it_is(tmp_path, architecture):
    network, expected = gluonnlp_network("roberta", architecture)
    network.save_parameters(str(tmp_path / "roberta.params"))
    assert run_command(main, ["import", str(tmp_path / "roberta.params"), str(tmp_path / "m"), "--heads",
                              str(architecture.heads)]) == 0
    model = bort.load(tmp_path / "m")
    assert equal(model, bort.load(tmp_path / "roberta.params", heads=architecture.heads))
    for ours, theirs in zip(model(*tiny_batch()), expected):
        close(ours.asnumpy(), theirs)
    network.cast("float16")
    network.save_parameters(str(tmp_path / "half.params"))
    half = parameter_arrays(bort.load(tmp_path / "half.params", heads=architecture.heads))
    for name, array in parameter_arrays(model).items():
        np.testing.assert_array_equal(half[name], array.astype("float16"))


@pytest.mark.parametrize("architecture", SHAPES, ids=str)
def test_gluonnlps_bert_is_imported(tmp_path, architecture):
    network, expected = gluonnlp_network("bert", architecture)
    network.save_parameters(str(tmp_path / "bert.params"))
    heads = ["--heads", str(architecture.heads)]
    with pytest.raises(BortError, match="--token-types fold"):
        import_params(tmp_path / "bert.params", tmp_path / "x", architecture.heads, token_types="refuse")
    assert run_command(main, ["import", str(tmp_path / "bert.params"), str(tmp_path / "m"), *heads,
                              "--token-types", "fold"]) == 0
    for ours, theirs in zip(bort.load(tmp_path / "m")(*tiny_batch()), expected):
        close(ours.asnumpy(), theirs)
    assert run_command(main, ["import", str(tmp_path / "bert.params"), str(tmp_path / "x")]) == 2
    notes = json.loads((tmp_path / "m" / "config.json").read_text())["imported_from"]["notes"]
    assert any("classifier.weight" in note for note in notes)
    report = import_params(tmp_path / "bert.params", tmp_path / "typed", heads=architecture.heads)
    assert any("no tokenizer says which token separates" in note for note in report.notes)
    typed = bort.load(tmp_path / "typed")
    np.testing.assert_array_equal(typed.token_type_embed[0].weight.data().asnumpy(),
                                  network.token_type_embed[0].weight.data().asnumpy())
    np.testing.assert_array_equal(typed.pooler[0], network.pooler.weight.data().asnumpy())
    ids, valid, positions = pair_batch(4)
    types = mx.nd.array(np.random.default_rng(0).integers(0, 2, ids.shape), dtype="int32")
    outputs = network(ids, types, valid, positions)
    for ours, there in zip(typed(ids, valid, positions, types), (outputs[0], outputs[-1])):
        close(ours.asnumpy(), there.asnumpy())


# ---- transformers

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
    """The mask of ``tiny_batch`` and a transformers model's outputs on it, positions given explicitly."""
    import torch

    ids, valid, _ = (array.asnumpy() for array in tiny_batch())
    mask = (np.arange(ids.shape[1])[None] < valid[:, None]).astype("int64")
    positions = torch.arange(ids.shape[1])[None].expand(len(ids), -1) + (2 if layout == "roberta" else 0)
    with torch.no_grad():
        return mask, model(torch.tensor(ids.astype("int64")), attention_mask=torch.tensor(mask),
                           position_ids=positions, **options)


def same_outputs(model, twin, layout):
    """Hidden states and masked positions' logits of both, on ``tiny_batch``."""
    ids, valid, positions = tiny_batch()
    mask, output = theirs(twin, layout, output_hidden_states=True)
    sequence, logits = model(ids, valid, positions)
    close(sequence.asnumpy(), output.hidden_states[-1].numpy() * mask[..., None])
    logits_there = output.logits if hasattr(output, "logits") else output.prediction_logits
    close(logits.asnumpy(), np.take_along_axis(logits_there.numpy(), positions.asnumpy().astype("int64")[...,
                                                                                                         None],
                                               1))
    return logits_there.numpy() * mask[..., None]


@pytest.mark.parametrize("layout", ["bert", "roberta"])
@pytest.mark.parametrize("architecture", SHAPES, ids=str)
def test_masked_language_models_agree_with_transformers(hub, tmp_path, layout, architecture):
    kind = {"bert": hub.BertForMaskedLM, "roberta": hub.RobertaForMaskedLM}[layout]
    twin = shaken(kind(settings_of(hub, layout, architecture)))
    twin.save_pretrained(tmp_path / "hf", max_shard_size="2KB")
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists()
    import_folder(tmp_path / "hf", tmp_path / "m")
    expected = same_outputs(bort.load(tmp_path / "m"), twin, layout)
    # And out again, in either layout.
    for other in ("bert", "roberta"):
        export_folder(tmp_path / "m", tmp_path / other, layout=other)
        again = hub.AutoModelForMaskedLM.from_pretrained(tmp_path / other).eval()
        mask, back = theirs(again, other)
        close(back.logits.numpy() * mask[..., None], expected)


@pytest.mark.parametrize("layout", ["bert", "roberta"])
def test_there_and_back_again_is_bit_exact(hub, tmp_path, layout):
    """transformers' file, ours, transformers': every value it computes with is the same; so is the file after
    that."""
    import torch

    kind = {"bert": hub.BertForMaskedLM, "roberta": hub.RobertaForMaskedLM}[layout]
    twin = shaken(kind(settings_of(hub, layout, SHAPES[1])))
    with torch.no_grad():  # others are added to the positions, which rounds
        getattr(twin, layout).embeddings.token_type_embeddings.weight.zero_()
    twin.save_pretrained(tmp_path / "hf")
    for source, ours, there in (("hf", "m", "hf2"), ("hf2", "m2", "hf3")):
        import_folder(tmp_path / source, tmp_path / ours)
        export_folder(tmp_path / ours, tmp_path / there, layout=layout)
    before, after = (open_folder(tmp_path / name)[0] for name in ("hf", "hf2"))
    assert set(before) == set(after)
    for name, tensor in before.items():
        skipped = 2 if layout == "roberta" and "position_embeddings" in name else 0  # rows that no token has
        np.testing.assert_array_equal(tensor.array()[skipped:], after[name].array()[skipped:])
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "hf2" / name).read_bytes() == (tmp_path / "hf3" / name).read_bytes()


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining"])
@pytest.mark.parametrize("architecture", SHAPES, ids=str)
def test_berts_with_two_token_types_agree_on_single_texts(hub, tmp_path, architecture, kind):
    config = settings_of(hub, "bert", architecture)
    config.type_vocab_size, config.layer_norm_eps, config.pad_token_id = 2, 1e-12, 0
    twin = shaken(getattr(hub, kind)(config))
    twin.save_pretrained(tmp_path / "hf")
    with pytest.raises(BortError, match="--token-types fold"):
        import_folder(tmp_path / "hf", tmp_path / "x", token_types="refuse")
    import_folder(tmp_path / "hf", tmp_path / "m", token_types="fold")
    same_outputs(bort.load(tmp_path / "m"), twin, "bert")


@pytest.mark.parametrize("layout", ["bert", "roberta"])
def test_half_precision_agrees(hub, tmp_path, layout):
    import torch

    bort.save(trained(), tmp_path / "m")
    export_folder(tmp_path / "m", tmp_path / "half", dtype="float16", layout=layout)
    import_folder(tmp_path / "half", tmp_path / "back")
    twin = hub.AutoModelForMaskedLM.from_pretrained(tmp_path / "half", dtype=torch.float32).eval()
    assert twin.dtype == torch.float32
    same_outputs(bort.load(tmp_path / "back"), twin, layout)
    half = hub.AutoModelForMaskedLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert half.dtype == torch.float16


@pytest.mark.parametrize("layout", ["bert", "roberta"])
def test_classifiers_agree_with_transformers(hub, tmp_path, layout):
    kind = {"bert": hub.BertForSequenceClassification,
            "roberta": hub.RobertaForSequenceClassification}[layout]
    twin = shaken(kind(settings_of(hub, layout, SHAPES[0], num_labels=3,
                                   id2label={0: "yes", 1: "no", 2: "maybe"},
                                   label2id={"yes": 0, "no": 1, "maybe": 2})))
    twin.save_pretrained(tmp_path / "hf")
    import_folder(tmp_path / "hf", tmp_path / "m")
    model = bort.load(tmp_path / "m")
    assert (model.head, model.labels) == ("pooled", ["yes", "no", "maybe"])
    expected = theirs(twin, layout)[1].logits.numpy()
    close(model(*tiny_batch()[:2]).asnumpy(), expected)


@pytest.mark.parametrize("head", ["pooled", "linear", "linear_extra"])
@pytest.mark.parametrize("layout", ["bert", "roberta"])
def test_our_heads_give_the_same_there(hub, tmp_path, head, layout):
    model = classifier(head)
    bort.save(model, tmp_path / "m")
    export_folder(tmp_path / "m", tmp_path / "hf", layout=layout)
    twin = hub.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    assert twin.config.id2label == {0: "class 0", 1: "class 1", 2: "class 2"}
    expected = theirs(twin, layout)[1].logits.numpy()
    close(model(*tiny_batch()[:2]).asnumpy(), expected)


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
            close(model(ids, valid).asnumpy(), output.last_hidden_state.numpy() * mask)


@pytest.mark.parametrize("layout", ["bert", "roberta"])
def test_the_pipelines_inputs_agree_too(hub, tmp_path, real_data, layout):
    """transformers' own tokenizer, one separator, no types, and the positions that it counts itself."""
    import torch

    from bort.tasks.encoding import encode_pair

    tokenizer = bort.load_tokenizer(real_data / "bpe")
    model = tiny_bert(vocab_size=tokenizer.vocab_size, mlm_layer_norm_eps=1e-5)
    bort.save(model, tmp_path / "m", tokenizer)
    export_folder(tmp_path / "m", tmp_path / "hf", layout=layout)
    there = hub.AutoTokenizer.from_pretrained(tmp_path / "hf")
    pairs = (("Schloß Nymphenburg is nice!", "and so"), ("Two", "texts, éh?"))
    batch = there(*map(list, zip(*pairs)), padding=True, return_tensors="pt")
    for row, (first, second) in zip(batch["input_ids"].tolist(), pairs):
        ours = encode_pair(tokenizer, tokenizer.encode(first), tokenizer.encode(second), MAX_LENGTH)
        assert [token for token in row if token != tokenizer.pad_id] == ours.tolist()
        assert ours.tolist().count(tokenizer.eos_id) == 2
    assert "token_type_ids" not in batch
    assert there("is <mask>.")["input_ids"] == [0, 354, 50264, 4, 2]
    with torch.no_grad():
        output = hub.AutoModelForMaskedLM.from_pretrained(tmp_path / "hf").eval()(**batch,
                                                                                  output_hidden_states=True)
    ids = mx.nd.array(batch["input_ids"].numpy(), dtype="int32")
    mask = batch["attention_mask"].numpy()
    ours = model(ids, mx.nd.array(mask.sum(axis=1), dtype="float32")).asnumpy()
    close(ours, output.hidden_states[-1].numpy() * mask[..., None])


def test_fill_mask_gives_the_same_tokens_as_the_pipeline(hub, tmp_path, real_data):
    from bort.predict.fill_mask import MaskFiller

    tokenizer = bort.load_tokenizer(real_data / "bpe")
    bort.save(tiny_bert(vocab_size=tokenizer.vocab_size, mlm_layer_norm_eps=1e-5), tmp_path / "m", tokenizer)
    export_folder(tmp_path / "m", tmp_path / "hf")
    pipeline = hub.pipeline("fill-mask", str(tmp_path / "hf"), device="cpu")
    text = "The capital of France is <mask>."
    for ours, there in zip(MaskFiller(tmp_path / "m")(text, top=5)[0], pipeline(text, top_k=5)):
        assert ours.probability == pytest.approx(there["score"], rel=1e-5)
        assert ours.token == there["token_str"].strip()


@pytest.mark.parametrize("layout, frozen", [("bert", "bert.pooler"), ("roberta", "classifier.dense")])
def test_an_exported_linear_head_can_be_trained_on_as_the_export_says(hub, tmp_path, layout, frozen):
    import torch

    bort.save(classifier("linear", 2, vocab_size=40), tmp_path / "m")
    export_folder(tmp_path / "m", tmp_path / "hf", layout=layout)
    model = hub.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    model.get_submodule(frozen).requires_grad_(False)
    ids = torch.arange(4, 36).reshape(4, 8)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=2e-5)
    losses = []
    for _ in range(3):
        loss = model(input_ids=ids, labels=torch.tensor([0, 1, 0, 1])).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > losses[1] > losses[2] > losses[0] - 0.1
