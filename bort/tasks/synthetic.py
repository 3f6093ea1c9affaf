"""The embedded task, which needs no download: is a sentence as it was written, or were two of its words swapped?

``bort.text.embedded`` makes the files; here they are read like any others. Labels: 1 as written, 0 swapped.
"""
from __future__ import annotations

from typing import List

from bort.tasks.base import Task
from bort.tasks.glue import TsvTask

EMBEDDED = TsvTask("Embedded", ["sentence"], metrics=("mcc", "accuracy"), suite="synthetic")

SYNTHETIC_TASKS: List[Task] = [EMBEDDED]
