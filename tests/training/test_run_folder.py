"""Run folders: one writer, one set of settings, damage that is noticed, nothing left behind."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from bort.engines import engine as door
from bort.engines.base import EngineOptions, held
from bort.errors import BortError
from bort.json_files import read_json, seal, write_json
from bort.training.run_folder import RunFolder
from tests.tiny import tiny_bert


def test_a_run_folder_keeps_one_writer_and_one_set_of_settings(tmp_path):
    with RunFolder(tmp_path / "run", {"lr": 1}) as run:
        run.log({"step": 1, "loss": float("nan")})
        with pytest.raises(BortError, match="another process"):
            RunFolder(tmp_path / "run", {"lr": 1}, resume=True)
    with pytest.raises(BortError, match="--resume"):
        RunFolder(tmp_path / "run", {"lr": 1})
    with pytest.raises(BortError, match="lr was 1 and is 2"):
        RunFolder(tmp_path / "run", {"lr": 2}, resume=True)
    with RunFolder(tmp_path / "run", {"lr": 1}, resume=True):
        pass
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text()) == {"step": 1, "loss": None}
    (tmp_path / "file").write_text("x")
    with pytest.raises(BortError, match="cannot be made"):
        RunFolder(tmp_path / "file" / "run", {})


def test_checkpoints_keep_the_last_and_pass_over_damaged_ones(tmp_path):
    with RunFolder(tmp_path, {}) as run:
        for step in (1, 2, 3):
            run.log({"step": step})
            run.save(
                step,
                {"epoch": step},
                {"a.params": {"x": np.full((2,), step, "float32")}},
                keep=2,
                protect=[1],
            )
        run.log({"step": 4})
        assert run.steps() == [1, 2, 3]
        run.save(5, {}, {"a.params": {"x": np.zeros(1, "float32")}}, keep=2, protect=[1])
        assert run.steps() == [1, 3, 5]
        path = tmp_path / "checkpoints" / "step-00000005" / "a.params"
        path.write_bytes(path.read_bytes()[:-1] + b"\7")
        with pytest.warns(UserWarning, match="damaged"):
            checkpoint = run.latest()
        assert (checkpoint.step, checkpoint.state) == (3, {"epoch": 3})
        np.testing.assert_array_equal(checkpoint.arrays["a.params"]["x"], [3, 3])
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
        run.finish({"ok": True})
        assert run.results == {"ok": True} and run.steps() == []


def test_wholly_damaged_checkpoints_stop_a_run_and_nothing_is_touched(tmp_path):
    with RunFolder(tmp_path, {}) as run:
        run.log({"step": 1})
        assert run.latest() is None  # without any checkpoint a run begins anew
        for step in (1, 2):
            run.log({"step": step})
            run.save(step, {}, {"a.params": {"x": np.zeros(1, "float32")}})
        for step in (1, 2):
            (tmp_path / "checkpoints" / f"step-0000000{step}" / "state.json").write_text('{"files": {}}')
        before = (tmp_path / "metrics.jsonl").read_bytes()
        with (
            pytest.warns(UserWarning, match="damaged"),
            pytest.raises(BortError, match="none of its 2 .* nothing was"),
        ):
            run.latest()
        assert (tmp_path / "metrics.jsonl").read_bytes() == before and run.steps() == [1, 2]


def test_a_folder_with_settings_alone_takes_others(tmp_path):
    for settings in ({"lr": 1}, {"lr": 2}):
        RunFolder(tmp_path / "run", settings).close()
    RunFolder(tmp_path / "run", {"lr": 3}, resume=True).close()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"] == {"lr": 3}
    with RunFolder(tmp_path / "run", {"lr": 3}) as run:
        with pytest.raises(BortError, match="another process"):
            RunFolder(tmp_path / "run", {"lr": 4})
        run.log({"step": 1})
    with pytest.raises(BortError, match="--resume"):
        RunFolder(tmp_path / "run", {"lr": 4})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"architecture": {}}')  # somebody else's
    with pytest.raises(BortError, match="holds a run already"):
        RunFolder(tmp_path / "other", {})
    assert (tmp_path / "other" / "config.json").read_text() == '{"architecture": {}}'


def test_results_without_a_number_are_null(tmp_path):
    with RunFolder(tmp_path, {}) as run:
        run.finish({"loss": float("nan"), "parts": [1.0, {"x": float("inf")}]})
        assert run.results == {"loss": None, "parts": [1.0, {"x": None}]}


def test_a_failed_save_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    from bort.training import run_folder

    with RunFolder(tmp_path, {}) as run:
        run.save(1, {}, {"a.params": {"x": np.zeros(1, "float32")}})

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(run_folder, "write_sealed", full)
        with pytest.raises(BortError, match="No space left"):
            run.save(2, {}, {"a.params": {"x": np.zeros(1, "float32")}})
        assert run.steps() == [1] and run.latest().step == 1
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


STATE = "checkpoints/step-00000002/state.json"


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints of steps 1 and 2."""
    with RunFolder(tmp_path, {}) as folder:
        for step in (1, 2):
            folder.log({"step": step})
            folder.save(step, {"epoch": step}, {"a.params": {"x": np.full(2, step, "float32")}})
        yield folder


