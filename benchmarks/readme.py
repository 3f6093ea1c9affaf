"""Paste recorded results into README.md: no figure in it is typed.

    python -m benchmarks.readme            # after a benchmark has written benchmarks/results/NAME.md
    python -m benchmarks.readme --check    # only say whether README.md is up to date (exit code 1 if not)

Between ``<!-- result NAME -->`` and ``<!-- end NAME -->`` goes the first table of ``benchmarks/results/NAME.md``
(``NAME#Heading`` takes the table under that heading) with the line that says when, where and from which
commit.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import List, Optional

from benchmarks.harness import common
from bort.errors import BortError, run_command
from bort.files import atomic_write

_BLOCK = re.compile(
    r"(<!-- result (?P<name>[\w-]+)(?:#(?P<heading>[^>]*?))? -->\n).*?(<!-- end (?P=name) "
    r"-->)",
    re.S,
)


def extract(text: str, heading: Optional[str], where: str) -> str:
    """The first table of a results file, or the one under ``heading``, and the line about the run.

    Raises:
        BortError: there is no such table.
    """
    lines = text.splitlines()
    start = 0
    if heading:
        if f"## {heading}" not in lines:
            raise BortError(f"{where}: no heading {heading!r} in it")
        start = lines.index(f"## {heading}")
    first = next((number for number in range(start, len(lines)) if lines[number].startswith("|")), None)
    if first is None:
        raise BortError(f"{where}: no table in it")
    last = next(
        (number for number in range(first, len(lines)) if not lines[number].startswith("|")), len(lines)
    )
    command = next((line for line in lines if line.startswith("`")), "")
    run = next((line for line in lines if re.match(r"\d{4}-\d\d-\d\d ", line)), "")
    return "\n".join(lines[first:last]) + f"\n\n{command} · {run}\n"


def paste(readme: str, results: Path) -> str:
    """``readme`` with every block replaced; a block whose result is not recorded says so."""

    def replaced(match: "re.Match[str]") -> str:
        path = results / f"{match['name']}.md"
        body = (
            extract(path.read_text(encoding="utf-8"), match["heading"], str(path))
            if path.is_file()
            else f"Not recorded yet: `python -m benchmarks.{match['name']}` does it.\n"
        )
        return f"{match[1]}{body}{match[4]}"

    return _BLOCK.sub(replaced, readme)


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    path = common.ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    after = paste(before, common.RESULTS)
    if args.check:
        print(
            "README.md is up to date" if before == after else "README.md is not what the recorded results say"
        )
        return int(before != after)
    with atomic_write(path) as stream:
        stream.write(after)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
