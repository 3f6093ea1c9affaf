"""A corpus, its lines, a teacher's outputs and an undisturbed run, in miniature."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bort.search.lines import Lines
from bort.text.shards.plan import PrepareOptions
from bort.text.shards.prepare import prepare
from bort.text.tokenizers.loading import train_sentencepiece
from tests.search.tiny_search import (
    outputs_of,
    process,
    text_lines,
)


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(text_lines()) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(text) -> Path:
    """The text as shards with a vocabulary of 60."""
    train_sentencepiece(text_lines(), 60).save(text.parent / "tokenizer")
    prepare(PrepareOptions(inputs=[text], output=text.parent / "shards", tokenizer=text.parent / "tokenizer",
                           max_length=16, split="1,0,0"))
    return text.parent / "shards"


@pytest.fixture(scope="session")
def lines() -> Lines:
    """24 lines of 7 to 12 tokens."""
    tokenizer = train_sentencepiece(text_lines(), 60)
    rows = [[tokenizer.bos_id, *ids[:10], tokenizer.eos_id] for ids in tokenizer.encode_batch(text_lines(24))]
    offsets = np.cumsum([0] + [len(row) for row in rows])
    return Lines(np.concatenate(rows).astype(np.int32), offsets, tokenizer, 12, 0.3, 0)


@pytest.fixture(scope="session")
def teacher(lines, tmp_path_factory) -> Any:
    return outputs_of(lines, tmp_path_factory.mktemp("teacher"), scale=4.0)[1]


@pytest.fixture(scope="session")
def alone(corpus, tmp_path_factory) -> Path:
    """The run that all others are compared with: one process, one thread, never interrupted."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert process(folder, corpus).wait() == 0
    return folder
