"""What a task is: a reader of official files, an input format, metrics and a submission writer.
Training code sees no more of it than that.

A task never sees a model: it gives :class:`Example` objects to be encoded and takes back *scores*, the
model's raw outputs (logits, or the value in regression) as a float array of shape (N, C), one row per example
of the split in order. N is the number of examples, C the number of the model's outputs.
"""
from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from bort.errors import BortError
from bort.files import PathLike
from bort.tasks import metrics as metric_functions
from bort.tasks import submission as submissions
from bort.tasks.reading import without_collection
from bort.tasks.text import clean, sanitize

logger = logging.getLogger("bort.tasks")

Label = Union[None, int, float]
Prediction = Tuple[Any, Any]


@dataclass(frozen=True)
class Example:
    """One input of the model.

    ``segments`` holds one or two texts, for ``<s> A </s>`` or ``<s> A </s> B </s>``. ``label`` is a class
    index, a float in regression, or None. In question answering cast as classification, ``group`` is the
    question's key (hashable) and ``option`` the position of the answer that this example stands for.
    """

    idx: Any
    segments: Tuple[str, ...]
    label: Label = None
    group: Any = None
    option: Optional[int] = None


@dataclass
class Split:
    """The examples of one split and where they come from.

    ``rows`` counts the usable rows of the official files (lines, or RACE's passages), ``bad_rows`` those
    skipped. ``counts`` are further official units ("questions", "answers"). ``meta`` is the task's own:
    whatever its submission or its metrics need beside the examples.
    """

    name: str
    examples: List[Example]
    rows: int = 0
    bad_rows: int = 0
    files: Tuple[Path, ...] = ()
    counts: Dict[str, int] = field(default_factory=dict)
    meta: Dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def labelled(self) -> bool:
        """Whether every example has a label."""
        return bool(self.examples) and all(example.label is not None for example in self.examples)

    def gold(self) -> np.ndarray:
        """Labels, shape (N,): int64 classes or float64 values.

        Raises:
            BortError: the split has no labels.
        """
        if not self.labelled:
            raise BortError(f"the {self.name} split has no labels to compare with (official test sets have "
                            "none)")
        return np.asarray([example.label for example in self.examples])

    def subset(self, indices: Union[Sequence[int], np.ndarray]) -> "Split":
        """The same split with only the examples at ``indices``, in that order."""
        return replace(self, examples=[self.examples[int(index)] for index in indices])


