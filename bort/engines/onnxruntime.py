"""ONNX Runtime: exported files, and networks of this process (:class:`OnnxRuntimeEngine`).

An exported model needs onnxruntime and numpy alone; texts also need the ``tokenizers`` package.

    runner = OnnxRunner("sst2.onnx")
    runner.classify(["a gripping film"])       # [{"label": "1", "probabilities": {"0": 0.02, "1": 0.98}}]
    runner(token_ids, valid_length)            # arrays in, arrays out, as the model itself

Importing this module imports neither MXNet nor the model code.
"""
from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from bort.checkpoints.locate import plain_name
from bort.engines import onnx_graph, onnx_quantize
from bort.engines.base import POSITION_INPUTS, Batch, Engine, Report, Unavailable, check_batch
from bort.engines.cpu import openmp_threads
from bort.errors import BortError
from bort.files import PathLike, open_regular
from bort.json_files import parse_json, shown
from bort.probabilities import softmax
from bort.tasks.encoding import encode_pair
from bort.text.tokenizers.loading import Tokenizer, load_tokenizer

FORMAT = "bort-onnx-1"
KIND = "onnxruntime"
MAX_MODEL_BYTES = 2 ** 31


def import_onnxruntime() -> ModuleType:
    """The package ``onnxruntime``.

    Raises:
        Unavailable: it is not installed, or its library cannot be loaded.
    """
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        raise Unavailable(f"onnxruntime is not installed: pip install 'bort[onnx]' [{error}]") from error
    return onnxruntime


