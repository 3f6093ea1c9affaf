"""Rows of a task's table from the results of Agora's seeds and of what they are compared with."""

from __future__ import annotations

import statistics
from typing import Any, Dict, List, Optional, Sequence


def figures(values: Sequence[Optional[float]]) -> Dict[str, Any]:
    """Median, maximum and all values of a metric, in percent."""
    known = [100 * value for value in values if value is not None]
    return (
        {
            "median": round(statistics.median(known), 2),
            "maximum": round(max(known), 2),
            "all": " ".join(f"{value:.1f}" for value in known),
        }
        if known
        else {}
    )


def task_rows(task: str, teacher: Dict[str, Any], runs: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """The lines of one task: teacher, then each method over the seeds."""
    metric = next(iter(teacher["metrics"]["dev"]))
    rows = [
        {
            "task": task,
            "metric": metric,
            "X": teacher["rows"],
            "method": "teacher",
            **figures([teacher["metrics"]["dev"][metric]]),
            "trainings": 1,
            "steps": teacher["history"][-1]["step"],
            "seconds": teacher["seconds"],
        }
    ]
    for place, line in enumerate(runs[0]["compare"]):
        lines = [run["compare"][place] for run in runs]
        rows.append(
            {
                "task": task,
                "metric": metric,
                "X": runs[0]["x"],
                "method": line["method"],
                **figures([one["dev"].get(metric) for one in lines]),
                "on E": figures([one["score"] for one in lines]).get("median"),
                **{
                    key: statistics.median(one[key] for one in lines)
                    for key in ("trainings", "steps", "seconds")
                },
            }
        )
    return rows


def teacher_columns(teacher: Dict[str, Any], runs: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """How often the teacher is right, in percent: on E, which it was trained on, and on dev, which it was
    not."""
    metric, value = next(iter(teacher["metrics"]["dev"].items()))
    value = teacher["metrics"]["dev"].get("accuracy", value)
    return {
        "teacher right on E": round(100 * statistics.median(run["teacher"]["accuracy"] for run in runs), 1),
        "teacher on dev": round(100 * value, 1),
        "its dev metric": "accuracy" if "accuracy" in teacher["metrics"]["dev"] else metric,
    }
