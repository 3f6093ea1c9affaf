"""The table of the original scripts' flags names options that exist."""

from __future__ import annotations

import re

import pytest

import run_finetune
import run_pretrain
from bort.text.__main__ import main as text_main
from tests.tiny import ROOT


def test_the_options_that_stand_for_the_originals_flags_exist(capsys):
    table = (ROOT / "benchmarks" / "original-scripts.md").read_text(encoding="utf-8")
    cells = [line.split("|")[2] for line in table.splitlines() if line.startswith("|")]
    quoted = " ".join(part for cell in cells for part in re.findall(r"`([^`]+)`", cell))
    ours = set(re.findall(r"--[a-z-]+", quoted))
    assert len(ours) > 40
    for main, words in (
        (run_finetune.main, ["--help"]),
        (run_pretrain.main, ["--help"]),
        (text_main, ["prepare", "--help"]),
    ):
        with pytest.raises(SystemExit):
            main(words)
    known = capsys.readouterr().out
    assert not [flag for flag in ours if not re.search(rf"{flag}\b", known)]
