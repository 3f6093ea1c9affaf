"""The one door to a forward pass without gradients: :func:`open_engine`.

Which engine ``auto`` takes:

* A network whose weights stay (prediction, a teacher, tau): the first of :data:`FASTEST` for the precision
  that is installed, suits this processor and gives the plain network's outputs.
* A network whose weights change, of which the caller says how much it computes meanwhile (:class:`Work`; an
  evaluation after each epoch): the one of least estimated time, by :data:`COSTS`. For little work that is the
  network as it is.
* A network on a GPU: MXNet.
* In a run that is resumed, only what was installed when it was begun (:func:`bort.engines.base.hold`).

Every engine is held against the plain network on a padded batch when it is opened.
"""
from __future__ import annotations

import logging
from importlib import import_module
from typing import Any, Collection, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from bort.engines.base import PARTS, Batch, Engine, EngineOptions, Work, held, preferred
from bort.errors import BortError
from bort.models import Classifier

logger = logging.getLogger("bort.engines")
FASTEST: Dict[str, Tuple[str, ...]] = {"float32": ("openvino", "onnxruntime", "mxnet"),
                                       "bfloat16": ("openvino", "mxnet"),
                                       "int8": ("openvino", "mxnet", "onnxruntime")}
"""Engines by precision, the fastest first (``benchmarks/results/latency-*.md``)."""
LOWEST_FIRST = ("int8", "bfloat16", "float32")


class Cost(NamedTuple):
    """Seconds of a core that an engine takes: once, for each MiB of weights, for each shape of batch, for
    each 1e12 operations."""

    opening: float
    weights: float
    shape: float
    operations: float

    def seconds(self, work: Work, weight_bytes: int) -> float:
        """For some work with a network of that size."""
        return (self.opening + self.weights * weight_bytes / 2 ** 20 + self.shape * work.shapes
                + self.operations * work.flops / 1e12)


COSTS: Dict[str, Cost] = {"plain": Cost(0.0, 0.0, 0.0, 10.9), "mxnet": Cost(0.02, 0.0003, 0.03, 9.5),
                          "openvino": Cost(0.1, 0.0012, 0.03, 9.2), "onnxruntime": Cost(0.1, 0.01, 0.0, 9.8)}
"""Seconds of one core of an AMD Zen 4 in float32, Bort with 64 to 128 tokens. Only their ratios count, and
where two are close either will do."""
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest difference from the plain network's outputs on random tokens, relative to the largest of those."""
LEAST_CORRELATION = {"float32": 0.999, "bfloat16": 0.97, "int8": 0.5}
"""Of outputs that exceed the tolerance (which int8's may by any amount). Correct 8-bit networks reach 0.99 as
a rule and 0.8 in the worst case tried: a tiny random network, calibrated on one repeated token."""
LOGIT_BOUND = 0.1
"""Largest difference from float32 that ``--precision auto`` accepts on the calibration inputs, relative to
the spread (largest minus smallest) of float32's outputs."""


def first_choice(precision: str, engines: Collection[str]) -> str:
    """Which of these engines "auto" takes for a network whose weights stay."""
    order = FASTEST["int8" if precision == "auto" else precision]
    return next((name for name in order if name in engines), "mxnet")


_reports: Dict[Tuple[str, str], Dict[str, Any]] = {}


def engines_used() -> List[Dict[str, Any]]:
    """The engines that this process opened, by part and name, for the records of a run."""
    return list(_reports.values())


def open_engine(network: Any, part: Optional[str] = None, options: Optional[EngineOptions] = None,
                calibration: Sequence[Batch] = (), work: Optional[Work] = None) -> Engine:
    """A network's part, ready for forward passes.

    Args:
        network: a ``Bert`` or ``Classifier`` with its weights, which the engine holds as they are now.
        part: one of ``bort.engines.base.PARTS``; by default "classifier" of a ``Classifier``, else "encoder".
        options: by default what the process prefers, see
            :func:`bort.engines.base.prefer`.
        calibration: batches ``(token_ids, valid_length)`` like those to come, for the precisions "int8" and
            "auto"; a few hundred sequences do.
        work: how much will be computed, if that is known to be limited.

    Returns:
        The engine; its ``report`` says which one and what was passed over.

    Raises:
        BortError: the part is unknown, calibration is missing, or the engine that was asked for is not
            installed, does not suit this machine, or computes something else than the network.
    """
    options = options or preferred()
    part = part or ("classifier" if isinstance(network, Classifier) else "encoder")
    if part not in PARTS:
        raise BortError(f"part {part!r} is unknown; choose one of {', '.join(PARTS)}")
    if part == "classifier" and not isinstance(network, Classifier):
        raise BortError("this network has no classification head")
    if options.precision in ("int8", "auto") and not len(calibration):
        raise BortError(f"the precision {options.precision} needs calibration inputs")
    if options.precision != "auto":
        return _open(network, part, options, calibration, work)
    exact = _open(network, part, EngineOptions(options.kind), calibration, work)
    for precision in LOWEST_FIRST:
        if precision == "float32":
            return exact
        try:
            engine = _open(network, part, EngineOptions(options.kind, precision), calibration, work)
        except BortError as error:
            logger.info("precision %s: %s", precision, error)
            continue
        if _agrees(engine, exact, calibration):
            return engine
    return exact


