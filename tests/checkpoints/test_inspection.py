"""inspect and verify: what they report, what they fail, and which MLM heads the probe believes."""
from __future__ import annotations

import json

import numpy as np
import pytest

import bort
from bort.architecture import Architecture
from bort.backend.mxnet import autograd, gluon, mx
from bort.checkpoints import inspection, mlm_probe
from bort.checkpoints.__main__ import main
from bort.checkpoints.inspection import inspect, verify
from bort.checkpoints.model_folder import parameter_arrays
from bort.checkpoints.params_file import read_ndarrays, write_ndarrays
from bort.errors import BortError, run_command
from bort.huggingface import export_folder, import_folder
from bort.huggingface.importing import inspect_folder
from bort.models import Bert, Classifier, initialize
from bort.text.tokenizers.loading import train_sentencepiece
from tests.checkpoints.test_model_folder import released_file
from tests.tiny import MAX_LENGTH, VOCAB, tiny_bert

FIRST = [start + end for start in ("ba", "de", "fi", "go", "lu", "ma") for end in "nrst"]


def pairs(count, seed):
    """Sentences of a language in which every second word follows from the one before it, and some are
    frequent."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, len(FIRST) + 1)
    drawn = rng.choice(len(FIRST), (count, 3), p=shares / shares.sum())
    return [" ".join(f"{FIRST[index]} {FIRST[index]}ok" for index in row) for row in drawn]


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece(pairs(400, 0), 80)


@pytest.fixture(scope="module")
def trained(tokenizer):
    """A small model that has learned the language: its parameters."""
    rng = np.random.default_rng(0)
    model = fresh(tokenizer)
    model.hybridize()
    trainer = gluon.Trainer(model.collect_params(), "adam", {"learning_rate": 0.01})
    loss = gluon.loss.SoftmaxCrossEntropyLoss()
    rows = np.asarray([[tokenizer.bos_id, *row, tokenizer.eos_id]
                       for row in tokenizer.encode_batch(pairs(200, 1)) if len(row) == 6])
    for step in range(300):
        trainer.set_learning_rate(0.01 * (1 - step / 300))
        ids = rows[rng.integers(0, len(rows), 32)]
        positions = rng.integers(1, 7, (32, 1))
        truth = np.take_along_axis(ids, positions, 1)
        np.put_along_axis(ids, positions, tokenizer.mask_id, 1)
        with autograd.record():
            _, logits = model(mx.nd.array(ids, dtype="int32"), mx.nd.full((32,), 8),
                              mx.nd.array(positions, dtype="int32"))
            value = loss(logits.reshape((-1, tokenizer.vocab_size)), mx.nd.array(truth[:, 0])).mean()
        value.backward()
        trainer.step(1)
    return parameter_arrays(model)


def fresh(tokenizer, seed=0):
    model = Bert(Architecture(1, 2, 32, 32), tokenizer.vocab_size, MAX_LENGTH, dropout=0.0)
    initialize(model, seed)
    return model


def with_parameters(model, arrays):
    for name, parameter in model._collect_params_with_prefix().items():
        if name in arrays:
            parameter.set_data(mx.nd.array(arrays[name]))
    return model


def outcomes(checks):
    return {check.name: check.outcome for check in checks}


# ---- the probe

def test_a_trained_head_is_told_from_random_ones_on_the_same_body(tokenizer, trained):
    texts = pairs(60, 2)
    assert mlm_probe.probe(with_parameters(fresh(tokenizer), trained), tokenizer, texts).head == "trained"
    contexts = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        scale = (0.02, 0.2, 1.0)[seed % 3]
        head = {"decoder.0.weight": rng.normal(0, scale, trained["decoder.0.weight"].shape),
                "decoder.0.bias": rng.normal(0, scale, 32), "decoder.2.gamma": 1 + rng.normal(0, 0.1, 32),
                "decoder.2.beta": rng.normal(0, 0.1, 32), "decoder.3.bias": rng.normal(0, 0.1,
                                                                                       tokenizer.vocab_size)}
        verdict = mlm_probe.probe(with_parameters(fresh(tokenizer), {**trained, **head}), tokenizer, texts)
        contexts.append((verdict.context, verdict.head))
    assert {head for _, head in contexts} == {"random"}, contexts
    assert max(contexts)[0] < mlm_probe.MIN_CONTEXT - 1
    assert mlm_probe.probe(fresh(tokenizer), tokenizer, texts).head == "random"


def test_knowing_which_words_there_are_is_not_knowing_contexts(tokenizer, trained, monkeypatch):
    used = np.bincount(sum(tokenizer.encode_batch(pairs(200, 3)), []), minlength=tokenizer.vocab_size) > 0
    head = {"decoder.0.weight": np.zeros((32, 32)), "decoder.0.bias": np.zeros(32),
            "decoder.2.beta": np.zeros(32), "decoder.3.bias": np.where(used, 0, -20)}
    # 48 of 71 tokens are words: log(71/48) nats are to be had
    monkeypatch.setattr(mlm_probe, "MIN_GAIN", 0.3)
    verdict = mlm_probe.probe(with_parameters(fresh(tokenizer), {**trained, **head}), tokenizer, pairs(60, 2))
    assert verdict.head == "frequencies" and abs(verdict.context) < 3


@pytest.mark.parametrize("seed", range(5))
def test_the_judgement_is_about_pairing_and_nothing_else(seed):
    """Liking some tokens, or being sure at some masks, proves nothing."""
    rng = np.random.default_rng(seed)
    bias = rng.normal(0, 3, (1, 60)) + rng.normal(0, 3, (60, 1)) + rng.normal(0, 0.5, (60, 60))
    controls = [rng.normal(0, 1, (60, 60)) for _ in range(8)]
    well, badly = np.full(60, 3.0), np.full(60, 7.0)
    assert mlm_probe.judge(badly, bias, controls, 1000).head == "random"
    assert mlm_probe.judge(well, bias, controls, 1000).head == "frequencies"
    knowing = bias + 2 * np.eye(60)
    assert mlm_probe.judge(well, knowing, controls, 1000).head == "trained"
    assert mlm_probe.judge(well, knowing, controls, 1000) == mlm_probe.judge(well, knowing, controls, 1000)
    # Random heads that match tokens to contexts as well show that the body does it.
    assert mlm_probe.judge(well, knowing, [control + 2 * np.eye(60) for control in controls],
                           1000).head == "frequencies"
    for hopeless in (np.full((60, 60), np.nan), np.zeros((60, 60))):
        assert mlm_probe.judge(badly, hopeless, controls, 1000).head == "random"


def test_masks_are_single_words_that_do_not_repeat_too_often(tokenizer):
    rows, positions, truth = mlm_probe.choose_masks(tokenizer, pairs(100, 4), MAX_LENGTH)
    starts = tokenizer.word_starts()
    for row, position, token in zip(rows, positions, truth):
        assert row[position] == tokenizer.mask_id and starts[token] and token not in tokenizer.special_ids
        assert (row == tokenizer.mask_id).sum() == 1
        assert (row[0], row[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
        assert position + 1 == len(row) - 1 or starts[row[position + 1]]
    assert np.bincount(truth).max() <= 2
    with pytest.raises(BortError, match="--text"):
        mlm_probe.choose_masks(tokenizer, mlm_probe.SENTENCES[:2], MAX_LENGTH)


def test_the_built_in_sentences_suit_robertas_vocabulary(real_data):
    tokenizer = bort.load_tokenizer(real_data / "bpe")
    rows, positions, truth = mlm_probe.choose_masks(tokenizer, mlm_probe.SENTENCES, 512)
    assert len(rows) > 80 and len(set(truth.tolist())) > 60
    assert all(any(char.isalpha() for char in tokenizer.id_to_token(int(token))) for token in truth)


# ---- verify

def test_verify_passes_a_sound_model_and_fails_what_is_wrong(tokenizer, trained, tmp_path, capsys):
    bort.save(with_parameters(fresh(tokenizer), trained), tmp_path / "m", tokenizer)
    (tmp_path / "text").write_text("\n".join(pairs(60, 2)))
    command = ["verify", str(tmp_path / "m"), "--text", str(tmp_path / "text")]
    assert run_command(main, command) == 0
    printed = capsys.readouterr().out
    assert "the MLM head is trained" in printed and "FAILED" not in printed
    for name in ("checksum", "tied weights", "shapes", "finite values", "tokenizer", "fill-mask"):
        assert f"OK       {name}" in printed
    assert run_command(main, [*command, "--json"]) == 0
    assert {check["outcome"] for check in json.loads(capsys.readouterr().out)} == {"ok", "skipped"}

    rng = np.random.default_rng(0)
    random = {name: array if not name.startswith("decoder") else rng.normal(0, 0.2, array.shape)
              for name, array in trained.items()}
    bort.save(with_parameters(fresh(tokenizer), random), tmp_path / "random", tokenizer)
    assert run_command(main, ["verify", str(tmp_path / "random"), "--text", str(tmp_path / "text")]) == 1
    assert "behaves like a random one" in capsys.readouterr().out
    assert run_command(main, ["verify", str(tmp_path / "m"), "--released"]) == 1
    assert "not Bort's architecture" in capsys.readouterr().out
    assert run_command(main, ["verify", str(tmp_path / "none")]) == 2


def test_untrained_heads_fail_unless_they_are_known_to_be(tokenizer, tmp_path):
    bort.save(fresh(tokenizer), tmp_path / "fresh", tokenizer)
    assert outcomes(verify(tmp_path / "fresh"))["fill-mask"] == "failed"
    export_folder(tmp_path / "fresh", tmp_path / "hf")
    import_folder(tmp_path / "hf", tmp_path / "imported")
    assert outcomes(verify(tmp_path / "imported"))["fill-mask"] == "warning"
    model = Classifier(fresh(tokenizer), 2)
    model.initialize_head(0)
    bort.save(model, tmp_path / "classifier", tokenizer)
    assert outcomes(verify(tmp_path / "classifier"))["fill-mask"] == "warning"


def damage(folder, change):
    """Rewrite a folder's parameters through ``change`` without telling its config."""
    arrays = {name: np.array(array) for name, array in read_ndarrays(folder / "model.params").items()}
    change(arrays)
    write_ndarrays(folder / "model.params", arrays)


