"""Whatever the files hold: a split, or a BortError. Never another exception, never without end."""
from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bort.errors import BortError
from bort.tasks import TASKS, encode, get_task
from bort.tasks.labels import output_order
from bort.tasks.text import locate_span, tidy
from bort.tasks.validation import validate_submission
from tests.fuzz import EXAMPLES, JUNK, damaged, replaced
from tests.tiny_tasks import WordTokenizer, make_task

READERS = [name for name in TASKS if name not in ("RACE-M", "RACE-H", "MNLI-mm", "AX-g", "RTE", "WNLI",
                                                  "QNLI")]
"""One task for each way of reading."""
JSON_TASKS = [(name, encoding) for name in READERS for encoding in ("paper", "released")
              if get_task(name).suite in ("superglue", "race") and get_task(name, encoding).encoding
              == encoding]
KEYS = st.sampled_from(["idx", "label", "passage", "questions", "answers", "id"])
NESTED = st.recursive(JUNK, lambda inner: st.one_of(st.lists(inner, max_size=3),
                                                    st.dictionaries(KEYS, inner, max_size=4)), max_leaves=8)


def read_and_use(task, folder, split):
    """Read, and if that works go on to encode, predict and evaluate, as a run would."""
    try:
        read = task.read(folder, split)
    except BortError as error:
        assert str(error)
        return
    encoded = encode(task, read, WordTokenizer(), 32)
    scores = np.zeros((len(read), task.num_outputs))
    task.write_submission(read, scores, folder / "out")
    task.training_subset(read, np.random.default_rng(0)) if read.labelled else None
    if read.labelled and not (task.name == "AX-g" and len(read) % 2):
        task.evaluate(read, scores)
    assert len(encoded) == len(read)


def files_of(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and "out" not in path.parts]


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_broken_bytes(name, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    make_task(name, folder, rows=3)
    path = data.draw(st.sampled_from(files_of(folder)))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    for split in get_task(name).splits:
        read_and_use(get_task(name), folder, split)


@pytest.mark.parametrize("name, encoding", JSON_TASKS)
@settings(max_examples=2 * EXAMPLES)
@given(path=st.lists(st.integers(0, 9), min_size=1, max_size=7), junk=JUNK)
def test_json_with_a_value_of_another_type(name, encoding, path, junk, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    make_task(name, folder, rows=2)
    for file in files_of(folder):
        lines = file.read_text(encoding="utf-8").split("\n")
        lines[0] = json.dumps(replaced(json.loads(lines[0]), path, junk))
        file.write_text("\n".join(lines), encoding="utf-8")
    task = get_task(name, encoding)
    for split in task.splits:
        read_and_use(task, folder, split)


@pytest.mark.parametrize("name", ["CoLA", "STS-B", "CB", "MultiRC", "RACE"])
@settings(max_examples=8 * EXAMPLES)
@given(content=st.one_of(st.binary(max_size=200), NESTED.map(lambda value: json.dumps(value).encode())))
def test_any_submission_is_accepted_or_refused(name, content, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / get_task(name).submission
    path.write_bytes(content)
    try:
        validate_submission(path, get_task(name))
    except BortError as error:
        assert str(error)


@settings(max_examples=20 * EXAMPLES)
@given(data=st.data())
def test_a_damaged_encoding_cache_is_remade(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    task = get_task("RTE")
    make_task("RTE", folder, rows=3)
    split = task.read(folder, "train")
    encoded = encode(task, split, WordTokenizer(), 16, folder / "cache")
    expected = [ids.tolist() for ids in encoded.token_ids]  # what is mapped must not be cut short
    path = data.draw(st.sampled_from(files_of(folder / "cache")))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    again = encode(task, split, WordTokenizer(), 16, folder / "cache")
    assert [ids.tolist() for ids in again.token_ids] == expected
    assert again.labels.tolist() == encoded.labels.tolist()
    shutil.rmtree(folder)


LABELS = st.one_of(st.none(), st.lists(st.one_of(st.text(max_size=4), st.sampled_from(
    ["0", "1", "entailment", "Not Entailment", "neutral", "CONTRADICTION", "true", "no", "LABEL_0"])),
    max_size=5))


@settings(max_examples=100 * EXAMPLES)
@given(labels=LABELS, outputs=st.integers(1, 4), name=st.sampled_from(TASKS),
       encoding=st.sampled_from(["paper", "released"]),
       recorded=st.sampled_from([None, "CB", "SST-2", "other"]))
def test_any_labels_give_an_order_or_are_refused(labels, outputs, name, encoding, recorded):
    task = get_task(name, encoding)
    try:
        order = output_order(labels, outputs, task, "model", recorded)
    except BortError as error:
        assert str(error).startswith("model: ") and "\n" not in str(error)
        return
    assert order is None or sorted(order.tolist()) == list(range(outputs))
    assert outputs == task.num_outputs or task.folds(outputs)


@given(text=st.text(st.sampled_from("the ?!.,;<b>Sent 1:/br_\u00ad\n\t"), max_size=60))
def test_tidying_settles(text):
    once = tidy(text)
    assert len(once) <= len(text) and once == once.strip() and "  " not in once


@given(text=st.text(max_size=40), span=st.text(max_size=5), index=st.integers(-3, 20))
def test_spans_lie_in_the_text(text, span, index):
    try:
        start, end = locate_span(text, span, index)
    except ValueError:
        return
    assert 0 <= start < end <= len(text)


def test_patterns_do_not_blow_up_on_runs():
    for unit in (" ", "? ", "the ", "<b>", "<b>Sent 1", ". ", "_", "a"):
        tidy(unit * 100_000)
        locate_span(unit * 20_000, "a  b " * 90, 0) if "a" in unit else None
