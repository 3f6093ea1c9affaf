"""Pre-training: equal steps however they are split, exact resume after kills, a teacher live or from disk."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bort
import run_pretrain
from bort.architecture import Architecture
from bort.backend import distributed
from bort.backend.mxnet import mx
from bort.checkpoints.model_folder import parameter_arrays, set_parameters
from bort.checkpoints.params_file import read_ndarrays, write_ndarrays
from bort.errors import BortError, run_command
from bort.files import read_json, read_jsonl, sha256_file, write_json, write_sealed
from bort.masked_lm.batches import BatchStream, make_batch, shuffled_token_batches
from bort.masked_lm.losses import LossWeights
from bort.masked_lm.masking import MaskingPolicy
from bort.masked_lm.teacher import LiveTeacher
from bort.models import Bert, Classifier, initialize
from bort.pretraining import inputs, teacher_cache
from bort.pretraining.loop import Corpus, Intervals, Pretraining, Settings, pretrain
from bort.text.shards.plan import PrepareOptions
from bort.text.shards.prepare import prepare
from bort.text.tokenizers.loading import load_tokenizer, train_sentencepiece
from bort.training.run_folder import RunFolder
from bort.training.step import Diverged
from tests.tiny import MAX_LENGTH, TINY, TINY_TEACHER, VOCAB, needs_horovod, tiny_bert, two_rank_environment

BOS, PAD, EOS, MASK, FIRST, FREQUENT = 0, 1, 2, 4, 5, 8


class MemoryCorpus:
    """Random tokens, of which more than half are the same one: something to learn in a few steps."""

    def __init__(self, count, seed, longest=MAX_LENGTH):
        rng = np.random.default_rng(seed)
        self.rows = []
        for length in rng.integers(4, longest - 1, count):
            tokens = np.where(rng.random(length) < 0.6, FREQUENT, rng.integers(FIRST, VOCAB, length))
            self.rows.append(np.array([BOS, *tokens, EOS], dtype=np.int32))
        self.lengths = np.array([len(row) for row in self.rows])
        self.fingerprint = f"memory-{count}-{seed}"

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def corpus(count=40, seed=0):
    policy = MaskingPolicy(VOCAB, MASK, [BOS, PAD, EOS, 3, MASK])
    return Corpus(MemoryCorpus(count, seed), MemoryCorpus(12, seed + 1), policy, PAD)


def student(dropout=0.0, seed=0, architecture=TINY):
    model = Bert(architecture, VOCAB, max_length=MAX_LENGTH, dropout=dropout)
    initialize(model, seed)
    return model


def train(folder, settings, model=None, teacher=None, resume=False, after_step=None, data=None, **intervals):
    model = model or student()
    settings = Settings(**{**dict(steps=6, batch_size=8, lr=3e-3, warmup_ratio=0.1), **settings})
    with RunFolder(folder, {}, resume) as run:
        results = pretrain(model, data or corpus(), settings, run, teacher,
                           Intervals(**{**dict(log=1, evaluate=100, checkpoint=5), **intervals}), after_step)
    return parameter_arrays(model), results


def assert_close(left, right, tolerance=2e-5):
    for name, value in left.items():
        np.testing.assert_allclose(right[name], value, atol=tolerance, err_msg=name)


def assert_identical(left, right):
    for name, value in left.items():
        np.testing.assert_array_equal(right[name], value, err_msg=name)


def metrics(folder):
    """Rows of a run without what the clock says."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "tokens_per_second")}
            for row in read_jsonl(Path(folder) / "metrics.jsonl")]


# Batches


def stream(size=1, rank=0, **settings):
    data = corpus(50)
    settings = {**dict(batch_size=4), **settings}
    return BatchStream(data.train, data.policy, PAD, MAX_LENGTH, seed=3, rank=rank, size=size, **settings)


def content(batches):
    """Every sequence of some batches with its masked inputs and labels."""
    found = {}
    for batch in batches:
        width = batch.token_ids.shape[1]
        for member, example in enumerate(batch.examples):
            mine = batch.rows // width == member
            length = int(batch.valid_length[member])
            found[int(example)] = (batch.token_ids[member, :length].tolist(),
                                   (batch.rows[mine] % width).tolist(), batch.labels[mine].tolist())
    return found


@pytest.mark.parametrize("settings", [dict(batch_size=4), dict(max_tokens=96)], ids=str)
def test_ranks_and_micro_batches_share_one_global_batch(settings):
    whole = stream(**{key: value * 4 for key, value in settings.items()})
    ranks = [stream(2, rank, accumulate=2, **settings) for rank in range(2)]
    for _ in range(8):  # into the second epoch
        expected = content(whole.next())
        parts = [part for rank in ranks for part in rank.next()]
        if settings.get("batch_size"):
            assert content(parts) == expected
        else:
            assert all(part.token_ids.size <= 96 for part in parts)


