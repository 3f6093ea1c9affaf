"""Conversion to Hugging Face and back at full size: seconds, peak memory, size on disk, and that nothing
changes.

    python -m benchmarks.conversion  # Bort and RoBERTa-large, two to three minutes, 8 GiB of disk
    python -m benchmarks.conversion --models bort  # half a minute
    python -m benchmarks.conversion --models tiny --no-outputs

Weights are random. Every conversion is the command that users run, in a process of its own: seconds are from
its start to its end, Python and MXNet included; memory is the most that was resident, pages of the mapped
files included.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import numpy as np

from benchmarks.harness import common, records
from bort.errors import BortError, run_command
from bort.files import sha256_file

PARAMETERS, TENSORS = "model.params", "model.safetensors"


class Network(NamedTuple):
    """What is converted: a 4-tuple (or its preset), V, and transformers' layout for it."""

    architecture: str
    vocab_size: int
    layout: str
    mlm_layer_norm_eps: float


NETWORKS = {
    "bort": Network("bort", 50265, "bert", 1e-12),
    "roberta-large": Network("roberta-large", 50265, "roberta", 1e-5),
    "tiny": Network("2,2,8,12", 40, "bert", 1e-12),
}


# ---- what the processes do


def make(name: str, folder: str) -> Dict[str, Any]:
    """Write a model folder with random weights, biases and MLM head included."""
    from bort.architecture import parse
    from bort.checkpoints import model_folder
    from bort.huggingface.tensors import Lazy
    from bort.models import Bert

    network = NETWORKS[name]
    model = Bert(
        parse(network.architecture), network.vocab_size, mlm_layer_norm_eps=network.mlm_layer_norm_eps
    )
    shapes = model_folder.expected_shapes(model)
    rng = np.random.default_rng(0)

    def maker(key: str) -> Callable[[], np.ndarray]:
        return lambda: (
            rng.standard_normal(shapes[key], dtype="float32") * np.float32(0.05)
            + np.float32(1 if key.endswith("gamma") else 0)
        )

    model_folder.write(folder, model_folder.describe(model), Lazy({key: maker(key) for key in shapes}))
    return {"parameters": sum(int(np.prod(shape)) for shape in shapes.values())}


def convert(*arguments: str) -> Dict[str, Any]:
    """``python -m bort.huggingface ARGUMENTS``."""
    from bort.huggingface.__main__ import main as command

    if command(list(arguments)):
        raise BortError(f"python -m bort.huggingface {' '.join(arguments)} failed")
    return {}


def compare(left: str, right: str, dtype: str = "float32") -> Dict[str, Any]:
    """Whether two folders of one kind (ours or Hugging Face's) hold the same values, those of ``left`` as
    ``dtype``."""
    from bort.checkpoints.params_file import read_ndarrays
    from bort.huggingface.tensor_files import read_safetensors

    def read(folder: str) -> Dict[str, np.ndarray]:
        if (Path(folder) / PARAMETERS).is_file():
            return dict(read_ndarrays(Path(folder) / PARAMETERS))
        return {key: tensor.array() for key, tensor in read_safetensors(Path(folder) / TENSORS).items()}

    first, second = read(left), read(right)
    same = set(first) == set(second) and all(
        np.array_equal(
            values.astype(dtype).astype("float32").view("u4"), second[key].astype("float32").view("u4")
        )
        for key, values in first.items()
    )
    return {"same": same}


def outputs(ours: str, theirs: str, name: str) -> Dict[str, Any]:
    """The largest differences of hidden states and logits between our network and transformers'."""
    import os

    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    import bort
    from bort.backend.mxnet import mx

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = bort.load(ours)
    rng = np.random.default_rng(1)
    ids = rng.integers(5, model.vocab_size, (2, 16))
    positions = np.tile(np.arange(16), (2, 1))
    states, logits = (
        array.asnumpy()
        for array in model(
            mx.nd.array(ids, dtype="int32"), mx.nd.full((2,), 16), mx.nd.array(positions, dtype="int32")
        )
    )
    twin = transformers.AutoModelForMaskedLM.from_pretrained(theirs).eval()
    if NETWORKS[name].layout == "bert":  # the difference that the export's note names
        twin.cls.predictions.transform.LayerNorm.eps = model.mlm_layer_norm_eps
    with torch.no_grad():
        found = twin(torch.tensor(ids), attention_mask=torch.ones((2, 16)), output_hidden_states=True)
    hidden, there = found.hidden_states[-1].numpy(), found.logits.numpy()
    return {
        "states": float(np.abs(states - hidden).max()),
        "logits": float(np.abs(logits - there).max()),
        "largest logit": float(np.abs(there).max()),
    }


def nothing() -> Dict[str, Any]:
    """Import what a conversion imports."""
    import bort.huggingface.__main__  # noqa: F401

    return {}


WORKERS = {"nothing": nothing, "make": make, "convert": convert, "compare": compare, "outputs": outputs}


