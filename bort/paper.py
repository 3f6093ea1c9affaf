"""The figures of the paper's tables, to stand beside ours (de Wynter and Perry, 2020; tables by their numbers
there)."""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Tuple

from bort.architecture import PRESETS, Architecture


class Table1Row(NamedTuple):
    """A row of Table 1.

    Attributes:
        name: as printed.
        preset: of ``bort.architecture``.
        w: equation 2; None for the maximum point itself.
        parameters_millions: as printed. RoBERTa's vocabulary would make BERT-base's tuple RoBERTa-base
            (footnote 6); the table prints BERT's 110M.
        seconds: per sample of 512 tokens on 8 Xeon cores, the mean of :data:`TABLE_1_TRIALS` trials.
    """

    name: str
    preset: str
    w: Optional[float]
    parameters_millions: float
    seconds: float

    @property
    def architecture(self) -> Architecture:
        """The preset's 4-tuple."""
        return PRESETS[self.preset].architecture


TABLE_1_TRIALS = 6250
"""Forward passes that every speed of Table 1 is the mean of."""


TABLE_1: Tuple[Table1Row, ...] = (
    Table1Row("A1 (Bort)", "bort", 8.6, 56.14, 0.308),
    Table1Row("A2", "a2", 7.5, 35.20, 0.314),
    Table1Row("A3", "a3", 6.6, 35.20, 0.318),
    Table1Row("BERT-base", "bert-base", 0.7, 110.0, 2.416),
    Table1Row("RoBERTa-large", "roberta-large", None, 355.0, 6.170),
)

TABLE_2_PRESETS: Tuple[str, ...] = (
    "bort",
    "tinybert-4",
    "bert-of-theseus",
    "bert-mini",
    "bert-small",
    "bert-base",
    "bert-large",
    "roberta-large",
)
"""The rows of Table 2 in order; names and parameter counts are with the presets in ``bort.architecture``."""

TABLE_3: Dict[str, Dict[str, Optional[float]]] = {
    "Pre-training": {
        "gpus": 8,
        "hours": 40,
        "gpu_hours": 320,
        "mlm_accuracy": 99.3,
        "converged_at_step": 22000,
    },
    "Distillation": {
        "gpus": 8,
        "hours": 36,
        "gpu_hours": 288,
        "mlm_accuracy": 99.3,
        "converged_at_step": 17000,
    },
    "BERT-large": {
        "gpus": 1472,
        "hours": 0.78,
        "gpu_hours": 1153,
        "mlm_accuracy": None,
        "converged_at_step": None,
    },
    "RoBERTa-large": {
        "gpus": 1024,
        "hours": 24,
        "gpu_hours": 25764,
        "mlm_accuracy": None,
        "converged_at_step": None,
    },
}

Scores = Dict[str, Dict[str, Tuple[float, ...]]]


def _table(columns: Tuple[str, ...], rows: Dict[str, str]) -> Scores:
    """``{"CoLA": "67.8 60.5 92.3/89.8"}`` as task -> column -> scores."""
    return {
        task: {
            column: tuple(float(value) for value in cell.split("/"))
            for column, cell in zip(columns, cells.split())
        }
        for task, cells in rows.items()
    }


TABLE_4: Scores = _table(
    ("RoBERTa-large", "BERT-large", "BERT-of-Theseus", "TinyBERT", "BERT-small", "Bort"),
    {
        "CoLA": "67.8 60.5 47.8 43.3 27.8 63.9",
        "SST-2": "96.7 94.9 92.2 92.6 89.7 96.2",
        "MRPC": "92.3/89.8 89.3/85.4 87.6/83.2 86.4/81.2 83.4/76.2 94.1/92.3",
        "STS-B": "92.2/91.9 87.6/86.5 85.6/84.1 81.2/79.9 78.8/77.0 89.2/88.3",
        "QQP": "74.3/90.2 72.1/89.3 71.6/89.3 71.3/89.2 68.1/87.0 66.0/85.9",
        "MNLI-m": "90.8 86.7 82.4 82.5 77.6 88.1",
        "MNLI-mm": "90.2 85.9 82.1 81.8 77.0 87.8",
        "QNLI": "95.4 92.7 89.6 87.7 86.4 92.3",
        "RTE": "88.2 70.1 66.2 62.9 61.8 82.7",
        "WNLI": "89.0 65.1 65.1 65.1 62.3 71.2",
        "AX": "48.7 39.6 9.2 33.7 28.6 51.9",
    },
)
"""GLUE test scores. CoLA, AX: Matthews; STS-B: Pearson/Spearman;
QQP, MRPC: F1/accuracy; the others: accuracy."""

TABLE_5: Scores = _table(
    ("BERT-large", "Baselines", "RoBERTa-large", "Bort"),
    {
        "BoolQ": "77.4 79.0 87.1 83.7",
        "CB": "75.7/83.6 84.8/90.4 90.5/95.2 81.9/86.5",
        "COPA": "70.6 73.8 90.6 89.6",
        "MultiRC": "70.0/24.1 70.0/24.1 84.4/52.5 83.7/54.1",
        "ReCoRD": "72.0/71.3 72.0/71.3 90.6/90.0 49.8/49.0",
        "SuperGLUE-RTE": "71.7 79.0 88.2 81.2",
        "WiC": "69.6 69.6 69.9 70.1",
        "WSC": "64.4 64.4 89.0 65.8",
        "AX-b": "23.0 38.0 57.9 48.0",
        "AX-g": "97.8/51.7 99.4/51.4 91.0/78.1 96.1/61.5",
    },
)
"""SuperGLUE test scores. AX-b: Matthews; AX-g: parity/accuracy; MultiRC: F1a/EM; CB, ReCoRD: F1/accuracy."""

TABLE_6: Scores = _table(
    ("RoBERTa-large", "BERT-large", "Bort"), {"RACE-M": "86.5 76.6 85.9", "RACE-H": "81.8 70.1 80.7"}
)
"""RACE test accuracy."""
