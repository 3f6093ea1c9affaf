"""Training throughput: a masked-LM step and a distillation step against PyTorch, two ranks against one, peak
memory.

    python -m benchmarks.throughput  # everything; about 12 minutes on 2 quiet cores
    python -m benchmarks.throughput --minutes 4 --no-scaling  # the steps alone, in less time
    python -m benchmarks.throughput --parts small  # two minutes
    python -m benchmarks.throughput --trials 10 --parts bort
    python -m benchmarks.throughput --only-ranks  # the ranks alone, recorded by themselves as scaling

A step is what training does: masking the batch, forward and backward pass, clipping, optimizer. PyTorch runs
transformers' own modules (BertModel, its MLM head at the masked positions only) with AdamW, on the same
batches, in turns with ours and in a process of its own (training_steps.py). Ours trains in float32 and in
bfloat16 (``--dtype``), with the teacher in float32 and in bfloat16 (``--precision``); PyTorch in float32, as
it comes and tuned, and in bfloat16. Architectures and vocabulary are the paper's where the part is called
bort: the student <4, 8, 1024, 768> with RoBERTa-large as its teacher, 8 sequences of 128 tokens.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Optional

import numpy as np

from benchmarks.harness import common, records
from benchmarks.harness.training_rounds import LEAST_ROUNDS, Rounds, compare, targets
from benchmarks.harness.training_steps import ENGINES, OF_OURS, OURS_TEACHER, PARTS, TUNED, mxnet_step
from bort.errors import BortError, run_command


def worker(arguments: argparse.Namespace) -> None:
    """One rank of the scaling measurement; the root prints the tokens per second of all ranks."""
    from bort.backend import distributed

    distributed.expect_long_steps()  # as run_pretrain.py does
    part = PARTS[arguments.parts[0]]
    if arguments.pin is not None:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[arguments.pin]})
    step = mxnet_step(part, False, arguments.batch, arguments.accumulate)
    for _ in range(2):
        step()
    times = []
    for _ in range(arguments.trials):
        distributed.barrier()
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    if distributed.is_root():
        tokens = (arguments.batch or part.batch) * arguments.accumulate * part.length * distributed.size()
        common.print_result(
            {
                "tokens/s": round(tokens / float(np.median(times)), 1),
                "step_ms": round(1000 * float(np.median(times)), 1),
            }
        )


def scaling(name: str, trials: int, batch: int, accumulate: int) -> List[Dict[str, Any]]:
    """Ranks and cores, a thread per core; with and without accumulated micro-batches; and what the machine
    allows.

    Two processes that know nothing of each other show how far two cores together are from twice one, whatever
    is
    computed: they share memory, cache and clock. What ranks lose beyond that is Horovod's: exchanges, and its
    own thread.
    """
    launcher = Path(sys.executable).parent / "horovodrun"
    if not launcher.is_file() or common.usable_cores() < 2:
        return []
    one = dict(
        os.environ,
        OMP_NUM_THREADS="1",
        PATH=f"{launcher.parent}{os.pathsep}{os.environ['PATH']}",
        PYTHONPATH=str(common.ROOT / ".ci" / "numpy-aliases"),
    )
    two = dict(one, OMP_NUM_THREADS="2")
    rows: List[Dict[str, Any]] = []
    for micro_batches in sorted({1, accumulate}):
        here = common.module_command(
            "benchmarks.throughput",
            "--worker",
            "--parts",
            name,
            "--trials",
            str(trials),
            "--batch",
            str(batch),
            "--accumulate",
            str(micro_batches),
        )
        cases = {
            "1 rank, 1 core": ([here + ["--pin", "0"]], one),
            "2 strangers, 2 cores": ([here + ["--pin", "0"], here + ["--pin", "1"]], one),
            "2 ranks, 2 cores": ([["horovodrun", "-np", "2"] + here], one),
            "1 rank, 2 cores": ([here], two),
        }
        alone = 0.0
        for label, (commands, environment) in cases.items():
            found = common.run_workers(commands, environment)
            speed = sum(row["tokens/s"] for row in found)
            alone = alone or speed
            rows.append(
                {
                    "part": name,
                    "processes": label,
                    "sequences": batch,
                    "micro-batches a step": micro_batches,
                    "tokens/s": round(speed, 1),
                    "step_ms": max(row["step_ms"] for row in found),
                    "of 1 rank, 1 core": round(speed / alone, 3),
                    "efficiency": round(speed / alone / 2, 3) if "2 cores" in label else None,
                }
            )
            print(rows[-1], flush=True)
    return rows


def memory() -> List[Dict[str, Any]]:
    """Peak memory of distilling many positions at V = 50,265, in arrays of positions x V; in a process of its
    own."""
    return common.run_workers([common.module_command("benchmarks.throughput", "--memory-worker")])[0]


def memory_worker() -> None:
    from bort.backend.mxnet import autograd, gluon, mx, nd
    from bort.masked_lm.losses import MAX_CHUNK_ELEMENTS, BackwardOptions, LossWeights, head_backward

    vocabulary, hidden, positions = 50265, 32, 2048
    holder = gluon.nn.HybridSequential()
    weight = holder.params.get("weight", shape=(vocabulary, hidden), init="normal")
    bias = holder.params.get("bias", shape=(vocabulary,), init="zeros")
    weight.initialize()
    bias.initialize()
    projection = SimpleNamespace(weight=weight, bias=bias)
    labels = np.random.default_rng(0).integers(0, vocabulary, positions)
    states, teacher_states = (nd.random.normal(shape=(positions, hidden)) for _ in range(2))
    states.attach_grad()

    def targets(start: int, stop: int) -> Any:
        logits = nd.FullyConnected(
            teacher_states[start:stop], weight.data(), bias.data(), num_hidden=vocabulary
        )
        return nd.softmax(logits, axis=-1, out=logits)

    def resident(kind: str) -> float:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split(f"{kind}:")[1].split()[0]) / 1024

    rows = []
    array = positions * vocabulary * 4 / 2**20
    for label, elements in (
        ("in turns, as training does", MAX_CHUNK_ELEMENTS),
        ("all positions at once", 1 << 40),
    ):

        def run(count: int, elements: int = elements) -> None:
            with autograd.record():
                recorded = states[:count] * 1.0
            options = BackwardOptions(max_elements=elements)
            head_backward(recorded, projection, labels[:count], LossWeights(), targets, options)
            mx.nd.waitall()

        run(8)
        # The kernel's peak is set back: that of getrusage would count what came before, even in the parent
        # process.
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        run(positions)
        peak = resident("VmHWM") - before
        rows.append(
            {
                "positions": positions,
                "logits": label,
                "MiB of one positions x V array": round(array, 1),
                "peak MiB of student and teacher together": round(peak, 1),
                "in arrays": round(peak / array, 2),
            }
        )
    common.print_result(rows)


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=["bort", "small"])
    parser.add_argument("--methods", nargs="+", choices=("mlm", "kd"), default=["mlm", "kd"])
    parser.add_argument("--trials", type=int, default=5, help="timed steps of each (default 5)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=60.0,
        help=f"for the timed steps of all engines, shared among parts and methods; the first {LEAST_ROUNDS} "
        "rounds are always made, and opening the engines takes a minute or two for each (default 60)",
    )
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=sorted(ENGINES),
        metavar="ENGINE",
        default=list(ENGINES),
        help="only these: " + "; ".join(ENGINES),
    )
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--no-scaling", action="store_true", help="leave the ranks out")
    parser.add_argument(
        "--only-ranks", action="store_true", help="nothing but the ranks; recorded as scaling"
    )
    parser.add_argument(
        "--scaling-batch", type=int, default=16, help="sequences of a micro-batch (default 16)"
    )
    parser.add_argument(
        "--scaling-accumulate",
        type=int,
        default=4,
        help="micro-batches between two exchanges of gradients, beside 1 (default 4)",
    )
    parser.add_argument("--scaling-trials", type=int, default=3, help="timed steps of each (default 3)")
    parser.add_argument("--folder", type=Path, help="where to record instead of benchmarks/results")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory-worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--accumulate", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--pin", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    for name in ("trials", "scaling_batch", "scaling_accumulate", "scaling_trials"):
        if getattr(arguments, name) < 1:
            raise BortError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(arguments, name)}")
    if arguments.worker:
        worker(arguments)
        return 0
    if arguments.memory_worker:
        memory_worker()
        return 0
    load = common.load_average()
    import bort.backend.mxnet  # noqa: F401  sets what ours runs with, so that the record names it

    notes = (
        []
        if arguments.only_ranks
        else [
            "Medians of steps in turns, each engine in a process of its own "
            "that is stopped meanwhile; masking, clipping and optimizer "
            "included. CPU ms is processor time of a step over all threads, "
            "spinning ones included. In distillation the engines whose student is in bfloat16, and "
            "PyTorch as it comes, take turns after the others, for want of memory.",
            "bfloat16: ours multiplies in it (linear layers, vocabulary), PyTorch's student runs under "
            "torch.autocast and its teacher is cast; weights, LayerNorm, softmax, losses and optimizer of "
            "the students are float32 in both. The teacher of ours computes in OpenVINO where that is "
            "installed.",
            "Losses and gradients are the same function. Ours computes of "
            "the last layer only keys and values everywhere and the rest at "
            "the masked positions, transformers' modules compute it whole; "
            "both project to the vocabulary at the masked positions only.",
            "Unless it is as it comes, PyTorch runs with "
            + " ".join(f"{name}={value}" for name, value in TUNED.items())
            + ".",
        ]
    )
    torch_too = not (arguments.no_torch or arguments.only_ranks)
    if torch_too:
        try:
            import torch  # noqa: F401
            import transformers  # noqa: F401
        except ImportError:
            torch_too = False
            notes.append(
                "PyTorch or transformers is not installed (pip install 'bort[bench]'): only our own figures."
            )
    tables: Dict[str, Any] = {}
    if not arguments.only_ranks:
        tables["Steps"] = []
        chosen = [engine for engine in arguments.engines if torch_too or engine in OF_OURS]
        share = 60 * arguments.minutes / len(arguments.parts) / len(arguments.methods)
        for part in arguments.parts:
            for distil in (method == "kd" for method in arguments.methods):
                some = [engine for engine in chosen if distil or engine != OURS_TEACHER]
                tables["Steps"] += compare(part, distil, some, Rounds(arguments.trials, share))
        met = targets(tables["Steps"], "amx_bf16" in common.cpu_info()["flags"])
        if met:
            tables["Targets"] = met
    if arguments.only_ranks or not arguments.no_scaling:
        rows = scaling(
            arguments.parts[0],
            arguments.scaling_trials,
            arguments.scaling_batch,
            arguments.scaling_accumulate,
        )
        if rows:
            tables["Ranks"] = rows
            notes.append(
                "Strangers are two processes of one rank each at the same time, without "
                "communication: what two cores of this machine yield at most. The paper's batch of "
                f"1,024 is {1024 // (2 * arguments.scaling_batch)} micro-batches of "
                f"{arguments.scaling_batch} on each of two ranks: gradients are exchanged even more "
                "seldom than in the last rows."
            )
        elif arguments.only_ranks:
            raise BortError("--only-ranks needs Horovod (make setup builds it) and two cores")
        else:
            notes.append("No Horovod or only one core: ranks were not measured.")
    if not arguments.only_ranks:
        tables["Memory"] = memory()
    name, title = (
        ("scaling", "Ranks and cores in training")
        if arguments.only_ranks
        else ("throughput", "Training throughput")
    )
    settings = {
        part: ", ".join(f"{key} {value}" for key, value in PARTS[part]._asdict().items())
        for part in arguments.parts[: 1 if arguments.only_ranks else None]
    }
    settings["trials"] = str(arguments.scaling_trials if arguments.only_ranks else arguments.trials)
    path = records.record(name, tables, settings, notes, title, argv, arguments.folder, load)
    print(path.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