def test_damage_is_found(tmp_path):
    def nan(arrays):
        arrays["encoder.layer_norm.gamma"][3] = np.nan

    for name, change, failing in (("nan", nan, "finite values"),
                                  ("missing", lambda arrays: arrays.pop("decoder.0.bias"), "shapes"),
                                  ("extra", lambda arrays: arrays.update(more=np.zeros(3, "float32")),
                                   "shapes")):
        bort.save(tiny_bert(), tmp_path / name)
        damage(tmp_path / name, change)
        found = outcomes(verify(tmp_path / name))
        assert found["checksum"] == found[failing] == "failed"
    bort.save(tiny_bert(), tmp_path / "tied")
    damage(tmp_path / "tied",
           lambda arrays: arrays.update({"decoder.3.weight": arrays["word_embed.0.weight"] + 1}))
    assert run_command(main, ["verify", str(tmp_path / "tied")]) == 2


def test_the_tokenizer_must_be_the_models_own(tokenizer, tmp_path):
    bort.save(fresh(tokenizer), tmp_path / "m", tokenizer)
    other = train_sentencepiece(pairs(50, 7) + ["other words here"], 60)
    other.save(tmp_path / "other")
    assert outcomes(verify(tmp_path / "m", tokenizer=tmp_path / "other"))["tokenizer"] == "failed"
    bort.save(tiny_bert(), tmp_path / "small")
    found = verify(tmp_path / "small", tokenizer=tmp_path / "m")
    assert outcomes(found)["tokenizer"] == "failed" and outcomes(found)["fill-mask"] == "skipped"
    assert outcomes(verify(tmp_path / "small"))["tokenizer"] == "skipped"


