"""Where a classifier meets a task: whose label each of its outputs stands for.

A classifier carries the names of its classes in the order of its outputs (``labels``), and every model hub
and release has an order of its own: MNLI is ``entailment, neutral, contradiction`` here, ``contradiction,
entailment, neutral`` in many imported models, ``neutral, entailment, contradiction`` in the original release.
Whoever holds a classifier's outputs against a task asks :func:`output_order`, or has the classifier itself
rearranged by :func:`align`. Names are compared without regard to case, blanks, hyphens and underscores, and
with the task's :attr:`~bort.tasks.base.Task.synonyms` ("positive" for SST-2's "1").

    >>> from bort.tasks import get_task
    >>> output_order(["CONTRADICTION", "ENTAILMENT", "NEUTRAL"], 3, get_task("MNLI-m"), "model").tolist()
    [1, 2, 0]
    >>> output_order(["negative", "positive"], 2, get_task("SST-2"), "model") is None
    True
"""
from __future__ import annotations

import logging
import re
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from bort.errors import BortError
from bort.files import PathLike
from bort.json_files import shorten, shown
from bort.tasks.base import Task
from bort.tasks.registry import get_task

logger = logging.getLogger("bort.tasks")

_SEPARATORS = re.compile(r"[\s_-]+")


def _plain(name: object) -> str:
    return _SEPARATORS.sub("", str(name)).casefold()


def output_task(task: Task, num_outputs: int, where: PathLike, task_name: Optional[str] = None) -> Task:
    """The task whose labels a model with ``num_outputs`` outputs has when it is used for ``task``.

    That is ``task``, but for a model of three entailment classes on a set of two, which
    :meth:`Task.check_scores` folds: there it is MNLI.

    Raises:
        BortError: ``task`` has another number of outputs.
    """
    if num_outputs == task.num_outputs:
        return task
    if task.folds(num_outputs):
        return get_task("MNLI-m", task.encoding)
    raise BortError(f"{where}: has {num_outputs} outputs, {task.name} needs {task.num_outputs}: it was "
                    f"fine-tuned for {task_name or 'another task'}")


def known_labels(labels: Optional[Sequence[str]], task_name: Optional[str], num_outputs: int
                 ) -> Optional[Sequence[str]]:
    """The names of a classifier's classes in the order of its outputs, None where nothing tells them.

    A classifier without names has those of the task it was fine-tuned for. The numbers ``0, 1, ...`` in
    ascending order are positions, not names.
    """
    if labels is not None and list(map(str, labels)) != list(map(str, range(num_outputs))):
        return labels
    if labels is None and task_name is not None:
        try:
            own = get_task(task_name)
        except BortError:  # a task that this project does not have: its labels are unknown
            return None
        return own.labels if own.num_outputs == num_outputs else None
    return None


def output_order(labels: Optional[Sequence[str]], num_outputs: int, task: Task, where: PathLike,
                 task_name: Optional[str] = None) -> Optional[np.ndarray]:
    """Where the task's labels stand among a classifier's outputs.

    Args:
        labels: the classifier's class names in the order of its outputs; None where it has none.
        num_outputs: its outputs C.
        task: what it is used for.
        where: names the classifier in errors.
        task_name: the task it was fine-tuned for, where that is recorded.

    Returns:
        int64 (C,), so that ``outputs[:, order]`` is in the task's order (in MNLI's where three classes are to
        be folded into two); None where nothing is to be done: the same order, regression, or no names.
        Without names, the release's order is taken for the release's input.

    Raises:
        BortError: another number of outputs, or other labels than the task's.
    """
    wanted = output_task(task, num_outputs, where, task_name)
    if wanted.labels is None:
        return None
    own = known_labels(labels, task_name, num_outputs)
    if own is None and labels is None and task_name is None:
        own = wanted.unnamed_order
    if own is None:
        if labels is None and task_name is None:
            logger.warning("%s: does not say which class each output stands for; they are taken as %s, in "
                           "this order", where, ", ".join(wanted.labels))
        return None
    classes = _names(wanted)
    found = [classes.get(_plain(name)) for name in own]
    if sorted(-1 if index is None else index for index in found) != list(range(num_outputs)):
        shown = ", ".join(shorten(name, 30) for name in own[:8])
        raise BortError(f"{where}: its labels are {shown}; {task.name} has "
                        f"{', '.join(wanted.labels)}: it was fine-tuned for another task")
    order = np.argsort(np.asarray(found))
    return None if (order == np.arange(num_outputs)).all() else order


