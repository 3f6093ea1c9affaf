"""Ctrl-C after OpenVINO's networks have come and gone: the stack for signal handlers is still there."""
from __future__ import annotations

import ctypes
import gc
import importlib.util
import subprocess
import sys

import pytest

from tests.tiny import ROOT

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not all(map(importlib.util.find_spec, ("openvino", "onnx"))),
    reason="openvino or onnx is not installed, or no Linux")


class Stack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def is_mapped():
    """Whether this thread has no signal stack, or one that is mapped."""
    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    if stack.address is None:
        return True
    with open("/proc/self/maps") as lines:
        ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    return any(first <= stack.address and stack.address + stack.size <= last for first, last in ranges)


def come_and_go():
    """Three networks, given up in the order of their making; whether the stack was there after each."""
    from bort.engines.base import EngineOptions
    from bort.engines.engine import open_engine
    from tests.tiny import tiny_batch, tiny_bert

    ids, valid, _ = tiny_batch()
    engines = []
    for seed in range(3):
        engines.append(open_engine(tiny_bert(seed), "encoder", EngineOptions("openvino")))
        engines[-1](ids.asnumpy(), valid.asnumpy())
    found = []
    while engines:
        engines.pop(0)
        gc.collect()
        found.append(is_mapped())
    return found


def test_the_signal_stack_outlasts_the_networks():
    # A process of its own: other tests make cores of OpenVINO too, and a failure would end the worker later.
    done = subprocess.run([sys.executable, "-c", "from tests.engines.test_signal_stack import come_and_go\n"
                           "import signal\nassert all(come_and_go())\n"
                           "signal.signal(signal.SIGTERM, lambda *_: print('handled'))\n"
                           "signal.raise_signal(signal.SIGTERM)"],
                          cwd=str(ROOT), capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
