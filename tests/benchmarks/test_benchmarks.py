"""The benchmarks of latency, streams and Agora in miniature; engines that compute something else are
refused."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from benchmarks import latency, optimizations, preparation, streaming
from benchmarks.harness import agora_rows, common, engines, shapes, stream_report, streams, workers
from bort.architecture import Architecture
from bort.errors import BortError
from bort.models import Bert, Classifier

SHAPE = (2, 8, True)
VOCAB = 50


class Answering:
    """Stands for a worker: answers with the output it was given."""

    def __init__(self, output):
        self.output = output

    def ask(self, **command):
        np.save(command["output"], self.output)
        return {"seconds": [0.01]}


def test_a_wrong_engine_is_never_timed(tmp_path):
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((2, 8, 4)).astype("float32")
    _, valid = shapes.make_batch(SHAPE, VOCAB)
    padding = np.arange(SHAPE[1]) >= valid[:, None]

    def compare(**outputs):
        return latency.compare(
            {name.replace("_", "-"): Answering(output) for name, output in outputs.items()},
            SHAPE,
            VOCAB,
            expected,
            tmp_path,
        )

    elsewhere = expected.copy()
    elsewhere[padding] += 9  # what padding holds is nobody's business
    assert padding.any() and compare(mxnet=expected, onnx=elsewhere)[0] == {"mxnet": 0, "onnx": 0}
    near = expected + np.float32(1e-2) * rng.standard_normal(expected.shape).astype("float32")
    assert compare(mxnet_int8=near)[1] == {"mxnet-int8": 0.01}
    for engine, output in (
        ("onnx", near),
        ("mxnet_int8", -expected),
        ("onnx", expected * np.float32("nan")),
        ("onnx_int8", expected * np.float32("nan")),
        ("mxnet_bf16", expected[::-1].copy()),
    ):
        with pytest.raises(BortError, match=f"{engine.replace('_', '-')} is wrong"):
            compare(mxnet=expected, **{engine: output})


def test_emulated_bfloat16_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(shapes.common, "cpu_info", lambda: {"model": "any", "flags": {"avx2", "avx512f"}})
    for asked in (lambda: engines.ENGINES["pytorch-bf16"](tmp_path), lambda: workers.peak("pytorch-bf16", 8)):
        with pytest.raises(shapes.Unavailable, match="emulated"):
            asked()


def test_a_wrong_stream_is_refused():
    expected = np.linspace(0.01, 0.99, 200)
    assert stream_report.check("onnx", expected + 1e-6, expected)["equal labels %"] == 100
    noisy = expected + np.random.default_rng(0).normal(0, 0.02, 200)
    assert stream_report.check("onnx-int8", noisy, expected)["largest difference"] > 0.01
    for engine, found in (
        ("onnx", noisy),
        ("onnx-int8", 1 - expected),
        ("onnx", expected[:-1]),
        ("mxnet", expected[::-1]),
        ("mxnet-bf16", expected * np.nan),
    ):
        with pytest.raises(BortError, match=f"{engine} is wrong"):
            stream_report.check(engine, found, expected)


def test_streams_are_held_against_the_best_of_the_same_accuracy():
    rates = {"openvino": 30, "openvino-int8": 90, "openvino-32": 10, "pytorch-32": 16, "pipeline-32": 5}
    rates["onnxruntime-32-int8"] = 40
    rows = stream_report.compared([{"engine": engine, "samples/s": rate} for engine, rate in rates.items()])
    found = [tuple(row.values()) for row in rows]
    assert {(row[0], row[3]): row[-3::2] for row in found} == {
        ("float32", "pytorch-32"): (1.88, False),
        ("float32", "pipeline-32"): (6.0, True),
        ("reduced precision", "onnxruntime-32-int8"): (2.25, True),
        ("reduced precision", "pipeline-32"): (18.0, True),
    }


def test_latency_in_miniature(tmp_path, capsys):
    assert (
        latency.main(
            [
                "--architectures",
                "1,2,8,8",
                "--vocab-size",
                "60",
                "--engines",
                "mxnet,onnx",
                "--lengths",
                "8",
                "--batch-sizes",
                "1",
                "--trials",
                "3",
                "--budget",
                "0.1",
                "--threads",
                "1",
                "--peak-size",
                "32",
                "--results",
                str(tmp_path),
            ]
        )
        == 0
    )
    record = json.loads((tmp_path / "latency.json").read_text())
    text = json.dumps(record)
    assert "mxnet" in text and "onnx" in text and record["settings"]["trials"] == 3
    assert (tmp_path / "latency.md").is_file() and "is wrong" not in capsys.readouterr().err


def test_optimizations_in_miniature(tmp_path):
    assert (
        optimizations.main(
            [
                "--architecture",
                "1,2,8,16",
                "--vocab-size",
                "60",
                "--shapes",
                "2x16,1x8",
                "--trials",
                "2",
                "--folder",
                str(tmp_path),
            ]
        )
        == 0
    )
    tables = json.loads((tmp_path / "optimizations.json").read_text())["rows"]
    assert len(tables["Hidden states"]) == 8 and tables["Hidden states"][0]["2 x 16, times"] == 1
    assert all(row["1 x 8, ms"] > 0 for row in tables["Hidden states"])
    if "OpenVINO, 2 x 16" in tables:
        assert [row["trials"] for row in tables["OpenVINO, 2 x 16"]][:4] == [2, 2, 2, 2]
    assert len(tables["Classifiers"]) == 4 and [row["trials"] for row in tables["Threads"]] == [4, 4]
    states = np.random.default_rng(0).standard_normal((2, 3, 4))
    assert optimizations.check("int8", states + 1e-2, states) == pytest.approx(1e-2)
    for name, wrong in (("fused", states + 1e-2), ("int8", -states), ("fused", states * np.nan)):
        with pytest.raises(BortError, match=f"{name}' is wrong"):
            optimizations.check(name, wrong, states)
    with pytest.raises(SystemExit):
        optimizations.main(["--shapes", "8"])


def test_preparation_in_miniature(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "VOCAB_SIZE", 80)
    text = tmp_path / "text.txt"
    text.write_text(
        "\n\n".join(
            f"The story of number {n} is told here. It has {n} sentences of {n + 1} words, or so."
            for n in range(400)
        )
    )
    documents = preparation.paragraphs(None, str(text))
    assert len(documents) == 400
    size = preparation.write_corpus(tmp_path / "corpus.txt", documents, 100_000)
    assert 100_000 <= size == (tmp_path / "corpus.txt").stat().st_size < 100_200
    with pytest.raises(BortError, match="positive whole numbers"):
        preparation.main(["--megabytes", "0"])
    assert (
        preparation.main(
            ["--megabytes", "1,2", "--text", str(text), "--workers", "1", "--folder", str(tmp_path)]
        )
        == 0
    )
    rows = json.loads((tmp_path / "preparation.json").read_text())["rows"]
    assert [round(row["MB of text"]) for row in rows] == [1, 2] and rows[1]["tokens"] > 1.9 * rows[0][
        "tokens"
    ]
    assert all(row["peak MB, main process"] > 0 for row in rows)


def test_engines_are_measured_in_groups_that_memory_holds(monkeypatch):
    planned = latency.Planned("large", "24,16,1024,4096", 50265, [SHAPE], tuple("abcdefg"))
    monkeypatch.setattr(common, "memory_gib", lambda: 24.0)
    groups = latency._groups(planned)
    assert [name for group in groups for name in group.engines] == list("abcdefg")
    assert {len(group.engines) for group in groups[:-1]} == {4}  # of 24 GiB 14.4, of 355 million 3.3 each
    small = planned._replace(architecture="4,8,1024,768")
    assert latency._groups(small) == [small]
    monkeypatch.setattr(common, "memory_gib", lambda: None)
    assert latency._groups(planned) == [planned]


def test_an_engine_that_is_killed_loses_nothing_that_was_measured(tmp_path, monkeypatch):
    measure = latency.measure

    def killed(opened, plan, *others):
        if plan.name == "1,2,16,8":
            raise workers.Ended("engine onnx ended with status -9: ")
        return measure(opened, plan, *others)

    monkeypatch.setattr(latency, "measure", killed)
    arguments = ["--architectures", "1,2,8,8,1,2,16,8", "--vocab-size", "50", "--lengths", "8"]
    arguments += ["--threads", "1", "--engines", "mxnet", "--batch-sizes", "1", "--trials", "3"]
    arguments += ["--peak-size", "64"]
    assert latency.main([*arguments, "--results", str(tmp_path), "--name", "one"]) == 0
    (path,) = tmp_path.glob("one*.json")
    record = json.loads(path.read_text())
    assert any("1,2,16,8 left out" in note and "status -9" in note for note in record["notes"])
    assert any("mxnet" in row for rows in record["rows"].values() for row in rows)


def test_streaming_in_miniature(tmp_path):
    words = "the a film story was is fine dull slow great and of one".split()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, rng.integers(2, 9))) for _ in range(40)]
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\n" + "".join(f"{text}\t0\n" for text in texts))
    assert (
        streaming.main(
            [
                "--architecture",
                "1,2,8,8",
                "--vocab-size",
                "60",
                "--engines",
                "mxnet,onnx",
                "--sentences",
                "40",
                "--data",
                str(tmp_path),
                "--slices",
                "2",
                "--peak-size",
                "64",
                "--threads",
                "1",
                "--results",
                str(tmp_path),
            ]
        )
        == 0
    )
    record = json.loads((tmp_path / "streaming.json").read_text())
    rows = record["rows"]["Engines"]
    assert [row["engine"] for row in rows] == ["mxnet", "onnx"]
    assert all(row["equal labels %"] == 100 and row["samples/s"] > 0 for row in rows)
    assert record["settings"]["sentences"] == 40
    floor = record["rows"]["The floor: what products alone would allow"]
    assert {row["number format"] for row in floor} == {"float32"}
    assert all(0 <= row["% of that"] < 100 for row in floor)
    for arguments, message in ((["--engines", "none"], "unknown"), (["--slices", "0"], "positive")):
        with pytest.raises(BortError, match=message):
            streaming.main(arguments)
    assert set(streams.DESCRIPTIONS) == set(streams.ENGINES)


def test_the_least_work_of_a_label_is_that_of_its_matrices():
    class Letters:
        def encode_batch(self, texts):
            return [list(text) for text in texts]

    model = Classifier(Bert(Architecture(2, 1, 4, 8), 10, max_length=6), 2)
    found = streams.least_flops(model, Letters(), ["ab", "a" * 50])
    whole = 2 * (4 * 16 + 2 * 32)  # of a token: four square matrices, and two of the feed-forward network
    first = 4 * whole + 2 * 2 * 16 * 4  # 4 tokens, and their products with each other
    last = 4 * 2 * 2 * 16 + (2 * 2 * 16 + 2 * 64) + 2 * 2 * 4 * 4
    assert found[0] == first + last
    assert found[1] == 6 * whole + 4 * 4 * 36 + 6 * 64 + 192 + 4 * 4 * 6  # cut to the longest


def test_the_rows_of_a_task():
    teacher = {
        "metrics": {"dev": {"mcc": 0.5, "accuracy": 0.75}},
        "rows": 100,
        "history": [{"step": 7}],
        "seconds": 3.0,
    }
    runs = [
        {
            "x": 70,
            "teacher": {"accuracy": right},
            "compare": [
                {
                    "method": method,
                    "score": 0.1 * place + shift,
                    "dev": {"mcc": 0.2 * place},
                    "trainings": 4,
                    "steps": 10 * place,
                    "seconds": 1.0,
                }
                for place, method in enumerate(("plain", "Agora"))
            ],
        }
        for right, shift in ((0.9, 0.0), (0.8, 0.2))
    ]
    rows = agora_rows.task_rows("CoLA", teacher, runs)
    assert [row["method"] for row in rows] == ["teacher", "plain", "Agora"]
    assert rows[0]["median"] == 50 and rows[0]["X"] == 100 and rows[2]["X"] == 70 and rows[2]["median"] == 20
    assert rows[1]["on E"] == 10 and rows[2]["steps"] == 10
    assert agora_rows.teacher_columns(teacher, runs) == {
        "teacher right on E": 85.0,
        "teacher on dev": 75.0,
        "its dev metric": "accuracy",
    }
    assert agora_rows.teacher_columns({"metrics": {"dev": {"mcc": 0.5}}}, runs)["its dev metric"] == "mcc"
    assert agora_rows.figures([None]) == {} and agora_rows.figures([0.1, None, 0.3])["all"] == "10.0 30.0"


def test_engines_do_not_inherit_what_importing_bort_sets(monkeypatch):
    from bort.backend.mxnet import thread_settings

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)  # which leaves out the spin count
    ours = thread_settings()
    assert set(ours) | {"DNNL_MAX_CPU_ISA", "OPENBLAS_CORETYPE"} == set(workers.OUR_VARIABLES)
    environment = workers.environment("gluonnlp", 1)
    assert not set(ours) & set(environment), "stock GluonNLP runs as its users have it"


def test_workers_results_and_failures_reach_the_parent():
    def command(code):
        return [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(common.ROOT)!r})\n"
            f"from benchmarks.harness import common\n{code}",
        ]

    first = command("common.print_result(0); common.print_result({'a': [1, 2]}); print('afterwards')")
    assert common.run_workers([first, command("common.print_result(None)")]) == [{"a": [1, 2]}, None]
    for code, said in (("common.print_result(1); sys.exit('no luck')", "no luck"), ("print('mute')", "mute")):
        with pytest.raises(BortError, match=said):
            common.run_workers([first, command(code)])
