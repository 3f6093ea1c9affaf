"""The tables of ``benchmarks.showcase``, from what its steps left; a step that is missing leaves its out."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from scipy.stats import spearmanr

from benchmarks.harness.agora_rows import figures, task_rows, teacher_columns
from benchmarks.harness.showcase_plan import ABLATIONS
from benchmarks.tables import constant
from bort.architecture import Architecture
from bort.json_files import read_json, read_jsonl
from bort.paper import TABLE_4, TABLE_5
from bort.tasks.registry import get_task

Rows = List[Dict[str, Any]]
KNOWS = 2 / 3
"""A teacher right less often than this on the dev set does not know the task (section 5.4)."""
MARGIN = 0.05
"""... nor does one that is not this much above the commonest answer."""
SEVERAL = ("plain, equal compute", "distillation, equal compute", "Agora")


def tables_of(
    output: Path, tasks: Sequence[str], data: Mapping[str, str]
) -> Tuple[Dict[str, Rows], List[str]]:
    """Every table whose runs are there, and notes; ``data`` has each task's folder."""
    notes: List[str] = []
    compared = agora_tables(output, tasks, data, notes)
    pretraining = table_3(output)
    tables = {
        "Headline": headline(pretraining, compared),
        "Search: rank of each tuple by W, and its error": search_table(output, notes),
        "Table 3: distillation beside the masked language model": pretraining,
        **compared,
        "Ablations": ablations(output, tasks),
        "Deployment": deployment(output),
    }
    return {heading: rows for heading, rows in tables.items() if rows}, notes


def search_table(output: Path, notes: List[str]) -> Rows:
    """Tuples with rank and error for each n, and the loss of those that were distilled for longer."""
    rows: Dict[str, Dict[str, Any]] = {}
    counts = sorted(int(path.parent.name.split("-")[1]) for path in output.glob("search-*/best.json"))
    for count in counts:
        found = read_jsonl(output / f"search-{count}" / "candidates.jsonl")
        for rank, row in enumerate(sorted(found, key=lambda row: -(row["W"] or 0)), start=1):
            xi = Architecture.from_dict(row["architecture"])
            line = rows.setdefault(
                str(xi), {"⟨D,A,H,I⟩": xi.display, "parameters (M)": row["parameters"] / 1e6}
            )
            line.update({f"rank, n = {count}": rank, f"error, n = {count}": row["error"]})
    final = {
        path.parent.name.partition("-")[2].replace("-", ","): read_json(path)["eval_mlm_loss"]
        for path in output.glob("forecast-*/results.json")
    }
    for name, loss in final.items():
        if name in rows:
            rows[name]["MLM loss, distilled"] = loss
    known = [line for line in rows.values() if "MLM loss, distilled" in line]
    for count in counts:
        errors = [line[f"error, n = {count}"] for line in known if f"error, n = {count}" in line]
        if len(errors) == len(known) >= 3:
            losses = [line["MLM loss, distilled"] for line in known]
            notes.append(
                f"n = {count}: Spearman's correlation of the search's error with the MLM loss after "
                f"distillation is {spearmanr(errors, losses)[0]:+.2f} over {len(known)} tuples."
            )
        sizes = [line["parameters (M)"] for line in rows.values()]
        ranks = [line[f"rank, n = {count}"] for line in rows.values()]
        notes.append(
            f"n = {count}: correlation of a tuple's rank with its size {spearmanr(ranks, sizes)[0]:+.2f} "
            "(+1: size alone decides)."
        )
    return sorted(rows.values(), key=lambda line: line.get(f"rank, n = {counts[-1]}", 0)) if counts else []


def table_3(output: Path) -> Rows:
    """Medians over the seeds of distillation and MLM: best accuracy, and where the lesser one was reached."""
    runs = {
        method: [path.parent for path in sorted(output.glob(f"{method}-[0-9]*/results.json"))]
        for method in ("mlm", "kd")
    }
    if not all(runs.values()):
        return []
    curves = {
        method: [
            [
                (row["step"], row["eval_mlm_accuracy"])
                for row in read_jsonl(folder / "metrics.jsonl")
                if "eval_mlm_accuracy" in row
            ]
            for folder in folders
        ]
        for method, folders in runs.items()
    }
    best = {
        method: statistics.median(max(a for _, a in curve) for curve in found)
        for method, found in curves.items()
    }
    goal = min(best.values())
    rows = []
    scratch = sorted(output.glob("scratch-*/results.json"))
    for method, folders in runs.items():
        results = [read_json(folder / "results.json") for folder in folders]
        reached = [next((step for step, a in curve if a >= goal), None) for curve in curves[method]]
        steps = [step for step in reached if step is not None]
        rows.append(
            {
                "method": {"mlm": "masked LM alone", "kd": "distillation"}[method],
                "seeds": len(folders),
                "best MLM accuracy (%)": round(100 * best[method], 2),
                "MLM loss at the end": statistics.median(one["eval_mlm_loss"] for one in results),
                f"step of {100 * goal:.1f}%": statistics.median(steps)
                if len(steps) * 2 > len(reached)
                else None,
                "hours": statistics.median(one["seconds"] for one in results) / 3600,
            }
        )
    for path in scratch:
        one = read_json(path)
        accuracy = [row.get("eval_mlm_accuracy", 0) for row in read_jsonl(path.parent / "metrics.jsonl")]
        rows.append(
            {
                "method": "distillation, from random weights",
                "seeds": 1,
                "best MLM accuracy (%)": round(100 * max(accuracy), 2),
                "MLM loss at the end": one["eval_mlm_loss"],
                "hours": one["seconds"] / 3600,
            }
        )
    return rows