def test_an_epoch_has_every_sequence_once_and_fresh_masks():
    batches = stream()
    epochs = [content([part for _ in range(batches.steps_per_epoch()) for part in batches.next()])
              for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({json.dumps(epoch) for epoch in epochs}) == 3
    tokens = {json.dumps(sorted(epoch.items())) for epoch in epochs}
    assert len(tokens) == 3  # sorted, so it is the masks that differ
    repeating = stream(mask_passes=2)
    epochs = [content([part for _ in range(repeating.steps_per_epoch()) for part in repeating.next()])
              for _ in range(3)]
    assert sorted(epochs[0].items()) == sorted(epochs[2].items()) != sorted(epochs[1].items())
    assert list(epochs[0]) != list(epochs[2])
    groups = shuffled_token_batches(np.arange(1, 60), 64, 2, np.random.default_rng(0))
    assert sorted(np.concatenate(groups)) == list(range(59))


def test_a_mask_seed_decides_the_masks_alone():
    def masks(**settings):
        data = corpus(50)
        batches = BatchStream(data.train, data.policy, PAD, MAX_LENGTH, **{**dict(batch_size=4), **settings})
        return content([part for _ in range(batches.steps_per_epoch()) for part in batches.next()])

    three, four, same = masks(seed=3), masks(seed=4, mask_seed=3), masks(seed=3, mask_seed=3)
    assert sorted(three.items()) == sorted(four.items()) and list(three) != list(four)
    assert same == three and list(same) == list(three)
    assert sorted(masks(seed=4).items()) != sorted(four.items())


def test_labels_are_the_tokens_that_were_there():
    data = corpus()
    batch = make_batch(data.train, np.array([3, 7, 20]), data.policy, 1, 2, PAD, MAX_LENGTH)
    original = [data.train[index] for index in (3, 7, 20)]
    width = batch.token_ids.shape[1]
    assert [original[row // width][row % width] for row in batch.rows] == batch.labels.tolist()
    assert set(batch.labels).isdisjoint({BOS, EOS, PAD, MASK}) and batch.tokens == sum(map(len, original))
    assert (batch.token_ids.ravel()[batch.rows] == MASK).any()


@pytest.mark.parametrize("longest, message", [(MAX_LENGTH + 9, "--max-length 24"), (0, "no sequences")])
def test_a_corpus_that_does_not_fit_is_refused(longest, message):
    data = MemoryCorpus(30 if longest else 0, 0, longest or 10)
    with pytest.raises(BortError, match=message):
        BatchStream(data, corpus().policy, PAD, MAX_LENGTH, 0)


# Training


def test_accumulation_equals_the_large_batch(tmp_path):
    teacher = LiveTeacher(tiny_bert(3, TINY_TEACHER), 2.0)
    loss = LossWeights(0.4, 0.6)
    results = [train(tmp_path / str(batch), dict(batch_size=batch, accumulate=12 // batch, loss=loss),
                     teacher=teacher)[0] for batch in (12, 4, 1)]
    assert_close(results[0], results[1])
    assert_close(results[0], results[2])
    assert np.abs(results[0]["decoder.0.weight"]
                  - parameter_arrays(student())["decoder.0.weight"]).max() > 1e-3
    rows = [metrics(tmp_path / name) for name in ("12", "4")]
    for left, right in zip(*rows):
        assert left == pytest.approx(right, rel=1e-4)
    # 40 sequences: one batch of each epoch has 4 of them, so that some micro-batches of 1 have nothing at
    # all.
    assert [row["epoch"] for row in rows[0] if "epoch" in row] == [0, 0, 0, 0, 1, 1]


def test_both_methods_learn(tmp_path):
    small = Architecture(1, 2, 32, 32)
    settings = dict(steps=40, batch_size=16, lr=1e-2, warmup_ratio=0.1)
    data = corpus(200)
    teacher = student(seed=1, architecture=small)
    _, plain = train(tmp_path / "mlm", settings, teacher, data=data, log=10, evaluate=50)
    first = metrics(tmp_path / "mlm")[0]
    assert plain["eval_mlm_loss"] < first["eval_mlm_loss"] - 0.8
    assert plain["eval_mlm_accuracy"] > first["eval_mlm_accuracy"] + 0.2
    settings["loss"] = LossWeights(0.0, 1.0)
    _, distilled = train(tmp_path / "kd", settings, student(seed=2, architecture=small),
                         LiveTeacher(teacher, 2.0), data=data, log=10, evaluate=50)
    # Nothing but the teacher told this student which tokens were there.
    assert distilled["eval_mlm_accuracy"] > first["eval_mlm_accuracy"] + 0.2
    assert plain["tokens"] > 40 * 16 * 4 and plain["steps"] == 40 and plain["skipped"] == 0


def test_a_run_leaves_models_curves_and_metrics(tmp_path):
    arrays, results = train(tmp_path / "run", dict(steps=6), evaluate=2, teacher=LiveTeacher(tiny_bert(3),
                                                                                             2.0),
                            tensorboard=False)
    assert_identical(arrays, parameter_arrays(bort.load(tmp_path / "run" / "model")))
    rows = metrics(tmp_path / "run")
    evaluations = {row["step"]: row["eval_mlm_accuracy"] for row in rows if "eval_mlm_accuracy" in row}
    assert list(evaluations) == [0, 2, 4, 6]
    assert results["best_eval_mlm_accuracy"] == max(evaluations.values())
    assert evaluations[results["best_step"]] == max(evaluations.values())
    best = bort.load(tmp_path / "run" / "best")
    again = Pretraining(best, corpus(), Settings()).evaluate(0)
    assert again["eval_mlm_accuracy"] == results["best_eval_mlm_accuracy"]
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == list(range(1, 7))
    for row in training:
        assert row["loss"] == pytest.approx(row["mlm_loss"]) and row["kd_loss"] > 0 and row["tokens"] > 0
    assert (tmp_path / "run" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["pretraining"]["step"] == 6
    assert not (tmp_path / "run" / "checkpoints").exists() and (tmp_path / "run" / "results.json").is_file()


def test_tensorboard_events(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    train(tmp_path / "run", dict(steps=2), tensorboard=True)
    (events,) = (tmp_path / "run" / "events").iterdir()
    assert b"mlm_accuracy" in events.read_bytes()
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(BortError, match=r"pip install 'bort\[tensorboard\]'"):
        train(tmp_path / "other", dict(steps=2), tensorboard=True)


class Interrupted(Exception):
    """What a kill looks like from inside one process."""


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_is_exact(tmp_path, accumulate):
    settings = dict(steps=14, batch_size=8, accumulate=accumulate, loss=LossWeights(0.4, 0.6))

    def run(name, **arguments):
        return train(tmp_path / name, settings, student(dropout=0.2), LiveTeacher(tiny_bert(3, TINY_TEACHER),
                                                                                  2.0), evaluate=4, log=3,
                     **arguments)

    expected, results = run("whole")
    killed = {3, 8, 13}  # before the first checkpoint, and after each of the others

    def kill(step):
        if step in killed:
            killed.remove(step)
            raise Interrupted

    for _ in range(3):
        with pytest.raises(Interrupted):
            run("killed", resume=True, after_step=kill)
    arrays, again = run("killed", resume=True, after_step=kill)
    assert_identical(expected, arrays)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
    for name in ("eval_mlm_loss", "best_step", "tokens", "steps"):
        assert results[name] == again[name]
    assert_identical(parameter_arrays(bort.load(tmp_path / "whole" / "best")),
                     parameter_arrays(bort.load(tmp_path / "killed" / "best")))


class BrokenTeacher(LiveTeacher):
    """Answers with what is no number at the given steps."""

    def __init__(self, bad):
        super().__init__(tiny_bert(3, TINY_TEACHER), 2.0)
        self.bad, self.step = bad, 0

    def targets(self, batch):
        self.step += 1
        answer = super().targets(batch)
        return (lambda start, stop: answer(start, stop) * float("nan")) if self.step in self.bad else answer


def test_steps_without_finite_losses_change_nothing_and_are_counted(tmp_path):
    seen = []
    model = student()

    def look(step):
        seen.append(parameter_arrays(model))

    loss = LossWeights(0.4, 0.6)
    _, results = train(tmp_path / "run", dict(steps=6, loss=loss, max_skipped=3), model,
                       BrokenTeacher({3, 4}), after_step=look)
    assert results["skipped"] == 2
    assert_identical(seen[1], seen[2])
    assert_identical(seen[1], seen[3])
    assert (seen[3]["decoder.0.weight"] != seen[4]["decoder.0.weight"]).any()
    assert metrics(tmp_path / "run")[3]["gradient_norm"] is None
    with pytest.raises(Diverged, match="3 steps in a row.*--lr"):
        train(tmp_path / "stopped", dict(steps=20, loss=loss, max_skipped=3), student(),
              BrokenTeacher(range(7, 20)))
    with RunFolder(tmp_path / "stopped", {}, resume=True) as run:
        assert run.latest().step == 5
    # The same folder goes on once the cause is gone.
    fine = LiveTeacher(tiny_bert(3, TINY_TEACHER), 2.0)
    again, _ = train(tmp_path / "stopped", dict(steps=20, loss=loss, max_skipped=3), student(), fine,
                     resume=True)
    assert_identical(train(tmp_path / "good", dict(steps=20, loss=loss, max_skipped=3), student(), fine)[0],
                     again)


def test_a_skipped_step_before_a_checkpoint_or_alone_in_a_window_leaves_nulls(tmp_path):
    settings = dict(steps=6, loss=LossWeights(0.4, 0.6))
    _, results = train(tmp_path / "run", settings, teacher=BrokenTeacher({2, 3, 5}), log=1, checkpoint=2)
    assert results["skipped"] == 3 and results["steps"] == 6
    rows = [row for row in metrics(tmp_path / "run") if "loss" in row]
    names = ("mlm_loss", "kd_loss", "mlm_accuracy", "loss")
    assert [[row[name] is None for name in names] for row in rows] == [[row["step"] in (2, 3, 5)] * 4
                                                                       for row in rows]
    # The others of a window are averaged as if the skipped ones had not been there.
    train(tmp_path / "window", settings, teacher=BrokenTeacher({2, 3, 5}), log=3, checkpoint=2)
    first = [row for row in metrics(tmp_path / "window") if "loss" in row][0]
    assert [first[name] for name in names] == [rows[0][name] for name in names]
    train(tmp_path / "last", settings, teacher=BrokenTeacher({5, 6}), log=2, checkpoint=5)
    assert [row for row in metrics(tmp_path / "last") if "loss" in row][-1]["kd_loss"] is None


def test_divergence_says_how_to_go_on(tmp_path):
    with pytest.raises(Diverged, match=f"--init {tmp_path}/run/best --output NEW --lr"):
        train(tmp_path / "run", dict(loss=LossWeights(0.4, 0.6), max_skipped=1), teacher=BrokenTeacher({3}))
    assert (tmp_path / "run" / "best" / "config.json").is_file()


def test_curves_are_drawn_while_a_run_goes_on_and_after_its_results_are_safe(tmp_path, monkeypatch):
    drawn = []

    def look(step):
        drawn.append((tmp_path / "run" / "curves.png").is_file())

    train(tmp_path / "run", dict(steps=4), evaluate=2, after_step=look)
    assert drawn == [False] * 4  # not even a minute
    drawn.clear()
    monkeypatch.setattr(bort.pretraining.loop, "SECONDS_BETWEEN_DRAWINGS", 0)
    (tmp_path / "run").rename(tmp_path / "first")
    train(tmp_path / "run", dict(steps=4), evaluate=2, after_step=look)
    assert drawn == [True] * 4
    monkeypatch.undo()

    def full(_):
        raise BortError("No space left")

    monkeypatch.setattr(bort.pretraining.loop, "draw_curves", full)
    with pytest.raises(BortError, match="No space left"):
        train(tmp_path / "full", dict(steps=2))
    assert (tmp_path / "full" / "results.json").is_file() and bort.load(tmp_path / "full" / "model")


def test_cores_are_counted_whatever_the_environment_says_of_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert train(tmp_path / "run", dict(steps=1))[1]["cores"] == 3


@pytest.mark.parametrize("wrong, option", [
    (dict(log=0), "--log-interval"), (dict(evaluate=0), "--eval-interval"), (dict(keep=-1), "--keep"),
    (dict(checkpoint=0), "--checkpoint-interval"), (dict(evaluation_sequences=-5), "--eval-sequences")])
def test_impossible_intervals_are_refused(wrong, option):
    with pytest.raises(BortError, match=f"{option} must be at least"):
        Intervals(**wrong)


@pytest.mark.parametrize("wrong, message", [(dict(steps=0), "--steps"), (dict(batch_size=0), "--batch-size"),
                                            (dict(clip=-1.0), "--clip"),
                                            (dict(dtype="bfloat16"), "float32 or float16"),
                                            (dict(schedule="cosine"), "cosine"), (dict(lr=0.0), "rate")])
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(BortError, match=message):
        Settings(**wrong)


@pytest.mark.skipif(bort.backend.mxnet.mx.context.num_gpus() > 0, reason="there is a GPU")
def test_float16_needs_a_gpu():
    with pytest.raises(BortError, match="GPU"):
        Settings(dtype="float16")


# The teacher's answers on disk


FACTS = dict(seed=3, passes=2, temperature=2.0, teacher="t", data="d")


def build(folder, top_k, data, **facts):
    teacher = LiveTeacher(tiny_bert(3, TINY_TEACHER), 2.0)
    return teacher_cache.build_cache(folder, {**FACTS, "top_k": top_k, **facts}, teacher, data.train,
                                     data.policy, PAD, MAX_LENGTH, block=16), teacher


def test_a_cache_of_all_tokens_is_the_teacher(tmp_path):
    data = corpus()
    path, live = build(tmp_path, VOCAB, data)
    cached = teacher_cache.CachedTeacher(path)
    for mask_epoch in (0, 1):
        batch = make_batch(data.train, np.array([39, 2, 17, 16, 15]), data.policy, 3, mask_epoch, PAD,
                           MAX_LENGTH)
        expected = live.targets(batch)(0, len(batch.rows)).asnumpy()
        found = cached.targets(batch)
        np.testing.assert_allclose(found(0, len(batch.rows)).asnumpy(), expected, rtol=6e-3, atol=1e-6)
        np.testing.assert_allclose(found(2, 5).asnumpy(), expected[2:5], rtol=6e-3, atol=1e-6)
    assert cached.error["mean_kl_nats"] < 1e-5
    settings = dict(mask_passes=2, seed=3, loss=LossWeights(0.3, 0.7))
    for name, teacher in (("live", live), ("cached", cached)):
        train(tmp_path / name, settings, teacher=teacher)
    for left, right in zip(metrics(tmp_path / "live"), metrics(tmp_path / "cached")):
        assert left == pytest.approx(right, rel=1e-2)


def test_the_error_of_a_small_cache_is_the_one_it_states(tmp_path):
    data = corpus()
    path, live = build(tmp_path, 4, data, passes=1)
    cached = teacher_cache.CachedTeacher(path)
    batch = make_batch(data.train, np.arange(40), data.policy, 3, 0, PAD, MAX_LENGTH)
    p = live.targets(batch)(0, len(batch.rows)).asnumpy().astype("float64")
    q = cached.targets(batch)(0, len(batch.rows)).asnumpy().astype("float64")
    np.testing.assert_allclose(q.sum(-1), 1, atol=1e-5)
    # Stable: two logarithms may be the same one in float16, and NumPy's default order of equals depends on
    # the processor.
    assert (np.argsort(-p)[:, :4] == np.argsort(-q, kind="stable")[:, :4]).all()
    divergence = (p * np.log(p / q)).sum(-1)
    assert cached.error["positions"] == len(batch.rows)
    assert cached.error["mean_kl_nats"] == pytest.approx(divergence.mean(), rel=1e-3)
    assert cached.error["max_kl_nats"] == pytest.approx(divergence.max(), rel=1e-3)
    assert cached.error["mean_mass_outside"] == pytest.approx(1 - np.sort(p)[:, -4:].sum(-1).mean(), rel=1e-3)
    assert 0.001 < cached.error["mean_kl_nats"] < 1


def test_a_cache_is_computed_once_goes_on_and_notices_damage(tmp_path, monkeypatch):
    data = corpus()
    path, _ = build(tmp_path, 4, data)
    index = (path / "index.json").read_bytes()
    asked = []
    monkeypatch.setattr(LiveTeacher, "targets", lambda *_: asked.append(1) or pytest.fail("asked again"))
    assert build(tmp_path, 4, data)[0] == path and not asked
    monkeypatch.undo()
    block = path / "pass-0001" / "block-000001.params"
    (path / "index.json").unlink()
    block.write_bytes(block.read_bytes()[:-9])  # as if killed here: only this block is computed again
    before = {name: name.stat().st_mtime_ns for name in path.rglob("*.params") if name != block}
    build(tmp_path, 4, data)
    assert {name: name.stat().st_mtime_ns for name in before} == before
    assert (path / "index.json").read_bytes() == index
    damaged = bytearray(block.read_bytes())
    damaged[200] ^= 1
    block.write_bytes(damaged)
    cached = teacher_cache.CachedTeacher(path)
    batch = make_batch(data.train, np.array([17]), data.policy, 3, 1, PAD, MAX_LENGTH)
    with pytest.raises(BortError, match="block-000001.params: its checksum"):
        cached.targets(batch)
    other = make_batch(data.train, np.array([0]), data.policy, 3, 7, PAD, MAX_LENGTH)
    with pytest.raises(BortError):
        cached.targets(other)
    assert build(tmp_path, 5, data)[0] != path != build(tmp_path, 4, data, seed=4)[0]


def mutations(path):
    """Ways to spoil a cache, each with a word of the message; the digests fit, as after a faulty disk cache or a
    hand that meant well."""
    block = "pass-0000/block-000000.params"

    def arrays(edit):
        def mutate():
            content = {name: np.array(array) for name, array in read_ndarrays(path / block).items()}
            edit(content)
            write_ndarrays(path / block, content)
            index = read_json(path / "index.json")
            index["blocks"][block]["sha256"] = sha256_file(path / block)
            write_sealed(path / "index.json", index)
        return mutate

    def index(edit, sealed=True):
        def mutate():
            content = read_json(path / "index.json")
            edit(content)
            (write_sealed if sealed else write_json)(path / "index.json", content)
        return mutate

    def ids(value):
        def edit(content):
            content["ids"].view("<u2")[0, 0] = value
        return edit

    return [(arrays(ids(VOCAB)), "beyond the vocabulary"), (arrays(ids(65535)), "beyond the vocabulary"),
            (arrays(lambda content: content["counts"].__setitem__(0, 1 << 30)), "its logs are"),
            (arrays(lambda content: content["logs"].__setitem__((0, 0), np.nan)), "probabilities"),
            (arrays(lambda content: content["logs"].__setitem__((0, 0), 9)), "probabilities"),
            (arrays(lambda content: content["outside"].__setitem__(0, np.inf)), "probabilities"),
            (arrays(lambda content: content.pop("outside")), "holds the arrays"),
            (arrays(lambda content: content.update(logs=content["logs"].astype("float32"))), "its logs are"),
            (arrays(lambda content: content.update(counts=content["counts"][1:])), "its "),
            (index(lambda content: content["facts"].update(top_k=5)), "named after"),
            (index(lambda content: content.update(vocab_size=1 << 40)), "vocab_size"),
            (index(lambda content: content.update(block=0)), "block"),
            (index(lambda content: content.update(block=None)), "block"),
            (index(lambda content: content.update(blocks=[])), "blocks"),
            (index(lambda content: content["blocks"][block].pop("sha256")), "blocks"),
            (index(lambda content: content["error"].update(mean_kl_nats="x")), "error"),
            (index(lambda content: content.update(examples=39), sealed=False), "digest")]


@pytest.mark.parametrize("number", range(17))
def test_a_spoilt_cache_is_an_error_and_nothing_worse(tmp_path, number):
    data = corpus()
    path, _ = build(tmp_path, 4, data)
    mutate, message = mutations(path)[number]
    mutate()
    batch = make_batch(data.train, np.arange(16), data.policy, 3, 0, PAD, MAX_LENGTH)
    with pytest.raises(BortError, match=message):
        teacher_cache.CachedTeacher(path).targets(batch)(0, len(batch.rows))
    assert len(mutations(path)) == 17


def test_a_cache_of_an_earlier_version_without_digests_is_read(tmp_path):
    data = corpus()
    path, _ = build(tmp_path, 4, data)
    for name in path.rglob("*.json"):
        write_json(name, {key: value for key, value in read_json(name).items() if key != "digest"})
    batch = make_batch(data.train, np.arange(16), data.policy, 3, 0, PAD, MAX_LENGTH)
    teacher_cache.CachedTeacher(path).targets(batch)(0, len(batch.rows))


# From the command line, on a corpus in memory


class Tokenizer:
    """As much of a tokenizer as model folders and teachers are checked with."""

    kind, fingerprint, vocab_size = "sentencepiece", "f" * 64, VOCAB

    def save(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """``command(output, *arguments)`` runs the runner; its exit code."""
    data = corpus()
    data.tokenizer = Tokenizer()
    monkeypatch.setattr(inputs, "read_corpus", lambda *_: (data, {"data": data.train.fingerprint}))

    def run(output, *arguments):
        return run_command(run_pretrain.main, ["--data", str(tmp_path), "--output", str(tmp_path / output),
                                               "--max-length", str(MAX_LENGTH), "--log-interval", "2",
                                               "--batch-size", "8", *map(str, arguments)])
    return run


def test_the_runner_trains_a_teacher_and_distils_it(tmp_path, command, capsys):
    assert command("teacher", "--architecture", "3,4,16,20", "--steps", 4, "--method", "mlm") == 0
    teacher = tmp_path / "teacher" / "model"
    kd = ("kd", "--architecture", "2,2,8,12", "--teacher", teacher, "--steps", 6, "--checkpoint-interval", 2)
    assert command(*kd) == 0
    assert "evaluation MLM loss" in capsys.readouterr().out
    assert command(*kd) == 2 and "--resume" in capsys.readouterr().err
    assert command(*kd, "--resume") == 0 and "6 steps" in capsys.readouterr().out
    assert command(*kd[:-3], 8, "--resume") == 2 and "steps was 6 and is 8" in capsys.readouterr().err
    assert command("cached", *kd[1:], "--cache-teacher", 8) == 0
    assert "teacher cache:" in capsys.readouterr().out
    assert any((tmp_path / "teacher-cache").rglob("index.json"))
    (teacher / "model.params").unlink()  # a second student does not even need the teacher's parameters
    assert command("second", "--architecture", "1,2,8,12", *kd[3:], "--cache-teacher", 8) == 0
    assert command("more", "--init", tmp_path / "kd" / "model", "--steps", 2, "--method", "mlm") == 0


def test_what_decides_the_best_step_cannot_change_and_lost_curves_come_back(tmp_path, command, capsys):
    arguments = ("run", "--architecture", "1,2,8,12", "--steps", 2, "--eval-sequences", 5)
    assert command(*arguments, "--eval-interval", 1) == 0
    assert command(*arguments, "--eval-interval", 2, "--resume") == 2
    assert "eval_interval was 1 and is 2" in capsys.readouterr().err
    assert command(*arguments[:-1], 6, "--eval-interval", 1, "--resume") == 2
    assert "eval_sequences was 5 and is 6" in capsys.readouterr().err
    (tmp_path / "run" / "curves.png").unlink()
    assert command(*arguments, "--eval-interval", 1, "--log-interval", 1, "--resume") == 0
    assert (tmp_path / "run" / "curves.png").is_file()


def test_a_head_is_trained_on_a_body_that_stays_as_it_is(tmp_path, command):
    bort.save(student(dropout=0.1), tmp_path / "bare", Tokenizer())
    arguments = ("--init", tmp_path / "bare", "--method", "mlm", "--steps", 6, "--lr", "1e-2", "--train", "head",
                 "--checkpoint-interval", 2)
    assert command("head", *arguments) == 0
    before, after = (parameter_arrays(bort.load(path)) for path in (tmp_path / "bare", tmp_path / "head/model"))
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {"decoder.0.weight", "decoder.0.bias", "decoder.2.gamma", "decoder.2.beta", "decoder.3.bias"}
    first, *_, last = [row["eval_mlm_loss"] for row in metrics(tmp_path / "head") if "eval_mlm_loss" in row]
    assert last < first
    # Accumulated micro-batches are one batch, here too.
    assert command("parts", *arguments, "--batch-size", 2, "--accumulate", 4) == 0
    assert_close(after, parameter_arrays(bort.load(tmp_path / "parts" / "model")))
    assert command("all", "--init", tmp_path / "head" / "model", "--method", "mlm", "--steps", 2) == 0


def test_a_grid_trains_every_point_on_a_subset_and_goes_on(tmp_path, command, capsys):
    arguments = ("--architecture", "1,2,8,12", "--method", "mlm", "--steps", 2, "--subset", 9, "--grid",
                 "lr=1e-3,1e-2", "warmup-ratio=0.1,0.5")
    assert command("grid", *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    best = json.loads((tmp_path / "grid" / "grid.json").read_text())[0]
    assert lines[-1] == f"best: --lr {best['lr']:g} --warmup-ratio {best['warmup-ratio']:g}"
    folders = sorted(path.name for path in (tmp_path / "grid").iterdir() if path.is_dir())
    assert folders == [f"lr-{lr},warmup-ratio-{w}" for lr in ("0.001", "0.01") for w in ("0.1", "0.5")]
    assert all(row["epoch"] <= 1 for row in metrics(tmp_path / "grid" / folders[0]) if "epoch" in row)
    config = json.loads((tmp_path / "grid" / folders[0] / "config.json").read_text())["settings"]
    assert config["subset"] == 9 and config["lr"] == 1e-3
    assert command("grid", *arguments, "--resume") == 0 and capsys.readouterr().out.splitlines()[-1] == lines[-1]
    assert command("other", *arguments[:-2], "lr=nan") == 2 and "rate above 0" in capsys.readouterr().err


def test_everything_is_on_the_ranks_own_device(tmp_path, command, monkeypatch):
    """A second CPU device is to MXNet as foreign to the first as a GPU is."""
    monkeypatch.setattr(distributed, "context", lambda: mx.cpu(1))
    assert command("teacher", "--architecture", "1,2,8,12", "--steps", 2) == 0
    kd = ("--init", tmp_path / "teacher" / "model", "--teacher", tmp_path / "teacher" / "model", "--steps", 3,
          "--checkpoint-interval", 2)
    assert command("kd", *kd) == 0
    assert command("cached", *kd, "--cache-teacher", 4) == 0


def test_students_of_other_seeds_share_a_cache(tmp_path, command, capsys):
    bort.save(tiny_bert(3, TINY_TEACHER), tmp_path / "teacher", Tokenizer())
    kd = ("--architecture", "1,2,8,12", "--teacher", tmp_path / "teacher", "--steps", 2, "--cache-teacher", 4)
    assert command("one", *kd, "--seed", 1) == 0
    (tmp_path / "teacher" / "model.params").unlink()
    assert command("two", *kd, "--seed", 2) == 0
    # other masks ask the teacher, who is gone
    assert command("other", *kd, "--seed", 2, "--mask-seed", 2) == 2
    first, second = (metrics(tmp_path / name)[0]["eval_mlm_loss"] for name in ("one", "two"))
    assert first != second
    capsys.readouterr()
    assert command("one", *kd, "--seed", 1, "--mask-seed", 7, "--resume") == 2
    assert "mask_seed was 0 and is 7" in capsys.readouterr().err


def test_the_network_of_a_bare_teacher_must_be_told_and_is_remembered(tmp_path, command, capsys):
    bort.save(tiny_bert(3, TINY_TEACHER), tmp_path / "folder")
    bare = shutil.copy(tmp_path / "folder" / "model.params", tmp_path / "bare.params")
    kd = ("--architecture", "1,2,8,12", "--teacher", bare, "--steps", 2, "--cache-teacher", 4)
    assert command("kd", *kd) == 2
    assert "--teacher-architecture D,A,H,I" in capsys.readouterr().err
    assert command("kd", *kd, "--teacher-architecture", "3,4,16,20") == 0
    assert command("kd", *kd, "--teacher-architecture", "3,2,16,20", "--resume") == 2
    assert "teacher_architecture was '3,4,16,20' and is '3,2,16,20'" in capsys.readouterr().err
    assert command("kd", *kd, "--teacher-architecture", "3,4,16,20", "--max-length", 30, "--resume") == 2
    assert "max_length was 24 and is 30" in capsys.readouterr().err
    # The same numbers with other heads are other answers.
    assert command("heads", *kd, "--teacher-architecture", "3,2,16,20") == 0
    assert len(list((tmp_path / "teacher-cache").rglob("index.json"))) == 2


def test_a_command_that_failed_before_it_began_does_not_block_the_corrected_one(tmp_path, command, capsys):
    bort.save(tiny_bert(3, TINY_TEACHER), tmp_path / "folder")
    bare = shutil.copy(tmp_path / "folder" / "model.params", tmp_path / "bare.params")
    kd = ("run", "--architecture", "1,2,8,12", "--teacher", bare, "--steps", 2)
    assert command(*kd) == 2
    assert command(*kd, "--teacher-architecture", "3,4,16,20") == 0
    assert command(*kd, "--teacher-architecture", "3,4,16,20") == 2 and "--resume" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, message",
                         [(("--architecture", "2,2,8,12", "--dropout", "1"), "--dropout must be"),
                          (("--architecture", "2,2,8,12", "--dropout", "nan"), "--dropout must be"),
                          (("--architecture", "2,2,8,12", "--max-length", "0"), "--max-length must be"),
                          (("--architecture", "2,2,8,12", "--log-interval", "0"), "--log-interval must be"),
                          (("--architecture", "2,2,8,12", "--mask-seed", "-1"), "--mask-seed must"),
                          (("--architecture", "2,2,8,12", "--method", "kd"), "needs --teacher"),
                          ((), "--architecture or --init"),
                          (("--architecture", "2,2,8,12", "--cache-teacher", 5), "--method kd"),
                          (("--architecture", "2,3,8,12"), "not divisible"),
                          (("--architecture", "2,2,8,12", "--lr", "nan"), "rate")])
def test_the_runner_refuses_what_cannot_be(command, capsys, arguments, message):
    assert command("run", *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_papers_batch_is_the_default_and_divides_over_the_ranks():
    of = inputs.batches_of_step
    assert of(None, None, 0, None, ranks=4) == (8, 32)  # 8 sequences x 32 micro-batches x 4 ranks
    assert of(128, None, 0, 1024, ranks=8) == (128, 1)
    assert of(32, None, 0, None, ranks=2) == (32, 1) and of(None, 3, 0, None, ranks=2) == (8, 3)
    assert of(None, None, 4096, None, ranks=2) == (8, 1)
    # Where nobody asked for a number, one that the ranks can share is taken; 43 * 24 = 1032, 18 * 56 = 1008.
    assert [of(None, None, 0, None, ranks=ranks) for ranks in (3, 7, 1000)] == [(8, 43), (8, 18), (8, 1)]
    with pytest.raises(BortError, match="not a multiple of 24"):
        of(None, None, 0, 1024, ranks=3)
    for given, message in (((96, None, 0, 1024), "not a multiple of 192"),
                           ((0, None, 0, 64), "not a multiple"), ((8, 2, 0, 64), "leave out"),
                           ((None, None, 512, 64), "leave out")):
        with pytest.raises(BortError, match=message):
            of(*given, ranks=2)


def test_a_teacher_that_speaks_of_other_tokens_is_refused(tmp_path, command, capsys):
    arguments = ("run", "--architecture", "2,2,8,12", "--teacher", tmp_path / "teacher")
    bort.save(tiny_bert(0, vocab_size=VOCAB + 1), tmp_path / "teacher")
    assert command(*arguments) == 2
    assert "41 tokens, the student's 40" in capsys.readouterr().err
    other = Tokenizer()
    other.fingerprint = "0" * 64
    bort.save(tiny_bert(0), tmp_path / "teacher", other)
    assert command(*arguments) == 2
    assert "its tokenizer is not the corpus's" in capsys.readouterr().err


def test_a_teacher_without_a_trained_head_is_refused_with_the_command_that_trains_one(tmp_path, command, capsys):
    kd = ("--architecture", "2,2,8,12", "--teacher", tmp_path / "teacher", "--steps", 2)
    bort.save(student(), tmp_path / "teacher", Tokenizer())
    for extra in ((), ("--cache-teacher", 4)):
        assert command("run", *kd, *extra) == 2
        error = capsys.readouterr().err
        assert "never trained" in error
        assert f"run_pretrain.py --init {tmp_path / 'teacher'} --method mlm" in error
    body = tiny_bert(3, TINY_TEACHER)
    head = Classifier(body, 2)
    head.initialize_head(0)
    bort.save(head, tmp_path / "teacher", Tokenizer())
    assert command("run", *kd) == 2 and "fine-tuned as a classifier" in capsys.readouterr().err
    # The remedy works.
    bort.save(student(), tmp_path / "teacher", Tokenizer())
    assert command("head", "--init", tmp_path / "teacher", "--method", "mlm", "--steps", 2) == 0
    assert command("run", *kd[:2], "--teacher", tmp_path / "head" / "model", "--steps", 2) == 0


def test_more_rows_than_ids_are_ordinary_in_teachers_and_students(tmp_path, command, capsys):
    arguments = ("--steps", 3, "--teacher")
    plain, padded = tiny_bert(3), tiny_bert(3, vocab_size=VOCAB + 8)
    arrays = parameter_arrays(padded)
    for name, array in parameter_arrays(plain).items():  # the same network with eight more rows
        arrays[name] = np.concatenate([array, arrays[name][VOCAB:]]) if len(arrays[name]) > len(array) else array
    set_parameters(padded, arrays, "")
    bort.save(plain, tmp_path / "plain", Tokenizer())
    bort.save(padded, tmp_path / "padded", Tokenizer())
    for name, extra in (("live", ()), ("cached", ("--cache-teacher", 6))):
        for teacher in ("plain", "padded"):
            assert command(f"{name}-{teacher}", "--architecture", "2,2,8,12", *arguments, tmp_path / teacher,
                           *extra) == 0
        # What a teacher says of rows that stand for no token is not asked.
        rows = [metrics(tmp_path / f"{name}-{teacher}") for teacher in ("plain", "padded")]
        for left, right in zip(*rows):
            assert left == pytest.approx(right, rel=1e-5)
        assert command(f"{name}-init", "--init", tmp_path / "padded", *arguments, tmp_path / "plain", *extra) == 0
    assert bort.load(tmp_path / "live-init" / "model").vocab_size == VOCAB + 8


# On real shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Some hundred sentences of twenty words, prepared with a vocabulary of 60."""
    folder = tmp_path_factory.mktemp("corpus")
    words = "the a small large old new dog cat house tree river sings runs sleeps sees near under over and but".split()
    rng = np.random.default_rng(3)
    lines = [" ".join(rng.choice(words, rng.integers(6, 12))).capitalize() + "." for _ in range(200)]
    (folder / "text.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    train_sentencepiece(lines, 60).save(folder / "tokenizer")
    prepare(PrepareOptions(inputs=[folder / "text.txt"], output=folder / "shards",
                           tokenizer=folder / "tokenizer", max_length=MAX_LENGTH))
    return folder / "shards"


def on_shards(shards, output, *arguments):
    return run_command(run_pretrain.main, ["--data", str(shards), "--output", str(output), "--architecture",
                                           "1,2,8,12", "--max-length", str(MAX_LENGTH), "--log-interval", "1",
                                           "--lr", "0.01", *map(str, arguments)])


def test_the_runner_reads_shards_masks_whole_words_and_bounds_tokens(tmp_path, shards, capsys):
    seen = []
    original = BatchStream.next

    def look(stream):
        batches = original(stream)
        seen.extend(batches)
        return batches

    options = ("--max-tokens", 96, "--whole-words", "--steps", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchStream, "next", look)
        assert on_shards(shards, tmp_path / "run", *options) == 0
    assert len(seen) == 4 and all(batch.token_ids.size <= 96 and len(batch.token_ids) > 1 for batch in seen)
    tokenizer = load_tokenizer(shards / "tokenizer")
    starts, specials = tokenizer.word_starts(), set(tokenizer.special_ids)
    for batch in seen:
        width, masked = batch.token_ids.shape[1], set(batch.rows.tolist())
        original_ids = batch.token_ids.ravel().copy()
        original_ids[batch.rows] = batch.labels
        for row in masked:  # the rest of a masked word is masked too
            following = int(original_ids[row + 1]) if (row + 1) % width else None
            if following is not None and following not in specials and not starts[following]:
                assert row + 1 in masked
    assert load_tokenizer(tmp_path / "run" / "model").fingerprint == tokenizer.fingerprint
    config = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert config["whole_words"] and config["max_tokens"] == 96
    assert on_shards(shards, tmp_path / "run", *options, "--resume") == 0
    assert on_shards(shards, tmp_path / "run", *options[:2], "--steps", 4, "--resume") == 2
    assert "whole_words was True and is False" in capsys.readouterr().err


def test_a_broken_shard_stops_a_training_which_keeps_its_checkpoint(tmp_path, shards, capsys, monkeypatch):
    data = tmp_path / "shards"
    shutil.copytree(shards, data)
    options = ("--batch-size", 4, "--steps", 5, "--checkpoint-interval", 2)
    assert on_shards(data, tmp_path / "whole", *options) == 0
    step = Pretraining.step

    def killed(training):
        if training.progress.step == 3:
            raise KeyboardInterrupt
        return step(training)

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "step", killed)
        assert on_shards(data, tmp_path / "run", *options) == 130
    shard = data / "train-00000.bin"
    good = shard.read_bytes()
    shard.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    capsys.readouterr()
    assert on_shards(data, tmp_path / "run", *options, "--resume") == 2
    assert "train-00000.bin" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    shard.write_bytes(good)
    assert on_shards(data, tmp_path / "run", *options, "--resume") == 0
    assert_identical(*(parameter_arrays(bort.load(tmp_path / name / "model")) for name in ("whole", "run")))


# The benchmark


def test_the_benchmark_refuses_shards_of_other_settings_and_names_the_seeds(tmp_path):
    from benchmarks import pretraining

    (tmp_path / "text.txt").write_text("\n\n".join(f"The {a} dog sees the {b} tree. A {b} cat runs."
                                                   for a in ("small", "old", "new", "large")
                                                   for b in ("green", "tall", "low", "grey")) * 3 + "\n",
                                       encoding="utf-8")
    arguments = SimpleNamespace(corpus=str(tmp_path / "text.txt"), tokenizer=None, vocab_size=50,
                                max_length=16, split="8,1,1")
    shards = pretraining.prepare_corpus(arguments, tmp_path)
    index = (shards / "index.json").read_bytes()
    assert pretraining.prepare_corpus(arguments, tmp_path) == shards and (shards
                                                                          / "index.json").read_bytes() == index
    arguments.max_length = 32
    with pytest.raises(BortError, match="max_length 16 -> 32"):
        pretraining.prepare_corpus(arguments, tmp_path)
    evaluation = {"step": 1, "seconds": 1.0, "eval_mlm_accuracy": 0.5, "eval_mlm_loss": 1.0}
    result = {"seconds": 1.0, "core_hours": 0.1, "tokens_per_second": 9.0}
    summary = pretraining.summarize({name: [[evaluation]] * 2 for name in pretraining.METHODS},
                                    {name: [result] * 2 for name in pretraining.METHODS}, 1, [7, 3])
    assert [row["seed"] for row in summary["runs"]] == [7, 3, 7, 3]


# Two ranks: three launches in all


def on_two_ranks(folder, job):
    """What each rank of the launches below runs."""
    def run(name, dropout, **arguments):
        train(folder / name, dict(steps=12, batch_size=4, loss=LossWeights(0.4, 0.6)), student(dropout),
              LiveTeacher(tiny_bert(3, TINY_TEACHER), 2.0), evaluate=4, checkpoint=5, **arguments)

    def kill(step):
        if job == "kill" and step == 8 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    assert distributed.size() == 2
    if job == "whole":
        run("plain", 0.0)
        run("whole", 0.2)
    else:
        run("killed", 0.2, resume=True, after_step=kill)


def launch(folder, job):
    script = folder / "job.py"
    script.write_text("import sys\nfrom pathlib import Path\nfrom tests.pretraining.test_pretraining import "
                      f"on_two_ranks\non_two_ranks(Path({str(folder)!r}), sys.argv[1])\n")
    return subprocess.run(["horovodrun", "-np", "2", sys.executable, str(script), job],
                          env=two_rank_environment(), capture_output=True, text=True, timeout=300)


@needs_horovod
def test_two_ranks_equal_one_and_survive_the_kill_of_a_rank(tmp_path):
    done = launch(tmp_path, "whole")
    assert done.returncode == 0, done.stdout + done.stderr
    one, _ = train(tmp_path / "one", dict(steps=12, batch_size=8, loss=LossWeights(0.4, 0.6)), student(),
                   LiveTeacher(tiny_bert(3, TINY_TEACHER), 2.0), evaluate=4, checkpoint=5)
    assert_close(one, parameter_arrays(bort.load(tmp_path / "plain" / "model")), 1e-4)
    for left, right in zip(metrics(tmp_path / "one"), metrics(tmp_path / "plain")):
        assert left == pytest.approx(right, rel=1e-3)
    killed = launch(tmp_path, "kill")
    assert killed.returncode != 0 and not (tmp_path / "killed" / "results.json").exists()
    resumed = launch(tmp_path, "resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert_identical(*(parameter_arrays(bort.load(tmp_path / name / "model")) for name in ("whole",
                                                                                           "killed")))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
