"""Scores are the model's outputs in the order of the sequences, compiled or not."""
from __future__ import annotations

import numpy as np
import pytest

from bort.backend.mxnet import mx
from bort.finetuning import scoring
from bort.models import Classifier
from tests.tiny import VOCAB, tiny_bert


@pytest.mark.parametrize("compiled", [False, True])
def test_scores_are_the_models_outputs_in_order(monkeypatch, compiled):
    monkeypatch.setattr(scoring, "COMPILING_SECONDS", 0.0 if compiled else 1e9)
    made = []
    original = scoring.compile_for_inference
    monkeypatch.setattr(scoring, "compile_for_inference", lambda model: made.append(1) or original(model))
    model = Classifier(tiny_bert(0), 3)
    model.initialize_head(0)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, VOCAB, length).astype("int32") for length in rng.integers(1, 24, 40)]
    scores = scoring.score(model, sequences, pad_id=1, max_tokens=64)
    assert scores.shape == (40, 3) and bool(made) == compiled
    for row, sequence in zip(scores, sequences):
        alone = model(mx.nd.array(sequence[None], dtype="int32"), mx.nd.array([len(sequence)])).asnumpy()[0]
        np.testing.assert_allclose(row, alone, atol=2e-4)
    assert scoring.score(model, [], 1).shape == (0, 3)


def test_ranks_agree_on_compiling(monkeypatch):
    """Rank 0 has the long sequences; whether compiling pays is a matter of all of them."""
    model = Classifier(tiny_bert(0), 3)
    model.initialize_head(1)
    sequences = [np.zeros(length, "int32") for length in [24] * 4 + [2] * 4]
    made = []
    monkeypatch.setattr(scoring, "compile_for_inference", lambda model: made.append(1) or model)
    monkeypatch.setattr(scoring.distributed, "allreduce_sum", lambda scores: scores)

    def compiled(rank, size):
        monkeypatch.setattr(scoring.distributed, "rank", lambda: rank)
        monkeypatch.setattr(scoring.distributed, "size", lambda: size)
        made.clear()
        scoring.score(model, sequences, 1, max_tokens=96)
        return bool(made)

    work = sum(model.architecture.flops(len(ids)) for ids in sequences) * scoring.SECONDS_PER_FLOP
    for share in (0.1, 0.3, 0.45, 0.6, 2):
        monkeypatch.setattr(scoring, "COMPILING_SECONDS", share * work)
        assert len({compiled(0, 2), compiled(1, 2), compiled(0, 1)}) == 1, share
