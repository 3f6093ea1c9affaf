"""``python -m bort.tasks``: list the tasks, look at their files, download them, check submission files."""
from __future__ import annotations

import argparse
import sys
from typing import List, Optional

from bort.errors import BortError, run_command
from bort.tasks.describe import describe, table
from bort.tasks.download import download
from bort.tasks.registry import ENCODINGS, TASKS, get_task
from bort.tasks.validation import validate_submission

EXAMPLES = """examples:
  python -m bort.tasks list
  python -m bort.tasks download --task CoLA --data-dir data
  python -m bort.tasks download --task RACE --data-dir data --from-file ~/Downloads/RACE.tar.gz
  python -m bort.tasks describe --task CoLA --data-dir data/CoLA
  python -m bort.tasks describe --task RACE-H --data-dir data/RACE --tokenizer vocabulary/
  python -m bort.tasks validate predictions/CoLA.tsv --task CoLA --data-dir data/CoLA

GLUE's RTE is the task RTE, SuperGLUE's is SuperGLUE-RTE. RACE's --data-dir is its root folder."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bort.tasks", description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="all tasks with their metrics and submission files")

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--task", required=True, metavar="NAME",
                        help="one of the names that `list` shows, in any case")
    shared.add_argument("--encoding", default="paper", choices=ENCODINGS,
                        help="input format: the paper's, or the original release's where it differed")

    look = commands.add_parser("describe", parents=[shared], help="a table of what a task's files hold")
    look.add_argument("--data-dir", required=True, metavar="DIR",
                      help="the task's folder, or the one above it")
    look.add_argument("--split", action="append", metavar="SPLIT", help="only this one (may be repeated)")
    look.add_argument("--tokenizer", metavar="DIR", help="a vocabulary's folder: adds lengths in tokens")
    look.add_argument("--max-length", type=int, default=512, metavar="N",
                      help="count examples longer than this (512)")

    check = commands.add_parser("validate", parents=[shared], help="check a submission file")
    check.add_argument("file", metavar="FILE")
    check.add_argument("--data-dir", metavar="DIR", help="compare with the test set there, idx by idx")

    get = commands.add_parser("download", parents=[shared], help="fetch a task's official files")
    get.add_argument("--data-dir", required=True, metavar="DIR",
                     help="where its folder is made (or the folder itself, if named after the task)")
    get.add_argument("--mirror", action="append", default=[], metavar="URL",
                     help="look for the file below this address first (may be repeated; also BORT_MIRRORS, "
                     "by commas)")
    get.add_argument("--from-file", nargs="+", default=[], metavar="FILE",
                     help="use the published file(s), fetched by other means")
    get.add_argument("--sha256", metavar="HEX", help="expect this checksum instead of the known one")
    get.add_argument("--force", action="store_true", help="download again what is there already")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    arguments = build_parser().parse_args(argv)
    if arguments.command == "list":
        print(listing())
        return 0
    task = get_task(arguments.task, arguments.encoding)
    if arguments.command == "describe":
        if arguments.max_length < 1:
            raise BortError(f"--max-length {arguments.max_length}: at least 1 is needed")
        tokenizer = None
        if arguments.tokenizer:
            from bort.text.tokenizers.loading import load_tokenizer
            tokenizer = load_tokenizer(arguments.tokenizer)
        print(describe(task, arguments.data_dir, tokenizer, arguments.max_length, arguments.split))
    elif arguments.command == "validate":
        count = validate_submission(arguments.file, task, arguments.data_dir)
        against = f"complete for {arguments.data_dir}" if arguments.data_dir else "well formed"
        print(f"{arguments.file}: {count} predictions for {task.name}, {against}")
    else:
        folder = download(task, arguments.data_dir, mirrors=arguments.mirror, from_files=arguments.from_file,
                          sha256=arguments.sha256, force=arguments.force)
        print(f"{folder}: {task.name} is there")
    return 0


def listing() -> str:
    rows = []
    for name in TASKS:
        task = get_task(name)
        kind = "regression" if task.labels is None else f"{len(task.labels)} classes"
        rows.append([name, task.suite, kind, ", ".join(task.metrics), task.submission, task.model_task or ""])
    return table(["task", "suite", "kind", "metrics (the first selects)", "submission", "scored by"], rows)


if __name__ == "__main__":
    sys.exit(run_command(main))
