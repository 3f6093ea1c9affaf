"""What a run leaves on the disk: stopped, killed, damaged."""
from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from bort.agora.journal import Journal
from bort.agora.state import State
from bort.errors import BortError
from bort.finetuning.hyperparameters import Theta
from tests.agora.simulated import THETAS, cut_after, lines, simulate


@pytest.mark.parametrize("replays", [0, 2])
def test_stopped_after_any_training_it_goes_on_to_the_same(tmp_path, replays):
    settings = dict(replays=replays, noise=0.1, max_rounds=3, thetas=THETAS[:3])
    whole = simulate(tmp_path / "whole", **settings)

    class Stop(Exception):
        pass

    count = whole.state.trainings
    for stop in range(1, count + 1):
        folder, calls = tmp_path / f"cut-{stop}", []

        def after():
            calls.append(1)
            if len(calls) == stop:
                raise Stop

        with pytest.raises(Stop):
            simulate(folder, after=after, **settings)
        resumed = simulate(folder, resume=True, **settings)
        assert len(resumed.calls) == count - stop  # nothing is trained twice
        assert resumed.state.history == whole.state.history and resumed.state.best == whole.state.best
        for name in ("agora.jsonl", "additions.jsonl"):
            assert lines(folder, name) == lines(tmp_path / "whole", name)
        np.testing.assert_array_equal(resumed.best_parameters["w"], whole.best_parameters["w"])


def test_stopped_while_lists_and_checkpoints_are_written(tmp_path, monkeypatch):
    settings = dict(noise=0.1, max_rounds=3, thetas=THETAS[:3])
    whole = simulate(tmp_path / "whole", **settings)

    class Stop(Exception):
        pass

    for name in ("append_additions", "save", "forget"):
        for when in ("before", "after"):
            folder, original, calls = tmp_path / f"{name}-{when}", getattr(Journal, name), []

            def broken(self, *args, **kwargs):
                calls.append(1)
                if len(calls) == 2 and when == "before":
                    raise Stop
                value = original(self, *args, **kwargs)
                if len(calls) == 2:
                    raise Stop
                return value

            with monkeypatch.context() as patch, pytest.raises(Stop):
                patch.setattr(Journal, name, broken)
                simulate(folder, **settings)
            resumed = simulate(folder, resume=True, **settings)
            assert resumed.state.history == whole.state.history
            for listed in ("agora.jsonl", "additions.jsonl"):
                assert lines(folder, listed) == lines(tmp_path / "whole", listed), (name, when)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("best", [0, 1, 2])
def test_a_damaged_training_is_repeated_and_a_shortened_list_refused(tmp_path, best, missing):
    thetas = [Theta(1e-3, 0, 0.1, 0), Theta(2e-3, 0, 0.1, 0)]
    thetas.insert(best, Theta(9e-3, 0, 0.1, 0))
    settings = dict(gain=0.1, max_rounds=2, thetas=tuple(thetas))
    whole = simulate(tmp_path / "whole", **settings)
    cut_after(tmp_path / "cut", 3, **settings)
    kept = sorted((tmp_path / "cut" / "trainings" / "round-000-00").glob("*.params"))
    # only the best of a rank keeps its parameters
    assert [path.name for path in kept] == [f"theta-{best:04d}.params"]
    if missing:
        kept[0].unlink()
    else:
        kept[0].write_bytes(b"\0" * kept[0].stat().st_size)
    resumed = simulate(tmp_path / "cut", resume=True, **settings)
    assert resumed.state.history == whole.state.history and len(resumed.calls) == 3
    np.testing.assert_array_equal(resumed.best_parameters["w"], whole.best_parameters["w"])
    assert lines(tmp_path / "cut", "agora.jsonl") == lines(tmp_path / "whole", "agora.jsonl")
    agora = tmp_path / "whole" / "agora.jsonl"
    agora.write_text(agora.read_text()[:100])
    with pytest.raises(BortError, match="shorter"):
        simulate(tmp_path / "whole", resume=True, **settings)


@pytest.mark.parametrize("name", ["agora.jsonl", "additions.jsonl"])
def test_a_lost_list_is_refused(tmp_path, name):
    settings = dict(noise=0.1, max_rounds=3, thetas=THETAS[:3])
    cut_after(tmp_path, 4, **settings)
    (tmp_path / name).unlink()
    with pytest.raises(BortError, match=f"{name}.*missing"):
        simulate(tmp_path, resume=True, **settings)


