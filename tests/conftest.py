"""Settings of the whole suite: few threads under pytest-xdist, hypothesis without deadlines, where the real
data is."""
from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the machine: one thread each, and none of them spinning.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

warnings.filterwarnings("ignore", category=DeprecationWarning, module="mxnet")

from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile("suite", deadline=None, derandomize=True,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.load_profile("suite")

REAL_DATA = "BORT_TEST_DATA"
"""Environment variable that names a folder with bpe/, glue/, superglue/ and race/, as benchmarks take it."""


@pytest.fixture
def real_data() -> Path:
    """The folder of real data that the environment names; tests that want it skip without one."""
    folder = Path(os.environ.get(REAL_DATA, ""))
    if REAL_DATA not in os.environ or not folder.is_dir():
        pytest.skip(f"{REAL_DATA} names no folder of real data")
    return folder
