"""What every engine is: a function from numpy arrays to numpy arrays. Nothing here imports MXNet.

Shapes: B batch, T length, M masked positions of a sequence, N masked positions of a batch, H hidden, V
vocabulary, C outputs.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Collection, Dict, Iterable, Iterator, List, Optional, Tuple

import numpy as np

from bort.batching import LENGTH_MULTIPLE
from bort.errors import BortError

KINDS = ("auto", "openvino", "onnxruntime", "mxnet")
PRECISIONS = ("float32", "bfloat16", "int8", "auto")
PARTS = ("encoder", "classifier", "mlm", "masked_states")
"""What of a network is computed:

* ``encoder``: hidden states (B, T, H), zero in padded rows;
* ``classifier``: logits, or values in regression, (B, C);
* ``mlm``: vocabulary logits (B, M, V) at positions (B, M) of the sequences;
* ``masked_states``: what the vocabulary projection takes, (N, H), at positions (N,) counted through the
  padded batch: b * T + t. Undefined in padded rows.
"""
POSITION_INPUTS = {"mlm": "masked_positions", "masked_states": "rows"}
"""Part to the name of the input that holds its positions."""
Batch = Tuple[np.ndarray, ...]
"""``token_ids`` (B, T) int32, ``valid_length`` (B,) float32, and for ``mlm`` and ``masked_states`` positions
int32."""


class Unavailable(BortError):
    """An engine cannot be had here; the message says why and what to do."""


@dataclass(frozen=True)
class EngineOptions:
    """What a user chooses: ``--engine`` and ``--precision``.

    Attributes:
        kind: one of :data:`KINDS`; "auto" takes the fastest that is installed and suits the machine.
        precision: one of :data:`PRECISIONS`; "auto" takes the fastest whose answers to the calibration
            inputs are float32's.
    """

    kind: str = "auto"
    precision: str = "float32"

    def __post_init__(self) -> None:
        for what, value, choices in (("engine", self.kind, KINDS), ("precision", self.precision, PRECISIONS)):
            if value not in choices:
                raise BortError(f"{what} {value!r} is unknown; choose one of {', '.join(choices)}")


_preferred = [EngineOptions()]


def prefer(options: EngineOptions) -> None:
    """What this process computes forward passes with where nothing else is said: one choice per process, as
    of the device; a runner makes it."""
    _preferred[0] = options


def preferred() -> EngineOptions:
    """What :func:`prefer` was last called with; "auto" and float32 before."""
    return _preferred[0]


NEEDED = {"openvino": ("openvino", "onnx"), "onnxruntime": ("onnxruntime", "onnx"), "mxnet": ("mxnet",)}
"""Engine to the packages without which it cannot be had."""
_held: List[Optional[Collection[str]]] = [None]


def installed() -> Dict[str, str]:
    """The engines whose packages are installed (none is imported), and NNCF, with versions."""
    wanted = {**NEEDED, "nncf": ("nncf",)}
    return {name: metadata.version(packages[0]) for name, packages in wanted.items()
            if all(find_spec(package) is not None for package in packages)}


def hold(engines: Optional[Collection[str]]) -> None:
    """Let "auto" choose among these only, for the sake of a run that was begun with no others: another
    engine gives other last digits. None ends that."""
    _held[0] = engines


def held() -> Optional[Collection[str]]:
    """What :func:`hold` was last called with."""
    return _held[0]


@dataclass(frozen=True)
class Work:
    """How much is to be computed before the weights change, or the process ends.

    Attributes:
        flops: of all forward passes together.
        shapes: how many shapes the batches have.
    """

    flops: float
    shapes: int = 1


@dataclass
class Report:
    """How an engine came to be chosen: what run records keep.

    Attributes:
        difference: the largest from the plain network's outputs, relative to the largest of those.
        refused: engine to the reason for which it was passed over.
        kept: what is not in 8 bits in an 8-bit engine, because a dev set lost too much by it.
    """

    kind: str
    version: str
    precision: str
    difference: float = 0.0
    refused: Dict[str, str] = field(default_factory=dict)
    kept: Tuple[str, ...] = ()

    def to_dict(self) -> Dict[str, Any]:
        """For a JSON record."""
        more = {"refused": self.refused, "not in 8 bits": list(self.kept)}
        return {"engine": self.kind, "version": self.version, "precision": self.precision,
                "difference": float(f"{self.difference:.2g}"),
                **{name: value for name, value in more.items() if value}}

    def __str__(self) -> str:
        kept = f" but for {', '.join(self.kept)}" if self.kept else ""
        return f"{self.kind} {self.version}, {self.precision}{kept}"


class Engine:
    """A network's part, ready to run; made by :func:`bort.engines.engine.open_engine`.

    Attributes:
        part: one of :data:`PARTS`.
        report: which engine it is, and how it came to be chosen.
        num_outputs: C of a classifier, 0 otherwise.
        max_length: the longest sequence it takes.
        length_multiple: what lengths of batches are best rounded up to: a new length costs some
            milliseconds, or a graph that is compiled for it.
        any_batch: whether it takes batches of any number of sequences alike; few numbers suit others best.
    """

    length_multiple = LENGTH_MULTIPLE
    any_batch = False
    part: str
    report: Report
    num_outputs: int
    max_length: int

    def __call__(self, token_ids: np.ndarray, valid_length: np.ndarray,
                 positions: Optional[np.ndarray] = None) -> np.ndarray:
        """The part's float32 outputs for one batch, as fast as one batch can be had.

        Args:
            token_ids: (B, T) integers below V; the content of padding has no effect.
            valid_length: (B,) tokens of each sequence that are not padding, from 1 to T.
            positions: integers, of the parts ``mlm`` and ``masked_states`` only.

        Raises:
            BortError: a value is out of range.
        """
        raise NotImplementedError

    def map(self, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        """The outputs of many batches, in their order and computed together where the engine gains by it."""
        for batch in batches:
            yield self(*batch)


def check_batch(engine: Any, vocab_size: int, batch: Batch) -> None:
    """Refuse values for which an engine would read what is not there.

    Raises:
        BortError: with the value and its limits.
    """
    ids, lengths = batch[0], batch[1]
    if ids.ndim != 2 or 0 in ids.shape or lengths.shape != ids.shape[:1]:
        raise BortError("token_ids must have the shape (batch, length) and valid_length (batch,), not "
                        f"{ids.shape} and {lengths.shape}")
    if ids.shape[1] > engine.max_length:
        raise BortError(f"sequences of {ids.shape[1]} tokens are longer than max_length {engine.max_length}")
    check_range("token id", ids, 0, vocab_size - 1)
    check_range("valid_length", lengths, 1, ids.shape[1])
    positions = batch[2] if len(batch) > 2 else None
    masked = engine.part in ("mlm", "masked_states")
    if (positions is None) == masked:
        name = POSITION_INPUTS.get(engine.part, "masked_positions")
        raise BortError(f"the part {engine.part!r} takes {'' if masked else 'no '}{name}")
    if positions is None:
        return
    if engine.part == "mlm":
        if positions.ndim != 2 or positions.shape[0] != len(ids) or 0 in positions.shape:
            raise BortError(f"masked_positions must have the shape ({len(ids)}, M), not {positions.shape}")
        check_range("masked position", positions, 0, ids.shape[1] - 1)
    else:
        if positions.ndim != 1 or not positions.size:
            raise BortError(f"rows must have the shape (N,), not {positions.shape}")
        check_range("row", positions, 0, ids.size - 1)


def check_range(what: str, values: np.ndarray, lowest: int, highest: int) -> None:
    """Raise a BortError unless all ``values`` are from ``lowest`` to ``highest``."""
    if not (values.min() >= lowest and values.max() <= highest):  # written so that NaN fails too
        wrong = values[~((values >= lowest) & (values <= highest))][0]
        raise BortError(f"{what} {wrong} is outside {lowest}..{highest}")
