"""What a search pays for once and every candidate shares: the teacher's outputs, and the clock.

Shapes: n scored positions, H hidden size of the maximum point T, V vocabulary.
"""
from __future__ import annotations

import gc
import math
import os
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from bort.architecture import Architecture, parse
from bort.backend.mxnet import nd
from bort.backend.numpy_views import threads
from bort.checkpoints.params_file import read_ndarrays, write_ndarrays
from bort.engines.base import Engine, Work
from bort.engines.engine import open_engine
from bort.engines.mxnet_compiled import compile_for_inference
from bort.errors import BortError
from bort.files import read_json, write_json
from bort.masked_lm.batches import MaskedLMBatch
from bort.masked_lm.losses import MAX_CHUNK_ELEMENTS, Teacher
from bort.masked_lm.teacher import MaskedLMTeacher, expected_positions, open_teacher
from bort.models import Bert, initialize
from bort.search.lines import Lines, load_array, save_array
from bort.search.shared_folder import SPEED_FILE, SearchFolder, watching

BLOCK_LINES = 256
"""Lines of one piece of the teacher's work: what a killed process loses at most."""
CALIBRATION_LINES = 256
"""On which a teacher of fewer bits is calibrated or held against float32."""
SPEED_ROUNDS = 3
TEACHER_SEED = 0x54454143
"""Added to the seed for a teacher without weights."""
TIMING_VOCABULARY = 1000
"""Timed networks embed this many words: looking up a word takes as long in a small table as in a large
one."""


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
        arrays = read_ndarrays(folder / "projection.params")
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
        if name == "projection":
            # Rows beyond the tokenizer's ids, if there are any, stand for no token.
            write_ndarrays(path / "projection.params",
                           {"weight": projection.weight.data().asnumpy()[:lines.vocab_size],
                            "bias": projection.bias.data().asnumpy()[:lines.vocab_size]})
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

    def finished() -> List[str]:
        return [name for name in work
                if (path / f"{name}{'.params' if name == 'projection' else '.npy'}").is_file()]

    work = {"projection": 1.0, **{name: float(stop - start) for name, (start, stop) in blocks.items()}}
    folder.deal(work, finished, compute, "teacher")
    teacher.clear()
    engines.clear()
    gc.collect()
    return TeacherOutputs(path, list(blocks))


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


def measured_speed(folder: SearchFolder, architectures: Sequence[Architecture], length: int, batch_size: int,
                   lines: int) -> Dict[Architecture, float]:
    """Seconds per sample of every network's forward pass at a fixed input size (footnote 5);
    ``RUN/speed.json``.

    One process measures while the others wait, so that ranks do not slow one another down. Every network is
    visited once in each of at most three rounds, so that the machine's moods fall on all alike; a visit warms
    up twice. The result is the median over all passes, with the threads of this process. Weights are noise,
    whatever T's are.

    Args:
        architectures: what to time, T included.
        length: tokens of a line; ``batch_size`` lines a pass.
        lines: lines to run through each network, in ceil(lines / batch_size) passes.
    """
    passes = math.ceil(lines / batch_size)
    rounds = min(SPEED_ROUNDS, passes)
    shares = [len(part) for part in np.array_split(np.arange(passes), rounds)]

    visits = {f"{architecture} in round {number}": (architecture, number) for number in range(rounds)
              for architecture in architectures}

    def measure(_: str) -> None:
        # What was timed with other threads, before a resumption, is no measure beside what is timed with
        # these.
        seconds = {row["visit"]: row["seconds"] for row in folder.rows(SPEED_FILE) if row.get("threads")
                   == threads()}
        with watching("timing", {name: float(visits[name][0].flops(length)) for name in visits}) as watch:
            for name, (architecture, number) in visits.items():
                watch(seconds)
                if name not in seconds:
                    seconds[name] = time_forward(architecture, length, batch_size, shares[number])
                    folder.append({"visit": name, "seconds": seconds[name], "threads": threads()},
                                  name=SPEED_FILE)
        per_sample = {str(architecture): float(np.median([value for number in range(rounds)
                                                          for value in seconds[f"{architecture} in round "
                                                                               f"{number}"]])) / batch_size
                      for architecture in architectures}
        write_json(folder.path / "speed.json", {
            "threads": threads(), "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
            "length": length, "batch_size": batch_size, "passes": passes, "rounds": rounds,
            "seconds_per_sample": per_sample})

    folder.deal({"speed": 1.0}, lambda: ["speed"] if (folder.path / "speed.json").is_file() else [], measure)
    stored = read_json(folder.path / "speed.json")["seconds_per_sample"]
    return {architecture: float(stored[str(architecture)]) for architecture in architectures}


def time_forward(architecture: Architecture, length: int, batch_size: int, passes: int,
                 warmup: int = 2) -> List[float]:
    """Seconds of each of ``passes`` forward passes over (batch_size, length) tokens, compiled as for
    serving."""
    model = Bert(architecture, TIMING_VOCABULARY, max_length=length)
    model.collect_params().setattr("grad_req", "null")
    # Drawing every weight anew would take longer than the passes.
    noise = nd.random.uniform(-0.02, 0.02,
                              shape=max(int(np.prod(p.shape)) for p in model.collect_params().values()))
    for parameter in model.collect_params().values():
        parameter.initialize(init="zeros")
        parameter.set_data(noise[:int(np.prod(parameter.shape))].reshape(parameter.shape))
    network = compile_for_inference(model)
    token_ids = nd.array(np.arange(batch_size * length).reshape(batch_size, length) % TIMING_VOCABULARY,
                         dtype="int32")
    valid_length = nd.array(np.full(batch_size, length), dtype="float32")
    seconds = []
    for number in range(-warmup, passes):
        start = time.perf_counter()
        network(token_ids, valid_length).wait_to_read()
        if number >= 0:
            seconds.append(time.perf_counter() - start)
    del model, network
    gc.collect()
    return seconds
