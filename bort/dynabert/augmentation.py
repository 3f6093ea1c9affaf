"""More training data by Agora's tau-functions (DynaBERT follows TinyBERT: words replaced by candidates of a
masked language model or of the embedding, several copies of every example)."""
from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence

import numpy as np

from bort.errors import BortError
from bort.files import PathLike, sha256_file
from bort.finetuning.loop import TrainingData
from bort.json_files import read_json, write_json

CHUNK = 2048
"""Sequences that tau transforms at a time."""


def augment(data: TrainingData, tau: Callable[..., List[Any]], copies: int, seed: int,
            folder: Optional[PathLike] = None) -> TrainingData:
    """``data`` followed by ``copies`` changed copies of every example, which keep its label.

    A copy that is the same as its original is left out. The teacher, not the label, says what a copy means,
    in the stages that distil.

    Args:
        tau: as :class:`bort.agora.tau.Tau` is called.
        copies: of every example; 0 returns ``data``.
        folder: where the copies are kept, so that a resumed run need not make them again; damaged ones are
            made anew.
    """
    if copies < 0:
        raise BortError(f"--augment-copies must not be negative, not {copies}")
    if not copies:
        return data
    key = _key(data, copies, seed)
    stored = None if folder is None else _load(Path(folder), key)
    if stored is None:
        stored = _make(data, tau, copies, seed)
        if folder is not None:
            _store(Path(folder), key, stored)
    flat, lengths, origins = stored
    ends = np.cumsum(lengths, dtype=np.int64)
    rows = [flat[end - length:end] for end, length in zip(ends.tolist(), lengths.tolist())]
    return TrainingData([*data.token_ids, *rows], np.concatenate([data.labels, data.labels[origins]]))


def _make(data: TrainingData, tau: Callable[..., List[Any]], copies: int, seed: int) -> List[np.ndarray]:
    rows: List[np.ndarray] = []
    origins: List[int] = []
    jobs = [(copy, index) for copy in range(copies) for index in range(len(data))]
    for start in range(0, len(jobs), CHUNK):
        part = jobs[start:start + CHUNK]
        changed = tau([np.asarray(data.token_ids[index]) for _, index in part],
                      [(seed, copy, index) for copy, index in part],
                      [copy for copy, _ in part], [copy + index for copy, index in part])
        for (_, index), (_, row) in zip(part, changed):
            if not np.array_equal(row, data.token_ids[index]):
                rows.append(np.asarray(row, dtype=np.int32))
                origins.append(index)
    flat = np.concatenate(rows) if rows else np.zeros(0, np.int32)
    return [flat, np.array([len(row) for row in rows], dtype=np.int64), np.array(origins, dtype=np.int64)]


def _key(data: TrainingData, copies: int, seed: int) -> str:
    digest = hashlib.sha256(f"{copies} {seed} {len(data)}".encode())
    for ids in data.token_ids:
        digest.update(np.asarray(ids, dtype=np.int32).tobytes() + b"|")
    return digest.hexdigest()


_NAMES = ("tokens", "lengths", "origins")


def _store(folder: Path, key: str, arrays: Sequence[np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    digests = {}
    for name, array in zip(_NAMES, arrays):
        temporary = folder / f".{name}.npy.tmp"
        with open(temporary, "wb") as stream:
            np.save(stream, array, allow_pickle=False)
        digests[name] = sha256_file(temporary)
        os.replace(temporary, folder / f"{name}.npy")
    write_json(folder / "augmented.json", {"key": key, "sha256": digests})


def _load(folder: Path, key: str) -> Optional[List[np.ndarray]]:
    """The arrays as stored; None where they are absent, damaged, or of other data."""
    try:
        facts = read_json(folder / "augmented.json", max_bytes=1 << 16)
        if facts["key"] != key or any(sha256_file(folder / f"{name}.npy") != facts["sha256"][name]
                                      for name in _NAMES):
            return None
        return [np.load(folder / f"{name}.npy", allow_pickle=False) for name in _NAMES]
    except (BortError, OSError, ValueError, KeyError, TypeError):
        return None
