"""The order of a classifier's outputs: whoever meets a task's labels gives the answers that the names say."""
from __future__ import annotations

import json
import re

import numpy as np
import pytest

import bort
import run_finetune
from bort.agora.teacher import Socrates
from bort.checkpoints.model_folder import parameter_arrays
from bort.engines.onnxruntime import OnnxRunner
from bort.errors import BortError, run_command
from bort.export import command
from bort.finetuning.scoring import score
from bort.finetuning.sources import choose_tokenizer, classifier_for
from bort.finetuning.task_data import ReadOptions, read_task
from bort.finetuning.teacher import open_teacher
from bort.models import Classifier
from bort.predict import command as predict
from bort.predict.predictor import Predictor
from bort.tasks.base import Example, Split
from bort.tasks.labels import align, known_labels, output_order
from bort.tasks.registry import TASKS, get_task
from bort.text.tokenizers.loading import train_sentencepiece
from tests.tiny import tiny_bert

NLI = ["entailment", "neutral", "contradiction"]
IMPORTED = ["CONTRADICTION", "Entailment", "neutral"]
ORDER = [2, 0, 1]
"""Where the imported model's outputs stand in MNLI's order."""
TEXTS = [f"the {noun} {verb} a {other}" for noun in ("cat", "dog", "man") for verb in ("saw", "ate")
         for other in ("bird", "house", "mat")]


@pytest.mark.parametrize("task, labels, order", [
    ("MNLI-m", NLI, None), ("MNLI-mm", ["neutral", "entailment", "contradiction"], [1, 0, 2]),
    ("MNLI-m", IMPORTED, [1, 2, 0]), ("CB", IMPORTED, [1, 0, 2]), ("AX", IMPORTED, [1, 2, 0]),
    ("RTE", ["not_entailment", "entailment"], [1, 0]), ("QNLI", ["Not Entailment", "ENTAILMENT"], [1, 0]),
    ("SuperGLUE-RTE", ["not-entailment", "entailment"], [1, 0]),
    ("AX-b", ["not_entailment", "entailment"], [1, 0]),
    ("AX-b", IMPORTED, [1, 2, 0]), ("AX-g", ["neutral", "entailment", "contradiction"], [1, 0, 2]),
    ("SST-2", ["1", "0"], [1, 0]), ("SST-2", ["NEGATIVE", "POSITIVE"], None),
    ("SST-2", ["positive", "negative"], [1, 0]), ("CoLA", ["acceptable", "unacceptable"], [1, 0]),
    ("MRPC", ["equivalent", "not_equivalent"], [1, 0]), ("BoolQ", ["True", "False"], [1, 0]),
    ("WiC", ["0", "1"], None), ("WNLI", ["entailment", "not_entailment"], [1, 0]),
    ("RTE", ["0", "1"], None), ("STS-B", ["whatever"], None), ("SST-2", None, None)])
def test_the_order_by_name(task, labels, order):
    found = output_order(labels, len(labels) if labels else 2, get_task(task), "model")
    assert (found is None) == (order is None) and (order is None or found.tolist() == order)


def test_more_names_than_outputs_are_refused():
    with pytest.raises(BortError, match="its labels are , 0, 1"):
        output_order(["", "0", "1"], 2, get_task("SST-2"), "model")


@pytest.mark.parametrize("task, labels", [
    ("MNLI-m", ["x", "y", "z"]), ("SST-2", ["entailment", "not_entailment"]), ("RTE", ["1", "0"]),
    ("SST-2", ["negative", "neg"]), ("MNLI-m", ["entailment", "entailment", "neutral"]),
    ("SST-2", ["negative", "neutral", "positive"]), ("STS-B", ["a", "b"]), ("AX-b", ["a", "b", "c"])])
def test_other_labels_are_refused_in_one_line(task, labels):
    with pytest.raises(BortError, match="the/model: .*fine-tuned for another task$") as error:
        output_order(labels, len(labels), get_task(task), "the/model")
    assert "\n" not in str(error.value)


def test_every_task_knows_its_own_labels_and_no_name_means_two_classes():
    for encoding in ("paper", "released"):
        for task in (get_task(name, encoding) for name in TASKS):
            if task.labels is None:
                continue
            assert output_order(task.labels, task.num_outputs, task, "model") is None
            reverse = output_order(task.labels[::-1], task.num_outputs, task, "model")
            if task.labels != ("0", "1"):
                assert reverse.tolist() == list(range(task.num_outputs))[::-1]
            assert not task.synonyms or len(task.synonyms) == task.num_outputs
            for index, names in enumerate(task.synonyms):
                assert not {name for others in task.synonyms[index + 1:] for name in others} & set(names)


