"""Heads without tanh in classes that have one.

Hugging Face's sequence classifiers are dense, tanh, dropout, dense: our "pooled" head. "linear" and
"linear_extra" are
expressed in it by a power of two: s = 2**-14 before the tanh and 1/s after it. tanh(sx)/s = x (1 - (sx)^2/3 +
...), so that hidden states of size 10 are off by 1e-7 of themselves, and scaling by a power of two rounds
nothing.
"""
from __future__ import annotations

import hashlib
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from bort.errors import BortError
from bort.huggingface.tensors import Makers

SCALE = np.float32(2.0 ** -14)
WITHOUT_TANH = ("linear", "linear_extra")


def scaled(makers: Makers, head: Mapping[str, Any], hidden: int, dtype: str) -> Dict[str, Any]:
    """Turn the head's parameters in ``makers`` into a pooled head's; what :func:`unscaled` needs to find it
    again.

    Raises:
        BortError: the numbers of a head without tanh do not survive ``dtype``.
    """
    record = {key: head.get(key) for key in ("kind", "task", "encoding")}
    if head["kind"] not in WITHOUT_TANH:
        return record
    if dtype != "float32":
        raise BortError(f"a {head['kind']} head has no exact form at Hugging Face in {dtype}; export it as "
                        "float32")
    linear = head["kind"] == "linear"
    weight, bias = (makers["classifier.1." + part] for part in ("weight", "bias"))
    last = {part: makers["classifier.1." + part if linear else "classifier.3." + part] for part in ("weight",
                                                                                                    "bias")}
    first = [np.eye(hidden, dtype="float32") * SCALE, np.zeros(hidden, dtype="float32")] if linear else [
        np.asarray(maker(), dtype="float32") * SCALE for maker in (weight, bias)]
    makers["classifier.3.weight"] = lambda: np.asarray(last["weight"](), dtype="float32") / SCALE
    makers["classifier.3.bias"] = last["bias"]
    makers["classifier.1.weight"] = lambda: first[0]
    makers["classifier.1.bias"] = lambda: first[1]
    return {**record, "sha256": _fingerprint(first)}


def unscaled(makers: Makers, record: Any, notes: List[str]) -> Optional[str]:
    """Undo :func:`scaled` and return the head's kind; None where there is nothing to undo.

    A head that was trained on at Hugging Face is a pooled head, as its weights may have left tanh's straight
    part.
    """
    if not isinstance(record, Mapping) or record.get("kind") not in WITHOUT_TANH:
        return None
    first = [makers[f"classifier.1.{part}"]() for part in ("weight", "bias")]
    if record.get("sha256") != _fingerprint(first):
        notes.append(f"exported with a {record['kind']} head, which was trained on since: imported as a "
                     "pooled head")
        return None
    last = {part: makers.pop(f"classifier.3.{part}") for part in ("weight", "bias")}
    place = "classifier.1" if record["kind"] == "linear" else "classifier.3"
    if place != "classifier.1":
        makers["classifier.1.weight"] = lambda: first[0] / SCALE
        makers["classifier.1.bias"] = lambda: first[1] / SCALE
    makers[f"{place}.weight"] = lambda: last["weight"]() * SCALE
    makers[f"{place}.bias"] = last["bias"]
    return str(record["kind"])


def _fingerprint(arrays: List[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
    return digest.hexdigest()
