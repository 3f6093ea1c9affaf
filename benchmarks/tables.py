"""Tables 4, 5 and 6 from a model folder: every task whose data is there, the paper's figures beside ours.

    # The whole of GLUE, by Agora with the paper's convergent hyper-parameters; a teacher for each task in
    # runs/teachers:
    python -m benchmarks.tables glue --model bort --data FOLDER --teachers runs/teachers

    # Plain fine-tuning with the same hyper-parameters; a few tasks; other settings:
    python -m benchmarks.tables superglue --model bort --data FOLDER --tasks CB,COPA
    python -m benchmarks.tables race --model bort --data FOLDER --tasks RACE-M -- --epochs 5 --lr 3e-5

    # What a table would cost on this machine, and elsewhere:
    python -m benchmarks.tables glue --model bort --data FOLDER --estimate

Every task whose training data is there is fine-tuned with the paper's convergent hyper-parameters (Tables 7
to 9): by Agora with ``--teachers FOLDER`` (a fine-tuned classifier in FOLDER/TASK or FOLDER/TASK/model),
plainly without one. Arguments after ``--`` go to ``run_finetune.py`` and win over the paper's. A killed run
goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from benchmarks.harness import common, records
from benchmarks.harness.data import task_folder
from bort.errors import BortError, run_command
from bort.finetuning.hyperparameters import convergent_set
from bort.json_files import read_json
from bort.paper import TABLE_4, TABLE_5, TABLE_6, Scores
from bort.tasks.base import Task
from bort.tasks.registry import get_task

PAPER_COLUMNS = {"RoBERTa-large": "RoBERTa-large", "BERT-large": "BERT-large", "Bort": "Bort (paper)"}


class Table(NamedTuple):
    """One table of the paper: name of its command, record and data folder, title, the paper's scores."""

    name: str
    title: str
    paper: Scores


TABLES = {
    table.name: table
    for table in (
        Table("glue", "Table 4: GLUE", TABLE_4),
        Table("superglue", "Table 5: SuperGLUE", TABLE_5),
        Table("race", "Table 6: RACE", TABLE_6),
    )
}


