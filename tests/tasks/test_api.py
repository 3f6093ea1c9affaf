"""``bort.tasks`` from a notebook: its examples, tables, and tasks of one's own."""
from __future__ import annotations

import doctest

import pytest

import bort.tasks
from bort.errors import BortError
from bort.tasks import get_task, labels, register, summary, unregister
from bort.tasks.describe import describe
from bort.tasks.glue import TsvTask
from tests.tiny_tasks import WordTokenizer, make_task


@pytest.mark.parametrize("module", [bort.tasks, labels])
def test_the_examples_of_the_documentation(module):
    result = doctest.testmod(module)
    assert result.attempted > 1 and not result.failed


def test_a_summary_is_a_table_of_numbers(tmp_path):
    make_task("MultiRC", tmp_path, rows=4)
    (tmp_path / "test.jsonl").unlink()
    table = summary(get_task("MultiRC"), tmp_path, WordTokenizer(), 10)
    assert table["split"].tolist() == ["train", "dev"]
    assert table["rows"].sum() == 8 and (table["longest"] >= table["median"]).all()
    assert 0 < table["over 10"][0] <= 1 and "questions" in table["labels"][0]
    text = describe(get_task("MultiRC"), tmp_path, WordTokenizer(), 10)
    assert "not there: test" in text and f"{table['over 10'][0]:.2%}" in text


def test_names_are_unique():
    for name in ("CoLA", "cola", "mnli", ""):
        with pytest.raises(BortError, match="already"):
            register(TsvTask(name, ["text"]))
    with pytest.raises(BortError, match="Mine: a task has no attribute 'metric'"):
        TsvTask("Mine", ["text"], metric=("mcc",))
    assert register(TsvTask("Mine", ["text"])) is get_task("mine")
    unregister("Mine")
    with pytest.raises(BortError, match="unknown task 'Mine'"):
        get_task("Mine")
