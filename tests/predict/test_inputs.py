"""What predictions read and write: formats, encodings, folders, and output that cannot be written."""
from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import bort
from bort.backend.mxnet import mx
from bort.errors import BortError, run_command
from bort.models import Classifier
from bort.predict import command, records
from bort.predict.inputs import guess_format, open_records, read_records
from bort.predict.outputs import JsonWriter, TsvWriter
from bort.predict.predictor import Predictor
from bort.predict.records import PlainTask, Record, example_split, in_windows
from bort.tasks.registry import get_task
from bort.text import compressed
from bort.text.tokenizers.loading import train_sentencepiece
from tests.tiny import ROOT, tiny_bert
from tests.tiny_tasks import make_task

TEXTS = ["the cat sat", "a dog, \"big\" and green", "caf\u00e9 \u2028 tea"]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """``make(outputs, task=None, labels=None)``: the folder of a tiny classifier."""
    tokenizer = train_sentencepiece(["the cat sat on a big green dog and a mat"] * 9, 50)

    def build(outputs, task=None, labels=None):
        model = Classifier(tiny_bert(vocab_size=tokenizer.vocab_size), outputs, "linear")
        model.initialize_head(outputs)
        model.task_name, model.labels = task, labels
        return bort.save(model, tmp_path_factory.mktemp("model") / "m", tokenizer)

    return build


def read(data, task=None, form="auto", name="-"):
    found = read_records(io.BytesIO(data), task or PlainTask(None, 2), form, name)
    return [(record.line, record.split.examples[0].segments if record.split else record.error)
            for record in found]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_with_a_mark_and_line_ends(encoding, end):
    data = (end.join(TEXTS) + end).encode(encoding)
    assert read(data) == [(number, (text,)) for number, text in enumerate(TEXTS, start=1)]


def test_csv_is_read_as_csv_with_its_header():
    data = ('label,sentence\r\n1,"a fine, film"\r\n0,"said ""no""\nand left"\r\n1,plain\r\n\r\n1,a,b\r\n'
            '1,last').encode()
    assert read(data, name="q.csv") == [
        (2, ("a fine, film",)), (3, ('said "no"\nand left',)), (5, ("plain",)),
        (6, "expected some text, the line is empty"), (7, "expected 2 fields, found 3"), (8, ("last",))]
    assert read(b"text,label\nthe cat,1\n", name="x.csv") == [(2, ("the cat",))]
    pairs = b'sentence2,sentence1\n"b, c",a\n'
    assert read(pairs, get_task("RTE"), "csv") == [(2, ("a", "b, c"))]
    assert read(b'"a, b",c\n', get_task("RTE"), "csv") == [(1, ("a, b", "c"))]
    assert read(b"premise,hypothesis\na,b\n", get_task("CB"), "csv") == [(2, ("a", "b"))]


def test_damaged_csv_costs_its_rows_alone(monkeypatch):
    assert read(b'sentence\n"\xff"\nfine\n', form="csv") == [
        (2, "expected UTF-8 text, found byte 0xff at column 2"), (3, ("fine",))]
    monkeypatch.setattr("bort.predict.inputs.MAX_LINE_BYTES", 50)
    rows = read(b'sentence\n"never closed\n' + b"x\n" * 40 + b"fine\n", form="csv")
    assert rows[0][0] == 2 and "expected comma-separated values" in rows[0][1] and rows[-1] == (43, ("fine",))


def test_the_format_is_guessed_by_task_and_header():
    race, mrpc = get_task("RACE-M"), get_task("MRPC")
    assert guess_format("1.txt", '{"article"', race) == "jsonl"
    assert guess_format("x.csv", "a", get_task("COPA")) == "jsonl"
    assert guess_format("msr_paraphrase_test.txt", "Quality\t#1 ID\t#1 String\t#2 String", mrpc) == "tsv"
    assert guess_format("x.txt", "a\tb", get_task("RTE")) == "lines" and guess_format("x.CSV", "a") == "csv"


def test_members_with_blanks_in_their_names_are_quoted():
    error = read(b'{"x y": 1, "z": 2}', get_task("MRPC"), "jsonl")[0][1]
    assert error == ("expected the members '#1 String', '#2 String' or 'sentence1', 'sentence2', found "
                     "'x y', 'z'")


