"""Time in proportion to the text, whatever it holds: every pattern over user text is tried on text made to be
slow."""

from __future__ import annotations

from collections import Counter

import pytest

from bort.text.corpus.cleaning import clean_document
from bort.text.corpus.segmentation import count_words, join_lines, longest_word
from bort.text.corpus.sentences import split_sentences
from bort.text.corpus.sources import Source
from bort.text.shards.prepare import group_files
from tests.growth import assert_linear

PATTERNS = (
    '.~!?~..."~.)~. ~\u3002~\u3002 ~\u0964~?!\u2026 (~ ~\t~\u2003~a   ~= ~== ~=~<~<a ~</~<!--~<script~<!~&'
    "~&#1~&amp;~&#x~<a b=~</a>~|~{{a|~[[a|~{|~'''"
    "~* \n~\n~\r\n~#~# ~#* a\n~[http://x ~<ref>~\u0e01~\u4e2d"
    "~\u4e2d\n~\U0001f1e9~e\u0301~\u0301~\0~a.b~\u200d~1,~a'~A."
).split("~")


def repeated(pattern, before, after):
    return lambda size: before + pattern * (size // len(pattern)) + after


def clean(format):
    return lambda text: list(clean_document(text, format, 1, Counter()))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_cleaning_takes_time_in_proportion_to_the_text(pattern):
    for before, after in (("", ""), ("a = b ", "x"), ("<b>=", " .")):
        assert_linear(clean("text"), repeated(pattern, before, after))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_cleaning_wikitext_takes_time_in_proportion_to_the_text(pattern):
    pytest.importorskip("mwparserfromhell")
    for format, before in (
        ("wikipedia", ""),
        ("wiktionary", "==English==\n# "),
        ("wiktionary", "==English==\n== "),
    ):
        assert_linear(clean(format), repeated(pattern, before, " x"))


@pytest.mark.parametrize(
    "function",
    [split_sentences, count_words, longest_word, join_lines],
    ids=lambda function: function.__name__,
)
def test_segmentation_takes_time_in_proportion_to_the_text(function):
    for pattern in PATTERNS:
        for after in ("", "x", " x"):
            assert_linear(function, repeated(pattern, "A", after))


def test_grouping_files_takes_time_in_proportion_to_their_number(tmp_path):
    assert_linear(
        lambda sources: group_files(sources, 1 << 40),
        lambda size: [Source(tmp_path, str(number), 1, "text") for number in range(size)],
    )


def test_what_is_not_linear_is_noticed():
    with pytest.raises(AssertionError, match="took"):
        assert_linear(
            lambda text: [text[:end].count("a") for end in range(0, len(text), 8)], lambda size: "a" * size
        )
