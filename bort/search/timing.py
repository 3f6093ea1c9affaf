"""How long every network of a search takes for a sample: timed once, by one process, for all."""
from __future__ import annotations

import gc
import os
import time
from typing import Dict, List, NamedTuple, Sequence

import numpy as np

from bort.architecture import Architecture
from bort.backend.mxnet import nd
from bort.backend.numpy_views import threads
from bort.engines.mxnet_compiled import compile_for_inference
from bort.errors import BortError
from bort.json_files import read_sealed, write_sealed
from bort.models import Bert
from bort.search.shared_folder import SPEED_FILE, SearchFolder, watching

SPEED_ROUNDS = 3
SUMMARY_FILE = "speed.json"
TIMING_VOCABULARY = 1000
"""Timed networks embed this many words: looking up a word takes as long in a small table as in a large
one."""


class Trials(NamedTuple):
    """What is timed: ``passes`` passes over ``batch_size`` lines of ``length`` tokens."""

    length: int
    batch_size: int
    passes: int


def measured_speed(folder: SearchFolder, architectures: Sequence[Architecture], trials: Trials
                   ) -> Dict[Architecture, float]:
    """Seconds per sample of every network's forward pass at a fixed input size (footnote 5);
    ``RUN/speed.json``.

    One process measures while the others wait, so that ranks do not slow one another down. Every network is
    visited once in each of at most three rounds, so that other work on the machine slows all of them alike; a
    visit warms up twice. The result is the median over all passes, with the threads of this process; the
    means, which the paper's Table 1 has, are stored beside it. Weights are noise, whatever T's are.

    Args:
        architectures: what to time, T included.

    Raises:
        BortError: ``RUN/speed.json`` is not as it was written.
    """
    rounds = min(SPEED_ROUNDS, trials.passes)
    shares = [len(part) for part in np.array_split(np.arange(trials.passes), rounds)]
    visits = {f"{architecture} in round {number}": (architecture, number) for number in range(rounds)
              for architecture in architectures}
    path = folder.path / SUMMARY_FILE

    def measure(_: str) -> None:
        # What was timed with other threads, before a resumption, is no measure beside what is timed with
        # these.
        seconds = {row["visit"]: row["seconds"] for row in folder.rows(SPEED_FILE)
                   if row.get("threads") == threads()}
        work = {name: float(visits[name][0].flops(trials.length)) for name in visits}
        with watching("timing", work) as watch:
            for name, (architecture, number) in visits.items():
                watch(seconds)
                if name not in seconds:
                    seconds[name] = time_forward(architecture, trials.length, trials.batch_size,
                                                 shares[number])
                    folder.append({"visit": name, "seconds": seconds[name], "threads": threads()},
                                  name=SPEED_FILE)
        found = {str(architecture): np.concatenate([seconds[f"{architecture} in round {number}"]
                                                     for number in range(rounds)])
                  for architecture in architectures}
        write_sealed(path, {
            "threads": threads(), "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
            "length": trials.length, "batch_size": trials.batch_size, "passes": trials.passes,
            "rounds": rounds,
            "seconds_per_sample": {name: float(np.median(all_of_it)) / trials.batch_size
                                   for name, all_of_it in found.items()},
            "mean_seconds_per_sample": {name: float(np.mean(all_of_it)) / trials.batch_size
                                        for name, all_of_it in found.items()}})

    folder.deal({"speed": 1.0}, lambda: ["speed"] if path.is_file() else [], measure)
    try:
        stored = read_sealed(path)["seconds_per_sample"]
        found = {architecture: float(stored[str(architecture)]) for architecture in architectures}
    except (BortError, KeyError, TypeError, ValueError) as error:
        raise BortError(f"{path}: not the times of this search ({error}); remove it, and it is made again "
                        f"from {SPEED_FILE}") from error
    return found


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
