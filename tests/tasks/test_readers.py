"""Official files in: their quirks are tolerated, everything else is a counted bad row that names its line."""
from __future__ import annotations

import json
import logging
import os

import numpy as np
import pytest

from bort.errors import BortError
from bort.tasks import TASKS, get_task, reading
from tests.tiny_tasks import BUILDERS, make_task, tsv


def read_one(name, folder, split="train", encoding="paper"):
    return get_task(name, encoding).read(folder, split)


def test_every_task_has_a_builder_here():
    assert sorted(BUILDERS) == sorted(TASKS)


@pytest.mark.parametrize("encoding", ["paper", "released"])
@pytest.mark.parametrize("name", TASKS)
def test_every_split_of_every_task_reads(name, encoding, tmp_path):
    task = get_task(name, encoding)
    make_task(name, tmp_path, rows=6)
    for split in task.splits:
        read = task.read(tmp_path, split)
        assert read.bad_rows == 0 and len(read) >= read.rows == (12 if name == "RACE" else 6)
        assert all(1 <= len(example.segments) <= 2 and all(example.segments) for example in read.examples)
        official_test_is_labelled = task.suite in ("race", "synthetic") or name in ("AX-b", "AX-g")
        assert read.labelled == (split != "test" or official_test_is_labelled)
        if read.labelled and not task.is_regression:
            assert set(read.gold().tolist()) <= set(range(task.num_outputs))


@pytest.mark.parametrize("name", TASKS)
def test_the_folder_above_will_do_and_a_missing_one_says_so(name, tmp_path):
    task = get_task(name)
    split = task.splits[-1]
    with pytest.raises(BortError, match=f"{name} needs .* download --task {name}"):
        task.read(tmp_path, split)
    assert not task.available(tmp_path, split)
    make_task(name, tmp_path / (task.folders or (name,))[0])
    assert task.available(tmp_path, split) and len(task.read(tmp_path, split))


def test_names_are_case_insensitive_and_an_unknown_one_lists_them():
    assert get_task("cola").name == "CoLA" and get_task("MNLI").name == "MNLI-m"
    assert get_task("rte").suite == "glue"
    assert get_task("superglue-rte").submission == "RTE.jsonl"
    with pytest.raises(BortError, match="did you mean CoLA.*SuperGLUE-RTE is SuperGLUE's"):
        get_task("Colla")
    with pytest.raises(BortError, match="unknown encoding"):
        get_task("CoLA", "original")


def test_the_other_suites_rte_is_recognised(tmp_path):
    make_task("SuperGLUE-RTE", tmp_path)
    with pytest.raises(BortError, match="use the task SuperGLUE-RTE"):
        read_one("RTE", tmp_path)


def test_cola_has_no_header_but_in_test(tmp_path):
    tsv(tmp_path / "train.tsv", [("gj04", 1, "", "He ate."), ("gj04", 0, "*", 'He "ate')], end="")
    tsv(tmp_path / "test.tsv", [("index", "sentence"), (0, "He ate.")])
    train = read_one("CoLA", tmp_path)
    assert [(e.segments, e.label) for e in train.examples] == [(("He ate.",), 1), (('He "ate',), 0)]
    assert read_one("CoLA", tmp_path, "test").examples[0].segments == ("He ate.",)