def open_session(source: Union[PathLike, bytes], where: str, threads: Optional[int] = None) -> Any:
    """An ``InferenceSession`` of a file, or of a file's content.

    Args:
        where: what to call it in messages.
        threads: for one call; by default ``OMP_NUM_THREADS`` when that is set, else onnxruntime's choice.

    Raises:
        Unavailable: onnxruntime is missing.
        BortError: onnxruntime cannot load it.
    """
    onnxruntime = import_onnxruntime()
    if not isinstance(source, bytes):
        open_regular(source).close()  # names a pointer of Git LFS or a FIFO for what it is
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised as well, and said in one line
    options.intra_op_num_threads = threads or openmp_threads()
    try:
        return onnxruntime.InferenceSession(source if isinstance(source, bytes) else str(source), options,
                                            providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base below Exception
        raise BortError(f"{where}: onnxruntime cannot load it ({str(error).splitlines()[0]})") from error


class OnnxRuntimeEngine(Engine):
    """A session of one of :mod:`bort.engines.onnx_graph`'s graphs.

    Args:
        session: of :func:`open_session`.
        part: one of ``PARTS``.
        vocab_size, max_length: of the network.
        where: what to call it in messages.
    """

    length_multiple = 1
    any_batch = True

    def __init__(self, session: Any, part: str, vocab_size: int, max_length: int, precision: str = "float32",
                 where: str = "the network") -> None:
        self.session, self.part, self.where = session, part, where
        self.max_length, self._vocab_size = max_length, vocab_size
        outputs = session.get_outputs()[0].shape[-1] if part == "classifier" else 0
        self.num_outputs = outputs if isinstance(outputs, int) else 0
        self.report = Report(KIND, import_onnxruntime().__version__, precision)

    def __call__(self, token_ids: Any, valid_length: Any, positions: Optional[Any] = None) -> np.ndarray:
        """As :meth:`Engine.__call__`; a classifier's batch is cut to its longest sequence."""
        ids, lengths = np.asarray(token_ids), np.asarray(valid_length)
        batch = (ids, lengths) if positions is None else (ids, lengths, np.asarray(positions))
        check_batch(self, self._vocab_size, batch)
        if self.part == "classifier":
            ids = ids[:, :int(lengths.max())]
        feed = {"token_ids": ids.astype("int64"), "valid_length": lengths.astype("float32")}
        if positions is not None:
            feed[POSITION_INPUTS[self.part]] = np.asarray(positions).astype("int64")
        try:
            return self.session.run(None, feed)[0]
        except Exception as error:
            raise BortError(f"{self.where}: loads, but cannot be run ({str(error).splitlines()[0]}); it is "
                            "damaged or of another version: export it again (python -m bort.export)"
                            ) from error


def make(facts: onnx_graph.Network, arrays: Mapping[str, np.ndarray], part: str, precision: str,
         calibration: Sequence[Batch]) -> Engine:
    """The engine of a network's part; see :func:`bort.engines.engine.open_engine`.

    int8 is "dynamic": ranges are those of each batch, so ``calibration`` is not needed.
    """
    import_onnxruntime()
    if precision == "bfloat16":
        raise Unavailable("onnxruntime has no bfloat16 on CPUs; take openvino, or float32")
    try:
        model = onnx_graph.build(facts, arrays, part, {})
        if model.ByteSize() >= MAX_MODEL_BYTES:
            raise Unavailable("onnxruntime takes networks up to 2 GiB")
        with tempfile.TemporaryDirectory(prefix="bort-") as folder:
            path = Path(folder) / "model.onnx"
            if precision == "int8":
                onnx_quantize.quantize(model, path, "dynamic")
            session = open_session(path if precision == "int8" else model.SerializeToString(), "the network")
    except ImportError as error:
        raise Unavailable(f"onnxruntime needs onnx to be given a network: pip install 'bort[onnx]' [{error}]"
                          ) from error
    return OnnxRuntimeEngine(session, part, facts.vocab_size, facts.max_length, precision)


class OnnxRunner(OnnxRuntimeEngine):
    """A model exported by ``python -m bort.export``.

    Args:
        path: the ``.onnx`` file.
        threads: for one call; by default onnxruntime's choice, ``OMP_NUM_THREADS`` when that is set.

    Attributes:
        part: "encoder", "classifier" or "mlm".
        settings: what the export stored in the file: ``vocab_size``, ``max_length``, ``labels``, ``task``,
            ...

    Raises:
        BortError: onnxruntime is missing, or the file is missing, broken or not one of ours.
    """

    def __init__(self, path: PathLike, threads: Optional[int] = None) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise BortError(f"{path}: no such file; export it first: python -m bort.export MODEL {path}")
        session = open_session(path, str(path), threads)
        stored = dict(session.get_modelmeta().custom_metadata_map)
        if stored.get("bort") != FORMAT:
            raise BortError(f"{path}: not exported by this project (python -m bort.export)")
        try:
            self.settings: Dict[str, Any] = parse_json(stored["settings"], "its settings")
            limits = [self.settings[key] for key in ("vocab_size", "max_length")]
            fits = (self.settings["part"] in onnx_graph.PARTS
                    and all(isinstance(limit, int) for limit in limits))
        except (KeyError, TypeError, BortError):
            fits = False
        if not fits:
            raise BortError(f"{path}: what the export stored in it is damaged; export it again: python -m "
                            f"bort.export MODEL {path}")
        super().__init__(session, self.settings["part"], vocab_size=limits[0], max_length=limits[1],
                         where=str(path), precision="int8" if self.settings.get("int8") else "float32")
        self._tokenizer: Optional[Tokenizer] = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the file's folder, where the export put it."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.path.parent)
            wanted = self.settings.get("tokenizer")
            if wanted is not None and self._tokenizer.fingerprint != wanted:
                raise BortError(f"{self.path.parent}: its tokenizer is not the one that {self.path.name} was "
                                "exported with")
        return self._tokenizer

    def require(self, **wanted: Any) -> None:
        """Refuse the file unless it was exported with these :attr:`settings`: ``part="classifier"``,
        ``task="RTE"``, ...

        Raises:
            BortError: one differs, or the file was written before exports stored it.
        """
        for name, value in wanted.items():
            if self.settings.get(name) != value:
                what = "was made from other parameters than" if name == "parameters" else \
                    f"has {name} {shown(self.settings.get(name))} instead of {shown(value)}, unlike"
                raise BortError(f"{self.path}: {what} this model; export it again: python -m bort.export "
                                f"MODEL {self.path}")

    def encode(self, texts: Sequence[Union[str, Tuple[str, str]]]) -> Tuple[np.ndarray, np.ndarray]:
        """Texts, or pairs of texts, as ``token_ids`` (B, T) int64 and ``valid_length`` (B,) float32."""
        limit = self.settings.get("used_length") or self.settings["max_length"]
        rows = []
        for text in texts:
            parts = [text] if isinstance(text, str) else list(text)
            ids = self.tokenizer.encode_batch(parts)
            rows.append(encode_pair(self.tokenizer, ids[0], ids[1] if len(ids) > 1 else None, limit,
                                    self.settings.get("truncation") or "even"))
        if not rows:
            raise BortError("there is no text to encode")
        lengths = np.array([len(row) for row in rows], dtype="float32")
        batch = np.full((len(rows), int(lengths.max())), self.tokenizer.pad_id, dtype="int64")
        for number, row in enumerate(rows):
            batch[number, :len(row)] = row
        return batch, lengths

    def classify(self, texts: Sequence[Union[str, Tuple[str, str]]], batch_size: int = 16) -> List[Dict[str,
                                                                                                        Any]]:
        """``{"label", "probabilities"}`` for every text or pair of texts; ``{"score"}`` of a regression
        model.

        Raises:
            BortError: the file holds no classifier, or there is no tokenizer beside it.
        """
        if self.part != "classifier":
            raise BortError(f"{self.path}: holds the part {shown(self.part)}, not a classifier")
        results: List[Dict[str, Any]] = []
        for start in range(0, len(texts), batch_size):
            scores = self(*self.encode(texts[start:start + batch_size])).astype("float64")
            if scores.shape[1] == 1:
                results.extend({"score": float(score)} for score in scores[:, 0])
                continue
            labels = [str(label) for label in self.settings.get("labels") or range(scores.shape[1])]
            results.extend({"label": labels[int(row.argmax())],
                            "probabilities": dict(zip(labels, row.tolist()))} for row in softmax(scores))
        return results


def parameters_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 in hexadecimal of parameters as float32, under the names of ``checkpoints.parameter_arrays``:
    what a file stores of the model that it was made from."""
    digest = hashlib.sha256()
    for name, array in sorted((plain_name(name), array) for name, array in arrays.items()):
        digest.update(f"{name} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array, dtype="float32").data)
    return digest.hexdigest()

