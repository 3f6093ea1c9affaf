"""The search: equation 2, intervals, training on the teacher's outputs, runs that are shared, killed and
resumed."""
from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bort.architecture import Architecture, parse, search_space
from bort.backend import distributed
from bort.backend.mxnet import nd
from bort.checkpoints.model_folder import parameter_arrays, save
from bort.errors import BortError, run_command
from bort.files import read_json, read_jsonl
from bort.models import Bert, initialize
from bort.paper import TABLE_1
from bort.search import shared_costs
from bort.search.candidate import InitialValues, error, train
from bort.search.fptas import (
    SMALLEST_ERROR,
    Surrogates,
    check_maximum,
    ranked,
    representatives,
    scored,
    search,
    surrogates,
    w_coefficient,
)
from bort.search.lines import Lines
from bort.search.report import pareto, table1, write_table
from bort.search.settings import SearchSettings
from bort.search.shared_costs import (
    build_teacher,
    cross_entropy,
    find_maximum,
    measured_speed,
    teacher_outputs,
)
from bort.search.shared_folder import SearchFolder
from bort.text.shards.plan import PrepareOptions
from bort.text.shards.prepare import prepare
from bort.text.tokenizers.loading import load_tokenizer, train_sentencepiece
from tests.tiny import ROOT, needs_horovod, two_rank_environment

pytestmark = pytest.mark.filterwarnings("ignore:the teacher .* has no weights")

TEACHER = "3,2,24,32"
WORDS = ("the a small large old new dog cat house tree river "
         "sings runs sleeps sees near under over and but").split()
SPACE = ["--depths", "1,2", "--heads", "2", "--hidden", "8,16", "--intermediate", "8,16", "--epsilon", "1"]
TINY_RUN = ["--teacher", TEACHER, *SPACE, "--batch-size", "5", "--max-length", "16", "--speed-lines", "7",
            "--micro-batch-size", "3", "--lr", "0.5"]
COMPARED = ("name", "interval", "size", "speed", "losses", "ce", "kl", "error", "W")
Row = Dict[str, Any]


def text_lines(count: int = 120, seed: int = 3) -> List[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(6, 12))).capitalize() + "." for _ in range(count)]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(text_lines()) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def corpus(text) -> Path:
    """The text as shards with a vocabulary of 60."""
    train_sentencepiece(text_lines(), 60).save(text.parent / "tokenizer")
    prepare(PrepareOptions(inputs=[text], output=text.parent / "shards", tokenizer=text.parent / "tokenizer",
                           max_length=16, split="1,0,0"))
    return text.parent / "shards"


@pytest.fixture(scope="module")
def lines() -> Lines:
    """24 lines of 7 to 12 tokens."""
    tokenizer = train_sentencepiece(text_lines(), 60)
    rows = [[tokenizer.bos_id, *ids[:10], tokenizer.eos_id] for ids in tokenizer.encode_batch(text_lines(24))]
    offsets = np.cumsum([0] + [len(row) for row in rows])
    return Lines(np.concatenate(rows).astype(np.int32), offsets, tokenizer, 12, 0.3, 0)


@pytest.fixture(scope="module")
def teacher(lines, tmp_path_factory) -> Any:
    return outputs_of(lines, tmp_path_factory.mktemp("teacher"), scale=4.0)[1]


SETTINGS = SearchSettings(depths=(1, 2), heads=(2,), hidden=(8, 16), intermediate=(8,), epsilon=1, steps=3,
                          batch_size=6, max_length=12, speed_lines=6, micro_batch_size=4, lr=0.3, dropout=0.0)
CANDIDATE = Architecture(2, 2, 16, 8)
INITIAL = InitialValues(SETTINGS.seed)


def outputs_of(lines: Lines, folder: Path, scale: float = 1.0, micro_batch: int = 4) -> Any:
    """A teacher with ``scale`` times larger weights, its outputs, and how often it was built."""
    built = []

    def make() -> Bert:
        model = build_teacher(find_maximum(TEACHER), lines, 16, 0)
        for parameter in model.collect_params().values():
            parameter.set_data(parameter.data() * scale)
        built.append(model)
        return model

    outputs = teacher_outputs(SearchFolder(folder, {}, resume=True), lines, make, micro_batch)
    return (built[0] if built else None), outputs, len(built)


def run(output: Path, corpus: Path, *more: str) -> int:
    import run_search

    return run_command(run_search.main, ["--corpus", str(corpus), "--output", str(output), *TINY_RUN, *more])


