"""The evaluation set that is taken out of a training set, and its file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bort.errors import BortError
from bort.finetuning.evaluation_split import content_key, draw, of_examples, read_split, write_split
from bort.tasks.registry import get_task
from tests.agora.simulated import some_split


@given(st.lists(st.integers(0, 2), min_size=20, max_size=200), st.floats(0.05, 0.5), st.integers(0, 99))
def test_what_is_drawn_is_stratified(labels, fraction, seed):
    labels = np.array(labels)
    try:
        taken = draw(some_split(labels.tolist()), labels, fraction, seed)
    except BortError:
        assert len(labels) * fraction < 2
        return
    assert (np.diff(taken) > 0).all() and 0 < len(taken) < len(labels)
    for label in set(labels.tolist()):
        size = int((labels == label).sum())
        assert abs((labels[taken] == label).sum() - fraction * size) <= 1
    np.testing.assert_array_equal(taken, draw(some_split(labels.tolist()), labels, fraction, seed))


def test_whole_questions_are_drawn():
    groups = [index // 4 for index in range(80)]
    taken = draw(some_split([0, 0, 1, 0] * 20, groups), np.zeros(80, int), 0.2, 3)
    assert len(taken) == 16 and {groups[index] for index in taken}.isdisjoint(
        {groups[index] for index in range(80) if index not in set(taken.tolist())}
    )
    with pytest.raises(BortError, match="fraction"):
        draw(some_split([0, 1]), np.array([0, 1]), 1.0, 0)


def test_a_split_is_read_as_it_was_written_or_refused(tmp_path):
    task, split = get_task("RTE"), some_split([0, 1, 0, 1])
    members = of_examples(split.examples[1:3])
    write_split(tmp_path / "split.json", members, task)
    again = read_split(tmp_path / "split.json", task)
    assert again == members and again.members(split).tolist() == [1, 2]
    assert again.members(some_split([1, 1, 0])).tolist() == [1, 2]  # by text, whatever the label
    with pytest.raises(BortError, match="is an evaluation set of RTE, not of QNLI"):
        read_split(tmp_path / "split.json", get_task("QNLI"))
    content = json.loads((tmp_path / "split.json").read_text())
    content["evaluation"][0] = content_key(split.examples[3])
    (tmp_path / "split.json").write_text(json.dumps(content))
    with pytest.raises(BortError, match="digest"):
        read_split(tmp_path / "split.json", task)
    for text in ("3", "{}", '{"evaluation": []}', '{"evaluation": [1]}', "{"):
        (tmp_path / "split.json").write_text(text)
        with pytest.raises(BortError, match="split.json"):
            read_split(tmp_path / "split.json", task)
