"""``Predictor``: a fine-tuned model answers texts.

A window of inputs is read and tokenised in a thread of its own, batched by length, and given out in the order
it came (:mod:`bort.predict.pipeline`): memory does not grow with the input, and tokenising overlaps with the
network.
"""
from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from bort.checkpoints import inspection, model_folder
from bort.engines.base import Batch, Engine
from bort.engines.calibration import EXAMPLES as CALIBRATION_EXAMPLES
from bort.engines.calibration import batches_of, calibration_batches
from bort.errors import BortError
from bort.export.evaluation import DevSet
from bort.export.int8 import least_harmful
from bort.files import PathLike
from bort.models import Classifier
from bort.predict.pipeline import Ahead, Batching, Window, scored
from bort.predict.records import PlainTask, Record, Texts, given_records, in_windows
from bort.predict.running import CALIBRATED, EngineOptions, open_engine
from bort.probabilities import softmax
from bort.tasks.base import Example, Split
from bort.tasks.encoding import encode_pair
from bort.tasks.labels import name_outputs, output_order, task_of
from bort.text.tokenizers.base import Tokenizer

logger = logging.getLogger("bort.predict")
WINDOW, WINDOW_BATCHES = 2048, 16
"""A window holds so many records or so many full batches, whichever is more."""
QUEUED_WINDOWS = 2


@dataclass(frozen=True)
class Options(EngineOptions):
    """How a :class:`Predictor` reads its inputs, beside the engine's options.

    Attributes:
        batch_size: sequences per batch at most; long ones come in smaller batches.
        max_length: longer inputs are cut, as the task says; by default the length that the model was
            fine-tuned with.
        encoding: "paper" or "released", the task's input format; by default the one that the model was
            fine-tuned on.
        labels: the classes of the outputs in their order, for a model that does not name them.
        architecture, heads: of a bare ``.params`` file.

    Raises:
        BortError: a value is none of those, or two do not go together.
    """

    batch_size: int = 128
    max_length: Optional[int] = None
    encoding: Optional[str] = None
    labels: Optional[Sequence[str]] = None
    architecture: Optional[str] = None
    heads: Optional[int] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise BortError(f"batch_size must be positive, not {self.batch_size}")


class _Opened(NamedTuple):
    """A classifier as it was found; ``arrays`` is None where the network has them already."""

    network: Classifier
    where: str
    tokenizer: Tokenizer
    arrays: Optional[Dict[str, np.ndarray]] = None
    folder: Optional[Path] = None
    trained_length: Optional[int] = None


