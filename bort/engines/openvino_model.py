"""The package ``openvino``, and a network as its model."""
from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any, Mapping, cast

import numpy as np

from bort.engines import onnx_graph
from bort.engines.base import Unavailable


def import_openvino() -> ModuleType:
    """The package ``openvino``, which sends nothing to anybody.

    Its Python package counts imports and conversions through ``openvino_telemetry``, unless this cannot be
    imported; NNCF likewise. An entry of None in ``sys.modules`` makes Python say so.

    Raises:
        Unavailable: it is not installed, or its library cannot be loaded.
    """
    sys.modules["openvino_telemetry"] = cast(ModuleType, None)
    try:
        import onnx  # noqa: F401
        import openvino
    except (ImportError, OSError) as error:
        raise Unavailable(f"openvino is not installed: pip install 'bort[fast]' [{error}]") from error
    return openvino


@functools.lru_cache(maxsize=None)
def shared_core() -> Any:
    """The one ``openvino.Core`` of this process, which lasts as long as it.

    OpenVINO's CPU plugin gives the thread that loads it a stack for signal handlers (``sigaltstack``), and
    takes it away with its core. Where several cores go in another order than the reverse of their making, the
    thread is left with a stack that is no longer mapped, and the next Ctrl-C or SIGTERM ends the process with
    a segmentation fault in place of the checkpoint.

    Raises:
        Unavailable: as :func:`import_openvino`.
    """
    return import_openvino().Core()


def read(facts: onnx_graph.Network, arrays: Mapping[str, np.ndarray], part: str, precision: str = "float32"
         ) -> Any:
    """The ``openvino.Model`` of a network's part, which shares memory with ``arrays`` where it can, in the
    form that is fastest in ``precision``."""
    openvino = import_openvino()
    graph, weights = onnx_graph.split_weights(facts, arrays, part, precision == "float32")
    model = shared_core().read_model(graph.SerializeToString())
    for parameter in list(model.get_parameters()):
        name = parameter.get_friendly_name()
        if name in weights:
            constant = openvino.op.Constant(weights[name], shared_memory=True)
            constant.set_friendly_name(name)
            parameter.output(0).replace(constant.output(0))
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    return model
