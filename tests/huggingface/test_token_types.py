"""BERT's whole family, with the types of a pair's texts: outputs, gradients and files are those of
transformers."""
from __future__ import annotations

import json

import numpy as np
import pytest

import bort
from bort.architecture import Architecture
from bort.backend.mxnet import autograd, mx
from bort.checkpoints.model_folder import parameter_arrays
from bort.errors import BortError
from bort.huggingface import export_folder, import_folder, names
from bort.huggingface.tensor_files import open_folder
from bort.tasks.encoding import encode_pair
from tests.huggingface.test_parity import close, hub, shaken  # noqa: F401  (hub is a fixture)
from tests.tiny import MAX_LENGTH, NARROW, TYPED, tiny_batch, tiny_bert

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "is", "good", "bad", "not", "very", "##s",
         "##ly"]
BERT, MINILM, TINYBERT = Architecture(2, 2, 8, 32), Architecture(3, 4, 16, 64), Architecture(2, 3, 12, 40)
PAIRS = [("a film is good", "films"), ("bad", "a film is not very good"), ("very goodly", "not badly"),
         ("films", None)]
FAMILY = [("BertForMaskedLM", BERT), ("BertForPreTraining", BERT), ("BertModel", MINILM),
          ("BertForSequenceClassification", TINYBERT)]


def folder_of(hub, folder, kind, architecture):  # noqa: F811
    """A network of transformers with two token types and its tokenizer, saved to ``folder``."""
    config = hub.BertConfig(
        vocab_size=len(WORDS), hidden_size=architecture.hidden, num_hidden_layers=architecture.depth,
        num_attention_heads=architecture.heads, intermediate_size=architecture.intermediate,
        max_position_embeddings=MAX_LENGTH, num_labels=3)
    twin = shaken(getattr(hub, kind)(config))
    twin.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return twin


def batches(hub, folder, tokenizer):  # noqa: F811
    """:data:`PAIRS` as transformers' tokenizer and ours encode them: (theirs, ids, lengths)."""
    there = hub.BertTokenizerFast(str(folder / "vocab.txt"))
    encoded = [there(*[text for text in pair if text]) for pair in PAIRS]
    theirs = there.pad(encoded, return_tensors="pt")
    rows = [encode_pair(tokenizer, tokenizer.encode(first), None if second is None
                        else tokenizer.encode(second), MAX_LENGTH) for first, second in PAIRS]
    ids = np.zeros(tuple(theirs["input_ids"].shape), "int32")
    for number, row in enumerate(rows):
        ids[number, :len(row)] = row
    np.testing.assert_array_equal(ids, theirs["input_ids"].numpy())
    assert set(theirs["token_type_ids"][0].tolist()) == {0, 1}
    return theirs, mx.nd.array(ids, dtype="int32"), mx.nd.array([len(row) for row in rows], dtype="float32")


@pytest.mark.parametrize("kind, architecture", FAMILY)
def test_padded_pairs_agree_with_transformers(hub, tmp_path, kind, architecture):  # noqa: F811
    import torch

    twin = folder_of(hub, tmp_path / "hf", kind, architecture)
    import_folder(tmp_path / "hf", tmp_path / "m")
    model = bort.load(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config["token_types"], config["separator_id"]) == (2, 3)
    theirs, ids, valid = batches(hub, tmp_path / "hf", bort.load_tokenizer(tmp_path / "m"))
    with torch.no_grad():
        output = twin(**theirs, output_hidden_states=True)
    if kind == "BertForSequenceClassification":
        close(model(ids, valid).asnumpy(), output.logits.numpy())
        return
    mask = theirs["attention_mask"].numpy()[..., None]
    close(model(ids, valid).asnumpy(), output.hidden_states[-1].numpy() * mask)
    if kind != "BertModel":
        positions = np.array([[1, 2], [1, 4], [3, 0], [1, 1]])
        logits = output.logits if kind == "BertForMaskedLM" else output.prediction_logits
        close(model(ids, valid, mx.nd.array(positions, dtype="int32"))[1].asnumpy(),
              np.take_along_axis(logits.numpy(), positions[..., None], 1))


def test_gradients_on_padded_pairs_agree_with_transformers(hub, tmp_path):  # noqa: F811
    twin = folder_of(hub, tmp_path / "hf", "BertForMaskedLM", BERT)
    import_folder(tmp_path / "hf", tmp_path / "m")
    model = bort.load(tmp_path / "m", dropout=0.0)
    theirs, ids, valid = batches(hub, tmp_path / "hf", bort.load_tokenizer(tmp_path / "m"))
    positions = np.array([[1, 2], [1, 4], [3, 0], [1, 1]])
    logits = twin(**theirs).logits
    chosen = [logits[row, place] for row, places in enumerate(positions) for place in places]
    sum((scores ** 2).sum() for scores in chosen).backward()
    with autograd.record():
        loss = (model(ids, valid, mx.nd.array(positions, dtype="int32"))[1] ** 2).sum()
    loss.backward()
    expected = {name: parameter.grad.numpy() for name, parameter in twin.named_parameters()
                if parameter.grad is not None}
    mapping = names.name_map("bert", BERT.depth, True, False, {"token_types": 2})
    largest = max(np.abs(array).max() for array in expected.values())
    for name, parameter in model._collect_params_with_prefix().items():
        if name in mapping:
            there = expected[mapping[name]]
            scale = np.abs(there).max() + 1e-3 * largest
            np.testing.assert_allclose(parameter.grad().asnumpy() / scale, there / scale, atol=1e-4,
                                       err_msg=name)


