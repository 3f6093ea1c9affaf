"""A teacher's answers on disk, so that a second epoch or a second student does not pay for the teacher again.

For every masked position the K most probable tokens are kept with their log-probabilities at the run's
temperature, and the mass of the V - K others, which is spread evenly over them when the answers are read.
What that loses is measured while the answers are computed, position by position, as the divergence KL(teacher
|| approximation) in nats, and stands in ``index.json`` beside the mass outside of the K tokens. (By Pinsker's
inequality, the gradient with respect to the student's logits is off by at most kd_weight * T * sqrt(2 KL) in
the sum of absolute values.)

A cache belongs to one teacher, one prepared corpus, one seed of the masks, one way of masking and one
temperature; its folder is named after all of them. As masks are drawn anew in every epoch, it covers a
number of *mask passes*, which training then repeats: with one pass, every epoch has the same masks.

    FOLDER/KEY/index.json                      what it is of, its blocks with their checksums, the error
    FOLDER/KEY/pass-0000/block-000000.params   arrays of 1,024 sequences, memory-mapped when read
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import numpy as np
from filelock import FileLock

from bort.backend import distributed
from bort.backend.mxnet import nd
from bort.checkpoints.params_file import read_ndarrays
from bort.errors import BortError
from bort.files import PathLike, lock_file, sha256_file
from bort.json_files import read_sealed, shown, write_sealed
from bort.masked_lm.batches import MaskedLMBatch
from bort.masked_lm.losses import Teacher
from bort.masked_lm.teacher import LiveTeacher, expected_positions, fit_vocabulary
from bort.pretraining.cache_blocks import (
    approximate,
    compute_block,
    is_record,
    problem_of_block,
    recorded,
    unpack,
)
from bort.pretraining.settings import Corpus
from bort.training.console import progress
from bort.training.run_folder import on_root

FORMAT_VERSION = 1
BLOCK = 1024


def cache_key(facts: Mapping[str, Any]) -> str:
    """The folder name of the cache that ``facts`` describe
    (JSON-able, everything that determines its content)."""
    return hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode("utf-8")).hexdigest()[:20]


def build_cache(
    folder: PathLike,
    facts: Mapping[str, Any],
    teacher: LiveTeacher,
    corpus: Corpus,
    max_length: int,
    block: int = BLOCK,
) -> Path:
    """Compute what is not there yet; blocks are dealt out over the ranks, and a killed computation goes on.

    Args:
        folder: where caches are kept.
        facts: what determines the content; needs "top_k", "passes" and "seed" (that of the masks).

    Returns:
        The folder of this cache, for :class:`CachedTeacher`.

    Raises:
        BortError: the folder cannot be written to, or another process is computing the same cache.
    """
    path = Path(folder) / cache_key(facts)
    if distributed.from_root((path / "index.json").is_file()):
        return path
    lock: List[FileLock] = []
    on_root(
        lambda: lock.append(
            lock_file(
                path / ".lock",
                "another process is computing this cache; wait for it",
                "choose another --cache-folder",
            )
        )
    )
    try:
        rank, size = distributed.rank(), distributed.size()
        work = [
            (turn, first) for turn in range(facts["passes"]) for first in range(0, len(corpus.train), block)
        ]
        mine: Dict[str, Any] = {}
        for turn, first in progress(work[rank::size], desc="teacher", unit="block"):
            name = f"pass-{turn:04d}/block-{first // block:06d}.params"
            mine[name] = recorded(path / name) or compute_block(
                path / name,
                facts,
                teacher,
                corpus,
                max_length,
                turn,
                np.arange(first, min(first + block, len(corpus.train))),
            )
        blocks: Dict[str, Any] = {}
        for part in distributed.gather(mine):
            blocks.update(part)
        on_root(
            lambda: write_sealed(
                path / "index.json",
                {
                    "format": "bort-teacher-cache",
                    "format_version": FORMAT_VERSION,
                    "facts": dict(facts),
                    "block": block,
                    "examples": len(corpus.train),
                    "vocab_size": corpus.policy.vocab_size,
                    "blocks": dict(sorted(blocks.items())),
                    "error": _error(blocks),
                },
            )
        )
    finally:
        for held in lock:
            held.release()
    return path


def _error(blocks: Mapping[str, Any]) -> Dict[str, float]:
    positions = max(1, sum(block["positions"] for block in blocks.values()))
    return {
        "positions": positions,
        "mean_kl_nats": sum(block["kl_sum"] for block in blocks.values()) / positions,
        "max_kl_nats": max((block["kl_max"] for block in blocks.values()), default=0.0),
        "mean_mass_outside": sum(block["outside_sum"] for block in blocks.values()) / positions,
    }


class CachedTeacher:
    """Answers from a cache in place of a :class:`~bort.masked_lm.teacher.LiveTeacher`.

    Args:
        path: a folder made by :func:`build_cache`.
        vocab_size: rows of the student's vocabulary, where it has another number of them.

    Raises:
        BortError: it is not a cache, or of another version. Later, from :meth:`targets`: a block is missing,
            damaged, or of other masks.
    """

    def __init__(self, path: PathLike, vocab_size: Optional[int] = None) -> None:
        self.path = Path(path)
        index = read_sealed(self.path / "index.json")
        if index.get("format_version") != FORMAT_VERSION:
            raise BortError(
                f"{self.path}: not a teacher cache of this version; remove it and compute it again"
            )
        problem = _problem_of_index(index, self.path.name)
        if problem:
            raise self._damaged("index.json", problem)
        self.facts, self.error = index["facts"], index["error"]
        self._blocks, self._block, self._vocabulary = index["blocks"], index["block"], index["vocab_size"]
        self._examples = index["examples"]
        self._student_vocabulary = vocab_size or self._vocabulary
        self._open: Dict[str, Dict[str, np.ndarray]] = {}

    def _damaged(self, name: str, problem: str) -> BortError:
        return BortError(
            f"{self.path / name}: {problem}: it was damaged; remove {self.path} and the next run "
            "computes it again"
        )

    def _arrays(self, turn: int, number: int) -> Dict[str, np.ndarray]:
        """The arrays of a block, checked, with the ``ends`` of its sequences' positions: ids beyond the
        vocabulary would write where nothing is."""
        name = f"pass-{turn:04d}/block-{number:06d}.params"
        if name not in self._open:
            if name not in self._blocks or sha256_file(self.path / name) != self._blocks[name]["sha256"]:
                raise self._damaged(name, "its checksum is not the one in index.json")
            arrays = read_ndarrays(self.path / name)
            sequences = min(self._block, self._examples - number * self._block)
            problem = problem_of_block(arrays, sequences, self.facts["top_k"], self._vocabulary)
            if problem:
                raise self._damaged(name, problem)
            counts = arrays["counts"].astype(np.int64)
            self._open[name] = {**arrays, "ends": np.cumsum(counts), "counts": counts}
        return self._open[name]

    def targets(self, batch: MaskedLMBatch) -> Teacher:
        """As :meth:`bort.masked_lm.teacher.LiveTeacher.targets`, approximately."""
        ids, logs, outside = [], [], []
        for example, count in zip(batch.examples, expected_positions(batch)):
            arrays = self._arrays(batch.mask_epoch, int(example) // self._block)
            member = int(example) % self._block
            if arrays["counts"][member] != count:
                raise BortError(
                    f"{self.path}: the cache has {arrays['counts'][member]} masked positions in "
                    f"sequence {example} where the batch has {count}; it is of another corpus or "
                    "masking, remove it"
                )
            end = int(arrays["ends"][member])
            ids.append(arrays["ids"][end - count : end])
            logs.append(arrays["logs"][end - count : end])
            outside.append(arrays["outside"][end - count : end])
        kept, rest = approximate(np.concatenate(logs), np.concatenate(outside), self._vocabulary)
        tokens, device = unpack(np.concatenate(ids)), distributed.context()

        def probabilities(start: int, stop: int) -> Any:
            filled = nd.array(rest[start:stop, None], dtype="float32", ctx=device)
            filled = nd.broadcast_to(filled, shape=(stop - start, self._vocabulary))
            rows = np.repeat(np.arange(stop - start), tokens.shape[1])
            filled[
                nd.array(rows, dtype="int32", ctx=device),
                nd.array(tokens[start:stop].ravel(), dtype="int32", ctx=device),
            ] = nd.array(kept[start:stop].ravel(), dtype="float32", ctx=device)
            return fit_vocabulary(filled, self._student_vocabulary)

        return probabilities


def _problem_of_index(index: Mapping[str, Any], key: str) -> str:
    """What is wrong with an index (earlier ones have no digest), or an empty string."""
    facts, blocks, error = (index.get(name) for name in ("facts", "blocks", "error"))
    if not isinstance(facts, dict) or cache_key(facts) != key:
        return "its facts are not what its folder is named after"
    for name, value in (
        ("block", index.get("block")),
        ("examples", index.get("examples")),
        ("vocab_size", index.get("vocab_size")),
        ("top_k", facts.get("top_k")),
        ("passes", facts.get("passes")),
    ):
        if type(value) is not int or not 1 <= value < 1 << 31:
            return f"its {name} is {shown(value, 40)}"
    if facts["top_k"] > index["vocab_size"]:
        return "its top_k is above its vocab_size"
    if not isinstance(blocks, dict) or not all(map(is_record, blocks.values())):
        return "its blocks are not what was written"
    if (
        not isinstance(error, dict)
        or not all(isinstance(value, (int, float)) for value in error.values())
        or set(error) != set(_error({}))
    ):
        return "its error is not what was written"
    return ""
