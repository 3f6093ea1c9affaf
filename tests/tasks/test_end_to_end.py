"""``run_finetune.py --task X`` for every task: official files in, metrics and valid submissions out."""
from __future__ import annotations

import json
import math

import pytest

import run_finetune
from bort.tasks import TASKS, get_task
from bort.tasks.validation import validate_submission
from tests.tiny_tasks import BAD, GOOD, WORDS, make_task

MODEL = "random:1,2,8,8"
RELEASED = ("SST-2", "BoolQ", "CB", "COPA", "WiC", "WSC", "RACE-H")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    from bort.text.tokenizers.loading import train_sentencepiece

    folder = tmp_path_factory.mktemp("vocabulary")
    words = [*WORDS, *GOOD, *BAD, *"The was because so what it Anna Kohl Bo Ulm later saw the .".split()]
    train_sentencepiece([" ".join(words)] * 20, 150).save(folder)
    return folder


def run(name, data, vocabulary, output, *arguments):
    return run_finetune.main([
        "--task", name, "--data-dir", str(data), "--model", MODEL, "--tokenizer", str(vocabulary),
        "--output", str(output), "--max-steps", "1", "--batch-size", "8", "--max-length", "48", *arguments])


@pytest.mark.parametrize("name, encoding",
                         [*((name, "paper") for name in TASKS if "train" in get_task(name).splits
                            and name not in ("RACE", "MNLI-mm")),
                          *((name, "released") for name in RELEASED)])
def test_every_task_that_can_be_trained(name, encoding, vocabulary, tmp_path, monkeypatch):
    # a third of a tiny run's time
    monkeypatch.setattr("bort.finetuning.results.plot_curves", lambda *args, **settings: None)
    task = get_task(name, encoding)
    data = make_task(name, tmp_path / "data" / name, rows=4)
    companions = [get_task(other) for other in task.companions]
    for companion in companions:
        make_task(companion.name, tmp_path / "data" / companion.name, rows=4)
    assert run(name, data, vocabulary, tmp_path / "run", "--encoding", encoding) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    dev = results["metrics"]["dev"]
    assert list(dev) == list(task.metrics) and all(math.isfinite(value) for value in dev.values())
    for owner in (task, *companions):
        folder = data if owner is task or owner.name == "MNLI-mm" else tmp_path / "data" / owner.name
        assert validate_submission(tmp_path / "run" / "predictions" / owner.submission, owner, folder) >= 4