def change(path, edit, sealed):
    content = read_json(path)
    edit(content)
    write_json(path, seal(content, path) if sealed else content)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(
    "edit",
    [
        lambda state: state.pop("files"),
        lambda state: state.update(stte=state.pop("state")),
        lambda state: state.update(step=3),
        lambda state: state.update(step="2"),
        lambda state: state.update(state=[1]),
        lambda state: state.update(metrics_bytes=-1),
        lambda state: state.update(metrics_bytes="x"),
        lambda state: state.update(files=["a.params"]),
        lambda state: state["files"].update({"b.params": "0"}),
        lambda state: state["files"].update({"a.params": 1}),
        lambda state: state["files"].update({"../step-00000001/a.params": "0"}),
        lambda state: state["state"].update(epoch="two"),
    ],
)
def test_every_kind_of_damage_falls_back_to_the_older_checkpoint(run, edit, sealed):
    """With a right digest (or, from earlier versions, without one) what the state says is looked at."""
    change(run.path / STATE, edit, sealed)

    def check(state):
        assert isinstance(state, dict)
        if not isinstance(state["epoch"], int):
            raise TypeError("epoch")

    with pytest.warns(UserWarning, match="step-00000002 is damaged and passed over"):
        found = run.latest(check)
    assert found.step == 1 and found.state == {"epoch": 1}
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "old, new",
    [
        (b'"epoch": 2', b'"epoch": 3'),
        (b'"digest": "', b'"digest": "f'),
        (b'"digest"', b'"digset"'),
        (b"}\n}", b"}\n"),
        (b'"epoch"', b'"\xff"'),
    ],
)
def test_one_changed_byte_of_a_state_is_damage(run, old, new):
    path = run.path / STATE
    text = path.read_bytes()
    if old == b"}\n}":
        path.write_bytes(text[:-3])
    else:
        assert old in text
        path.write_bytes(text.replace(old, new, 1))
    with pytest.warns(UserWarning, match="damaged"):
        assert run.latest().step == 1


def test_checkpoints_without_a_digest_are_taken(run):
    change(run.path / STATE, lambda state: state.pop("digest"), sealed=False)
    assert run.latest().state == {"epoch": 2}


def test_results_that_were_changed_are_noticed(tmp_path):
    with RunFolder(tmp_path, {}) as run:
        run.finish({"accuracy": 0.5})
        path = tmp_path / "results.json"
        path.write_text(path.read_text().replace("0.5", "0.9"))
        with pytest.raises(BortError, match="does not fit its digest.*put it back from a copy, or remove .*"
                           "results.json and --resume repeats the run"):
            assert run.results


@pytest.mark.parametrize("name", ["metrics.jsonl", "agora.jsonl"])
def test_lists_that_were_changed_after_the_end_are_noticed(tmp_path, name):
    (tmp_path / "agora.jsonl").write_text('{"score": 0.25}\n')
    with RunFolder(tmp_path, {}) as run:
        run.log({"step": 1, "loss": 2.5})
        run.finish({"accuracy": 0.5})
        assert run.results == {"accuracy": 0.5}
        path = tmp_path / name
        content = path.read_text()
        for damage, message in ((lambda: path.write_text(content.replace("5", "6", 1)), "was changed since"),
                                (lambda: path.write_text(content * 2), "was changed since"),
                                (path.unlink, "is missing")):
            damage()
            with pytest.raises(BortError, match=f"{name}: {message}|{name}: .*{message}.*--resume"):
                assert run.results
        path.write_text(content)
        assert run.results == {"accuracy": 0.5}
        (tmp_path / "results.json").unlink()
        assert run.results is None and run.latest() is None  # the run begins anew