def process(output: Path, corpus: Path, *more: str, **settings: Any) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(ROOT / "run_search.py"), "--corpus", str(corpus), "--output",
                             str(output), *TINY_RUN, *more], env=dict(os.environ, OMP_NUM_THREADS="1",
                                                                      OMP_WAIT_POLICY="passive"),
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **settings)


def results(folder: Path) -> Dict[str, Row]:
    """What must not depend on who computed it, by candidate."""
    return {row["name"]: {key: row[key] for key in COMPARED}
            for row in read_jsonl(folder / "candidates.jsonl")}


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory) -> Path:
    """The run that all others are compared with: one process, one thread, never interrupted."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert process(folder, corpus).wait() == 0
    return folder


# Steps 1, 2 and 4: no networks.

def test_w_is_equation_2():
    limit = Surrogates(100.0, 10.0)
    assert w_coefficient(Surrogates(30.0, 2.0), limit, 0.5) == pytest.approx(70 * 8 / (100 * 10 * 0.5))
    assert w_coefficient(Surrogates(100.0, 2.0), limit, 0.5) == 0
    assert w_coefficient(Surrogates(30.0, 2.0), limit, -1e-9) == pytest.approx(0.56 / SMALLEST_ERROR)


COSTS = st.dictionaries(st.sampled_from(search_space()), st.tuples(st.integers(1, 20), st.integers(1, 20)),
                        min_size=1, max_size=40).map(lambda found: {xi: Surrogates(*cost) for xi,
                                                                    cost in found.items()})


@given(COSTS, st.integers(1, 40), st.randoms(use_true_random=False))
def test_representatives_are_the_best_of_consecutive_intervals_whatever_the_order(costs, epsilon, random):
    limit = Surrogates(21, 21)
    found = representatives(costs, limit, epsilon)
    assert len(found) == -(-len(costs) // epsilon) and len(set(found)) == len(found)
    ordered = sorted(costs, key=lambda xi: (costs[xi].size, costs[xi].speed, xi))
    for number, xi in enumerate(found):
        interval = ordered[number * epsilon:(number + 1) * epsilon]
        gains = {other: (21 - costs[other].size) * (21 - costs[other].speed) for other in interval}
        assert gains[xi] == max(gains.values())
    shuffled = list(costs)
    random.shuffle(shuffled)
    assert representatives({xi: costs[xi] for xi in shuffled}, limit, epsilon) == found


@given(COSTS, st.lists(st.floats(0.1, 10), min_size=40, max_size=40), st.integers(2, 40))
def test_epsilon_1_finds_the_exhaustive_optimum_and_a_larger_one_never_a_better(costs, errors, epsilon):
    limit, error_of = Surrogates(21, 21), dict(zip(sorted(costs), errors))

    def best(some: List[Architecture]) -> float:
        described = [{"name": str(xi), "architecture": xi.to_dict(), "size": costs[xi].size,
                      "speed": costs[xi].speed} for xi in some]
        return ranked([scored(row, limit, {"ce": rate, "kl": rate}, [], SETTINGS) for row, rate in
                       zip(described, (error_of[xi] for xi in some))])[0]["W"]

    exhaustive = max((21 - cost.size) * (21 - cost.speed) / (21 * 21 * error_of[xi]) for xi,
                     cost in costs.items())
    assert best(representatives(costs, limit, 1)) == pytest.approx(exhaustive)
    assert best(representatives(costs, limit, epsilon)) <= exhaustive * (1 + 1e-12)


@given(st.permutations(range(5)))
def test_the_ranking_depends_on_no_order_and_puts_diverged_candidates_last(order):
    rows = [{"name": str(number), "architecture": {"depth": number}, "W": w}
            for number, w in enumerate((0.5, None, 0.7, 0.5, 0.1))]
    assert [row["name"] for row in ranked([rows[number] for number in order])] == ["2", "0", "3", "4", "1"]


def test_surrogates_are_the_lemmas_or_the_counts_of_the_built_network():
    space = search_space((1, 2), (1, 2), (8, 12), (4, 20))
    settings = SearchSettings(max_length=16)
    exact = surrogates(space, settings, 50)
    for xi in space:
        network = Bert(xi, 50, settings.positions)
        assert exact[xi].size == sum(int(np.prod(parameter.shape))
                                     for parameter in network.collect_params().values())
        assert exact[xi].speed == xi.flops(16, 50)
    lemmas = surrogates(search_space(), SearchSettings(counts="lemma"), 50265)
    for (d, _, h, i), cost in ((tuple(xi.to_dict().values()), cost) for xi, cost in lemmas.items()):
        # Equations 13 and 12.
        assert cost.size == d * (4 * h**2 + 2 * h * i + 9 * h + i) + h**2 + (50265 + 514 + 6) * h
        assert cost.speed == d * (4 * (2*h - 1) * h + h**2 + (2*h - 1) * i + 7 * i**2) + (2*h - 1) * h + 3 * h
    assert len(lemmas) == 300
    seconds = {xi: 0.5 + number for number, xi in enumerate(space)}
    assert [cost.speed for cost in surrogates(space, settings, 50, seconds).values()] == list(
                                                                                              seconds.values())


@pytest.mark.parametrize("cost, word", [(Surrogates(11, 1), "larger"), (Surrogates(1, 11), "slower")])
def test_the_maximum_point_must_be_the_maximum(cost, word):
    costs = {Architecture(1, 1, 8, 8): cost, Architecture(2, 1, 8, 8): Surrogates(10, 10)}
    with pytest.raises(BortError, match=f"⟨1, 1, 8, 8⟩ is {word}"):
        check_maximum(costs, Architecture(2, 1, 8, 8))


def test_pareto_front():
    rows = [{"size": size, "speed": 1, "error": rate} for size, rate in ((1, 3), (2, 2), (3, 2), (2, 2),
                                                                         (4, 1))]
    assert pareto(rows) == [0, 1, 3, 4]


@pytest.mark.parametrize("wrong", [{"epsilon": 0}, {"steps": -1}, {"error": "mse"}, {"lr": 0.0},
                                   {"speed_lines": 0}, {"counts": "guess"}, {"max_length": 4}])
def test_settings_are_checked(wrong):
    with pytest.raises(BortError, match=next(iter(wrong)).replace("_", "-")):
        SearchSettings(**wrong)
    with pytest.raises(BortError, match="epsilon"):
        len(SearchSettings(epsilon=301).space)


# Step 3: the teacher's outputs, training, the error.

def probabilities_of(model: Bert, lines: Lines, start: int, stop: int) -> np.ndarray:
    """softmax of the network's logits at the scored positions, line by line, by the network's own MLM
    head."""
    batch, found = lines.batch(start, stop), []
    for row in range(stop - start):
        positions = batch.rows[batch.rows // batch.token_ids.shape[1] == row] % batch.token_ids.shape[1]
        _, logits = model(nd.array(batch.token_ids[row:row + 1], dtype="int32"),
                          nd.array(batch.valid_length[row:row + 1], dtype="float32"),
                          nd.array(positions[None], dtype="int32"))
        found.append(logits.softmax(axis=-1).asnumpy()[0])
    return np.concatenate(found).astype("float64")


def exact_entropy(model: Bert, folder: Path, start: int, stop: int, lines: Lines) -> float:
    """The entropy of T's distributions over lines ``start`` to ``stop``, in float64, from its states."""
    counts = [len(lines.batch(line, line + 1).rows) for line in range(len(lines))]
    states = np.concatenate([np.load(path) for path in sorted((folder / "teacher").glob("block-?????.npy"))])
    states = states[sum(counts[:start]):sum(counts[:stop])].astype("float64")
    projection = model.decoder[3]
    weight, bias = (part.data().asnumpy().astype("float64") for part in (projection.weight, projection.bias))
    logits = states @ weight.T + bias
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
    monkeypatch.setattr(shared_costs, "BLOCK_LINES", 7)  # lines of one request lie in several files
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