def test_fields_are_never_quoted_and_only_lf_ends_a_line(tmp_path):
    sentence = 'he said " never\u2028 again\x0b'
    tsv(tmp_path / "train.tsv", [("sentence", "label"), (sentence + " ", 1), ('"', 0),
                                 ("ends with CR", "1\r")])
    examples = read_one("SST-2", tmp_path).examples
    assert [example.segments[0] for example in examples] == [sentence.strip(), '"', "ends with CR"]
    assert [example.label for example in examples] == [1, 0, 1]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path):
    make_task("MRPC", tmp_path)
    assert (tmp_path / "train.tsv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert len(read_one("MRPC", tmp_path)) == 6


def test_a_bad_row_names_its_line_and_what_was_expected(tmp_path, caplog):
    rows = [("sentence", "label"), *[(f"fine {row}", row % 2) for row in range(20)], ("no label",),
            ("odd", 2), ("", 1)]
    tsv(tmp_path / "train.tsv", rows)
    with caplog.at_level(logging.WARNING, "bort.tasks"):
        split = read_one("SST-2", tmp_path)
    assert (split.rows, split.bad_rows) == (20, 3)
    text = caplog.text
    assert "train.tsv:22: expected 2 tab-separated fields, found 1" in text
    assert "train.tsv:23: expected 0 or 1 in label, found '2'" in text
    assert "train.tsv:24: expected some text" in text and "3 of 23 rows are bad" in text


def test_many_bad_rows_stop_the_run_and_few_in_a_large_file_do_not(tmp_path):
    good = [(f"fine {row}", row % 2) for row in range(600)]
    tsv(tmp_path / "train.tsv", [("sentence", "label"), *good, *[("bad",)] * 6])
    assert read_one("SST-2", tmp_path).bad_rows == 6  # 6 of 606 are no more than 1%
    tsv(tmp_path / "train.tsv", [("sentence", "label"), *good[:500], *[("bad",)] * 6])
    with pytest.raises(BortError, match=r"6 of 506 rows are bad.*train.tsv:502"):
        read_one("SST-2", tmp_path)
    tsv(tmp_path / "train.tsv", [("sentence", "label"), ("bad",), ("bad",)])
    with pytest.raises(BortError, match="2 of 2 rows are bad"):
        read_one("SST-2", tmp_path)


def test_wrong_files_are_refused_with_reasons(tmp_path):
    tsv(tmp_path / "train.tsv", [("text", "label"), ("a", 1)])
    with pytest.raises(BortError,
                       match="train.tsv:1: expected a header with the column 'sentence'; found 'text', 'lab"):
        read_one("SST-2", tmp_path)
    (tmp_path / "train.tsv").write_bytes(b"")
    with pytest.raises(BortError, match="expected a header"):
        read_one("SST-2", tmp_path)
    tsv(tmp_path / "train.tsv", [("sentence", "label")])
    with pytest.raises(BortError, match="holds no rows"):
        read_one("SST-2", tmp_path)
    (tmp_path / "train.tsv").unlink()
    (tmp_path / "train.tsv").mkdir()
    with pytest.raises(BortError, match="a folder, not a file"):
        read_one("SST-2", tmp_path)
    with pytest.raises(BortError, match="has no split 'validation'; it has train, dev, test"):
        read_one("SST-2", tmp_path, "validation")


def test_endless_lines_and_foreign_encodings_are_bad_rows(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 100)
    lines = [b"sentence\tlabel", b"fine\t1", b"x" * 250 + b"\t1", b"caf\xe9\t1", b"fine too\t0"]
    (tmp_path / "train.tsv").write_bytes(b"\n".join(lines))
    with caplog.at_level(logging.WARNING, "bort.tasks"):
        split = read_one("SST-2", tmp_path)
    assert [example.segments[0] for example in split.examples] == ["fine", "fine too"] and split.bad_rows == 2
    assert "train.tsv:3: expected a line of at most 100 bytes" in caplog.text
    assert "train.tsv:4: expected UTF-8 text, found byte 0xe9 at column 4" in caplog.text


def test_names_with_blanks_are_told_apart_in_messages(tmp_path):
    tsv(tmp_path / "train.tsv", [("Quality", "#1 ID", "#1 Text"), (1, 2, "a")])
    with pytest.raises(BortError, match="columns '#1 String', '#2 String'; found 'Quality', '#1 ID', '#1 T"):
        read_one("MRPC", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_other_encodings_and_line_ends(tmp_path, encoding, end):
    rows = ["sentence\tlabel", "caf\u00e9 \u2028 au lait\t1", "\U0001f375\t0"]
    (tmp_path / "train.tsv").write_bytes((end.join(rows) + end).encode(encoding))
    split = read_one("SST-2", tmp_path)
    assert [example.segments[0] for example in split.examples] == ["caf\u00e9 \u2028 au lait", "\U0001f375"]
    assert split.gold().tolist() == [1, 0] and split.bad_rows == 0


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    (tmp_path / "train.tsv").write_text(pointer)
    os.mkfifo(tmp_path / "dev.tsv")
    os.symlink("/dev/zero", tmp_path / "test.tsv")
    for split, message in (("train", "train.tsv: only a pointer of Git LFS"), ("dev", "not a regular file"),
                           ("test", "not a regular file")):
        with pytest.raises(BortError, match=message):
            read_one("SST-2", tmp_path, split)
    make_task("RACE-M", tmp_path / "race", rows=3)
    folder = tmp_path / "race" / "train" / "middle"
    (folder / "91.txt").write_text(pointer)
    os.mkfifo(folder / "92.txt")
    os.symlink("/dev/zero", folder / "93.txt")
    split = read_one("RACE-M", tmp_path / "race")
    assert split.rows == 3 and split.bad_rows == 3


def test_test_sets_need_each_index_once(tmp_path, caplog):
    tsv(tmp_path / "test.tsv", [("index", "sentence"), *[(row, "a") for row in range(9)], (3, "again"),
                                ("x", "b")])
    with caplog.at_level(logging.WARNING, "bort.tasks"):
        split = read_one("SST-2", tmp_path, "test")
    assert split.bad_rows == 2 and "expected every index once, found 3 again" in caplog.text


def test_official_sizes_are_known_and_a_difference_is_a_warning(tmp_path, caplog):
    make_task("MultiRC", tmp_path)
    with caplog.at_level(logging.WARNING, "bort.tasks"):
        read_one("MultiRC", tmp_path)
    assert "6 rows, 36 answers, the official train split has 456 rows, 27,243 answers" in caplog.text


def test_sts_b_scores_are_floats_from_zero_to_five(tmp_path):
    make_task("STS-B", tmp_path, rows=30)
    gold = read_one("STS-B", tmp_path).gold()
    assert gold.dtype == np.float64 and set(gold) == {0.0, 1.25, 3.8, 5.0}
    header = (tmp_path / "train.tsv").read_text().split("\n")[0].split("\t")
    row = ["x"] * (len(header) - 1)
    tsv(tmp_path / "train.tsv", [header, [*row, "5.1"], [*row, "nan"], [*row, "2"]])
    split = read_one("STS-B", tmp_path)
    assert split.bad_rows == 2 and split.gold().tolist() == [2.0]


def test_mnli_and_its_other_half_share_a_training_set(tmp_path):
    make_task("MNLI-m", tmp_path)
    matched, mismatched = get_task("MNLI-m"), get_task("MNLI-mm")
    assert matched.files(tmp_path, "train") == mismatched.files(tmp_path, "train")
    assert [task.files(tmp_path, "dev")[0].name for task in (matched, mismatched)] == [
        "dev_matched.tsv", "dev_mismatched.tsv"]
    assert "MNLI-mm" in matched.companions and get_task("AX").model_task == "MNLI-m"


def test_mrpc_as_microsoft_distributes_it(tmp_path, caplog):
    header = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    rows = [(row % 2, row, row + 100, f"first {row}", f"second {row}") for row in range(20)]
    tsv(tmp_path / "msr_paraphrase_train.txt", [header, *rows], bom="\ufeff", end="\r\n")
    tsv(tmp_path / "msr_paraphrase_test.txt", [header, *rows[:3]])
    with caplog.at_level(logging.WARNING, "bort.tasks"):
        dev = read_one("MRPC", tmp_path, "dev")
    assert [example.idx for example in dev.examples] == [0, 10] and "every tenth row" in caplog.text
    tsv(tmp_path / "mrpc_dev_ids.tsv", [(3, 103), (5, 105), (6, 999)])
    dev, train = read_one("MRPC", tmp_path, "dev"), read_one("MRPC", tmp_path, "train")
    assert [example.segments[0] for example in dev.examples] == ["first 3", "first 5"]
    assert (dev.rows, train.rows) == (2, 18)
    test = read_one("MRPC", tmp_path, "test")
    assert [example.idx for example in test.examples] == [0, 1, 2] and test.labelled


def test_json_rows_that_are_not_as_expected(tmp_path, caplog):
    good = [{"question": "q", "passage": "p", "idx": row, "label": True} for row in range(20)]
    bad = ["{", "[1]", '{"question": "q", "idx": 1, "label": true}',
           '{"question": 3, "passage": "p", "idx": 1, "label": true}',
           '{"question": "q", "passage": "p", "idx": 1, "label": 1}']
    lines = [json.dumps(row) for row in good] + bad
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING, "bort.tasks"):
        split = read_one("BoolQ", tmp_path)
    assert (split.rows, split.bad_rows) == (20, 5)
    for expected in ("train.jsonl:21: expected a JSON object",
                     "train.jsonl:22: expected a JSON object, found [1]",
                     "train.jsonl:23: expected a text in 'passage', there is none",
                     "train.jsonl:24: expected a text in 'question', found 3",
                     "train.jsonl:25: expected false or true in 'label', found 1"):
        assert expected in caplog.text


def test_ax_b_has_text_idx_and_extra_keys(tmp_path):
    make_task("AX-b", tmp_path)
    split = read_one("AX-b", tmp_path, "test")
    assert [example.idx for example in split.examples] == list("012345") and split.labelled
    make_task("SuperGLUE-RTE", tmp_path)
    assert not get_task("AX-g").available(tmp_path, "test")  # RTE's test.jsonl is none of its files
    (tmp_path / "AX-b.jsonl").rename(tmp_path / "AX-B.jsonl")
    assert len(read_one("AX-b", tmp_path, "test")) == 6


def test_race_files_come_in_numerical_order_and_bad_ones_are_named(tmp_path, caplog):
    make_task("RACE-H", tmp_path, rows=12)
    folder = tmp_path / "train" / "high"
    (folder / "9.txt").write_text(json.dumps({"article": "a", "questions": ["q"],
                                              "options": [["1", "2", "3"]], "answers": ["A"],
                                              "id": "high9.txt"}))
    (folder / "10.txt").write_bytes(b"\xff")
    with caplog.at_level(logging.WARNING, "bort.tasks"):
        split = read_one("RACE-H", tmp_path)
    assert (split.rows, split.bad_rows) == (10, 2)
    assert "9.txt: expected four options that are texts" in caplog.text
    assert "10.txt: expected UTF-8" in caplog.text
    passages = list(dict.fromkeys(example.group[0] for example in split.examples))
    assert passages == [f"high{number}.txt" for number in (7, 8, *range(11, 19))]


@pytest.mark.parametrize("name, folder, rows", [
    ("CoLA", "glue/CoLA", (8551, 1043, 1063)), ("SST-2", "glue/SST-2", (67349, 872, 1821)),
    ("RTE", "glue/RTE", (2490, 277, 3000)), ("CB", "superglue/CB", (250, 56, 250)),
    ("COPA", "superglue/COPA", (400, 100, 500)), ("WSC", "superglue/WSC", (554, 104, 146)),
    ("RACE-H", "race", (400, 120, 60)), ("RACE-M", "race", (400, 120, 60))])
def test_the_real_files_read_without_a_bad_row(name, folder, rows, real_data):
    task = get_task(name)
    for split, expected in zip(("train", "dev", "test"), rows):
        read = task.read(real_data / folder, split)
        assert (read.rows, read.bad_rows) == (expected, 0)



def test_the_embedded_tasks_test_labels_are_in_a_file_of_their_own(tmp_path, caplog):
    make_task("Embedded", tmp_path)
    tsv(tmp_path / "test.tsv", [("index", "sentence"), *((row, f"sentence {row}") for row in range(10))])
    assert not read_one("Embedded", tmp_path, "test").labelled
    tsv(tmp_path / "test_labels.tsv", [("index", "label"), *((row, row % 2) for row in range(10))])
    test = read_one("Embedded", tmp_path, "test")
    assert get_task("Embedded").evaluate(test, np.eye(2)[[0, 1] * 5]) == {"mcc": 1.0, "accuracy": 1.0}
    tsv(tmp_path / "test_labels.tsv", [("index", "label"), *((row, row % 2) for row in range(9)), (9, "yes")])
    assert not read_one("Embedded", tmp_path,
                        "test").labelled and "test_labels.tsv:11: expected 0 or 1" in caplog.text
