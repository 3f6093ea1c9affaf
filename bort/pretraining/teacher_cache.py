"""A teacher's answers on disk, so that a second epoch or a second student does not pay for the teacher again.

For every masked position the K most probable tokens are kept with their log-probabilities at the run's
temperature, and the mass of the V - K others, which is spread evenly over them when the answers are read.
What that loses is measured while the answers are computed, position by position, as the divergence KL(teacher
|| approximation) in nats, and stands in ``index.json`` beside the mass outside of the K tokens. (By Pinsker's
inequality, the gradient with respect to the student's logits is off by at most kd_weight * T * sqrt(2 KL) in
the sum of absolute values.)

A cache belongs to one teacher, one prepared corpus, one seed of the masks, one way of masking and one
temperature; its folder is named after all of them. As masks are drawn anew in every epoch, it covers a number
of *mask passes*, which training
then repeats: with one pass, every epoch has the same masks.

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
from bort.batching import token_groups
from bort.checkpoints.params_file import read_ndarrays, write_ndarrays
from bort.errors import BortError
from bort.files import PathLike, lock_file, read_sealed, sha256_file, write_sealed
from bort.masked_lm.batches import MaskedLMBatch, make_batch
from bort.masked_lm.losses import Teacher
from bort.masked_lm.teacher import LiveTeacher, expected_positions, fit_vocabulary
from bort.pretraining.loop import Corpus
from bort.training.console import progress
from bort.training.run_folder import on_root

FORMAT_VERSION = 1
RECORD = {"sha256", "positions", "kl_sum", "kl_max", "outside_sum"}
"""What is known of a block: its checksum and masked positions, and what the approximation loses there."""
BLOCK = 1024
MAX_TOKENS = 4096
LEAST_MASS = 1e-7
"""No token's probability is stored as 0, which a softmax never is."""


def cache_key(facts: Mapping[str, Any]) -> str:
    """The folder name of the cache that ``facts`` (JSON-able, everything that determines its content)
    describe."""
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
            mine[name] = _finished(path / name) or _compute_block(
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


def _finished(path: Path) -> Optional[Dict[str, Any]]:
    """The record of a block that is there and whole."""
    record = path.with_suffix(".json")
    if not (record.is_file() and path.is_file()):
        return None
    try:
        found = read_sealed(record)
        return found if _is_record(found) and found["sha256"] == sha256_file(path) else None
    except BortError:
        return None


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and set(record) == RECORD
        and isinstance(record["sha256"], str)
        and isinstance(record["positions"], int)
        and all(isinstance(record[name], (int, float)) and record[name] >= 0 for name in RECORD - {"sha256"})
    )


def _compute_block(
    path: Path,
    facts: Mapping[str, Any],
    teacher: LiveTeacher,
    corpus: Corpus,
    max_length: int,
    turn: int,
    examples: np.ndarray,
) -> Dict[str, Any]:
    counts = np.zeros(len(examples), dtype=np.int32)
    answers: Dict[int, Any] = {}
    divergences, outside = [], []
    for group in token_groups(
        np.asarray(corpus.train.lengths)[examples], np.arange(len(examples)), MAX_TOKENS
    ):
        batch = make_batch(
            corpus.train, examples[group], corpus.policy, facts["seed"], turn, corpus.pad_id, max_length
        )
        if not len(batch.rows):
            continue
        counts[group] = expected_positions(batch)
        kept = _top(teacher.targets(batch)(0, len(batch.rows)), facts["top_k"])
        divergences.append(kept["divergence"])
        outside.append(kept["outside"])
        ends = np.cumsum(counts[group])
        for member, end in zip(group, ends):
            answers[int(member)] = {
                name: kept[name][end - counts[member] : end] for name in ("ids", "logs", "outside")
            }
    order = sorted(answers)
    width = facts["top_k"]
    ids = np.concatenate([answers[member]["ids"] for member in order] or [np.zeros((0, width))]).astype(
        np.int64
    )
    logs = np.concatenate([answers[member]["logs"] for member in order] or [np.zeros((0, width))])
    rest = np.concatenate([answers[member]["outside"] for member in order] or [np.zeros(0)])
    write_ndarrays(
        path,
        {
            "counts": counts,
            "ids": _pack(ids, corpus.policy.vocab_size),
            "logs": logs.astype(np.float16),
            "outside": rest.astype(np.float32),
        },
    )
    every, mass = (np.concatenate(parts or [np.zeros(0)]) for parts in (divergences, outside))
    record = {
        "sha256": sha256_file(path),
        "positions": int(counts.sum()),
        "kl_sum": float(every.sum()),
        "kl_max": float(every.max(initial=0)),
        "outside_sum": float(mass.sum()),
    }
    write_sealed(path.with_suffix(".json"), record)
    return record


