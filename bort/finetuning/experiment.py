"""One fine-tuning experiment, from a task's files and a model to metrics, a model folder and submission
files."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Union

import numpy as np

from bort.architecture import parse
from bort.backend import distributed
from bort.checkpoints import model_folder, vocabulary
from bort.errors import BortError
from bort.files import PathLike, is_leftover, remove_leftovers, sha256_file, write_json
from bort.finetuning.scoring import score
from bort.models import Bert, Classifier, initialize
from bort.tasks.base import Split, Task
from bort.tasks.encoding import EncodedSplit, encode
from bort.tasks.labels import align
from bort.tasks.registry import get_task
from bort.text.tokenizers.loading import (
    Tokenizer,
    find_default_tokenizer,
    find_tokenizer_files,
    load_tokenizer,
)
from bort.training.console import say
from bort.training.figures import plot_curves
from bort.training.run_folder import on_root


@dataclass
class Encoded:
    """A split with its task (a companion set has its own) and its token ids."""

    task: Task
    split: Split
    tokens: EncodedSplit

    def metrics(self, model: Any, pad_id: int, ranks: bool = True) -> Dict[str, float]:
        """The task's metrics of ``model`` over the whole split."""
        return self.task.evaluate(self.split, score(model, self.tokens.token_ids, pad_id, ranks=ranks))


@dataclass
class TaskData:
    """Everything a task's folder offers: training and dev data, and further sets to score by
    ``Task/split``."""

    task: Task
    train: Optional[Encoded]
    dev: Optional[Encoded]
    others: Dict[str, Encoded]

    @property
    def training(self) -> Encoded:
        """The training split.

        Raises:
            BortError: it was not read.
        """
        if self.train is None:
            raise BortError(f"{self.task.name}: there is no training data")
        return self.train

    @property
    def development(self) -> Encoded:
        """The dev split.

        Raises:
            BortError: the task's folder has none.
        """
        if self.dev is None:
            raise BortError(f"{self.task.name}: there is no dev set in its folder")
        return self.dev


def choose_tokenizer(model: PathLike, tokenizer: Optional[PathLike]) -> Tokenizer:
    """The tokenizer in ``tokenizer`` if given, else the one in the model's folder, else GluonNLP's in its
    usual place.

    Raises:
        BortError: there is none in any of these.
    """
    if tokenizer is not None:
        return load_tokenizer(tokenizer)
    own = own_tokenizer(model)
    if own is not None:
        return own
    default = find_default_tokenizer()
    if default is None:
        raise BortError(
            f"{model}: no tokenizer files beside it; give --tokenizer DIR (RoBERTa's vocab.json "
            "and merges.txt, GluonNLP's .vocab file, or a SentencePiece model)"
        )
    return load_tokenizer(default)


def own_tokenizer(model: PathLike) -> Optional[Tokenizer]:
    """The tokenizer in the model's folder; None where there is none."""
    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    return load_tokenizer(folder) if Path(model).exists() and find_tokenizer_files(folder) else None


def content_of(path: PathLike) -> str:
    """What is in a model folder, ``.params`` file or table of scores, as SHA-256 in hexadecimal, so that a
    resumed run notices that another one took its place; ``"random:..."`` is its own description.

    Raises:
        BortError: there is no such model.
    """
    if str(path).startswith("random:"):
        return str(path)
    if Path(path).suffix in (".npy", ".jsonl"):
        return sha256_file(path)
    located = model_folder.locate(path)
    recorded = (located.config or {}).get("sha256")  # checked against the file whenever the model is read
    return recorded if isinstance(recorded, str) else sha256_file(located.parameters)


def contents(data: TaskData, *models: Optional[PathLike]) -> Dict[str, Any]:
    """Settings of a run that tell its models (None: there is none) and the sets it is scored on from
    others."""
    sets = {"dev": data.dev, **data.others}
    return {
        "models": [None if model is None else content_of(model) for model in models],
        "sets": {name: part.tokens.fingerprint for name, part in sets.items() if part is not None},
    }


@dataclass(frozen=True)
class ReadOptions:
    """How a task's files are read.

    Attributes:
        encoding: "paper" or "released".
        cache_dir: where token ids are kept between runs.
        train: whether the training split is needed.
        seed: draws what a task discards from its training split (section 5.2, 5.3).
        limit: keep only this many training examples, drawn with ``seed``; 0 keeps all.
    """

    encoding: str = "paper"
    cache_dir: Optional[PathLike] = None
    train: bool = True
    seed: int = 0
    limit: int = 0