def test_names_that_are_not_recorded(caplog):
    assert known_labels(None, "CB", 3) == get_task("CB").labels
    assert output_order(None, 3, get_task("MNLI-m"), "model", "CB").tolist() == [0, 2, 1]
    assert not caplog.records
    assert known_labels(None, "somebody's", 3) is None and known_labels(None, "CB", 2) is None
    assert output_order(None, 3, get_task("MNLI-m"), "the/model") is None
    assert "the/model" in caplog.text and "entailment, neutral, contradiction" in caplog.text


# ---- the users, each with a model in the task's order and its twin in another

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """MNLI's and AX-b's files in miniature, and a model's two forms: ``ours`` and ``imported``."""
    root = tmp_path_factory.mktemp("labels")
    rows = [(TEXTS[index], TEXTS[(5 * index + 1) % len(TEXTS)], NLI[index % 5 % 3])
            for index in range(len(TEXTS))]
    (root / "MNLI").mkdir()
    for name in ("train", "dev_matched", "test_matched"):
        kept = rows if name != "test_matched" else [row[:2] for row in rows]
        header = "index\tsentence1\tsentence2" + ("\tgold_label" if name != "test_matched" else "")
        (root / "MNLI" / f"{name}.tsv").write_text(header + "\n" + "".join(
            "\t".join([str(index), *row]) + "\n" for index, row in enumerate(kept)))
    (root / "AX-b").mkdir()
    (root / "AX-b" / "AX-b.jsonl").write_text("".join(json.dumps(
        {"sentence1": a, "sentence2": b, "idx": str(index),
         "label": "entailment" if label == "entailment" else "not_entailment"}) + "\n"
        for index, (a, b, label) in enumerate(rows)))
    tokenizer = train_sentencepiece(TEXTS, 60)
    model = Classifier(tiny_bert(vocab_size=tokenizer.vocab_size, scale=4.0), 3, "pooled", dropout=0.0)
    model.initialize_head(1)
    model.labels = NLI
    bort.save(model, root / "ours", tokenizer)
    model.reorder_outputs(ORDER)
    model.labels = IMPORTED
    bort.save(model, root / "imported", tokenizer)
    model.labels = ["x", "y", "z"]
    bort.save(model, root / "foreign", tokenizer)
    return root


def split_of(count=6):
    return Split("test", [Example(index, (text, TEXTS[-1])) for index, text in enumerate(TEXTS[:count])])


def finetune(place, output, *extra, code=0):
    arguments = ["--task", "MNLI", "--data-dir", str(place), "--output", str(place / output), "--max-steps",
                 "3", "--lr", "5e-3", "--dropout", "0", *extra]
    assert run_command(run_finetune.main, arguments) == code


def submission(place, output, name="MNLI-m.tsv"):
    return (place / output / "predictions" / name).read_text()


def test_a_twin_gives_the_same_outputs_under_its_own_names(place):
    ours, imported = bort.load(place / "ours"), bort.load(place / "imported")
    ids = [np.array([2, 7, 9, 3], dtype=np.int32)]
    assert (score(ours, ids, 0)[:, ORDER] == score(imported, ids, 0)).all()
    align(imported, get_task("MNLI-m"), "imported")
    assert imported.labels == NLI and (score(ours, ids, 0) == score(imported, ids, 0)).all()
    assert align(imported, get_task("CB"), "imported").labels == list(get_task("CB").labels)


def test_prediction(place):
    for task in ("MNLI-m", "AX-b"):
        rows = [Predictor(place / name, task=task)([("the cat", "a dog"), ("a", "b")])
                for name in ("ours", "imported")]
        for one, two in zip(*rows):
            assert one["label"] == two["label"]
            assert one["probabilities"] == pytest.approx(two["probabilities"])
    # three classes folded into two: entailment keeps its probability
    whole = Predictor(place / "imported")([("the cat", "a dog")])[0]["probabilities"]
    folded = Predictor(place / "imported", task="AX-g")([("the cat", "a dog")])[0]["probabilities"]
    assert folded["entailment"] == pytest.approx(whole["Entailment"], rel=1e-5)


def test_predict_only_writes_the_same_submission_and_metrics(place, capsys):
    for name in ("ours", "imported"):
        finetune(place, f"only-{name}", "--predict-only", "--model", str(place / name))
    assert submission(place, "only-ours") == submission(place, "only-imported")
    assert len({line.split("\t")[1] for line in submission(place, "only-ours").splitlines()[1:]}) > 1
    results = [json.loads((place / f"only-{name}" / "results.json").read_text())["metrics"]
               for name in ("ours", "imported")]
    assert results[0] == results[1]
    answers = Predictor(place / "imported", task="MNLI-m")([(TEXTS[0], TEXTS[1])])
    assert submission(place, "only-imported").splitlines()[1].split("\t")[1] == answers[0]["label"]
    # what it saves says the order that it was brought into
    saved = json.loads((place / "only-imported" / "model" / "config.json").read_text())
    assert saved["head"]["labels"] == NLI
    capsys.readouterr()
    finetune(place, "only-foreign", "--predict-only", "--model", str(place / "foreign"), code=2)
    assert "its labels are x, y, z; MNLI-m has entailment, neutral, contradiction" in capsys.readouterr().err