class Predictor:
    """A classifier with its tokenizer and task.

    Args:
        model: a model folder or ``.params`` file, or a loaded :class:`Classifier`.
        tokenizer: a tokenizer or its folder; by default the one in the model's folder.
        task: the task whose format the inputs have, by name; by default the one the model was fine-tuned for.
        options: the fields of :class:`Options` by name.

    Raises:
        BortError: the model is no classifier, has no tokenizer, or was not fine-tuned for that task; or the
            engine cannot be had here.

    Example::

        predictor = bort.Predictor("runs/rte/model", engine="onnx")
        predictor([("It rains.", "The street is wet.")])
        # [{'line': 1, 'label': 'entailment', 'probabilities': {'entailment': 0.93, 'not_entailment': 0.07}}]
    """

    def __init__(self, model: Union[PathLike, Classifier], tokenizer: Union[None, PathLike, Tokenizer] = None,
                 task: Optional[str] = None, **options: Any) -> None:
        chosen = Options(**options)
        opened = _open(model, tokenizer, chosen)
        network, self.where = opened.network, opened.where
        limit, trained = network.max_length, opened.trained_length
        self.tokenizer, self.batch_size = opened.tokenizer, chosen.batch_size
        self.max_length = chosen.max_length or (trained if trained and 8 <= trained <= limit else limit)
        if not 4 <= self.max_length <= limit:
            raise BortError(f"max_length {self.max_length}: {self.where} takes from 4 to {limit} tokens")
        name_outputs(network, chosen.labels, self.where)
        self.task = task_of(network, task, chosen.encoding, self.where) or PlainTask(network.labels,
                                                                                    network.num_outputs)
        self._order = None if isinstance(self.task, PlainTask) else output_order(
            network.labels, network.num_outputs, self.task, self.where,
            network.task_name)
        self._network = network
        calibration: Sequence[Batch] = ()
        data = chosen.calibration if chosen.calibration is not None else chosen.evaluate
        if data is not None:
            calibration = calibration_batches(data, self.tokenizer, self.max_length,
                                              None if isinstance(self.task, PlainTask) else self.task)
        # Without calibration data the first inputs that are given serve.
        waits = chosen.precision in CALIBRATED and not calibration
        self._options = chosen
        self._engine: Optional[Engine] = None
        if chosen.evaluate is not None:
            if isinstance(self.task, PlainTask):
                raise BortError("a dev set needs the model's task; name it (--task)")
            dev = DevSet(network, self.task, chosen.evaluate, self.tokenizer, self.max_length)
            self._engine, _ = least_harmful(network, calibration, "classifier", dev)
            logger.warning("%s: %s", self.where, self._engine.report)
        elif not waits:
            self._engine = open_engine(network, chosen, opened.tokenizer, opened.arrays, opened.folder,
                                       calibration)

    def __call__(self, inputs: Iterable[Texts]) -> List[Dict[str, Any]]:
        """Predictions for all ``inputs``: texts, pairs of texts, or records with the task's members.

        Returns:
            A dict for each: ``label`` and ``probabilities`` (label to float), or ``score`` in regression; for
            tasks that ask several things of one record, ``predictions`` in the official form and
            ``probabilities``.

        Raises:
            BortError: an input does not suit the task; it is named by number.
        """
        return list(self.stream(given_records(self.task, inputs), strict=True))

    def stream(self, records: Iterable[Record], strict: bool = False) -> Iterator[Dict[str, Any]]:
        """The same, one after the other while ``records`` are being read, with ``line`` in every dict.

        A record that is an error gives ``{"line", "error"}``, or ends the stream when ``strict``.
        """
        size = max(WINDOW, self.batch_size * WINDOW_BATCHES)
        with Ahead((self._window(some) for some in in_windows(records, size)), QUEUED_WINDOWS) as windows:
            for window in windows:
                for done, outputs in self._outputs(itertools.chain([window], windows.at_hand())):
                    yield from self._answers(done.records, outputs, strict)

    def _window(self, records: List[Record]) -> Window:
        return Window(records, self._encode([example for record in records if record.split
                                             for example in record.split.examples]))

    def _encode(self, examples: Sequence[Example]) -> List[np.ndarray]:
        texts = list(dict.fromkeys(segment for example in examples for segment in example.segments))
        ids = dict(zip(texts, self.tokenizer.encode_batch(texts)))
        return [encode_pair(self.tokenizer, ids[example.segments[0]],
                            ids[example.segments[1]] if len(example.segments) > 1 else None, self.max_length,
                            self.task.truncation) for example in examples]

    def scores(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """The model's outputs (N, C) for token sequences, in the order of the task's labels.

        Raises:
            BortError: they are not finite.
        """
        return next(self._outputs(iter([Window([], list(sequences))])))[1]

    def _outputs(self, windows: Iterator[Window]) -> Iterator[Tuple[Window, np.ndarray]]:
        """Windows with the model's outputs, as :meth:`scores`."""
        for window in windows:
            if window.sequences:  # what an engine may have to be made with
                batching = Batching(self.batch_size, self.tokenizer.pad_id, self.max_length)
                engine = self._opened(window.sequences)
                for done, outputs in scored(itertools.chain([window], windows), engine, batching):
                    yield done, self._checked(outputs)
            else:
                yield window, np.zeros((0, 1), dtype=np.float32)

    def _opened(self, sequences: Sequence[np.ndarray]) -> Engine:
        if self._engine is None:
            some = sequences[::-(-len(sequences) // CALIBRATION_EXAMPLES)]
            self._engine = open_engine(self._network, self._options, self.tokenizer, None, None,
                                       batches_of(some, self.tokenizer.pad_id, self.max_length))
        return self._engine

    def _checked(self, outputs: np.ndarray) -> np.ndarray:
        if not np.isfinite(outputs).all():
            raise BortError(f"{self.where}: its outputs are not finite and answer nothing: its training "
                            "diverged or its parameters are damaged (python -m bort.checkpoints verify)")
        return outputs if self._order is None or not len(outputs) else outputs[:, self._order]

    def _answers(self, records: Sequence[Record], scores: np.ndarray, strict: bool
                 ) -> Iterator[Dict[str, Any]]:
        place = 0
        for record in records:
            if record.split is None:
                if strict:
                    raise BortError(f"line {record.line}: {record.error}")
                yield {"line": record.line, "error": record.error}
                continue
            count = len(record.split)
            yield {"line": record.line, **self._answer(record.split, scores[place:place + count])}
            place += count

    def _answer(self, split: Split, scores: np.ndarray) -> Dict[str, Any]:
        task, example = self.task, split.examples[0]
        scores = task.check_scores(split, scores)
        if task.is_regression:
            return {"score": float(scores[0, 0])}
        weights = softmax(scores)
        if example.group is not None:
            official = task.predict(split, scores)
            return {"predictions": [task.submission_kind.record(idx, value) for idx, value in official],
                    "probabilities": [float(row[1]) if len(row) == 2 else row.tolist() for row in weights]}
        names = [str(task.spell(index)) for index in range(len(weights[0]))]
        return {"label": task.spell(int(weights[0].argmax())),
                "probabilities": dict(zip(names, weights[0].tolist()))}


def _open(model: Union[PathLike, Classifier], tokenizer: Union[None, PathLike, Tokenizer],
          options: Options) -> _Opened:
    if isinstance(model, Classifier):
        return _Opened(model, "this model", _needed(tokenizer, "this model"))
    stored, where = model_folder.read(model, options.architecture, options.heads), str(model)
    network = model_folder.build(stored.config, str(stored.located.config_file))
    if not isinstance(network, Classifier):
        raise BortError(f"{where}: has no classification head: fine-tune it first (run_finetune.py); "
                        "only fill-mask needs none")
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = inspection.find_tokenizer(stored, tokenizer)
    training = stored.config.get("training")
    length = training.get("max_length") if isinstance(training, dict) else None
    arrays = None
    if options.engine != "onnx":
        # gradients would take as much memory again
        network.collect_params().setattr("grad_req", "null")
        model_folder.set_parameters(network, stored.arrays, where)
    else:
        arrays = model_folder.fit(network, stored.arrays, where)
    return _Opened(network, where, _needed(tokenizer, where), arrays, stored.located.folder,
                   length if isinstance(length, int) else None)


def _needed(tokenizer: Any, where: str) -> Tokenizer:
    if not isinstance(tokenizer, Tokenizer):
        raise BortError(f"{where}: there is no tokenizer with it; give --tokenizer DIR")
    return tokenizer
