"""A small task with a tokenizer and a body, for tests of the whole runner."""

from __future__ import annotations

import numpy as np
import pytest

import bort
from bort.models import Bert, initialize
from bort.text.tokenizers.loading import train_sentencepiece
from tests.tiny import TINY


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """SST-2 in miniature, a tokenizer trained on it, and a small fine-tuned teacher."""
    folder = tmp_path_factory.mktemp("finetune")
    rng = np.random.default_rng(0)
    good, bad, plain = (
        "fine lovely great warm".split(),
        "dull awful poor cold".split(),
        "the film a story is and of".split(),
    )

    def sentence(label):
        words = list(rng.choice(plain, 5)) + list(rng.choice(good if label else bad, 2))
        return " ".join(rng.permutation(words))

    (folder / "SST-2").mkdir()
    for split, count in (("train", 160), ("dev", 40)):
        labels = rng.integers(0, 2, count)
        rows = [f"{sentence(label)} \t{label}" for label in labels]
        (folder / "SST-2" / f"{split}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    rows = [f"{i}\t{sentence(i % 2)}" for i in range(20)]
    (folder / "SST-2" / "test.tsv").write_text("index\tsentence\n" + "\n".join(rows) + "\n")
    lines = (folder / "SST-2" / "train.tsv").read_text().splitlines()
    tokenizer = train_sentencepiece(lines, 60)
    tokenizer.save(folder / "tokenizer")
    model = Bert(TINY, tokenizer.vocab_size, max_length=32)
    initialize(model, 0)
    bort.save(model, folder / "bort", tokenizer)
    return folder
