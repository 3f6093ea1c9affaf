"""Prediction: every format and task, order, streaming, bad lines, and masks filled only by heads that can."""
from __future__ import annotations

import gc
import io
import json
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import bort
from bort.checkpoints.model_folder import parameter_arrays
from bort.engines.base import Engine
from bort.errors import BortError, run_command
from bort.models import Bert, Classifier, initialize
from bort.predict import command
from bort.predict.fill_mask import MaskFiller, encode_masked
from bort.predict.inputs import guess_format, read_records
from bort.predict.predictor import QUEUED_WINDOWS, Predictor
from bort.predict.records import PlainTask, Record, example_split
from bort.tasks.encoding import encode, encode_pair
from bort.tasks.registry import get_task
from bort.text.tokenizers.loading import train_sentencepiece
from tests.tiny import tiny_bert

WORDS = ("the a cat dog bird man woman sat ran saw ate on in under over mat house tree river big small red "
         "green and but because so yes no who what where").split()


def sentences(count, seed=0, shortest=1, longest=12):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(shortest, longest + 1))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece(sentences(300, 1), 120)


@pytest.fixture(scope="module")
def make(tokenizer, tmp_path_factory):
    """``make(outputs, task=None, labels=None)``: the folder of a tiny classifier."""
    def build(outputs, task=None, labels=None, extra=None, encoding=None):
        model = Classifier(tiny_bert(vocab_size=tokenizer.vocab_size), outputs, "linear")
        model.initialize_head(outputs)
        model.task_name, model.labels, model.encoding = task, labels, encoding
        return bort.save(model, tmp_path_factory.mktemp("model") / "m", tokenizer, extra)

    return build


def reference(model, tokenizer, segments):
    """Outputs for one input, straight from the model, alone in its batch."""
    from bort.backend.mxnet import mx

    ids = [tokenizer.encode(text) for text in segments]
    row = encode_pair(tokenizer, ids[0], ids[1] if len(ids) > 1 else None, 24)
    return model(mx.nd.array([row], dtype="int32"), mx.nd.array([len(row)])).asnumpy()[0]


def softmax(values):
    weights = np.exp(values - values.max())
    return weights / weights.sum()


