"""The tasks of the paper by name: ``get_task("CoLA")``.

GLUE, SuperGLUE and RACE as published, and the project's own embedded one. Names are case-insensitive. "RTE"
is GLUE's, "SuperGLUE-RTE" SuperGLUE's: the same sentences in another format with another submission file.
"""
from __future__ import annotations

from bort.tasks.base import Example, Split, Task
from bort.tasks.encoding import EncodedSplit, encode, encode_pair
from bort.tasks.registry import ALIASES, ENCODINGS, TASKS, get_task

__all__ = ["ALIASES", "ENCODINGS", "TASKS", "EncodedSplit", "Example", "Split", "Task", "encode",
           "encode_pair", "get_task"]
