"""Folders as other tools leave them: wrappers' prefixes, TinyBERT's parts, files of others in the output."""
from __future__ import annotations

import json

import numpy as np
import pytest

import bort
from bort.errors import BortError
from bort.huggingface import export_folder, import_folder
from bort.text.tokenizers.loading import train_sentencepiece
from tests.huggingface.test_folders import equal, retensor, rewrite, trained


@pytest.fixture
def exported(tmp_path):
    bort.save(trained(), tmp_path / "m")
    export_folder(tmp_path / "m", tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(exported, tmp_path, prefix):
    retensor(exported, lambda tensors: {prefix + name: array for name, array in tensors.items()})
    import_folder(exported, tmp_path / "a")
    assert equal(bort.load(tmp_path / "a"), trained())


def test_an_unknown_prefix_is_named(exported, tmp_path):
    retensor(exported, lambda tensors: {"student.net." + name: array for name, array in tensors.items()})
    with pytest.raises(BortError, match="more missing; extra student.*every name begins with 'student.net.'"):
        import_folder(exported, tmp_path / "a")


def test_tinyberts_own_parts_are_left_out_on_request(exported, tmp_path):
    retensor(exported, lambda tensors: {**tensors, "fit_denses.0.weight": np.ones((20, 8), "float32")})
    rewrite(exported, model_type="absent", architectures="absent")
    with pytest.raises(BortError, match="extra fit_denses.0.weight.*--body-only"):
        import_folder(exported, tmp_path / "a")
    import_folder(exported, tmp_path / "a", body_only=True)
    assert equal(bort.load(tmp_path / "a"), trained(), "encoder.")
    retensor(exported, lambda tensors: {name.replace("bert.", ""): array for name, array in tensors.items()})
    with pytest.raises(BortError, match="model_type is 'None'; supported are bert and roberta; add"):
        import_folder(exported, tmp_path / "b", body_only=True)


@pytest.mark.parametrize("name", ["config.json", "model.params"])
def test_an_import_keeps_what_is_not_its_own(exported, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"mine": 1}')
    with pytest.raises(BortError, match=f"out: holds {name} already"):
        import_folder(exported, out)
    assert (out / name).read_text() == '{"mine": 1}'
    (out / name).rename(out / "notes.txt")
    for _ in range(2):  # its own files are replaced
        import_folder(exported, out)
    assert (out / "notes.txt").read_text() == '{"mine": 1}'


def test_an_export_keeps_what_is_not_its_own(tmp_path):
    tokenizer = train_sentencepiece(["the cat sat on the mat and the dog lay in the sun near a house"] * 5,
                                    38)
    bort.save(trained(vocab_size=tokenizer.vocab_size), tmp_path / "m", tokenizer)
    out = tmp_path / "out"
    for name in ("README.md", "tokenizer.json", "model.safetensors"):
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(BortError, match=f"holds {name} already"):
            export_folder(tmp_path / "m", out)
        assert sorted(path.name for path in out.iterdir()) == [name]
        (out / name).unlink()
        out.rmdir()
    for _ in range(2):
        export_folder(tmp_path / "m", out)
    assert "bort" in json.loads((out / "config.json").read_text())
    (out / "README.md").write_text("about my model")
    with pytest.raises(BortError, match="README.md"):
        export_folder(tmp_path / "m", out)