def agora_tables(
    output: Path, tasks: Sequence[str], data: Mapping[str, str], notes: List[str]
) -> Dict[str, Rows]:
    """Tables 4 and 5 with teacher, student and constants side by side; and each setting's methods."""
    beside: Rows = []
    lines: Dict[str, Rows] = {"scarce": [], "full": []}
    for task in tasks:
        if not (output / task / "teacher" / "results.json").is_file():
            continue
        teacher = read_json(output / task / "teacher" / "results.json")
        metric = next(iter(teacher["metrics"]["dev"]))
        read = get_task(task)
        commonest = constant(read, read, data[task], "dev")
        paper = {**TABLE_4, **TABLE_5}[task]
        place = read.metrics.index(metric) if metric in read.metrics else 0
        row: Dict[str, Any] = {
            "task": task,
            "metric": metric,
            "RoBERTa-large (paper, test)": paper["RoBERTa-large"][place],
            "Bort (paper, test)": paper["Bort"][place],
            "teacher": round(100 * teacher["metrics"]["dev"][metric], 1),
            "constant": round(100 * commonest[metric], 1),
            "teacher knows it": knows(teacher["metrics"]["dev"], commonest),
        }
        for setting, found in lines.items():
            runs = runs_of(output / task / setting)
            if runs:
                own = task_rows(task, teacher, runs)
                columns = teacher_columns(teacher, runs)
                found += [{**line, **(columns if line["method"] == "teacher" else {})} for line in own]
                row.update({f"{line['method']}, {setting}": line["median"] for line in own[1:]})
        beside.append(row)
    if beside and not all(row["teacher knows it"] for row in beside):
        few = [row["task"] for row in beside if not row["teacher knows it"]]
        notes.append(
            f"The teacher does not know {', '.join(few)}: these are not counted for or against Agora."
        )
    return {
        "Tables 4 and 5, dev sets": beside,
        "Agora with scarce data": lines["scarce"],
        "Agora with all data": lines["full"],
    }


def knows(dev: Mapping[str, float], commonest: Mapping[str, float]) -> bool:
    """Whether a teacher's dev scores are those of one that knows the task."""
    name = "accuracy" if "accuracy" in dev else next(iter(dev))
    return dev[name] >= KNOWS and dev[name] >= commonest[name] + MARGIN


def runs_of(folder: Path) -> List[Dict[str, Any]]:
    """The results of Agora's seeds, or of its only one."""
    several = sorted(folder.glob("seed-*/results.json"))
    paths = several or [path for path in [folder / "results.json"] if path.is_file()]
    return [read_json(path) for path in paths]


def ablations(output: Path, tasks: Sequence[str]) -> Rows:
    """Agora's variants on the first task."""
    if not tasks:
        return []
    rows: Rows = []
    metric: Optional[str] = None
    for name in ("scarce", *ABLATIONS):
        runs = runs_of(output / tasks[0] / name)
        if runs:
            metric = metric or next(iter(runs[0]["metrics"]["dev"]))
            rows.append(
                {
                    "task": tasks[0],
                    "variant": "Agora" if name == "scarce" else name,
                    "seeds": len(runs),
                    **figures([run["metrics"]["dev"][metric] for run in runs[:3]]),
                    "additions": statistics.median(run["additions"] for run in runs),
                }
            )
    return rows if len(rows) > 1 else []


def deployment(output: Path) -> Rows:
    """Size of the ONNX files, and milliseconds of a forward pass, of teacher and student."""
    path = output / "latency" / "latency.json"
    rows: Rows = [
        {"network": name, "ONNX file (MB)": round((output / f"{name}.onnx").stat().st_size / 1e6, 1)}
        for name in ("teacher", "student")
        if (output / f"{name}.onnx").is_file()
    ]
    if path.is_file():
        for heading, table in read_json(path)["rows"].items():
            rows += [{"network": heading.split(":")[0], **row} for row in table if "median_ms" in row]
    return rows


def headline(pretraining: Rows, compared: Mapping[str, Rows]) -> Rows:
    """Lines for README.md's table."""
    recorded = "[showcase](benchmarks/results/showcase.md)"
    rows: Rows = []
    if pretraining:
        mlm, kd = pretraining[:2]
        step = next(key for key in mlm if key.startswith("step of"))
        rows.append(
            {
                "what": f"a real teacher: distillation reaches {step[8:]} MLM accuracy at",
                "paper": "step 17,000 instead of 22,000",
                "here": f"step {kd[step] or 0:,.0f} instead of {mlm[step] or 0:,.0f}",
                "recorded in": recorded,
            }
        )
    for setting in ("scarce", "full"):
        known = [
            row
            for row in compared["Tables 4 and 5, dev sets"]
            if row["teacher knows it"] and f"Agora, {setting}" in row
        ]
        if known:
            above = [
                row["task"]
                for row in known
                if all(row[f"Agora, {setting}"] > row[f"{method}, {setting}"] for method in SEVERAL[:2])
            ]
            rows.append(
                {
                    "what": f"a real teacher, {setting} data: Agora beats its rivals, equal compute",
                    "paper": "–",
                    "here": f"on {len(above)} of {len(known)} tasks it knows: {', '.join(above) or 'none'}",
                    "recorded in": recorded,
                }
            )
    return rows