def test_error_is_the_cross_entropy_on_the_held_out_lines_and_kl_is_less_the_teachers_entropy(lines,
                                                                                              tmp_path):
    model, outputs, _ = outputs_of(lines, tmp_path, scale=4.0)
    candidate, _ = train(CANDIDATE, lines, outputs, SETTINGS, INITIAL)
    first, last = SETTINGS.steps * SETTINGS.batch_size, SETTINGS.lines
    target, own = (probabilities_of(network, lines, first, last) for network in (model, candidate))
    found = error(candidate, lines, outputs, SETTINGS)
    assert found["ce"] == pytest.approx(-(target * np.log(own)).sum(axis=1).mean(), rel=1e-5)
    assert found["kl"] == pytest.approx((target * np.log(target / own)).sum(axis=1).mean(), rel=1e-4)
    # A candidate that is T itself diverges from it by rounding only.
    assert abs(error(model, lines, outputs, SETTINGS)["kl"]) < 1e-5


def test_a_step_follows_the_gradient_of_the_cross_entropy(lines, teacher):
    """The loss that training reports before the second step is what a step along the finite differences
    predicts."""
    settings = replace(SETTINGS, steps=2, lr=0.1, clip=0.0)
    model, losses = train(CANDIDATE, lines, teacher, settings, INITIAL)
    again = Bert(CANDIDATE, lines.vocab_size, settings.positions, 0.0)
    initialize(again, settings.seed)
    one, _ = train(CANDIDATE, lines, teacher, replace(settings, steps=1), INITIAL)
    def loss_of(network: Bert, start: int) -> float:
        part = SimpleNamespace(steps=1, batch_size=start, lines=start + 6, micro_batch=4)
        return error(network, lines, teacher, part)["ce"]

    assert losses[0] == pytest.approx(loss_of(again, 0), rel=1e-6)
    # `one` took the step at the full rate, as the first of two steps does.
    assert losses[1] == pytest.approx(loss_of(one, 6), rel=1e-6)
    moved = {name: (a.data().asnumpy().astype("float64") - b.data().asnumpy()) / settings.lr for (name, a),
             b in zip(again._collect_params_with_prefix().items(),
                      one._collect_params_with_prefix().values())}
    name = "encoder.transformer_cells.1.ffn.ffn_1.weight"
    parameter = again._collect_params_with_prefix()[name]
    value, direction = parameter.data().copy(), nd.array(np.sign(moved[name]))
    slopes = []
    for step in (1e-2, -1e-2):
        parameter.set_data(value + step * direction)
        slopes.append(loss_of(again, 0))
    assert (slopes[0] - slopes[1]) / 2e-2 == pytest.approx(np.abs(moved[name]).sum(), rel=0.02)


