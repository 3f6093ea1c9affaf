"""What 8 bits cost on real tasks: a fine-tuned classifier's dev metrics in every number format that deploys
it.

    python -m benchmarks.int8_accuracy --model SST-2=runs/sst2/model --model RTE=runs/rte/model --data FOLDER
    python -m benchmarks.int8_accuracy --model runs/sst2/model --task SST-2 --data ~/glue --engines openvino

For every TASK=FOLDER the official dev set is scored by the model as trained (MXNet, float32), by MXNet's int8
with and without 8-bit attention products, by bfloat16 where this machine has it, by OpenVINO in the three
formats (8 bits by NNCF), and by the ONNX files that
``python -m bort.export`` writes: float32, int8 dynamic and int8 static. Ranges of activations are learned
from training examples. "Labels as before" counts the examples that get the label they got in float32: the
metric alone could stay the same by luck. Where OpenVINO's 8 bits lose more than half a point, layers are left
out one group after the other, as for ``python -m bort.export --precision int8 --evaluate``, and each such
form has its row. Processors without VNNI add pairs of 8-bit products in 16 bits,
which can overflow; ``--reduce-range`` (7-bit weights) is measured there too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from benchmarks.harness import common, records
from bort.errors import BortError, run_command

SUITES = ("glue", "superglue", "race", ".")
MOST_LOST = 0.5
"""Points, beyond which layers are kept in float32."""


def data_of(data: Path, task: str) -> Path:
    """The folder of a task's files in ``--data``, or that folder itself."""
    places = [data / suite / task for suite in SUITES] + [data]
    return next((place for place in places[:-1] if place.is_dir()), places[-1])


OPENVINO_INT8 = "openvino int8"
ENGINES = ("mxnet", "openvino", "onnx")


class Subject(NamedTuple):
    """A fine-tuned classifier, the dev set it is scored on, and batches to learn ranges from."""

    model: Any
    task: Any
    split: Any
    token_ids: Sequence[np.ndarray]
    pad_id: int
    calibration: Sequence[Any]


def formats(subject: Subject, folder: Path, flags: Sequence[str]) -> Iterator[Tuple[str, Callable[[], Any]]]:
    """Names of the ways to compute, and what makes the engine for each; the first is what others are held
    against."""
    from bort.engines.base import EngineOptions
    from bort.engines.cpu import EXACT_INT8_FLAGS
    from bort.engines.engine import open_engine
    from bort.engines.mxnet import MXNetEngine
    from bort.engines.mxnet_compiled import compile_for_inference
    from bort.engines.onnxruntime import OnnxRunner
    from bort.export import onnx_export

    model, batches = subject.model, subject.calibration

    def engine(kind: str, precision: str) -> Callable[[], Any]:
        return lambda: open_engine(model, "classifier", EngineOptions(kind, precision), batches)

    def file(name: str, **how: Any) -> Callable[[], Any]:
        def make() -> Any:
            onnx_export.export(model, folder / f"{name}.onnx", "classifier", **how)
            return OnnxRunner(folder / f"{name}.onnx")

        return make

    def float32_attention() -> Any:
        compiled = compile_for_inference(model, "int8", batches, attention=False)
        return MXNetEngine(model, "classifier", compiled)

    yield "mxnet float32", engine("mxnet", "float32")
    yield "mxnet int8", engine("mxnet", "int8")
    yield "mxnet int8, attention in float32", float32_attention
    yield "mxnet bfloat16", engine("mxnet", "bfloat16")
    for precision in ("float32", "bfloat16"):
        yield f"openvino {precision}", engine("openvino", precision)
    yield OPENVINO_INT8, engine("openvino", "int8")
    yield "onnx float32", file("float32")
    yield "onnx int8 dynamic", file("dynamic", int8="dynamic")
    yield "onnx int8 static", file("static", int8="static", batches=batches)
    if not set(EXACT_INT8_FLAGS).intersection(flags):
        yield "onnx int8 dynamic, 7-bit weights", file("dynamic7", int8="dynamic", reduce_range=True)
        yield (
            "onnx int8 static, 7-bit weights",
            file("static7", int8="static", batches=batches, reduce_range=True),
        )


def task_of(folder: str) -> str:
    """The task that a model was fine-tuned for.

    Raises:
        BortError: it does not say.
    """
    from bort.checkpoints import model_folder

    name = getattr(model_folder.build(model_folder.read(folder).config, folder), "task_name", None)
    if name is None:
        raise BortError(f"{folder}: does not name its task; give --task TASK")
    return str(name)


def subject_of(task_name: str, folder: str, data: Path, examples: int) -> Subject:
    """Read a model and its task.

    Raises:
        BortError: there is no such model or data, or the model is of another task.
    """
    from bort.checkpoints import inspection, model_folder
    from bort.engines.calibration import calibration_batches
    from bort.tasks.encoding import encode
    from bort.tasks.registry import get_task

    stored = model_folder.read(folder)
    model = model_folder.build(stored.config, folder)
    if model.task_name != task_name:
        raise BortError(
            f"{folder}: was fine-tuned for {getattr(model, 'task_name', None) or 'no task'}, not "
            f"for {task_name}"
        )
    model_folder.set_parameters(model, stored.arrays, folder)
    tokenizer = inspection.find_tokenizer(stored, None)
    if tokenizer is None:
        raise BortError(f"{folder}: there is no tokenizer with it")
    task = get_task(task_name, model.encoding or "paper")
    training = stored.config.get("training") or {}
    length = min(int(training.get("max_length") or model.max_length), model.max_length)
    split = task.read(data, "dev")
    return Subject(
        model,
        task,
        split,
        encode(task, split, tokenizer, length).token_ids,
        tokenizer.pad_id,
        calibration_batches(data, tokenizer, length, task, examples),
    )