def _open(network: Any, part: str, options: EngineOptions, calibration: Sequence[Batch],
          work: Optional[Work]) -> Engine:
    """The first engine that can be had; what was passed over goes into its report."""
    refused: Dict[str, str] = {}
    names = _candidates(network, options, work)
    batch = padded_batch(part, network)
    expected = plain_outputs(network, part, batch) if names[0] != "plain" else np.zeros(1)
    if not np.isfinite(expected).all():
        if work is None:
            raise BortError("the network's outputs are not finite and answer nothing: its training diverged "
                            "or its parameters are damaged (python -m bort.checkpoints verify)")
        names = ["plain"]  # whoever trains it looks at its answers
    for name in names:
        try:
            engine = _make(name, network, part, options.precision, calibration)
            if name != "plain":
                engine.report.difference = _checked(engine, batch, expected)
        except BortError as error:
            if options.kind != "auto":
                raise
            refused[name] = str(error)
            continue
        engine.report.refused = refused
        _reports[part, str(engine.report)] = {"part": part, **engine.report.to_dict()}
        return engine
    raise BortError(f"no engine computes {options.precision} here: "
                    + "; ".join(f"{name}: {reason}" for name, reason in refused.items()))


def _candidates(network: Any, options: EngineOptions, work: Optional[Work]) -> List[str]:
    """Names of engines to try, "plain" for the network as it is, the best first."""
    parameters = list(network.collect_params().values())
    on_cpu = parameters[0].list_ctx()[0].device_type == "cpu"
    if options.kind != "auto":
        if not on_cpu and options.kind != "mxnet":
            raise BortError(f"the engine {options.kind} is for CPUs; the network is on a GPU")
        names = [options.kind]
    else:
        allowed = held()
        names = [name for name in (FASTEST[options.precision] if on_cpu else ("mxnet",))
                 if allowed is None or name in allowed]
    if work is None or options.precision != "float32":
        return names
    if not on_cpu:
        return ["plain"]
    if "mxnet" in names:
        names.append("plain")
    weight_bytes = sum(4 * int(np.prod(parameter.shape)) for parameter in parameters)
    return sorted(names, key=lambda name: COSTS[name].seconds(work, weight_bytes))


def _make(name: str, network: Any, part: str, precision: str, calibration: Sequence[Batch]) -> Engine:
    if name in ("mxnet", "plain"):
        from bort.engines import mxnet

        return mxnet.make(network, part, precision, calibration, compiled=name == "mxnet")
    from bort.checkpoints.model_folder import parameter_arrays
    from bort.engines import onnx_graph

    module = import_module(f"bort.engines.{name}")
    getattr(module, f"import_{name}")()  # before the weights are copied
    return module.make(onnx_graph.network_of(network), parameter_arrays(network), part, precision,
                       calibration)


def plain_outputs(network: Any, part: str, batch: Batch) -> np.ndarray:
    """What the network itself gives for a batch."""
    from bort.engines import mxnet

    return mxnet.make(network, part, "float32", (), compiled=False)(*batch)


def _checked(engine: Engine, batch: Batch, expected: np.ndarray) -> float:
    """The largest relative difference from the network's outputs ``expected`` for a batch.

    Raises:
        BortError: it is too large.
    """
    found = engine(*batch)
    precision, scale = engine.report.precision, float(np.abs(expected).max())
    if not np.isfinite(found).all() or found.shape != expected.shape:
        raise BortError(f"{engine.report}: gives {found.shape} of numbers that are not all finite, where the "
                        f"network gives {expected.shape}")
    difference = float(np.abs(found - expected).max()) / max(scale, 1e-3)
    if difference > TOLERANCES.get(precision, 0.05):
        correlation = float(np.corrcoef(found.ravel(), expected.ravel())[0, 1])
        if precision == "float32" or not correlation >= LEAST_CORRELATION[precision]:
            raise BortError(f"{engine.report}: computes something else than the network: the largest "
                            f"difference is {difference:.2g} of the largest output, the correlation "
                            f"{correlation:.3f}")
    return difference


def padded_batch(part: str, network: Any) -> Batch:
    """Two random sequences, one of them padded, with two types of tokens and with positions where these
    exist."""
    rng = np.random.default_rng(0)
    length = min(12, network.max_length)
    shorter = max(1, length // 2)
    ids = rng.integers(0, network.vocab_size, (2, length)).astype(np.int32)
    lengths = np.array([length, shorter], dtype=np.float32)
    separator = network.body.separator_id
    if separator is not None:
        ids[:, shorter // 2] = separator  # both have tokens of two types
    if part == "mlm":
        return ids, lengths, np.array([[0, length - 1], [0, shorter - 1]], dtype=np.int32)
    if part == "masked_states":
        return ids, lengths, np.array([0, length - 1, length, length + shorter - 1], dtype=np.int32)
    return ids, lengths


def _agrees(engine: Engine, exact: Engine, calibration: Sequence[Batch]) -> bool:
    """Whether labels are the same and outputs within :data:`LOGIT_BOUND`; logged either way."""
    ours, theirs = (np.concatenate([outputs.reshape(-1, outputs.shape[-1]) for outputs in each.map(
        calibration)]) for each in (engine, exact))
    spread = float(theirs.max() - theirs.min())
    difference = float(np.abs(ours - theirs).max())
    labels = engine.part in ("classifier", "mlm") and theirs.shape[1] > 1
    same = int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum()) if labels else len(theirs)
    good = same == len(theirs) and difference <= LOGIT_BOUND * spread
    logger.warning("%s: %s%d of %d labels as in float32, largest difference of an output %.3g (bound %.3g)",
                   engine.report, "" if good else "not taken: ", same, len(theirs), difference,
                   LOGIT_BOUND * spread)
    return good