def test_clipping_bounds_how_far_n_steps_can_move_a_candidate(lines, teacher):
    start = Bert(CANDIDATE, lines.vocab_size, SETTINGS.positions, 0.0)
    initialize(start, SETTINGS.seed)

    def moved(clip: float) -> float:
        model, _ = train(CANDIDATE, lines, teacher, replace(SETTINGS, clip=clip), INITIAL)
        pairs = zip(*({id(p): p for p in network.collect_params().values()}.values() for network in (start,
                                                                                                     model)))
        return float(np.sqrt(sum(((a.data() - b.data()) ** 2).sum().asscalar() for a, b in pairs)))

    # Rates 1, 2/3 and 1/3 of the peak: int(0.05 * 3) = 0 warmup steps. The steps point nearly, not quite, the
    # same way.
    bound = SETTINGS.lr * 2 * 1e-4
    assert 0.6 * bound < moved(1e-4) < 1.001 * bound
    assert moved(0.0) > 100 * bound


def test_initial_values_are_those_of_initialize_with_and_without_room_to_keep_them():
    for limit in (0, 5000, 1 << 20):
        initial = InitialValues(3, limit)
        for xi in [*SETTINGS.space, *SETTINGS.space]:
            found, expected = Bert(xi, 50, 16), Bert(xi, 50, 16)
            initial.fill(found)
            initialize(expected, 3)
            values = parameter_arrays(expected)
            assert all(np.array_equal(array, values[name]) for name, array in parameter_arrays(found).items())


def test_micro_batches_change_nothing(lines, teacher):
    reference, losses = train(CANDIDATE, lines, teacher, SETTINGS, INITIAL)
    expected = error(reference, lines, teacher, SETTINGS)["ce"]
    for size in (1, 6):
        settings = replace(SETTINGS, micro_batch_size=size)
        other, others = train(CANDIDATE, lines, teacher, settings, INITIAL)
        assert others == pytest.approx(losses, rel=1e-5)
        assert error(other, lines, teacher, settings)["ce"] == pytest.approx(expected, rel=1e-5)


def test_a_candidate_is_the_same_whatever_was_trained_before_it(lines, teacher):
    settings = replace(SETTINGS, dropout=0.2)

    def rate(xi: Architecture, initial: InitialValues) -> float:
        return error(train(xi, lines, teacher, settings, initial)[0], lines, teacher, settings)["ce"]

    space = settings.space
    forwards, backwards = InitialValues(0), InitialValues(0)
    first = {xi: rate(xi, forwards) for xi in space}
    assert {xi: rate(xi, backwards) for xi in reversed(space)} == first and len(set(first.values())) == len(
                                                                                                            space)
    other = replace(settings, seed=1)
    assert error(train(space[0], lines, teacher, other, InitialValues(1))[0], lines, teacher, other)["ce"] \
        not in first.values()


def test_training_lowers_the_error(lines, teacher):
    settings = replace(SETTINGS, clip=0.0, lr=0.5)
    untrained, _ = train(CANDIDATE, lines, teacher, replace(settings, steps=3, lr=1e-9), INITIAL)
    trained, losses = train(CANDIDATE, lines, teacher, settings, INITIAL)
    assert losses[-1] < losses[0]
    assert error(trained, lines, teacher, settings)["ce"] < error(untrained, lines, teacher,
                                                                  settings)["ce"] - 0.01


