"""Tables of results for people and for other programs, from pandas frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from bort.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd


def short(value: Any) -> str:
    """A cell: four significant digits of a fraction, a dash for what is not there."""
    import pandas as pd

    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(frame: "pd.DataFrame", cell: Callable[[Any], str] = short) -> str:
    """A frame as a Markdown table, without its index."""
    rows = [list(map(str, frame.columns)), ["---"] * len(frame.columns)]
    rows += [[cell(value) for value in row] for row in frame.astype(object).itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write_csv(path: Path, frame: "pd.DataFrame") -> None:
    """Write a frame as CSV without its index; it appears whole or not at all.

    Raises:
        BortError: the folder cannot be written to, or the disk is full.
    """
    with atomic_write(path) as stream:
        frame.to_csv(stream, index=False, lineterminator="\n")
