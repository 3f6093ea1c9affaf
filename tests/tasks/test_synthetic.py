"""The embedded task: its files label themselves, and are read like official ones."""
from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bort.errors import BortError
from bort.tasks import get_task
from bort.tasks.synthetic import swap_neighbours, write_embedded_task
from bort.text.corpus.embedded import embedded_sentences


def rows_of(path):
    return [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_task_is_balanced_disjoint_and_repeats(tmp_path):
    written = set(embedded_sentences())
    paths = write_embedded_task(tmp_path / "a", seed=3, sizes=(401, 100, 60))
    write_embedded_task(tmp_path / "b", seed=3, sizes=(401, 100, 60))
    write_embedded_task(tmp_path / "c", seed=4, sizes=(401, 100, 60))
    for path in paths.values():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert path.read_bytes() != (tmp_path / "c" / path.name).read_bytes()
    examples = {name: rows_of(paths[name])[1:] for name in ("train", "dev")}
    labels = dict(rows_of(paths["test_labels"])[1:])
    examples["test"] = [[sentence, labels[index]] for index, sentence in rows_of(paths["test"])[1:]]
    assert rows_of(paths["train"])[0] == ["sentence", "label"] and rows_of(paths["test"])[0] == [
        "index",
        "sentence",
    ]
    bags = Counter()
    for name, size in (("train", 401), ("dev", 100), ("test", 60)):
        assert Counter(label for _, label in examples[name]) == {"1": size - size // 2, "0": size // 2}
        bags.update({tuple(sorted(sentence.split())) for sentence, _ in examples[name]})
        for sentence, label in examples[name]:
            assert (sentence in written) == (label == "1")
    # A sentence and its swapped form have the same words, so that no bag of words is in two splits.
    assert max(bags.values()) == 1


def test_topic_task_is_balanced_disjoint_and_what_its_name_says(tmp_path):
    written = set(embedded_sentences())
    paths = write_embedded_task(tmp_path, seed=3, sizes=(401, 100, 60), kind="topic")
    splits = [
        rows_of(paths["train"])[1:],
        rows_of(paths["dev"])[1:],
        [row[1:] for row in rows_of(paths["test"])[1:]],
    ]
    for rows, size in zip(splits, (401, 100, 60)):
        assert len(rows) == size
    for rows in splits[:2]:
        assert Counter(label for _, label in rows) == {"1": (len(rows) + 1) // 2, "0": len(rows) // 2}
    sentences = [row[0] for rows in splits for row in rows]
    assert len(set(sentences)) == len(sentences) and written.issuperset(sentences)
    # Words of the one kind of module are rare in the other, though not every sentence has one.
    share = [
        np.mean(
            [
                any(
                    word in sentence.lower()
                    for word in ("http", "email", "server", "socket", "url", "message")
                )
                for sentence, label in splits[0]
                if label == wanted
            ]
        )
        for wanted in "01"
    ]
    assert share[1] > 3 * share[0]
    with pytest.raises(BortError, match="topics.*order, topic"):
        write_embedded_task(tmp_path, 0, kind="topics")


def test_a_swap_exchanges_two_neighbours_inside():
    sentence = "The quick brown fox jumps over the dog."
    rng = np.random.default_rng(0)
    swaps = {swap_neighbours(sentence, rng) for _ in range(200)}
    assert len(swaps) == 5 and sentence not in swaps
    for swapped in swaps:
        assert (
            swapped.startswith("The ") and swapped.endswith(" dog.") and sorted(swapped) == sorted(sentence)
        )
        assert sum(a != b for a, b in zip(swapped.split(), sentence.split())) == 2
    assert swap_neighbours("Xerxes was, was not.", rng) is None


@pytest.mark.parametrize("sizes", [(1, 1), (0, 5, 5), (10**6, 1, 1), (1.5, 2, 2)])
def test_impossible_sizes_are_refused(tmp_path, sizes):
    with pytest.raises(BortError, match="sizes|embedded corpus has"):
        write_embedded_task(tmp_path, 0, sizes)
    assert not list(tmp_path.iterdir())


def test_the_test_sets_labels_are_found_beside_it(tmp_path):
    paths = write_embedded_task(tmp_path, seed=0, sizes=(20, 10, 9))
    split = get_task("Embedded").read(tmp_path, "test")
    assert split.gold().tolist() == [int(label) for _, label in rows_of(paths["test_labels"])[1:]]
    paths["test_labels"].unlink()
    assert not get_task("Embedded").read(tmp_path, "test").labelled