def _peak_mib() -> float:
    """This process's own peak (getrusage's would include what its parent held when it started it)."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return round(int(status.split("VmHWM:")[1].split()[0]) / 1024, 1)
    except (OSError, IndexError):
        return common.peak_memory_mib()


def in_process(worker: str, *arguments: str) -> Dict[str, Any]:
    """Run one of :data:`WORKERS` in a process of its own; its result with ``seconds`` and ``peak MiB``."""
    started = time.perf_counter()
    command = common.module_command("benchmarks.conversion", "--worker", worker, *arguments)
    found = common.run_workers([command])[0]
    return {**found, "seconds": round(time.perf_counter() - started, 2)}


# ---- the benchmark


def measure(name: str, work: Path, with_outputs: bool) -> List[Dict[str, Any]]:
    """One row per conversion of one network; folders are removed as soon as nothing needs them.

    Raises:
        BortError: a conversion failed, or changed a value.
    """
    folders = {key: work / f"{name}-{key}" for key in ("ours", "hf", "back", "again", "half", "half-back")}
    path = {key: str(folder) for key, folder in folders.items()}
    layout = ["--layout", NETWORKS[name].layout]
    made = in_process("make", name, path["ours"])
    print(
        f"{name}: {made['parameters']:,} parameters drawn and written in {made['seconds']:.1f} s", flush=True
    )
    rows: List[Dict[str, Any]] = []

    def step(what: str, source: str, target: str, *options: str) -> None:
        command = "import" if what.startswith("import") else "export"
        found = in_process("convert", command, path[source], path[target], *options)
        rows.append(
            {
                "network": name,
                "conversion": what,
                "seconds": found["seconds"],
                "peak MiB": found["peak MiB"],
                "read MiB": _mebibytes(folders[source]),
                "written MiB": _mebibytes(folders[target]),
            }
        )

    def check(left: str, right: str, what: str, dtype: str = "float32") -> None:
        if not in_process("compare", path[left], path[right], dtype)["same"]:
            raise BortError(f"{name}: {rows[-1]['conversion']} changed a value")
        rows[-1]["checked"] = what
        print(f"  {rows[-1]}", flush=True)

    def remove(*keys: str) -> None:
        for key in keys:
            shutil.rmtree(folders[key])

    step("export float32", "ours", "hf", *layout)
    rows[-1]["checked"] = ""
    if with_outputs:
        found = in_process("outputs", path["ours"], path["hf"], name)
        rows[-1]["checked"] = (
            f"transformers' outputs: hidden states to {found['states']:.1e}, logits to "
            f"{found['logits']:.1e} (largest {found['largest logit']:.0f})"
        )
    print(f"  {rows[-1]}", flush=True)
    step("import float32", "hf", "back")
    check("ours", "back", "every bit of the first model folder")
    step("export float32 again", "back", "again", *layout)
    if sha256_file(folders["hf"] / TENSORS) != sha256_file(folders["again"] / TENSORS):
        raise BortError(f"{name}: the second export is another file than the first")
    check("hf", "again", f"{TENSORS} is the same file as the first")
    remove("hf", "back", "again")
    step("export float16", "ours", "half", *layout, "--dtype", "float16")
    rows[-1]["checked"] = ""
    print(f"  {rows[-1]}", flush=True)
    step("import float16", "half", "half-back")
    check("ours", "half-back", "every value rounded to float16 once", "float16")
    remove("ours", "half", "half-back")
    return rows


def _mebibytes(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.iterdir()) / 2**20, 1)


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=sorted(NETWORKS), default=["bort", "roberta-large"])
    parser.add_argument(
        "--work",
        type=Path,
        help="where the folders go, on the disk that is to be measured (default: a temporary folder)",
    )
    parser.add_argument("--no-outputs", action="store_true", help="do not compare with transformers")
    parser.add_argument("--folder", type=Path, help="where to record instead of benchmarks/results")
    args = parser.parse_args(argv)
    load = common.load_average()
    idle = in_process("nothing")
    notes = [
        "Random weights, no tokenizer. Starting such a process and ending it takes "
        f"{idle['seconds']:.1f} s and {idle['peak MiB']:.0f} MiB (Python, NumPy, MXNet). Arrays are "
        "converted one by one, so the rest is pages of the mapped source file, which the system takes "
        "back when it needs them, and an array or two.",
        "Files are flushed to the disk before they appear; seconds depend on it.",
    ]
    with_outputs = not args.no_outputs
    if with_outputs:
        with_outputs = all(importlib.util.find_spec(module) for module in ("torch", "transformers"))
        if not with_outputs:
            notes.append("transformers is not installed (make bench-setup), so outputs were not compared.")
    work = Path(tempfile.mkdtemp(prefix="bort-conversion-", dir=args.work))
    try:
        rows = [row for name in args.models for row in measure(name, work, with_outputs)]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(records.markdown_table(rows))
    settings = {
        "networks": [
            f"{name} <{NETWORKS[name].architecture}> V={NETWORKS[name].vocab_size} ({NETWORKS[name].layout})"
            for name in args.models
        ]
    }
    path = records.record(
        "conversion", rows, settings, notes, "Conversion to Hugging Face and back", argv, args.folder, load
    )
    print(f"recorded in {path}")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        result = WORKERS[sys.argv[2]](*sys.argv[3:])
        common.print_result({**result, "peak MiB": _peak_mib()})
        sys.exit(0)
    sys.exit(run_command(main))
