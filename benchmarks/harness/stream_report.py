"""What ``streaming.py`` measured, as tables."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from benchmarks.harness import streams
from benchmarks.harness.latency_report import CLASSES, accuracy_class
from benchmarks.harness.shapes import number_format
from bort.errors import BortError

TOLERANCE = 1e-4
"""Of probabilities, between float32 engines ..."""
OTHERWISE_TOKENISED = 1e-3
"""... but for this share of the sentences: two SentencePiece segmentations of one score are a matter of
taste."""
CORRELATION = 0.95
"""With float32's probabilities, that other number formats must reach."""
PEERS = (
    ("loop", 2.0, ("onnxruntime", "openvino", "pytorch")),
    ("pipeline", 4.0, ("pipeline",)),
)
"""Peers of a stream, how many times faster ours is to be, and what their names begin with."""


class Streamed(NamedTuple):
    """One engine: seconds of every slice, seconds to load, MiB after loading and at most, predictions."""

    seconds: List[float]
    load_seconds: float
    loaded_mib: float
    peak_mib: float
    probabilities: np.ndarray


def check(engine: str, found: np.ndarray, expected: np.ndarray) -> Dict[str, float]:
    """How far ``engine`` is from the first one: ``{"largest difference", "equal labels %"}``.

    Raises:
        BortError: too far to be the same model.
    """
    if found.shape != expected.shape:
        raise BortError(f"{engine} is wrong: {len(found)} predictions for {len(expected)} sentences")
    differences = np.abs(found - expected)
    # A sentence on the border, whose two labels are equally probable, is nobody's mistake.
    equal = float((((found > 0.5) == (expected > 0.5)) | (np.abs(expected - 0.5) < TOLERANCE)).mean())
    float32 = not engine.endswith(("int8", "bf16"))
    if float32:
        right = (differences <= TOLERANCE).mean() >= 1 - OTHERWISE_TOKENISED
    else:
        right = np.corrcoef(found, expected)[0, 1] >= CORRELATION
    if not right:
        raise BortError(
            f"{engine} is wrong: its probabilities are off by up to {differences.max():.3g}, "
            f"{equal:.1%} of its labels are the same"
        )
    return {"largest difference": float(f"{differences.max():.2g}"), "equal labels %": round(100 * equal, 2)}


def rows(result: Mapping[str, Streamed]) -> List[Dict[str, Any]]:
    """One row an engine."""
    first = next(iter(result.values()))
    table = []
    for engine, streamed in result.items():
        rate = len(streamed.probabilities) / sum(streamed.seconds)
        ours = len(first.probabilities) / sum(first.seconds)
        table.append(
            {
                "engine": engine,
                "what": streams.DESCRIPTIONS[engine],
                "samples/s": round(rate, 1),
                f"{next(iter(result))} is faster by": round(ours / rate, 2),
                "peak MiB": round(streamed.peak_mib),
                "MiB after loading": round(streamed.loaded_mib),
                "seconds to load": round(streamed.load_seconds, 1),
                **check(engine, streamed.probabilities, first.probabilities),
            }
        )
    return table


def compared(table: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Our fastest stream beside the fastest loop and pipeline of the same accuracy."""

    theirs = [engine for engine in streams.ENGINES if engine not in streams.OURS]

    def fastest(kind: str, chosen: Sequence[str]) -> Optional[Dict[str, Any]]:
        found = [
            row for row in table if row["engine"] in chosen and accuracy_class(row["engine"]) == kind
        ]
        return max(found, key=lambda row: float(row["samples/s"]), default=None)

    result = []
    for kind in CLASSES:
        ours = fastest(kind, streams.OURS)
        for what, wanted, prefixes in PEERS:
            # The pipeline has no reduced precision of its own: it is what its users have.
            peer_kind = "float32" if what == "pipeline" else kind
            peer = fastest(peer_kind, [engine for engine in theirs if engine.startswith(prefixes)])
            if ours and peer:
                ratio = ours["samples/s"] / peer["samples/s"]
                result.append(
                    {
                        "accuracy": kind,
                        "ours": ours["engine"],
                        "samples/s": ours["samples/s"],
                        "best loop or pipeline": peer["engine"],
                        "its samples/s": peer["samples/s"],
                        "ours is faster by": round(ratio, 2),
                        "wanted": wanted,
                        "met": ratio >= wanted,
                    }
                )
    return result


def floor(
    table: Sequence[Mapping[str, Any]], rates: Mapping[str, Tuple[float, str]], flops: np.ndarray
) -> List[Dict[str, Any]]:
    """What the processor's products alone would allow in each number format, and how near our fastest stream
    in it comes.

    Args:
        rates: number format to operations per second of a large product, and the engine that reaches them.
        flops: operations of every sentence of the stream.
    """
    result = []
    for kind, (rate, engine) in rates.items():
        ours = [
            row for row in table if row["engine"] in streams.OURS and number_format(row["engine"]) == kind
        ]
        best = max(ours, key=lambda row: float(row["samples/s"]), default=None)
        if best is not None:
            most = rate / float(flops.mean())
            result.append(
                {
                    "number format": kind,
                    "GFLOP/s of a product": round(rate / 1e9, 1),
                    "measured in": engine,
                    "MFLOP a sentence": round(float(flops.mean()) / 1e6, 1),
                    "samples/s at that rate": round(most, 1),
                    "ours": best["engine"],
                    "its samples/s": best["samples/s"],
                    "% of that": round(100 * best["samples/s"] / most, 1),
                }
            )
    return result
