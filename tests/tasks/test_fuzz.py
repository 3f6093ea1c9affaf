"""Whatever the files hold: a split, or a BortError. Never another exception, never without end."""
from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bort.errors import BortError
from bort.tasks import TASKS, encode, get_task
from bort.tasks.text import locate_span, tidy
from bort.tasks.validation import validate_submission
from tests.tiny_tasks import WordTokenizer, make_task

EXAMPLES = int(os.environ.get("BORT_FUZZ_EXAMPLES", "5"))
"""Per task; a few hundred make a thorough run by hand."""
READERS = [name for name in TASKS if name not in ("RACE-M", "RACE-H", "MNLI-mm", "AX-g", "RTE", "WNLI",
                                                  "QNLI")]
"""One task for each way of reading."""
JSON_TASKS = [(name, encoding) for name in READERS for encoding in ("paper", "released")
              if get_task(name).suite in ("superglue", "race") and get_task(name, encoding).encoding
              == encoding]
JUNK = st.one_of(st.none(), st.booleans(), st.integers(-10, 10**25), st.floats(), st.text(max_size=6),
                 st.lists(st.integers(), max_size=2), st.just({}), st.just([]), st.just({"idx": 1}))
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
    content = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "flip", "insert", "noise", "repeat"]))
    place = data.draw(st.integers(0, len(content)))
    if kind == "cut":
        del content[place:]
    elif kind == "flip" and place < len(content):
        content[place] = data.draw(st.integers(0, 255))
    elif kind == "insert":
        content[place:place] = data.draw(st.one_of(st.binary(max_size=20),
                                                   st.sampled_from([b"[" * 3000, b"\t" * 1000, b"9" * 5000,
                                                                    b"\n" * 500, b"\0", b"x" * 200_000,
                                                                    b"\xef\xbb\xbf", b'\\ud800',
                                                                    b"_" * 300])))
    elif kind == "noise":
        content = bytearray(data.draw(st.binary(max_size=300)))
    else:
        content = content * 3
    path.write_bytes(content)
    for split in get_task(name).splits:
        read_and_use(get_task(name), folder, split)


def replaced(value, path, junk):
    """``value`` with ``junk`` in place of what ``path``, a list of choices, leads to."""
    if not path or not isinstance(value, (dict, list)) or not value:
        return junk
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = replaced(value[key], path[1:], junk)
    return copy


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
