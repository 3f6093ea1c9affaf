"""Heads that transformers has no class for: classification heads without tanh, attention with few heads.

Hugging Face's sequence classifiers are dense, tanh, dropout, dense: our "pooled" head. "linear" and
"linear_extra" are expressed in it by a power of two: s = 2**-14 before the tanh and 1/s after it.
tanh(sx)/s = x (1 - (sx)^2/3 + ...), so that hidden states of size 10 are off by 1e-7 of themselves, and
scaling by a power of two rounds nothing.

No s is as exact and can be trained on: AdamW moves every weight of the first layer by the learning rate r,
and with it the outputs by about r/s times the sum of |x|. At s = 2**-14 one step of 2e-5 took a loss of 3.9
to 3,713 (H = 256); for steps of the usual size s has to be near 1, where tanh is off by a quarter. With the
first layer frozen the losses were 3.9, 3.1, 2.3, 1.5, ..., 0.0: the export says so (:data:`TRAINING_REMARK`).

A network cut out of a wider one has A attention heads of d units with A*d < H, where those of transformers
always fill H: heads whose weights are all 0 do, and add nothing to the output.
"""
from __future__ import annotations

import hashlib
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np

from bort.architecture import Architecture
from bort.errors import BortError
from bort.huggingface.tensors import Makers

SCALE = np.float32(2.0 ** -14)
WITHOUT_TANH = ("linear", "linear_extra")
HEAD_LAYER = {"bert": "model.bert.pooler", "roberta": "model.classifier.dense"}
"""The layer before the tanh in transformers' classes."""
TRAINING_REMARK = (
    "the {kind} head has no tanh, transformers' has one: its weights are scaled by 2^-14 before it and by "
    "2^14 after it, which gives the same outputs. Before training on the folder in transformers, freeze the "
    "first of the two: {layer}.requires_grad_(False); an optimizer's first step would be of its own size")


def scaled(makers: Makers, head: Mapping[str, Any], hidden: int, dtype: str) -> Dict[str, Any]:
    """Turn the head's parameters in ``makers`` into a pooled head's; what :func:`unscaled` needs to
    find it again.

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

    A head that was trained on at Hugging Face is a pooled head, as its weights may have left
    tanh's straight part.
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


def _attention(depth: int) -> List[Tuple[str, int]]:
    """The parameters that have an axis of all heads' units, and which axis it is."""
    return [(f"encoder.transformer_cells.{index}.{name}", axis) for index in range(depth) for name, axis in (
        *((f"attention_cell.proj_{kind}.{part}", 0) for kind in ("query", "key", "value")
          for part in ("weight", "bias")), ("proj.weight", 1))]


def pad_heads(makers: Makers, shapes: Dict[str, Tuple[int, ...]], architecture: Architecture) -> int:
    """Fill the attention in ``makers`` and ``shapes`` up to H units with heads of zeros; how many heads there
    are then.

    Raises:
        BortError: H is no multiple of the head size, so that no number of heads fills it.
    """
    hidden, units = architecture.hidden, architecture.attention_units
    if hidden % architecture.head_size:
        raise BortError(f"{architecture.display} has no form at Hugging Face: its hidden size is no multiple "
                        f"of the {architecture.head_size} units of a head")
    for name, axis in _attention(architecture.depth):
        missing = [(0, hidden - units if axis == place else 0) for place in range(len(shapes[name]))]
        makers[name] = _padded(makers[name], missing)
        shapes[name] = tuple(extent + more for extent, (_, more) in zip(shapes[name], missing))
    return hidden // architecture.head_size


def _padded(maker: Callable[[], np.ndarray], missing: List[Tuple[int, int]]) -> Callable[[], np.ndarray]:
    return lambda: np.pad(maker(), missing)


def unpad_heads(makers: Makers, description: Dict[str, Any], heads: Any, notes: List[str]) -> None:
    """Undo :func:`pad_heads` for a network with ``heads`` of its own, as its export recorded.

    Heads that were trained on at Hugging Face are no longer zeros, and stay.
    """
    full = Architecture.from_dict(description["architecture"])
    if type(heads) is not int or not 1 <= heads < full.heads:
        return
    units = heads * full.head_size
    named = _attention(full.depth)
    if any(np.any(np.moveaxis(makers[name](), axis, 0)[units:]) for name, axis in named):
        notes.append(f"exported with {heads} attention heads and trained on since: imported with "
                     f"{full.heads}")
        return
    for name, axis in named:
        makers[name] = _cut(makers[name], axis, units)
    description["architecture"] = Architecture(full.depth, heads, full.hidden, full.intermediate,
                                               full.head_size).to_dict()


def _cut(maker: Callable[[], np.ndarray], axis: int, units: int) -> Callable[[], np.ndarray]:
    return lambda: maker()[:units] if axis == 0 else maker()[:, :units]


def _fingerprint(arrays: List[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
    return digest.hexdigest()