class Task:
    """A task of a benchmark. Subclasses set the attributes and implement :meth:`_read`.

    Attributes:
        name: as the user types it; ``suite`` is "glue", "superglue", "race" or "synthetic".
        labels: class strings in the order of the model's outputs; None in regression.
        synonyms: further names that other projects give each class, in the order of ``labels``.
        metrics: names of what :meth:`evaluate` returns; the first selects the best epoch.
        splits: names :meth:`read` accepts.
        truncation: what an over-long pair loses: "even" cuts the longer segment first, "first" only
            segment A.
        submission: file name the leaderboard expects; ``submission_kind`` its form; ``submission_unit`` the
            official count (see :attr:`official_counts`) that it has one line of each for.
        encoding: "paper", or "released" for the original release's input (see ``bort.tasks.released``).
        unnamed_order: the labels in the order of a classifier that records none; None for that of ``labels``.
        model_task: for sets without training data, the task whose model scores them; else None.
        companions: sets that this task's model is scored on as well.
        head: "linear", or "linear_extra" where the paper puts one more layer before the classifier (CoLA).
    """

    name = ""
    suite = ""
    labels: Optional[Tuple[str, ...]] = None
    synonyms: Tuple[Tuple[str, ...], ...] = ()
    metrics: Tuple[str, ...] = ("accuracy",)
    splits: Tuple[str, ...] = ("train", "dev", "test")
    truncation = "even"
    submission = ""
    submission_kind: submissions.Kind
    submission_unit = "rows"
    encoding = "paper"
    unnamed_order: Optional[Tuple[str, ...]] = None
    model_task: Optional[str] = None
    companions: Tuple[str, ...] = ()
    head = "linear"
    folders: Tuple[str, ...] = ()
    """Names of the task's folder in the published archives, tried below ``data_dir``."""
    official_counts: Dict[str, Dict[str, int]] = {}
    """Published sizes: split -> {"rows": n, ...}; the other names are those of :attr:`Split.counts`."""

    @property
    def is_regression(self) -> bool:
        return self.labels is None

    @property
    def num_outputs(self) -> int:
        """Outputs of the model's head: classes, or 1 in regression."""
        return 1 if self.labels is None else len(self.labels)

    def set_attributes(self, attributes: Mapping[str, Any], counts: Sequence[int] = ()) -> None:
        """Set attributes of the class by name; ``counts`` are the published rows of each of :attr:`splits`.

        Raises:
            BortError: the class has no such attribute.
        """
        for attribute, value in attributes.items():
            if not hasattr(type(self), attribute):
                raise BortError(f"{self.name}: a task has no attribute {attribute!r}")
            setattr(self, attribute, value)
        self.official_counts = {split: {"rows": rows} for split, rows in zip(self.splits, counts)}

    def folds(self, num_outputs: int) -> bool:
        """Whether :meth:`check_scores` folds that many entailment classes into the two of this task."""
        return num_outputs == 3 and self.labels == ("entailment", "not_entailment")

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    # ---- reading

    def segment(self, text: str) -> str:
        """A text of the data as it becomes a segment. The paper's lose the white space at their ends."""
        return clean(text) if self.encoding == "paper" else sanitize(text)

    def file_names(self, split: str) -> List[Tuple[str, ...]]:
        """The files of a split, each as a tuple of accepted names relative to
        the task's folder, best first."""
        raise NotImplementedError

    def files(self, data_dir: PathLike, split: str) -> List[Path]:
        """Paths of a split's official files, which exist. ``data_dir`` is the task's folder or the
        one above it.

        Raises:
            BortError: no such split, or a file is missing; the message says where it was looked for.
        """
        if split not in self.splits:
            raise BortError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        return [self._locate(Path(data_dir), names) for names in self.file_names(split)]

    def available(self, data_dir: PathLike, split: str) -> bool:
        """Whether the split exists and its files are there."""
        try:
            return bool(self.files(data_dir, split))
        except BortError:
            return False

    def _roots(self, data_dir: Path) -> List[Path]:
        return [data_dir, *(data_dir / folder for folder in (self.name, *self.folders))]

    def _locate(self, data_dir: Path, names: Sequence[str]) -> Path:
        for root in self._roots(data_dir):
            for name in names:
                if (root / name).exists():
                    return root / name
        hint = self._other_suite_hint(data_dir)
        folders = ", ".join(dict.fromkeys([self.name, *self.folders]))
        raise BortError(f"{data_dir}: {self.name} needs {' or '.join(names)}, there or in a folder {folders} "
                        f"below it{hint}; python -m bort.tasks download --task {self.name} --data-dir "
                        f"{data_dir} fetches it")

    def _other_suite_hint(self, data_dir: Path) -> str:
        """RTE is the name of a GLUE and of a SuperGLUE task; say so when the other one's files are there."""
        if self.name == "RTE" and any((root / "val.jsonl").exists() for root in self._roots(data_dir)):
            return " (these are SuperGLUE's files: use the task SuperGLUE-RTE)"
        if self.name == "SuperGLUE-RTE" and any((root / "dev.tsv").exists()
                                                for root in self._roots(data_dir)):
            return " (these are GLUE's files: use the task RTE)"
        return ""

    def read(self, data_dir: PathLike, split: str) -> Split:
        """All examples of a split, in the official order. A size other than the published one is logged
        as a warning.

        Raises:
            BortError: missing or unreadable files, or too many bad rows (see ``reading.RowCounter``).
        """
        files = self.files(data_dir, split)
        with without_collection():
            result = self._read(files, split)
        if not result.examples:
            raise BortError(f"{', '.join(map(str, result.files))}: no examples for {self.name} in it")
        found = {"rows": result.rows, **result.counts}
        official = self.official_counts.get(split, {})
        if any(found.get(unit, count) != count for unit, count in official.items()):
            sizes = [", ".join(f"{counts[unit]:,} {unit}" for unit in official) for counts in (found,
                                                                                               official)]
            logger.warning("%s: %s, the official %s split has %s", ", ".join(map(str, result.files)),
                           sizes[0], split, sizes[1])
        return result

    def _read(self, files: List[Path], split: str) -> Split:
        raise NotImplementedError

    def training_subset(self, split: Split, rng: np.random.Generator) -> Split:
        """The part of a *training* split to train on;
        the split itself unless the task discards or balances."""
        del rng
        return split

    # ---- scores, metrics and predictions

    def check_scores(self, split: Split, scores: np.ndarray) -> np.ndarray:
        """``scores`` as float64 of shape (N, num_outputs).

        Three outputs of an entailment model are folded into two where the set has two classes (AX-b
        and AX-g scored with an MNLI model): entailment against the log-sum-exp of the others, which
        keeps its probability.

        Raises:
            BortError: another shape.
        """
        scores = np.asarray(scores, dtype=np.float64)
        if scores.ndim == 1 and self.is_regression:
            scores = scores[:, None]
        if scores.ndim != 2 or len(scores) != len(split):
            raise BortError(f"{self.name}: expected scores of shape ({len(split)}, {self.num_outputs}), "
                            f"found {scores.shape}")
        if not np.isfinite(scores).all():
            warnings.warn(f"{self.name}: some scores are not finite (training diverged?); they count as 0",
                          stacklevel=2)
            scores = np.where(np.isfinite(scores), scores, 0.0)
        if self.folds(scores.shape[1]):
            scores = np.stack([scores[:, 0], np.logaddexp(scores[:, 1], scores[:, 2])], axis=1)
        if scores.shape[1] != self.num_outputs:
            raise BortError(f"{self.name}: expected {self.num_outputs} outputs per example, found "
                            f"{scores.shape[1]}: the model was fine-tuned for another task")
        return scores

    def outputs(self, split: Split, scores: np.ndarray) -> np.ndarray:
        """Predicted classes (int64, shape (N,)) or regression values (float64, shape (N,)),
        one per example."""
        scores = self.check_scores(split, scores)
        return scores[:, 0] if self.is_regression else scores.argmax(axis=1)

    def evaluate(self, split: Split, scores: np.ndarray) -> Dict[str, float]:
        """The task's metrics over the whole split, by name, in the order of :attr:`metrics`.

        Raises:
            BortError: the split has no labels, or the scores have the wrong shape.
        """
        predicted, gold = self.outputs(split, scores), split.gold()
        return {name: metric_functions.METRICS[name](predicted, gold) for name in self.metrics}

    def predict(self, split: Split, scores: np.ndarray) -> List[Prediction]:
        """``(official idx, value)`` pairs in the submission's order; values as the submission spells them."""
        values = self.outputs(split, scores).tolist()
        return [(example.idx, self.spell(value)) for example, value in zip(split.examples, values)]

    def spell(self, value: Union[int, float]) -> Any:
        """A class index (or regression value) as the leaderboard takes it."""
        return value if self.labels is None else self.labels[int(value)]

    def write_submission(self, split: Split, scores: np.ndarray, folder: PathLike) -> Path:
        """Write :attr:`submission` into ``folder`` (made if missing), atomically; the path written.

        Raises:
            BortError: the scores have the wrong shape, or the file cannot be written.
        """
        if split.bad_rows:
            logger.warning("%s: %d rows of the %s split could not be read, so the submission lacks them and "
                           "the leaderboard will refuse it", self.name, split.bad_rows, split.name)
        path = Path(folder) / self.submission
        self.submission_kind.write(path, self.predict(split, scores))
        return path


def balanced_indices(labels: Sequence[Label], rng: np.random.Generator) -> np.ndarray:
    """Indices, ascending, of all positives (label 1) and as many randomly kept negatives (label 0).

    The paper's treatment of MultiRC, ReCoRD and RACE (sections 5.2 and 5.3): negatives are discarded at
    random until the labels are balanced. Positives are never discarded, even when they are the majority.
    """
    array = np.asarray(labels)
    positives, negatives = np.flatnonzero(array == 1), np.flatnonzero(array == 0)
    if len(negatives) > len(positives):
        negatives = rng.choice(negatives, size=len(positives), replace=False)
    return np.sort(np.concatenate([positives, negatives]))
