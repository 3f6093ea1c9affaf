"""Steps 1, 2 and 4 of the search: no networks."""
from __future__ import annotations

import json
from typing import List

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bort.architecture import Architecture, search_space
from bort.errors import BortError
from bort.models import Bert
from bort.paper import TABLE_1
from bort.search.fptas import (
    SMALLEST_ERROR,
    Surrogates,
    check_maximum,
    ranked,
    representatives,
    scored,
    surrogates,
    w_coefficient,
)
from bort.search.report import pareto, table1
from bort.search.settings import SearchSettings
from tests.search.tiny_search import (
    CANDIDATE,
    SETTINGS,
)

pytestmark = pytest.mark.filterwarnings("ignore:the teacher .* has no weights")


COSTS = st.dictionaries(st.sampled_from(search_space()), st.tuples(st.integers(1, 20), st.integers(1, 20)),
                        min_size=1, max_size=40).map(lambda found: {xi: Surrogates(*cost) for xi,
                                                                    cost in found.items()})


def test_w_is_equation_2():
    limit = Surrogates(100.0, 10.0)
    assert w_coefficient(Surrogates(30.0, 2.0), limit, 0.5) == pytest.approx(70 * 8 / (100 * 10 * 0.5))
    assert w_coefficient(Surrogates(100.0, 2.0), limit, 0.5) == 0
    assert w_coefficient(Surrogates(30.0, 2.0), limit, -1e-9) == pytest.approx(0.56 / SMALLEST_ERROR)


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


def test_a_diverged_candidate_has_no_w():
    row = {"name": "x", "architecture": CANDIDATE.to_dict(), "size": 1.0, "speed": 1.0}
    found = scored(row, Surrogates(2, 2), {"ce": float("nan"), "kl": 1.0}, [1.0], SETTINGS)
    assert found["W"] is None and found["error"] is None and json.dumps(found, allow_nan=False)


def test_the_papers_tuples_stand_in_the_table_where_they_are_in_the_space():
    def row(architecture):
        return {"name": str(architecture), "architecture": architecture.to_dict(), "W": 1.0, "error": 0.5,
                "parameters": 10, "lemma2_parameters": 9, "flops": 8, "seconds_per_sample": None}

    space = [row(CANDIDATE), *(row(theirs.architecture) for theirs in TABLE_1[:2])]
    table = table1(space[:2], space, top=1)
    assert [line["paper"] for line in table] == [None, *(theirs.name for theirs in TABLE_1[:2])]
    assert [line["rank"] for line in table] == [1, 2, None] and table[1]["paper's W"] == TABLE_1[0].w
