"""Token ids of a split, made once and kept on disk.

A passage that many examples share (RACE: up to twenty) is tokenised once, and the ids of all examples lie in
one flat array, so that a split of 350,000 examples is three files and no Python lists.
"""
from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from bort.errors import BortError
from bort.files import PathLike, read_npy
from bort.json_files import read_json, write_json
from bort.tasks.base import Split, Task
from bort.tasks.reading import without_collection
from bort.text.tokenizers.base import Tokenizer

logger = logging.getLogger("bort.tasks")

CODE_VERSION = 2
"""To be raised whenever the same split, tokenizer and length would give other ids:
it is part of every cache key."""
BATCH_TEXTS = 2048
SPECIALS = 3
"""Special tokens of a pair: ``<s> A </s> B </s>``. A single segment has one less."""
_ARRAYS = ("tokens", "lengths", "labels")


@dataclass
class EncodedSplit:
    """A split as the model takes it.

    Attributes:
        token_ids: N arrays of int32, ``<s>`` and ``</s>`` included, each at most ``max_length`` long. They
            are views of one read-only array, on disk when a cache is used.
        labels: (N,) int64 classes with -1 for none, or float32 values with NaN for none.
        num_truncated: examples that lost tokens.
        fingerprint: SHA-256 in hexadecimal over the examples, tokenizer, task options and length.
    """

    token_ids: List[np.ndarray]
    labels: np.ndarray
    num_truncated: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.token_ids)


def kept_lengths(first: int, second: int, room: int, truncation: str) -> Tuple[int, int]:
    """How much of two segments fits into ``room`` tokens; what is cut is cut from the tails.

    "even" cuts the longer segment, and B of two that are equally long, as the original release does: 6 and 6
    to 11 give 6 and 5. "first" cuts only segment A (the passage), and segment B (question and answer) no
    sooner than A is gone.
    """
    if first + second <= room:
        return first, second
    if truncation == "first":
        second = min(second, room)
        return room - second, second
    half = room // 2
    if first <= half:
        return first, room - first
    if second <= half:
        return room - second, second
    return room - half, half


def encode_pair(tokenizer: Tokenizer, ids_a: Sequence[int], ids_b: Optional[Sequence[int]], max_length: int,
                truncation: str = "even") -> np.ndarray:
    """``<s> A </s>`` or ``<s> A </s> B </s>`` of at most ``max_length`` ids, as int32 of shape (T,)."""
    if ids_b is None:
        inner = [*list(ids_a)[: max_length - 2], tokenizer.eos_id]
    else:
        kept_a, kept_b = kept_lengths(len(ids_a), len(ids_b), max_length - SPECIALS, truncation)
        inner = [*list(ids_a)[:kept_a], tokenizer.eos_id, *list(ids_b)[:kept_b], tokenizer.eos_id]
    return np.asarray([tokenizer.bos_id, *inner], dtype=np.int32)


def encode(task: Task, split: Split, tokenizer: Tokenizer, max_length: int,
           cache_dir: Optional[PathLike] = None) -> EncodedSplit:
    """Encode every example of a split, in order.

    With ``cache_dir`` the result is kept in a folder named after everything that determines it, so that a
    change of data, tokenizer, options or code is a different folder. A damaged one is rebuilt with a warning.

    Raises:
        BortError: ``max_length`` is too small to hold anything, or the cache folder cannot be written.
    """
    if max_length < 8:
        raise BortError(f"max_length {max_length} leaves no room for text; 8 is the least")
    texts, pairs = _shared_texts(split)
    key = _fingerprint(task, split, texts, pairs, tokenizer, max_length)
    folder = None
    if cache_dir is not None:
        folder = Path(cache_dir) / f"{task.name}-{split.name}-{key[:24]}"
        cached = _load(folder, key, len(split))
        if cached is not None:
            return cached
    with without_collection():
        tokens, lengths, truncated = _assemble(tokenizer, texts, pairs, max_length, task.truncation)
    arrays = {"tokens": tokens, "lengths": lengths, "labels": _labels(task, split)}
    if folder is not None:
        _store(folder, key, arrays, truncated)
        cached = _load(folder, key, len(split))
        if cached is not None:
            return cached
    return _encoded(arrays, truncated, key)


def _shared_texts(split: Split) -> Tuple[List[str], np.ndarray]:
    """The distinct texts in order of appearance, and where each example's segments are in it: int32 (N, 2),
    -1 none."""
    positions: Dict[str, int] = {}
    pairs = np.full((len(split), 2), -1, dtype=np.int32)
    for row, example in enumerate(split.examples):
        for column, segment in enumerate(example.segments):
            pairs[row, column] = positions.setdefault(segment, len(positions))
    return list(positions), pairs


def _labels(task: Task, split: Split) -> np.ndarray:
    missing, dtype = (np.nan, np.float32) if task.is_regression else (-1, np.int64)
    return np.asarray([missing if example.label is None else example.label for example in split.examples],
                      dtype=dtype)


def _fingerprint(task: Task, split: Split, texts: List[str], pairs: np.ndarray, tokenizer: Tokenizer,
                 max_length: int) -> str:
    settings = [CODE_VERSION, task.name, task.encoding, task.truncation, split.name, tokenizer.fingerprint,
                max_length, len(texts)]
    digest = hashlib.sha256(json.dumps(settings).encode("ascii"))
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(data))
        digest.update(data)
    digest.update(pairs.tobytes())
    digest.update(_labels(task, split).tobytes())
    return digest.hexdigest()


