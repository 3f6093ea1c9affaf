"""The blocks of a teacher cache: how the teacher's answers are computed, stored, checked and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Mapping, Optional

import numpy as np

from bort.backend.mxnet import nd
from bort.batching import token_groups
from bort.checkpoints.params_file import write_ndarrays
from bort.errors import BortError
from bort.files import sha256_file
from bort.json_files import read_sealed, write_sealed
from bort.masked_lm.batches import make_batch
from bort.masked_lm.teacher import LiveTeacher, expected_positions
from bort.pretraining.settings import Corpus

RECORD = {"sha256", "positions", "kl_sum", "kl_max", "outside_sum"}
"""What is known of a block: its checksum and masked positions, and what the approximation loses there."""
MAX_TOKENS = 4096
LEAST_MASS = 1e-7
"""No token's probability is stored as 0, which a softmax never is."""


def recorded(path: Path) -> Optional[Dict[str, Any]]:
    """The record of a block that is there and whole."""
    record = path.with_suffix(".json")
    if not (record.is_file() and path.is_file()):
        return None
    try:
        found = read_sealed(record)
        return found if is_record(found) and found["sha256"] == sha256_file(path) else None
    except BortError:
        return None


def is_record(record: Any) -> bool:
    """Whether ``record`` holds what is known of a block."""
    return (
        isinstance(record, dict)
        and set(record) == RECORD
        and isinstance(record["sha256"], str)
        and isinstance(record["positions"], int)
        and all(isinstance(record[name], (int, float)) and record[name] >= 0 for name in RECORD - {"sha256"})
    )


def compute_block(
    path: Path,
    facts: Mapping[str, Any],
    teacher: LiveTeacher,
    corpus: Corpus,
    max_length: int,
    turn: int,
    examples: np.ndarray,
) -> Dict[str, Any]:
    """Write the block of ``examples`` in mask pass ``turn`` and its record, which is returned too."""
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
    """Two bytes each where that is enough; the file format has no uint16, so they are stored as bytes."""
    if vocab_size > 1 << 16:
        return ids.astype("<i4")
    return np.ascontiguousarray(ids.astype("<u2")).view(np.uint8)


def unpack(ids: np.ndarray) -> np.ndarray:
    """Token ids from how a block stores them."""
    return np.ascontiguousarray(ids).view("<u2") if ids.dtype == np.uint8 else ids


def _top(probabilities: Any, top_k: int) -> Dict[str, np.ndarray]:
    """The K largest of each row with their logarithms as stored, and what the approximation loses."""
    values, ids = nd.topk(probabilities, k=top_k, axis=1, ret_typ="both", dtype="int32")
    values, ids = values.asnumpy().astype(np.float64), ids.asnumpy()
    logs = np.log(np.maximum(values, 1e-37)).astype(np.float16)
    outside = np.maximum(LEAST_MASS, 1 - values.sum(axis=1)).astype(np.float32)
    kept, rest = approximate(logs, outside, probabilities.shape[1])
    # Sum over all tokens of p log p, on the device as it is V terms for each position.
    entropy = (
        (probabilities * nd.log(nd.maximum(probabilities, 1e-37))).sum(axis=1).asnumpy().astype(np.float64)
    )
    tail = outside * np.log(rest) if top_k < probabilities.shape[1] else 0.0
    divergence = entropy - (values * np.log(np.maximum(kept, 1e-37))).sum(axis=1) - tail
    return {"ids": ids, "logs": logs, "divergence": np.maximum(divergence, 0), "outside": outside}


def approximate(logs: np.ndarray, outside: np.ndarray, vocab_size: int) -> Any:
    """Probabilities of the K tokens (n, K) and of each other token (n,); together they sum to 1."""
    kept = np.exp(logs.astype(np.float64))
    others = vocab_size - logs.shape[1]
    if not others:
        outside = np.zeros_like(outside)
    # The logarithms were rounded to float16, so their sum is only nearly what it was.
    kept *= ((1 - outside.astype(np.float64)) / kept.sum(axis=1))[:, None]
    return kept, outside / max(1, others)


def problem_of_block(arrays: Mapping[str, np.ndarray], sequences: int, top_k: int, vocab_size: int) -> str:
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
    ids = unpack(packed)
    if counts.min(initial=0) < 0 or ids.min(initial=0) < 0 or ids.max(initial=0) >= vocab_size:
        return "holds tokens beyond the vocabulary"
    # A logarithm of a probability, rounded; the mass outside of the K tokens lies between 0 and 1.
    if not (
        np.isfinite(logs).all()
        and logs.max(initial=0) <= 0.01
        and (outside >= 0).all()
        and (outside <= 1.001).all()
    ):
        return "holds values that are no probabilities"
    return ""
