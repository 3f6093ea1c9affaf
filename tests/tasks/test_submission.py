"""From a test file to a submission and back, for every task; and what the validator must not let through."""
from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pytest

from bort.errors import BortError
from bort.tasks import TASKS, get_task
from bort.tasks.validation import validate_submission
from tests.tiny_tasks import jsonl, make_task

LINES = {"glue": re.compile(r"\d+\t\S+"), "synthetic": re.compile(r"\d+\t[01]")}


def submission(name, folder, encoding="paper", seed=0, rows=6):
    task = get_task(name, encoding)
    make_task(name, folder, rows=rows)
    split = task.read(folder, "test")
    scores = np.random.default_rng(seed).normal(size=(len(split), task.num_outputs)).astype(np.float32)
    return task, split, scores, task.write_submission(split, scores, folder / "out")


@pytest.mark.parametrize("encoding", ["paper", "released"])
@pytest.mark.parametrize("name", TASKS)
def test_round_trip_from_test_file_to_validated_submission(name, encoding, tmp_path):
    task, split, _, path = submission(name, tmp_path, encoding)
    assert path == tmp_path / "out" / task.submission
    data = path.read_bytes()
    assert data.endswith(b"\n") and b"\r" not in data
    rows = {"MultiRC": 6, "ReCoRD": 12, "RACE": 12}.get(name, 6)
    assert validate_submission(path, task, tmp_path) == rows
    lines = data.decode("utf-8").splitlines()
    if task.suite in LINES:
        assert lines[0] == "index\tprediction" and all(LINES[task.suite].fullmatch(line)
                                                       for line in lines[1:])
    # Cut short or extended, it is no longer complete.
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(BortError, match="1 of .* idx are missing"):
        validate_submission(path, task, tmp_path)
    path.write_text("\n".join([*lines, lines[-1]]) + "\n")
    with pytest.raises(BortError, match="occurs more than once"):
        validate_submission(path, task, tmp_path)


def first_lines(name, folder, scores, encoding="paper"):
    task = get_task(name, encoding)
    split = task.read(folder, "test")
    return task.write_submission(split, np.asarray(scores, dtype=np.float32),
                                 folder / "out").read_text().splitlines()


def test_glue_spellings(tmp_path):
    make_task("CoLA", tmp_path / "c", rows=2)
    assert first_lines("CoLA", tmp_path / "c", [[0, 1], [1, 0]]) == ["index\tprediction", "0\t1", "1\t0"]
    make_task("MNLI-mm", tmp_path / "m", rows=3)
    assert first_lines("MNLI-mm", tmp_path / "m", np.eye(3)) == [
        "index\tprediction", "0\tentailment", "1\tneutral", "2\tcontradiction"]
    make_task("RTE", tmp_path / "r", rows=2)
    assert first_lines("RTE", tmp_path / "r", np.eye(2))[1:] == ["0\tentailment", "1\tnot_entailment"]


def test_sts_b_predictions_are_clipped_to_the_scale(tmp_path):
    make_task("STS-B", tmp_path, rows=3)
    assert first_lines("STS-B", tmp_path, [[-0.5], [2.34567], [7.0]])[1:] == ["0\t0.000", "1\t2.346",
                                                                              "2\t5.000"]


@pytest.mark.parametrize("name, values", [
    ("BoolQ", ["false", "true"]), ("WiC", ["false", "true"]), ("WSC", ["False", "True"]),
    ("SuperGLUE-RTE", ["entailment", "not_entailment"]), ("AX-g", ["entailment", "not_entailment"])])
def test_superglue_spellings(name, values, tmp_path):
    make_task(name, tmp_path, rows=2)
    lines = [json.loads(line) for line in first_lines(name, tmp_path, np.eye(2))]
    assert lines == [{"idx": 0, "label": values[0]}, {"idx": 1, "label": values[1]}]


def test_ax_b_keeps_its_text_idx(tmp_path):
    make_task("AX-b", tmp_path, rows=1)
    assert first_lines("AX-b", tmp_path, [[1, 0]]) == ['{"idx": "0", "label": "entailment"}']


def test_copa_label_is_the_number_of_the_more_probable_choice(tmp_path):
    make_task("COPA", tmp_path, rows=2)
    # Margins 1 and 2, then -1 and -3: what counts is the difference of the two outputs, not the larger
    # output.
    scores = [[9, 10], [0, 2], [0, -1], [5, 2]]
    assert [json.loads(line)["label"] for line in first_lines("COPA", tmp_path, scores)] == [1, 0]
    assert [json.loads(line)["label"] for line in first_lines("COPA", tmp_path, [[1, 0], [0, 1]],
                                                              "released")] == [0, 1]


