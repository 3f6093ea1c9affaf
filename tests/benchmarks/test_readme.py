"""README.md's figures are those of the recorded results, and its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from benchmarks import readme
from benchmarks.harness import records
from bort.errors import BortError
from tests.tiny import ROOT

RESULT = """# Title

`python -m benchmarks.x`

2026-01-01 00:00 UTC, commit abc, 2 cores

## First

| a | b |
|---|---|
| 1 | 2 |

## Second

| c |
|---|
| 3 |

- note
"""


def test_tables_are_taken_with_their_origin():
    assert readme.extract(RESULT, None, "x") == (
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n`python -m benchmarks.x` · 2026-01-01 "
        "00:00 UTC, commit abc, 2 cores\n"
    )
    assert readme.extract(RESULT, "Second", "x").startswith("| c |\n|---|\n| 3 |\n")
    for text, heading in ((RESULT, "Third"), ("# nothing", None)):
        with pytest.raises(BortError):
            readme.extract(text, heading, "x")


def test_pasting_replaces_only_the_blocks():
    before = (
        "start\n<!-- result x -->\nold 99\n<!-- end x -->\nmiddle\n<!-- result y -->\n<!-- end y -->\nend\n"
    )
    after = readme.paste(before, {"x": RESULT})
    assert "99" not in after and "| 1 | 2 |" in after and "yet: `python -m benchmarks.y`" in after
    assert after.startswith("start\n<!-- result x -->\n") and after.endswith("<!-- end y -->\nend\n")
    assert readme.paste(after, {"x": RESULT}) == after


def test_readme_pages_and_index_are_those_of_the_records():
    for path, text in readme.expected(ROOT).items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run python -m benchmarks.readme"


def test_no_path_of_a_machine_is_recorded():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert records.portable(text) == text, path
    assert records.portable("--data /home/me/data/glue --x=../a/b T=/w/runs/c/model") == (
        "--data …/glue --x=…/b T=runs/c/model"
    )
    assert records.portable(f"{ROOT}/benchmarks/x.py f1/em 4,8 1 / 2 https://host/path") == (
        "benchmarks/x.py f1/em 4,8 1 / 2 https://host/path"
    )


def test_its_first_screen_has_the_two_commands_and_every_script_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start = "\n".join(text.splitlines()[:12])
    assert "make demo" in start and "make test" in start and len(text.splitlines()) <= 200
    for link in set(re.findall(r"\]\((?!http)([^)#]+)\)", text)):
        assert (ROOT / link).exists(), link
    for script in set(re.findall(r"python (\w+\.py)", text)):
        assert (ROOT / script).is_file(), script
    for module in set(re.findall(r"python -m ((?:bort|benchmarks)[.\w]*)", text)):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@pytest.mark.parametrize("runner", ["run_search.py", "run_pretrain.py", "run_finetune.py"])
def test_every_runner_helps_without_mxnet_and_is_short(runner):
    code = (
        f"import sys, {runner[:-3]} as r\n"
        "try: r.main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "assert 'mxnet' not in sys.modules"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout.decode()
    assert f"python {runner}" in out
    assert len((ROOT / runner).read_text(encoding="utf-8").splitlines()) <= 150
