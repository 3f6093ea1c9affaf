"""What a benchmark leaves: a JSON record for programs, and the Markdown page that is rendered from it.

``record(name, rows, settings, notes)`` writes ``benchmarks/results/NAME.json`` and ``NAME.md``. Both carry
the command, commit, date, machine, versions and load, so that a figure can be traced and measured again. No
path of the recording machine stays in them (:func:`portable`).
"""

from __future__ import annotations

import datetime
import re
import shlex
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import numpy as np

from benchmarks.harness.common import (
    RESULTS,
    ROOT,
    commit,
    cpu_info,
    cpu_kind,
    load_average,
    machine,
    versions,
)
from bort.files import atomic_write
from bort.json_files import read_json, write_json

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]
PER_CPU = ("latency", "latency-paper", "growth", "streaming", "optimizations", "int8_accuracy", "throughput",
           "precision")
"""Records that every kind of CPU has a page of its own for."""
_PATH = re.compile(r"(?<![\w./~…-])(?:~|\.\.)?(?:/[\w.+-]+)+/?")


def portable(text: str) -> str:
    """``text`` with every absolute path (or one that leads out of the checkout) cut to what another reader
    can follow: from this checkout, from its ``runs`` folder, or the last name (``…/glue``)."""

    def cut(match: "re.Match[str]") -> str:
        path = Path(match[0])
        if ROOT in path.parents:
            return str(path.relative_to(ROOT))
        if "runs" in path.parts:
            return str(Path(*path.parts[path.parts.index("runs") :]))
        return f"…/{path.name}"

    return _PATH.sub(cut, text)


def command(argv: Optional[Sequence[str]] = None) -> str:
    """The command line that repeats this run; ``argv`` are the arguments given to ``main`` (None: the
    process's)."""
    script = Path(sys.argv[0]).resolve()
    shown = ["-m", f"benchmarks.{script.stem}"] if script.parent == ROOT / "benchmarks" else [script.name]
    return shlex.join(["python", *shown, *(sys.argv[1:] if argv is None else argv)])


def show(value: Any) -> str:
    """A table cell: three significant digits for small numbers, a dash for what is not there."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def markdown_table(rows: Sequence[Row], columns: Optional[Sequence[str]] = None) -> str:
    """Rows as a Markdown table; columns default to the keys in order of appearance."""
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[show(row.get(column)).replace("|", "\\|") for column in columns] for row in rows]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells])


def file_name(name: str, folder: Optional[Path] = None) -> str:
    """``name``, or ``name-KIND`` of this CPU for a record of speed among the recorded results."""
    ours = folder is None or Path(folder).resolve() == RESULTS
    return f"{name}-{cpu_kind(cpu_info()['flags'])}" if ours and name in PER_CPU else name


def record(
    name: str,
    rows: Union[Sequence[Row], Tables],
    settings: Optional[Mapping[str, Any]] = None,
    notes: Sequence[str] = (),
    title: str = "",
    argv: Optional[Sequence[str]] = None,
    folder: Optional[Path] = None,
    started_load: Any = None,
    images: Sequence[str] = (),
) -> Path:
    """Write ``results/NAME.json`` and ``results/NAME.md``; each appears whole or not at all.

    Args:
        name: file name without its ending; :data:`PER_CPU` get the kind of CPU behind it.
        rows: rows of one table, or several tables by heading. Values must be JSON (NaN and infinities become
            null).
        settings: what the run was asked to do.
        notes: sentences that qualify the figures: what was skipped, what surprised.
        argv: the arguments given to ``main``, for the recorded command.
        folder: instead of ``benchmarks/results`` (tests).
        started_load: :func:`load_average` at the start; the present one is recorded as the end's.
        images: file names in the same folder to show in the Markdown file.

    Returns:
        The path of the Markdown file.
    """
    name, folder = file_name(name, folder), Path(folder or RESULTS)
    facts = {
        "name": name,
        "title": title or name,
        "command": command(argv),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {**machine(), "load": load_average(), "load_at_start": started_load},
        "versions": versions(),
        "settings": dict(settings or {}),
        "notes": list(notes),
        "images": list(images),
        "rows": rows,
    }
    write_json(folder / f"{name}.json", _plain_json(facts))
    return render_page(folder / f"{name}.json")


def render_page(path: Path) -> Path:
    """Write the Markdown page of the record at ``path`` beside it; the page's path."""
    page = path.with_suffix(".md")
    with atomic_write(page) as stream:
        stream.write(render(read_json(path)))
    return page


def machine_line(facts: Mapping[str, Any]) -> str:
    """Cores, processor, instructions and memory of a record's machine."""
    here = facts["machine"]
    instructions = " ".join(here["instructions"]) or "no vector extensions"
    cores = "1 core" if here["cores"] == 1 else f"{here['cores']} cores"
    return f"{cores} of {here['cpu']} ({instructions}), {show(here['memory_gib'])} GiB"


def run_line(facts: Mapping[str, Any]) -> str:
    """When, at which commit and where a record was made, and how busy the machine was."""
    here = facts["machine"]
    changes = "+changes" if "+" in facts["commit"] else ""
    threads = " ".join(f"{key}={value}" for key, value in here["threads"].items())
    return (
        f"{facts['date']}, commit {facts['commit'][:12]}{changes}, {machine_line(facts)}, "
        f"load {_load(here['load_at_start'])} → {_load(here['load'])}, {threads}"
    ).rstrip(", ")


def render(facts: Mapping[str, Any]) -> str:
    """The Markdown page of a record."""
    tables = facts["rows"] if isinstance(facts["rows"], Mapping) else {"": facts["rows"]}
    packages = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    lines = [f"# {facts['title']}", "", f"`{facts['command']}`", "", run_line(facts), "", packages]
    if facts["settings"]:
        shown = ", ".join(f"{key} {_plain(value)}" for key, value in facts["settings"].items())
        lines += ["", f"Settings: {shown}."]
    for heading, table in tables.items():
        lines += ["", *([f"## {heading}", ""] if heading else []), markdown_table(table)]
    for image in facts["images"]:
        lines += ["", f"![{facts['title']}]({image})"]
    if facts["notes"]:
        lines += ["", *(f"- {note}" for note in facts["notes"])]
    return "\n".join(lines) + "\n"


def render_index(folder: Path) -> str:
    """The index page of a folder of records: every table, its command, machine and date."""
    rows: List[Dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        facts = read_json(path)
        rows.append(
            {
                "tables": f"[{facts['title']}]({path.stem}.md)",
                "command": f"`{facts['command']}`",
                "machine": machine_line(facts),
                "date": facts["date"],
            }
        )
    return (
        "# Recorded results\n\nEvery page here is rendered from the JSON record of the same name. This "
        "index is written by `python -m benchmarks.readme`.\n\n" + markdown_table(rows) + "\n"
    )


def _load(value: Any) -> str:
    return f"{value[0]:.2f}" if value else "unknown"


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _plain_json(value: Any) -> Any:
    """JSON values only: numbers of NumPy as Python's, no NaN, no path of this machine."""
    if isinstance(value, Mapping):
        return {portable(str(key)): _plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return portable(str(value)) if isinstance(value, (str, Path)) else value
