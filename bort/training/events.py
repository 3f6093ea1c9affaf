"""TensorBoard event files beside ``metrics.jsonl``, for those who have the extra ``tensorboard``."""

from __future__ import annotations

from typing import Any, Mapping, Optional

from bort.backend import distributed
from bort.errors import BortError
from bort.files import PathLike


class EventWriter:
    """Writes scalars to ``folder`` on the root rank; does nothing elsewhere, or when it is not wanted.

    Raises:
        BortError: it is wanted and tensorboardX is not installed.
    """

    def __init__(self, folder: PathLike, wanted: bool, purge_step: Optional[int] = None) -> None:
        self._writer: Any = None
        if not wanted:
            return
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise BortError(
                "--tensorboard needs the package tensorboardX: pip install 'bort[tensorboard]'"
            ) from error
        if distributed.is_root():
            # A resumed run repeats the steps after its checkpoint;
            # TensorBoard then drops their earlier values.
            self._writer = SummaryWriter(logdir=str(folder), purge_step=purge_step)

    def add(self, row: Mapping[str, Any]) -> None:
        """Store the numbers of a row of ``metrics.jsonl`` under its ``step``."""
        if self._writer is None:
            return
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