def rows_of(
    name: str,
    subject: Subject,
    folder: Path,
    flags: Sequence[str],
    notes: List[str],
    engines: Tuple[str, ...] = ENGINES,
) -> List[Dict[str, Any]]:
    """One row a format: the task's metrics in percent, and how far the outputs moved."""
    from bort.finetuning.scoring import score

    rows: List[Dict[str, Any]] = []
    expected: Optional[np.ndarray] = None
    first: Dict[str, float] = {}

    def measure(label: str, network: Any) -> float:
        """Add a row; the points that were lost."""
        nonlocal expected, first
        found = score(network, subject.token_ids, subject.pad_id, ranks=False)
        metrics = {
            metric: 100 * value for metric, value in subject.task.evaluate(subject.split, found).items()
        }
        expected, first = (found, metrics) if expected is None else (expected, first)
        metric = next(iter(metrics))
        same = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean()) if found.shape[1] > 1 else None
        rows.append(
            {
                "task": name,
                "network": subject.model.architecture.display,
                "computed by": label,
                "examples": len(found),
                "metric": metric,
                "dev": round(metrics[metric], 2),
                "lost": round(first[metric] - metrics[metric], 2),
                "others": ", ".join(f"{key} {value:.1f}" for key, value in list(metrics.items())[1:]),
                "labels as before, %": same if same is None else round(100 * same, 2),
                "largest change of a logit": float(f"{np.abs(found - expected).max():.2g}"),
                "logits' deviation": float(f"{expected.std():.2g}"),
            }
        )
        print(rows[-1], flush=True)
        return sum(first[key] - metrics[key] for key in first) / len(first)

    for number, (label, make) in enumerate(formats(subject, folder, flags)):
        if number and not label.startswith(engines):
            continue
        try:
            network = make()
        except BortError as error:
            notes.append(f"{label} left out: {error}")
            continue
        if measure(label, network) > MOST_LOST and label == OPENVINO_INT8:
            keep_layers(subject, name, measure, notes)
    return rows


def keep_layers(
    subject: Subject, name: str, measure: Callable[[str, Any], float], notes: List[str]
) -> None:
    """Rows for 8-bit networks in OpenVINO with ever more in float32, until the dev set holds."""
    from bort.export.int8 import attempts

    for names, engine in attempts(subject.model, subject.calibration, "classifier"):
        if names and measure(f"{OPENVINO_INT8}, not in 8 bits: {', '.join(names)}", engine) <= MOST_LOST:
            notes.append(f"{name}: OpenVINO's 8 bits hold without {', '.join(names)}.")
            return
    notes.append(f"{name}: OpenVINO's 8 bits lose more than {MOST_LOST} points whatever is left out.")


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="TASK=FOLDER", help="models that run_finetune.py wrote")
    parser.add_argument("--model", action="append", default=[], help="TASK=FOLDER, or FOLDER with --task")
    parser.add_argument("--task", help="of every --model FOLDER (default: the one it was fine-tuned for)")
    parser.add_argument("--engines", default=",".join(ENGINES), help="default: %(default)s")
    parser.add_argument("--data", type=Path, required=True, help="folder with glue/ and superglue/")
    parser.add_argument(
        "--calibration", type=int, default=256, metavar="N", help="training examples to learn ranges from"
    )
    parser.add_argument("--folder", type=Path, help="where to record instead of benchmarks/results")
    args = parser.parse_args(argv)
    load = common.load_average()
    notes: List[str] = []
    flags = sorted(common.cpu_info()["flags"])
    rows: List[Dict[str, Any]] = []
    from bort.tasks.registry import TASKS

    engines = tuple(name for name in args.engines.split(",") if name)
    if not engines or set(engines) - set(ENGINES):
        raise BortError(f"--engines {args.engines}: choose among {', '.join(ENGINES)}")
    for given in [*args.models, *args.model] or [""]:
        name, _, folder = given.rpartition("=")
        if not folder or given in args.models and not name:
            raise BortError(f"{given or 'no model'}: not TASK=FOLDER, or --model FOLDER with --task TASK")
        name = name or args.task or task_of(folder)
        if name not in TASKS:
            raise BortError(f"{given}: not TASK=FOLDER with one of {', '.join(TASKS)}")
        subject = subject_of(name, folder, data_of(args.data, name), args.calibration)
        with tempfile.TemporaryDirectory(prefix="bort-int8-") as place:
            rows += rows_of(name, subject, Path(place), flags, notes, engines)
    from bort.engines.mxnet_compiled import EXACT_INT8_FLAGS

    if not set(EXACT_INT8_FLAGS).intersection(flags):
        notes.append(
            "This processor has no VNNI: its 8-bit products are added in pairs in 16 bits, where "
            "they can overflow."
        )
    path = records.record(
        "int8_accuracy",
        rows,
        {"calibration examples": args.calibration},
        sorted(set(notes)),
        "What 8 bits cost on real tasks",
        argv,
        args.folder,
        load,
    )
    print(path.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
