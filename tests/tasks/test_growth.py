"""Time grows with the input and no faster: patterns over texts, readers of tasks and predictions."""
from __future__ import annotations

import io

import pytest

from bort.predict.inputs import read_records
from bort.predict.records import PlainTask
from bort.tasks import get_task
from bort.tasks.race import answered
from bort.tasks.text import locate_span, tidy
from tests.growth import assert_linear

UNITS = [" ", "? ", "the ", "<b>", "<b>Sent 1", ". ", "..", "_", "a", "a b ", "!?", "\u00a0\t", '"', '","']


@pytest.mark.parametrize("unit", UNITS)
def test_runs_in_a_text(unit):
    def text(size):
        return unit * (size // len(unit)) + "x"

    assert_linear(tidy, text)
    assert_linear(lambda value: locate_span(value, "b a x y", 0), lambda size: "b " + text(size))
    assert_linear(lambda value: answered(value, ["one", "two"]), text)


@pytest.mark.parametrize("form", ["lines", "tsv", "csv", "jsonl"])
@pytest.mark.parametrize("unit", ['a\n', 'a,"b\n', '"', "\r", ',"\t', '{"sentence": "a"}\n'])
def test_rows_of_a_prediction(form, unit):
    task = PlainTask(None, 2)
    assert_linear(lambda data: sum(1 for _ in read_records(io.BytesIO(data), task, form)),
                  lambda size: unit.encode() * (size // len(unit)))


def test_the_released_form_of_a_long_text():
    assert_linear(get_task("CB", "released").segment, lambda size: "a." * (size // 2))
