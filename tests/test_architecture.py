"""The 4-tuple: rules, counts against hand-computed figures, the search space and every way to name one."""
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bort.architecture import PRESETS, Architecture, parse, search_space
from bort.errors import BortError

BORT = Architecture(4, 8, 1024, 768)


def test_exact_counts_of_bort_and_its_teacher_are_the_releases():
    counts = BORT.parameters(50265, 512)
    assert counts["total"] == 76_208_217
    assert counts["body"] == 75_106_304
    assert BORT.parameters(50265, 512, token_types=2)["body"] == 75_106_304 + 2 * 1024
    assert PRESETS["roberta-large"].architecture.parameters()["total"] == 355_408_985


def test_lemmas_equal_hand_computed_values():
    # <1, 1, 2, 3>, V = 5, S = 7: 1*(4*4 + 2*2*3 + 18 + 3) + 4 + (5 + 7 + 6)*2
    assert Architecture(1, 1, 2, 3).lemma2_parameters(5, 7) == 49 + 4 + 36
    # 1*(4*3*2 + 4 + 3*3 + 7*9) + 3*2 + 3*2
    assert Architecture(1, 1, 2, 3).lemma1_flops() == 24 + 4 + 9 + 63 + 6 + 6
    assert round(BORT.lemma2_parameters() / 1e6, 1) == 76.2


def test_a_head_size_of_its_own_is_counted_by_hand():
    # H = 4, two heads of 1 unit: Q, K, V (2, 4) with 2 biases each, output (4, 2) with 4; ffn 3 wide
    narrow = Architecture(1, 2, 4, 3, head_size=1)
    layer = 3 * (2 * 4 + 2) + (4 * 2 + 4) + (4 * 3 + 3) + (3 * 4 + 4) + 4 * 4
    assert narrow.parameters(5, 7) == {"embeddings": (5 + 7 + 2) * 4, "encoder": layer, "body": 56 + layer,
                                       "mlm_head": 4 * 4 + 4 + 2 * 4 + 5, "total": 56 + layer + 33}
    assert narrow.lemma2_parameters(5, 7) == layer + 4 * 4 + (5 + 7 + 6) * 4
    assert narrow.lemma1_flops() == 3 * 7 * 2 + 3 * 4 + 2 * 4 + 7 * 3 + 7 * 9 + 7 * 4 + 3 * 4
    # at 10 tokens: half the heads' products of <1, 4, 4, 3>, half its softmax
    assert Architecture(1, 4, 4, 3).flops(10) - narrow.flops(10) == \
        10 * 2 * 4 * 4 * 2 + 2 * 2 * 10 * 10 * 2 + 5 * 2 * 10 * 10


def test_a_head_size_of_its_own_is_a_fifth_member():
    narrow = Architecture(4, 6, 768, 1536, 64)
    assert (narrow.attention_units, BORT.attention_units, BORT.head_size) == (384, 1024, 128)
    assert repr(narrow) == "Architecture(depth=4, heads=6, hidden=768, intermediate=1536, head_size=64)"
    assert eval(repr(BORT)) == BORT and "head_size" not in repr(BORT)
    assert str(narrow) == "4,6,768,1536,64" and narrow.display == "⟨4, 6, 768, 1536, 64⟩"
    assert parse(str(narrow)) == narrow == Architecture.from_dict(narrow.to_dict())
    assert narrow.to_dict() == {"depth": 4, "heads": 6, "hidden": 768, "intermediate": 1536, "head_size": 64}
    same = Architecture(4, 8, 1024, 768, head_size=128)
    assert same == BORT and hash(same) == hash(BORT) and str(same) == str(BORT) == "4,8,1024,768"
    assert set(same.to_dict()) == {"depth", "heads", "hidden", "intermediate"}
    assert sorted([Architecture(4, 6, 768, 1536), narrow]) == [narrow, Architecture(4, 6, 768, 1536)]
    assert Architecture(1, 5, 16, 4, head_size=2).attention_units == 10  # A need not divide H then
    for wrong, message in (((4, 13, 768, 1536, 64), "more units"), ((4, 6, 768, 1536, 0), "positive"),
                           ((4, 6, 768, 1536, 6.4), "integer")):
        with pytest.raises(BortError, match=message):
            Architecture(*wrong)