@pytest.mark.parametrize("name, content", [("config.json", {}), ("results.json", {"task": "X", "seed": 0})])
def test_predict_only_writes_over_no_training(place, capsys, name, content):
    folder = place / f"trained-{name}"
    folder.mkdir()
    (folder / name).write_text(json.dumps(content))
    finetune(place, folder.name, "--predict-only", "--model", str(place / "ours"), code=2)
    assert f"{folder}: holds a training" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == [name]
    assert json.loads((folder / name).read_text()) == content


def test_three_classes_are_folded_into_two_by_predict_only(place):
    for name in ("ours", "imported"):
        finetune(place, f"axb-{name}", "--predict-only", "--model", str(place / name), "--task", "AX-b")
    assert submission(place, "axb-ours", "AX-b.jsonl") == submission(place, "axb-imported", "AX-b.jsonl")
    first = json.loads(submission(place, "axb-ours", "AX-b.jsonl").splitlines()[0])
    answer = Predictor(place / "imported", task="AX-b")([(TEXTS[0], TEXTS[1])])[0]["label"]
    assert first == {"idx": "0", "label": answer}


def test_the_diagnostic_set_is_scored_directly(place):
    folder = place / "AX"
    folder.mkdir()
    (folder / "diagnostic.tsv").write_text("index\tsentence1\tsentence2\n" + "".join(
        f"{index}\t{text}\t{TEXTS[-1]}\n" for index, text in enumerate(TEXTS)))
    for name in ("ours", "imported"):
        finetune(place, f"ax-{name}", "--predict-only", "--model", str(place / name), "--task", "AX")
    lines = submission(place, "ax-ours", "AX.tsv").splitlines()
    assert lines == submission(place, "ax-imported", "AX.tsv").splitlines() and len(lines) == len(TEXTS) + 1
    answer = Predictor(place / "ours", task="AX")([(TEXTS[0], TEXTS[-1])])[0]
    assert lines[1].split("\t")[1] == answer["label"]


def test_further_fine_tuning_learns_and_saves_the_tasks_order(place, capsys):
    for name in ("ours", "imported"):
        finetune(place, f"on-{name}", "--model", str(place / name))
    saved = [bort.load(place / f"on-{name}" / "model") for name in ("ours", "imported")]
    for array, other in zip(*(parameter_arrays(model).values() for model in saved)):
        np.testing.assert_allclose(array, other, atol=1e-6)
    assert [model.labels for model in saved] == [NLI, NLI] and saved[1].task_name == "MNLI-m"
    assert submission(place, "on-ours") == submission(place, "on-imported")
    assert [row["label"] for row in Predictor(place / "on-imported" / "model")([(TEXTS[0], TEXTS[1])])] == [
        submission(place, "on-imported").splitlines()[1].split("\t")[1]]
    capsys.readouterr()
    finetune(place, "on-foreign", "--model", str(place / "foreign"), code=2)
    assert "--model: its labels are x, y, z" in capsys.readouterr().err


def test_a_teachers_logits_are_in_the_tasks_order(place):
    tokenizer = choose_tokenizer(place / "ours", None)
    data = read_task("MNLI", place, tokenizer, 24)
    train = data.train
    teachers = [open_teacher(place / name, tokenizer, data.task, 24) for name in ("ours", "imported")]
    scores = [teacher.of_split(train.split, train.tokens.token_ids) for teacher in teachers]
    assert (scores[0] == scores[1]).all()
    with pytest.raises(BortError, match="foreign: its labels are x, y, z"):
        open_teacher(place / "foreign", tokenizer, data.task, 24)


def test_agoras_teacher(place):
    tokenizer, task = choose_tokenizer(place / "ours", None), get_task("MNLI-m")
    rows = [tokenizer.encode(text) for text in TEXTS[:4]]
    scores = [Socrates(open_teacher(place / name, tokenizer, task, 24)).of_rows(rows)
              for name in ("ours", "imported")]
    assert (scores[0] == scores[1]).all()
    with pytest.raises(BortError, match="foreign: its labels are x, y, z"):
        open_teacher(place / "foreign", tokenizer, task, 24)