def test_a_window_of_long_texts_is_bounded(monkeypatch):
    monkeypatch.setattr(records, "WINDOW_BYTES", 10_000)
    task = PlainTask(None, 2)
    for character, memory in (("x", 1), ("\u4e00", 2), ("\U0001f600", 4)):
        rows = [Record(number, example_split(task, character * (length // memory), 0))
                for number, length in enumerate([6000, 6000, 1000, 1000, 30000, 500])]
        assert [[row.line for row in window] for window in in_windows(rows, 50)] == [[0, 1], [2, 3, 4], [5]]


@pytest.mark.parametrize("suffix, pack", [(".gz", gzip.compress), (".bz2", bz2.compress),
                                          (".xz", lzma.compress)])
def test_compressed_inputs_are_read_like_corpora(make, tmp_path, capsys, monkeypatch, suffix, pack):
    folder = make(2)
    content = "label,text\n1,the cat\n0,\"a dog, a\ncat\"\n".encode()
    (tmp_path / "rows.csv").write_bytes(content)
    packed = tmp_path / f"rows.csv{suffix}"
    packed.write_bytes(pack(content))
    answers = []
    for path in (tmp_path / "rows.csv", packed):
        assert run_command(command.main, [str(folder), "--input", str(path)]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] and len(answers[0].splitlines()) == 2
    packed.write_bytes(pack(content)[:-9])
    assert run_command(command.main, [str(folder), "--input", str(packed), "--output",
                                      str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert f"rows.csv{suffix}: damaged or incomplete (" in error and error.count("\n") == 1
    assert not (tmp_path / "o").exists()
    monkeypatch.setattr(compressed, "FREE_BYTES", 1000)
    packed.write_bytes(pack(b"a" * 3_000_000))
    assert run_command(command.main, [str(folder), "--input", str(packed), "--format", "lines", "--output",
                                      str(tmp_path / "o")]) == 2
    assert re.search(r"refused \(it unpacks to more than .* bytes\); pack it anew", capsys.readouterr().err)


def test_race_takes_its_own_files_and_folders(make, tmp_path, capsys):
    make_task("RACE", tmp_path, rows=3)
    folder, high = make(2, "RACE"), tmp_path / "test" / "high"
    task = get_task("RACE")
    with open_records(str(tmp_path), task) as found:
        whole = [record.split.examples[0].group[0] for record in found]
    assert whole == list(dict.fromkeys(example.group[0] for example in task.read(tmp_path, "test").examples))
    (high / "99.txt").write_text('{"article": "A text", "questions": [], "options": []}')
    (high / "bad.txt").write_text("[]")
    assert run_command(command.main, [str(folder), "--task", "RACE-H", "--input", str(high)]) == 0
    output = capsys.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[3]["error"] == "99.txt: expected questions, found none"
    assert rows[4]["error"] == "bad.txt: expected a JSON object, found []"
    assert "high:5: bad.txt: expected a JSON object" in output.err
    single = sorted(high.glob("[0-9].txt"))[0]
    assert run_command(command.main, [str(folder), "--task", "RACE-H", "--input", str(single)]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"] == rows[0]["predictions"]


def test_a_folder_of_official_files_means_its_test_file(make, tmp_path, capsys):
    make_task("SST-2", tmp_path / "SST-2", rows=4)
    folder = make(2, "SST-2")
    outputs = []
    for place in (tmp_path, tmp_path / "SST-2" / "test.tsv"):
        assert run_command(command.main, [str(folder), "--input", str(place)]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and len(outputs[0].splitlines()) == 4
    assert run_command(command.main, [str(make(2)), "--input", str(tmp_path)]) == 2
    assert "a folder, not a file" in capsys.readouterr().err


def test_what_is_no_regular_file_is_refused_at_once(make, tmp_path, capsys):
    folder = make(2)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "lfs.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    for name, message in ((tmp_path / "fifo", "--input -"), ("/dev/zero", "is not a regular file"),
                          (tmp_path / "lfs.txt", "pointer of Git LFS"), (tmp_path / "none", "No such file")):
        assert run_command(command.main, [str(folder), "--input", str(name)]) == 2
        assert message in capsys.readouterr().err


# ---- output

def test_a_surrogate_loses_no_other_line(make, tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text('{"sentence": "the cat"}\n{"bad\\ud800name": 1}\n'
                                      '{"sentence": "a \\udfff dog"}\n')
    folder = make(2, labels=["no\ud800", "y\tes"])
    for output in ("y.jsonl", "y.tsv"):
        assert run_command(command.main, [str(folder), "--input", str(tmp_path / "x.jsonl"), "--output",
                                          str(tmp_path / output)]) == 0
    assert "x.jsonl:2: expected the members" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "y.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3] and "bad\ufffdname" in rows[1]["error"]
    assert set(rows[0]["probabilities"]) == {"no\ud800", "y\tes"}
    table = [line.split("\t") for line in (tmp_path / "y.tsv").read_text().splitlines()]
    assert table[0] == ["line", "label", "no\\ud800", "y es", "error"] and {len(row) for row in table} == {5}


def test_a_stream_that_is_not_utf_8_gets_escapes():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    JsonWriter(stream, PlainTask(["\u00e9", "b"], 2)).write({"line": 1, "label": "\u00e9"})
    TsvWriter(stream, PlainTask(["\u00e9", "b"], 2))
    stream.seek(0)
    first, second = stream.buffer.read().decode("ascii").splitlines()
    assert json.loads(first) == {"line": 1, "label": "\u00e9"} and second == "line\tlabel\t\\xe9\tb\terror"


@pytest.mark.parametrize("target, code, message", [
    ("| head -c 1 > /dev/null; exit ${PIPESTATUS[0]}", 141, ""), (">&-", 2, "standard output is closed"),
    ("> /dev/full", 2, "standard output cannot be written (No space left on device)")])
def test_output_that_cannot_be_written_is_one_line(target, code, message):
    """Without the network: the command's own way out, for many lines."""
    program = ("import sys; from bort.errors import run_command, BortError\n"
               "def main(argv):\n"
               "    if sys.stdout is None: raise BortError('standard output is closed')\n"
               "    for number in range(100000): print('a line', number)\n"
               "sys.exit(run_command(main))")
    done = subprocess.run(["bash", "-c", f'"{sys.executable}" -c "$1" {target}', "-", program], cwd=ROOT,
                          stderr=subprocess.PIPE, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == code and message in done.stderr
    assert len(done.stderr.splitlines()) == bool(message)


def test_a_closed_standard_output_is_an_error(make, tmp_path, monkeypatch, capsys):
    (tmp_path / "x.txt").write_text("the cat\n")
    monkeypatch.setattr(sys, "stdout", None)
    assert run_command(command.main, [str(make(2)), "--input", str(tmp_path / "x.txt")]) == 2
    assert "give --output FILE" in capsys.readouterr().err


# ---- answers

def test_weights_that_are_not_finite_answer_nothing(make, tmp_path, capsys):
    folder = make(2)
    model = bort.load(folder)
    bias = model.classifier[1].bias
    bias.set_data(mx.nd.array(np.array([np.nan, 0])))
    with pytest.raises(BortError, match="outputs are not finite"):
        Predictor(model, bort.load_tokenizer(folder))(["the cat"])
    (tmp_path / "x.txt").write_text("the cat\n")
    bort.save(model, folder, bort.load_tokenizer(folder))
    assert run_command(command.main, [str(folder), "--input", str(tmp_path / "x.txt")]) == 2
    output = capsys.readouterr()
    assert "NaN or infinity in classifier.1.bias" in output.err and not output.out


def test_an_unnamed_classifier_of_the_release_answers_by_the_releases_classes(make):
    folder = make(2)
    inputs = [("the cat", "a dog")]
    plain = Predictor(folder)(inputs)[0]["probabilities"]
    released = Predictor(folder, task="RTE", encoding="released")(inputs)[0]["probabilities"]
    assert released == pytest.approx({"not_entailment": plain["0"], "entailment": plain["1"]})
    recorded = bort.load(folder)
    recorded.task_name, recorded.encoding = "RTE", "paper"
    with pytest.raises(BortError, match="fine-tuned on the paper encoding of RTE, not the released one"):
        Predictor(recorded, bort.load_tokenizer(folder), encoding="released")
    paper = Predictor(folder, task="RTE")(inputs)[0]["probabilities"]
    assert paper == pytest.approx({"entailment": plain["0"], "not_entailment": plain["1"]})