def test_flops_match_the_measured_order():
    # performance.md: about 28 GFLOP at 512 tokens, 23.6 of them in the linear layers.
    linear = 512 * 4 * (8 * 1024**2 + 4 * 1024 * 768)
    assert abs(linear / 1e9 - 23.6) < 0.1
    assert linear < BORT.flops(512) < 29e9
    assert BORT.flops(512, masked_positions=1) - BORT.flops(512) > 2 * 1024 * 50265


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 16), st.integers(1, 64), st.integers(1, 100))
def test_costs_grow_with_every_member(depth, heads, head_size, inner, length):
    small = Architecture(depth, heads, heads * head_size, inner)
    for larger in (Architecture(depth + 1, heads, small.hidden, inner),
                   Architecture(depth, heads, small.hidden, inner + 1),
                   Architecture(depth, heads, small.hidden + heads, inner)):
        assert larger.parameters()["total"] > small.parameters()["total"]
        assert larger.lemma2_parameters() > small.lemma2_parameters()
        assert larger.lemma1_flops() > small.lemma1_flops()
        assert larger.flops(length) > small.flops(length)


@pytest.mark.parametrize("values, rule", [((4, 5, 1024, 768), "divisible"), ((0, 8, 1024, 768), "positive"),
                                          ((4, 8, -1024, 768), "positive"), ((4.0, 8, 1024, 768), "integer"),
                                          ((True, 8, 1024, 768), "integer"), (("4", 8, 1024, 768), "integer"),
                                          ((4, 8, 1024, 1 << 40), "larger")])
def test_impossible_tuples_name_the_rule(values, rule):
    with pytest.raises(BortError, match=rule):
        Architecture(*values)


def test_the_papers_space_has_300_of_360_tuples():
    space = search_space()
    assert len(space) == len(set(space)) == 300
    assert space == sorted(space)
    assert BORT in space and PRESETS["bert-base"].architecture in space
    with pytest.raises(BortError, match="empty"):
        search_space(heads=[7])
    with pytest.raises(BortError, match="heads"):
        search_space(heads=[0])
    with pytest.raises(BortError, match="empty"):
        search_space(depths=[])


def test_parse_accepts_every_way_to_name_one(tmp_path):
    best = tmp_path / "best.json"
    best.write_text(json.dumps({"architecture": BORT.to_dict(), "W": 8.6}))
    for text in ("bort", "BORT", "4,8,1024,768", " 4, 8, 1024, 768 ", str(best), BORT):
        assert parse(text) == BORT
    assert parse("bort_2_16_512_1024") == Architecture(2, 16, 1024, 512)


@pytest.mark.parametrize("text, message", [("nonsense", "preset"), ("4,8,1024", "four"),
                                           ("4,8,x,768", "integers"), ("4,7,1024,768", "divisible"),
                                           ("missing.json", "cannot be read"), ("4.0,8,1024,768", "integers"),
                                           ("", "preset"), ("-4,8,1024,768", "positive")])
def test_parse_names_what_is_wrong(text, message):
    with pytest.raises(BortError, match=message):
        parse(text)


@pytest.mark.parametrize("content", ["[]", "{}", '{"architecture": 4}', '{"architecture": {"depth": 4}}', "{",
                                     '"x"',
                                     '{"architecture": {"depth": 4, "heads": 8, "hidden": 1024, '
                                     '"intermediate": null}}'])
def test_a_broken_best_json_is_a_clear_error(tmp_path, content):
    path = tmp_path / "best.json"
    path.write_text(content)
    with pytest.raises(BortError):
        parse(str(path))


@given(st.text())
def test_parse_never_fails_otherwise(text):
    try:
        assert isinstance(parse(text), Architecture)
    except BortError:
        pass