def read_task(
    name: str,
    data_dir: PathLike,
    tokenizer: Tokenizer,
    max_length: int,
    options: Optional[ReadOptions] = None,
) -> TaskData:
    """Read and encode a task's splits and those companion sets whose files are there.

    Raises:
        BortError: a needed file is missing or broken.
    """
    options = options or ReadOptions()
    task = get_task(name, options.encoding)

    def encoded(owner: Task, split: Split) -> Encoded:
        tokens = encode(owner, split, tokenizer, max_length, options.cache_dir)
        if tokens.num_truncated:
            say(
                f"{owner.name} {split.name}: {tokens.num_truncated} of {len(tokens)} examples were cut to "
                f"{max_length} tokens"
            )
        return Encoded(owner, split, tokens)

    training = None
    if options.train:
        if "train" not in task.splits:
            raise BortError(
                f"{task.name} has no training data: fine-tune on {task.model_task}, whose model "
                f"is scored on {task.name} too"
            )
        rng = np.random.default_rng([options.seed, 0x54524E])
        split = task.training_subset(task.read(data_dir, "train"), rng)
        if 0 < options.limit < len(split):
            split = split.subset(np.sort(rng.choice(len(split), options.limit, replace=False)))
        training = encoded(task, split)
    dev = (
        encoded(task, task.read(data_dir, "dev"))
        if "dev" in task.splits and (options.train or task.available(data_dir, "dev"))
        else None
    )
    others: Dict[str, Encoded] = {}
    for owner in (task, *(get_task(companion, options.encoding) for companion in task.companions)):
        for split_name in owner.splits:
            if split_name == "train" or (owner is task and split_name == "dev"):
                continue
            places = (Path(data_dir), Path(data_dir).parent) if owner is not task else (Path(data_dir),)
            place = next((place for place in places if owner.available(place, split_name)), None)
            if place is not None:
                others[f"{owner.name}/{split_name}"] = encoded(owner, owner.read(place, split_name))
    return TaskData(task, training, dev, others)


def classifier_for(
    task: Task,
    source: Union[Bert, Classifier],
    seed: int,
    head: Optional[str] = None,
    dropout: Optional[float] = None,
) -> Classifier:
    """``source`` with a fresh head for ``task``, drawn from ``seed``; a classifier of the same task keeps its
    own, its outputs put into the order of the task's labels.

    The head is the paper's for the task (linear; CoLA has one more layer) unless ``head`` names another.

    Raises:
        BortError: ``source`` is a classifier of no recorded task with other labels than the task's.
    """
    if isinstance(source, Classifier):
        if (
            source.num_outputs == task.num_outputs
            and source.head == (head or source.head)
            and source.task_name in (None, task.name)
            and source.encoding in (None, task.encoding)
        ):
            try:
                return _labelled(align(source, task, "--model"), task)
            except BortError as error:
                raise BortError(f"{error} (a model imported with --body-only gets a new head)") from error
        source = source.bort
    model = Classifier(source, task.num_outputs, head or task.head, 0.1 if dropout is None else dropout)
    model.initialize_head(seed)
    return _labelled(model, task)


def _labelled(model: Classifier, task: Task) -> Classifier:
    """``model`` with ``task`` as what it is fine-tuned for, as its saved folder says later."""
    model.task_name, model.encoding = task.name, task.encoding
    model.labels = list(task.labels) if task.labels is not None else None
    return model


def load_source(
    model: PathLike,
    tokenizer: Tokenizer,
    architecture: Optional[str] = None,
    heads: Optional[int] = None,
    dropout: Optional[float] = None,
    seed: int = 0,
) -> Union[Bert, Classifier]:
    """A model folder or ``.params`` file; ``"random:D,A,H,I"`` (or a preset's name) is a fresh network.

    Raises:
        BortError: it cannot be loaded, or its vocabulary is not the tokenizer's.
    """
    text = str(model)
    if text.startswith("random:"):
        loaded: Union[Bert, Classifier] = Bert(
            parse(text[7:], "--model"), tokenizer.vocab_size, dropout=0.1 if dropout is None else dropout
        )
        initialize(loaded, seed)
        recorded = None
    else:
        loaded = model_folder.load(model, architecture, heads, dropout)
        recorded = vocabulary.recorded_at(model)
    if not vocabulary.fits(loaded.vocab_size, recorded, tokenizer):
        raise BortError(
            f"{model}: its vocabulary has {loaded.vocab_size} entries, the tokenizer's "
            f"{tokenizer.vocab_size}: they do not belong together; give the right --tokenizer"
        )
    loaded.collect_params().reset_ctx(distributed.context())
    return loaded


