"""Speed by the clock."""
from __future__ import annotations

import os
from typing import List

import pytest

from bort.architecture import Architecture
from bort.errors import BortError
from bort.json_files import read_json, read_jsonl
from bort.search import timing
from bort.search.report import write_table
from bort.search.settings import SearchSettings
from bort.search.shared_folder import SearchFolder
from bort.search.timing import Trials, measured_speed
from tests.search.tiny_search import (
    search,
)

pytestmark = pytest.mark.filterwarnings("ignore:the teacher .* has no weights")


def test_measured_speed_is_timed_once_and_used(tmp_path, monkeypatch):
    timed = []

    def fake(architecture: Architecture, length: int, batch_size: int, passes: int) -> List[float]:
        timed.append(architecture)
        assert (length, batch_size) == (16, 4)
        return [0.1 * architecture.depth + 0.01 * len(timed)] * passes

    monkeypatch.setattr(timing, "time_forward", fake)
    space = [Architecture(depth, 2, 8, 8) for depth in (1, 2)]
    folder = SearchFolder(tmp_path, {})
    found = measured_speed(folder, space, Trials(16, 4, 5))  # 5 passes in 3 rounds
    assert timed == space * 3  # interleaved
    # The median of the five passes of each, per sample.
    assert [found[xi] for xi in space] == pytest.approx([0.25 * (0.1 + 0.03), 0.25 * (0.2 + 0.04)])
    assert measured_speed(folder, space, Trials(16, 4, 5)) == found and len(timed) == 6
    assert read_json(tmp_path / "speed.json")["passes"] == 5


def test_a_timing_resumed_with_other_threads_begins_anew(tmp_path, monkeypatch):
    space, timed = [Architecture(depth, 2, 8, 8) for depth in (1, 2)], []

    def fake(architecture: Architecture, length: int, batch_size: int, passes: int) -> List[float]:
        timed.append((os.environ["OMP_NUM_THREADS"], architecture.depth))
        if timed == [("1", 1), ("1", 2)]:
            raise KeyboardInterrupt
        return [float(len(timed))] * passes

    monkeypatch.setattr(timing, "time_forward", fake)
    folder = SearchFolder(tmp_path, {})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(KeyboardInterrupt):
        measured_speed(folder, space, Trials(16, 1, 1))
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert list(measured_speed(folder, space, Trials(16, 1, 1)).values()) == [3, 4]
    assert timed[2:] == [("2,1", 1), ("2,1", 2)] and read_json(tmp_path / "speed.json")["threads"] == 2
    assert [row["threads"] for row in read_jsonl(tmp_path / "speed.jsonl")] == [1, 2, 2]


def test_a_search_by_measured_time(tmp_path):
    settings = SearchSettings(depths=(1,), heads=(2,), hidden=(8, 16), intermediate=(8,), epsilon=1, steps=0,
                              max_length=16, speed="measured", speed_lines=4, speed_batch_size=2)
    rows = search(tmp_path / "run", settings, teacher="8,4,64,256")
    seconds = {row["name"]: row["seconds_per_sample"] for row in read_json(tmp_path / "run"
                                                                           / "space.json")["tuples"]}
    assert all(row["speed"] == row["seconds_per_sample"] == seconds[row["name"]] > 0 for row in rows)
    # three networks, a round for each of two passes
    assert len(read_jsonl(tmp_path / "run" / "speed.jsonl")) == 3 * 2


def test_the_trials_are_as_many_as_asked_for_and_the_table_says_so(tmp_path, monkeypatch):
    assert SearchSettings(speed_lines=100, speed_batch_size=8).passes == 13  # all held-out lines once
    settings = SearchSettings(depths=(1,), heads=(2,), hidden=(8, 16), intermediate=(8,), epsilon=1, steps=0,
                              max_length=16, speed="measured", speed_lines=4, speed_batch_size=1, trials=6250)
    monkeypatch.setattr(timing, "time_forward", lambda xi, length, batch_size, passes: [
        0.1 * xi.hidden + (3.0 if number == 0 else 0.0) for number in range(passes)])
    rows = search(tmp_path, settings, teacher="8,4,64,256")
    stored = read_json(tmp_path / "speed.json")
    assert stored["passes"] == 6250 and stored["seconds_per_sample"]["1,2,8,8"] == pytest.approx(0.8)
    # 3 of 6,250 passes took 3 seconds longer: the mean, which the paper's table has, says so
    assert stored["mean_seconds_per_sample"]["1,2,8,8"] == pytest.approx(0.8 + 9 / 6250)
    table = write_table(tmp_path, rows, read_json(tmp_path / "space.json"), settings)
    assert "medians of 6,250 trials (the paper: means of 6,250" in table


def test_changed_times_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "time_forward", lambda xi, length, batch_size, passes: [0.5] * passes)
    folder, space = SearchFolder(tmp_path, {}), [Architecture(1, 2, 8, 8)]
    measured_speed(folder, space, Trials(16, 1, 1))
    path = tmp_path / "speed.json"
    path.write_text(path.read_text().replace("0.5", "0.4", 1))
    with pytest.raises(BortError, match="speed.json.*digest.*remove it"):
        measured_speed(folder, space, Trials(16, 1, 1))
    path.unlink()
    assert measured_speed(folder, space, Trials(16, 1, 1)) == {space[0]: 0.5}
