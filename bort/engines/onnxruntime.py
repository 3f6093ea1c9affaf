"""Run an exported model with onnxruntime and numpy alone; texts also need the ``tokenizers`` package.

    runner = OnnxRunner("sst2.onnx")
    runner.classify(["a gripping film"])       # [{"label": "1", "probabilities": {"0": 0.02, "1": 0.98}}]
    runner(token_ids, valid_length)            # arrays in, arrays out, as the model itself

Importing this module imports neither MXNet nor the model code.
"""
from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from bort.engines.onnx_graph import PARTS
from bort.errors import BortError
from bort.files import PathLike
from bort.tasks.encoding import encode_pair
from bort.text.tokenizers.loading import Tokenizer, load_tokenizer

FORMAT = "bort-onnx-1"


class OnnxRunner:
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
        try:
            import onnxruntime
        except ImportError as error:
            raise BortError(f"onnxruntime is not installed: pip install onnxruntime [{error}]") from error
        self.path = Path(path)
        if not self.path.is_file():
            raise BortError(f"{path}: no such file; export it first: python -m bort.export MODEL {path}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # OpenMP allows a number for each level of nesting: "2,1"; what is no number sets nothing, as there.
        first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
        count = threads or (int(first) if first.isdecimal() else 0)
        if count:
            options.intra_op_num_threads = count
        try:
            self.session = onnxruntime.InferenceSession(str(path), options,
                                                        providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base below Exception
            raise BortError(f"{path}: onnxruntime cannot load it ({str(error).splitlines()[0]})") from error
        stored = dict(self.session.get_modelmeta().custom_metadata_map)
        if stored.get("bort") != FORMAT:
            raise BortError(f"{path}: not exported by this project (python -m bort.export)")
        try:
            self.settings: Dict[str, Any] = json.loads(stored["settings"])
            self.part: str = self.settings["part"]
            fits = self.part in PARTS and all(isinstance(self.settings[key], int) for key in ("vocab_size",
                                                                                              "max_length"))
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise BortError(f"{path}: what the export stored in it is damaged; export it again: python -m "
                            f"bort.export MODEL {path}")
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
                    f"has the {name} {self.settings.get(name)!r} instead of {value!r} of"
                raise BortError(f"{self.path}: {what} this model; export it again: python -m bort.export "
                                f"MODEL {self.path}")

    def __call__(self, token_ids: Any, valid_length: Any,
                 masked_positions: Optional[Any] = None) -> np.ndarray:
        """Run the network.

        Args:
            token_ids: (B, T) integers; ``valid_length``: (B,) tokens that are not padding, from 1 to T.
            masked_positions: (B, M) integers, for the part "mlm" and only for it.

        Returns:
            float32: sequence (B, T, H), zero in padded rows; scores (B, C); or logits (B, M, V).

        Raises:
            BortError: values are out of range, or shapes do not fit.
        """
        ids, lengths = np.asarray(token_ids), np.asarray(valid_length)
        if ids.ndim != 2 or 0 in ids.shape or lengths.shape != ids.shape[:1]:
            raise BortError(f"token_ids must be (batch, length) and valid_length (batch,), not {ids.shape} "
                            f"and {lengths.shape}")
        if ids.shape[1] > self.settings["max_length"]:
            raise BortError(f"sequences of {ids.shape[1]} tokens are longer than max_length "
                            f"{self.settings['max_length']}")
        _check_range("token id", ids, 0, self.settings["vocab_size"] - 1)
        _check_range("valid_length", lengths, 1, ids.shape[1])
        if (masked_positions is None) == (self.part == "mlm"):
            takes = "takes" if self.part == "mlm" else "takes no"
            raise BortError(f"a file of the part {self.part!r} {takes} masked_positions")
        if self.part == "classifier":
            ids = ids[:, :int(lengths.max())]
        feed = {"token_ids": ids.astype("int64"), "valid_length": lengths.astype("float32")}
        if masked_positions is not None:
            positions = np.asarray(masked_positions)
            if positions.ndim != 2 or positions.shape[0] != len(ids) or 0 in positions.shape:
                raise BortError(f"masked_positions must have the shape ({len(ids)}, M), not "
                                f"{positions.shape}")
            _check_range("masked position", positions, 0, ids.shape[1] - 1)
            feed["masked_positions"] = positions.astype("int64")
        return self.session.run(None, feed)[0]

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
            raise BortError(f"{self.path}: holds the part {self.part!r}, not a classifier")
        results: List[Dict[str, Any]] = []
        for start in range(0, len(texts), batch_size):
            scores = self(*self.encode(texts[start:start + batch_size])).astype("float64")
            if scores.shape[1] == 1:
                results.extend({"score": float(score)} for score in scores[:, 0])
                continue
            labels = [str(label) for label in self.settings.get("labels") or range(scores.shape[1])]
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            results.extend({"label": labels[int(row.argmax())],
                            "probabilities": dict(zip(labels, row.tolist()))} for row in weights)
        return results


def parameters_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 in hexadecimal of parameters as float32, under the names of ``checkpoints.parameter_arrays``:
    what a file stores of the model that it was made from."""
    digest = hashlib.sha256()
    for name, array in sorted((name[5:] if name.startswith("bort.") else name, array) for name,
                              array in arrays.items()):
        digest.update(f"{name} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array, dtype="float32").data)
    return digest.hexdigest()


def _check_range(what: str, values: np.ndarray, lowest: int, highest: int) -> None:
    if not (values.min() >= lowest and values.max() <= highest):  # written so that NaN fails too
        wrong = values[~((values >= lowest) & (values <= highest))][0]
        raise BortError(f"{what} {wrong} is outside {lowest}..{highest}")
