"""The two steps of making shards, as a worker process does them: scatter a block of documents, pack a bucket.

Between the steps stands a file for each block ("spill"); its sections are the block's share of each bucket
and split. Which bucket, split and place a document or sentence gets is drawn from (seed, group, block), so it
does not depend on who does the work or in which order. Every file is written atomically: what exists is
whole, and is not made again.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from bort.errors import BortError
from bort.files import atomic_write
from bort.json_files import parse_json, write_json
from bort.text.corpus.cleaning import clean_document
from bort.text.corpus.segmentation import count_words
from bort.text.corpus.sentences import blank_after
from bort.text.shards.dataset import SPLITS, token_dtype, write_shard
from bort.text.shards.packing import pack_sentences
from bort.text.tokenizers.loading import Tokenizer, load_tokenizer

_MAGIC = b"BORTSPIL"
_TABLE = np.dtype("<i8")
_KEYS, _COUNTS = np.dtype("<u8"), np.dtype("<u4")


class ScatterSettings(NamedTuple):
    """What decides the content of the spill files and shards."""

    seed: int
    shuffle: str
    ratios: Tuple[float, ...]
    buckets: int
    max_length: int
    output: str
    tokenizer: str


class Section(NamedTuple):
    """Documents (or, when sentences are shuffled, sentences) of one bucket and split; n of them.

    ``keys`` uint64 (n,) is their order; ``sizes`` uint32 (n,) the sentences in each; ``lengths`` uint32
    (sentences,) the tokens in each sentence; ``tokens`` all ids in a row.
    """

    keys: np.ndarray
    sizes: np.ndarray
    lengths: np.ndarray
    tokens: np.ndarray


@dataclass
class _Process:
    """What a process that does these steps has; filled in by :func:`start_worker`."""

    settings: ScatterSettings
    tokenizer: Tokenizer


_process: Optional[_Process] = None


def start_worker(settings: ScatterSettings) -> None:
    """Prepare a process for the functions below, and let it end with its parent, however that ends."""
    import multiprocessing

    parent = getattr(multiprocessing, "parent_process", lambda: None)()
    if parent is not None:
        # A worker whose parent was killed would otherwise wait for work for ever.
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    global _process
    _process = _Process(settings=settings, tokenizer=load_tokenizer(settings.tokenizer))


def scatter_block(
    group: int, block: int, documents: Sequence[str], format: str, path: str, min_words: int
) -> None:
    """Clean, split and tokenize a block of raw documents, and write its spill file."""
    assert _process is not None, "start_worker comes first"
    settings, tokenizer = _process.settings, _process.tokenizer
    counts: Counter = Counter()
    texts: List[str] = []
    sizes: List[int] = []
    for raw in documents:
        for sentences in clean_document(raw, format, min_words, counts):
            counts["words"] += sum(map(count_words, sentences))
            texts.append(sentences[0])
            # Inside a document a sentence follows another after a blank, which belongs to its first token.
            texts.extend(
                sentences[1:]
                if settings.shuffle == "sentences"
                else (blank_after(before) + text for before, text in zip(sentences, sentences[1:]))
            )
            sizes.append(len(sentences))
    counts["characters"] = sum(map(len, texts))
    rows = tokenizer.encode_batch(texts)
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    tokens = np.fromiter(chain.from_iterable(rows), token_dtype(tokenizer.vocab_size), int(lengths.sum()))
    counts["documents"], counts["sentences"], counts["tokens"] = len(sizes), len(texts), len(tokens)
    if settings.shuffle == "sentences":
        sizes = [1] * len(texts)
    _write_spill(
        Path(path),
        _sections(np.asarray(sizes, dtype=np.int64), lengths, tokens, group, block, settings),
        dict(counts),
    )


def _sections(
    sizes: np.ndarray,
    lengths: np.ndarray,
    tokens: np.ndarray,
    group: int,
    block: int,
    settings: ScatterSettings,
) -> List[Section]:
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([settings.seed, group, block])))
    splits = _draw_splits(len(sizes), settings.ratios, rng)
    if settings.shuffle == "none":
        keys = np.arange(len(sizes), dtype=np.uint64)
        buckets = np.zeros(len(sizes), dtype=np.int64)
    else:
        keys = rng.integers(0, 1 << 64, len(sizes), dtype=np.uint64)
        buckets = rng.integers(0, settings.buckets, len(sizes))
    place = buckets * len(SPLITS) + splits
    count = settings.buckets * len(SPLITS)
    order = np.argsort(place, kind="stable")
    first_sentence = np.concatenate([[0], np.cumsum(sizes)])
    first_token = np.concatenate([[0], np.cumsum(lengths)])
    borders = np.searchsorted(place[order], np.arange(count + 1))
    sections = []
    for number in range(count):
        units = order[borders[number] : borders[number + 1]]
        sentences = ranges(first_sentence[units], sizes[units])
        picked = ranges(first_token[sentences], lengths[sentences])
        sections.append(Section(keys[units], sizes[units], lengths[sentences], tokens[picked]))
    return sections


def _draw_splits(count: int, ratios: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """int64 (count,): a split for each, in exact shares but for the remainder, which is drawn."""
    exact = np.round(np.asarray(ratios) * count, 6)
    whole = np.floor(exact).astype(np.int64)
    rest = count - int(whole.sum())
    if rest:
        left = exact - whole
        drawn = rng.choice(len(ratios), size=rest, replace=False, p=left / left.sum())
        whole += np.bincount(drawn, minlength=len(ratios))
    return rng.permutation(np.repeat(np.arange(len(ratios)), whole))


def ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The numbers ``start, ..., start + size - 1`` of all ranges, one after another."""
    sizes = sizes.astype(np.int64)
    ends = np.cumsum(sizes)
    return np.repeat(starts.astype(np.int64) - (ends - sizes), sizes) + np.arange(
        int(ends[-1]) if len(ends) else 0
    )