def arguments(argv: Optional[Sequence[str]]) -> Tuple[argparse.Namespace, List[str]]:
    """The command line, and what follows ``--``."""
    given = list(sys.argv[1:] if argv is None else argv)
    own, extra = (
        (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    )
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=sorted(TABLES), help="Table 4, 5 or 6")
    parser.add_argument(
        "--model", required=True, help="pre-trained model folder, .params file or random:D,A,H,I"
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with glue/, superglue/ and race/, or the folder that holds the table's tasks",
    )
    parser.add_argument("--output", help="run folders go here (default: runs/TABLE)")
    parser.add_argument(
        "--teachers", help="fine-tuned classifiers, FOLDER/TASK: Agora instead of plain fine-tuning"
    )
    parser.add_argument("--tokenizer", help="take the tokenizer from here (default: beside the model)")
    parser.add_argument("--architecture", help="D,A,H,I or a preset, for a bare .params file")
    parser.add_argument("--tasks", help="only these, with commas (default: all)")
    parser.add_argument(
        "--estimate", action="store_true", help="only measure throughput and say what the table costs"
    )
    parser.add_argument("--folder", type=Path, help="where to record instead of benchmarks/results")
    return parser.parse_args(own), extra


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run, print and record one table, or with ``--estimate`` its cost.

    Raises:
        BortError: unknown tasks, no data or teacher for one, or a run that failed.
    """
    args, extra = arguments(argv)
    table = TABLES[args.table]
    args.data = str(task_folder(args.data, table.name))
    wanted = args.tasks.split(",") if args.tasks else list(table.paper)
    unknown = [task for task in wanted if task not in table.paper]
    if unknown:
        raise BortError(f"{', '.join(unknown)}: not in this table, which has {', '.join(table.paper)}")
    load, started = common.load_average(), time.monotonic()
    if args.estimate:
        from benchmarks.harness.task_costs import estimate

        rows, settings, notes = estimate(wanted, args.model, args.data, args.tokenizer, args.architecture)
        return _record(
            f"{table.name}-cost", rows, settings, notes, f"Cost of {table.title}", argv, args.folder, load
        )
    output = Path(args.output or Path("runs") / table.name)
    commands, reasons = plan(wanted, args, extra, output)
    results: Dict[str, Dict[str, Any]] = {}
    for name, command in commands.items():
        print(f"== python run_finetune.py {' '.join(command)}", flush=True)
        import run_finetune

        if run_finetune.main(command):
            raise BortError(f"{name}: the run failed")
        results[name] = read_json(output / name / "results.json")
    rows = [row_of(table, name, results, reasons.get(name), args.data) for name in wanted]
    notes = [
        "The paper's figures are those of the leaderboards' test sets. Ours are on the set that the row "
        "names, in percent; test sets without public labels have submission files in the run folders "
        "instead. 'constant' is what the training set's commonest answer for every example would score "
        "there.",
        "Hyper-parameters are the paper's convergent sets (Tables 7 to 9)"
        + (f", changed by the command line: {' '.join(extra)}." if extra else "."),
    ]
    settings = {
        "model": args.model,
        "teachers": args.teachers or "none",
        "run": len(results),
        "seconds": round(time.monotonic() - started),
    }
    return _record(table.name, rows, settings, notes, table.title, argv, args.folder, load)


def _record(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    notes: Sequence[str],
    title: str,
    argv: Optional[Sequence[str]],
    folder: Optional[Path],
    load: Any,
) -> int:
    print("\n".join(["", records.markdown_table(rows), *notes]))
    print(f"recorded in {records.record(name, rows, settings, notes, title, argv, folder, load)}")
    return 0


def plan(
    wanted: Sequence[str], args: argparse.Namespace, extra: Sequence[str], output: Path
) -> Tuple[Dict[str, List[str]], Dict[str, str]]:
    """Arguments of ``run_finetune.py`` for every task that can be run, and why the others cannot.

    Raises:
        BortError: none can, or a teacher is missing.
    """
    commands: Dict[str, List[str]] = {}
    reasons: Dict[str, str] = {}
    for name in wanted:
        task = get_task(name)
        if task.model_task is not None:
            continue
        missing = next((split for split in ("train", "dev") if not task.available(args.data, split)), None)
        if missing is None:
            commands[name] = _command(name, args, extra, output / name)
        else:
            reasons[name] = f"no {missing} data"
    if not commands:
        raise BortError(
            f"{args.data}: no training data of {', '.join(wanted)} in it; python -m bort.tasks "
            "download fetches what is public"
        )
    return commands, reasons


def _command(name: str, args: argparse.Namespace, extra: Sequence[str], output: Path) -> List[str]:
    command = [
        "--task",
        name,
        "--data-dir",
        args.data,
        "--model",
        args.model,
        "--output",
        str(output),
        "--resume",
    ]
    for option, value in (("--tokenizer", args.tokenizer), ("--architecture", args.architecture)):
        command += [option, value] if value else []
    if args.teachers:
        folder = Path(args.teachers) / name
        folder = folder / "model" if (folder / "model").is_dir() else folder
        if not folder.is_dir():
            raise BortError(
                f"{folder}: no teacher for {name}; fine-tune one (python run_finetune.py --task "
                f"{name} --data-dir {args.data} --model TEACHER --output {folder}) or leave it "
                "out (--tasks)"
            )
        grid = any(argument == "--grid" or argument.startswith("--grid=") for argument in extra)
        return [
            *command,
            "--algorithm",
            "agora",
            "--teacher",
            str(folder),
            *([] if grid else ["--chs"]),
            *extra,
        ]
    chosen = convergent_set(name)
    theta = chosen.theta
    return [
        *command,
        "--lr",
        f"{theta.lr:g}",
        "--weight-decay",
        f"{theta.weight_decay:g}",
        "--warmup",
        f"{theta.warmup:g}",
        "--seed",
        str(theta.seed),
        "--batch-size",
        str(chosen.batch_size),
        *extra,
    ]


def row_of(
    table: Table, name: str, results: Mapping[str, Mapping[str, Any]], reason: Optional[str], data: str
) -> Dict[str, Any]:
    """A line of the table: the paper's figures, and ours or why there are none."""
    task = get_task(name)
    metrics = list(task.metrics[: len(table.paper[name]["Bort"])])
    row: Dict[str, Any] = {
        "task": name,
        "metric": "/".join(metrics),
        **{title: _joined(table.paper[name][column]) for column, title in PAPER_COLUMNS.items()},
    }
    row.update({"ours": "not run", "maximum": None, "constant": None, "on": None})
    result = results.get(task.model_task or name)
    if result is None:
        return {**row, "how": reason or f"needs a run of {task.model_task}"}
    how = (
        f"the model of {task.model_task}"
        if task.model_task
        else f"{result['algorithm']}, "
        f"{result.get('rows', result.get('x', 0)):,} examples, {result['seconds']:,.0f} s"
    )
    on = f"{name}/test" if f"{name}/test" in result["metrics"] else None if task.model_task else "dev"
    if on is None:
        there = task.available(data, "test")
        return {
            **row,
            "ours": None if there else "not run",
            "how": f"{how}; no public labels, see its submission file" if there else "no test data",
        }
    several = "median" in result

    def cell(scores: Mapping[str, float]) -> str:
        return _joined([100 * scores[metric] for metric in metrics])

    row.update(
        {
            "ours": cell((result["median"] if several else result["metrics"])[on]),
            "on": on.rpartition("/")[2],
            "constant": cell(constant(task, get_task(task.model_task or name), data, on.rpartition("/")[2])),
            "maximum": cell(result["maximum"][on]) if several else None,
        }
    )
    return {**row, "how": how + (f", {len(result['seeds'])} seeds" if several else "")}


def constant(task: Task, trained_on: Task, data: str, split_name: str) -> Mapping[str, float]:
    """Scores of the same answer everywhere: the commonest label of the training set (or its mean; the first
    option)."""
    labels = np.asarray([example.label for example in trained_on.read(data, "train").examples])
    split = task.read(data, split_name)
    scores = (
        np.full((len(split), 1), labels.mean())
        if task.is_regression
        else np.tile(np.bincount(labels, minlength=task.num_outputs).astype(float), (len(split), 1))
    )
    return task.evaluate(split, scores)


def _joined(values: Sequence[float]) -> str:
    return "/".join(f"{value:.1f}" for value in values)


if __name__ == "__main__":
    sys.exit(run_command(main))