def test_a_diverged_candidate_has_no_w():
    row = {"name": "x", "architecture": CANDIDATE.to_dict(), "size": 1.0, "speed": 1.0}
    found = scored(row, Surrogates(2, 2), {"ce": float("nan"), "kl": 1.0}, [1.0], SETTINGS)
    assert found["W"] is None and found["error"] is None and json.dumps(found, allow_nan=False)


# Whole runs.

def test_the_papers_tuples_stand_in_the_table_where_they_are_in_the_space():
    def row(architecture):
        return {"name": str(architecture), "architecture": architecture.to_dict(), "W": 1.0, "error": 0.5,
                "parameters": 10, "lemma2_parameters": 9, "flops": 8, "seconds_per_sample": None}

    space = [row(CANDIDATE), *(row(theirs.architecture) for theirs in TABLE_1[:2])]
    table = table1(space[:2], space, top=1)
    assert [line["paper"] for line in table] == [None, *(theirs.name for theirs in TABLE_1[:2])]
    assert [line["rank"] for line in table] == [1, 2, None] and table[1]["paper's W"] == TABLE_1[0].w


def test_a_run_leaves_its_files_and_is_not_repeated(alone, corpus, capsys):
    rows = read_jsonl(alone / "candidates.jsonl")
    assert len(rows) == 8 and len({row["name"] for row in rows}) == 8
    limit = next(row for row in read_json(alone / "space.json")["tuples"] if row["name"] == TEACHER)
    for row in rows:
        assert row["W"] == pytest.approx((limit["size"] - row["size"]) * (limit["speed"] - row["speed"])
                                         / (limit["size"] * limit["speed"] * row["ce"]))
        assert row["size"] == row["parameters"] and row["speed"] == row["flops"] and len(row["losses"]) == 3
    best = max(rows, key=lambda row: row["W"])
    assert parse(str(alone / "best.json")) == Architecture.from_dict(best["architecture"])
    assert read_json(alone / "best.json")["W"] == best["W"] and len(read_json(alone
                                                                              / "best.json")["top"]) == 3
    with open(alone / "table1.csv", encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["rank"] for row in table[:3]] == ["1", "2", "3"]
    text = (alone / "table1.md").read_text(encoding="utf-8")
    assert len(table) == 3 and "⟨4, 8, 1024, 768⟩" not in text and "paper's W" not in text
    assert f"Not in this search space: {', '.join(row.name for row in TABLE_1[:4])}." in text
    assert (alone / "search.png").read_bytes()[:4] == b"\x89PNG"

    before = (alone / "candidates.jsonl").read_bytes()
    assert run(alone, corpus, "--resume") == 0
    assert (alone / "candidates.jsonl").read_bytes() == before
    assert run(alone, corpus) == 2
    assert "--resume" in capsys.readouterr().err
    assert run(alone, corpus, "--resume", "--lr", "0.4") == 2
    assert "lr was 0.5 and is 0.4" in capsys.readouterr().err
    assert (alone / "candidates.jsonl").read_bytes() == before


def wait_for_rows(folder: Path, count: int, running: subprocess.Popen) -> None:
    path = folder / "candidates.jsonl"
    while not (path.is_file() and path.read_bytes().count(b"\n") >= count):
        assert running.poll() is None, running.stderr.read().decode()
        time.sleep(0.005)


