"""The paper's input format of each task, the released ones beside it, and what training leaves out."""
from __future__ import annotations

import json

import numpy as np
import pytest

from bort.tasks import get_task
from bort.tasks.text import MARKER, locate_span, tidy
from tests.tiny_tasks import jsonl, make_task


def read_one(name, folder, split="train", encoding="paper"):
    return get_task(name, encoding).read(folder, split)


def test_boolq_passage_comes_first_where_only_it_is_cut(tmp_path):
    make_task("BoolQ", tmp_path)
    jsonl(tmp_path / "train.jsonl", [{"question": "is it", "passage": "it is", "idx": 0, "label": False}])
    assert read_one("BoolQ", tmp_path).examples[0].segments == ("it is", "is it")
    assert get_task("BoolQ").truncation == "first"


def test_wic_marks_the_target_in_both_sentences(tmp_path):
    record = {"word": "bank", "sentence1": "  The bank shut", "sentence2": "Banks are high", "start1": 6,
              "end1": 10, "start2": 0, "end2": 5, "idx": 0, "label": True}
    jsonl(tmp_path / "train.jsonl", [record, {**record, "end1": 40}])
    split = read_one("WiC", tmp_path)
    assert split.examples[0].segments == (f"The {MARKER}bank{MARKER} shut", f"{MARKER}Banks{MARKER} are high")
    assert split.bad_rows == 1


def test_private_characters_of_the_data_are_not_taken_for_markers(tmp_path):
    record = {"premise": f"a{MARKER}b \ud800", "hypothesis": "c", "idx": 0, "label": "neutral"}
    jsonl(tmp_path / "train.jsonl", [record])
    segment = read_one("CB", tmp_path).examples[0].segments[0]
    assert segment == "a\ufffdb \ufffd" and segment.encode("utf-8")


def test_wsc_marks_both_spans_and_its_released_form_names_them(tmp_path):
    make_task("WSC", tmp_path)
    text = read_one("WSC", tmp_path).examples[0].segments[0]
    assert text.startswith(f"{MARKER}The captain{MARKER}  thanked the crew since {MARKER}")
    assert text.count(MARKER) == 4
    released = read_one("WSC", tmp_path, encoding="released").examples[0].segments
    assert released[1] in ("he means The captain", "they means The captain")
    assert MARKER not in "".join(released)


@pytest.mark.parametrize("text, span, index, found", [
    ("Emma's mother saw Emma", "Emma", 0, "Emma"),  # the word is "Emma's": the nearest whole word
    ("a b  c c d", "C", 3, "c"),  # double spaces, and another case
    ("use it here", "it", 2, "it"),  # the index is one off
    ("Lev Kamenev, Stalin's ally", "Kamenev and Zinoviev", 1, "Kamenev, Stalin's ally"),  # not in the text
    ("a (b) c", "(b)", 1, "(b)"),
])
def test_wsc_spans_whose_text_and_index_disagree(text, span, index, found):
    start, end = locate_span(text, span, index)
    assert text[start:end] == found


def test_a_wsc_span_that_is_nowhere_is_an_error():
    with pytest.raises(ValueError, match="word 9 of 3"):
        locate_span("a b c", "z", 9)
    assert locate_span("it and it", "it", 2) == (7, 9)


def test_a_wsc_span_with_other_words_between_reaches_from_its_first_to_its_last():
    text = ("Lev Kamenev, the old editor, and Grigory Zinoviev, who with Stalin and Kamenev had ruled, saw "
            "Stalin and Zinoviev.")
    for span, index, found in (
            ("Kamenev and Zinoviev", 1, "Kamenev, the old editor, and Grigory Zinoviev"),
            ("Kamenev, Zinoviev, and Stalin", 1,
             "Kamenev, the old editor, and Grigory Zinoviev, who with Stalin"),
            ("Stalin and Zinoviev", 11, "Stalin and Zinoviev"), ("The old editor.", 2, "the old editor")):
        start, end = locate_span(text, span, index)
        assert text[start:end] == found
    with pytest.raises(ValueError, match="word 99 of"):
        locate_span(text, "Zinoviev, Kamenev, Grigory", 99)


def test_copa_becomes_two_pairs_or_one_input_as_released(tmp_path):
    record = {"premise": "My body cast a shadow.", "choice1": "The sun was rising.", "choice2": "John left.",
              "question": "cause", "label": 0, "idx": 4}
    jsonl(tmp_path / "train.jsonl", [record, {**record, "question": "effect", "label": 1, "idx": 5}])
    first, second, third, fourth = read_one("COPA", tmp_path).examples
    assert first.segments == ("My body cast a shadow.", "because the sun was rising.")
    assert second.segments[1] == "because John left." and third.segments[1].startswith("so ")
    assert [(e.label, e.group, e.option) for e in (first, second, third, fourth)] == [
        (1, 4, 0), (0, 4, 1), (0, 5, 0), (1, 5, 1)]
    released = read_one("COPA", tmp_path, encoding="released").examples
    assert released[0].segments == ("My body cast a shadow. because The sun was rising.",
                                    "My body cast a shadow. because John left.")
    assert [example.label for example in released] == [0, 1]


