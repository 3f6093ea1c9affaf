"""A deployed folder answers as the model does, where neither MXNet nor this project can be imported."""
from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import bort
from bort.backend.mxnet import mx
from bort.checkpoints.model_folder import save
from bort.engines import openvino_model
from bort.errors import BortError, run_command
from bort.export import command, int8
from bort.export.folder import FolderOptions, example, export_folder
from bort.models import Bert, Classifier, initialize
from tests.export.test_onnx_export import SENTENCES
from tests.tiny import MAX_LENGTH, TINY, tiny_bert

LIBRARIES = {"onnx": "onnxruntime", "openvino": "openvino"}
pytestmark = pytest.mark.skipif(not all(map(importlib.util.find_spec, ("onnx", *LIBRARIES.values()))),
                                reason="onnx, onnxruntime or openvino is not installed")
BLOCKED = """
import runpy, socket, sys
for name in ("bort", "mxnet", "gluonnlp", "horovod"):
    sys.modules[name] = None
def refuse(*arguments, **more):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def tokenizer():
    from bort.text.tokenizers.pieces import train_sentencepiece

    return train_sentencepiece(SENTENCES, 60)


def network(tokenizer, outputs=3, labels=("no", "perhaps", "yes"), seed=0):
    bert = Bert(TINY, tokenizer.vocab_size, max_length=MAX_LENGTH, dropout=0.0)
    initialize(bert, seed)
    model = Classifier(bert, outputs, "linear", dropout=0.0)
    model.initialize_head(seed + 1)
    model.labels = list(labels) if labels else None
    return model


def answers(folder, *texts):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-S", "-c", f"import site, sys; sys.path += {site_packages()!r}\n"
                           + BLOCKED, str(folder / "example.py"), *texts], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env=environment, cwd=str(folder), timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def site_packages():
    return [path for path in sys.path if path.endswith("site-packages")]


def expected(model, tokenizer, *texts):
    from bort.tasks.encoding import encode_pair

    ids = tokenizer.encode_batch(list(texts))
    row = encode_pair(tokenizer, ids[0], ids[1] if len(ids) > 1 else None, MAX_LENGTH, "even")
    logits = model(mx.nd.array([row], dtype="int32"), mx.nd.array([len(row)])).asnumpy()[0].astype(float)
    weights = np.exp(logits - logits.max())
    return logits, weights / weights.sum()


@pytest.mark.parametrize("kind", list(LIBRARIES))
def test_the_example_answers_without_this_project(kind, tokenizer, tmp_path):
    model = network(tokenizer)
    report = export_folder(model, tmp_path / "out", FolderOptions(kind), tokenizer)
    assert report["float32"]["max_difference"] < 1e-4 and report["bytes"] > 1000
    found = answers(tmp_path / "out", SENTENCES[0], SENTENCES[1])
    assert list(found) == ["no", "perhaps", "yes"]
    _, weights = expected(model, tokenizer, SENTENCES[0], SENTENCES[1])
    np.testing.assert_allclose(list(found.values()), weights, atol=1e-4)
    assert len((tmp_path / "out" / "example.py").read_text().splitlines()) <= 24


@pytest.mark.parametrize("kind", list(LIBRARIES))
@pytest.mark.parametrize("part", ["encoder", "mlm", "regression"])
def test_every_part_has_an_example(kind, part, tokenizer, tmp_path):
    model = network(tokenizer, 1, None) if part == "regression" else network(tokenizer)
    chosen = None if part == "regression" else part
    export_folder(model, tmp_path / "out", FolderOptions(kind, part=chosen), tokenizer)
    text = (tmp_path / "out" / "example.py").read_text()
    ast.parse(text)
    # in this process: the same lines, without the price of another one
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["part"] == (chosen or "classifier")
    printed = []
    before = list(sys.argv)
    asked = "the film <mask>" if part == "mlm" else SENTENCES[2]
    try:
        sys.argv = ["example.py", asked]
        exec(compile(text, str(tmp_path / "out" / "example.py"), "exec"),
             {"__file__": str(tmp_path / "out" / "example.py"), "print": printed.append})
    finally:
        sys.argv = before
    answer = json.loads(printed[0])
    if part == "regression":
        assert answer["score"] == pytest.approx(expected(model, tokenizer, asked)[0][0], abs=1e-4)
    elif part == "encoder":
        assert answer["shape"][1] == TINY.hidden and len(answer["first"]) == TINY.hidden
    else:
        assert len(answer) == 1 and isinstance(answer[0], str)


def test_bfloat16_is_a_setting_of_the_example(tokenizer, tmp_path):
    export_folder(network(tokenizer), tmp_path / "out", FolderOptions("openvino", "bfloat16"), tokenizer)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["openvino"] == {"INFERENCE_PRECISION_HINT": "bf16"}
    assert settings["precision"] == "bfloat16"
    with pytest.raises(BortError, match="does not compute in bfloat16"):
        FolderOptions("onnx", "bfloat16")
    for wrong in ({"format": "tflite"}, {"format": "onnx", "precision": "int4"}):
        with pytest.raises(BortError, match="is unknown; choose one of"):
            FolderOptions(**wrong)
    assert "openvino_telemetry" in example("openvino", "encoder", {})


def test_a_folder_of_something_else_is_left_alone(tokenizer, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "example.py").write_text("print('mine')")
    with pytest.raises(BortError, match="holds something else"):
        export_folder(network(tokenizer), tmp_path / "mine", FolderOptions("onnx"), tokenizer)
    assert (tmp_path / "mine" / "example.py").read_text() == "print('mine')"
    for seed in (0, 1):  # an earlier export is replaced
        export_folder(network(tokenizer, seed=seed), tmp_path / "out", FolderOptions("onnx"), tokenizer)
    assert not list(tmp_path.glob(".export-*"))


def test_sensitive_layers_stay_in_float32_until_the_metrics_hold(tokenizer, monkeypatch):
    class Dev:
        losses = [0.05, 0.02, 0.004]

        def metrics(self, engine):
            return {}

        def lost(self, metrics):
            return self.losses.pop(0)

    asked = []
    monkeypatch.setattr(int8.openvino_int8, "quantized", lambda facts, arrays, part, batches, kept:
                        asked.append(list(kept)) or openvino_model.read(facts, arrays, part))
    model = network(tokenizer)
    engine, names = int8.least_harmful(model, [], "classifier", Dev())
    assert len(asked) == 3 and asked[0] == [] and len(asked[2]) == 2 and len(names) == 2
    assert engine.report.precision == "int8" and engine.report.to_dict()["not in 8 bits"] == names
    Dev.losses = [0.1] * 4
    with pytest.raises(BortError, match="8 bits cost more than 0.5 points"):
        int8.least_harmful(model, [], "classifier", Dev())
    assert asked[-1][-1] == "layer(1|0)_.*"


def test_the_command_writes_folders_and_refuses_what_does_not_fit(tokenizer, tmp_path, capsys):
    save(network(tokenizer), tmp_path / "model", tokenizer)
    save(tiny_bert(0), tmp_path / "bare")
    given = [str(tmp_path / "model"), str(tmp_path / "out")]
    assert run_command(command.main, [*given, "--format", "onnx", "--precision", "int8"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["int8"]["method"] == "dynamic" and (tmp_path / "out" / "model.onnx").is_file()
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    for arguments, message in (
            ([*given, "--precision", "int8"], "add --format"),
            ([*given, "--format", "onnx", "--int8", "dynamic"], "take --precision int8"),
            ([*given, "--format", "openvino", "--precision", "int8"], "give --calibration"),
            (given, "is a folder; name a file"),
            ([str(tmp_path / "bare"), str(tmp_path / "b"), "--format", "onnx"], "no tokenizer with it"),
            ([*given, "--format", "onnx", "--calibration", str(tmp_path / "texts.txt")], "learn from data")):
        assert run_command(command.main, arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert bort.load(tmp_path / "model").labels == ["no", "perhaps", "yes"]
