"""All tasks by name."""
from __future__ import annotations

import difflib
from typing import Dict, List

from bort.errors import BortError
from bort.tasks import race, superglue
from bort.tasks.base import Task
from bort.tasks.glue import GLUE_TASKS
from bort.tasks.released import RELEASED_TASKS
from bort.tasks.superglue_qa import QA_TASKS
from bort.tasks.synthetic import SYNTHETIC_TASKS

ENCODINGS = ("paper", "released")

_BY_NAME: Dict[str, Task] = {task.name: task for task in [*GLUE_TASKS, superglue.BOOLQ, superglue.CB,
                                                          superglue.COPA, *QA_TASKS, superglue.RTE,
                                                          superglue.WIC, superglue.WSC, superglue.AXB,
                                                          superglue.AXG, *race.RACE_TASKS, *SYNTHETIC_TASKS]}

TASKS: List[str] = list(_BY_NAME)
"""Names of all tasks, in the order of the paper's tables."""
ALIASES: Dict[str, str] = {"mnli": "MNLI-m", "mnli-matched": "MNLI-m", "mnli-mismatched": "MNLI-mm",
                           "glue-rte": "RTE", "sst2": "SST-2", "sst": "SST-2", "stsb": "STS-B",
                           "sts": "STS-B", "axb": "AX-b", "axg": "AX-g", "race-middle": "RACE-M",
                           "race-high": "RACE-H"}


def get_task(name: str, encoding: str = "paper") -> Task:
    """The task of that name, in any case.

    ``encoding="released"`` gives the input of the original release (the table is in ``bort.tasks.released``).
    The tasks that it could not read (MultiRC, ReCoRD) or did not have come in the paper's.

    Raises:
        BortError: no such task (the message lists those there are) or encoding.
    """
    if encoding not in ENCODINGS:
        raise BortError(f"unknown encoding {encoding!r}; there are {' and '.join(ENCODINGS)}")
    wanted = ALIASES.get(name.lower(), name).lower()
    for known in TASKS:
        if known.lower() == wanted:
            return RELEASED_TASKS.get(known, _BY_NAME[known]) if encoding == "released" else _BY_NAME[known]
    close = difflib.get_close_matches(wanted, [known.lower() for known in TASKS], n=1)
    guess = next((known for known in TASKS if close and known.lower() == close[0]), None)
    hint = f" (did you mean {guess}?)" if guess else ""
    raise BortError(f"unknown task {name!r}{hint}; there are {', '.join(TASKS)}. RTE is GLUE's, "
                    "SuperGLUE-RTE is SuperGLUE's")


def register(task: Task) -> Task:
    """Make ``task`` known by its name, to every command of this process; returns it.

    Raises:
        BortError: there is a task of that name.
    """
    taken = {name.lower() for name in (*TASKS, *ALIASES)}
    if not task.name or task.name.lower() in taken:
        raise BortError(f"there is a task named {task.name!r} already")
    _BY_NAME[task.name] = task
    TASKS.append(task.name)
    return task


def unregister(name: str) -> None:
    """Forget a task that :func:`register` was given."""
    del _BY_NAME[name]
    TASKS.remove(name)
