"""The maximum point T: its network, and its outputs, which are computed once and serve every candidate.

Shapes: n scored positions, H hidden size of T, V vocabulary.
"""
from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from bort.architecture import Architecture, parse
from bort.backend.mxnet import nd
from bort.checkpoints.params_file import read_ndarrays, write_ndarrays
from bort.engines.base import Engine, Work
from bort.engines.engine import open_engine
from bort.errors import BortError
from bort.files import sha256_file
from bort.json_files import read_sealed, write_json, write_sealed
from bort.masked_lm.batches import MaskedLMBatch
from bort.masked_lm.losses import MAX_CHUNK_ELEMENTS, Teacher
from bort.masked_lm.teacher import MaskedLMTeacher, expected_positions, open_teacher
from bort.models import Bert, initialize
from bort.search.lines import Lines, load_array, save_array
from bort.search.shared_folder import SearchFolder

BLOCK_LINES = 256
"""Lines of one piece of the teacher's work: what a killed process loses at most."""
CALIBRATION_LINES = 256
"""On which a teacher of fewer bits is calibrated or held against float32."""
TEACHER_SEED = 0x54454143
"""Added to the seed for a teacher without weights."""
PROJECTION = "projection"
"""Name of the piece of work that stores T's vocabulary matrix."""


class Maximum(NamedTuple):
    """The maximum point T of section 3.2.

    Attributes:
        architecture: its 4-tuple.
        teacher: its weights; None when they are drawn from the search's seed.
    """

    architecture: Architecture
    teacher: Optional[MaskedLMTeacher]

    @property
    def identity(self) -> str:
        """What tells its weights apart: a checksum, or "random"."""
        return "random" if self.teacher is None else self.teacher.identity

    @property
    def folder(self) -> Optional[Path]:
        """Where its weights are, if anywhere."""
        return None if self.teacher is None else self.teacher.path


def find_maximum(source: str, architecture: Optional[str] = None) -> Maximum:
    """T from a model folder, or from an architecture (a preset's name or ``D,A,H,I``) without weights.

    Args:
        architecture: of a bare ``.params`` file, which does not say how many heads it has.

    Raises:
        BortError: neither, a broken folder, or an architecture that is missing or contradicts the folder.
    """
    path = Path(source)
    if path.exists() and path.suffix != ".json":
        teacher = open_teacher(path, architecture)
        return Maximum(teacher.architecture, teacher)
    if architecture is not None:
        raise BortError("--teacher-architecture says what network a .params file is of, and --teacher "
                        f"{source} is no file; leave it out")
    return Maximum(parse(source, "--teacher"), None)


def check_teacher(maximum: Maximum, lines: Lines) -> None:
    """Refuse, from its files, a T that cannot answer for ``lines``.

    Raises:
        BortError: its vocabulary is not the tokenizer's, it takes shorter lines only, or its MLM head was
            never trained.
    """
    if maximum.teacher is not None:
        maximum.teacher.check(lines.tokenizer, lines.max_length,
                              "give its own tokenizer with --tokenizer, or its shards")
        maximum.teacher.check_head()


def build_teacher(maximum: Maximum, lines: Lines, positions: int, seed: int) -> Bert:
    """The network of T with its weights, without gradients.

    Args:
        positions: rows of the position embedding where T is drawn at random.

    Raises:
        BortError: as :func:`check_teacher`, or its files are damaged.
    """
    if maximum.teacher is not None:
        check_teacher(maximum, lines)
        return maximum.teacher.network()
    model = Bert(maximum.architecture, lines.vocab_size, positions)
    model.collect_params().setattr("grad_req", "null")
    # Another seed than the candidates': draws go by name, and those of its width would begin with its word
    # matrix.
    initialize(model, seed + TEACHER_SEED)
    return model


class TeacherOutputs:
    """T's outputs at the scored positions: what its last layer multiplies with the vocabulary matrix, from
    disk.

    Storing probabilities would take V / H times the space (50 times for RoBERTa-large), running T again 24
    layers. They are recomputed from the states with T's own matrix, for as many positions at a time as the
    caller asks for.
    """

    def __init__(self, folder: Path, blocks: Sequence[str]) -> None:
        self._states = [load_array(folder / f"{name}.npy") for name in blocks]
        lines = np.concatenate([load_array(folder / f"{name}-lines.npy") for name in blocks])
        # a line's first position
        self._first = np.concatenate([[0], np.cumsum(lines[:, 0])]).astype(np.int64)
        self._block = np.cumsum([0] + [len(states) for states in self._states])       # a block's
        self._entropy = lines[:, 1]
        arrays = read_ndarrays(folder / f"{PROJECTION}.params")
        self._weight, self._bias = (nd.array(arrays[name], dtype="float32") for name in ("weight", "bias"))

    def positions(self, start: int, stop: int) -> int:
        """Scored positions of lines ``start`` to ``stop``."""
        return int(self._first[stop] - self._first[start])

    def entropy(self, start: int, stop: int) -> float:
        """Sum of the entropies of T's distributions over those lines, in nats."""
        return float(self._entropy[start:stop].sum())

    def probabilities(self, start: int, stop: int) -> Teacher:
        """The function that gives T's distributions at the scored positions of lines ``start`` to ``stop``,
        (n, V)."""
        first, last = int(self._first[start]), int(self._first[stop])
        parts = [states[max(0, first - begin):last - begin] for states,
                 begin in zip(self._states, self._block) if begin < last and begin + len(states) > first]
        states = nd.array(np.concatenate(parts), dtype="float32")

        def some(begin: int, end: int) -> Any:
            logits = nd.FullyConnected(states[begin:end], self._weight, self._bias,
                                       num_hidden=len(self._bias))
            return nd.softmax(logits, axis=-1, out=logits)

        return some


