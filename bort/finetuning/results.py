"""What a fine-tuning leaves behind: metrics, submissions, a model folder, and one result of several seeds."""

from __future__ import annotations

import shutil
import statistics
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Mapping

from bort.checkpoints import model_folder
from bort.files import is_leftover, remove_leftovers
from bort.finetuning.scoring import score
from bort.finetuning.task_data import TaskData
from bort.json_files import write_json
from bort.models import Classifier
from bort.text.tokenizers.loading import Tokenizer
from bort.training.figures import plot_curves
from bort.training.run_folder import on_root


def write_outputs(
    model: Classifier, data: TaskData, tokenizer: Tokenizer, folder: Path, record: Mapping[str, Any]
) -> Dict[str, Dict[str, float]]:
    """Score every set, write the submission files and the model folder; metrics by set ("dev", "MNLI-mm/dev",
    ...)."""
    metrics: Dict[str, Dict[str, float]] = {}
    sets = dict(data.others)
    if data.dev is not None:
        sets = {"dev": data.dev, **sets}
    for name, encoded in sets.items():
        scores = score(model, encoded.tokens.token_ids, tokenizer.pad_id, describe=name)
        if encoded.split.labelled:
            metrics[name] = {
                key: float(value) for key, value in encoded.task.evaluate(encoded.split, scores).items()
            }
        if name.endswith("/test"):
            submit = partial(encoded.task.write_submission, encoded.split, scores, folder / "predictions")
            on_root(submit)
    on_root(
        lambda: model_folder.save(
            model, folder / "model", tokenizer, extra={"training": {**record, "metrics": metrics}}
        )
    )
    return metrics


def plot_history(history: List[Dict[str, Any]], path: Path, task: str, seed: int) -> None:
    """Training loss and dev metrics by epoch; drawn by the root rank."""
    epochs = [row["epoch"] + 1 for row in history]
    names = list(history[0]["metrics"]) if history else []
    panels = [
        {"x": "epoch", "y": "training loss", "lines": {"loss": (epochs, [row["loss"] for row in history])}},
        {
            "x": "epoch",
            "y": "dev",
            "lines": {name: (epochs, [row["metrics"][name] for row in history]) for name in names},
        },
    ]
    on_root(lambda: plot_curves(path, panels, f"{task}, seed {seed}"))


def summarize(results: List[Dict[str, Any]]) -> Dict[str, Any]:
    """Several seeds as one result: the best seed's, with median and maximum of every metric.

    The best is that of the highest dev metric, and with Agora that of the best score on E, which may be held
    out from the training set so that the dev set chooses nothing.
    """

    def merit(row: Dict[str, Any]) -> float:
        if row["algorithm"] == "agora":
            return row["best"]["selection"]
        return next(iter(row["metrics"]["dev"].values()))

    best = max(results, key=merit)
    collected: Dict[str, Dict[str, Dict[str, float]]] = {"median": {}, "maximum": {}}
    for kind, function in (("median", statistics.median), ("maximum", max)):
        for name, metrics in results[0]["metrics"].items():
            collected[kind][name] = {
                key: function(row["metrics"][name][key] for row in results) for key in metrics
            }
    return {
        **best,
        "seeds": [row["seed"] for row in results],
        "best_seed": best["seed"],
        **collected,
        "seconds": round(sum(row["seconds"] for row in results), 2),
    }


def deliver(rows: List[Dict[str, Any]], output: Path) -> Dict[str, Any]:
    """The result of a command with one seed or several;
    of several, the best seed's outputs are copied to the top."""
    if len(rows) == 1:
        return rows[0]
    results = summarize(rows)

    def write() -> None:
        best = output / f"seed-{results['best_seed']}"
        for name in ("model", "predictions", "agora.png"):
            if (best / name).is_dir():
                shutil.copytree(
                    best / name,
                    output / name,
                    dirs_exist_ok=True,
                    ignore=lambda _, names: set(filter(is_leftover, names)),
                )
                remove_leftovers(output / name)
            elif (best / name).is_file():
                shutil.copyfile(best / name, output / name)
        write_json(output / "results.json", results)

    on_root(write)
    return results


def final_line(results: Mapping[str, Any]) -> str:
    """The last line a run prints: every metric in percent,
    with median and maximum over seeds where there are several."""
    parts: List[str] = []
    for name, metrics in results["metrics"].items():
        for key, value in metrics.items():
            text = f"{name} {key} {100 * value:.2f}"
            if "median" in results:
                median, maximum = (100 * results[kind][name][key] for kind in ("median", "maximum"))
                text += f" (median {median:.2f}, maximum {maximum:.2f})"
            parts.append(text)
    return (
        f"{results['task']}: " + ", ".join(parts) if parts else f"{results['task']}: no labelled set to score"
    )