@pytest.mark.parametrize("kind, architecture", FAMILY)
def test_there_and_back_is_bit_exact(hub, tmp_path, kind, architecture):  # noqa: F811
    folder_of(hub, tmp_path / "hf", kind, architecture)
    import_folder(tmp_path / "hf", tmp_path / "m")
    export_folder(tmp_path / "m", tmp_path / "back")
    before, after = (open_folder(tmp_path / name)[0] for name in ("hf", "back"))
    assert set(before) - set(after) == {name for name in before if "seq_relationship" in name}
    prefix = "" if kind == "BertModel" else "bert."
    assert f"{prefix}embeddings.token_type_embeddings.weight" in after
    assert (f"{prefix}pooler.dense.weight" in after) == (kind != "BertForMaskedLM")
    for name, tensor in after.items():
        np.testing.assert_array_equal(tensor.array(), before[name].array())
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["type_vocab_size"] == 2 and config["bort"]["separator_id"] == 3


def test_what_is_exported_gives_the_types_itself(hub, tmp_path):  # noqa: F811
    import torch

    twin = folder_of(hub, tmp_path / "hf", "BertModel", MINILM)
    import_folder(tmp_path / "hf", tmp_path / "m")
    export_folder(tmp_path / "m", tmp_path / "back")
    there = hub.AutoTokenizer.from_pretrained(tmp_path / "back")
    again = hub.AutoModel.from_pretrained(tmp_path / "back").eval()
    batch = there([pair[0] for pair in PAIRS[:3]], [pair[1] for pair in PAIRS[:3]], padding=True,
                  return_tensors="pt")
    expected, _, _ = batches(hub, tmp_path / "hf", bort.load_tokenizer(tmp_path / "m"))
    width = batch["input_ids"].shape[1]
    for name in ("input_ids", "token_type_ids"):
        assert batch[name].tolist() == expected[name][:3, :width].tolist()
    with torch.no_grad():
        for ours, theirs in zip(again(**batch)[:2], twin(**batch)[:2]):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_types_survive_without_transformers(tmp_path):
    model = tiny_bert(3, mlm_layer_norm_eps=1e-5, **TYPED)
    bort.save(model, tmp_path / "m")
    for layout in ("bert", "roberta"):
        export_folder(tmp_path / "m", tmp_path / layout, layout=layout)
        import_folder(tmp_path / layout, tmp_path / "back")
        back = bort.load(tmp_path / "back")
        assert back.options == model.options
        for name, array in parameter_arrays(model).items():
            np.testing.assert_array_equal(parameter_arrays(back)[name], array)


# ---- networks cut out of a wider one

def narrow(tmp_path, architecture=NARROW):
    model = tiny_bert(3, architecture, mlm_layer_norm_eps=1e-5)
    bort.save(model, tmp_path / "m")
    return model


def test_few_heads_are_filled_up_and_cut_off_again(hub, tmp_path):  # noqa: F811
    import torch

    model = narrow(tmp_path)
    export_folder(tmp_path / "m", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["num_attention_heads"] == 4 and config["bort"]["heads"] == 3
    twin = hub.AutoModelForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    ids, valid, positions = tiny_batch()
    mask = (np.arange(ids.shape[1])[None] < valid.asnumpy()[:, None]).astype("int64")
    with torch.no_grad():
        logits = twin(torch.tensor(ids.asnumpy().astype("int64")), attention_mask=torch.tensor(mask)).logits
    close(model(ids, valid, positions)[1].asnumpy(),
          np.take_along_axis(logits.numpy(), positions.asnumpy().astype("int64")[..., None], 1))
    twin.bert.encoder.layer[1].attention.self.value.bias.data[-1] = 1
    twin.save_pretrained(tmp_path / "trained", max_shard_size="1GB")
    report = import_folder(tmp_path / "trained", tmp_path / "full")
    assert any("trained on since: imported with 4" in note for note in report.notes)
    assert bort.load(tmp_path / "full").architecture == Architecture(2, 4, 16, 10)


def test_few_heads_round_trip(tmp_path):
    model = narrow(tmp_path)
    export_folder(tmp_path / "m", tmp_path / "hf")
    import_folder(tmp_path / "hf", tmp_path / "back")
    back = bort.load(tmp_path / "back")
    assert back.architecture == NARROW
    for name, array in parameter_arrays(model).items():
        np.testing.assert_array_equal(parameter_arrays(back)[name], array)


def test_heads_that_no_number_fills_are_refused(tmp_path):
    narrow(tmp_path, Architecture(1, 2, 16, 10, head_size=6))
    with pytest.raises(BortError, match="no multiple of the 6 units"):
        export_folder(tmp_path / "m", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