def test_what_killed_writers_left_behind_goes_when_the_run_goes_on(run):
    (run.path / "best").mkdir()
    left = [
        run.path / ".results.json.abcd12_x.tmp",
        run.path / "best" / ".config.json.0a_b1c2d.tmp",
        run.path / "best" / ".model.params.new",
        run.path / "checkpoints" / ".step-00000003.tmp" / "a.params",
    ]
    kept = [run.path / "best" / "model.params", run.path / "notes.tmp", run.path / ".hidden"]
    left[-1].parent.mkdir()
    for path in (*left, *kept):
        path.write_text("x")
    with pytest.raises(BortError, match="another process"):  # under the lock only
        RunFolder(run.path, {}, resume=True)
    assert all(path.exists() for path in left)
    run.close()
    with RunFolder(run.path, {}, resume=True):
        assert not any(path.exists() for path in (*left, left[-1].parent)) and all(map(os.path.exists, kept))


def test_settings_that_earlier_versions_did_not_record_are_not_held_against_a_run(tmp_path):
    with RunFolder(tmp_path, {"lr": 1}) as run:
        run.log({"step": 1})
    RunFolder(tmp_path, {"lr": 1, "eval_interval": 500}, resume=True).close()
    with pytest.raises(BortError, match="batch_size was unset and is 8"):
        RunFolder(tmp_path, {"lr": 1, "batch_size": 8}, resume=True)


def test_other_settings_are_named_shortly_and_another_format_alone(tmp_path):
    RunFolder(tmp_path, {"lr": 1, "grid": list(range(500))}).close()
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(BortError, match="lr was 1 and is 2") as caught:
        RunFolder(tmp_path, {"lr": 2, "grid": list(range(501))}, resume=True)
    assert len(str(caught.value)) < len(str(tmp_path)) + 400
    with pytest.raises(BortError, match="begun by another version") as caught:
        RunFolder(tmp_path, {"lr": 2, "format": 2}, resume=True)
    assert "lr" not in str(caught.value).replace(str(tmp_path), "")


def test_a_resumed_run_keeps_to_the_engines_that_were_there_when_it_began(tmp_path, monkeypatch):
    def install(**versions):
        monkeypatch.setattr("bort.training.run_config.installed", lambda: {"mxnet": "1.9.1", **versions})

    install(openvino="2026.4", onnxruntime="1.32")
    with RunFolder(tmp_path / "fast", {}) as run:
        run.log({"step": 1})
    assert held() is None
    install(onnxruntime="1.32")
    with pytest.raises(BortError, match="begun with openvino 2026.4, which is not installed.*pip"):
        RunFolder(tmp_path / "fast", {}, resume=True)
    with RunFolder(tmp_path / "slow", {}) as run:
        run.log({"step": 1})
    install(openvino="2026.4", onnxruntime="1.32")
    with RunFolder(tmp_path / "slow", {}, resume=True):  # what has come since is not taken
        assert set(held()) == {"mxnet", "onnxruntime"}
        assert "openvino" not in door._candidates(tiny_bert(), EngineOptions(), None)
    assert door._candidates(tiny_bert(), EngineOptions(), None)[0] == "openvino"


def test_a_run_is_not_resumed_with_another_engine_or_precision(tmp_path, monkeypatch):
    with RunFolder(tmp_path, {}) as run:
        run.log({"step": 1})
    monkeypatch.setattr("bort.training.run_config.preferred", lambda: EngineOptions("mxnet", "bfloat16"))
    with pytest.raises(BortError, match="--engine was auto and is mxnet; --precision was float32 and is"):
        RunFolder(tmp_path, {}, resume=True)
    config = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", {**config, "engine": 5})  # of another version, or damaged: as before
    RunFolder(tmp_path, {}, resume=True).close()
