"""``run_pretrain.py`` on a corpus in memory: teachers, caches, heads, grids, refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import bort
import run_pretrain
from bort.backend import distributed
from bort.backend.mxnet import mx
from bort.checkpoints.model_folder import parameter_arrays, set_parameters
from bort.errors import BortError, run_command
from bort.models import Classifier
from bort.pretraining import inputs
from tests.pretraining.common import Tokenizer, assert_close, corpus, metrics, student
from tests.tiny import MAX_LENGTH, TINY_TEACHER, VOCAB, tiny_bert


@pytest.fixture
def command(tmp_path, monkeypatch):
    """``command(output, *arguments)`` runs the runner; its exit code."""
    data = corpus()
    data.tokenizer = Tokenizer()
    monkeypatch.setattr(inputs, "read_corpus", lambda *_: (data, {"data": data.train.fingerprint}))

    def run(output, *arguments):
        return run_command(
            run_pretrain.main,
            [
                "--data",
                str(tmp_path),
                "--output",
                str(tmp_path / output),
                "--max-length",
                str(MAX_LENGTH),
                "--log-interval",
                "2",
                "--batch-size",
                "8",
                *map(str, arguments),
            ],
        )

    return run


def test_the_runner_trains_a_teacher_and_distils_it(tmp_path, command, capsys):
    assert command("teacher", "--architecture", "3,4,16,20", "--steps", 4, "--method", "mlm") == 0
    teacher = tmp_path / "teacher" / "model"
    kd = ("kd", "--architecture", "2,2,8,12", "--teacher", teacher, "--steps", 6, "--checkpoint-interval", 2)
    assert command(*kd) == 0
    assert "evaluation MLM loss" in capsys.readouterr().out
    assert command(*kd) == 2 and "--resume" in capsys.readouterr().err
    assert command(*kd, "--resume") == 0 and "6 steps" in capsys.readouterr().out
    assert command(*kd[:-3], 8, "--resume") == 2 and "steps was 6 and is 8" in capsys.readouterr().err
    assert command("cached", *kd[1:], "--cache-teacher", 8) == 0
    assert "teacher cache:" in capsys.readouterr().out
    assert any((tmp_path / "teacher-cache").rglob("index.json"))
    (teacher / "model.params").unlink()  # a second student does not even need the teacher's parameters
    assert command("second", "--architecture", "1,2,8,12", *kd[3:], "--cache-teacher", 8) == 0
    assert command("more", "--init", tmp_path / "kd" / "model", "--steps", 2, "--method", "mlm") == 0


def test_what_decides_the_best_step_cannot_change_and_lost_curves_come_back(tmp_path, command, capsys):
    arguments = ("run", "--architecture", "1,2,8,12", "--steps", 2, "--eval-sequences", 5)
    assert command(*arguments, "--eval-interval", 1) == 0
    assert command(*arguments, "--eval-interval", 2, "--resume") == 2
    assert "eval_interval was 1 and is 2" in capsys.readouterr().err
    assert command(*arguments[:-1], 6, "--eval-interval", 1, "--resume") == 2
    assert "eval_sequences was 5 and is 6" in capsys.readouterr().err
    (tmp_path / "run" / "curves.png").unlink()
    assert command(*arguments, "--eval-interval", 1, "--log-interval", 1, "--resume") == 0
    assert (tmp_path / "run" / "curves.png").is_file()


def test_a_head_is_trained_on_a_body_that_stays_as_it_is(tmp_path, command):
    bort.save(student(dropout=0.1), tmp_path / "bare", Tokenizer())
    arguments = (
        "--init",
        tmp_path / "bare",
        "--method",
        "mlm",
        "--steps",
        6,
        "--lr",
        "1e-2",
        "--train",
        "head",
        "--checkpoint-interval",
        2,
    )
    assert command("head", *arguments) == 0
    before, after = (
        parameter_arrays(bort.load(path)) for path in (tmp_path / "bare", tmp_path / "head/model")
    )
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {
        "decoder.0.weight",
        "decoder.0.bias",
        "decoder.2.gamma",
        "decoder.2.beta",
        "decoder.3.bias",
    }
    first, *_, last = [row["eval_mlm_loss"] for row in metrics(tmp_path / "head") if "eval_mlm_loss" in row]
    assert last < first
    # Accumulated micro-batches are one batch, here too.
    assert command("parts", *arguments, "--batch-size", 2, "--accumulate", 4) == 0
    assert_close(after, parameter_arrays(bort.load(tmp_path / "parts" / "model")))
    assert command("all", "--init", tmp_path / "head" / "model", "--method", "mlm", "--steps", 2) == 0


def test_a_grid_trains_every_point_on_a_subset_and_goes_on(tmp_path, command, capsys):
    arguments = (
        "--architecture",
        "1,2,8,12",
        "--method",
        "mlm",
        "--steps",
        2,
        "--subset",
        9,
        "--grid",
        "lr=1e-3,1e-2",
        "warmup-ratio=0.1,0.5",
    )
    assert command("grid", *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    best = json.loads((tmp_path / "grid" / "grid.json").read_text())[0]
    assert lines[-1] == f"best: --lr {best['lr']:g} --warmup-ratio {best['warmup-ratio']:g}"
    folders = sorted(path.name for path in (tmp_path / "grid").iterdir() if path.is_dir())
    assert folders == [f"lr-{lr},warmup-ratio-{w}" for lr in ("0.001", "0.01") for w in ("0.1", "0.5")]
    assert all(row["epoch"] <= 1 for row in metrics(tmp_path / "grid" / folders[0]) if "epoch" in row)
    config = json.loads((tmp_path / "grid" / folders[0] / "config.json").read_text())["settings"]
    assert config["subset"] == 9 and config["lr"] == 1e-3
    assert (
        command("grid", *arguments, "--resume") == 0 and capsys.readouterr().out.splitlines()[-1] == lines[-1]
    )
    assert command("other", *arguments[:-2], "lr=nan") == 2 and "rate above 0" in capsys.readouterr().err


def test_everything_is_on_the_ranks_own_device(tmp_path, command, monkeypatch):
    """A second CPU device is to MXNet as foreign to the first as a GPU is."""
    monkeypatch.setattr(distributed, "context", lambda: mx.cpu(1))
    assert command("teacher", "--architecture", "1,2,8,12", "--steps", 2) == 0
    kd = (
        "--init",
        tmp_path / "teacher" / "model",
        "--teacher",
        tmp_path / "teacher" / "model",
        "--steps",
        3,
        "--checkpoint-interval",
        2,
    )
    assert command("kd", *kd) == 0
    assert command("cached", *kd, "--cache-teacher", 4) == 0


def test_students_of_other_seeds_share_a_cache(tmp_path, command, capsys):
    bort.save(tiny_bert(3, TINY_TEACHER), tmp_path / "teacher", Tokenizer())
    kd = ("--architecture", "1,2,8,12", "--teacher", tmp_path / "teacher", "--steps", 2, "--cache-teacher", 4)
    assert command("one", *kd, "--seed", 1) == 0
    (tmp_path / "teacher" / "model.params").unlink()
    assert command("two", *kd, "--seed", 2) == 0
    # other masks ask the teacher, who is gone
    assert command("other", *kd, "--seed", 2, "--mask-seed", 2) == 2
    first, second = (metrics(tmp_path / name)[0]["eval_mlm_loss"] for name in ("one", "two"))
    assert first != second
    capsys.readouterr()
    assert command("one", *kd, "--seed", 1, "--mask-seed", 7, "--resume") == 2
    assert "mask_seed was 0 and is 7" in capsys.readouterr().err


def test_the_network_of_a_bare_teacher_must_be_told_and_is_remembered(tmp_path, command, capsys):
    bort.save(tiny_bert(3, TINY_TEACHER), tmp_path / "folder")
    bare = shutil.copy(tmp_path / "folder" / "model.params", tmp_path / "bare.params")
    kd = ("--architecture", "1,2,8,12", "--teacher", bare, "--steps", 2, "--cache-teacher", 4)
    assert command("kd", *kd) == 2
    assert "--teacher-architecture D,A,H,I" in capsys.readouterr().err
    assert command("kd", *kd, "--teacher-architecture", "3,4,16,20") == 0
    assert command("kd", *kd, "--teacher-architecture", "3,2,16,20", "--resume") == 2
    assert "teacher_architecture was '3,4,16,20' and is '3,2,16,20'" in capsys.readouterr().err
    assert command("kd", *kd, "--teacher-architecture", "3,4,16,20", "--max-length", 30, "--resume") == 2
    assert "max_length was 24 and is 30" in capsys.readouterr().err
    # The same numbers with other heads are other answers.
    assert command("heads", *kd, "--teacher-architecture", "3,2,16,20") == 0
    assert len(list((tmp_path / "teacher-cache").rglob("index.json"))) == 2


def test_a_command_that_failed_before_it_began_does_not_block_the_corrected_one(tmp_path, command, capsys):
    bort.save(tiny_bert(3, TINY_TEACHER), tmp_path / "folder")
    bare = shutil.copy(tmp_path / "folder" / "model.params", tmp_path / "bare.params")
    kd = ("run", "--architecture", "1,2,8,12", "--teacher", bare, "--steps", 2)
    assert command(*kd) == 2
    assert command(*kd, "--teacher-architecture", "3,4,16,20") == 0
    assert command(*kd, "--teacher-architecture", "3,4,16,20") == 2 and "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--architecture", "2,2,8,12", "--dropout", "1"), "--dropout must be"),
        (("--architecture", "2,2,8,12", "--dropout", "nan"), "--dropout must be"),
        (("--architecture", "2,2,8,12", "--max-length", "0"), "--max-length must be"),
        (("--architecture", "2,2,8,12", "--log-interval", "0"), "--log-interval must be"),
        (("--architecture", "2,2,8,12", "--mask-seed", "-1"), "--mask-seed must"),
        (("--architecture", "2,2,8,12", "--method", "kd"), "needs --teacher"),
        ((), "--architecture or --init"),
        (("--architecture", "2,2,8,12", "--cache-teacher", 5), "--method kd"),
        (("--architecture", "2,3,8,12"), "not divisible"),
        (("--architecture", "2,2,8,12", "--lr", "nan"), "rate"),
    ],
)
def test_the_runner_refuses_what_cannot_be(command, capsys, arguments, message):
    assert command("run", *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_papers_batch_is_the_default_and_divides_over_the_ranks():
    of = inputs.batches_of_step
    assert of(None, None, 0, None, ranks=4) == (8, 32)  # 8 sequences x 32 micro-batches x 4 ranks
    assert of(128, None, 0, 1024, ranks=8) == (128, 1)
    assert of(32, None, 0, None, ranks=2) == (32, 1) and of(None, 3, 0, None, ranks=2) == (8, 3)
    assert of(None, None, 4096, None, ranks=2) == (8, 1)
    # Where nobody asked for a number, one that the ranks can share is taken; 43 * 24 = 1032, 18 * 56 = 1008.
    assert [of(None, None, 0, None, ranks=ranks) for ranks in (3, 7, 1000)] == [(8, 43), (8, 18), (8, 1)]
    with pytest.raises(BortError, match="not a multiple of 24"):
        of(None, None, 0, 1024, ranks=3)
    for given, message in (
        ((96, None, 0, 1024), "not a multiple of 192"),
        ((0, None, 0, 64), "not a multiple"),
        ((8, 2, 0, 64), "leave out"),
        ((None, None, 512, 64), "leave out"),
    ):
        with pytest.raises(BortError, match=message):
            of(*given, ranks=2)


def test_a_teacher_that_speaks_of_other_tokens_is_refused(tmp_path, command, capsys):
    arguments = ("run", "--architecture", "2,2,8,12", "--teacher", tmp_path / "teacher")
    bort.save(tiny_bert(0, vocab_size=VOCAB + 1), tmp_path / "teacher")
    assert command(*arguments) == 2
    assert "41 tokens, the student's 40" in capsys.readouterr().err
    other = Tokenizer()
    other.fingerprint = "0" * 64
    bort.save(tiny_bert(0), tmp_path / "teacher", other)
    assert command(*arguments) == 2
    assert "its tokenizer is not the corpus's" in capsys.readouterr().err


def test_a_teacher_without_a_trained_head_is_refused_with_the_command_that_trains_one(
    tmp_path, command, capsys
):
    kd = ("--architecture", "2,2,8,12", "--teacher", tmp_path / "teacher", "--steps", 2)
    bort.save(student(), tmp_path / "teacher", Tokenizer())
    for extra in ((), ("--cache-teacher", 4)):
        assert command("run", *kd, *extra) == 2
        error = capsys.readouterr().err
        assert "never trained" in error
        assert f"run_pretrain.py --init {tmp_path / 'teacher'} --method mlm" in error
    body = tiny_bert(3, TINY_TEACHER)
    head = Classifier(body, 2)
    head.initialize_head(0)
    bort.save(head, tmp_path / "teacher", Tokenizer())
    assert command("run", *kd) == 2 and "fine-tuned as a classifier" in capsys.readouterr().err
    # The remedy works.
    bort.save(student(), tmp_path / "teacher", Tokenizer())
    assert command("head", "--init", tmp_path / "teacher", "--method", "mlm", "--steps", 2) == 0
    assert command("run", *kd[:2], "--teacher", tmp_path / "head" / "model", "--steps", 2) == 0


def test_more_rows_than_ids_are_ordinary_in_teachers_and_students(tmp_path, command, capsys):
    arguments = ("--steps", 3, "--teacher")
    plain, padded = tiny_bert(3), tiny_bert(3, vocab_size=VOCAB + 8)
    arrays = parameter_arrays(padded)
    for name, array in parameter_arrays(plain).items():  # the same network with eight more rows
        arrays[name] = (
            np.concatenate([array, arrays[name][VOCAB:]]) if len(arrays[name]) > len(array) else array
        )
    set_parameters(padded, arrays, "")
    bort.save(plain, tmp_path / "plain", Tokenizer())
    bort.save(padded, tmp_path / "padded", Tokenizer())
    for name, extra in (("live", ()), ("cached", ("--cache-teacher", 6))):
        for teacher in ("plain", "padded"):
            assert (
                command(
                    f"{name}-{teacher}", "--architecture", "2,2,8,12", *arguments, tmp_path / teacher, *extra
                )
                == 0
            )
        # What a teacher says of rows that stand for no token is not asked.
        rows = [metrics(tmp_path / f"{name}-{teacher}") for teacher in ("plain", "padded")]
        for left, right in zip(*rows):
            assert left == pytest.approx(right, rel=1e-5)
        assert (
            command(f"{name}-init", "--init", tmp_path / "padded", *arguments, tmp_path / "plain", *extra)
            == 0
        )
    assert bort.load(tmp_path / "live-init" / "model").vocab_size == VOCAB + 8