def teacher_outputs(folder: SearchFolder, lines: Lines, make: Callable[[], Bert],
                    micro_batch_size: int) -> TeacherOutputs:
    """T over all lines, once per search: dealt out in blocks, stored in ``RUN/teacher``, kept for reruns.

    Args:
        make: builds T; called only if there is something to compute, and T is dropped before this returns.
    """
    path = folder.path / "teacher"
    blocks = {f"block-{start // BLOCK_LINES:05d}": (start, min(start + BLOCK_LINES, len(lines)))
              for start in range(0, len(lines), BLOCK_LINES)}
    teacher: List[Bert] = []
    engines: List[Engine] = []

    def compute(name: str) -> None:
        if not teacher:
            teacher.append(make())
            work = Work(len(lines) * teacher[0].architecture.flops(lines.max_length), BLOCK_LINES)
            some = [lines.batch(start, start + micro_batch_size)
                    for start in range(0, min(len(lines) - micro_batch_size, CALIBRATION_LINES),
                                       micro_batch_size)]
            engines.append(open_engine(teacher[0], "masked_states", None,
                                       [(batch.token_ids, batch.valid_length) for batch in some], work))
            write_json(path / "engine.json", engines[0].report.to_dict())
        projection = teacher[0].vocabulary_projection
        if name == PROJECTION:
            # Rows beyond the tokenizer's ids, if there are any, stand for no token.
            write_ndarrays(path / f"{PROJECTION}.params",
                           {"weight": projection.weight.data().asnumpy()[:lines.vocab_size],
                            "bias": projection.bias.data().asnumpy()[:lines.vocab_size]})
            _mark(path, name)
            return
        states, facts = [], []
        for start, stop in micro_batches(*blocks[name], micro_batch_size):
            batch = lines.batch(start, stop)
            states.append(engines[0](batch.token_ids, batch.valid_length, batch.rows))
            facts.append(np.stack([expected_positions(batch), _entropies(states[-1], projection, batch,
                                                                         lines.vocab_size)],
                                  axis=1))
        save_array(path / f"{name}-lines.npy", np.concatenate(facts))
        save_array(path / f"{name}.npy", np.concatenate(states))
        _mark(path, name)

    def finished() -> List[str]:
        return [name for name in work if (path / f"{name}.json").is_file()]

    work = {PROJECTION: 1.0, **{name: float(stop - start) for name, (start, stop) in blocks.items()}}
    for name in finished():
        if not _is_whole(path, name):
            warnings.warn(f"{path / name}: is damaged and made again", stacklevel=2)
            (path / f"{name}.json").unlink(missing_ok=True)
    folder.deal(work, finished, compute, "teacher")
    teacher.clear()
    engines.clear()
    gc.collect()
    return TeacherOutputs(path, list(blocks))


def _files_of(path: Path, name: str) -> List[Path]:
    """What one piece of T's work leaves."""
    endings = (".params",) if name == PROJECTION else ("-lines.npy", ".npy")
    return [path / f"{name}{ending}" for ending in endings]


def _mark(path: Path, name: str) -> None:
    """Say that a piece of work is finished, with the checksums of its files."""
    write_sealed(path / f"{name}.json",
                 {"files": {file.name: sha256_file(file) for file in _files_of(path, name)}})


def _is_whole(path: Path, name: str) -> bool:
    """Whether the files of a finished piece of work are as they were written."""
    try:
        return read_sealed(path / f"{name}.json") == {
            "files": {file.name: sha256_file(file) for file in _files_of(path, name)}}
    except BortError:
        return False


def micro_batches(start: int, stop: int, size: int) -> List[Tuple[int, int]]:
    """``start`` to ``stop`` in pieces of at most ``size``."""
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


def cross_entropy(log_probability: Any, target: Any) -> np.ndarray:
    """-sum_v target_v log_probability_v of every row of two (n, V) arrays, float64 (n,)."""
    products = nd.batch_dot(target.expand_dims(1), log_probability.expand_dims(2))
    return -products.reshape((-1,)).asnumpy().astype(np.float64)


def _entropies(states: np.ndarray, projection: Any, batch: MaskedLMBatch, vocab_size: int) -> np.ndarray:
    """The sum of the entropies of T's distributions of every line, float64 (B,)."""
    total = []
    rows = max(1, MAX_CHUNK_ELEMENTS // projection.weight.shape[0])
    for start in range(0, len(states), rows):
        logits = projection(nd.array(states[start:start + rows], dtype="float32"))
        if vocab_size < logits.shape[1]:
            logits = logits[:, :vocab_size]
        total.append(cross_entropy(nd.log_softmax(logits, axis=-1), nd.softmax(logits, axis=-1)))
    line = batch.rows // batch.token_ids.shape[1]
    return np.bincount(line, weights=np.concatenate(total) if total else [], minlength=len(batch.token_ids))
