"""Shards: token sequences in flat little-endian files that are mapped into memory, described by an
``index.json``.

A folder of shards holds, for each split and part, ``train-00000.bin`` (the ids of all its sequences one after
another, uint16 when the vocabulary fits, else uint32) and ``train-00000.offsets.bin`` (uint64, where each
sequence starts, and the end); ``index.json`` with the counts, the checksums, the options and the tokenizer's
fingerprint; ``tokenizer/``, which :func:`bort.text.tokenizers.loading.load_tokenizer` reads; and
``report.json``. Nothing in it is a pickle.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from bort.errors import BortError
from bort.files import PathLike, atomic_write, read_json, sha256_file

FORMAT_VERSION = 1
INDEX_FILE = "index.json"
REPORT_FILE = "report.json"
TOKENIZER_FOLDER = "tokenizer"
SPLITS = ("train", "test", "valid")
"""In the order of the paper's 8-1-1 split: train, test, validation."""

_ALIASES = {"dev": "valid", "validation": "valid", "val": "valid"}
_DTYPES: Dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_OFFSETS: np.dtype = np.dtype("<u8")


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrower of the two integer types that holds every id."""
    return _DTYPES["uint16" if vocab_size <= 1 << 16 else "uint32"]


def pack_sentences(
    tokens: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    opens: np.ndarray,
    max_length: int,
    bos_id: int,
    eos_id: int,
) -> Tuple[np.ndarray, np.ndarray]:
    """Fill sequences with whole sentences, as RoBERTa's FULL-SENTENCES does (Liu et al., 2019, section 4.2).

    A sequence is ``<s>``, sentences as long as they fit, ``</s>``. It may go on into the next document, with
    another ``</s>`` between. A sentence that is longer than a sequence is cut.

    Args:
        tokens: ids, any number of dimensions 1.
        starts, lengths: (n,) where each sentence is in ``tokens``, in the order in which they are packed.
        opens: bool (n,), whether a separator stands before the sentence when it is not the first of its
            sequence.
        max_length: of a sequence, with ``<s>`` and ``</s>``.

    Returns:
        The ids of all sequences in a row (dtype of ``tokens``), and the uint64 (sequences + 1,) offsets.
    """
    room = max_length - 2
    pieces: List[Tuple[int, int, bool]] = []  # begin, size, separator before
    ends: List[int] = []  # for each sequence, the number of pieces up to its end
    used = 0
    for start, size, opened in zip(starts.tolist(), lengths.tolist(), opens.tolist()):
        end = start + size
        while start < end:
            part = min(room, end - start)
            extra = 1 if opened and used else 0
            if used and used + extra + part > room:
                ends.append(len(pieces))
                used = extra = 0
            pieces.append((start, part, bool(extra)))
            used += extra + part
            start += part
            opened = False
    if used:
        ends.append(len(pieces))
    total = sum(size + separated for _, size, separated in pieces) + 2 * len(ends)
    packed = np.full(total, eos_id, dtype=tokens.dtype)
    offsets = np.zeros(len(ends) + 1, dtype=_OFFSETS)
    place = piece = 0
    for number, end in enumerate(ends):
        packed[place] = bos_id
        place += 1
        for begin, size, separated in pieces[piece:end]:
            place += separated
            packed[place : place + size] = tokens[begin : begin + size]
            place += size
        place += 1
        piece = end
        offsets[number + 1] = place
    return packed, offsets


def write_shard(folder: PathLike, name: str, packed: np.ndarray, offsets: np.ndarray) -> Dict[str, Any]:
    """Write one shard atomically; returns its entry for the index."""
    folder = Path(folder)
    entry: Dict[str, Any] = {"name": name, "sequences": len(offsets) - 1, "tokens": int(offsets[-1])}
    for key, file, array in (
        ("sha256", f"{name}.bin", packed.astype(packed.dtype.newbyteorder("<"), copy=False)),
        ("offsets_sha256", f"{name}.offsets.bin", offsets.astype(_OFFSETS, copy=False)),
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
        if int(index["format"]) > FORMAT_VERSION:
            raise BortError(
                f"{file}: written by a newer version of Bort (format {index['format']}); update Bort"
            )
        _DTYPES[index["dtype"]]
        int(index["vocab_size"]), int(index["max_length"]), str(index["tokenizer"])
        for split in index["splits"].values():
            for shard in split["shards"]:
                name, sequences, tokens = shard["name"], shard["sequences"], shard["tokens"]
                if Path(name).name != name or type(sequences) is not int or type(tokens) is not int:
                    raise ValueError(f"shard {name!r}")
                if (
                    not 0 < sequences <= tokens
                    or len(shard["sha256"]) != 64
                    or len(shard["offsets_sha256"]) != 64
                ):
                    raise ValueError(f"shard {name!r}")
    except BortError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BortError(
            f"{file}: damaged ({type(error).__name__}: {error}); prepare the shards again"
        ) from error
    return index


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
        self.vocab_size, self.max_length, self.seed = (
            int(index["vocab_size"]),
            int(index["max_length"]),
            index["seed"],
        )
        self.num_tokens = sum(shard["tokens"] for shard in self._shards)
        self._verify = verify
        self._maps: Dict[int, Tuple[np.ndarray, np.ndarray]] = {}
        self._first = np.cumsum([0] + [shard["sequences"] for shard in self._shards])
        for shard in self._shards:
            self._check_size(f"{shard['name']}.bin", shard["tokens"] * self._dtype.itemsize)
            self._check_size(f"{shard['name']}.offsets.bin", (shard["sequences"] + 1) * _OFFSETS.itemsize)
        offsets = [
            np.fromfile(self.path / f"{shard['name']}.offsets.bin", dtype=_OFFSETS) for shard in self._shards
        ]
        for shard, positions in zip(self._shards, offsets):
            steps = np.diff(positions.astype(np.int64))
            if positions[0] != 0 or positions[-1] != shard["tokens"] or (steps <= 0).any():
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
        offsets = np.memmap(self.path / f"{shard['name']}.offsets.bin", dtype=_OFFSETS, mode="r")
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
