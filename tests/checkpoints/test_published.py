"""get_model: the release's habits, every place and checksum, and what it says offline."""
from __future__ import annotations

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest

import bort
from bort.architecture import PRESETS
from bort.checkpoints import catalogue, published_vocabulary
from bort.checkpoints.model_folder import parameter_arrays
from bort.errors import BortError
from bort.models import Bert
from bort.text.tokenizers import gluonnlp_vocab
from tests.checkpoints.test_model_folder import released_file
from tests.local_http import Site, serve
from tests.tiny import TINY, tiny_bert

TOKENS = ["<s>", "<pad>", "</s>", "<unk>", *(f"word{index}" for index in range(35)), "<mask>"]


@pytest.fixture(autouse=True)
def tiny_zoo(monkeypatch, tmp_path):
    """Tiny models under the published names, no folders of this machine, and no network."""
    for name, entry in list(catalogue.MODELS.items()):
        monkeypatch.setitem(catalogue.MODELS, name, entry._replace(architecture=TINY))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BORT_OFFLINE", "1")
    for variable in ("BORT_HOME", "MXNET_HOME", "BORT_MIRRORS"):
        monkeypatch.delenv(variable, raising=False)


def write_vocabulary(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{catalogue.DATASET}-2b804f8f.vocab").write_text(json.dumps({"idx_to_token": TOKENS}))


def same(left, right):
    left, right = parameter_arrays(left), parameter_arrays(right)
    return all(np.array_equal(left[name], right[name]) for name in left)


def test_the_presets_are_the_published_architectures():
    import importlib

    fresh = importlib.util.module_from_spec(importlib.util.find_spec("bort.checkpoints.catalogue"))
    fresh.__spec__.loader.exec_module(fresh)
    assert {name: str(entry.architecture) for name, entry in fresh.MODELS.items()} == {
        "bort_4_8_768_1024": "4,8,1024,768", "bort_2_16_512_1024": "2,16,1024,512",
        "roberta_12_768_12": str(PRESETS["roberta-base"].architecture),
        "roberta_24_1024_16": str(PRESETS["roberta-large"].architecture)}


@pytest.mark.parametrize("place", ["home", "mxnet", "bort", "bort models", "root"])
@pytest.mark.parametrize("file", ["bort.params", "bort_4_8_768_1024.params",
                                  f"bort_4_8_768_1024_{catalogue.DATASET}.params"])
def test_weights_are_found_where_gluonnlp_and_we_keep_them(tmp_path, monkeypatch, place, file):
    folder = {"home": tmp_path / "home" / ".mxnet" / "models", "mxnet": tmp_path / "mx" / "models",
              "bort": tmp_path / "b", "bort models": tmp_path / "b" / "models", "root": tmp_path / "r"}[place]
    write_vocabulary(folder)
    if place == "mxnet":
        monkeypatch.setenv("MXNET_HOME", str(tmp_path / "mx"))
    if place.startswith("bort"):
        monkeypatch.setenv("BORT_HOME", str(tmp_path / "b"))
    released_file(folder / file, tiny_bert(5), "float16")
    model, vocab = bort.get_model("bort_4_8_768_1024", dataset_name=catalogue.DATASET, pretrained=True,
                                  ctx=None, use_pooler=True, use_decoder=False, use_classifier=False,
                                  root=folder if place == "root" else None)
    assert isinstance(model, Bert) and model.mlm_layer_norm_eps == 1e-12 and model.layer_norm_eps == 1e-5
    np.testing.assert_array_equal(parameter_arrays(model)["encoder.position_weight"],
                                  parameter_arrays(tiny_bert(5))["encoder.position_weight"].astype("float16"))
    assert vocab.idx_to_token == TOKENS


def test_the_vocabulary_is_gluonnlps_own(real_data):
    import gluonnlp

    path = next((real_data / "bpe").glob("*.vocab"))
    official = gluonnlp.Vocab.from_json(path.read_text())
    for tokenizer in (gluonnlp_vocab.read_tokens(path),
                      bort.load_tokenizer(real_data / "bpe")):
        ours = gluonnlp_vocab.vocab_of(tokenizer)
        assert json.loads(ours.to_json()) == json.loads(official.to_json())
        assert (ours.padding_token, ours.bos_token, ours.eos_token, ours.mask_token, ours.unknown_token) == (
            "<pad>", "<s>", "</s>", "<mask>", "<unk>")
        assert ours[["<s>", "Hello", "nothing like it"]] == [0, 31414, 3]


def test_pretrained_takes_a_path_or_nothing(tmp_path):
    write_vocabulary(tmp_path)
    bort.save(tiny_bert(6), tmp_path / "m")
    model, _ = bort.get_model("bort_4_8_768_1024", pretrained=tmp_path / "m", root=tmp_path, dropout=0.3)
    assert same(model, tiny_bert(6)) and model.dropout == 0.3
    released_file(tmp_path / "x.params", tiny_bert(7))
    model, _ = bort.get_model("bort_4_8_768_1024", pretrained=str(tmp_path / "x.params"), root=tmp_path)
    assert same(model, tiny_bert(7))
    fresh = [bort.get_model("bort_2_16_512_1024", pretrained=False, root=tmp_path, seed=seed)[0]
             for seed in (1, 1, 2)]
    assert same(*fresh[:2]) and not same(*fresh[1:])
    vocab = gluonnlp_vocab.vocab_of(TOKENS)
    assert bort.get_model("bort_2_16_512_1024", vocab=vocab, pretrained=False,
                          root=tmp_path / "empty")[1] is vocab
    with pytest.raises(BortError, match="40 ids, the vocabulary 39"):
        bort.get_model("bort_4_8_768_1024", vocab=gluonnlp_vocab.vocab_of(TOKENS[:-2] + ["<mask>"]),
                       pretrained=tmp_path / "m")


def test_an_imported_folder_counts(tmp_path):
    write_vocabulary(tmp_path)
    bort.save(tiny_bert(8), tmp_path / "roberta_24_1024_16")
    assert same(bort.get_model("roberta_24_1024_16", root=tmp_path)[0], tiny_bert(8))


def test_wrong_requests_are_named(tmp_path):
    with pytest.raises(BortError, match="no model 'bort'.*bort_4_8_768_1024"):
        bort.get_model("bort")
    with pytest.raises(BortError, match="huggingface import"):
        bort.get_model("bert_12_768_12")
    with pytest.raises(BortError, match="num_layers cannot be set"):
        bort.get_model("bort_4_8_768_1024", num_layers=3)
    with pytest.raises(BortError, match="book_corpus"):
        bort.get_model("bort_4_8_768_1024", dataset_name="book_corpus_wiki_en_uncased")


def test_a_damaged_file_is_noticed_by_its_name_or_by_the_checksum_beside_it(tmp_path):
    write_vocabulary(tmp_path)
    path = tmp_path / f"bort_4_8_768_1024_{catalogue.DATASET}-00000000.params"
    released_file(path, tiny_bert(5))
    with pytest.raises(BortError, match="SHA1"):
        bort.get_model("bort_4_8_768_1024", root=tmp_path)
    right = path.with_name(path.name.replace("00000000", hashlib.sha1(path.read_bytes()).hexdigest()[:8]))
    path.rename(right)
    assert same(bort.get_model("bort_4_8_768_1024", root=tmp_path)[0], tiny_bert(5))
    beside = right.with_name(right.name + ".sha256")
    beside.write_text(hashlib.sha256(right.read_bytes()).hexdigest() + "  name\n")
    bort.get_model("bort_4_8_768_1024", root=tmp_path)
    beside.write_text("0" * 64)
    with pytest.raises(BortError, match="SHA256"):
        bort.get_model("bort_4_8_768_1024", root=tmp_path)
    beside.write_text("nonsense")
    with pytest.raises(BortError, match="no SHA-256"):
        bort.get_model("bort_4_8_768_1024", root=tmp_path)


def test_offline_says_which_files_where_and_from_where(tmp_path, monkeypatch):
    with pytest.raises(BortError) as caught:
        bort.get_model("bort_4_8_768_1024")
    message = str(caught.value)
    home = tmp_path / "home" / ".mxnet" / "models"
    for part in ("2b804f8f.vocab, or dict.txt, encoder.json, vocab.bpe", str(home),
                 "fairseq/gpt2_bpe/dict.txt", "BORT_OFFLINE is set"):
        assert part in message
    write_vocabulary(home)
    monkeypatch.setenv("BORT_HOME", str(tmp_path / "b"))
    with pytest.raises(BortError) as caught:
        bort.get_model("bort_4_8_768_1024")
    message = str(caught.value)
    for part in ("Needed: bort.params", str(tmp_path / "b" / "bort.params"), str(home / "bort.params"),
                 "alexa-saif-bort.s3.amazonaws.com/bort.params", "huggingface.co/amazon/bort",
                 "python -m bort.huggingface import"):
        assert part in message
    with pytest.raises(BortError, match="never published by itself"):
        bort.get_model("bort_2_16_512_1024")


@pytest.fixture
def weights(tmp_path):
    released_file(tmp_path / "w.params", tiny_bert(9))
    return (tmp_path / "w.params").read_bytes()


@pytest.fixture
def online(monkeypatch):
    """Downloads are allowed, and the published addresses lead nowhere."""
    monkeypatch.setenv("BORT_OFFLINE", "")
    for name, entry in list(catalogue.MODELS.items()):
        monkeypatch.setitem(catalogue.MODELS, name, entry._replace(url=None))


def test_mirrors_are_tried_in_order_and_checksums_decide(tmp_path, monkeypatch, online, weights, caplog):
    root = tmp_path / "b"
    write_vocabulary(root)
    monkeypatch.setenv("BORT_HOME", str(root))
    with serve(Site({"/a/bort.params": weights[:-1] + b"x", "/b/bort.params": weights})) as site:
        monkeypatch.setenv("BORT_MIRRORS", f"{site.url}/none,{site.url}/a,{site.url}/b")
        (root / "checksums.json").write_text(json.dumps({"bort.params": hashlib.sha256(weights).hexdigest()}))
        assert same(bort.get_model("bort_4_8_768_1024")[0], tiny_bert(9))
        assert [path for path, _ in site.requests] == ["/none/bort.params", "/a/bort.params",
                                                       "/b/bort.params"]
        bort.get_model("bort_4_8_768_1024")
        assert len(site.requests) == 3, "what is there is not fetched again"
        assert "no checksum is known" not in caplog.text
        (root / "bort.params").unlink()
        (root / "checksums.json").unlink()
        bort.get_model("bort_4_8_768_1024", mirrors=[f"{site.url}/b"])
        assert "no checksum is known" in caplog.text
        (root / "bort.params").unlink()
        (root / "checksums.json").write_text(json.dumps({"bort.params": "0" * 64}))
        with pytest.raises(BortError, match="(?s)could not be downloaded.*expected is 000"):
            bort.get_model("bort_4_8_768_1024")
        (root / "checksums.json").write_text("[]")
        with pytest.raises(BortError, match="checksums.json"):
            bort.get_model("bort_4_8_768_1024")
    assert not (root / "bort.params").exists()


def test_gluonnlps_archives_are_unpacked_and_checked(tmp_path, monkeypatch, online, weights):
    root = tmp_path / "r"
    write_vocabulary(root)
    buffer = io.BytesIO()
    name = f"roberta_12_768_12_{catalogue.DATASET}"
    digest = hashlib.sha1(weights).hexdigest()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{name}-{digest[:8]}.params", weights)
    with serve(Site({"/x.zip": buffer.getvalue()})) as site:
        entry = catalogue.MODELS["roberta_12_768_12"]._replace(url=f"{site.url}/x.zip", sha1=digest)
        monkeypatch.setitem(catalogue.MODELS, "roberta_12_768_12", entry)
        model, _ = bort.get_model("roberta_12_768_12", root=root)
        assert same(model, tiny_bert(9)) and model.mlm_layer_norm_eps == 1e-5
        left = sorted(path.suffix for path in root.iterdir() if not path.name.startswith("."))
        assert left == [".params", ".vocab"]
        (root / f"{name}-{digest[:8]}.params").unlink()
        monkeypatch.setitem(catalogue.MODELS, "roberta_12_768_12", entry._replace(sha1="0" * 40))
        with pytest.raises(BortError, match="SHA1"):
            bort.get_model("roberta_12_768_12", root=root)
        assert not list(root.glob("*.params"))


def test_the_vocabulary_is_fetched_with_its_checksums(tmp_path, monkeypatch, online, real_data):
    files = {f"/{name}": (real_data / "bpe" / name).read_bytes() for name in published_vocabulary.FILES}
    with serve(Site(files)) as site:
        vocab = published_vocabulary.find_or_fetch_vocabulary(tmp_path / "r", [site.url])
        assert len(vocab) == 50265 and vocab["Ġthe"] == 5
        assert len(published_vocabulary.find_or_fetch_vocabulary(tmp_path / "r", [])) == 50265
        assert len(site.requests) == 3
    assert bort.load_tokenizer(tmp_path / "r").vocab_size == 50265