def stated_labels(text: Optional[str]) -> Optional[List[str]]:
    """The class names of an option ``--labels A,B,C``; None where it is not given.

    Raises:
        BortError: a name is empty or there twice.
    """
    if text is None:
        return None
    labels = [name.strip() for name in text.split(",")]
    if not all(labels) or len(set(map(_plain, labels))) != len(labels):
        raise BortError(f"--labels {shown(text, 60)}: is not a list of different names like A,B,C")
    return labels


def name_outputs(model: Any, labels: Optional[Sequence[str]], where: PathLike) -> None:
    """Let ``labels`` be what a classifier's outputs stand for where its own file does not say it (the
    release's files, and checkpoints with numbers for names); None leaves the classifier as it is.

    Raises:
        BortError: another number of outputs, or the classifier names its classes otherwise.
    """
    if labels is None:
        return
    if len(labels) != model.num_outputs:
        raise BortError(f"--labels: names {len(labels)} classes, {where} has {model.num_outputs} outputs")
    own = known_labels(model.labels, model.task_name, model.num_outputs)
    if own is not None and list(map(_plain, own)) != list(map(_plain, labels)):
        raise BortError(f"--labels: {where} has names of its own, {', '.join(map(str, own))}; leave "
                        "--labels out")
    model.labels = list(labels)


def task_of(model: Any, name: Optional[str], encoding: Optional[str], where: PathLike) -> Optional[Task]:
    """The task that a classifier answers here: the one named, else its own; None where there is neither.

    Args:
        encoding: "paper" or "released"; by default the one that it was fine-tuned on.

    Raises:
        BortError: no such task, the classifier was fine-tuned on its other input format, or there is an
            encoding without a task.
    """
    name = name or model.task_name
    if name is None:
        if encoding is not None:
            raise BortError(f"--encoding {encoding}: is a task's input format, and {where} names no task; "
                            "add --task NAME")
        return None
    task = get_task(name, encoding or model.encoding or "paper")
    if encoding is not None:
        check_encoding(model, task, where)
    return task


def _names(task: Task) -> Dict[str, int]:
    """Every name of a class, in plain form, to its number."""
    labels: Tuple[str, ...] = task.labels or ()
    names = {_plain(other): index for index, others in enumerate(task.synonyms) for other in others}
    names.update({_plain(label): index for index, label in enumerate(labels)})
    return names


def check_encoding(model: Any, task: Task, where: PathLike) -> None:
    """Refuse a classifier that was fine-tuned on the task's other input format.

    Raises:
        BortError: it was.
    """
    recorded = model.encoding
    if recorded not in (None, task.encoding) and model.task_name in (None, task.name):
        raise BortError(f"{where}: was fine-tuned on the {recorded} encoding of {task.name}, not the "
                        f"{task.encoding} one; use the same --encoding")


def align(model: Any, task: Task, where: PathLike) -> Any:
    """Rearrange a classifier's outputs, in place, into the order of the task's labels.

    Args:
        model: a :class:`bort.models.Classifier`; its last layer and its ``labels`` change.
        where: names it in errors.

    Returns:
        ``model``, whose outputs :meth:`Task.check_scores` now takes as they are.

    Raises:
        BortError: it has another number of outputs or other labels, or was fine-tuned on another encoding of
            the task.
    """
    check_encoding(model, task, where)
    own = model.labels
    order = output_order(own, model.num_outputs, task, where, model.task_name)
    if order is not None:
        model.reorder_outputs(order)
    if own is not None:
        model.labels = list(output_task(task, model.num_outputs, where).labels or own)
    return model
