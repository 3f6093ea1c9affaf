"""Options of ``--algorithm agora``, and what is refused."""
from __future__ import annotations

import json
from types import SimpleNamespace

import bort
import run_finetune
from bort.errors import run_command
from bort.finetuning.hyperparameters import convergent_set
from bort.tasks.registry import get_task
from tests.agora.runs import command


def test_tau_needs_an_mlm_head_that_was_trained(teacher, capsys):
    for tau_model, message in (("raw", "never trained"), ("teacher/model", "fine-tuned as a classifier")):
        assert run_command(run_finetune.main, command(teacher, "refused", "--tau-model",
                                                      str(teacher / tau_model))) == 2
        error = capsys.readouterr().err
        assert message in error and "--tau noise,embedding" in error and "--tau-model" in error
    arguments = command(teacher, "refused", "--tokenizer", str(teacher / "bort"), "--tau", "mlm")
    arguments[arguments.index("--model") + 1] = "random:1,2,8,8"
    assert run_command(run_finetune.main, arguments) == 2
    assert "never trained" in capsys.readouterr().err
    # --tokenizer says what the student has, not the tau model, whose own is beside it
    from bort.text.tokenizers.loading import train_sentencepiece

    other = train_sentencepiece(["A B C D E F G H"] * 9, 30)
    body = bort.load(teacher / "bort")
    bort.save(body, teacher / "foreign")
    other.save(teacher / "foreign")
    assert run_command(run_finetune.main, command(teacher, "refused", "--tokenizer", str(teacher / "bort"),
                                                  "--tau-model", str(teacher / "foreign"))) == 2
    assert "another tokenizer" in capsys.readouterr().err
    assert not (teacher / "refused").exists()


def test_given_hyper_parameters_win_over_the_convergent_set(teacher):
    arguments = list(command(teacher, "chs", "--chs", "--max-rounds", "1", "--tau", "none"))
    place = arguments.index("--grid")
    assert run_command(run_finetune.main, arguments[:place] + arguments[place + 2:]) == 0
    results = json.loads((teacher / "chs" / "results.json").read_text())
    chosen = convergent_set("SST-2")
    assert results["theta"] == [5e-3, *chosen.theta[1:]] and results["settings"]["batch_size"] == 16
    from bort.agora.command import options_of
    from bort.agora.run import prepare

    for extra, wanted in (([], (chosen.theta, 16)), (["--warmup", "0.1", "--batch-size", "4"],
                                                     (chosen.theta._replace(warmup=0.1), 4))):
        args = run_finetune.arguments(run_finetune.__doc__,
                                      ["--task", "SST-2", "--data-dir", "x", "--model", "x", "--output", "x",
                                       "--algorithm", "agora", "--teacher",
                                       str(teacher / "teacher" / "model"), "--chs", "--tau", "none", *extra])
        data = SimpleNamespace(task=get_task("SST-2"), train=True, dev=None)
        shared = prepare(options_of(args), data, None, bort.load_tokenizer(teacher / "bort"), 32)
        assert (shared.chs.theta, shared.chs.batch_size) == wanted
    assert args.given == ["warmup", "batch_size"] and run_finetune.settings_of(args)[0].lr == 3e-5
