"""Is a file what the leaderboard takes? ``python -m bort.tasks validate``."""
from __future__ import annotations

import logging
from pathlib import Path
from typing import Optional

import numpy as np

from bort.files import PathLike
from bort.tasks import submission
from bort.tasks.base import Task

logger = logging.getLogger("bort.tasks")


def validate_submission(path: PathLike, task: Task, data_dir: Optional[PathLike] = None) -> int:
    """Check a submission file of ``task``; the number of its predictions.

    With ``data_dir``, whose test split is read, every official idx must occur exactly once (MultiRC: with
    exactly its questions and answers; RACE: with as many answers as questions). Without, a number of lines
    other than the official test set's is logged as a warning.

    Raises:
        BortError: something is wrong; the message lists the first problems with their lines.
    """
    path = Path(path)
    if path.name != task.submission:
        logger.warning("%s: the leaderboard expects this file under the name %s", path, task.submission)
    official = None
    if data_dir is not None:
        split = task.read(data_dir, "test")
        official = task.predict(split, np.zeros((len(split), task.num_outputs)))
    count = submission.validate(path, task.submission_kind, official)
    known = task.official_counts.get("test", {}).get(task.submission_unit)
    if official is None and known not in (None, count):
        logger.warning("%s: %d predictions, the official test set needs %d", path, count, known)
    return count
