"""Classify texts or fill masks with a trained model: ``Predictor`` in Python, ``python -m bort.predict`` in
the shell.

A window of inputs is read, tokenised in a thread of its own, sorted by length, run in batches, and given out
in the
order it came: memory does not grow with the input, and tokenising overlaps with the network.
"""
from __future__ import annotations

import argparse
import contextlib
import logging
import queue
import sys
import threading
from pathlib import Path
from typing import (
    IO,
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Union,
)

import numpy as np

from bort.batching import pad_batch
from bort.checkpoints import inspection, model_folder
from bort.engines.calibration import EXAMPLES as CALIBRATION_EXAMPLES
from bort.engines.calibration import Batch, batches_of, calibration_batches
from bort.engines.mxnet_compiled import DTYPES, check_dtype, compile_for_inference
from bort.engines.onnxruntime import parameters_digest
from bort.errors import BortError
from bort.files import PathLike, atomic_write
from bort.models import Classifier
from bort.predict.records import (
    FORMATS,
    JsonWriter,
    PlainTask,
    Record,
    Texts,
    TsvWriter,
    given_records,
    in_windows,
    open_input,
    read_records,
    write_rows,
)
from bort.tasks.base import Example, Split, Task
from bort.tasks.encoding import encode_pair
from bort.tasks.labels import output_order
from bort.tasks.registry import get_task
from bort.text.tokenizers.base import Tokenizer

ENGINES = ("mxnet", "onnx")
WINDOW_BATCHES = 64
QUEUED_WINDOWS = 2
EXAMPLES = """examples:
  python -m bort.predict runs/sst2/model --input sentences.txt              one text per line
  python -m bort.predict runs/rte/model --input pairs.tsv --output out.tsv  two columns, or sentence1 and sentence2
  python -m bort.predict runs/copa/model --task COPA --input test.jsonl     official records, official answers
  cat reviews.txt | python -m bort.predict model.params --heads 8 --tokenizer ~/.mxnet/models --input -
  python -m bort.predict fill-mask bort --text "The capital of France is <mask>."

Output: one JSON line per input line, or columns when --output ends in .tsv. An unreadable line gives an "error".
"""
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


def inference_function(model: Classifier, dtype: str = "float32", calibration: Sequence[Batch] = ()) -> Run:
    """``run(token_ids (B, T) int32, valid_length (B,) float32)`` -> outputs (B, C), by ``models.fused``'s graphs."""
    compiled = compile_for_inference(model, dtype, calibration)
    return lambda token_ids, valid_length: compiled(token_ids, valid_length).asnumpy()


