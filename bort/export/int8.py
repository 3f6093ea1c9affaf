"""8 bits that cost no more of a task's metrics than is bearable: layers stay in float32 until they do not."""
from __future__ import annotations

from typing import Iterator, List, Optional, Sequence, Tuple, Union

from bort.checkpoints import model_folder
from bort.engines import onnx_graph, openvino, openvino_int8
from bort.engines.base import Batch
from bort.engines.cpu import openmp_threads
from bort.errors import BortError
from bort.export.evaluation import MOST_LOST, DevSet
from bort.models import Bert, Classifier

SENSITIVE: Tuple[Tuple[str, str], ...] = (
    ("second layers of the feed-forward networks", r"layer\d+_ffn2.*"),
    ("attention products", r"layer\d+_(scores|context).*"),
    ("first and last layer of the network", "layer({last}|0)_.*"))
"""What 8 bits harm first, and the names of its nodes; left in float32 one after the other until the task's
metrics hold."""


def attempts(model: Union[Bert, Classifier], batches: Sequence[Batch], part: str
             ) -> Iterator[Tuple[List[str], openvino.OpenVinoEngine]]:
    """8-bit engines, each with more in float32 than the one before, and what that is.

    Args:
        batches: calibration inputs ``(token_ids, valid_length)``.

    Raises:
        BortError: OpenVINO or NNCF is not installed, or this processor has no instructions for 8 bits.
    """
    openvino.check_precision("int8")
    facts, arrays = onnx_graph.network_of(model), model_folder.parameter_arrays(model)
    names: List[str] = []
    patterns: List[str] = []
    for name, pattern in (("", ""), *SENSITIVE):
        if pattern:
            names.append(name)
            patterns.append(pattern.replace("{last}", str(model.architecture.depth - 1)))
        quantized = openvino_int8.quantized(facts, arrays, part, batches, patterns)
        engine = openvino.OpenVinoEngine(quantized, part, facts.vocab_size, facts.max_length, "int8",
                                         openmp_threads())
        engine.report.kept = tuple(names)
        yield list(names), engine


def least_harmful(model: Union[Bert, Classifier], batches: Sequence[Batch], part: str,
                  dev: Optional[DevSet]) -> Tuple[openvino.OpenVinoEngine, List[str]]:
    """The 8-bit engine, and what stays in float32 in it.

    Args:
        dev: the dev set that is to lose no more than :data:`bort.export.evaluation.MOST_LOST`; None keeps
            nothing in float32.

    Raises:
        BortError: the task's metrics suffer whatever stays, or as :func:`attempts`.
    """
    for names, engine in attempts(model, batches, part):
        if dev is None or dev.lost(dev.metrics(engine)) <= MOST_LOST:
            return engine, names
    raise BortError(f"8 bits cost more than {100 * MOST_LOST:g} points on the dev set, whatever stays in "
                    "float32; take --precision bfloat16, or other --calibration data")