def run(capsys, *arguments):
    """Exit code, parsed stdout rows and stderr of the command."""
    code = run_command(command.main, [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_predictions_are_the_models_own_in_the_order_given(make, tokenizer):
    folder = make(3, labels=["x", "y", "z"])
    model = bort.load(folder)
    inputs = [*sentences(20, 2), ("the cat", "a dog sat"), {"sentence": "a man"},
              {"sentence1": "a", "sentence2": "the"}]
    predictor = Predictor(folder, batch_size=4)
    rows = predictor(inputs)
    assert [row["line"] for row in rows] == list(range(1, 24))
    for texts, row in zip(inputs, rows):
        segments = tuple(texts.values()) if isinstance(texts, dict) else texts
        segments = (segments,) if isinstance(segments, str) else segments
        expected = softmax(reference(model, tokenizer, segments))
        np.testing.assert_allclose([row["probabilities"][name] for name in "xyz"], expected, atol=1e-5)
        assert row["label"] == "xyz"[int(expected.argmax())]
    # The loaded model gives the same, and so does another window and batch size.
    again = Predictor(model, tokenizer, batch_size=1)(inputs[:5])
    assert [row["label"] for row in again] == [row["label"] for row in rows[:5]]


def test_a_whole_split_gets_the_scores_of_evaluation(make, tokenizer, tmp_path):
    folder = make(2, "RTE", ["entailment", "not_entailment"])
    texts = list(zip(sentences(20, 3), sentences(20, 4, 10, 30)))
    (tmp_path / "dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + "".join(
        f"{index}\t{a}\t{b}\tentailment\n" for index, (a, b) in enumerate(texts)))
    task = get_task("RTE")
    encoded = encode(task, task.read(tmp_path, "dev"), tokenizer, 24)
    assert encoded.num_truncated
    model = bort.load(folder)
    from bort.finetuning.scoring import score
    expected = score(model, encoded.token_ids, tokenizer.pad_id)
    predictor = Predictor(folder)
    with open(tmp_path / "dev.tsv", "rb") as stream:
        rows = list(predictor.stream(read_records(stream, predictor.task, name="dev.tsv")))
    found = [[row["probabilities"][label] for label in task.labels] for row in rows]
    np.testing.assert_allclose(found, [softmax(row) for row in expected], atol=1e-5)


def test_formats(make, tmp_path, capsys):
    folder, texts = make(2, labels=["no", "yes"]), sentences(5, 5)
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "b.tsv").write_text("id\tsentence\n" + "".join(f"7\t{text}\n" for text in texts))
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"sentence": text}) + "\n" for text in texts))
    (tmp_path / "d").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(texts).encode())
    _, lines, errors = run(capsys, folder, "--input", tmp_path / "a.txt")
    assert not errors and [row["line"] for row in lines] == [1, 2, 3, 4, 5]
    for name, first in (("b.tsv", 2), ("c.jsonl", 1), ("d", 1)):
        code, rows, errors = run(capsys, folder, "--input", tmp_path / name)
        assert code == 0 and not errors and rows[0]["line"] == first
        assert [row["probabilities"] for row in rows] == [row["probabilities"] for row in lines]
    assert run(capsys, folder, "--input", tmp_path / "a.txt", "--output", tmp_path / "out.tsv")[0] == 0
    columns = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]
    assert columns[0] == ["line", "label", "no", "yes", "error"] and len(columns) == 6
    for row, cells in zip(lines, columns[1:]):
        assert cells[1] == row["label"] and float(cells[2]) == pytest.approx(row["probabilities"]["no"],
                                                                             abs=1e-6)
    assert run(capsys, folder, "--input", tmp_path / "a.txt", "--output", tmp_path / "out.jsonl")[0] == 0
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == lines


