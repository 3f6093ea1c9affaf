"""Scores are the model's outputs in the order of the sequences, whatever engine computes them."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from bort.backend.mxnet import mx
from bort.engines import base
from bort.engines import engine as door
from bort.engines.base import EngineOptions
from bort.finetuning import scoring
from bort.json_files import read_json
from bort.models import Classifier
from bort.training.run_folder import RunFolder
from tests.tiny import VOCAB, tiny_bert


def classifier():
    model = Classifier(tiny_bert(0), 3)
    model.initialize_head(0)
    return model


def cheapest(monkeypatch, name):
    monkeypatch.setattr(
        door,
        "COSTS",
        {kind: cost if kind == name else door.Cost(1e9, 0, 0, 1e9) for kind, cost in door.COSTS.items()},
    )


@pytest.mark.parametrize("name", ["plain", "mxnet", "openvino"])
def test_scores_are_the_models_outputs_in_order(monkeypatch, name):
    if name == "openvino" and not importlib.util.find_spec(name):
        pytest.skip("openvino is not installed")
    cheapest(monkeypatch, name)
    opened = []
    make = door._make
    monkeypatch.setattr(door, "_make", lambda kind, *rest: opened.append(kind) or make(kind, *rest))
    model = classifier()
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, VOCAB, length).astype("int32") for length in rng.integers(1, 24, 40)]
    scores = scoring.score(model, sequences, pad_id=1, max_tokens=64, describe="scored")
    assert scores.shape == (40, 3) and opened == [name]
    for row, sequence in zip(scores, sequences):
        alone = model(mx.nd.array(sequence[None], dtype="int32"), mx.nd.array([len(sequence)])).asnumpy()[0]
        np.testing.assert_allclose(row, alone, atol=2e-4)
    assert scoring.score(model, [], 1).shape == (0, 3)
    engine = door.open_engine(model, None, EngineOptions("mxnet"))
    np.testing.assert_allclose(scoring.score(engine, sequences, 1), scores, atol=2e-4)


def test_scores_follow_the_weights_and_the_preferred_engine(monkeypatch):
    model, ids = classifier(), [np.arange(9, dtype="int32")] * 5
    monkeypatch.setattr(base, "_preferred", [EngineOptions("mxnet", "int8")])
    first = scoring.score(model, ids, 1)
    assert any(row["precision"] == "int8" and row["part"] == "classifier" for row in door.engines_used())
    base.prefer(EngineOptions("mxnet"))
    exact = scoring.score(model, ids, 1)
    assert 0 < np.abs(first - exact).max() < 0.2
    layer = model.classifier[1]
    layer.bias.set_data(layer.bias.data() + 1)
    np.testing.assert_allclose(scoring.score(model, ids, 1), exact + 1, atol=1e-5)


def test_ranks_agree_on_the_engine(monkeypatch):
    """Rank 0 has the long sequences; which engine pays is a matter of all of them."""
    model = classifier()
    sequences = [np.zeros(length, "int32") for length in [24] * 4 + [2] * 4]
    chosen = []
    candidates = door._candidates
    monkeypatch.setattr(door, "_candidates", lambda *given: chosen.append(candidates(*given)[0]) or ["plain"])
    monkeypatch.setattr(scoring.distributed, "allreduce_sum", lambda scores: scores)

    def first_choice(rank, size):
        monkeypatch.setattr(scoring.distributed, "rank", lambda: rank)
        monkeypatch.setattr(scoring.distributed, "size", lambda: size)
        scoring.score(model, sequences, 1, max_tokens=96)
        return chosen.pop()

    work = sum(model.architecture.flops(len(ids)) for ids in sequences) / 1e12
    found = set()
    for share in (0.1, 0.3, 0.45, 0.6, 2):
        monkeypatch.setattr(
            door,
            "COSTS",
            {
                **dict.fromkeys(door.COSTS, door.Cost(9, 0, 0, 0)),
                "plain": door.Cost(0, 0, 0, 1.0),
                "mxnet": door.Cost(share * work, 0, 0, 0),
            },
        )
        choices = {first_choice(0, 2), first_choice(1, 2), first_choice(0, 1)}
        assert len(choices) == 1, share
        found |= choices
    assert found == {"plain", "mxnet"}


def test_a_run_records_what_computed_its_scores(tmp_path):
    scoring.score(classifier(), [np.arange(9, dtype="int32")], 1)
    with RunFolder(tmp_path / "run", {"seed": 0}, False) as run:
        run.finish({"accuracy": 1.0})
    rows = read_json(tmp_path / "run" / "engines.json")
    (row,) = [row for row in rows if row["part"] == "classifier" and row["engine"] == "mxnet"
              and row["precision"] == "float32"]
    assert row["version"] == mx.__version__
