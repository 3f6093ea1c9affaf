"""What a training begins with: the tokenizer and the network that its command names, and the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional, Union

from bort.architecture import parse
from bort.backend import distributed
from bort.checkpoints import model_folder, vocabulary
from bort.errors import BortError
from bort.files import PathLike, sha256_file
from bort.finetuning.task_data import TaskData
from bort.models import Bert, Classifier, initialize
from bort.tasks.base import Task
from bort.tasks.labels import align
from bort.text.tokenizers.loading import (
    Tokenizer,
    find_default_tokenizer,
    find_tokenizer_files,
    load_tokenizer,
)


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
    """Settings of a run that tell its models (None: there is none) and the
    sets it is scored on from others."""
    sets = {"dev": data.dev, **data.others}
    return {
        "models": [None if model is None else content_of(model) for model in models],
        "sets": {name: part.tokens.fingerprint for name, part in sets.items() if part is not None},
    }


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
