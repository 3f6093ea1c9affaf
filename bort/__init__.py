"""Bort: the optimal subarchitecture of BERT (de Wynter and Perry, 2020) on MXNet.

The names below are imported on first use, so ``import bort`` and everything that needs no network (the
4-tuple, the tasks, the text tools) work without MXNet.
"""
from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Architecture": "bort.architecture",
    "BortError": "bort.errors",
    "Predictor": "bort.predict.predictor",
    "export_onnx": "bort.api",
    "find_architecture": "bort.api",
    "finetune": "bort.api",
    "get_model": "bort.checkpoints.published",
    "get_task": "bort.tasks.registry",
    "load": "bort.checkpoints.model_folder",
    "load_tokenizer": "bort.text.tokenizers.loading",
    "pretrain": "bort.api",
    "save": "bort.checkpoints.model_folder",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bort' has no attribute {name!r}")
