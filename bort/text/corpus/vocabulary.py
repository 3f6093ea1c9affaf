"""A SentencePiece vocabulary from a sample of a corpus."""

from __future__ import annotations

import random
from collections import Counter
from typing import Dict, Iterator, List

from bort.files import PathLike
from bort.text.corpus.cleaning import clean_document
from bort.text.corpus.readers import read_documents
from bort.text.corpus.sources import ReadCounts, ReadOptions, Source
from bort.text.tokenizers.pieces import train_sentencepiece

SAMPLE_BYTES = 24_000_000
"""About how much text a vocabulary is trained on; training needs some thirty times as much memory."""

_PIECE = 20_000


def train_from_sources(
    sources: List[Source],
    options: ReadOptions,
    min_words: Dict[str, int],
    vocab_size: int,
    seed: int,
    folder: PathLike,
) -> None:
    """Train a vocabulary on a random sample of the sources' sentences and save it; the same for
    the same seed.

    Raises:
        BortError: no text, a damaged file, or a vocabulary too small for its characters.
    """
    sample = _sample(sources, options, min_words, seed)
    train_sentencepiece(sample, vocab_size, seed=seed, max_lines=SAMPLE_BYTES // 60).save(folder)


def _sample(
    sources: List[Source], options: ReadOptions, min_words: Dict[str, int], seed: int
) -> Iterator[str]:
    share = SAMPLE_BYTES / max(1, sum(source.text_bytes for source in sources))
    generator = random.Random(seed)
    dropped: Counter = Counter()
    for source in sources:
        for document in read_documents(source, options, ReadCounts()):
            for piece in _pieces(document, source.format):
                if share >= 1 or generator.random() < share:
                    for sentences in clean_document(piece, source.format, min_words[source.format], dropped):
                        yield from sentences


def _pieces(document: str, format: str) -> Iterator[str]:
    """A wiki page whole; other documents in parts, so that a few large ones can be sampled too."""
    if format in ("wikipedia", "wiktionary"):
        yield document
        return
    begin = 0
    while begin < len(document):
        end = document.find("\n", begin + _PIECE)
        end = len(document) if end < 0 or end > begin + 4 * _PIECE else end
        end = min(end, begin + 4 * _PIECE)
        yield document[begin:end]
        begin = end
