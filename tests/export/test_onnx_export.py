"""Exported files compute what the model computes, say what they hold, and run without MXNet."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import bort
from bort.architecture import Architecture
from bort.backend.mxnet import mx
from bort.engines import onnx_graph
from bort.engines.calibration import batches_of, calibration_batches
from bort.engines.onnxruntime import OnnxRunner
from bort.errors import BortError, run_command
from bort.export import command
from bort.export import onnx_export as exporter
from bort.models import HEADS, Bert, Classifier, initialize
from bort.tasks.registry import get_task
from bort.text.tokenizers.loading import train_sentencepiece
from tests.tiny import MAX_LENGTH, NARROW, TINY, TYPED, VOCAB, pair_batch, tiny_batch, tiny_bert

WIDE = Architecture(3, 4, 16, 20)
SENTENCES = [f"the {a} film was {b}" for a in ("slow", "long", "first", "new") for b in ("good", "bad",
                                                                                         "dull", "fine")]


def tiny_classifier(head="pooled", architecture=TINY, seed=0):
    model = Classifier(tiny_bert(seed, architecture), 3, head, dropout=0.0)
    model.initialize_head(seed + 5)
    model.labels = ["no", "maybe", "yes"]
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with a tokenizer, and data of its task (SST-2)."""
    root = tmp_path_factory.mktemp("export")
    tokenizer = train_sentencepiece(SENTENCES, 50)
    model = Classifier(Bert(TINY, tokenizer.vocab_size, max_length=MAX_LENGTH), 2)
    initialize(model, 0)
    model.initialize_head(1)
    model.task_name, model.labels = "SST-2", ["0", "1"]
    bort.save(model, root / "model", tokenizer)
    (root / "glue" / "SST-2").mkdir(parents=True)
    for split in ("train", "dev"):
        rows = [f"{text}\t{int('good' in text or 'fine' in text)}" for text in SENTENCES]
        (root / "glue" / "SST-2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return root


@pytest.mark.parametrize("architecture", [TINY, WIDE, NARROW, Architecture(1, 1, 6, 5)], ids=str)
def test_encoder_and_mlm_equal_the_model(tmp_path, architecture):
    model = tiny_bert(2, architecture, mlm_layer_norm_eps=1e-3)
    for part in ("encoder", "mlm"):
        report = exporter.export(model, tmp_path / f"{part}.onnx", part)
        assert report["float32"]["max_difference"] < 1e-4 and report["part"] == part
    encoder, mlm = OnnxRunner(tmp_path / "encoder.onnx"), OnnxRunner(tmp_path / "mlm.onnx")
    for batch, length in ((3, 7), (1, 1), (2, MAX_LENGTH)):
        ids, valid, positions = tiny_batch(batch, batch, length)
        sequence, logits = model(ids, valid, positions)
        ours = encoder(ids.asnumpy(), valid.asnumpy())
        np.testing.assert_allclose(ours, sequence.asnumpy(), atol=2e-5)
        assert (ours[sequence.asnumpy() == 0] == 0).all()
        np.testing.assert_allclose(mlm(ids.asnumpy(), valid.asnumpy(), positions.asnumpy()), logits.asnumpy(),
                                   atol=1e-4)


@pytest.mark.parametrize("head", list(HEADS))
def test_classifiers_equal_the_model_and_carry_their_labels(tmp_path, head):
    model = tiny_classifier(head, WIDE)
    exporter.export(model, tmp_path / "model.onnx")
    runner = OnnxRunner(tmp_path / "model.onnx", threads=1)
    assert runner.part == "classifier" and runner.settings["labels"] == ["no", "maybe", "yes"]
    ids, valid, _ = tiny_batch(0, 4, 20)
    np.testing.assert_allclose(runner(ids.asnumpy(), valid.asnumpy()), model(ids, valid).asnumpy(), atol=1e-5)
    # The body of a classifier can be exported as well.
    exporter.export(model, tmp_path / "body.onnx", "encoder")
    np.testing.assert_allclose(OnnxRunner(tmp_path / "body.onnx")(ids.asnumpy(), valid.asnumpy()),
                               model.bort(ids, valid).asnumpy(), atol=2e-5)


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_int8_is_smaller_and_close(tmp_path, method):
    model = Bert(Architecture(2, 4, 64, 96), VOCAB, max_length=MAX_LENGTH)
    initialize(model, 0)
    batches = [tuple(a.asnumpy() for a in tiny_batch(seed, 4, 16)[:2]) for seed in range(6)]
    whole = exporter.export(model, tmp_path / "float.onnx")
    report = exporter.export(model, tmp_path / "int8.onnx", int8=method, batches=batches)
    assert report["bytes"] < 0.6 * whole["bytes"]
    assert 0 < report["int8"]["max_difference"] < 0.25 * report["int8"]["scale"]
    assert report["int8"]["correlation"] > 0.995 and report["int8"]["method"] == method
    assert OnnxRunner(tmp_path / "int8.onnx").settings["int8"] == method
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float.onnx", "int8.onnx"]


def test_token_types_are_in_the_file(tmp_path):
    model = tiny_bert(2, **TYPED)
    head = Classifier(tiny_bert(3, **TYPED), 3, dropout=0.0)
    head.initialize_head(0)
    for part in ("encoder", "mlm"):
        exporter.export(model, tmp_path / f"{part}.onnx", part)
    exporter.export(head, tmp_path / "classifier.onnx")
    for length in (7, 12):
        ids, valid, positions = (array.asnumpy() for array in pair_batch(length, length=length))
        states, logits = model(*pair_batch(length, length=length))
        assert np.abs(OnnxRunner(tmp_path / "encoder.onnx")(ids, valid) - states.asnumpy()).max() < 1e-5
        found = OnnxRunner(tmp_path / "mlm.onnx")(ids, valid, positions)
        assert np.abs(found - logits.asnumpy()).max() < 1e-4
        scores = head(*pair_batch(length, length=length)[:2]).asnumpy()
        assert np.abs(OnnxRunner(tmp_path / "classifier.onnx")(ids, valid) - scores).max() < 1e-5


def test_int8_leaves_the_heads_alone(tmp_path):
    import onnx

    exporter.export(tiny_classifier("pooled"), tmp_path / "int8.onnx", int8="dynamic")
    nodes = {node.name: node.op_type for node in onnx.load(str(tmp_path / "int8.onnx")).graph.node}
    assert nodes["head_out_product"] == nodes["head_dense_product"] == "MatMul"
    assert "MatMulInteger" in nodes.values() and nodes.get("layer0_ffn1_product") is None


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "MASKED_SCORE", -0.1)
    (tmp_path / "model.onnx").write_bytes(b"the file from before")
    with pytest.raises(BortError, match="differs from the model"):
        exporter.export(tiny_bert(0), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"the file from before"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(BortError, match="no classification head"):
        exporter.export(tiny_bert(0), tmp_path / "x.onnx", "classifier")
    with pytest.raises(BortError, match="part 'pooler'"):
        exporter.export(tiny_bert(0), tmp_path / "x.onnx", "pooler")
    with pytest.raises(BortError, match="calibration"):
        exporter.export(tiny_bert(0), tmp_path / "x.onnx", int8="static")
    with pytest.raises(BortError, match="method 'half'"):
        exporter.export(tiny_bert(0), tmp_path / "x.onnx", int8="half")
    assert not list(tmp_path.iterdir())


def test_a_wrong_8_bit_file_is_not_written(tmp_path, monkeypatch):
    from bort.engines import onnx_quantize

    model = tiny_classifier("pooled", WIDE)
    exporter.export(model, tmp_path / "model.onnx", int8="dynamic")
    before = (tmp_path / "model.onnx").read_bytes()
    other = tiny_classifier("pooled", WIDE)
    for parameter in other.classifier[3].collect_params().values():
        parameter.set_data(-parameter.data())
    broken = Classifier(tiny_bert(0, WIDE), 3, "pooled", dropout=0.0)
    broken.initialize_head(5)
    broken.classifier[3].bias.set_data(broken.classifier[3].bias.data() * float("nan"))
    for wrong in (other, broken):
        graph = exporter.to_onnx(wrong, "classifier", {})
        monkeypatch.setattr(onnx_quantize, "quantize", lambda given, path, *rest: onnx_quantize.write(graph,
                                                                                                      path))
        with pytest.raises(BortError, match="8-bit form computes something else"):
            exporter.export(model, tmp_path / "model.onnx", int8="dynamic")
        assert (tmp_path / "model.onnx").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_honest_8_bits_always_pass(tmp_path, method, outputs):
    """Even networks whose outputs hardly depend on their input, calibrated on sequences unlike those of the
    check."""
    batches = [(np.full((2, 6), 7), np.array([6.0, 3.0]))]
    for seed, scale in ((0, 1.0), (2, 1.0), (1, 0.0)):
        model = Classifier(tiny_bert(seed, WIDE, scale=scale), outputs, dropout=0.0)
        model.initialize_head(seed)
        report = exporter.export(model, tmp_path / "x.onnx", int8=method, batches=batches)
        assert report["int8"]["correlation"] > 0.7 or not scale


def test_static_8_bits_of_the_mlm_part(tmp_path):
    model = Bert(Architecture(2, 4, 64, 96), VOCAB, max_length=MAX_LENGTH)
    initialize(model, 0)
    batches = [tuple(a.asnumpy() for a in tiny_batch(seed, 4, 16)[:2]) for seed in range(6)]
    report = exporter.export(model, tmp_path / "mlm.onnx", "mlm", int8="static", batches=batches)
    assert report["int8"]["correlation"] > 0.99 and OnnxRunner(tmp_path / "mlm.onnx").part == "mlm"


def test_another_tokenizer_in_the_folder_is_left_alone(tmp_path):
    first, second = (train_sentencepiece(texts, 50) for texts in (SENTENCES,
                                                                  [text.upper() for text in SENTENCES]))
    second.save(tmp_path)
    model = Bert(TINY, first.vocab_size, max_length=MAX_LENGTH)
    initialize(model, 0)
    with pytest.raises(BortError, match="holds another tokenizer"):
        exporter.export(model, tmp_path / "x.onnx", tokenizer=first)
    assert not (tmp_path / "x.onnx").exists()
    assert bort.load_tokenizer(tmp_path).fingerprint == second.fingerprint
    exporter.export(model, tmp_path / "x.onnx", tokenizer=second)


def test_unwritable_folders_threads_and_damaged_settings(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(BortError, match="cannot be written"):
        exporter.export(tiny_bert(0), tmp_path / "file" / "x.onnx")
    exporter.export(tiny_bert(0), tmp_path / "x.onnx")
    for value in ("2,1", "", "all", " 1 "):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert OnnxRunner(tmp_path / "x.onnx").part == "encoder"
    for settings in ("{", "[]", "{}", '{"part": "classifier"}',
                     '{"part": "x", "vocab_size": 5, "max_length": 5}', '{"part":' + 100_000 * "["):
        model = exporter.to_onnx(tiny_bert(0), "encoder", {})
        next(entry for entry in model.metadata_props if entry.key == "settings").value = settings
        (tmp_path / "damaged.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(BortError, match="damaged.onnx.*export it again"):
            OnnxRunner(tmp_path / "damaged.onnx")


def test_a_file_that_loads_and_does_not_run_gives_one_line(tmp_path, capfd):
    exporter.export(tiny_bert(0), tmp_path / "e.onnx")
    import onnx

    model = onnx.load(str(tmp_path / "e.onnx"))
    axis = next(given for given in model.graph.initializer if given.name == "axis_zero")
    axis.CopyFrom(onnx.numpy_helper.from_array(np.array([7], dtype="int64"), "axis_zero"))
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    runner = OnnxRunner(tmp_path / "bad.onnx")
    capfd.readouterr()
    with pytest.raises(BortError, match="bad.onnx: loads, but cannot be run.*export it again") as caught:
        runner(np.array([[0, 1]]), np.array([2]))
    assert "\n" not in str(caught.value) and not capfd.readouterr().err  # nothing of onnxruntime's own


def test_the_runner_refuses_what_the_model_refuses(tmp_path):
    exporter.export(tiny_bert(0), tmp_path / "e.onnx")
    exporter.export(tiny_bert(0), tmp_path / "m.onnx", "mlm")
    encoder, mlm = OnnxRunner(tmp_path / "e.onnx"), OnnxRunner(tmp_path / "m.onnx")
    for ids, valid, message in (([[0, VOCAB]], [2], "token id 40"), ([[0, -1]], [2], "token id -1"),
                                ([[0]], [2], "valid_length 2"), ([[0]], [float("nan")], "valid_length"),
                                ([[0] * 25], [1], "max_length"), ([0], [1], "batch"),
                                ([[0], [1]], [1], "batch")):
        with pytest.raises(BortError, match=message):
            encoder(np.array(ids), np.array(valid))
    with pytest.raises(BortError, match="takes no masked_positions"):
        encoder(np.array([[0]]), np.array([1]), np.array([[0]]))
    with pytest.raises(BortError, match="takes masked_positions"):
        mlm(np.array([[0]]), np.array([1]))
    for positions in ([[1]], [0]):
        with pytest.raises(BortError, match="masked"):
            mlm(np.array([[0]]), np.array([1]), np.array(positions))
    with pytest.raises(BortError, match="not a classifier"):
        encoder.classify(["a"])


def test_foreign_and_missing_files(tmp_path):
    with pytest.raises(BortError, match="no such file"):
        OnnxRunner(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07 nonsense")
    with pytest.raises(BortError, match="cannot load"):
        OnnxRunner(tmp_path / "broken.onnx")
    model = exporter.to_onnx(tiny_bert(0), "encoder", {})
    del model.metadata_props[:]
    (tmp_path / "foreign.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BortError, match="not exported by this project"):
        OnnxRunner(tmp_path / "foreign.onnx")


def test_calibration_draws_from_files_and_tasks(folder, tmp_path):
    tokenizer = bort.load_tokenizer(folder / "model")
    (tmp_path / "lines.txt").write_text("the slow film\n\nthe film\twas good\n", encoding="utf-8")
    batches = calibration_batches(tmp_path / "lines.txt", tokenizer, 16)
    assert sum(len(ids) for ids, _ in batches) == 2
    ids, valid = batches[0]
    assert int((ids[int(valid.argmax())] == tokenizer.eos_id).sum()) == 2  # a pair has two ends
    task = get_task("SST-2")
    drawn = [calibration_batches(folder / "glue", tokenizer, 16, task, 10, seed) for seed in (0, 0, 1)]
    assert sum(len(ids) for ids, _ in drawn[0]) == 10
    flat = [np.concatenate([ids.ravel() for ids, _ in batches]) for batches in drawn]
    np.testing.assert_array_equal(flat[0], flat[1])
    assert flat[0].shape != flat[2].shape or (flat[0] != flat[2]).any()
    for source, task, message in ((folder / "glue", None, "--task"),
                                  (tmp_path / "none", None, "cannot be read")):
        with pytest.raises(BortError, match=message):
            calibration_batches(source, tokenizer, 16, task)
    assert [ids.shape for ids, _ in batches_of([np.arange(n) for n in (9, 2, 5)], 1, 24, 2)] == [(2, 8),
                                                                                                 (1, 16)]


@pytest.mark.parametrize("extra", [[], ["--int8", "dynamic"], ["--int8", "static", "--calibration", "DATA"]],
                         ids=["float32", "dynamic", "static"])
def test_the_command_reports_the_accuracy_lost(folder, tmp_path, capsys, extra):
    arguments = [str(folder / "model"), str(tmp_path / "out.onnx"), "--evaluate", str(folder / "glue"),
                 "--max-length", "16", *[str(folder / "glue") if part == "DATA" else part for part in extra]]
    assert run_command(command.main, arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["dev"]) == {"model", "onnx"}
    if not extra:
        assert report["dev"]["model"] == report["dev"]["onnx"]
    runner = OnnxRunner(tmp_path / "out.onnx")
    first = runner.classify(SENTENCES, batch_size=5)
    assert len(first) == len(SENTENCES) and set(first[0]["probabilities"]) == {"0", "1"}
    assert abs(sum(first[3]["probabilities"].values()) - 1) < 1e-6
    if not extra:
        alone = runner.classify([SENTENCES[3]])[0]["probabilities"]
        assert first[3]["probabilities"]["1"] == pytest.approx(alone["1"], abs=1e-5)


@pytest.mark.parametrize("arguments, message", [
    (["--int8", "static"], "--calibration"), (["--part", "mlm", "--evaluate", "x"], "--evaluate needs"),
    (["--int8", "dynamic", "--calibration", "nowhere"], "nowhere"),
    (["--int8", "static", "--calibration", "nowhere"], "nowhere"),
    (["--calibration", "x"], "only --int8 static"), (["--examples", "9"], "--examples"),
    (["--reduce-range"], "--reduce-range"),
    (["--int8", "dynamic", "--examples", "9"], "--examples"), (["--max-length", "999"], "--max-length")])
def test_wrong_arguments(folder, tmp_path, capsys, arguments, message):
    assert run_command(command.main, [str(folder / "model"), str(tmp_path / "out.onnx"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_file_runs_without_mxnet(folder, tmp_path):
    assert run_command(command.main, [str(folder / "model"), str(tmp_path / "out.onnx")]) == 0
    script = ("import sys\nfor name in ('mxnet', 'onnx', 'torch', 'gluonnlp', 'scipy', 'sklearn'):\n"
              "    sys.modules[name] = None\n"
              "from bort.engines.onnxruntime import OnnxRunner\n"
              f"print(OnnxRunner({str(tmp_path / 'out.onnx')!r}).classify(['the slow film'])[0]['label'])\n")
    done = subprocess.run([sys.executable, "-c", script], cwd=str(Path(bort.__file__).parents[1]),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() in ("0", "1")


def test_regression_and_foreign_tokenizers(folder, tmp_path):
    tokenizer = bort.load_tokenizer(folder / "model")
    model = Classifier(Bert(TINY, tokenizer.vocab_size, max_length=MAX_LENGTH), 1)
    initialize(model, 3)
    exporter.export(model, tmp_path / "r.onnx", tokenizer=tokenizer)
    runner = OnnxRunner(tmp_path / "r.onnx")
    ids, valid = runner.encode([("the film", "was good"), ("the slow film", "was bad")])
    expected = model(mx.nd.array(ids, dtype="int32"), mx.nd.array(valid)).asnumpy()[:, 0]
    scores = runner.classify([("the film", "was good"), ("the slow film", "was bad")])
    np.testing.assert_allclose([row["score"] for row in scores], expected, atol=1e-5)
    train_sentencepiece([text.upper() for text in SENTENCES], 50).save(tmp_path)
    with pytest.raises(BortError, match="not the one"):
        OnnxRunner(tmp_path / "r.onnx").classify(["x"])


def test_the_benchmark_of_8_bits_holds_every_format_against_float32(folder, tmp_path, capsys):
    from benchmarks import int8_accuracy

    given = [f"SST-2={folder / 'model'}", "--data", str(folder), "--calibration", "8", "--folder",
             str(tmp_path)]
    assert int8_accuracy.main(given) == 0
    record = json.loads((tmp_path / "int8_accuracy.json").read_text())
    rows = record["rows"]
    found = {row["computed by"]: row for row in rows}
    assert {"mxnet float32", "onnx float32", "onnx int8 dynamic", "onnx int8 static"} <= set(found)
    assert found["onnx float32"]["labels as before, %"] == 100 and found["onnx float32"]["lost"] == 0
    for row in rows:
        assert row["examples"] == len(SENTENCES) and row["metric"] == "accuracy"
        assert row["dev"] == pytest.approx(found["mxnet float32"]["dev"] - row["lost"], abs=0.02)
        assert row["largest change of a logit"] < 0.5 * row["logits' deviation"]
    for given, message in (("CoLA", "TASK=FOLDER"), ("X=y", "TASK=FOLDER"),
                           (f"RTE={folder / 'model'}", "SST-2, not for")):
        assert run_command(int8_accuracy.main, [given, "--data", str(folder)]) == 2
        assert message in capsys.readouterr().err