def test_multirc_nesting(tmp_path):
    make_task("MultiRC", tmp_path, rows=1)
    scores = np.zeros((6, 2))
    scores[[1, 5], 1] = 1
    assert json.loads(first_lines("MultiRC", tmp_path, scores)[0]) == {"idx": 0, "passage": {"questions": [
        {"idx": 0, "answers": [{"idx": 0, "label": 0}, {"idx": 1, "label": 1}, {"idx": 2, "label": 0}]},
        {"idx": 1, "answers": [{"idx": 3, "label": 0}, {"idx": 4, "label": 0}, {"idx": 5, "label": 1}]}]}}


def test_record_label_is_the_entity_and_there_is_one_line_for_each_query(tmp_path):
    make_task("ReCoRD", tmp_path, rows=1)
    scores = np.zeros((6, 2))
    scores[[0, 4], 1] = 1  # Anna Kohl in the first query, Bo in the second
    assert first_lines("ReCoRD", tmp_path, scores) == ['{"idx": 0, "label": "Anna Kohl"}',
                                                       '{"idx": 1, "label": "Bo"}']


def test_race_answers_are_letters_by_passage(tmp_path):
    make_task("RACE-H", tmp_path, rows=2)
    scores = np.zeros((12, 2))
    scores[[2, 4, 11], 1] = 1
    assert [json.loads(line) for line in first_lines("RACE-H", tmp_path, scores)] == [
        {"id": "high7.txt", "answers": ["C"]}, {"id": "high8.txt", "answers": ["A", "D"]}]
    assert json.loads(first_lines("RACE-H", tmp_path, np.eye(4)[[1, 3, 0]], "released")[1]) == {
        "id": "high8.txt", "answers": ["D", "A"]}


def test_question_answering_metrics_go_by_question(tmp_path):
    make_task("RACE-M", tmp_path, rows=2)
    task = get_task("RACE-M")
    split = task.read(tmp_path, "dev")
    gold = split.gold()
    right = np.stack([1.0 - gold, gold], axis=1)
    assert task.evaluate(split, right) == {"accuracy": 1.0}
    # All four options below one half, still the best of them is chosen.
    assert task.evaluate(split, right - [[0, 5]]) == {"accuracy": 1.0}
    wrong = right.copy()
    wrong[:4] = wrong[:4, ::-1]
    assert task.evaluate(split, wrong) == {"accuracy": pytest.approx(2 / 3)}


def test_record_and_multirc_metrics_through_the_task(tmp_path):
    make_task("ReCoRD", tmp_path / "r", rows=2)
    task = get_task("ReCoRD")
    split = task.read(tmp_path / "r", "dev")
    gold = split.gold()
    assert task.evaluate(split, np.stack([1 - gold, gold], axis=1)) == {"f1": 1.0, "em": 1.0}
    everything_first = np.zeros((len(split), 2))
    expected = np.mean([split.meta["answers"][group] == ("Anna Kohl",) for group in split.meta["answers"]])
    assert task.evaluate(split, everything_first)["em"] == pytest.approx(expected)
    make_task("MultiRC", tmp_path / "m", rows=2)
    task = get_task("MultiRC")
    split = task.read(tmp_path / "m", "dev")
    gold = split.gold()
    scores = np.stack([1 - gold, gold], axis=1).astype(float)
    assert task.evaluate(split, scores) == {"f1a": 1.0, "em": 1.0}
    scores[0] = scores[0, ::-1]
    assert task.evaluate(split, scores)["em"] == pytest.approx(3 / 4)


def test_three_classes_fold_into_two_where_the_set_has_two(tmp_path):
    make_task("AX-b", tmp_path, rows=2)
    task = get_task("AX-b")
    split = task.read(tmp_path, "test")
    # Entailment is the largest of three, but not larger than the other two together.
    folded = task.outputs(split, np.log([[0.4, 0.3, 0.3], [0.6, 0.3, 0.1]]))
    assert folded.tolist() == [1, 0]
    with pytest.raises(BortError, match="expected 2 outputs per example, found 4"):
        task.outputs(split, np.zeros((2, 4)))
    make_task("CoLA", tmp_path / "c", rows=2)
    cola = get_task("CoLA")
    with pytest.raises(BortError, match="fine-tuned for another task"):
        cola.outputs(cola.read(tmp_path / "c", "dev"), np.zeros((2, 3)))


def test_ax_g_parity_and_accuracy(tmp_path):
    make_task("AX-g", tmp_path, rows=4)
    task = get_task("AX-g")
    split = task.read(tmp_path, "test")
    scores = np.eye(2)[[0, 0, 0, 1]]
    assert task.evaluate(split, scores) == {
        "gender_parity": 0.5, "accuracy": pytest.approx(np.mean(split.gold() == [0, 0, 0, 1]))}


