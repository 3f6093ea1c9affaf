"""A network with token types goes through the runners and commands as any other: the types are its own
matter."""
from __future__ import annotations

import json

import numpy as np
import pytest

import bort
import run_finetune
import run_pretrain
from bort.checkpoints.model_folder import parameter_arrays
from bort.errors import run_command
from bort.predict.fill_mask import MaskFiller
from bort.predict.predictor import Predictor
from bort.tasks.encoding import encode_pair
from bort.text.shards.plan import PrepareOptions
from bort.text.shards.prepare import prepare
from bort.text.tokenizers.loading import train_sentencepiece
from tests.models.numpy_reference import hidden_states, linear, parameters_of, types_of
from tests.tiny import tiny_bert
from tests.tiny_tasks import WORDS, make_task


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """A folder with a typed network that carries a pooler, a text and the files of RTE."""
    root = tmp_path_factory.mktemp("typed")
    rng = np.random.default_rng(0)
    sentences = [" ".join(rng.choice(WORDS, 9)) + "." for _ in range(120)]
    (root / "text.txt").write_text("\n\n".join(sentences) + "\n")
    tokenizer = train_sentencepiece(sentences, 60)
    tokenizer.save(root / "tokenizer")
    prepare(PrepareOptions(inputs=[root / "text.txt"], output=root / "shards", tokenizer=root / "tokenizer",
                           max_length=24))
    model = tiny_bert(1, vocab_size=tokenizer.vocab_size, max_length=48, token_types=2,
                      separator_id=tokenizer.eos_id, pooler=True)
    model.pooler = (rng.normal(size=(8, 8)).astype("float32"), np.ones(8, "float32"))
    bort.save(model, root / "model", tokenizer)
    make_task("RTE", root / "data", rows=12)
    return root


def test_fine_tuning_and_prediction(typed):
    command = ["--task", "RTE", "--data-dir", str(typed / "data"), "--model", str(typed / "model"),
               "--output", str(typed / "rte"), "--epochs", "1", "--batch-size", "4", "--max-length", "40",
               "--lr", "0.01", "--max-steps", "3"]
    assert run_command(run_finetune.main, command) == 0
    model, before = bort.load(typed / "rte" / "model"), bort.load(typed / "model")
    assert (model.body.token_types, model.body.separator_id) == (2, before.separator_id)
    rows = [network.token_type_embed[0].weight.data().asnumpy() for network in (model.body, before)]
    assert (np.abs(rows[0] - rows[1]).max(axis=1) > 1e-4).all(), "both types were trained"
    tokenizer = bort.load_tokenizer(typed / "rte" / "model")
    pair = ("river boat crew", "storm sail")
    ids = encode_pair(tokenizer, tokenizer.encode(pair[0]), tokenizer.encode(pair[1]), 40)
    first = hidden_states(model.body, ids, types_of(ids, tokenizer.eos_id))[0]
    scores = linear(first, parameters_of(model), "classifier.1")
    expected = np.exp(scores) / np.exp(scores).sum()
    answer = next(iter(Predictor(typed / "rte" / "model")([pair])))
    np.testing.assert_allclose(sorted(answer["probabilities"].values()), sorted(expected), atol=1e-4)


def test_pretraining_keeps_types_and_pooler(typed):
    command = ["--data", str(typed / "shards"), "--init", str(typed / "model"), "--method", "mlm",
               "--lr", "0.01", "--output", str(typed / "whole"), "--steps", "3", "--batch-size", "4",
               "--eval-interval", "3"]
    assert run_command(run_pretrain.main, command) == 0
    whole, start = bort.load(typed / "whole" / "model"), bort.load(typed / "model")
    assert whole.options == start.options
    np.testing.assert_array_equal(whole.pooler[0], start.pooler[0])
    changed = parameter_arrays(whole)["token_type_embed.0.weight"][0] - start.token_type_embed[0].weight.data(
        ).asnumpy()[0]
    assert np.abs(changed).max() > 0
    found = MaskFiller(typed / "whole" / "model")("river <mask> crew.", top=2)
    assert len(found[0]) == 2
    assert json.loads((typed / "whole" / "model" / "config.json").read_text())["token_types"] == 2
