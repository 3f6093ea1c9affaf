"""Whole runs of ``run_finetune.py --algorithm agora``."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import bort
import run_finetune
from bort.agora import report
from bort.agora.report import Job, seed_shifts
from bort.agora.state import Training
from bort.agora.token_edits import digest
from bort.errors import run_command
from tests.agora.runs import DYING, SHORT, command, stable
from tests.agora.simulated import THETAS, lines
from tests.tiny import ROOT


def test_the_whole_run_and_its_outputs(teacher, uncut):
    folder = teacher / "uncut"
    assert uncut["algorithm"] == "agora" and uncut["evaluated_on"] == "evaluation"
    assert uncut["e"] == 12 and uncut["x"] == 48
    assert uncut["trainings"] == 3 == len(lines(folder, "agora.jsonl")) and uncut["additions"] == 20
    assert {row["tau"] for row in lines(folder, "additions.jsonl")} == {"mlm", "noise", "embedding"}
    assert [row["method"] for row in uncut["compare"]] == ["plain", "plain, equal compute",
                                                           "distillation, equal compute", "Agora"]
    steps = [row["steps"] for row in uncut["compare"]]
    assert steps[1] == steps[2] == steps[3] > steps[0]
    assert set(uncut["share_by_part"]) == {"training", "errors", "tau", "labelling"}
    for name in ("model/config.json", "predictions/SST-2.tsv", "agora.png", "config.json"):
        assert (folder / name).is_file()
    assert not (folder / "trainings").exists() and not (folder / "checkpoints").exists()
    row = lines(folder, "agora.jsonl")[0]
    assert row["theta"] == {"lr": 5e-3, "weight_decay": 0.0, "warmup": 0.1, "seed": 0} and row["size"] == 48
    assert sum(row["labels"].values()) == 48 and set(row["dev"]) == {"accuracy"}
    assert json.loads((folder / "model" / "config.json").read_text())["training"]["max_length"] == 32
    # the model that was saved is the one that was chosen
    assert uncut["metrics"]["dev"] == uncut["best"]["dev"]


@pytest.mark.parametrize("soft", [False, True])
def test_the_comparison_takes_agoras_first_trainings_as_they_are(teacher, monkeypatch, soft):
    train, asked = report._trainings, {}

    def again(agora, tag, x, jobs, soft):
        asked[tag] = len(jobs)
        if tag != "compare-plain" and soft == agora.plan.soft:
            first = lines(teacher / f"taken-{soft}", "agora.jsonl")[:2]
            jobs_again = [Job(row["theta_index"], 0, row["steps"]) for row in first]
            repeated = train(agora, "again", x, jobs_again, soft)
            names = ("score", "loss", "steps", "dev")
            assert [[getattr(row, name) for name in names] for row in repeated] == [
                [row[name] for name in names] for row in first]
        return train(agora, tag, x, jobs, soft)

    monkeypatch.setattr(report, "_trainings", again)
    assert run_command(run_finetune.main, command(teacher, f"taken-{soft}", *SHORT, "--compare", "--tau",
                                                  "noise", *(["--soft"] if soft else []))) == 0
    results = json.loads((teacher / f"taken-{soft}" / "results.json").read_text())
    assert asked == ({"compare-plain": 2, "compare-long-plain": 3, "compare-distilled": 1} if soft
                     else {"compare-long-plain": 1, "compare-distilled": 3})
    assert [line["trainings"] for line in results["compare"]] == [2, 3, 3, 3]


def test_seeds_of_repeated_trainings_never_meet():
    """100 a round and 1,000 a replay met in the eleventh round."""
    one = Training(index=0, theta=THETAS[0], theta_index=0, round=0, attempt=0, size=1, labels={},
                   evaluated_on="evaluation")
    trainings = [replace(one, round=number, attempt=attempt) for number in range(40) for attempt in range(3)]
    shifts = seed_shifts(trainings, [0, 3, 4])
    assert shifts[0, 0] == 0
    assert len({shift + seed for shift in shifts.values() for seed in (0, 3, 4)}) == 40 * 3 * 3


def test_dev_and_test_stay_outside(teacher, uncut):
    """By hashes: neither X nor D holds a point of dev or test, and another dev set changes nothing but its
    own score."""
    from bort.finetuning.task_data import read_task

    tokenizer = bort.load_tokenizer(teacher / "bort")
    data = read_task("SST-2", teacher / "SST-2", tokenizer, 32)
    official = {digest(ids) for part in (data.dev, data.others["SST-2/test"])
                for ids in part.tokens.token_ids}
    made = {digest(np.array(row["token_ids"])) for row in lines(teacher / "uncut", "additions.jsonl")}
    assert made and not made & official
    other = teacher / "other"
    (other / "SST-2").mkdir(parents=True)
    for name in ("bort", "raw", "teacher", "grid.json"):
        (other / name).symlink_to(teacher / name)
    train = (teacher / "SST-2" / "train.tsv").read_text()
    (other / "SST-2" / "train.tsv").write_text(train)
    flipped = [line[:-1] + str(1 - int(line[-1]))
               for line in (teacher / "SST-2" / "dev.tsv").read_text().splitlines()[1:]]
    (other / "SST-2" / "dev.tsv").write_text("\n".join(["sentence\tlabel", *flipped]) + "\n")
    (other / "SST-2" / "test.tsv").write_text((teacher / "SST-2" / "test.tsv").read_text())
    assert run_command(run_finetune.main, command(other, "run", *SHORT, "--tau", "mlm,noise,embedding")) == 0
    again = json.loads((other / "run" / "results.json").read_text())
    assert again["best"]["score"] == uncut["best"]["score"] and again["theta"] == uncut["theta"]
    assert lines(other / "run", "additions.jsonl") == lines(teacher / "uncut", "additions.jsonl")
    assert again["metrics"]["dev"]["accuracy"] == pytest.approx(1 - uncut["metrics"]["dev"]["accuracy"])
    first, second = ((folder / "predictions" / "SST-2.tsv").read_text() for folder in (teacher / "uncut",
                                                                                       other / "run"))
    assert first == second
    # nor does the dev set choose between seeds, which flipping its labels would turn round
    several = ("--seeds", "0,1,2", "--max-rounds", "1", "--tau", "none")
    for folder in (teacher, other):
        assert run_command(run_finetune.main, command(folder, "several", *several)) == 0
    first, second = (json.loads((folder / "several" / "results.json").read_text()) for folder in (teacher,
                                                                                                  other))
    each = [json.loads((teacher / "several" / f"seed-{seed}" / "results.json").read_text())
            for seed in range(3)]
    assert len({results["metrics"]["dev"]["accuracy"] for results in each}) > 1
    assert first["best_seed"] == second["best_seed"] and (
        first["best"]["selection"] == second["best"]["selection"])
    for name in ("model/model.params", "predictions/SST-2.tsv"):
        assert (teacher / "several" / name).read_bytes() == (other / "several" / name).read_bytes()


def test_killed_with_signal_9_it_goes_on_to_the_same(teacher, uncut):
    arguments = command(teacher, "cut", *SHORT, "--compare", "--tau", "mlm,noise,embedding")
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_WAIT_POLICY="passive")
    folder = teacher / "cut"
    moments = (("round-000-00/theta-0001.json", 1), ("cut/additions.jsonl", 7),
               ("compare-distilled/theta-0000.json", 1), ("cut/results.json", 1))
    for number, (name, count) in enumerate(moments):
        done = subprocess.run([sys.executable, "-c", DYING, str(ROOT / "run_finetune.py"), name, str(count),
                               *arguments, *(("--resume",) if number else ())], env=environment,
                              capture_output=True, timeout=300)
        assert done.returncode == -signal.SIGKILL, (name, done.stderr.decode())
        assert not (folder / "results.json").exists()
    assert run_command(run_finetune.main, [*arguments, "--resume"]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert stable(results) == stable(uncut)
    for ours, theirs in zip(results["compare"], uncut["compare"]):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    for name in ("agora.jsonl", "additions.jsonl"):
        assert lines(folder, name) == lines(teacher / "uncut", name)
    assert (folder / "model" / "model.params").read_bytes() == (teacher / "uncut" / "model"
                                                                / "model.params").read_bytes()


def test_a_resumed_run_notices_what_was_exchanged(teacher, capsys):
    """Another teacher, student, tau model, dev or test set in the same place is not gone on with."""
    place = teacher / "exchanged"
    shutil.copytree(teacher / "SST-2", place / "SST-2")
    for name in ("bort", "teacher"):
        shutil.copytree(teacher / name, place / name)
    shutil.copytree(teacher / "bort", place / "tau")
    shutil.copy(teacher / "grid.json", place / "grid.json")
    arguments = command(place, "run", "--max-rounds", "1", "--tau", "embedding", "--tau-model",
                        str(place / "tau"))
    assert run_command(run_finetune.main, arguments) == 0
    assert run_command(run_finetune.main, [*arguments, "--resume"]) == 0
    assert run_command(run_finetune.main, [*arguments, "--resume", "--labels", "bad,good"]) == 2
    assert "labels was" in capsys.readouterr().err
    tokenizer = bort.load_tokenizer(place / "bort")
    for folder in ("bort", "teacher/model", "tau"):
        kept = place / "kept"
        shutil.copytree(place / folder, kept)
        model = bort.load(place / folder)
        body = getattr(model, "bort", model)
        body.decoder[0].bias.set_data(body.decoder[0].bias.data() + 1)
        bort.save(model, place / folder, tokenizer)
        assert run_command(run_finetune.main, [*arguments, "--resume"]) == 2
        assert "models was" in capsys.readouterr().err, folder
        shutil.rmtree(place / folder)
        kept.rename(place / folder)
    for name in ("dev.tsv", "test.tsv"):
        text = (place / "SST-2" / name).read_text()
        (place / "SST-2" / name).write_text(text.replace("film", "story"))
        assert run_command(run_finetune.main, [*arguments, "--resume"]) == 2
        assert "sets was" in capsys.readouterr().err, name
        (place / "SST-2" / name).write_text(text)
    first = json.loads((place / "run" / "results.json").read_text())
    content = (place / "run" / "agora.jsonl").read_text()
    (place / "run" / "agora.jsonl").write_text(content.replace("0", "1", 1))
    assert run_command(run_finetune.main, [*arguments, "--resume"]) == 2
    assert "agora.jsonl: was changed since the run ended" in capsys.readouterr().err
    (place / "run" / "agora.jsonl").write_text(content)
    assert run_command(run_finetune.main, [*arguments, "--resume"]) == 0
    (place / "run" / "results.json").unlink()  # as the message says: the run is repeated
    assert run_command(run_finetune.main, [*arguments, "--resume"]) == 0
    assert stable(json.loads((place / "run" / "results.json").read_text())) == stable(first)


def test_questions_dev_as_e_and_tables(teacher, capsys):
    """COPA: whole questions are held out; then E is the dev set as in the paper; then a table in place of a
    teacher."""
    copa = dict(task="COPA", teacher="copa-teacher/model")
    assert run_command(run_finetune.main, command(teacher, "copa", *SHORT, "--tau", "noise", **copa)) == 0
    results = json.loads((teacher / "copa" / "results.json").read_text())
    assert results["e"] == 10 and results["x"] == 38 and results["metric_on_e"] == "accuracy"
    assert len((teacher / "copa" / "predictions" / "COPA.jsonl").read_text().splitlines()) == 8
    assert run_command(run_finetune.main, command(teacher, "copa-dev", *SHORT, "--tau", "noise",
                                                  "--evaluate-on", "dev", "--seeds", "0,1", "--compare",
                                                  **copa)) == 0
    results = json.loads((teacher / "copa-dev" / "results.json").read_text())
    assert results["evaluated_on"] == "dev" and results["x"] == 48 and results["e"] == 16
    assert results["seeds"] == [0, 1]
    assert results["best"]["score"] == results["metrics"]["dev"]["accuracy"]
    assert results["best"]["score"] == results["maximum"]["dev"]["accuracy"]
    for line in results["compare"]:  # E is the dev set here, and every method is reported on it
        assert set(line["dev"]) == {"accuracy"} and line["dev"]["accuracy"] == line["score"]
    assert (teacher / "copa-dev" / "model" / "config.json").is_file()
    np.save(teacher / "table.npy", np.zeros((60, 2), np.float32))
    assert run_command(run_finetune.main, command(teacher, "table", "--tau", "none", "--soft", "--prune",
                                                  "half", teacher="table.npy")) == 0
    assert json.loads((teacher / "table" / "results.json").read_text())["additions"] == 0
    capsys.readouterr()
    for extra, message, other in ((("--tau", "mlm"), "table of predictions", "table.npy"),
                                  (("--tau", "none"), "classifier", "bort"),
                                  (("--tau", "x"), "--tau", "teacher/model"),
                                  (("--lr", "0"), "rate", "teacher/model"),
                                  (("--grid", "none"), "--grid", "teacher/model"),
                                  (("--held-out-fraction", "0"), "fraction", "teacher/model"),
                                  (("--budget", "-1"), "budget", "teacher/model")):
        assert run_command(run_finetune.main, command(teacher, "refused", *extra, teacher=other)) == 2
        assert message in capsys.readouterr().err, extra
    assert not (teacher / "refused").exists()
    assert run_command(run_finetune.main, command(teacher, "copa", *SHORT, **copa)) == 2
    assert "--resume" in capsys.readouterr().err


def test_a_teacher_that_leaves_the_evaluation_set_out(teacher, capsys):
    """The teacher's run draws the set; Agora's scores on the same one and says that the teacher has not seen
    it."""
    split = teacher / "split.json"
    plain = ["--task", "SST-2", "--data-dir", str(teacher / "SST-2"), "--model", str(teacher / "bort"),
             "--max-length", "32", "--epochs", "1", "--split-file", str(split), "--lr", "1e-3"]
    assert run_command(run_finetune.main, [*plain, "--output", str(teacher / "without-e")]) == 0
    trained = json.loads((teacher / "without-e" / "results.json").read_text())
    members = len(json.loads(split.read_text())["evaluation"])
    assert 0 < members and trained["rows"] <= 60 - members
    before = split.read_bytes()
    arguments = command(teacher, "with-split", "--split-file", str(split), "--tau", "noise", "--max-rounds",
                        "1", teacher="without-e/model")
    assert run_command(run_finetune.main, arguments) == 0
    printed = capsys.readouterr().out
    results = json.loads((teacher / "with-split" / "results.json").read_text())
    assert results["teacher"]["saw_evaluation"] is False and "the teacher has not seen" in printed
    assert results["x"] == trained["rows"] and results["x"] + results["e"] == 60
    assert split.read_bytes() == before
    # distillation leaves it out too, whatever the vocabulary of the teacher
    assert run_command(run_finetune.main, [*plain, "--algorithm", "distill", "--teacher",
                                           str(teacher / "without-e" / "model"), "--output",
                                           str(teacher / "distilled-without-e")]) == 0
    distilled = json.loads((teacher / "distilled-without-e" / "results.json").read_text())
    assert distilled["rows"] == trained["rows"]


def test_the_dev_set_stands_beside_the_evaluation_set_in_every_line(teacher, uncut, capsys):
    assert run_command(run_finetune.main, [*command(teacher, "uncut", *SHORT, "--compare", "--tau",
                                                    "mlm,noise,embedding"), "--resume"]) == 0
    printed = capsys.readouterr().out.splitlines()
    heading = next(line for line in printed if "trainings" in line and "steps" in line)
    assert heading.index("dev accuracy") < heading.index("accuracy on the evaluation set")
    chosen = next(line for line in printed if line.startswith("chosen model: "))
    assert chosen.startswith("chosen model: dev accuracy ") and ", accuracy on the evaluation set " in chosen
    assert "tau transformed its members" in "".join(printed) and "held-out" not in "".join(printed)
    assert "held" not in (teacher / "uncut" / "agora.jsonl").read_text()
    for row in lines(teacher / "uncut", "agora.jsonl"):
        assert set(row["dev"]) == {"accuracy"} and row["accuracy"] is not None
    for row in uncut["rounds"]:
        assert set(row["dev"]) == set(row["best_dev"]) == {"accuracy"}


def test_the_evaluation_set_goes_by_its_old_name_too(teacher):
    from bort.agora.command import options_of

    args = run_finetune.arguments(run_finetune.__doc__, command(teacher, "x", "--evaluate-on", "heldout"))
    assert options_of(args).evaluation.on == "evaluation" and options_of(args).evaluation.fraction == 0.2
