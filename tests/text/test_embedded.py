"""The embedded corpus, and sentence boundaries."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bort.text.corpus.embedded import embedded_documents, embedded_sentences
from bort.text.corpus.sentences import split_sentences


def test_corpus_is_a_megabyte_of_prose():
    sentences = embedded_sentences()
    assert sum(map(len, sentences)) > 700_000 and len(set(sentences)) == len(sentences)
    assert all(sentence[0].isupper() and sentence[-1] in ".!?" for sentence in sentences)
    assert not any(
        mark in sentence for sentence in sentences for mark in (">>>", "::", "\n", "\t", "{", "  ")
    )
    assert " ".join(embedded_documents()) == " ".join(sentences)
    letters = Counter("".join(sentences).lower())
    assert letters["e"] == max(letters[letter] for letter in "abcdefghijklmnopqrstuvwxyz"), "this is English"


def test_corpus_is_the_same_in_another_process_and_imports_nothing_of_what_it_reads():
    code = (
        "import sys, hashlib; from bort.text.corpus.embedded import embedded_sentences; "
        "print(hashlib.sha256('\\n'.join(embedded_sentences()).encode()).hexdigest(), "
        "[name for name in ('antigravity', 'this', 'turtle', 'mxnet') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=str(Path(__file__).parents[2]),
        check=True,
        stdout=subprocess.PIPE,
        universal_newlines=True,
    )
    import hashlib

    assert (
        result.stdout.strip() == hashlib.sha256("\n".join(embedded_sentences()).encode()).hexdigest() + " []"
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        (
            "Mr. Smith met Dr. J. R. Jones, e.g. on Jan. 5. He left.",
            ["Mr. Smith met Dr. J. R. Jones, e.g. on Jan. 5.", "He left."],
        ),
        ("He lives in the U.S. The U.S. Army left.", ["He lives in the U.S.", "The U.S. Army left."]),
        (
            'He said "No." She said "Yes!" (Really.) Then',
            ['He said "No."', 'She said "Yes!"', "(Really.)", "Then"],
        ),
        (
            "It costs 3.50. version 2. is out... and so on.",
            ["It costs 3.50. version 2. is out... and so on."],
        ),
        ("", []),
        ("   ", []),
    ],
)
def test_sentence_boundaries(text, expected):
    assert split_sentences(text) == expected


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from("aB. !?\"'(\n)U.S 1")))
def test_splitting_loses_nothing_but_blanks(text):
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)
