"""A whole run from a fine-tuned teacher, then ``python -m bort.dynabert`` and the search over the result."""
from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import bort
import run_finetune
from bort.checkpoints.model_folder import parameter_arrays
from bort.dynabert.__main__ import main
from bort.dynabert.adaptive import open_supernet
from bort.errors import BortError, run_command
from tests.tasks.test_end_to_end import vocabulary  # noqa: F401  a fixture
from tests.tiny import ROOT, needs_horovod, two_rank_environment
from tests.tiny_tasks import make_task


@pytest.fixture(scope="module", params=["SST-2", "STS-B"])
def finished(request, vocabulary, tmp_path_factory):  # noqa: F811
    """(task, data, teacher, run) of a tiny task."""
    name, base = request.param, tmp_path_factory.mktemp("dynabert")
    data = make_task(name, base / name, rows=24)
    common = ["--task", name, "--data-dir", str(data), "--max-length", "48", "--batch-size", "8", "--lr",
              "1e-3"]
    assert run_finetune.main([*common, "--model", "random:4,4,16,12", "--tokenizer", str(vocabulary),
                              "--output", str(base / "teacher"), "--max-steps", "6"]) == 0
    assert run_finetune.main([*common, "--algorithm", "dynabert", "--teacher",
                              str(base / "teacher" / "model"), "--output", str(base / "run"), "--epochs", "1",
                              "--widths", "1,0.5", "--depths", "1,0.5", "--augment", "noise",
                              "--augment-copies", "1", "--keep-fraction", "0.25", "--sampled", "1"]) == 0
    return name, data, base / "teacher" / "model", base / "run"


def test_a_run_leaves_a_model_a_table_and_results(finished):
    name, data, teacher, run = finished
    results = json.loads((run / "results.json").read_text())
    assert results["algorithm"] == "dynabert" and len(results["subnetworks"]) == 4
    assert [row["stage"] for row in results["history"]] == ["width", "depth"]
    steps = {row["stage"]: row["step"] for row in results["history"]}
    trained = [row for row in results["passes"] if row["role"] == "student"]
    assert sum(row["backward"] for row in trained) == 2 * steps["width"] + 3 * steps["depth"]
    full = results["subnetworks"][0]
    first = next(iter(results["metrics"]["dev"]))
    assert full["width"] == full["depth"] == 1 and full[first] == results["metrics"]["dev"][first]
    assert full["parameters"] > results["subnetworks"][-1]["parameters"]
    for file in ("table.md", "table.csv", "pareto.png", "kept.json", "model/config.json"):
        assert (run / file).is_file()
    assert len((run / "table.md").read_text().splitlines()) >= 4 + 2
    model = bort.load(run / "model")
    assert model.architecture == bort.load(teacher).architecture


def test_extracting_and_predicting(finished, tmp_path):
    name, data, teacher, run = finished
    from bort.backend.mxnet import nd
    from bort.dynabert.grid import Multipliers
    from bort.dynabert.subnetworks import SubNetwork

    assert run_command(main, ["extract", str(run), str(tmp_path / "half"), "--width", "0.5", "--depth",
                              "0.5"]) == 0
    small, whole = bort.load(tmp_path / "half"), bort.load(run / "model")
    assert (small.architecture.depth, small.architecture.heads, small.architecture.head_size) == (2, 2, 4)
    ids = nd.array(np.random.default_rng(0).integers(4, small.vocab_size, (3, 9)), dtype="int32")
    valid = nd.array([9, 4, 7])
    np.testing.assert_allclose(small(ids, valid).asnumpy(),
                               SubNetwork(whole, Multipliers(0.5, 0.5))(ids, valid).asnumpy(), rtol=1e-5,
                               atol=1e-6)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["extracted_from"]["width"] == 0.5
    rows = bort.Predictor(tmp_path / "half")(["a good film"] if name == "SST-2" else [("a film", "one film")])
    assert len(rows) == 1
    assert run_command(main, ["extract", str(run), str(tmp_path / "half")]) == 2  # never over other files
    assert run_command(main, ["extract", str(run), str(tmp_path / "x"), "--width", "0"]) == 2
    assert run_command(main, ["extract", str(teacher), str(tmp_path / "x")]) == 2


def test_the_table_of_an_extracted_grid(finished, tmp_path, capsys):
    name, data, teacher, run = finished
    command = ["table", str(run), "--data-dir", str(data), "--output", str(tmp_path / "t"), "--length", "16"]
    assert run_command(main, [*command, "--trials", "1"]) == 0  # of the task that the run was trained for
    assert run_command(main, [*command, "--trials", "-1"]) == 2
    rows = json.loads((tmp_path / "t" / "results.json").read_text())["subnetworks"]
    results = json.loads((run / "results.json").read_text())["subnetworks"]
    metric = next(key for key in rows[0] if key not in ("width", "depth", "architecture"))
    assert len(rows) == 4 and all(row["seconds"] > 0 for row in rows)
    np.testing.assert_allclose([row[metric] for row in rows], [row[metric] for row in results], atol=1e-4)
    assert "width" in capsys.readouterr().out and (tmp_path / "t" / "pareto.png").is_file()


def test_a_finished_run_is_not_repeated_and_other_settings_are_refused(finished, capsys):
    name, data, teacher, run = finished
    before = (run / "results.json").read_bytes()
    same = ["--task", name, "--data-dir", str(data), "--max-length", "48", "--batch-size", "8", "--lr",
            "1e-3", "--algorithm", "dynabert", "--teacher", str(teacher), "--output", str(run), "--epochs",
            "1", "--widths", "1,0.5", "--depths", "1,0.5", "--augment", "noise", "--augment-copies", "1",
            "--keep-fraction", "0.25", "--sampled", "1", "--resume"]
    assert run_finetune.main(same) == 0 and (run / "results.json").read_bytes() == before
    with pytest.raises(BortError, match="adaptive"):
        run_finetune.main([*same, "--stages", "width"])
    with pytest.raises(BortError, match="sampled was 1 and is 0"):
        run_finetune.main([*same, "--sampled", "0"])


