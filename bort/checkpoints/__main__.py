"""``python -m bort.checkpoints inspect|verify PATH``: what a model is, and whether it is whole."""
from __future__ import annotations

import argparse
import itertools
import json
import sys
from typing import Any, List, Mapping, Optional

from bort.checkpoints.inspection import inspect, verify
from bort.errors import BortError, run_command
from bort.huggingface.importing import inspect_folder, is_foreign
from bort.text.compressed import file_lines

EXAMPLES = """examples:
  python -m bort.checkpoints inspect runs/cola/model
  python -m bort.checkpoints inspect bort.params --architecture bort --json
  python -m bort.checkpoints verify bort.params --architecture bort --tokenizer ~/.mxnet/models --released
  python -m bort.checkpoints verify runs/pretrain/model --text german_sentences.txt
"""
MAX_SENTENCES = 1000


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bort.checkpoints", epilog=EXAMPLES,
                                     description="What a model is, and whether it is whole.",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="inspect|verify")
    for name, summary in (("inspect", "what a model is"), ("verify", "whether it is whole and sane")):
        command = commands.add_parser(name, help=summary)
        command.add_argument("path", metavar="PATH", help="a model folder or a .params file")
        command.add_argument("--architecture", metavar="D,A,H,I", help="of a bare .params file")
        command.add_argument("--heads", type=int, metavar="A", help="of a bare .params file, instead")
        command.add_argument("--tokenizer", metavar="DIR", help="take the tokenizer from here")
        command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--released", action="store_true",
                         help="fail unless these are the published weights of Bort")
    command.add_argument("--text", metavar="FILE", help="sentences for the fill-mask check, one per line")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; ``verify`` exits with 1 when a check failed."""
    args = _parser().parse_args(argv)
    if args.command == "inspect":
        found = inspect_folder(args.path) if is_foreign(args.path) else inspect(
            args.path, args.architecture, args.heads, args.tokenizer)
        print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else "\n".join(_render(found)))
        return 0
    checks = verify(args.path, args.architecture, args.heads, args.tokenizer, args.released,
                    _sentences(args.text))
    if args.json:
        print(json.dumps([check._asdict() for check in checks], indent=2, ensure_ascii=False))
    else:
        for check in checks:
            print(f"{check.outcome.upper():<8} {check.name}: {check.detail}")
    return int(any(check.outcome == "failed" for check in checks))


def _sentences(path: Optional[str]) -> Optional[List[str]]:
    """The first lines of a text that are not blank."""
    if path is None:
        return None
    lines = list(itertools.islice(file_lines(path), MAX_SENTENCES))
    wrong = next((line for line in lines if line.problem), None)
    if wrong is not None:
        raise BortError(f"{path}, line {wrong.number}: {wrong.problem}")
    return [line.text.strip() for line in lines if line.text.strip()]


def _render(value: Mapping[str, Any], indent: str = "") -> List[str]:
    """The members of nested objects, a line each."""
    lines = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            lines += [f"{indent}{key}:", *_render(item, indent + "  ")]
        else:
            lines.append(f"{indent}{key:<{20 - len(indent)}} {_words(item)}")
    return lines


def _words(item: Any) -> str:
    if item is None or item == {}:
        return "none"
    if isinstance(item, int) and not isinstance(item, bool):
        return f"{item:,}"
    return ", ".join(map(str, item)) if isinstance(item, list) else str(item)


if __name__ == "__main__":
    sys.exit(run_command(main))
