"""``--engine`` and ``--precision``, alike in every command that runs a network without training it."""
from __future__ import annotations

from typing import Any

from bort.engines.base import KINDS, PRECISIONS


def add_engine_options(parser: Any, what: str = "forward passes without gradients") -> None:
    """Add the options, from which ``EngineOptions(args.engine, args.precision)`` is made.

    Args:
        parser: an ``argparse`` parser or group.
        what: the engine computes here, for the help.
    """
    parser.add_argument("--engine", choices=KINDS, default="auto",
                        help=f"what computes {what}: the fastest that is installed and suits this machine, "
                        "or the one named (default: auto; the fastest come with pip install 'bort[fast]')")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32",
                        help="of these passes; auto: the fastest whose answers are float32's on some inputs "
                        "(default: float32)")
