"""The maximum point and its outputs."""
from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bort.architecture import Architecture
from bort.backend.mxnet import nd
from bort.checkpoints.model_folder import save
from bort.errors import BortError
from bort.json_files import read_json
from bort.models import Bert, initialize
from bort.search import teacher as teacher_module
from bort.search.candidate import train
from bort.search.lines import Lines
from bort.search.teacher import build_teacher, cross_entropy, find_maximum
from bort.text.tokenizers.loading import load_tokenizer, train_sentencepiece
from tests.search.tiny_search import (
    INITIAL,
    SETTINGS,
    TEACHER,
    outputs_of,
    probabilities_of,
    search,
    text_lines,
    train_head,
)

pytestmark = pytest.mark.filterwarnings("ignore:the teacher .* has no weights")


def exact_entropy(model: Bert, folder: Path, start: int, stop: int, lines: Lines) -> float:
    """The entropy of T's distributions over these lines, in float64 from the stored states."""
    counts = [len(lines.batch(line, line + 1).rows) for line in range(len(lines))]
    states = np.concatenate([np.load(path) for path in sorted((folder / "teacher").glob("block-?????.npy"))])
    states = states[sum(counts[:start]):sum(counts[:stop])].astype("float64")
    projection = model.decoder[3]
    logits = states @ projection.weight.data().asnumpy().astype("float64").T
    logits += projection.bias.data().asnumpy()
    logs = logits - logits.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    return float(-(np.exp(logs) * logs).sum())


def test_the_stored_entropy_is_the_networks_own(lines, tmp_path):
    """With weights of ordinary size, where float32 states agree to 1e-6 whatever the batch."""
    model, outputs, _ = outputs_of(lines, tmp_path, micro_batch=3)
    for start, stop in ((0, 4), (5, 16), (23, 24)):
        expected = probabilities_of(model, lines, start, stop)
        assert outputs.entropy(start, stop) == pytest.approx(-(expected * np.log(expected)).sum(), rel=1e-5)


def test_stored_outputs_are_the_teachers_own(lines, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_module, "BLOCK_LINES", 7)  # lines of one request lie in several files
    model, outputs, _ = outputs_of(lines, tmp_path, scale=4.0, micro_batch=3)
    for start, stop in ((0, 4), (5, 16), (23, 24)):
        expected = probabilities_of(model, lines, start, stop)
        np.testing.assert_allclose(outputs.probabilities(start, stop)(0, len(expected)).asnumpy(), expected,
                                   rtol=1e-3, atol=1e-6)
        assert outputs.positions(start, stop) == len(expected)
        # Of the very states that are stored: with weights four times larger, float32 passes over batches of
        # different shapes differ by 5e-4 in a state of size 17, which is not the entropy's error.
        assert outputs.entropy(start, stop) == pytest.approx(
            exact_entropy(model, tmp_path, start, stop, lines), rel=1e-5)
    # The same rows out of products of two shapes, which some processors' kernels round differently.
    some, all_six = outputs.probabilities(5, 16)(4, 6).asnumpy(), outputs.probabilities(5, 16)(0, 6).asnumpy()
    np.testing.assert_allclose(some, all_six[4:], rtol=1e-4, atol=1e-7)
    assert np.abs(all_six[3] - all_six[4]).max() > 1e-3  # other rows would not have passed


def test_the_teacher_runs_once_for_all_candidates_and_not_at_all_in_a_rerun(lines, tmp_path):
    _, outputs, built = outputs_of(lines, tmp_path)
    for xi in SETTINGS.space:
        train(xi, lines, outputs, SETTINGS, INITIAL)
    assert built == 1
    assert outputs_of(lines, tmp_path)[2] == 0


def test_cross_entropy_by_hand():
    rng = np.random.default_rng(0)
    scores, target = rng.normal(size=(5, 7)), rng.dirichlet(np.ones(7), 5)
    logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(cross_entropy(nd.array(logs), nd.array(target)), -(target * logs).sum(axis=1),
                               rtol=1e-5)


