"""``Predictor``: a fine-tuned model answers texts.

A window of inputs is read, tokenised in a thread of its own, sorted by length, run in batches, and given out
in the order it came: memory does not grow with the input, and tokenising overlaps with the network.
"""
from __future__ import annotations

import contextlib
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Union

import numpy as np

from bort.batching import pad_batch
from bort.checkpoints import inspection, model_folder
from bort.engines.calibration import EXAMPLES as CALIBRATION_EXAMPLES
from bort.engines.calibration import Batch, batches_of, calibration_batches
from bort.errors import BortError
from bort.files import PathLike
from bort.models import Classifier
from bort.predict.records import PlainTask, Record, Texts, given_records, in_windows
from bort.predict.running import CALIBRATED, EngineOptions, open_engine
from bort.probabilities import softmax
from bort.tasks.base import Example, Split
from bort.tasks.encoding import encode_pair
from bort.tasks.labels import name_outputs, output_order, task_of
from bort.text.tokenizers.base import Tokenizer

WINDOW_BATCHES = 64
QUEUED_WINDOWS = 2


@dataclass(frozen=True)
class Options(EngineOptions):
    """How a :class:`Predictor` reads its inputs, beside the engine's options.

    Attributes:
        batch_size: sequences per batch.
        max_length: longer inputs are cut, as the task says; by default the length that the model was
            fine-tuned with.
        encoding: "paper" or "released", the task's input format; by default the one that the model was
            fine-tuned on.
        labels: the classes of the outputs in their order, for a model that does not name them.
        architecture, heads: of a bare ``.params`` file.

    Raises:
        BortError: a value is none of those, or two do not go together.
    """

    batch_size: int = 32
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
        self._direction = 1
        self._network = network
        calibration: Sequence[Batch] = ()
        if chosen.calibration is not None:
            calibration = calibration_batches(chosen.calibration, self.tokenizer, self.max_length,
                                              None if isinstance(self.task, PlainTask) else self.task)
        # Without calibration data the first inputs that are given serve.
        waits = chosen.precision in CALIBRATED and not calibration
        self._options = chosen
        self._engine = None if waits else open_engine(network, chosen, opened.tokenizer, opened.arrays,
                                                      opened.folder, calibration)

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
        stop = threading.Event()
        windows: "queue.Queue[Any]" = queue.Queue(QUEUED_WINDOWS)
        worker = threading.Thread(target=self._tokenise, args=(records, windows, stop), daemon=True)
        worker.start()
        try:
            while True:
                window = windows.get()
                if window is None:
                    return
                if isinstance(window, BaseException):
                    raise window
                yield from self._predict(window, strict)
        finally:
            stop.set()
            # Not for ever: the thread may be waiting for a line of a pipe that nobody writes to.
            worker.join(timeout=2.0)

    def _tokenise(self, records: Iterable[Record], windows: "queue.Queue[Any]",
                  stop: threading.Event) -> None:
        """The thread's work: put windows, then None; an exception is put in place of a window."""
        def put(item: Any) -> bool:
            while not stop.is_set():
                with contextlib.suppress(queue.Full):
                    windows.put(item, timeout=0.1)
                    return True
            return False

        try:
            for window in in_windows(records, self.batch_size * WINDOW_BATCHES):
                examples = [example for record in window if record.split for example in record.split.examples]
                if not put(_Window(window, self._encode(examples))):
                    return
            put(None)
        except BaseException as error:  # raised again where the predictions are asked for
            put(error)

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
        # By length, upwards and downwards in turn: a window begins with the graphs that the last one ended
        # with.
        self._direction = -self._direction
        order = np.argsort([self._direction * len(sequence) for sequence in sequences], kind="stable")
        if self._engine is None:
            some = sequences[::-(-len(sequences) // CALIBRATION_EXAMPLES)]
            self._engine = open_engine(self._network, self._options, self.tokenizer, None, None,
                                       batches_of(some, self.tokenizer.pad_id, self.max_length))
        chunks = [order[start:start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        padded = (pad_batch([sequences[index] for index in chunk], self.tokenizer.pad_id, self.max_length)
                  for chunk in chunks)
        # One batch as soon as it can be had; several in the least time together.
        outputs = [self._engine(*next(padded))] if len(chunks) == 1 else list(self._engine.map(padded))
        result = np.zeros((len(order), outputs[0].shape[1]), dtype=np.float32)
        result[order] = np.concatenate(outputs)
        if not np.isfinite(result).all():
            raise BortError(f"{self.where}: its outputs are not finite and answer nothing: its training "
                            "diverged or its parameters are damaged (python -m bort.checkpoints verify)")
        return result if self._order is None else result[:, self._order]

    def _predict(self, window: "_Window", strict: bool) -> Iterator[Dict[str, Any]]:
        scores = self.scores(window.sequences) if window.sequences else np.zeros((0, 1))
        place = 0
        for record in window.records:
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


class _Window(NamedTuple):
    records: List[Record]
    sequences: List[np.ndarray]


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
