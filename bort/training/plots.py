"""How a pre-training looks: in a line, and as ``RUN/curves.png``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping

from bort.json_files import read_jsonl
from bort.training.figures import plot_curves


def summary(row: Mapping[str, Any]) -> str:
    """A row of ``metrics.jsonl`` in a few words, for the progress bar; a dash for what is not known."""
    parts = [f"{row['tokens_per_second']:,.0f} tokens/s"]
    for label, name, shown in (
        ("loss", "loss", ".3f"),
        ("mlm", "mlm_loss", ".3f"),
        ("kd", "kd_loss", ".3f"),
        ("accuracy", "mlm_accuracy", ".1%"),
    ):
        if name in row:
            parts.append(f"{label} {'–' if row[name] is None else format(row[name], shown)}")
    return ", ".join(parts)


def draw_curves(folder: Path) -> None:
    """Write ``RUN/curves.png`` from ``metrics.jsonl``: losses, accuracies and speed over the steps."""
    rows: List[Dict[str, Any]] = read_jsonl(folder / "metrics.jsonl")

    def line(name: str) -> Any:
        chosen = [row for row in rows if name in row]
        return [row["step"] for row in chosen], [row[name] for row in chosen]

    losses = {
        name: line(key)
        for name, key in (
            ("masked LM", "mlm_loss"),
            ("distillation", "kd_loss"),
            ("masked LM, evaluation", "eval_mlm_loss"),
        )
    }
    plot_curves(
        folder / "curves.png",
        [
            {"x": "step", "y": "loss (nats)", "lines": losses},
            {
                "x": "step",
                "y": "MLM accuracy",
                "lines": {"training": line("mlm_accuracy"), "evaluation": line("eval_mlm_accuracy")},
            },
            {"x": "step", "y": "tokens/s", "lines": {"throughput": line("tokens_per_second")}},
        ],
        folder.name,
    )