def token_lengths(split: Split, tokenizer: Tokenizer) -> np.ndarray:
    """Length of each example with its special tokens, before any truncation: int64 of shape (N,)."""
    texts, pairs = _shared_texts(split)
    full = np.asarray([len(row) for row in _token_ids(tokenizer, texts)], dtype=np.int64)
    single = pairs[:, 1] < 0
    return full[pairs[:, 0]] + np.where(single, 0, full[pairs[:, 1]]) + SPECIALS - single


def _token_ids(tokenizer: Tokenizer, texts: List[str]) -> List[np.ndarray]:
    ids: List[np.ndarray] = []
    for start in range(0, len(texts), BATCH_TEXTS):
        rows = tokenizer.encode_batch(texts[start:start + BATCH_TEXTS])
        ends = list(itertools.accumulate(map(len, rows)))
        flat = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int32, count=ends[-1])
        ids += [flat[begin:end] for begin, end in zip([0, *ends], ends)]
    return ids


def _assemble(tokenizer: Tokenizer, texts: List[str], pairs: np.ndarray, max_length: int,
              truncation: str) -> Tuple[np.ndarray, np.ndarray, int]:
    """The flat ids (int32), the length of each example (int32, (N,)) and the number of truncated examples."""
    ids = _token_ids(tokenizer, texts)
    full = np.asarray([len(row) for row in ids], dtype=np.int64)
    kept = np.zeros((len(pairs), 2), dtype=np.int64)
    single = pairs[:, 1] < 0
    kept[:, 0] = full[pairs[:, 0]]
    kept[~single, 1] = full[pairs[~single, 1]]
    room = max_length - SPECIALS + single
    too_long = np.flatnonzero(kept.sum(axis=1) > room)
    for row in too_long.tolist():
        kept[row] = ((room[row], 0) if single[row]
                     else kept_lengths(int(kept[row, 0]), int(kept[row, 1]), int(room[row]), truncation))
    lengths = kept.sum(axis=1) + SPECIALS - single
    ends = np.cumsum(lengths)
    tokens = np.full(int(ends[-1]) if len(ends) else 0, tokenizer.eos_id, dtype=np.int32)
    starts = ends - lengths
    tokens[starts] = tokenizer.bos_id
    for start, (first, second), (kept_a, kept_b) in zip((starts + 1).tolist(), pairs.tolist(), kept.tolist()):
        tokens[start:start + kept_a] = ids[first][:kept_a]
        if second >= 0:
            tokens[start + kept_a + 1:start + kept_a + 1 + kept_b] = ids[second][:kept_b]
    return tokens, lengths.astype(np.int32), len(too_long)


def _encoded(arrays: Dict[str, np.ndarray], truncated: int, key: str) -> EncodedSplit:
    tokens = arrays["tokens"].view(np.ndarray)
    ends = np.cumsum(arrays["lengths"], dtype=np.int64).tolist()
    views = [tokens[start:end] for start, end in zip([0, *ends], ends)]
    return EncodedSplit(views, np.array(arrays["labels"]), truncated, key)


def _crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)


def _store(folder: Path, key: str, arrays: Dict[str, np.ndarray], truncated: int) -> None:
    """Write a cache folder under another name and rename it, so that no reader ever sees a part of one."""
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=str(folder.parent), prefix=f".{folder.name}."))
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        write_json(temporary / "meta.json", {"key": key, "truncated": truncated,
                                             "crc": {name: _crc(array) for name, array in arrays.items()}})
        os.chmod(temporary, 0o755)
        if folder.exists():  # a damaged one, or another process was faster: then its content is the same
            shutil.rmtree(folder, ignore_errors=True)
        try:
            os.rename(temporary, folder)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, BortError) as error:
        # A full or read-only disk costs the cache, not the run.
        logger.warning("%s: the encoding could not be cached (%s)", folder, error)
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _load(folder: Path, key: str, count: int) -> Optional[EncodedSplit]:
    """The cached encoding, memory-mapped; None when there is none, or (with a warning) when it is damaged."""
    if not folder.exists():
        return None
    try:
        meta = read_json(folder / "meta.json", max_bytes=1 << 16)
        arrays = {name: read_npy(folder / f"{name}.npy") for name in _ARRAYS}
        if meta["key"] != key or not isinstance(meta["truncated"], int):
            raise ValueError("it belongs to another encoding")
        dtypes = [array.dtype for array in arrays.values()]
        if dtypes[:2] != [np.int32, np.int32] or dtypes[2] not in (np.int64, np.float32):
            raise ValueError(f"dtypes {', '.join(map(str, dtypes))}")
        if any(_crc(array) != meta["crc"][name] for name, array in arrays.items()):
            raise ValueError("a checksum differs")
        shapes = [array.shape for array in arrays.values()]
        if shapes != [(int(arrays["lengths"].sum()),), (count,), (count,)]:
            raise ValueError(f"shapes {shapes}")
        return _encoded(arrays, meta["truncated"], key)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:  # BortError is a ValueError
        logger.warning("%s: the cached encoding is damaged (%s) and is made anew", folder, error)
        return None
