"""Shards: token sequences in flat little-endian files that are mapped into memory, described
by an ``index.json``.

A folder of shards holds, for each split and part, ``train-00000.bin`` (the ids of all its sequences one after
another, uint16 when the vocabulary fits, else uint32) and ``train-00000.offsets.bin`` (uint64, where each
sequence starts, and the end); ``index.json`` with the counts, the checksums, the options and the tokenizer's
fingerprint; ``tokenizer/``, which :func:`bort.text.tokenizers.loading.load_tokenizer` reads; and
``report.json``. Nothing in it is a pickle.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from bort.errors import BortError
from bort.files import PathLike, atomic_write, sha256_file
from bort.json_files import read_json, shown
from bort.text.shards.packing import OFFSETS

FORMAT_VERSION = 1
INDEX_FILE = "index.json"
REPORT_FILE = "report.json"
TOKENIZER_FOLDER = "tokenizer"
SPLITS = ("train", "test", "valid")
"""In the order of the paper's 8-1-1 split: train, test, validation."""

_ALIASES = {"dev": "valid", "validation": "valid", "val": "valid"}
_DTYPES: Dict[str, "np.dtype[Any]"] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def token_dtype(vocab_size: int) -> "np.dtype[Any]":
    """The narrower of the two integer types that holds every id."""
    return _DTYPES["uint16" if vocab_size <= 1 << 16 else "uint32"]


def write_shard(folder: PathLike, name: str, packed: np.ndarray, offsets: np.ndarray) -> Dict[str, Any]:
    """Write one shard atomically; returns its entry for the index."""
    folder = Path(folder)
    entry: Dict[str, Any] = {"name": name, "sequences": len(offsets) - 1, "tokens": int(offsets[-1])}
    for key, file, array in (
        ("sha256", f"{name}.bin", packed.astype(packed.dtype.newbyteorder("<"), copy=False)),
        ("offsets_sha256", f"{name}.offsets.bin", offsets.astype(OFFSETS, copy=False)),
    ):
        data = np.ascontiguousarray(array).data.cast("B")
        with atomic_write(folder / file, "wb") as stream:
            stream.write(data)
        entry[key] = hashlib.sha256(data).hexdigest()
    return entry


def read_index(path: PathLike) -> Dict[str, Any]:
    """The checked ``index.json`` of a folder of shards.

    Raises:
        BortError: there is none, it is not finished, of a newer format, or damaged.
    """
    file = Path(path) / INDEX_FILE
    if not file.is_file():
        begun = (Path(path) / "plan.json").is_file()
        raise BortError(
            f"{path}: "
            + (
                "its preparation has not finished; run the same command again to continue"
                if begun
                else "no shards in it (index.json is missing); make them with python -m bort.text prepare"
            )
        )
    index = read_json(file)
    try:
        if _number(index["format"]) > FORMAT_VERSION:
            raise BortError(
                f"{file}: written by a newer version of Bort (format {index['format']}); update Bort"
            )
        if index["dtype"] not in _DTYPES or not _is_digest(index["tokenizer"]):
            raise ValueError("dtype or tokenizer")
        if not 0 < _number(index["vocab_size"]) <= 1 << 8 * _DTYPES[index["dtype"]].itemsize:
            raise ValueError("vocab_size")
        _number(index["max_length"]), _number(index["seed"])
        for name in SPLITS:
            split = index["splits"][name]
            _number(split["sequences"]), _number(split["tokens"]), _number(split["sentences"])
            for shard in split["shards"]:
                _check_entry(shard)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, BortError):
            raise
        raise BortError(
            f"{file}: damaged ({type(error).__name__}: {str(error)[:80]}); prepare the shards again"
        ) from error
    return index


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{shown(value, 40)} is not a number of this kind")
    return value


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _check_entry(shard: Dict[str, Any]) -> None:
    name = shard["name"]
    if not isinstance(name, str) or not name or "\0" in name or Path(name).name != name:
        raise ValueError(f"shard {shown(name, 40)}")
    if not 0 < _number(shard["sequences"]) <= _number(shard["tokens"]):
        raise ValueError(f"shard {name!r}")
    if not _is_digest(shard["sha256"]) or not _is_digest(shard["offsets_sha256"]):
        raise ValueError(f"shard {name!r}")


