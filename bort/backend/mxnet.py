"""The only door to MXNet: sets what must be set before its library starts, then imports it.

* NumPy 1.24 removed the aliases (``np.bool`` and friends) that MXNet 1.9.1 uses at import.
* OpenMP reads its settings once, when the library is loaded. One thread per core (divided among the Horovod
  ranks of this machine) and an active wait policy are worth up to 1.7x on a CPU.
* Waiting actively has no end by default: an idle MXNet would take a core from whatever else computes in this
  process (OpenVINO, ONNX Runtime, tokenizers). A few milliseconds outlast the pauses within a pass.
* Idle threads of OpenMP only keep spinning while all of them together fit the cores. MXNet computes in a
  thread of its own, with one team; copying large arrays in parallel would give the main thread another, whose
  sleep puts an end to the spinning of both for good, and one copying thread is as fast: a training step took
  a tenth longer.
* MXNet times its operators when it is loaded, to decide which deserve several threads, and pays for the
  decision with loops that are not vectorized: products and differences of a million elements run four to five
  times as fast without.
* oneDNN 2.4, which MXNet 1.9.1 carries, leaves AMX alone unless it is told otherwise, and Linux wants to be
  asked first. int8 products take a fifth off a forward pass then, and bfloat16 is faster than float32 rather
  than slower.
* The OpenBLAS that MXNet 1.9.1 carries, 0.3.13, is older than Intel's Ice Lake, Alder Lake and Sapphire
  Rapids, and computes with instructions of 2004 (Prescott's) on a processor it does not know: attention's
  products then take twice as long and more. It is told which kernels fit. (MXNet's wheel has none for AVX-512
  and takes those for AVX2 under that name; other libraries of this process and its children have them.)
* The process's own environment always wins: a variable that is already set is left alone.
"""
from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings
from typing import Dict, Optional

import numpy as np

from bort import numpy_aliases
from bort.backend.cpu import cpu_flags
from bort.errors import BortError

NEVER_COPY_IN_PARALLEL = 2 ** 31 - 1
"""Elements from which on MXNet copies an array by several threads."""
SPINS = 100_000
"""How often a waiting thread of OpenMP looks for work before it sleeps: for 2 to 5 ms."""
LOCAL_SIZE_VARIABLES = ("HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def usable_cores() -> int:
    """Cores this process may run on (its affinity mask, not the machine's total)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def local_ranks() -> int:
    """Processes that share this machine under one Horovod launcher; 1 when there is none."""
    for variable in LOCAL_SIZE_VARIABLES:
        value = os.environ.get(variable, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    return 1


def request_amx() -> bool:
    """Ask Linux for the tile registers of AMX; False where there are none.
    Child processes have to ask again."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    try:
        return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0
    except (OSError, AttributeError):
        return False


AMX = request_amx()
"""Whether this process may use AMX. oneDNN would end it with an illegal instruction otherwise."""


OPENBLAS_CORES = {"SKYLAKEX": {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl", "fma"},
                  "HASWELL": {"avx2", "fma"}}
"""OpenBLAS's names for its kernels, the fastest first, and what a processor needs for them."""


def openblas_core() -> Optional[str]:
    """The fastest kernels of OpenBLAS that this processor can run; None leaves the choice to OpenBLAS."""
    return next((core for core, needed in OPENBLAS_CORES.items() if needed <= cpu_flags()), None)


def thread_settings() -> Dict[str, str]:
    """Environment variables that MXNet's CPU build runs best with,
    for this process's share of the machine."""
    ranks = local_ranks()
    threads = max(1, usable_cores() // ranks)
    # Spinning threads of several ranks would fight for the same cores, so only a rank that fits may spin.
    fits = threads * ranks <= usable_cores()
    core = openblas_core()
    asked_to_sleep = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "active" if fits else "passive",
        **({"GOMP_SPINCOUNT": str(SPINS)} if fits and not asked_to_sleep else {}),
        **({"OPENBLAS_CORETYPE": core} if core else {}),
        "MXNET_CPU_PARALLEL_SIZE": str(NEVER_COPY_IN_PARALLEL),
        "MXNET_USE_OPERATOR_TUNING": "0",
        "MXNET_STORAGE_FALLBACK_LOG_VERBOSE": "0",
        "MXNET_SUBGRAPH_VERBOSE": "0",
        **({"DNNL_MAX_CPU_ISA": "AVX512_CORE_AMX"} if AMX else {}),
    }


def _import_mxnet():
    if int(np.__version__.split(".")[0]) >= 2:
        raise BortError(f"MXNet 1.9.1 needs numpy < 2, this environment has {np.__version__}: pip install "
                        "'numpy<2'")
    for variable, value in thread_settings().items():
        os.environ.setdefault(variable, value)
    numpy_aliases.restore()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mxnet
    except ImportError as error:
        raise BortError("MXNet is not installed: pip install 'bort[cpu]' (or 'bort[cu110]' on a GPU with "
                        f"CUDA 11.0) [{error}]") from error
    except OSError as error:
        raise BortError(f"MXNet's library cannot be loaded ({error}); on Debian: apt-get install libgomp1, "
                        "and mxnet-cu110 needs the CUDA 11.0 libraries") from error
    return mxnet


mx = _import_mxnet()
nd = mx.nd
gluon = mx.gluon
autograd = mx.autograd

__all__ = ["AMX", "autograd", "gluon", "local_ranks", "mx", "nd", "thread_settings", "usable_cores"]
