"""One fine-tuning from a task's files and a model to metrics, a model folder and submission files: what
``run_finetune.py`` calls, and a notebook can."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import numpy as np

from bort.backend import distributed
from bort.errors import BortError
from bort.files import PathLike
from bort.finetuning.evaluation_split import leave_out, shared_split
from bort.finetuning.loop import LoopOptions, Settings, TrainingData, fine_tune
from bort.finetuning.results import deliver, plot_history, write_outputs
from bort.finetuning.sources import choose_tokenizer, classifier_for, contents, load_source
from bort.finetuning.task_data import ReadOptions, TaskData, read_task
from bort.finetuning.teacher import open_teacher
from bort.json_files import read_json, write_json
from bort.models import Bert, Classifier
from bort.tasks.labels import align, name_outputs
from bort.text.tokenizers.base import Tokenizer
from bort.training.console import say
from bort.training.run_folder import RunFolder, on_root

SPLIT_FRACTION = 0.1


@dataclass(frozen=True)
class StudentOptions:
    """Which network is fine-tuned.

    Attributes:
        model: model folder, ``.params`` file, or ``random:D,A,H,I``.
        architecture, heads: of a bare ``.params`` file.
        tokenizer: folder of tokenizer files; by default beside the model.
        dropout: the model's own by default.
        head: "linear", "linear_extra" or "pooled"; the paper's for the task by default.
        labels: of a classifier that does not name its classes, in the order of its outputs.
    """

    model: PathLike
    architecture: Optional[str] = None
    heads: Optional[int] = None
    tokenizer: Optional[PathLike] = None
    dropout: Optional[float] = None
    head: Optional[str] = None
    labels: Optional[Sequence[str]] = None


@dataclass(frozen=True)
class TaskOptions:
    """What it is fine-tuned on.

    Attributes:
        name: as ``python -m bort.tasks list`` shows them.
        data_dir: the task's official files, or the folder above.
        encoding: "paper" or "released".
        limit: train on this many examples only; 0 takes all.
        max_length: tokens of an input; 0 takes as many as the model does.
        cache_dir: where token ids are kept between runs.
    """

    name: str
    data_dir: PathLike
    encoding: str = "paper"
    limit: int = 0
    max_length: int = 0
    cache_dir: Optional[PathLike] = None


@dataclass(frozen=True)
class RunOptions:
    """How it is run.

    Attributes:
        teacher: a fine-tuned classifier to distil; None trains on the labels alone.
        split_file: an evaluation set that is left out of the training set (see
            :mod:`bort.finetuning.evaluation_split`), and ``split_fraction`` its share where it is drawn now.
        resume: go on with the run in the output folder.
        checkpoint_interval: steps between checkpoints.
    """

    teacher: Optional[PathLike] = None
    split_file: Optional[PathLike] = None
    split_fraction: float = SPLIT_FRACTION
    resume: bool = False
    checkpoint_interval: int = 500


@dataclass
class Prepared:
    """A student and the data it is fine-tuned on, read and encoded with its tokenizer."""

    student: StudentOptions
    task: TaskOptions
    reading: ReadOptions
    tokenizer: Tokenizer
    max_length: int
    data: TaskData

    def network(self, seed: int) -> Union[Bert, Classifier]:
        """The student as it comes; "random" networks are drawn from ``seed``."""
        student = self.student
        network = load_source(
            student.model, self.tokenizer, student.architecture, student.heads, student.dropout, seed
        )
        if student.labels is not None and not isinstance(network, Classifier):
            raise BortError(f"--labels: {student.model} has no classification head")
        if isinstance(network, Classifier):
            name_outputs(network, student.labels, student.model)
        return network

    def classifier(self, seed: int) -> Classifier:
        """The student with a head for the task, drawn from ``seed`` where it has none."""
        student = self.student
        return classifier_for(
            self.data.task, self.network(seed), seed, student.head, student.dropout
        )


def prepare(student: StudentOptions, task: TaskOptions, seed: int = 0, train: bool = True) -> Prepared:
    """Read what a fine-tuning needs.

    Args:
        seed: draws what a task discards, and the ``limit``.
        train: whether the training split is needed.

    Raises:
        BortError: files are missing or broken, or do not fit together.
    """
    tokenizer = choose_tokenizer(student.model, student.tokenizer)
    longest = load_source(
        student.model, tokenizer, student.architecture, student.heads, student.dropout, seed
    ).max_length
    max_length = task.max_length or longest
    if not 8 <= max_length <= longest:
        raise BortError(f"--max-length {max_length}: the model takes from 8 to {longest} tokens")
    reading = ReadOptions(
        encoding=task.encoding, cache_dir=task.cache_dir, train=train, seed=seed, limit=task.limit
    )
    data = read_task(task.name, task.data_dir, tokenizer, max_length, reading)
    return Prepared(student, task, reading, tokenizer, max_length, data)


def predict_only(prepared: Prepared, output: PathLike) -> Dict[str, Any]:
    """Score every set and write the submission files with the model as it is; the
    content of ``results.json``.

    Raises:
        BortError: the model is no classifier of this task, or ``output`` holds a training's results.
    """
    model, task, folder = prepared.network(0), prepared.data.task, Path(output)
    found = folder / "results.json"
    own = {"task", "model", "max_length", "metrics"}  # of this function; trainings write more
    if (folder / "config.json").exists() or (found.exists() and set(read_json(found)) != own):
        raise BortError(
            f"{folder}: holds a training, and --predict-only would write over its model and results; choose "
            "another --output"
        )
    if not isinstance(model, Classifier):
        raise BortError(
            f"{prepared.student.model}: --predict-only needs a classifier fine-tuned for {task.name}"
        )
    align(model, task, prepared.student.model)
    record = {"task": task.name, "model": prepared.student.model, "max_length": prepared.max_length}
    metrics = write_outputs(model, prepared.data, prepared.tokenizer, folder, record)
    results: Dict[str, Any] = {**record, "metrics": metrics}
    on_root(lambda: write_json(folder / "results.json", results))
    return results


def run_finetuning(
    prepared: Prepared, settings: Sequence[Settings], output: PathLike, options: Optional[RunOptions] = None
) -> Dict[str, Any]:
    """Fine-tune on the labels, or on a teacher's logits as well.

        from bort.finetuning.loop import Settings
        from bort.finetuning.run import StudentOptions, TaskOptions, prepare, run_finetuning

        prepared = prepare(StudentOptions("bort"), TaskOptions("RTE", "glue/RTE"))
        results = run_finetuning(prepared, [Settings(seed=seed) for seed in (0, 1, 2)], "runs/rte")

    Args:
        settings: one training for each; they differ in their seeds only.
        output: the run folder; with several seeds it has one below for each, and the best one's outputs.

    Returns:
        The content of ``results.json``: metrics by set, with median and maximum of several seeds.

    Raises:
        BortError: options, files or models that do not fit together, or a training that diverged.
    """
    options, folder, data = options or RunOptions(), Path(output), prepared.data
    split = None
    if options.split_file is not None:
        split = shared_split(
            options.split_file, data, prepared.task.data_dir, options.split_fraction, prepared.reading.seed
        )
        data = leave_out(data, split)
    train = data.training
    soft = None
    if options.teacher is not None:
        teacher = open_teacher(options.teacher, prepared.tokenizer, data.task, prepared.max_length)
        soft = teacher.of_split(train.split, train.tokens.token_ids, prepared.task.cache_dir)
    student, task = prepared.student, prepared.task
    described = {
        "task": data.task.name,
        "algorithm": "plain" if options.teacher is None else "distill",
        "model": student.model,
        "teacher": options.teacher,
        "encoding": task.encoding,
        "head": student.head,
        **({} if student.labels is None else {"labels": list(student.labels)}),
        "dropout": student.dropout,
        "max_length": prepared.max_length,
        "limit": task.limit,
        "data": train.tokens.fingerprint,
        "tokenizer": prepared.tokenizer.fingerprint,
        **({} if split is None else {"split": split.digest}),
        **contents(data, student.model, options.teacher),
    }
    seeded = _Seeded(prepared, data, soft, described, options)
    rows: List[Dict[str, Any]] = [
        seeded.run(one, folder if len(settings) == 1 else folder / f"seed-{one.seed}") for one in settings
    ]
    return deliver(rows, folder)


@dataclass(frozen=True)
class _Seeded:
    """What the trainings of several seeds have in common; ``described`` determines their results."""

    prepared: Prepared
    data: TaskData
    soft: Optional[np.ndarray]
    described: Mapping[str, Any]
    options: RunOptions

    def run(self, settings: Settings, folder: Path) -> Dict[str, Any]:
        """Fine-tune with one seed in ``folder``; its results. A run that has ended is not repeated."""
        data, described, tokenizer = self.data, self.described, self.prepared.tokenizer
        train, dev = data.training, data.development
        with RunFolder(folder, {**described, **asdict(settings)}, self.options.resume) as run:
            done = run.results
            if done is not None:
                say(f"{folder}: has ended already")
                if not (folder / "curves.png").is_file():
                    plot_history(
                        done["history"], folder / "curves.png", data.task.name, settings.seed
                    )
                return done
            started = time.time()
            model = self.prepared.classifier(settings.seed)
            training = TrainingData(train.tokens.token_ids, train.tokens.labels, self.soft)
            outcome = fine_tune(
                model,
                training,
                lambda network: dev.metrics(network, tokenizer.pad_id),
                settings,
                tokenizer.pad_id,
                run,
                LoopOptions(
                    checkpoint_interval=self.options.checkpoint_interval,
                    title=f"{data.task.name} seed {settings.seed}",
                ),
            )
            record = {
                "task": data.task.name,
                "suite": data.task.suite,
                "algorithm": described["algorithm"],
                "settings": asdict(settings),
                **{name: described[name] for name in ("model", "max_length", "split") if name in described},
            }
            metrics = write_outputs(model, data, tokenizer, folder, record)
            results = {
                **record,
                "metrics": metrics,
                "seed": settings.seed,
                "best_epoch": outcome.best_epoch + 1,
                "epochs": len(outcome.history),
                "history": outcome.history,
                "rows": len(training),
                "bad_rows": train.split.bad_rows,
                "truncated": train.tokens.num_truncated,
                "architecture": model.architecture.to_dict(),
                "ranks": distributed.size(),
                "skipped_steps": outcome.skipped_steps,
                "seconds": round(time.time() - started, 2),
            }
            run.finish(results)
            plot_history(outcome.history, folder / "curves.png", data.task.name, settings.seed)
            return results