def test_a_killed_run_goes_on_to_the_same_result(alone, corpus, tmp_path):
    folder = tmp_path / "run"
    first = process(folder, corpus)
    wait_for_rows(folder, 2, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    finished = read_jsonl(folder / "candidates.jsonl")
    with open(folder / "candidates.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"name": "1,2,8,')  # killed in the middle of a line
    assert 2 <= len(finished) < 8
    second = process(folder, corpus, "--resume")
    assert second.wait() == 0, second.stderr.read().decode()
    assert results(folder) == results(alone)
    assert read_jsonl(folder / "candidates.jsonl")[:len(finished)] == finished
    assert read_json(folder / "best.json") == read_json(alone / "best.json")


def test_processes_share_a_run_and_outlive_one_another(alone, corpus, tmp_path):
    """Two processes join one folder; the one that holds a candidate is killed, the other does that candidate
    too."""
    folder = tmp_path / "run"
    running = [process(folder, corpus, "--resume") for _ in range(2)]
    wait_for_rows(folder, 2, running[0])
    running[0].send_signal(signal.SIGKILL)
    running[0].wait()
    assert running[1].wait() == 0, running[1].stderr.read().decode()
    assert results(folder) == results(alone)
    assert read_json(folder / "best.json") == read_json(alone / "best.json")


@needs_horovod
def test_ranks_share_a_run(alone, corpus, tmp_path):
    folder = tmp_path / "run"
    command = ["horovodrun", "-np", "2", sys.executable, str(ROOT / "run_search.py"), "--corpus", str(corpus),
               "--output", str(folder), *TINY_RUN]
    done = subprocess.run(command, env=dict(two_rank_environment(), OMP_NUM_THREADS="1"),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    assert done.returncode == 0, done.stdout.decode()
    assert results(folder) == results(alone)
    assert read_json(folder / "best.json") == read_json(alone / "best.json")


@needs_horovod
def test_a_rank_that_dies_ends_the_launch_and_resume_goes_on(alone, corpus, tmp_path):
    folder = tmp_path / "run"
    command = ["horovodrun", "-np", "2", sys.executable, str(ROOT / "run_search.py"), "--corpus", str(corpus),
               "--output", str(folder), *TINY_RUN]
    running = subprocess.Popen(command, env=dict(two_rank_environment(), OMP_NUM_THREADS="1"),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for_rows(folder, 1, running)
    finished = read_jsonl(folder / "candidates.jsonl")
    os.kill(int(finished[0]["worker"].split()[-1]), signal.SIGKILL)
    running.communicate(timeout=60)
    assert running.returncode != 0
    second = process(folder, corpus, "--resume")  # one process, which starts in half the time of two ranks
    assert second.wait() == 0, second.stderr.read().decode()
    assert results(folder) == results(alone)
    assert read_jsonl(folder / "candidates.jsonl")[:len(finished)] == finished
    assert read_json(folder / "best.json") == read_json(alone / "best.json")


BY_COST = SearchSettings(depths=(1, 2), heads=(2,), hidden=(8, 16), intermediate=(8,), epsilon=1, steps=0)


def test_without_training_rows_are_appended_once_and_only_what_is_missing(tmp_path):
    rows = search(tmp_path / "run", BY_COST, TEACHER)
    path = tmp_path / "run" / "candidates.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(rows) == len(lines) == 4
    assert search(tmp_path / "run", BY_COST, TEACHER, resume=True) == rows
    assert path.read_bytes().splitlines(keepends=True) == lines
    path.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # killed while appending
    assert search(tmp_path / "run", BY_COST, TEACHER, resume=True) == rows
    assert path.read_bytes().splitlines(keepends=True) == lines


def test_a_rank_that_is_not_the_root_waits_for_the_rows_and_prints_nothing(tmp_path, monkeypatch, capsys):
    import run_search

    arguments = ["--steps", "0", "--teacher", TEACHER, *SPACE, "--output", str(tmp_path / "run")]
    monkeypatch.setattr(distributed, "is_root", lambda: False)
    assert run_command(run_search.main, arguments) == 0
    assert len(read_jsonl(tmp_path / "run" / "candidates.jsonl")) == 8 and capsys.readouterr().out == ""
    monkeypatch.undo()
    assert run_command(run_search.main, arguments[:-1] + [str(tmp_path / "root")]) == 0
    # Nor does it fail where no candidate has a W; the root says so.
    monkeypatch.setattr("bort.search.fptas.search", lambda *_: [
        {**row, "W": None} for row in read_jsonl(tmp_path / "root" / "candidates.jsonl")])
    assert run_command(run_search.main, [*arguments[:-1], str(tmp_path / "root"), "--resume"]) == 2
    assert "every candidate diverged" in capsys.readouterr().err
    monkeypatch.setattr(distributed, "is_root", lambda: False)
    assert run_command(run_search.main, [*arguments[:-1], str(tmp_path / "root"), "--resume"]) == 0


def test_settings_that_nobody_works_with_are_replaced(tmp_path):
    first = SearchFolder(tmp_path, {"lr": 1})
    SearchFolder(tmp_path, {"lr": 1}).close()  # started together with the first
    for resume in (False, True):
        with pytest.raises(BortError, match="resume|other settings"):
            SearchFolder(tmp_path, {"lr": 2}, resume)
    assert read_json(tmp_path / "config.json")["settings"] == {"lr": 1}
    first.close()
    with SearchFolder(tmp_path, {"lr": 2}) as folder:
        assert read_json(tmp_path / "config.json")["settings"] == {"lr": 2}
        folder.append({"x": 1}, name="other.jsonl")
    with pytest.raises(BortError, match="--resume"):
        SearchFolder(tmp_path, {"lr": 3})
    with pytest.raises(BortError, match="lr was 2 and is 3"):
        SearchFolder(tmp_path, {"lr": 3}, resume=True)


def test_a_command_that_failed_does_not_block_the_corrected_one(corpus, tmp_path, capsys):
    assert run(tmp_path / "run", corpus, "--speed-lines", "100000") == 2
    assert "lower these" in capsys.readouterr().err
    assert run(tmp_path / "run", corpus) == 0


@pytest.mark.parametrize("line, message", [("[]", "not an object"), ('{"name": "1,2,8,8"}', "has no"),
                                           ("x", "not valid")])
def test_a_bad_row_is_named_with_its_remedy(tmp_path, line, message):
    search(tmp_path, BY_COST, TEACHER)
    with open(tmp_path / "candidates.jsonl", "a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    with pytest.raises(BortError, match=f"candidates.jsonl, line 5: .*{message}.*remove that line"):
        search(tmp_path, BY_COST, TEACHER, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"settings": {}}')
    (tmp_path / "other" / "speed.jsonl").write_text('{"visit": "1,2,8,8 in round 0"}\n')
    with pytest.raises(BortError, match="speed.jsonl, line 1: has no 'seconds'; remove that line"):
        measured_speed(SearchFolder(tmp_path / "other", {}, resume=True), BY_COST.space, 16, 1, 1)


def test_without_training_the_whole_space_takes_neither_corpus_nor_teacher(tmp_path):
    rows = search(tmp_path / "run", SearchSettings(steps=0))
    assert len(rows) == 150 and all(row["ce"] == 1 for row in rows)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["candidates.jsonl", "claims",
                                                                          "config.json", "space.json"]
    # Nothing but size and speed counts, so the smallest and fastest tuple wins.
    assert Architecture.from_dict(rows[0]["architecture"]) == Architecture(2, 4, 512, 256)
    assert {row["interval"] for row in rows} == set(range(150))
    assert len(search(tmp_path / "all", SearchSettings(steps=0, epsilon=1, include=(parse("bort"),)))) == 300
    more = search(tmp_path / "with", SearchSettings(steps=0, include=(parse("bort"),)))
    assert len(more) == 151 and [row["interval"] for row in more if row["name"]
                                 == str(parse("bort"))] == [None]


def test_measured_speed_is_timed_once_and_used(tmp_path, monkeypatch):
    timed = []

    def fake(architecture: Architecture, length: int, batch_size: int, passes: int) -> List[float]:
        timed.append(architecture)
        assert (length, batch_size) == (16, 4)
        return [0.1 * architecture.depth + 0.01 * len(timed)] * passes

    monkeypatch.setattr(shared_costs, "time_forward", fake)
    space = [Architecture(depth, 2, 8, 8) for depth in (1, 2)]
    folder = SearchFolder(tmp_path, {})
    found = measured_speed(folder, space, 16, 4, 18)  # 5 passes in 3 rounds
    assert timed == space * 3  # interleaved
    # The median of the five passes of each, per sample.
    assert [found[xi] for xi in space] == pytest.approx([0.25 * (0.1 + 0.03), 0.25 * (0.2 + 0.04)])
    assert measured_speed(folder, space, 16, 4, 18) == found and len(timed) == 6
    assert read_json(tmp_path / "speed.json")["passes"] == 5


def test_a_timing_resumed_with_other_threads_begins_anew(tmp_path, monkeypatch):
    space, timed = [Architecture(depth, 2, 8, 8) for depth in (1, 2)], []

    def fake(architecture: Architecture, length: int, batch_size: int, passes: int) -> List[float]:
        timed.append((os.environ["OMP_NUM_THREADS"], architecture.depth))
        if timed == [("1", 1), ("1", 2)]:
            raise KeyboardInterrupt
        return [float(len(timed))] * passes

    monkeypatch.setattr(shared_costs, "time_forward", fake)
    folder = SearchFolder(tmp_path, {})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(KeyboardInterrupt):
        measured_speed(folder, space, 16, 1, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert list(measured_speed(folder, space, 16, 1, 1).values()) == [3, 4]
    assert timed[2:] == [("2,1", 1), ("2,1", 2)] and read_json(tmp_path / "speed.json")["threads"] == 2
    assert [row["threads"] for row in read_jsonl(tmp_path / "speed.jsonl")] == [1, 2, 2]


def test_a_search_by_measured_time(tmp_path):
    settings = SearchSettings(depths=(1,), heads=(2,), hidden=(8, 16), intermediate=(8,), epsilon=1, steps=0,
                              max_length=16, speed="measured", speed_lines=4, speed_batch_size=2)
    rows = search(tmp_path / "run", settings, teacher="8,4,64,256")
    seconds = {row["name"]: row["seconds_per_sample"] for row in read_json(tmp_path / "run"
                                                                           / "space.json")["tuples"]}
    assert all(row["speed"] == row["seconds_per_sample"] == seconds[row["name"]] > 0 for row in rows)
    # three networks, a round for each of two passes
    assert len(read_jsonl(tmp_path / "run" / "speed.jsonl")) == 3 * 2


@pytest.mark.parametrize("arguments, message", [
    (["--teacher", "1,2,8,8"], "must be the maximum point"),
    (["--teacher", "nowhere"], "not a preset"),
    (["--epsilon", "99"], "epsilon"),
    (["--heads", "3"], "empty"),
    (["--speed-lines", "100000"], "needed"),
    (["--tokenizer", "nowhere"], "nowhere"),
    (["--corpus", "nowhere"], "no such file"),
])
def test_bad_input_is_one_line_with_a_remedy(arguments, message, corpus, tmp_path, capsys):
    assert run(tmp_path / "run", corpus, *arguments) == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith("error: ") and message in printed


def test_a_corpus_is_asked_for_and_presets_are_complete(tmp_path, capsys):
    import run_search

    assert run_command(run_search.main, ["--output", str(tmp_path / "run")]) == 2
    assert "--corpus is missing" in capsys.readouterr().err
    for preset in run_search.PRESETS:
        args = run_search.arguments(["--output", "x", "--preset", preset, "--seed", "7"])
        settings = SearchSettings(**{name: getattr(args, name)
                                     for name in SearchSettings.__dataclass_fields__})
        top = parse(args.teacher)
        costs = surrogates([*settings.space, top], settings, 1000)
        check_maximum(costs, top)
        assert settings.seed == 7
    paper = vars(run_search.arguments(["--output", "x"]))
    assert SearchSettings(**{name: paper[name] for name in SearchSettings.__dataclass_fields__ if name
                             != "include"}) == SearchSettings()


def test_abbreviations_are_refused(capsys):
    import run_search

    with pytest.raises(SystemExit):
        run_search.arguments(["--output", "x", "--pres", "tiny"])
    assert "--pres" in capsys.readouterr().err


def test_shorter_shards_are_told_of(corpus, tmp_path):
    settings = replace(SETTINGS, max_length=24, steps=1)
    with pytest.warns(UserWarning,
                      match="at most 16 tokens a line, so lines are that long and not --max-length 24"):
        rows = search(tmp_path / "run", settings, TEACHER, corpus)
    assert "lines of 24 tokens, of which the shards give at most 16," in write_table(
        tmp_path / "run", rows, read_json(tmp_path / "run" / "space.json"), settings)


def test_the_benchmark_adds_up_what_a_run_took_over_all_calls(tmp_path):
    from benchmarks.search_runs import used

    assert used(tmp_path / "run", 60.0, 900.0) == (60.0, 900.0)
    assert used(tmp_path / "run", 2.0, 100.0) == (62.0, 900.0)  # a call that found everything finished
    assert used(tmp_path / "other", 1.0, 2.0) == (1.0, 2.0)


def test_a_text_is_prepared_with_the_tokenizer_given_or_one_trained_on_it(text, corpus, tmp_path,
                                                                          monkeypatch):
    monkeypatch.setenv("BORT_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("MXNET_HOME", str(tmp_path / "nothing"))
    settings = replace(SETTINGS, max_length=16, steps=1)
    with pytest.warns(UserWarning, match="⟨3, 2, 24, 32⟩ has no weights"):
        given = search(tmp_path / "given", settings, TEACHER, text, tokenizer=corpus / "tokenizer")
    same = search(tmp_path / "shards", settings, TEACHER, corpus)
    assert [row["ce"] for row in given] == [row["ce"] for row in same]
    search(tmp_path / "trained", settings, TEACHER, text, tokenizer_size=50)
    assert load_tokenizer(tmp_path / "trained" / "tokenizer").vocab_size == 50
    assert read_json(tmp_path / "trained" / "space.json")["vocab_size"] == 50
    with pytest.raises(BortError, match="another tokenizer"):
        search(tmp_path / "other", settings, TEACHER, corpus, tokenizer=tmp_path / "trained" / "tokenizer")


def train_head(model: Bert) -> None:
    """As much training as a teacher is asked for."""
    model.decoder[3].bias.data()[:] = 0.01


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
