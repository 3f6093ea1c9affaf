"""Whatever the input of a prediction holds: an answer or an error for each row. Never another exception."""
from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bort.errors import BortError
from bort.models import Classifier
from bort.predict.inputs import FORMATS, open_records, read_records
from bort.predict.outputs import JsonWriter, TsvWriter, write_rows
from bort.predict.predictor import Predictor
from bort.tasks.registry import get_task
from bort.text.tokenizers.base import Tokenizer
from tests.fuzz import EXAMPLES, JUNK, damaged, replaced
from tests.tiny import tiny_bert
from tests.tiny_tasks import WordTokenizer, make_task

NAMES = ("SST-2", "CoLA", "MRPC", "STS-B", "CB", "WiC", "WSC", "COPA", "MultiRC", "ReCoRD", "RACE-M")
"""One task for each way in which inputs come."""


class Words(WordTokenizer, Tokenizer):
    """A tokenizer that needs no training."""


@pytest.fixture(scope="module")
def predictors():
    """``predictors(task, encoding, labels)`` with a network that is a table: what is tested are readers and
    writers."""
    made = {}

    def get(name, encoding="paper", labels=None):
        key = name, encoding, labels
        if key not in made:
            outputs = 2 if name is None else get_task(name, encoding).num_outputs
            model = Classifier(tiny_bert(vocab_size=200), outputs)
            model.initialize_head(0)
            model.task_name, model.encoding, model.labels = name, encoding, labels and list(labels)
            predictor = Predictor(model, Words())
            predictor._run = lambda ids, valid: np.add.outer(valid, np.arange(outputs)).astype(np.float32)
            made[key] = predictor
        return made[key]

    return get


def answered(predictor, records):
    """The rows of both writers, which take the same records."""
    found = list(records)
    for make in (JsonWriter, TsvWriter):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n")
        try:
            writer = make(stream, predictor.task)
            bad, lines = write_rows(predictor.stream(iter(found)), writer, "input", strict=False)
        except BortError as error:
            assert make is TsvWriter and "use JSON" in str(error)
            continue
        assert lines == len(found) and bad == sum(record.error is not None for record in found)
        stream.seek(0)
        rows = stream.buffer.read().decode("utf-8").split("\n")[:-1]
        if make is JsonWriter:
            for row in map(json.loads, rows):
                assert ("error" in row) != ("label" in row or "score" in row or "predictions" in row)
            assert len(rows) == lines
        else:
            assert len({row.count("\t") for row in rows}) == 1


def content_of(name, folder):
    make_task(name, folder, rows=3)
    path = get_task(name).files(folder, "test")[0]
    return (sorted(path.glob("*.txt"))[0] if path.is_dir() else path).read_bytes()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=3 * EXAMPLES)
@given(data=st.data(), form=st.sampled_from(FORMATS), encoding=st.sampled_from(["paper", "released"]))
def test_damaged_official_files_in_any_format(name, data, form, encoding, predictors, tmp_path_factory):
    content = data.draw(damaged(content_of(name, tmp_path_factory.mktemp("fuzz"))))
    predictor = predictors(name, encoding)
    answered(predictor, read_records(io.BytesIO(content), predictor.task, form))


@settings(max_examples=10 * EXAMPLES)
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(
    lambda text: text.encode("utf-16", "surrogatepass"))), form=st.sampled_from(FORMATS),
    labels=st.sampled_from([None, ("a", ""), ("\ud800", "\t\n"), ("error", "line")]))
def test_any_bytes_and_labels(content, form, labels, predictors):
    predictor = predictors(None, labels=labels)
    answered(predictor, read_records(io.BytesIO(content), predictor.task, form))


@pytest.mark.parametrize("name", [name for name in NAMES if get_task(name).suite != "glue"])
@settings(max_examples=3 * EXAMPLES)
@given(path=st.lists(st.integers(0, 9), min_size=1, max_size=7), junk=JUNK)
def test_records_with_a_value_of_another_type(name, path, junk, predictors, tmp_path_factory):
    record = json.loads(content_of(name, tmp_path_factory.mktemp("fuzz")).split(b"\n")[0])
    line = json.dumps(replaced(record, path, junk)).encode()
    predictor = predictors(name)
    answered(predictor, read_records(io.BytesIO(line), predictor.task))
    try:
        predictor([json.loads(line)])
    except BortError as error:
        assert "line 1" in str(error)


@settings(max_examples=4 * EXAMPLES)
@given(data=st.data())
def test_a_folder_of_damaged_passages(data, predictors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    make_task("RACE-M", folder, rows=2)
    path = data.draw(st.sampled_from(sorted((folder / "test" / "middle").iterdir())))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    predictor = predictors("RACE-M")
    with open_records(str(folder), predictor.task) as records:
        answered(predictor, records)


