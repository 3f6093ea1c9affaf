"""The teacher: a model, a table, and what is said of it."""
from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from bort.agora.evaluation import Goal
from bort.agora.points import Points
from bort.agora.teacher import Socrates, TeacherReport, read_table, report_on, saw_evaluation
from bort.checkpoints.locate import FORMAT
from bort.errors import BortError
from bort.finetuning.evaluation_split import of_examples
from bort.finetuning.teacher import ClassifierTeacher
from bort.json_files import write_json
from bort.tasks.registry import get_task
from tests.agora.simulated import evaluation_of, some_split


def test_a_teacher_can_be_a_table(tmp_path):
    task = get_task("RTE")
    table = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    np.save(tmp_path / "t.npy", table)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"scores": row.tolist()}) + "\n" for row in table))
    np.testing.assert_array_equal(read_table(tmp_path / "t.npy", 5, task), table)
    np.testing.assert_allclose(read_table(tmp_path / "t.jsonl", 5, task), table)
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "several.npz", table)
    (tmp_path / "several.npz").rename(tmp_path / "renamed.npy")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 nothing more")
    for count, name in ((6, "t.npy"), (5, "none.npy"), (5, "empty.npy"), (5, "renamed.npy"), (5, "zip.npy")):
        with pytest.raises(BortError, match=name):
            read_table(tmp_path / name, count, task)


def test_a_table_of_another_size_is_refused_before_it_is_copied(tmp_path, monkeypatch):
    class Huge(np.ndarray):
        def astype(self, *_, **__):
            raise AssertionError("copied into memory")

    np.save(tmp_path / "t.npy", np.zeros((9, 2), np.float64))
    monkeypatch.setattr("bort.agora.teacher.read_npy", lambda path: np.load(path).view(Huge))
    with pytest.raises(BortError, match=r"t.npy: has the shape \(9, 2\)"):
        read_table(tmp_path / "t.npy", 5, get_task("RTE"))


def test_a_teacher_whose_scores_are_not_finite_is_refused(monkeypatch):
    from bort.models import Classifier
    from tests.tiny import tiny_bert

    model = Classifier(tiny_bert(0), 2)
    model.initialize_head(0)
    model.classifier[1].bias.set_data(model.classifier[1].bias.data() * float("nan"))
    words = SimpleNamespace(fingerprint="x", pad_id=1)
    socrates = Socrates(ClassifierTeacher(model, "the/teacher", words, words, get_task("SST-2"), 24))
    with pytest.raises(BortError, match="the/teacher.*not finite"):
        socrates.of_rows([np.array([0, 7, 2], np.int32)])


def test_a_weak_teacher_is_warned_of_on_the_evaluation_set_and_on_dev(caplog):
    """Right on all of E, which it may have been trained on, and on half of the dev set: both are said."""
    evaluation = evaluation_of(Points([[0]] * 4, np.array([0, 1, 1, 0]), []))
    right = np.array([[2, 0], [0, 1], [0, 3], [1, 0]], float)
    dev = SimpleNamespace(task=evaluation.task, split=some_split([0, 1, 0, 1]),
                          tokens=SimpleNamespace(labels=np.array([0, 1, 0, 1])))
    report = report_on("T", evaluation, right, dev, right)
    assert (report.accuracy, report.dev_accuracy, report.dev) == (1.0, 0.5, {"accuracy": 0.5})
    assert "right on 50.0% of the dev set only" in caplog.text
    assert report.goal(evaluation) == Goal(1.0, 1.0, 0.5, teacher_is_solvable=False)
    report = report_on("T", evaluation, -right, None, None)
    assert "right on 0.0% of the evaluation set only" in caplog.text
    caplog.clear()
    report = report_on("T", evaluation, right, None, None)
    assert caplog.text == "" and report.goal(evaluation).teacher_is_solvable
    assert TeacherReport("T").goal(evaluation) is None


def test_whether_the_teacher_saw_the_evaluation_set(tmp_path):
    evaluation = evaluation_of(Points([[0]] * 2, np.array([0, 1]), []))
    split = of_examples(evaluation.split.examples)
    assert saw_evaluation("table.npy", evaluation, split) is None

    def teacher(training):
        write_json(tmp_path / "config.json", {"format": FORMAT, "training": training})
        return tmp_path

    (tmp_path / "model.params").write_bytes(b"x")
    assert saw_evaluation(teacher({"task": "RTE"}), evaluation, split) is True
    assert saw_evaluation(teacher({"task": "RTE", "split": split.digest}), evaluation, split) is False
    assert saw_evaluation(teacher({"task": "RTE", "split": "other"}), evaluation, split) is True
    assert saw_evaluation(teacher({"task": "RTE", "split": split.digest}), evaluation, None) is True
    assert saw_evaluation(teacher({"task": "QNLI"}), evaluation, split) is None
