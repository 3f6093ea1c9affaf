"""The conversion benchmark: what it checks on a tiny network, and that it notices a changed value."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import conversion
from bort.checkpoints.params_file import read_ndarrays, write_ndarrays
from bort.errors import BortError


def here(worker, *arguments):
    """In this process: what the benchmark does in many."""
    return {**conversion.WORKERS[worker](*arguments), "seconds": 0.0, "peak MiB": 0.0}


def test_every_conversion_is_recorded_and_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(conversion, "in_process", here)
    assert conversion.main(["--models", "tiny", "--folder", str(tmp_path), "--no-outputs"]) == 0
    rows = json.loads((tmp_path / "conversion.json").read_text())["rows"]
    assert [row["conversion"] for row in rows] == [
        "export float32",
        "import float32",
        "export float32 again",
        "export float16",
        "import float16",
    ]
    assert all(
        row["checked"] for row in rows if row["conversion"] not in ("export float32", "export float16")
    )
    assert "| tiny | import float16 |" in (tmp_path / "conversion.md").read_text()


def test_a_changed_value_is_noticed(tmp_path, monkeypatch):
    def damaging(worker, *arguments):
        found = here(worker, *arguments)
        if worker == "convert" and arguments[0] == "import":
            path = tmp_path / arguments[2] / "model.params"
            arrays = {name: np.array(array) for name, array in read_ndarrays(path).items()}
            arrays["encoder.layer_norm.beta"][0] += np.float32(1e-7)
            write_ndarrays(path, arrays)
        return found

    monkeypatch.setattr(conversion, "in_process", damaging)
    with pytest.raises(BortError, match="import float32 changed a value"):
        conversion.main(
            ["--models", "tiny", "--folder", str(tmp_path), "--work", str(tmp_path), "--no-outputs"]
        )
    assert not list(tmp_path.iterdir())


def test_a_worker_reports_its_own_time_and_memory():
    found = conversion.in_process("nothing")
    assert found["seconds"] > 0 and found["peak MiB"] > 10
    with pytest.raises(BortError, match="convert import none"):
        conversion.in_process("convert", "import", "none", "out")