class ShardDataset:
    """The sequences of one split, read from mapped memory: only what is used is loaded.

    Attributes:
        tokenizer_path: the folder of the tokenizer that made the ids.
        fingerprint: that tokenizer's.
        vocab_size, max_length, seed, num_tokens: as prepared; ``num_tokens`` counts ``<s>`` and ``</s>``.
        lengths: int32 (len,), tokens of each sequence.
    """

    def __init__(self, path: PathLike, split: str = "train", verify: bool = True) -> None:
        """Open a split.

        Args:
            path: a folder that ``python -m bort.text prepare`` has finished.
            split: train, test or valid (also dev, validation).
            verify: compare each shard's checksum when it is first used; sizes are always compared, now.

        Raises:
            BortError: the folder is not finished or damaged, or the split is unknown or empty.
        """
        self.path = Path(path)
        index = read_index(self.path)
        self.split = _ALIASES.get(split, split)
        if self.split not in index["splits"]:
            raise BortError(f"{path}: no split {split!r}; it has {', '.join(index['splits'])}")
        self._shards: List[Dict[str, Any]] = index["splits"][self.split]["shards"]
        if not self._shards:
            raise BortError(f"{path}: its {self.split} split is empty; prepare more text, or another --split")
        self._dtype = _DTYPES[index["dtype"]]
        self.tokenizer_path = self.path / TOKENIZER_FOLDER
        self.fingerprint: str = index["tokenizer"]
        self.vocab_size: int = index["vocab_size"]
        self.max_length: int = index["max_length"]
        self.seed: int = index["seed"]
        self.num_tokens = sum(shard["tokens"] for shard in self._shards)
        self._verify = verify
        self._maps: Dict[int, Tuple[np.ndarray, np.ndarray]] = {}
        self._first = np.cumsum([0] + [shard["sequences"] for shard in self._shards])
        for shard in self._shards:
            self._check_size(f"{shard['name']}.bin", shard["tokens"] * self._dtype.itemsize)
            self._check_size(f"{shard['name']}.offsets.bin", (shard["sequences"] + 1) * OFFSETS.itemsize)
        offsets = [
            np.fromfile(self.path / f"{shard['name']}.offsets.bin", dtype=OFFSETS) for shard in self._shards
        ]
        for shard, positions in zip(self._shards, offsets):
            steps = np.diff(positions.astype(np.int64))
            fits = positions[0] == 0 and positions[-1] == shard["tokens"]
            if not fits or steps.min() <= 0 or steps.max() > self.max_length:
                raise self._broken(f"{shard['name']}.offsets.bin", "its offsets do not fit")
        self.lengths = np.concatenate([np.diff(positions.astype(np.int64)) for positions in offsets]).astype(
            np.int32
        )

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        """int32 (length,): the ids of a sequence, from ``<s>`` to ``</s>``; a copy.

        Raises:
            IndexError: there is no such sequence.
            BortError: its shard is broken (named).
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        index = int(index) % len(self)
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        tokens, offsets = self._maps.get(number) or self._open(number)
        row = index - int(self._first[number])
        return tokens[int(offsets[row]) : int(offsets[row + 1])].astype(np.int32)

    def check(self) -> None:
        """Compare the checksums of all shards now. Raises BortError naming the first broken one."""
        for number in range(len(self._shards)):
            self._check_sums(self._shards[number])

    def _open(self, number: int) -> Tuple[np.ndarray, np.ndarray]:
        shard = self._shards[number]
        if self._verify:
            self._check_sums(shard)
        tokens = np.memmap(self.path / f"{shard['name']}.bin", dtype=self._dtype, mode="r")
        offsets = np.memmap(self.path / f"{shard['name']}.offsets.bin", dtype=OFFSETS, mode="r")
        self._maps[number] = tokens, offsets
        return tokens, offsets

    def _check_sums(self, shard: Dict[str, Any]) -> None:
        for file, expected in (
            (f"{shard['name']}.bin", shard["sha256"]),
            (f"{shard['name']}.offsets.bin", shard["offsets_sha256"]),
        ):
            if sha256_file(self.path / file) != expected:
                raise self._broken(file, "its checksum is not the one in index.json")

    def _check_size(self, file: str, expected: int) -> None:
        try:
            size = (self.path / file).stat().st_size
        except OSError as error:
            raise self._broken(file, error.strerror or "missing") from error
        if size != expected:
            raise self._broken(file, f"{size} bytes long instead of {expected}")

    def _broken(self, file: str, why: str) -> BortError:
        return BortError(
            f"{self.path / file}: a broken shard ({why}); copy it again from where it is whole, "
            "or prepare the shards again"
        )


def split_ratios(text: str) -> Sequence[float]:
    """``"8,1,1"`` (train, test, validation) as shares that add up to 1.

    Raises:
        BortError: not three numbers from 0, or none for training.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3 or any(not 0 <= value < 1e9 for value in values) or not values[0] > 0:
        raise BortError(
            f"--split takes three numbers for train, test and validation, such as 8,1,1, not {text!r}"
        )
    return [value / sum(values) for value in values]