def test_what_is_no_adaptive_network_is_refused(finished):
    with pytest.raises(BortError, match="several widths"):
        open_supernet(finished[2])


def test_a_supernet_is_searched_by_real_errors(finished, tmp_path):
    import run_search

    name, data, teacher, run = finished
    out = tmp_path / "search"
    assert run_search.main(["--supernet", str(run), "--data-dir", str(data), "--output", str(out),
                            "--extract", str(tmp_path / "best")]) == 0
    best = json.loads((out / "best.json").read_text())
    rows = json.loads((out / "results.json").read_text())["subnetworks"]
    assert [row["W"] for row in rows] == sorted((row["W"] for row in rows), reverse=True)
    assert len(rows) == 4 and next(row for row in rows if row["width"] == row["depth"] == 1)["W"] == 0
    assert bort.Architecture.from_dict(best["architecture"]) == bort.load(tmp_path / "best").architecture
    # W by hand
    row, top = rows[0], next(row for row in rows if row["width"] == row["depth"] == 1)
    expected = (top["size"] - row["size"]) * (top["speed"] - row["speed"]) / (
        top["size"] * top["speed"] * row["loss"])
    assert row["W"] == pytest.approx(expected)
    assert set(parameter_arrays(bort.load(tmp_path / "best")))
    kept = (run / "kept.json").read_text()
    (run / "kept.json").write_text(kept.replace('"indices": [\n    ', '"indices": [\n    1', 1))
    with pytest.raises(BortError, match="kept.json: its content does not fit its digest"):
        run_search.main(["--supernet", str(run), "--task", name, "--data-dir", str(data), "--output",
                         str(out)])
    (run / "kept.json").write_text(kept)


@needs_horovod
def test_two_ranks_equal_one_with_twice_the_batch(finished, tmp_path):
    name, data, teacher, run = finished
    if name != "SST-2":
        pytest.skip("one task is enough")
    options = ["--task", name, "--data-dir", str(data), "--max-length", "48", "--lr", "1e-3", "--sampled",
               "1", "--algorithm", "dynabert", "--teacher", str(teacher), "--epochs", "1", "--widths",
               "1,0.5", "--depths", "1,0.5", "--dropout", "0", "--importance-examples", "8", "--augment",
               "mlm,noise", "--augment-copies", "1"]
    assert run_finetune.main([*options, "--batch-size", "8", "--output", str(tmp_path / "one")]) == 0
    command = ["horovodrun", "-np", "2", sys.executable, str(ROOT / "run_finetune.py"), *options,
               "--batch-size", "4", "--output", str(tmp_path / "two")]
    done = subprocess.run(command, env=two_rank_environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (json.loads((tmp_path / run / "results.json").read_text()) for run in ("one", "two"))
    assert two["ranks"] == 2
    for ours, theirs in zip(one["history"], two["history"]):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_the_supernet_search_by_hand():
    from bort.architecture import Architecture
    from bort.dynabert.grid import Multipliers
    from bort.dynabert.supernet import SupernetSettings, search_supernet
    from bort.finetuning.losses import mean_loss

    scores = np.array([[0.0, np.log(3.0)], [np.log(3.0), 0.0]], dtype="float32")
    assert mean_loss(scores, np.array([1, 1])) == pytest.approx((np.log(4 / 3) + np.log(4)) / 2)
    assert mean_loss(np.array([[1.0], [3.0]]), np.array([0.0, 1.0])) == pytest.approx(2.5)
    full = Architecture(2, 2, 8, 8)
    loss = {Multipliers(1, 1): 0.1, Multipliers(0.5, 1): 0.2, Multipliers(1, 0.5): 0.4,
            Multipliers(0.5, 0.5): 0.8}
    rows = search_supernet(full, 30, 16, SupernetSettings((1, 0.5), (1, 0.5), length=8), lambda one: {
        "loss": loss[one], "metrics": {"accuracy": 1 - loss[one]}, "dev": {}})
    wrong = search_supernet(full, 30, 16, SupernetSettings((1, 0.5), (1, 0.5), "wrong", 8), lambda one: {
        "loss": 9.0, "metrics": {"accuracy": 1 - loss[one]}, "dev": {}})
    assert [row["W"] for row in rows] == pytest.approx([row["W"] for row in wrong])
    assert rows[-1]["W"] == 0 and replace(SupernetSettings((1,), (1,)), length=3).length == 3


def test_without_stages_the_result_is_the_rewired_teacher(finished, tmp_path):
    name, data, teacher, run = finished
    if name != "SST-2":
        pytest.skip("one task is enough")
    assert run_finetune.main(["--task", name, "--data-dir", str(data), "--max-length", "48", "--algorithm",
                              "dynabert", "--teacher", str(teacher), "--output", str(tmp_path / "cut"),
                              "--stages", "none", "--batch-size", "8"]) == 0
    from bort.backend.mxnet import nd

    ids = nd.array(np.random.default_rng(0).integers(4, 50, (3, 9)), dtype="int32")
    before, after = bort.load(teacher), bort.load(tmp_path / "cut" / "model")
    np.testing.assert_allclose(after(ids, nd.array([9, 4, 7])).asnumpy(),
                               before(ids, nd.array([9, 4, 7])).asnumpy(), rtol=1e-4, atol=1e-5)
    old, new = parameter_arrays(before), parameter_arrays(after)
    assert any(not np.array_equal(old[key], new[key]) for key in old)