def test_the_evaluation_of_an_exported_file(place, capsys):
    pytest.importorskip("onnx")
    figures = []
    for name in ("ours", "imported"):
        arguments = [str(place / name), str(place / f"{name}.onnx"), "--task", "MNLI", "--evaluate",
                     str(place)]
        assert run_command(command.main, arguments) == 0
        figures.append(json.loads(capsys.readouterr().out)["dev"])
    assert figures[0] == figures[1] and figures[0]["model"] == figures[0]["onnx"]
    task, tokenizer = get_task("MNLI-m"), choose_tokenizer(place / "ours", None)
    data = read_task("MNLI", place, tokenizer, 24, ReadOptions(train=False))
    scores = score(bort.load(place / "ours"), data.dev.tokens.token_ids, tokenizer.pad_id)
    expected = task.evaluate(data.dev.split, scores)
    assert figures[1]["model"] == pytest.approx(expected)
    assert run_command(command.main, [str(place / "foreign"), str(place / "f.onnx"), "--task", "MNLI",
                                          "--evaluate", str(place)]) == 2
    assert "its labels are x, y, z" in capsys.readouterr().err


RELEASE = ["neutral", "entailment", "contradiction"]
NAMED = ["--labels", ",".join(RELEASE)]


@pytest.fixture(scope="module")
def bare(place):
    """``ours`` as the release stores it: outputs in its own order, no names, no task."""
    model, tokenizer = bort.load(place / "ours"), choose_tokenizer(place / "ours", None)
    model.reorder_outputs([NLI.index(name) for name in RELEASE])
    model.task_name, model.labels = None, None
    bort.save(model, place / "bare", tokenizer)
    return place / "bare"


@pytest.mark.parametrize("extra", [["--encoding", "released"], NAMED])
def test_a_classifier_of_the_release_meets_its_task_in_every_command(place, bare, tmp_path, capsys, extra):
    pytest.importorskip("onnx")
    figures = []
    for model, more in ((place / "ours", []), (bare, extra)):
        assert run_command(command.main, [str(model), str(tmp_path / "out.onnx"), "--task", "MNLI",
                                          "--evaluate", str(place), *more]) == 0
        figures.append(json.loads(capsys.readouterr().out)["dev"])
    for model, more in ((place / "ours", []), (bare, extra)):
        finetune(place, tmp_path / model.name, "--predict-only", "--model", str(model), *more)
    assert figures[0] == figures[1] and figures[0]["model"] == figures[0]["onnx"]
    assert submission(place, tmp_path / "ours") == submission(place, tmp_path / "bare")
    assert OnnxRunner(tmp_path / "out.onnx").settings["labels"] == RELEASE
    (tmp_path / "pair.tsv").write_text("\t".join(TEXTS[:2]) + "\n")
    capsys.readouterr()
    rows = []
    for model, more in ((place / "ours", []), (bare, extra)):
        assert run_command(predict.main, [str(model), "--task", "MNLI", "--input", str(tmp_path / "pair.tsv"),
                                          *more]) == 0
        rows.append(json.loads(capsys.readouterr().out))
    assert rows[0]["label"] == rows[1]["label"]
    assert rows[0]["probabilities"] == pytest.approx(rows[1]["probabilities"])


@pytest.mark.parametrize("model, extra, message", [
    ("bare", ["--labels", "a,b"], "names 2 classes, .*bare has 3 outputs"),
    ("bare", ["--labels", "a,,b"], "'a,,b': is not a list of different names"),
    ("bare", ["--labels", "neutral,Neutral,x"], "is not a list of different names"),
    ("bare", ["--labels", "x,y,z", "--task", "MNLI"], "its labels are x, y, z"),
    ("bare", ["--encoding", "released"], "names no task; add --task NAME"),
    ("ours", NAMED, "ours has names of its own, entailment, neutral, contradiction")])
def test_names_that_cannot_be_are_refused_by_every_command(place, bare, tmp_path, capsys, model, extra,
                                                             message):
    (tmp_path / "pair.tsv").write_text("\t".join(TEXTS[:2]) + "\n")
    for main, more in ((command.main, [str(tmp_path / "out.onnx"), "--evaluate", str(place)]),
                       (predict.main, ["--input", str(tmp_path / "pair.tsv")])):
        assert run_command(main, [str(place / model), *more, *extra]) == 2
        error = capsys.readouterr().err
        assert re.search(message, error) and error.count("\n") == 1
    if extra[0] == "--labels":
        finetune(place, tmp_path / "run", "--predict-only", "--model", str(place / model), *extra, code=2)
        assert re.search(message, capsys.readouterr().err)


def test_another_encoding_is_refused_or_gets_a_new_head(place):
    model = bort.load(place / "ours")
    model.encoding = "released"
    with pytest.raises(BortError, match="released encoding of MNLI-m, not the paper one"):
        align(model, get_task("MNLI-m"), "ours")
    fresh = classifier_for(get_task("MNLI-m"), model, 7)
    assert fresh is not model and fresh.encoding == "paper" and fresh.labels == NLI