def test_a_teacher_folder_is_taken_with_its_tokenizer_and_its_checksum(corpus, tmp_path):
    tokenizer = load_tokenizer(corpus / "tokenizer")
    model = Bert(Architecture(3, 2, 24, 32), tokenizer.vocab_size, max_length=16)
    initialize(model, 5)
    save(model, tmp_path / "teacher", tokenizer)
    settings = replace(SETTINGS, max_length=16, steps=1)
    with pytest.raises(BortError, match="never trained.*--method mlm"):
        search(tmp_path / "untrained", settings, str(tmp_path / "teacher"), corpus)
    train_head(model)
    save(model, tmp_path / "teacher", tokenizer)
    rows = search(tmp_path / "run", settings, str(tmp_path / "teacher"), corpus)
    assert len(rows) == 4 and read_json(tmp_path / "run" / "space.json")["weights"] != "random"
    save(model, tmp_path / "foreign", train_sentencepiece(text_lines(40, seed=9), 50))
    with pytest.raises(BortError, match="another tokenizer"):
        search(tmp_path / "other", settings, str(tmp_path / "foreign"), corpus)
    # It is found before anything is timed.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bort.search.fptas.measured_speed", lambda *_: pytest.fail("timed"))
        slow = replace(settings, speed="measured")
        with pytest.raises(BortError, match="another tokenizer"):
            search(tmp_path / "timed", slow, str(tmp_path / "foreign"), corpus)
        with pytest.raises(BortError, match="takes 16 tokens"), pytest.warns(UserWarning,
                                                                             match="at most 16 tokens"):
            search(tmp_path / "long", replace(slow, max_length=24), str(tmp_path / "teacher"), corpus)
    bare = shutil.copy(tmp_path / "teacher" / "model.params", tmp_path / "bare.params")
    with pytest.raises(BortError, match="--teacher-architecture D,A,H,I"):
        search(tmp_path / "bare", settings, str(bare), corpus)
    same = search(tmp_path / "bare", settings, str(bare), corpus, teacher_architecture="3,2,24,32")
    assert [row["ce"] for row in same] == [row["ce"] for row in rows]
    for wrong, message in ((str(tmp_path / "teacher"), "not the ⟨3, 1, 24, 32⟩"), (TEACHER, "leave it out")):
        with pytest.raises(BortError, match=message):
            search(tmp_path / "wrong", settings, wrong, corpus, teacher_architecture="3,1,24,32")
    # Other weights in the same place are another search.
    initialize(model, 6)
    train_head(model)
    save(model, tmp_path / "teacher", tokenizer)
    with pytest.raises(BortError, match="weights was"):
        search(tmp_path / "run", settings, str(tmp_path / "teacher"), corpus, resume=True)


def test_a_random_teacher_shares_no_draw_with_candidates_of_its_width(lines):
    maximum = find_maximum(TEACHER)
    candidate = Bert(maximum.architecture, lines.vocab_size, 16)
    initialize(candidate, 0)
    theirs = build_teacher(maximum, lines, 16, 0).word_embed[0].weight.data().asnumpy()
    ours = candidate.word_embed[0].weight.data().asnumpy()
    assert abs(np.corrcoef(theirs.ravel(), ours.ravel())[0, 1]) < 0.2


@pytest.mark.parametrize("name", ["block-00000.npy", "block-00000-lines.npy", "projection.params",
                                  "block-00000.json"])
def test_a_changed_block_of_outputs_is_made_again(lines, tmp_path, name):
    _, outputs, _ = outputs_of(lines, tmp_path)
    expected = outputs.probabilities(0, 4)(0, 3).asnumpy()
    path = tmp_path / "teacher" / name
    before = path.read_bytes()
    path.write_bytes(before[:-6] + bytes([before[-6] ^ 1]) + before[-5:])
    with pytest.warns(UserWarning, match=f"{name.split('.')[0].replace('-lines', '')}: is damaged"):
        _, again, built = outputs_of(lines, tmp_path)
    assert built == 1 and path.read_bytes() == before
    np.testing.assert_array_equal(again.probabilities(0, 4)(0, 3).asnumpy(), expected)


def test_a_teacher_with_nan_is_refused(corpus, tmp_path):
    tokenizer = load_tokenizer(corpus / "tokenizer")
    model = Bert(Architecture(3, 2, 24, 32), tokenizer.vocab_size, max_length=16)
    initialize(model, 5)
    train_head(model)
    model.encoder.transformer_cells[0].proj.bias.data()[:] = float("nan")
    save(model, tmp_path / "teacher", tokenizer)
    with pytest.raises(BortError, match="finite|NaN"):
        search(tmp_path / "run", replace(SETTINGS, max_length=16, steps=1), str(tmp_path / "teacher"), corpus)
