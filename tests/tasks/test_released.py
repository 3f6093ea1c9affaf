"""``--encoding released``: the original release's inputs, by hand for every task."""
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bort.tasks import TASKS, get_task
from bort.tasks.encoding import encode, kept_lengths
from bort.tasks.labels import output_order
from bort.tasks.text import MARKER
from tests.tiny_tasks import WordTokenizer, jsonl, make_task, tsv

PAIR = {"premise": " It rains. ", "hypothesis": "Wet ", "idx": 0}


def segments(name, folder, record, encoding="released"):
    jsonl(folder / "train.jsonl", [record])
    return [example.segments for example in get_task(name, encoding).read(folder, "train").examples]


@pytest.mark.parametrize("first, second, room, kept", [
    (6, 6, 11, (6, 5)), (9, 6, 11, (6, 5)), (6, 9, 11, (6, 5)), (9, 5, 11, (6, 5)), (5, 9, 11, (5, 6)),
    (9, 9, 10, (5, 5)), (9, 2, 10, (8, 2)), (2, 9, 10, (2, 8)), (3, 3, 9, (3, 3)), (4, 3, 6, (3, 3)),
    (1, 1, 1, (1, 0))])
def test_lengths_that_tie(first, second, room, kept):
    assert kept_lengths(first, second, room, "even") == kept


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 50))
def test_even_means_one_token_at_a_time_from_the_longer_one(first, second, room):
    expected = [first, second]
    while sum(expected) > room:
        expected[0 if expected[0] > expected[1] else 1] -= 1
    assert kept_lengths(first, second, room, "even") == tuple(expected)


def test_white_space_at_the_ends_stays(tmp_path):
    tsv(tmp_path / "train.tsv", [("sentence", "label"), ("a fine film . ", 1)])
    assert get_task("SST-2", "released").read(tmp_path, "train").examples[0].segments == ("a fine film . ",)
    assert get_task("SST-2").read(tmp_path, "train").examples[0].segments == ("a fine film .",)
    record = {**PAIR, "label": "entailment"}
    assert segments("SuperGLUE-RTE", tmp_path, record) == [(" It rains. ", "Wet ")]
    assert segments("SuperGLUE-RTE", tmp_path, record, "paper") == [("It rains.", "Wet")]


def test_boolq_is_cut_evenly(tmp_path):
    record = {"passage": "a b c d e f g h i", "question": "q r s t u v", "idx": 0, "label": True}
    assert segments("BoolQ", tmp_path, record) == [(record["passage"], record["question"])]
    words = WordTokenizer()
    ids = {}
    for task in (get_task("BoolQ"), get_task("BoolQ", "released")):
        ids[task.encoding] = encode(task, task.read(tmp_path, "train"), words, 14).token_ids[0].tolist()
    s, e = words.bos_id, words.eos_id
    assert ids["released"] == [s, *words.encode("a b c d e f"), e, *words.encode("q r s t u"), e]
    assert ids["paper"] == [s, *words.encode("a b c d e"), e, *words.encode("q r s t u v"), e]


def test_cb_keeps_the_last_sentences(tmp_path):
    record = {"premise": "One. Two. Three. Four. Five", "hypothesis": "A. B. C", "idx": 0, "label": "neutral"}
    assert segments("CB", tmp_path, record) == [("Two  Three  Four  Five", "A. B. C")]
    record["premise"] = "One. Two. Three."
    assert segments("CB", tmp_path, record)[0][0] == "ne  Two  Three "


def test_copa_is_one_input(tmp_path):
    record = {"premise": "It rained. ", "choice1": "He left.", "choice2": "It is wet.", "question": "effect",
              "idx": 0, "label": 1}
    assert segments("COPA", tmp_path, record) == [("It rained.  so He left.", "It rained.  so It is wet.")]
    assert get_task("COPA", "released").read(tmp_path, "train").examples[0].label == 1
    assert segments("COPA", tmp_path, {**record, "question": "cause"})[0][0] == "It rained.  because He left."


def test_wic_marks_nothing_and_needs_no_places(tmp_path):
    record = {"word": "bank", "sentence1": "The bank shut ", "sentence2": "Banks rise", "idx": 0,
              "label": True}
    assert segments("WiC", tmp_path, record) == [("The bank shut ", "Banks rise")]


def test_wsc_says_what_would_mean_what(tmp_path):
    record = {"text": "Ann  saw Bo when she left ", "idx": 0, "label": False,
              "target": {"span1_text": "Ann", "span1_index": 0, "span2_text": "she", "span2_index": 4}}
    assert segments("WSC", tmp_path, record) == [("Ann  saw Bo when she left ", "she means Ann")]
    record["target"]["span1_text"] = "nowhere in the text"
    assert segments("WSC", tmp_path, record)[0][1] == "she means nowhere in the text"


def test_race_puts_the_question_behind_the_passage_and_the_options_together(tmp_path):
    folder = tmp_path / "train" / "middle"
    folder.mkdir(parents=True)
    (folder / "1.txt").write_text(json.dumps({
        "article": "It was\nlate. ", "questions": ["When was _ ?"], "answers": ["C"], "id": "middle1.txt",
        "options": [["now", "then ", "late", "never"]]}))
    task = get_task("RACE-M", "released")
    example = task.read(tmp_path, "train").examples[0]
    assert example.segments == ("It was\nlate.  When was _ ?", "now </sep> then  </sep> late </sep> never")
    assert example.label == 2 and task.num_outputs == 4 and task.truncation == "even"


def test_the_release_crashes_on_multirc_and_record_so_they_stay(tmp_path):
    for name in ("MultiRC", "ReCoRD", "Embedded"):
        assert get_task(name, "released") is get_task(name)


def test_every_other_task_reads_its_files_in_the_releases_form(tmp_path):
    for name in TASKS:
        task = get_task(name, "released")
        if task is get_task(name):
            continue
        assert task.encoding == "released" and task.submission == get_task(name).submission
        make_task(name, tmp_path / name, rows=4)
        for split in task.splits:
            found = task.read(tmp_path / name, split)
            assert found.examples and not found.bad_rows
            assert not any(MARKER in segment for example in found.examples for segment in example.segments)
        assert task.official_counts == get_task(name).official_counts


@pytest.mark.parametrize("task, order", [
    ("RTE", [1, 0]), ("QNLI", [1, 0]), ("AX-b", [1, 0]), ("AX-g", [1, 0]), ("SuperGLUE-RTE", [1, 0]),
    ("MNLI-m", [1, 0, 2]), ("MNLI-mm", [1, 0, 2]), ("AX", [1, 0, 2]), ("CB", [1, 2, 0])])
def test_a_classifier_without_names_has_the_releases_classes(task, order):
    released = get_task(task, "released")
    assert output_order(None, len(order), released, "bort.params").tolist() == order
    assert output_order(released.labels, len(order), released, "ours") is None
    assert output_order(None, len(order), get_task(task), "bort.params") is None


def test_an_unnamed_mnli_model_is_folded_in_the_releases_order():
    assert output_order(None, 3, get_task("AX-b", "released"), "bort.params").tolist() == [1, 0, 2]