def test_evaluating_without_labels_or_with_broken_scores(tmp_path):
    make_task("CoLA", tmp_path, rows=3)
    task = get_task("CoLA")
    with pytest.raises(BortError, match="test split has no labels"):
        task.evaluate(task.read(tmp_path, "test"), np.zeros((3, 2)))
    dev = task.read(tmp_path, "dev")
    with pytest.raises(BortError, match=r"expected scores of shape \(3, 2\), found \(2, 2\)"):
        task.evaluate(dev, np.zeros((2, 2)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = task.evaluate(dev, np.full((3, 2), np.nan))
    assert "not finite" in str(caught[0].message) and all(np.isfinite(value) for value in result.values())


DAMAGES = [("CoLA", 0, "idx\tprediction", "expected the header"),
           ("CoLA", 1, "0\tyes", "expected 0 or 1, found 'yes'"),
           ("CoLA", 1, "0,1", "expected an index, a tab"),
           ("CoLA", 2, "77\t1", "idx 77 is not in the test set"),
           ("RTE", 1, "0\t1", "expected entailment or not_entailment"),
           ("STS-B", 1, "0\t5.5", "expected a number from 0 to 5"),
           ("STS-B", 1, "0\tnan", "expected a number from 0 to 5"), ("BoolQ", 0, '{"idx": 0, "label": true}',
                                                                     '"true"'),
           ("WSC", 0, '{"idx": 0, "label": "true"}', '"True"'), ("COPA", 0, '{"idx": 0, "label": "1"}',
                                                                 "expected the label 0 or 1"),
           ("COPA", 0, '{"idx": 0, "label": true}', "expected the label 0 or 1"),
           ("CB", 0, '{"idx": 0}', 'expected {"idx"'), ("CB", 0, "not json", "expected a JSON object"),
           ("CB", 0, '{"idx": [], "label": "neutral"}', "expected an idx"),
           ("ReCoRD", 0, '{"idx": 0, "label": 3}', "expected a text"),
           ("AX-b", 0, '{"idx": 0, "label": "entailment"}', "idx 0 is not in the test set"),
           ("MultiRC", 0,
            '{"idx": 0, "passage": {"questions": [{"idx": 0, "answers": [{"idx": 0, "label": 2}]}]}}',
            "0 or 1"),
           ("MultiRC", 0,
            '{"idx": 0, "passage": {"questions": [{"idx": 0, "answers": [{"idx": 0, "label": 1}]}]}}',
            "its questions or answers are not those"),
           ("RACE-M", 0, '{"id": "middle7.txt", "answers": ["A", "B"]}',
            "it has 2 answers, the test set has 1"), ("RACE-M", 0, '{"id": "middle7.txt", "answers": ["E"]}',
                                                      "expected answers from A to D"),]


@pytest.mark.parametrize("name, line, text, message", DAMAGES)
def test_the_validator_refuses(name, line, text, message, tmp_path):
    task, _, _, path = submission(name, tmp_path)
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(BortError) as refusal:
        validate_submission(path, task, tmp_path)
    assert message in str(refusal.value) and f"{task.submission}:{line + 1}: " in str(refusal.value)


def test_without_data_only_the_form_and_the_number_are_checked(tmp_path, caplog):
    task, _, _, path = submission("CB", tmp_path)
    assert validate_submission(path, task) == 6
    assert "6 predictions, the official test set needs 250" in caplog.text
    other = path.rename(path.with_name("cb.jsonl"))
    validate_submission(other, task)
    assert "expects this file under the name CB.jsonl" in caplog.text
    jsonl(other, [])
    with pytest.raises(BortError, match="holds no predictions"):
        validate_submission(other, task)
    other.write_text("x\n" * 1000)
    with pytest.raises(BortError) as refusal:
        validate_submission(other, task)
    assert len(str(refusal.value).splitlines()) < 15


@pytest.mark.parametrize("name, folder, count", [("CoLA", "glue/CoLA", 1063), ("SST-2", "glue/SST-2", 1821),
                                                 ("RTE", "glue/RTE", 3000), ("CB", "superglue/CB", 250),
                                                 ("COPA", "superglue/COPA", 500),
                                                 ("WSC", "superglue/WSC", 146), ("RACE-M", "race", 60),
                                                 ("RACE-H", "race", 60)])
def test_round_trip_on_the_real_test_sets(name, folder, count, real_data, tmp_path):
    task = get_task(name)
    split = task.read(real_data / folder, "test")
    path = task.write_submission(split, np.random.default_rng(0).normal(size=(len(split), task.num_outputs)),
                                 tmp_path)
    assert validate_submission(path, task, real_data / folder) == count