def _pack(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Two bytes each where that is enough; the file format knows no uint16, so they are stored as bytes."""
    if vocab_size > 1 << 16:
        return ids.astype("<i4")
    return np.ascontiguousarray(ids.astype("<u2")).view(np.uint8)


def _unpack(ids: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(ids).view("<u2") if ids.dtype == np.uint8 else ids


def _top(probabilities: Any, top_k: int) -> Dict[str, np.ndarray]:
    """The K largest of each row with their logarithms as stored, and what the approximation loses."""
    values, ids = nd.topk(probabilities, k=top_k, axis=1, ret_typ="both", dtype="int32")
    values, ids = values.asnumpy().astype(np.float64), ids.asnumpy()
    logs = np.log(np.maximum(values, 1e-37)).astype(np.float16)
    outside = np.maximum(LEAST_MASS, 1 - values.sum(axis=1)).astype(np.float32)
    kept, rest = _approximate(logs, outside, probabilities.shape[1])
    # Sum over all tokens of p log p, on the device as it is V terms for each position.
    entropy = (
        (probabilities * nd.log(nd.maximum(probabilities, 1e-37))).sum(axis=1).asnumpy().astype(np.float64)
    )
    tail = outside * np.log(rest) if top_k < probabilities.shape[1] else 0.0
    divergence = entropy - (values * np.log(np.maximum(kept, 1e-37))).sum(axis=1) - tail
    return {"ids": ids, "logs": logs, "divergence": np.maximum(divergence, 0), "outside": outside}


def _approximate(logs: np.ndarray, outside: np.ndarray, vocab_size: int) -> Any:
    """Probabilities of the K tokens (n, K) and of each other token (n,); together they sum to 1."""
    kept = np.exp(logs.astype(np.float64))
    others = vocab_size - logs.shape[1]
    if not others:
        outside = np.zeros_like(outside)
    # The logarithms were rounded to float16, so their sum is only nearly what it was.
    kept *= ((1 - outside.astype(np.float64)) / kept.sum(axis=1))[:, None]
    return kept, outside / max(1, others)


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
            problem = _problem_of_block(arrays, sequences, self.facts["top_k"], self._vocabulary)
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
        kept, rest = _approximate(np.concatenate(logs), np.concatenate(outside), self._vocabulary)
        tokens, device = _unpack(np.concatenate(ids)), distributed.context()

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
            return f"its {name} is {str(value)[:40]!r}"
    if facts["top_k"] > index["vocab_size"]:
        return "its top_k is above its vocab_size"
    if not isinstance(blocks, dict) or not all(map(_is_record, blocks.values())):
        return "its blocks are not what was written"
    if (
        not isinstance(error, dict)
        or not all(isinstance(value, (int, float)) for value in error.values())
        or set(error) != set(_error({}))
    ):
        return "its error is not what was written"
    return ""


def _problem_of_block(arrays: Mapping[str, np.ndarray], sequences: int, top_k: int, vocab_size: int) -> str:
    """What is wrong with a block's arrays, or an empty string."""
    if set(arrays) != {"counts", "ids", "logs", "outside"}:
        return f"holds the arrays {', '.join(sorted(arrays))}"
    counts, packed, logs, outside = (arrays[name] for name in ("counts", "ids", "logs", "outside"))
    positions = int(counts.sum(dtype=np.int64)) if counts.dtype == np.int32 else -1
    wide = vocab_size > 1 << 16
    expected = {
        "counts": (np.int32, (sequences,)),
        "logs": (np.float16, (positions, top_k)),
        "outside": (np.float32, (positions,)),
        "ids": (np.int32, (positions, top_k)) if wide else (np.uint8, (positions, 2 * top_k)),
    }
    for name, (dtype, shape) in expected.items():
        if arrays[name].dtype != dtype or arrays[name].shape != shape:
            return f"its {name} are {arrays[name].dtype} {arrays[name].shape}"
    ids = _unpack(packed)
    if counts.min(initial=0) < 0 or ids.min(initial=0) < 0 or ids.max(initial=0) >= vocab_size:
        return "holds tokens beyond the vocabulary"
    # A logarithm of a probability, rounded; the mass outside of the K tokens lies between 0 and 1.
    if not (
        np.isfinite(logs).all()
        and logs.max(initial=0) <= 0.01
        and (outside >= 0).all()
        and (outside <= 1.001).all()
    ):
        return "holds probabilities that are none"
    return ""