def test_the_published_check(tmp_path, monkeypatch):
    model = tiny_bert(3)
    ids = (0, 5, 7, 2)
    states = model(mx.nd.array([ids], dtype="int32"), mx.nd.array([4])).asnumpy()[0, :3, :3]
    released_file(tmp_path / "bort.params", model)
    for name, value in (("BORT", model.architecture), ("ROBERTA_VOCAB_SIZE", VOCAB), ("RELEASED_IDS", ids),
                        ("RELEASED_STATES", states.round(4).tolist())):
        monkeypatch.setattr(inspection, name, value)
    monkeypatch.setattr(inspection, "find_default_tokenizer", lambda: None)
    found = verify(tmp_path / "bort.params", heads=2, released=True)
    assert outcomes(found)["released weights"] == "ok" and outcomes(found)["tied weights"] == "ok"
    assert next(check.detail for check in found if check.name == "tied weights") == "stored twice, equal"
    released_file(tmp_path / "other.params", tiny_bert(4))
    assert outcomes(verify(tmp_path / "other.params", heads=2))["released weights"] == "skipped"
    assert outcomes(verify(tmp_path / "other.params", heads=2, released=True))["released weights"] == "failed"
    # Half precision, in which the weights are published, is close enough.
    released_file(tmp_path / "half.params", model, "float16")
    distance = verify(tmp_path / "half.params", heads=2)
    assert outcomes(distance)["released weights"] in ("ok", "skipped")