def test_standard_input(make, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat\tthe dog\na man\ta woman\n")))
    code, rows, _ = run(capsys, make(2, "RTE"), "--input", "-")
    assert code == 0 and len(rows) == 2 and set(rows[0]["probabilities"]) == {"entailment", "not_entailment"}


def test_formats_are_guessed():
    assert guess_format("x.TSV", "{}") == "tsv" and guess_format("-", '{"a": 1}') == "jsonl"
    assert guess_format("x", "a\tb") == "tsv" and guess_format("-", "a b") == "lines"


def test_bad_lines_are_reported_with_their_number_and_the_rest_goes_on(make, tmp_path, capsys):
    folder = make(2, "RTE")
    (tmp_path / "x.tsv").write_bytes(b"a cat\ta dog\none column\n\xff\tx\n\nthe man\tthe woman\na\tb\tc\n")
    code, rows, errors = run(capsys, folder, "--input", tmp_path / "x.tsv")
    assert code == 0 and [row["line"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert ["error" in row for row in rows] == [False, True, True, True, False, True]
    for number, reason in ((2, "found one text"), (3, "UTF-8"), (4, "empty"), (6, "found 3 texts")):
        assert any(f"x.tsv:{number}: " in line and reason in line for line in errors.splitlines())
    assert "4 of 6 lines" in errors
    assert run(capsys, folder, "--input", tmp_path / "x.tsv", "--output", tmp_path / "y.tsv")[0] == 0
    assert "found one text" in (tmp_path / "y.tsv").read_text().splitlines()[2]
    code, rows, errors = run(capsys, folder, "--input", tmp_path / "x.tsv", "--strict", "--output",
                             tmp_path / "z.tsv")
    assert code == 2 and "x.tsv:2: " in errors and not (tmp_path / "z.tsv").exists()
    (tmp_path / "x.jsonl").write_text('{"sentence1": "a", "sentence2": 3}\n[1]\n{"x": 1}\n{"sentence1": "a"\n'
                                      + "[" * 9999)
    code, rows, errors = run(capsys, folder, "--input", tmp_path / "x.jsonl")
    assert code == 2 and len(rows) == 5 and "none of its 5 lines" in errors
    with pytest.raises(BortError, match="line 2: expected 2 texts"):
        Predictor(folder)([("a", "b"), "a"])
    with pytest.raises(BortError, match="line 1"):
        Predictor(folder)([3])


def test_a_line_of_any_length_costs_bounded_memory(make, tmp_path, monkeypatch):
    monkeypatch.setattr("bort.predict.inputs.MAX_LINE_BYTES", 1000)
    (tmp_path / "x.txt").write_bytes(b"a cat\n" + b"x" * 100_000 + b"\nthe dog\n" + b"y" * 5000)
    with open(tmp_path / "x.txt", "rb") as stream:
        records = list(read_records(stream, PlainTask(None, 2), "lines"))
    assert [record.line for record in records] == [1, 2, 3, 4]
    assert [record.error is None for record in records] == [True, False, True, False]


def test_regression_gives_scores(make, tmp_path, capsys):
    folder = make(1, "STS-B")
    (tmp_path / "x.tsv").write_text("sentence1\tsentence2\na cat\ta dog\n")
    _, rows, _ = run(capsys, folder, "--input", tmp_path / "x.tsv")
    assert set(rows[0]) == {"line", "score"} and isinstance(rows[0]["score"], float)
    run(capsys, folder, "--input", tmp_path / "x.tsv", "--output", tmp_path / "y.tsv")
    assert (tmp_path / "y.tsv").read_text().splitlines()[0] == "line\tscore\terror"


RECORDS = {"BoolQ": {"idx": 4, "question": "is it", "passage": "the cat"}, "WiC": {"idx": 1, "word": "cat",
                                                                                   "sentence1": "the cat sat",
                                                                                   "sentence2": "a cat",
                                                                                   "start1": 4, "end1": 7,
                                                                                   "start2": 2, "end2": 5},
           "WSC": {"idx": 2, "text": "the cat saw the dog because it ran", "target": {"span1_text": "the cat",
                                                                                      "span1_index": 0,
                                                                                      "span2_text": "it",
                                                                                      "span2_index": 6}},
           "COPA": {"idx": 3, "premise": "the man ran.", "choice1": "He saw a dog.", "choice2": "A bird sat.",
                    "question": "cause"},
           "MultiRC": {"idx": 5, "passage": {"text": "the cat sat",
                                             "questions": [{"idx": 8, "question": "who sat",
                                                            "answers": [{"idx": 20, "text": "the cat"},
                                                                        {"idx": 21, "text": "a dog"}]}]}},
           "ReCoRD": {"idx": 6, "passage": {"text": "cat and dog", "entities": [{"start": 0, "end": 2},
                                                                                {"start": 8, "end": 10}]},
                      "qas": [{"idx": 9, "query": "@placeholder sat"}]},
           "RACE": {"id": "high1.txt", "article": "the cat", "questions": ["who _ it", "what"],
                    "options": [list("abcd")] * 2},}


@pytest.mark.parametrize("name", RECORDS)
def test_official_records_give_official_answers(make, tokenizer, tmp_path, name):
    folder, task, record = make(2, name), get_task(name), RECORDS[name]
    row = Predictor(folder)([record])[0]
    split = example_split(task, record, 0)
    model = bort.load(folder)
    scores = np.stack([reference(model, tokenizer, example.segments) for example in split.examples])
    expected = task.predict(split, scores)
    if split.examples[0].group is None:
        assert row["label"] == expected[0][1] and expected[0][0] == record["idx"]
        assert max(row["probabilities"], key=row["probabilities"].get) == str(row["label"])
    else:
        assert row["predictions"] == json.loads(json.dumps([task.submission_kind.record(*pair)
                                                            for pair in expected]))
        assert len(row["probabilities"]) == len(split)
        path = tmp_path / "submission"
        path.write_text("".join(json.dumps(line) + "\n" for line in row["predictions"]))
        from bort.tasks.submission import validate
        assert validate(path, task.submission_kind, expected)
    with pytest.raises(BortError, match="line 1: expected"):
        Predictor(folder)([{**record, **{key: None for key in record if key not in ("idx", "id")}}])


def test_texts_without_a_place_in_the_task_are_refused(make):
    with pytest.raises(BortError, match="JSON object as in COPA's"):
        Predictor(make(2, "COPA"))(["the cat"])
    rows = list(Predictor(make(2, "COPA")).stream([Record(7, None, "why")]))
    assert rows == [{"line": 7, "error": "why"}]


def test_cola_without_a_header(make, tmp_path, capsys):
    folder = make(2, "CoLA")
    (tmp_path / "dev.tsv").write_text("gj04\t1\t\tthe cat sat\ngj04\t0\t*\tsat the\n")
    (tmp_path / "x.txt").write_text("the cat sat\nsat the\n")
    rows = run(capsys, folder, "--input", tmp_path / "dev.tsv")[1]
    assert rows == run(capsys, folder, "--input", tmp_path / "x.txt")[1] and "label" in rows[0]


def test_the_models_own_order_of_labels_is_respected(make):
    folder = make(3, labels=["contradiction", "entailment", "neutral"])
    plain = Predictor(folder)([("a cat", "a dog")])[0]
    as_task = Predictor(folder, task="mnli")([("a cat", "a dog")])[0]
    assert as_task["label"] == plain["label"]
    for name, value in plain["probabilities"].items():
        assert as_task["probabilities"][name] == pytest.approx(value)
    folded = Predictor(folder, task="AX-b")([("a cat", "a dog")])[0]
    assert folded["probabilities"]["entailment"] == pytest.approx(plain["probabilities"]["entailment"])
    with pytest.raises(BortError, match="labels are x, y, z"):
        Predictor(make(3, labels=["x", "y", "z"]), task="MNLI")
    with pytest.raises(BortError, match="3 outputs, SST-2 needs 2: it was fine-tuned for CB"):
        Predictor(make(3, "CB"), task="SST-2")


def test_the_length_that_it_was_fine_tuned_with_is_the_default(make, tokenizer):
    folder = make(2, extra={"training": {"max_length": 9}})
    assert Predictor(folder).max_length == 9 and Predictor(folder, max_length=20).max_length == 20
    assert Predictor(make(2, extra={"training": {"max_length": 900}})).max_length == 24
    with pytest.raises(BortError, match="from 4 to 24"):
        Predictor(folder, max_length=25)
    long = " ".join(WORDS)
    assert Predictor(folder)([long])[0]["probabilities"] != Predictor(folder,
                                                                      max_length=24)(
                                                                                     [long])[0][
                                                                                                "probabilities"]


def test_models_that_cannot_predict_say_why(make, tokenizer, tmp_path):
    bort.save(tiny_bert(), tmp_path / "body")
    with pytest.raises(BortError, match="no classification head"):
        Predictor(tmp_path / "body")
    bare = Classifier(tiny_bert(), 2)
    bare.initialize_head(0)
    bort.save(bare, tmp_path / "bare")
    with pytest.raises(BortError, match="--tokenizer DIR"):
        Predictor(tmp_path / "bare")
    with pytest.raises(BortError, match="the tokenizer has"):
        Predictor(tmp_path / "bare", tokenizer=make(2))
    with pytest.raises(BortError, match="batch_size"):
        Predictor(make(2), batch_size=0)
    with pytest.raises(BortError, match="engine"):
        Predictor(make(2), engine="torch")
    for options in ({}, {"precision": "int8", "engine": "mxnet"}):
        with pytest.raises(BortError, match="dev set is for the precision int8 of the engine openvino"):
            Predictor(make(2), evaluate="data", **options)


def test_streaming_reads_no_more_than_a_few_windows_ahead_and_stops_when_told(make, monkeypatch):
    monkeypatch.setattr("bort.predict.predictor.WINDOW", 0)
    monkeypatch.setattr("bort.predict.predictor.WINDOW_BATCHES", 2)
    predictor = Predictor(make(2), batch_size=2)
    read = []

    def endless():
        number = 0
        while True:
            number += 1
            read.append(number)
            yield Record(number, example_split(predictor.task, "the cat sat", number))

    before = threading.active_count()
    rows = predictor.stream(endless())
    assert [next(rows)["line"] for _ in range(9)] == list(range(1, 10))
    # Two windows given out and the third begun, two queued, one waiting to be queued: 4 examples each.
    assert max(read) <= 12 + 4 * (QUEUED_WINDOWS + 2)
    rows.close()
    assert threading.active_count() == before


def test_memory_does_not_grow_with_the_input(make, monkeypatch):
    monkeypatch.setattr("bort.predict.predictor.WINDOW", 0)
    monkeypatch.setattr("bort.predict.predictor.WINDOW_BATCHES", 4)
    predictor = Predictor(make(2), batch_size=8)
    text = " ".join(WORDS[:10])

    def peak(count):
        tracemalloc.start()
        for row in predictor.stream(Record(line, example_split(predictor.task, text, line))
                                    for line in range(count)):
            if row["line"] % 50 == 0:
                gc.collect()  # MXNet's arrays leave cycles behind, which Python collects when it likes
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    peak(64)
    assert peak(800) < 1.3 * peak(200) + 20_000


def test_an_error_in_the_reader_reaches_the_caller(make):
    def broken():
        yield Record(1, None, "x")
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        list(Predictor(make(2)).stream(broken()))


def test_the_onnx_engine_takes_its_runner_from_export(make, tmp_path, monkeypatch):

    folder = make(2)
    model = bort.load(folder)
    asked = []

    class OnnxRunner(Engine):
        settings = {}

        def __init__(self, path):
            asked.append(Path(path))

        def require(self, **wanted):
            assert wanted["part"] == "classifier" and wanted["num_outputs"] == 2

        def __call__(self, token_ids, valid_length):
            from bort.backend.mxnet import mx
            return model(mx.nd.array(token_ids, dtype="int32"), mx.nd.array(valid_length)).asnumpy()

    monkeypatch.setattr("bort.engines.onnxruntime.OnnxRunner", OnnxRunner)
    rows = Predictor(folder, engine="onnx")(["the cat"])
    assert asked == [folder / "model.onnx"]
    expected = Predictor(folder)(["the cat"])[0]["probabilities"]["0"]
    assert rows[0]["probabilities"]["0"] == pytest.approx(expected, abs=1e-5)
    Predictor(folder, engine="onnx", onnx=tmp_path / "x.onnx")
    assert asked[-1] == tmp_path / "x.onnx"


def test_an_exported_file_of_another_model_is_refused(make, tokenizer, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from bort.export import onnx_export

    def predictor(folder, onnx=None):
        return Predictor(folder, engine="onnx", onnx=onnx)

    folder = make(2, "SST-2", ["0", "1"])
    model = bort.load(folder)
    onnx_export.export(model, folder / "model.onnx", tokenizer=tokenizer)
    expected = Predictor(folder)(["the cat"])[0]["probabilities"]["0"]
    assert predictor(folder)(["the cat"])[0]["probabilities"]["0"] == pytest.approx(expected, abs=1e-5)
    assert Predictor(model, tokenizer, engine="onnx", onnx=folder / "model.onnx").task.name == "SST-2"

    onnx_export.export(model, tmp_path / "encoder.onnx", "encoder")
    with pytest.raises(BortError, match="part"):
        predictor(folder, tmp_path / "encoder.onnx")
    words = train_sentencepiece([text.upper() for text in sentences(300, 1)], tokenizer.vocab_size)
    for name, changes, exported_with in (("num_outputs", {"outputs": 3}, tokenizer),
                                         ("task", {"task": "CoLA"}, tokenizer),
                                         ("labels", {"labels": ["1", "0"]}, tokenizer),
                                         ("tokenizer", {}, words)):
        other = bort.load(make(**{"outputs": 2, "task": "SST-2", "labels": ["0", "1"], **changes}))
        onnx_export.export(other, tmp_path / name / "o.onnx", tokenizer=exported_with)
        with pytest.raises(BortError, match=f"{name}.*export it again"):
            predictor(folder, tmp_path / name / "o.onnx")

    # Trained on, the file that was exported before is of no more use; exported again it is.
    model.classifier[1].bias.data()[0] += 1
    bort.save(model, folder, tokenizer)
    with pytest.raises(BortError, match="model.onnx: was made from other parameters.*python -m bort.export"):
        predictor(folder)
    onnx_export.export(model, folder / "model.onnx", tokenizer=tokenizer)
    assert predictor(folder)(["the cat"])[0]["probabilities"]["0"] != pytest.approx(expected, abs=1e-3)


# ---- masks

@pytest.fixture(scope="module")
def trained_mlm(tokenizer, tmp_path_factory):
    return bort.save(tiny_bert(vocab_size=tokenizer.vocab_size), tmp_path_factory.mktemp("mlm") / "m",
                     tokenizer)


def test_masks_are_filled_with_the_models_likeliest_tokens(trained_mlm, tokenizer, capsys):
    from bort.backend.mxnet import mx

    filled = MaskFiller(trained_mlm)("the <mask> sat on the [MASK]", top=4)
    ids = encode_masked(tokenizer, "the <mask> sat on the [MASK]")
    assert ids.count(tokenizer.mask_id) == 2 and ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
    masks = [place for place, token in enumerate(ids) if token == tokenizer.mask_id]
    _, logits = bort.load(trained_mlm)(mx.nd.array([ids], dtype="int32"), mx.nd.array([len(ids)]),
                                       mx.nd.array([masks], dtype="int32"))
    for row, candidates in zip(logits.asnumpy()[0], filled):
        weights = softmax(row.astype("float64"))
        assert len(candidates) == 4
        for candidate, token in zip(candidates, np.argsort(-weights, kind="stable")):
            assert candidate.probability == pytest.approx(weights[token], rel=1e-5)
            assert candidate.token in (tokenizer.decode([token]).strip(), tokenizer.id_to_token(int(token)))
    assert run_command(command.main, ["fill-mask", str(trained_mlm), "--text", "a <mask>", "--top",
                                               "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("1\t0.")
    for text, problem in (("no mask", "no <mask>"), ("<mask> " + "the cat " * 30, "the model takes 24")):
        assert run_command(command.main, ["fill-mask", str(trained_mlm), "--text", text]) == 2
        assert problem in capsys.readouterr().err


def test_masks_are_not_filled_by_random_or_stale_heads(make, tokenizer, tmp_path, capsys):
    fresh = Bert(tiny_bert().architecture, tokenizer.vocab_size, 24)
    initialize(fresh, 0)
    bort.save(fresh, tmp_path / "fresh", tokenizer)
    assert run_command(command.main, ["fill-mask", str(tmp_path / "fresh"), "--text",
                                               "a <mask>"]) == 2
    assert "MLM head is random" in capsys.readouterr().err
    with pytest.raises(BortError, match="fine-tuned as a classifier"):
        MaskFiller(make(2))
    for folder in (tmp_path / "fresh", make(2)):
        assert run_command(command.main, ["fill-mask", str(folder), "--text", "a <mask>", "--force",
                                                   "--top", "1"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1
    assert parameter_arrays(fresh)["decoder.3.bias"].sum() == 0