class Predictor:
    """A classifier with its tokenizer and task.

    Args:
        model: a model folder or ``.params`` file, or a loaded :class:`Classifier`.
        tokenizer: a tokenizer or its folder; by default the one in the model's folder.
        task: the task whose format the inputs have, by name; by default the one the model was fine-tuned for.
        batch_size: sequences per batch.
        max_length: longer inputs are cut, as the task says; by default the length that the model was
            fine-tuned with.
        engine: "mxnet", or "onnx": the file ``onnx`` (by default ``model.onnx`` in the model's folder).
        architecture, heads: of a bare ``.params`` file.
        dtype: "float32", "int8" or "bfloat16", what the engine "mxnet" computes in.
        calibration: a text file or the task's data folder, from which int8 learns the ranges of activations;
            by default it learns them from the first inputs it is given.

    Raises:
        BortError: the model is no classifier, has no tokenizer, or was not fine-tuned for that task; or this
            machine computes slower in ``dtype`` than in float32; or the onnx file is not this model's.
    """

    def __init__(self, model: Union[PathLike, Classifier], tokenizer: Union[None, PathLike, Tokenizer] = None,
                 task: Optional[str] = None, batch_size: int = 32, max_length: Optional[int] = None,
                 engine: str = "mxnet", onnx: Optional[PathLike] = None, architecture: Optional[str] = None,
                 heads: Optional[int] = None, dtype: str = "float32",
                 calibration: Optional[PathLike] = None) -> None:
        if engine not in ENGINES:
            raise BortError(f"engine {engine!r} is unknown; choose one of {', '.join(ENGINES)}")
        check_dtype(dtype)
        if engine == "onnx" and dtype != "float32":
            raise BortError("an onnx file computes in what it was exported for (python -m bort.export "
                            "--int8); --dtype is for the engine mxnet")
        if calibration is not None and dtype != "int8":
            raise BortError("calibration data is for the dtype int8")
        if batch_size < 1:
            raise BortError(f"batch_size must be positive, not {batch_size}")
        used = None
        if isinstance(model, Classifier):
            network, where, arrays = model, "this model", None
        else:
            stored, where = model_folder.read(model, architecture, heads), str(model)
            network = model_folder.build(stored.config, str(stored.located.config_file))
            if not isinstance(network, Classifier):
                raise BortError(f"{where}: has no classification head: fine-tune it first (run_finetune.py); "
                                "only fill-mask needs none")
            if not isinstance(tokenizer, Tokenizer):
                tokenizer = inspection.find_tokenizer(stored, tokenizer)
            training = stored.config.get("training")
            used = training.get("max_length") if isinstance(training, dict) else None
            arrays: Any = stored.arrays
            if engine == "mxnet":
                # gradients would take as much memory again
                network.collect_params().setattr("grad_req", "null")
                model_folder.set_parameters(network, stored.arrays, where)
            else:
                onnx = onnx or stored.located.folder / "model.onnx"
        if not isinstance(tokenizer, Tokenizer):
            raise BortError(f"{where}: there is no tokenizer with it; give --tokenizer DIR")
        if engine == "onnx" and onnx is None:
            raise BortError("the onnx engine needs a file that python -m bort.export wrote; give --onnx FILE")
        limit = network.max_length
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.max_length = max_length or (used if isinstance(used, int) and 8 <= used <= limit else limit)
        if not 4 <= self.max_length <= limit:
            raise BortError(f"max_length {self.max_length}: {where} takes from 4 to {limit} tokens")
        self.task = _task(network, task)
        self._order = None if isinstance(self.task, PlainTask) else output_order(
            getattr(network, "labels", None), network.num_outputs, self.task, where,
            getattr(network, "task_name", None))
        self._direction = 1
        self._network, self._run = network, None if engine == "mxnet" else _onnx_function(
            onnx, network, model_folder.parameter_arrays(network) if arrays is None else model_folder.fit(
                network, arrays, where), tokenizer)
        if dtype != "int8" and engine == "mxnet":
            self._run = inference_function(network, dtype)
        elif calibration is not None:
            self._run = inference_function(network, dtype, calibration_batches(calibration, tokenizer,
                                                                               self.max_length,
                                                                               None if isinstance(self.task,
                                                                                                  PlainTask)
                                                                               else self.task))

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
        """The model's outputs (N, C) for token sequences, in the order of the task's labels."""
        # Now up, now down: the graphs for the lengths that one window ended with are those that the next
        # begins with.
        self._direction = -self._direction
        order = np.argsort([self._direction * len(sequence) for sequence in sequences], kind="stable")
        result: Optional[np.ndarray] = None
        if self._run is None:
            some = sequences[::-(-len(sequences) // CALIBRATION_EXAMPLES)]
            self._run = inference_function(self._network, "int8", batches_of(some, self.tokenizer.pad_id,
                                                                             self.max_length))
        for start in range(0, len(order), self.batch_size):
            batch = order[start:start + self.batch_size]
            rows = [sequences[index] for index in batch]
            outputs = self._run(*pad_batch(rows, self.tokenizer.pad_id, self.max_length))
            result = np.zeros((len(order), outputs.shape[1]), dtype=np.float32) if result is None else result
            result[batch] = outputs
        assert result is not None
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
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
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


def _task(model: Classifier, name: Optional[str]) -> Task:
    recorded = getattr(model, "task_name", None)
    if name is None and recorded is None:
        return PlainTask(getattr(model, "labels", None), model.num_outputs)
    return get_task(name or recorded, getattr(model, "encoding", None) or "paper")


def _onnx_function(path: Any, network: Classifier, arrays: Mapping[str, np.ndarray],
                   tokenizer: Tokenizer) -> Run:
    """The exported file, which must be this model's: another one's answers would look as good."""
    from bort.engines.onnxruntime import OnnxRunner

    runner = OnnxRunner(path)
    runner.require(part="classifier", num_outputs=network.num_outputs, task=getattr(network, "task_name",
                                                                                    None),
                   labels=getattr(network, "labels", None), vocab_size=network.vocab_size,
                   parameters=parameters_digest(arrays))
    if runner.settings.get("tokenizer") is not None:
        runner.require(tokenizer=tokenizer.fingerprint)
    return lambda token_ids, valid_length: np.asarray(runner(token_ids, valid_length))


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(prog="python -m bort.predict", epilog=EXAMPLES,
                                     description="Classify texts with a fine-tuned model.",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("model", metavar="MODEL",
                        help="a model folder or a .params file with a head ('fill-mask' as "
                        "first argument fills masks instead)")
    result.add_argument("--input", required=True, metavar="FILE",
                        help="what to classify; - is standard input")
    result.add_argument("--task", help="the task whose format and labels to use (default: the model's own)")
    result.add_argument("--format", choices=FORMATS, default="auto",
                        help="of the input (default: by its name or first line)")
    result.add_argument("--output", metavar="FILE",
                        help="where to write, columns if it ends in .tsv (default: stdout)")
    result.add_argument("--strict", action="store_true", help="stop at the first line that cannot be read")
    result.add_argument("--batch-size", type=int, default=32, metavar="N",
                        help="sequences per batch (default: 32)")
    result.add_argument("--max-length", type=int, metavar="N",
                        help="cut longer inputs (default: as fine-tuned)")
    result.add_argument("--tokenizer", metavar="DIR", help="take the tokenizer from here")
    result.add_argument("--architecture", metavar="D,A,H,I", help="of a bare .params file")
    result.add_argument("--heads", type=int, metavar="A", help="of a bare .params file, instead")
    result.add_argument("--engine", choices=ENGINES, default="mxnet",
                        help="what runs the network (default: mxnet)")
    result.add_argument("--dtype", choices=DTYPES, default="float32",
                        help="what the mxnet engine computes in")
    result.add_argument("--calibration", metavar="DATA",
                        help="for --dtype int8: a text file or the task's data folder "
                        "(default: the first inputs)")
    result.add_argument("--onnx", metavar="FILE", help="for --engine onnx (default: model.onnx in MODEL)")
    return result


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; bad lines and a summary go to stderr."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["fill-mask"]:
        from bort.predict import fill_mask

        return fill_mask.main(arguments[1:])
    args = parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    predictor = Predictor(args.model, args.tokenizer, args.task, args.batch_size, args.max_length,
                          args.engine, args.onnx, args.architecture, args.heads, args.dtype, args.calibration)
    columns = args.output is not None and Path(args.output).suffix.lower() == ".tsv"
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_input(args.input))
        target: IO[str] = sys.stdout if args.output is None else stack.enter_context(
                                                                                     atomic_write(
                                                                                                  args.output))
        rows = predictor.stream(read_records(source, predictor.task, args.format, args.input))
        bad, lines = write_rows(rows, (TsvWriter if columns else JsonWriter)(target, predictor.task),
                                args.input, args.strict)
        if lines and bad == lines:
            raise BortError(f"{args.input}: none of its {lines} lines could be read; is --format or --task "
                            "another?")
    if bad:
        print(f"{args.input}: {bad} of {lines} lines could not be read", file=sys.stderr)
    return 0
