"""The data folder that every benchmark takes with ``--data``, and what they read from it.

    text/        plain text to pre-train on, documents apart by an empty line (*.txt)
    bpe/         RoBERTa's byte-level vocabulary (vocab.bpe, encoder.json, dict.txt or GluonNLP's .vocab)
    glue/        GLUE's tasks in the official layout (CoLA/, SST-2/, ...); superglue/ and race/ likewise

Any of them may be missing: then the text that Python itself carries, a vocabulary trained on it, or fewer
tasks are used, and the record says so.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import List, Optional

from bort.errors import BortError

HELP = "folder with text/, bpe/, glue/, superglue/ and race/ (see benchmarks.harness.data)"


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """``--data FOLDER``: None unless it is given."""
    parser.add_argument("--data", type=Path, help=HELP)


def text_files(data: Optional[Path]) -> List[Path]:
    """The text files of ``data``, in the order of their names; none without a folder.

    Raises:
        BortError: ``data`` is given and does not exist.
    """
    if data is not None and not data.is_dir():
        raise BortError(f"--data {data}: no such folder")
    return [] if data is None else sorted((data / "text").glob("*.txt"))


def read_text(data: Optional[Path], given: Optional[str] = None) -> str:
    """The text of the file ``given``, of ``data``'s text files, or what Python itself carries."""
    from bort.text.corpus.embedded import embedded_documents

    files = [Path(given)] if given else text_files(data)
    if not files:
        return "\n\n".join(embedded_documents())
    return "\n\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def vocabulary(data: Optional[Path]) -> Optional[Path]:
    """RoBERTa's vocabulary in ``data``, or None."""
    return data / "bpe" if data is not None and (data / "bpe").is_dir() else None


def task_folder(data: Path, suite: str) -> Path:
    """The folder of a suite's tasks ("glue", "superglue", "race"): ``data/suite``, or ``data`` itself."""
    return data / suite if (data / suite).is_dir() else data
