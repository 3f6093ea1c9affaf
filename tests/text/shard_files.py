"""What the tests of shards share: how they are made, and what is in them."""

from __future__ import annotations

from dataclasses import replace

from bort.text.shards.dataset import ShardDataset
from bort.text.shards.plan import PrepareOptions
from bort.text.tokenizers.loading import load_tokenizer


def options(corpus, tokenizer_folder, output, **changes):
    given = PrepareOptions(
        inputs=[corpus],
        output=output,
        tokenizer=tokenizer_folder,
        max_length=64,
        seed=1,
        block_characters=8000,
        bucket_bytes=60_000,
    )
    return replace(given, **changes)


def content(folder):
    """What must not depend on how the work was done: every file but the report and the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("report.json", ".lock")
    }


def texts_of(folder, split):
    dataset = ShardDataset(folder, split)
    tokenizer = load_tokenizer(dataset.tokenizer_path)
    return [tokenizer.decode(dataset[index]) for index in range(len(dataset))]


def names_in(texts):
    return [word for text in texts for word in text.replace(".", " ").split() if word.startswith("Document0")]
