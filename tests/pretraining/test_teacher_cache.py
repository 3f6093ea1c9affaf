"""A teacher's answers on disk: the error they state, resumption, and damage."""

from __future__ import annotations

import numpy as np
import pytest

from bort.checkpoints.params_file import read_ndarrays, write_ndarrays
from bort.engines.base import EngineOptions
from bort.errors import BortError
from bort.files import sha256_file
from bort.json_files import read_json, write_json, write_sealed
from bort.masked_lm.batches import make_batch
from bort.masked_lm.losses import LossWeights
from bort.masked_lm.teacher import LiveTeacher
from bort.pretraining import inputs, teacher_cache
from tests.pretraining.common import PAD, corpus, metrics, train
from tests.tiny import MAX_LENGTH, TINY_TEACHER, VOCAB, tiny_bert

FACTS = {"seed": 3, "passes": 2, "temperature": 2.0, "teacher": "t", "data": "d"}


def build(folder, top_k, data, **facts):
    teacher = LiveTeacher(tiny_bert(3, TINY_TEACHER), 2.0)
    facts = {**FACTS, "top_k": top_k, **facts}
    return teacher_cache.build_cache(folder, facts, teacher, data, MAX_LENGTH, block=16), teacher


def test_a_cache_of_all_tokens_is_the_teacher(tmp_path):
    data = corpus()
    path, live = build(tmp_path, VOCAB, data)
    cached = teacher_cache.CachedTeacher(path)
    for mask_epoch in (0, 1):
        batch = make_batch(
            data.train, np.array([39, 2, 17, 16, 15]), data.policy, 3, mask_epoch, PAD, MAX_LENGTH
        )
        expected = live.targets(batch)(0, len(batch.rows)).asnumpy()
        found = cached.targets(batch)
        np.testing.assert_allclose(found(0, len(batch.rows)).asnumpy(), expected, rtol=6e-3, atol=1e-6)
        np.testing.assert_allclose(found(2, 5).asnumpy(), expected[2:5], rtol=6e-3, atol=1e-6)
    assert cached.error["mean_kl_nats"] < 1e-5
    settings = {"mask_passes": 2, "seed": 3, "loss": LossWeights(0.3, 0.7)}
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
    """Ways to spoil a cache, each with a word of the message; the digests fit, as after a faulty disk or by a
    hand."""
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

    return [
        (arrays(ids(VOCAB)), "beyond the vocabulary"),
        (arrays(ids(65535)), "beyond the vocabulary"),
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
        (index(lambda content: content.update(examples=39), sealed=False), "digest"),
    ]


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


def test_answers_of_other_engines_and_precisions_are_kept_apart(monkeypatch):
    def named(kind, precision, *installed):
        monkeypatch.setattr(inputs, "preferred", lambda: EngineOptions(kind, precision))
        monkeypatch.setattr(inputs, "installed", lambda: dict.fromkeys(installed))
        return tuple(inputs._engine_named())

    everything = ("openvino", "onnxruntime", "mxnet")
    assert named("auto", "float32", *everything) == named("openvino", "float32") == ("openvino", "float32")
    assert named("auto", "float32", "mxnet") == ("mxnet", "float32")
    assert named("auto", "bfloat16", *everything) == ("openvino", "bfloat16")
