"""The tasks of the paper by name: ``get_task("CoLA")``.

GLUE, SuperGLUE and RACE as published, and the project's own embedded one. Names are case-insensitive. "RTE"
is GLUE's, "SuperGLUE-RTE" SuperGLUE's: the same sentences in another format with another submission file.

A task reads official files, takes a model's scores and writes a submission; it never sees a model::

    >>> import tempfile, numpy as np
    >>> from bort import tasks
    >>> folder = tempfile.mkdtemp()
    >>> files = tasks.write_embedded_task(folder, seed=0, sizes=(8, 4, 4))
    >>> task = tasks.get_task("Embedded")
    >>> dev = task.read(folder, "dev")
    >>> len(dev), task.labels, sorted(dev.gold().tolist())
    (4, ('0', '1'), [0, 0, 1, 1])
    >>> scores = np.eye(2)[dev.gold()]              # (N, C): a model that is always right
    >>> task.evaluate(dev, scores)
    {'mcc': 1.0, 'accuracy': 1.0}
    >>> task.write_submission(dev, scores, folder).name
    'Embedded.tsv'

How to add a task
-----------------

1. Its class. One text or two per row of a tab-separated file are a :class:`~bort.tasks.glue.TsvTask`, two
   texts per JSON line a :class:`~bort.tasks.superglue.PairTask`: an object is enough, as for SST-2 and CB.
   Anything else subclasses :class:`~bort.tasks.jsonl.JsonlTask` (``examples``: a record to examples),
   :class:`~bort.tasks.grouped.GroupedTask` (options of questions, of which the most probable is chosen) or
   :class:`Task` itself (``file_names`` and ``_read``). Readers raise ``BadRow`` for a row that they cannot
   use; it is counted, reported and bounded for them.
2. Its attributes, which :class:`Task` lists: ``labels`` in the order of the outputs, ``synonyms`` for what
   other projects call them, ``metrics`` (functions are in ``metrics.METRICS``; the first chooses the best
   epoch), ``truncation``, ``submission`` and its ``submission_kind``, ``official_counts``.
3. Its name: in the list of its module, which ``registry`` collects, or by :func:`register` from anywhere.
   Every command takes it from then on: training, prediction, export, ``python -m bort.tasks``.
4. Its download, if it has one: a line in ``download.SOURCES``.
5. Its tests: files in miniature in ``tests/tiny_tasks.py``, from which the tests of readers, encodings,
   submissions, damaged files and a whole fine-tuning take every task by name.

For example::

    >>> from bort.tasks.glue import TsvTask
    >>> reviews = tasks.register(TsvTask("Reviews", ["text"], ("bad", "good"), label="verdict",
    ...                                  synonyms=(("negative",), ("positive",))))
    >>> with open(folder + "/train.tsv", "w") as stream:
    ...     _ = stream.write("verdict\\ttext\\ngood\\tA fine film.\\nbad\\tToo long.\\n")
    >>> [(example.segments, example.label) for example in reviews.read(folder, "train").examples]
    [(('A fine film.',), 1), (('Too long.',), 0)]
    >>> tasks.unregister("Reviews")
"""
from __future__ import annotations

from bort.tasks.base import Example, Split, Task
from bort.tasks.describe import summary
from bort.tasks.encoding import EncodedSplit, encode, encode_pair
from bort.tasks.labels import output_order
from bort.tasks.registry import ALIASES, ENCODINGS, TASKS, get_task, register, unregister
from bort.tasks.synthetic import write_embedded_task
from bort.tasks.validation import validate_submission

__all__ = ["ALIASES", "ENCODINGS", "TASKS", "EncodedSplit", "Example", "Split", "Task", "encode",
           "encode_pair", "get_task", "output_order", "register", "summary", "unregister",
           "validate_submission", "write_embedded_task"]