def test_multirc_is_lightly_cleaned():
    typed = "<b>Sent 1: </b>The the dog ran .<br>Who ran ??  It\u00ad was.."
    assert tidy(typed) == "The dog ran. Who ran? It was."
    assert tidy("Wait... Mr. B. had had 3.5 a.m.") == "Wait... Mr. B. had had 3.5 a.m."


def test_multirc_pairs_each_question_with_each_answer(tmp_path):
    make_task("MultiRC", tmp_path, rows=2)
    split = read_one("MultiRC", tmp_path)
    assert len(split) == 12 and split.counts == {"questions": 4, "answers": 12}
    fifth = split.examples[4]
    assert (fifth.idx, fifth.group, fifth.option) == ((0, 1, 4), (0, 1), 1)
    assert "??" not in split.examples[0].segments[1] and "  " not in split.examples[0].segments[0]


def test_record_fills_the_placeholder_with_entities_whose_end_is_inclusive(tmp_path):
    make_task("ReCoRD", tmp_path, rows=1)
    split = read_one("ReCoRD", tmp_path)
    assert split.meta["entities"][0] == ("Anna Kohl", "Bo", "Ulm") and split.counts == {"queries": 2}
    first = split.examples[0]
    assert first.segments[0] == "Anna Kohl met Bo in Ulm.\n@highlight\nBo left Ulm"
    assert first.segments[1].startswith("Later Anna Kohl saw the ")
    labels = [example.label for example in split.examples[:3]]
    assert sum(labels) == 1 and labels[2] == 0
    assert not read_one("ReCoRD", tmp_path, "test").labelled


def test_race_fills_a_blank_and_appends_to_a_question(tmp_path):
    make_task("RACE-M", tmp_path, rows=2)
    split = read_one("RACE-M", tmp_path)
    assert split.counts == {"questions": 3} and len(split) == 12
    assert split.examples[0].segments[1].startswith("What was it? The ")
    cloze = split.examples[8]
    assert cloze.group == ("middle8.txt", 1) and cloze.segments[1].startswith("It was a The ")
    assert cloze.segments[1].endswith(" ..") and "_" not in cloze.segments[1] and "\n" not in cloze.segments[
                                                                                                             0]
    assert sum(example.label for example in split.examples) == 3
    released = read_one("RACE-M", tmp_path, encoding="released")
    assert len(released) == 3 and released.examples[0].segments[1].count(" </sep> ") == 3
    assert get_task("RACE-M", "released").num_outputs == 4


def test_a_race_passage_without_questions_is_a_row_without_examples(tmp_path, caplog):
    make_task("RACE-H", tmp_path, rows=3)
    for number, name in enumerate(("empty", "empty")):
        (tmp_path / "train" / "high" / f"9{number}.txt").write_text(json.dumps(
            {"article": "A text.", "questions": [], "options": [], "answers": [], "id": name}))
    for encoding in ("paper", "released"):
        split = read_one("RACE-H", tmp_path, encoding=encoding)
        assert split.rows == 5 and split.bad_rows == 0
        assert "empty" not in {example.group[0] for example in split.examples}
    (tmp_path / "train" / "high" / "92.txt").write_text(json.dumps(
        {"article": "A text.", "questions": [], "options": [], "answers": ["A"]}))
    assert read_one("RACE-H", tmp_path).bad_rows == 1


def test_training_subsets_are_balanced_and_only_drop_negatives(tmp_path):
    for name in ("MultiRC", "ReCoRD", "RACE-M"):
        make_task(name, tmp_path / name, rows=30)
        task = get_task(name)
        split = task.read(tmp_path / name, "train")
        subset = task.training_subset(split, np.random.default_rng(1))
        labels, kept = split.gold(), subset.gold()
        assert kept.sum() == labels.sum() and (kept == 0).sum() == labels.sum() < (labels == 0).sum()
        order = [split.examples.index(example) for example in subset.examples[:50]]
        assert order == sorted(order)
        again = task.training_subset(split, np.random.default_rng(1))
        assert again.examples == subset.examples
        assert task.training_subset(split, np.random.default_rng(2)).examples != subset.examples


def test_half_of_the_high_school_passages_are_dropped(tmp_path):
    make_task("RACE", tmp_path, rows=10)
    for encoding in ("paper", "released"):
        task = get_task("RACE", encoding)
        subset = task.training_subset(task.read(tmp_path, "train"), np.random.default_rng(0))
        passages = {example.group[0] for example in subset.examples}
        assert sum(name.startswith("high") for name in passages) == 5
        assert sum(name.startswith("middle") for name in passages) == 10


def test_other_tasks_train_on_everything(tmp_path):
    make_task("CoLA", tmp_path)
    split = read_one("CoLA", tmp_path)
    assert get_task("CoLA").training_subset(split, np.random.default_rng(0)) is split


def test_the_real_wsc_spans_are_marked_where_they_are(real_data):
    split = read_one("WSC", real_data / "superglue/WSC")
    records = [json.loads(line) for line in (real_data / "superglue/WSC/train.jsonl").read_text().split("\n")
               if line]
    for example, record in zip(split.examples, records):
        text = example.segments[0]
        assert text.count(MARKER) == 4 and text.replace(MARKER, "") == record["text"].strip()
        marked = text.split(MARKER)
        spans = {" ".join(record["target"][f"span{number}_text"].lower().split()) for number in "12"}
        assert {" ".join(marked[1].lower().split()), " ".join(marked[3].lower().split())} == spans
