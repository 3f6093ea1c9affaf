"""``run_search.py``: options, presets, bad input."""
from __future__ import annotations

import warnings

import pytest

from bort.architecture import parse
from bort.errors import run_command
from bort.search.command import PRESETS
from bort.search.fptas import (
    check_maximum,
    surrogates,
)
from bort.search.settings import SearchSettings
from tests.search.tiny_search import (
    run,
)

pytestmark = pytest.mark.filterwarnings("ignore:the teacher .* has no weights")


@pytest.mark.parametrize("arguments, message", [
    (["--teacher", "1,2,8,8"], "must be the maximum point"),
    (["--teacher", "nowhere"], "not a preset"),
    (["--epsilon", "99"], "epsilon"),
    (["--heads", "3"], "empty"),
    (["--speed-lines", "100000"], "needed"),
    (["--tokenizer", "nowhere"], "nowhere"),
    (["--corpus", "nowhere"], "no such file"),
])
def test_bad_input_is_one_line_with_a_remedy(arguments, message, corpus, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the teacher .* has no weights")  # said once all else is in order
        assert run(tmp_path / "run", corpus, *arguments) == 2
    printed, = capsys.readouterr().err.strip().splitlines()
    assert printed.startswith("error: ") and message in printed


def test_a_corpus_is_asked_for_and_presets_are_complete(tmp_path, capsys):
    import run_search

    assert run_command(run_search.main, ["--output", str(tmp_path / "run")]) == 2
    assert "--corpus is missing" in capsys.readouterr().err
    for preset in PRESETS:
        args = run_search.arguments(run_search.__doc__, ["--output", "x", "--preset", preset, "--seed", "7"])
        settings = SearchSettings(**{name: getattr(args, name)
                                     for name in SearchSettings.__dataclass_fields__})
        top = parse(args.teacher)
        costs = surrogates([*settings.space, top], settings, 1000)
        check_maximum(costs, top)
        assert settings.seed == 7
    paper = vars(run_search.arguments(run_search.__doc__, ["--output", "x"]))
    assert SearchSettings(**{name: paper[name] for name in SearchSettings.__dataclass_fields__ if name
                             != "include"}) == SearchSettings()


def test_abbreviations_are_refused(capsys):
    import run_search

    with pytest.raises(SystemExit):
        run_search.arguments(run_search.__doc__, ["--output", "x", "--pres", "tiny"])
    assert "--pres" in capsys.readouterr().err


def test_the_paper_by_name_measures_speed():
    import run_search

    def speed(*arguments: str) -> str:
        return run_search.arguments(run_search.__doc__, ["--output", "x", *arguments]).speed

    assert speed("--preset", "paper") == "measured" and speed() == speed("--preset", "laptop") == "flops"
    assert speed("--preset", "paper", "--speed", "flops") == "flops"