# ---- inspect

def test_inspect_tells_what_a_folder_holds(tokenizer, tmp_path, capsys):
    model = Classifier(fresh(tokenizer), 2, "linear_extra")
    model.initialize_head(0)
    model.task_name, model.labels = "CoLA", ["0", "1"]
    bort.save(model, tmp_path / "m", tokenizer, extra={"training": {"lr": 0.1}})
    found = inspect(tmp_path / "m")
    counts = Architecture(1, 2, 32, 32).parameters(tokenizer.vocab_size, MAX_LENGTH)
    classifier = 32 * 32 + 32 + 2 * 32 + 2
    assert found["parameters"] == {"embeddings": counts["embeddings"], "encoder": counts["encoder"],
                                   "mlm_head": counts["mlm_head"], "classifier": classifier,
                                   "total": counts["total"] + classifier}
    assert found["architecture"] == "1,2,32,32" and found["kind"] == "model folder of a classifier"
    assert (found["checksum"], found["dtypes"]) == ("as recorded", ["float32"])
    assert found["mlm_head"] == "untrained"
    assert found["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert found["records"] == {"training": {"lr": 0.1}}
    assert found["head"]["kind"] == "linear_extra" and found["head"]["task"] == "CoLA"
    assert run_command(main, ["inspect", str(tmp_path / "m")]) == 0
    printed = capsys.readouterr().out
    assert "architecture         1,2,32,32" in printed and tokenizer.fingerprint in printed
    assert "CoLA" in printed
    assert run_command(main, ["inspect", str(tmp_path / "m"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    damage(tmp_path / "m", lambda arrays: arrays.update({"classifier.1.bias": np.ones(32, "float32")}))
    assert inspect(tmp_path / "m")["checksum"].startswith("NOT the recorded")


def test_inspect_takes_bare_files_and_hugging_faces_folders(tmp_path, capsys):
    released_file(tmp_path / "bort.params", tiny_bert(), "float16")
    found = inspect(tmp_path / "bort.params", architecture="2,2,8,12")
    assert (found["dtypes"], found["kind"], found["tokenizer"]) == (["float16"], "bare parameter file", None)
    assert found["checksum"] == "not recorded" and found["mlm_head"] == "trained"
    assert run_command(main, ["inspect", str(tmp_path / "bort.params")]) == 2
    assert "--architecture" in capsys.readouterr().err
    export_folder(tmp_path / "bort.params", tmp_path / "hf", heads=2)
    foreign = inspect_folder(tmp_path / "hf")
    assert foreign["kind"].startswith("Hugging Face folder (bert)")
    assert foreign["parameters"] == found["parameters"]
    assert run_command(main, ["inspect", str(tmp_path / "hf")]) == 0
    assert "python -m bort.huggingface import" in capsys.readouterr().out
    assert run_command(main, ["verify", str(tmp_path / "hf")]) == 2


@pytest.mark.parametrize("change", [{"vocab_size": None}, {"architecture": 3}, {"head": []}, {"tokenizer": 3},
                                    {"max_length": "x"}])
def test_broken_configs_are_errors_or_findings(tmp_path, change):
    bort.save(tiny_bert(), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, **change}))
    assert run_command(main, ["inspect", str(tmp_path / "m")]) in (0, 2)
    assert run_command(main, ["verify", str(tmp_path / "m")]) in (0, 1, 2)