def test_damaged_checkpoints_cost_no_lines(tmp_path):
    """The newest damaged: from the one before to the same. All of them: refused, and the lists stay as they
    are."""
    settings = dict(noise=0.1, max_rounds=4, thetas=THETAS[:4])
    whole = simulate(tmp_path / "whole", **settings)
    cut_after(tmp_path / "cut", 8, **settings)  # in the third round
    kept = sorted((tmp_path / "cut" / "checkpoints").glob("step-*"))
    assert len(kept) == 2
    listed = {name: (tmp_path / "cut" / name).read_bytes() for name in ("agora.jsonl", "additions.jsonl")}
    damaged = [(path / "best.params").read_bytes() for path in kept]
    for path in kept:
        (path / "best.params").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(BortError, match="whole|damaged"):
        simulate(tmp_path / "cut", resume=True, **settings)
    assert listed == {name: (tmp_path / "cut" / name).read_bytes() for name in listed}
    (kept[0] / "best.params").write_bytes(damaged[0])
    with pytest.warns(UserWarning, match="damaged"):
        resumed = simulate(tmp_path / "cut", resume=True, **settings)
    assert resumed.state.history == whole.state.history
    for name in listed:
        assert lines(tmp_path / "cut", name) == lines(tmp_path / "whole", name)


@pytest.mark.parametrize("name", ["agora.jsonl", "additions.jsonl"])
def test_a_changed_list_is_refused(tmp_path, name):
    """One digit of a line that the state knows is another one."""
    settings = {"noise": 0.1, "max_rounds": 3, "thetas": THETAS[:3]}
    cut_after(tmp_path, 4, **settings)
    path = tmp_path / name
    content = path.read_bytes()
    places = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
    for place in places[::max(1, len(places) // 5)][:5]:
        changed = b"1" if content[place:place + 1] != b"1" else b"2"
        path.write_bytes(content[:place] + changed + content[place + 1:])
        if place < json.loads((sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
                               / "state.json").read_text())["state"]["lists"][name][0]:
            with pytest.raises(BortError, match=f"{name}: was changed since the run was last saved"):
                simulate(tmp_path, resume=True, **settings)
    path.write_bytes(content)
    simulate(tmp_path, resume=True, **settings)


def test_a_changed_training_is_repeated(tmp_path):
    """Whatever byte of its file is another one: the run comes to the same as undisturbed."""
    settings = {"gain": 0.1, "max_rounds": 2, "thetas": THETAS[:3]}
    whole = simulate(tmp_path / "whole", **settings)
    cut_after(tmp_path / "cut", 3, **settings)
    name = "trainings/round-000-00/theta-0001.json"
    content = (tmp_path / "cut" / name).read_bytes()
    for place in range(0, len(content), len(content) // 12):
        folder = tmp_path / f"cut-{place}"
        shutil.copytree(tmp_path / "cut", folder)
        (folder / name).write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1:])
        resumed = simulate(folder, resume=True, **settings)
        assert resumed.state.history == whole.state.history and resumed.state.best == whole.state.best
        assert lines(folder, "agora.jsonl") == lines(tmp_path / "whole", "agora.jsonl")


def test_a_changed_state_falls_back_to_the_one_before(tmp_path):
    settings = {"noise": 0.1, "max_rounds": 4, "thetas": THETAS[:4]}
    whole = simulate(tmp_path / "whole", **settings)
    cut_after(tmp_path / "cut", 8, **settings)
    state = sorted((tmp_path / "cut" / "checkpoints").glob("step-*"))[-1] / "state.json"
    changed = json.loads(state.read_text())
    changed["state"]["left"] = [0]
    state.write_text(json.dumps(changed))
    with pytest.warns(UserWarning, match="damaged"):
        resumed = simulate(tmp_path / "cut", resume=True, **settings)
    assert resumed.state.history == whole.state.history


def test_a_state_of_another_version_is_refused_in_a_line():
    half = {"best": None, "attempts": [], "history": [{"round": 1}]}
    for content in ({}, {"attempts": 3}, half, {"best": 3}):
        with pytest.raises(BortError, match="^the/run: not what Agora wrote there"):
            State.from_json(content, "the/run")