def write_outputs(
    model: Classifier, data: TaskData, tokenizer: Tokenizer, folder: Path, record: Mapping[str, Any]
) -> Dict[str, Dict[str, float]]:
    """Score every set, write the submission files and the model folder; metrics by set ("dev", "MNLI-mm/dev",
    ...)."""
    metrics: Dict[str, Dict[str, float]] = {}
    sets = dict(data.others)
    if data.dev is not None:
        sets = {"dev": data.dev, **sets}
    for name, encoded in sets.items():
        scores = score(model, encoded.tokens.token_ids, tokenizer.pad_id, describe=name)
        if encoded.split.labelled:
            metrics[name] = {
                key: float(value) for key, value in encoded.task.evaluate(encoded.split, scores).items()
            }
        if name.endswith("/test"):
            submit = partial(encoded.task.write_submission, encoded.split, scores, folder / "predictions")
            on_root(submit)
    on_root(
        lambda: model_folder.save(
            model, folder / "model", tokenizer, extra={"training": {**record, "metrics": metrics}}
        )
    )
    return metrics


def plot_history(history: List[Dict[str, Any]], path: Path, task: str, seed: int) -> None:
    """Training loss and dev metrics by epoch; drawn by the root rank."""
    epochs = [row["epoch"] + 1 for row in history]
    names = list(history[0]["metrics"]) if history else []
    panels = [
        {"x": "epoch", "y": "training loss", "lines": {"loss": (epochs, [row["loss"] for row in history])}},
        {
            "x": "epoch",
            "y": "dev",
            "lines": {name: (epochs, [row["metrics"][name] for row in history]) for name in names},
        },
    ]
    on_root(lambda: plot_curves(path, panels, f"{task}, seed {seed}"))


def summarize(results: List[Dict[str, Any]]) -> Dict[str, Any]:
    """Several seeds as one result: the best seed's, with median and maximum of every metric.

    The best is that of the highest dev metric, and with Agora that of the best score on E, which may be held
    out from the training set so that the dev set chooses nothing.
    """

    def merit(row: Dict[str, Any]) -> float:
        if row["algorithm"] == "agora":
            return row["best"]["selection"]
        return next(iter(row["metrics"]["dev"].values()))

    best = max(results, key=merit)
    collected: Dict[str, Dict[str, Dict[str, float]]] = {"median": {}, "maximum": {}}
    for kind, function in (("median", statistics.median), ("maximum", max)):
        for name, metrics in results[0]["metrics"].items():
            collected[kind][name] = {
                key: function(row["metrics"][name][key] for row in results) for key in metrics
            }
    return {
        **best,
        "seeds": [row["seed"] for row in results],
        "best_seed": best["seed"],
        **collected,
        "seconds": round(sum(row["seconds"] for row in results), 2),
    }


def deliver(rows: List[Dict[str, Any]], output: Path) -> Dict[str, Any]:
    """The result of a command with one seed or several; of several, the best seed's outputs are copied to the
    top."""
    if len(rows) == 1:
        return rows[0]
    results = summarize(rows)

    def write() -> None:
        best = output / f"seed-{results['best_seed']}"
        for name in ("model", "predictions", "agora.png"):
            if (best / name).is_dir():
                shutil.copytree(
                    best / name,
                    output / name,
                    dirs_exist_ok=True,
                    ignore=lambda _, names: set(filter(is_leftover, names)),
                )
                remove_leftovers(output / name)
            elif (best / name).is_file():
                shutil.copyfile(best / name, output / name)
        write_json(output / "results.json", results)

    on_root(write)
    return results


def final_line(results: Mapping[str, Any]) -> str:
    """The last line a run prints: every metric in percent, with median and maximum over seeds where there are
    several."""
    parts: List[str] = []
    for name, metrics in results["metrics"].items():
        for key, value in metrics.items():
            text = f"{name} {key} {100 * value:.2f}"
            if "median" in results:
                median, maximum = (100 * results[kind][name][key] for kind in ("median", "maximum"))
                text += f" (median {median:.2f}, maximum {maximum:.2f})"
            parts.append(text)
    return (
        f"{results['task']}: " + ", ".join(parts) if parts else f"{results['task']}: no labelled set to score"
    )