def _write_spill(path: Path, sections: List[Section], counts: Dict[str, int]) -> None:
    header = json.dumps(counts, sort_keys=True).encode()
    table = np.zeros((len(sections), 4), dtype=_TABLE)
    place = len(_MAGIC) + 8 + len(header) + table.nbytes
    for row, section in zip(table, sections):
        row[:] = len(section.keys), len(section.lengths), len(section.tokens), place
        place += 12 * len(section.keys) + 4 * len(section.lengths) + section.tokens.nbytes
    with atomic_write(path, "wb") as stream:
        stream.write(_MAGIC + len(header).to_bytes(8, "little") + header)
        stream.write(table.tobytes())
        for section in sections:
            stream.write(section.keys.astype(_KEYS).tobytes() + section.sizes.astype(_COUNTS).tobytes())
            stream.write(section.lengths.astype(_COUNTS).tobytes() + section.tokens.tobytes())


def _read_header(stream: Any, path: Path) -> Tuple[Dict[str, int], int]:
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise BortError(f"{path}: not a file of this program; remove it and run the command again")
    size = int.from_bytes(stream.read(8), "little")
    counts = parse_json(stream.read(min(size, 1 << 20)), str(path))
    if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
        raise BortError(f"{path}: damaged; remove it and run the command again")
    return counts, len(_MAGIC) + 8 + size


def read_counts(path: Path) -> Dict[str, int]:
    """What was counted while a spill file was made."""
    with open(path, "rb") as stream:
        return _read_header(stream, path)[0]


def read_section(path: Path, number: int, dtype: np.dtype) -> Section:
    """One section of a spill file."""
    with open(path, "rb") as stream:
        _, table = _read_header(stream, path)
        stream.seek(table + number * 4 * _TABLE.itemsize)
        units, sentences, tokens, place = np.frombuffer(
            stream.read(4 * _TABLE.itemsize), dtype=_TABLE
        ).tolist()
        stream.seek(place)
        parts = [
            np.frombuffer(stream.read(count * kind.itemsize), dtype=kind)
            for count, kind in ((units, _KEYS), (units, _COUNTS), (sentences, _COUNTS), (tokens, dtype))
        ]
    if len(parts[3]) != tokens:
        raise BortError(f"{path}: cut short; remove it and run the command again")
    return Section(*parts)


def pack_bucket(bucket: int, number: Optional[int], spills: Sequence[str], result: str) -> None:
    """Shuffle and pack the sections of one bucket, write its shards, and describe them in
    the file ``result``.

    Args:
        bucket: names the shards.
        number: which of a spill file's buckets; None keeps the order of the files (their only bucket).
        spills: the files, in order.
        result: JSON, written last.
    """
    assert _process is not None, "start_worker comes first"
    settings, tokenizer = _process.settings, _process.tokenizer
    dtype = token_dtype(tokenizer.vocab_size)
    found: Dict[str, Any] = {}
    for place, split in enumerate(SPLITS):
        parts = [read_section(Path(path), (number or 0) * len(SPLITS) + place, dtype) for path in spills]
        section = Section(*(np.concatenate(arrays) for arrays in zip(*parts)))
        del parts
        if not len(section.keys):
            continue
        units = np.arange(len(section.keys)) if number is None else np.argsort(section.keys, kind="stable")
        sizes = section.sizes.astype(np.int64)
        lengths = section.lengths.astype(np.int64)
        sentences = ranges((np.cumsum(sizes) - sizes)[units], sizes[units])
        # A separator stands between units: documents, or sentences when these are shuffled.
        opens = np.zeros(len(sentences), dtype=bool)
        opens[np.cumsum(sizes[units]) - sizes[units]] = True
        packed, offsets = pack_sentences(
            section.tokens,
            (np.cumsum(lengths) - lengths)[sentences],
            lengths[sentences],
            opens,
            settings.max_length,
            tokenizer.bos_id,
            tokenizer.eos_id,
        )
        entry: Dict[str, Any] = {"units": len(units), "sentences": len(sentences)}
        if len(offsets) > 1:
            entry["shard"] = write_shard(settings.output, f"{split}-{bucket:05d}", packed, offsets)
        found[split] = entry
    write_json(result, found)
