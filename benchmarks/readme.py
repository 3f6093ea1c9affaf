"""Write the pages of recorded results, their index, and the tables of README.md: no figure there is typed.

    python -m benchmarks.readme  # after a benchmark has written benchmarks/results/NAME.md
    python -m benchmarks.readme --check  # only name what is not up to date (exit code 1 if there is any)

``<!-- headline -->`` to ``<!-- end headline -->`` gets the table of ``benchmarks/harness/headline.py``.
Between ``<!-- result NAME -->`` and ``<!-- end NAME -->`` goes the first table of
``benchmarks/results/NAME.md`` (``NAME#Heading`` takes the table under that heading) with the line that says
when, where and from which commit.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Dict, List, Mapping, Optional

from benchmarks.harness import common, records
from benchmarks.harness.headline import headline
from bort.errors import BortError, run_command
from bort.files import atomic_write
from bort.json_files import read_json

_BLOCK = re.compile(
    r"(<!-- result (?P<name>[\w-]+)(?:#(?P<heading>[^>]*?))? -->\n).*?(<!-- end (?P=name) "
    r"-->)",
    re.S,
)

_HEADLINE = re.compile(r"(<!-- headline -->\n).*?(<!-- end headline -->)", re.S)


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


def paste(readme: str, pages: Mapping[str, str]) -> str:
    """``readme`` with every block replaced from ``pages`` (by the record's name); a block whose result is not
    recorded says so."""

    def replaced(match: "re.Match[str]") -> str:
        name = match["name"]
        body = (
            extract(pages[name], match["heading"], f"{name}.md")
            if name in pages
            else f"Not recorded yet: `python -m benchmarks.{name}` does it.\n"
        )
        return f"{match[1]}{body}{match[4]}"

    return _BLOCK.sub(replaced, readme)


def expected(root: Path) -> Dict[Path, str]:
    """What README.md, the pages of the recorded results and their index should say, by path."""
    results = root / "benchmarks" / "results"
    found = {path.stem: read_json(path) for path in sorted(results.glob("*.json"))}
    pages = {name: records.render(facts) for name, facts in found.items()}
    readme = root / "README.md"
    text = _HEADLINE.sub(lambda match: match[1] + headline(found) + match[2], readme.read_text("utf-8"))
    return {
        **{results / f"{name}.md": page for name, page in pages.items()},
        results / "README.md": records.render_index(results),
        readme: paste(text, pages),
    }


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; name what is not up to date")
    args = parser.parse_args(argv)
    texts = expected(common.ROOT)
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(common.ROOT)}: {'not up to date' if args.check else 'written'}")
        if not args.check:
            with atomic_write(path) as stream:
                stream.write(texts[path])
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(run_command(main))
