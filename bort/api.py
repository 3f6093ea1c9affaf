"""What a notebook calls: the runners' work as functions, with keywords in place of options.

    import bort

    table = bort.find_architecture("runs/search", corpus="embedded", teacher="6,4,96,256", ...)
    bort.pretrain("shards", "runs/kd", architecture="runs/search/best.json", teacher="roberta-large")
    results = bort.finetune("CoLA", "glue/CoLA", "runs/kd/model", "runs/cola", epochs=5, lr=3e-5)
    bort.Predictor("runs/cola/model")(["The book was read."])

Each writes the same run folder as its runner and goes on with a killed run when it is asked to ``resume``. A
script calls them below ``if __name__ == "__main__":``, as texts are read by worker processes that import it.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Optional, Sequence, Union

from bort.errors import BortError
from bort.files import PathLike

if TYPE_CHECKING:
    import pandas as pd

    from bort.models import Bert, Classifier
    from bort.text.tokenizers.base import Tokenizer


def _refuse_in_a_worker() -> None:
    """Stop a script that calls a function of this module again in each worker process that it starts.

    Raises:
        BortError: this is such a process.
    """
    import multiprocessing

    if multiprocessing.parent_process() is not None:
        raise BortError("a script must call this below `if __name__ == \"__main__\":`, since processes are "
                        "started that import the script")


def find_architecture(output: PathLike, corpus: PathLike = "embedded", teacher: str = "roberta-large",
                      tokenizer: Optional[PathLike] = None, resume: bool = False,
                      **settings: Any) -> "pd.DataFrame":
    """The FPTAS of section 3 (``run_search.py``).

        table = bort.find_architecture("runs/tiny", teacher="6,4,96,256", depths=(2, 4), heads=(2, 4),
                                       hidden=(32, 64), intermediate=(32, 64), batch_size=32, max_length=32,
                                       speed_lines=64, lr=0.5, dropout=0.0)
        table.head()

    Args:
        output: the run folder; it gets ``candidates.jsonl``, Table 1, ``best.json`` and a plot.
        corpus: shards, a text file or a folder of them, or "embedded".
        teacher: T, a model folder or an architecture.
        settings: members of :class:`bort.search.settings.SearchSettings`.

    Returns:
        One row for each trained candidate, the largest W first.

    Raises:
        BortError: bad settings or files, or T is not the maximum point.
    """
    _refuse_in_a_worker()
    from pathlib import Path

    import pandas as pd

    from bort.search import report
    from bort.search.fptas import search
    from bort.search.settings import SearchInputs, SearchSettings

    chosen = SearchSettings(**settings)
    rows = search(output, chosen, SearchInputs(teacher=teacher, corpus=corpus, tokenizer=tokenizer), resume)
    report.report(Path(output), rows, chosen)
    return pd.DataFrame(rows)


def pretrain(data: PathLike, output: PathLike, architecture: Optional[str] = None,
             init: Optional[PathLike] = None, teacher: Optional[PathLike] = None, resume: bool = False,
             **settings: Any) -> Dict[str, Any]:
    """Pre-training by masked language modelling, or distilled from ``teacher`` (``run_pretrain.py``).

        bort.pretrain("shards", "runs/kd", architecture="4,8,1024,768", teacher="roberta-large",
                      steps=1000, batch_size=8, lr=1e-4)

    Args:
        data: shards, made by ``python -m bort.text prepare``.
        architecture: a preset, ``D,A,H,I`` or a ``best.json``; or ``init``, a model to go on from.
        settings: members of :class:`bort.pretraining.settings.Settings`. The losses weigh 0.5 and 0.5 with a
            teacher, as in ``run_pretrain.py``.

    Returns:
        The content of ``results.json``.

    Raises:
        BortError: options, files or models that do not fit together, or a training that diverged.
    """
    _refuse_in_a_worker()
    from bort.masked_lm.losses import LossWeights
    from bort.pretraining.run import DataOptions, StudentOptions, TeacherOptions, run_pretraining
    from bort.pretraining.settings import Settings

    if teacher is not None:
        settings.setdefault("loss", LossWeights(0.5, 0.5))
    return run_pretraining(DataOptions(data), StudentOptions(architecture, init), Settings(**settings),
                           output, None if teacher is None else TeacherOptions(teacher), resume=resume)


def finetune(task: str, data_dir: PathLike, model: PathLike, output: PathLike,
             teacher: Optional[PathLike] = None, seeds: Sequence[int] = (0,),
             **options: Any) -> Dict[str, Any]:
    """Fine-tuning on a task, plain or distilled from ``teacher`` (``run_finetune.py``).

        results = bort.finetune("SST-2", "glue/SST-2", "runs/kd/model", "runs/sst2", seeds=(0, 1, 2),
                                epochs=3, lr=3e-5)
        results["metrics"]["dev"]

    Args:
        task: as ``bort.tasks`` names it.
        data_dir: its official files, or the folder above.
        model: a model folder, ``.params`` file, or ``random:D,A,H,I``.
        options: members of :class:`bort.finetuning.loop.Settings` but the seed, of ``StudentOptions`` and
            ``TaskOptions`` in :mod:`bort.finetuning.run`, and ``resume``.

    Returns:
        The content of ``results.json``.

    Raises:
        BortError: options, files or models that do not fit together, or a training that diverged.
    """
    _refuse_in_a_worker()
    from dataclasses import fields

    from bort.finetuning.hyperparameters import batch_size_of
    from bort.finetuning.loop import Settings
    from bort.finetuning.run import RunOptions, StudentOptions, TaskOptions, prepare, run_finetuning
    from bort.tasks.registry import get_task

    def taken(kind: Any, *apart: str) -> Dict[str, Any]:
        names = [field.name for field in fields(kind) if field.name in options and field.name not in apart]
        return {name: options.pop(name) for name in names}

    student = StudentOptions(model=model, **taken(StudentOptions, "model"))
    reading = TaskOptions(name=task, data_dir=data_dir, **taken(TaskOptions, "name", "data_dir"))
    running = RunOptions(teacher=teacher, **taken(RunOptions, "teacher"))
    settings = {"batch_size": batch_size_of(get_task(task).name), **taken(Settings, "seed")}
    if options:
        raise BortError(f"finetune takes no {', '.join(sorted(options))}")
    prepared = prepare(student, reading, seed=min(seeds))
    return run_finetuning(prepared, [Settings(seed=seed, **settings) for seed in seeds], output, running)


def export_onnx(model: "Union[Bert, Classifier]", path: PathLike, tokenizer: "Optional[Tokenizer]" = None,
                **options: Any) -> Dict[str, Any]:
    """A model as a checked ONNX file (``python -m bort.export``).

        bort.export_onnx(bort.load("runs/sst2/model"), "sst2/model.onnx",
                         bort.load_tokenizer("runs/sst2/model"))

    Args:
        options: see :func:`bort.export.onnx_export.export`.

    Returns:
        The part, the file's size, and the differences from the model.

    Raises:
        BortError: a package is missing, or the file computes something else than the model.
    """
    from bort.export.onnx_export import export

    return export(model, path, tokenizer=tokenizer, **options)
