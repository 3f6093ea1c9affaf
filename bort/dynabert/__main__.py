"""``python -m bort.dynabert extract|table``: what to do with a finished ``--algorithm dynabert`` run."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

from bort.dynabert.adaptive import extract, extract_network, open_supernet
from bort.dynabert.grid import Multipliers, grid
from bort.dynabert.options import shares
from bort.dynabert.report import measure, row_of, write_table
from bort.engines.base import KINDS, EngineOptions
from bort.errors import BortError, run_command
from bort.json_files import write_json

EXAMPLES = """examples:
  # the run: every width and depth of a fine-tuned network
  python run_finetune.py --algorithm dynabert --teacher runs/teacher/model --task SST-2 \\
      --data-dir glue/SST-2 --output runs/sst2
  # what its parts score and cost, also at widths between those that were trained
  python -m bort.dynabert table runs/sst2 --data-dir glue/SST-2
  python -m bort.dynabert table runs/sst2 --data-dir glue/SST-2 --widths 1,0.6,0.4 --output runs/sst2/between
  # one part as a model folder, which every other command takes
  python -m bort.dynabert extract runs/sst2 half --width 0.5 --depth 0.75
  python -m bort.predict half --text "a film to love"
"""


def arguments(argv: Optional[List[str]]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bort.dynabert", description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    raw: Dict[str, Any] = {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
    one = commands.add_parser("extract", help="write one sub-network as a model folder", **raw)
    one.add_argument("run", help="run folder of run_finetune.py --algorithm dynabert, or its model")
    one.add_argument("output", help="model folder to write")
    one.add_argument("--width", type=float, default=1.0, help="share of heads and neurons (default 1)")
    one.add_argument("--depth", type=float, default=1.0, help="share of layers (default 1)")
    table = commands.add_parser("table", help="score, parameters, FLOPs and latency of every sub-network",
                                **raw)
    table.add_argument("run", help="run folder of run_finetune.py --algorithm dynabert, or its model")
    table.add_argument("--task", help="default: the one that the run was trained for")
    table.add_argument("--data-dir", required=True, help="the task's official files, or the folder above")
    table.add_argument("--output", help="folder of table.md, table.csv, pareto.png, results.json "
                                        "(default: RUN/table)")
    table.add_argument("--widths", help="shares with commas (default: those trained)")
    table.add_argument("--depths", help="shares with commas (default: those trained)")
    table.add_argument("--length", type=int, help="tokens of the sequence that is timed (default 128, or as "
                                                   "many as the run took)")
    table.add_argument("--trials", type=int, default=20, help="timed passes of each network (0: none)")
    table.add_argument("--engine", choices=KINDS, default="auto", help="that is timed (default auto)")
    table.add_argument("--encoding", choices=("paper", "released"), default="paper",
                       help="input format of the task (default paper)")
    table.add_argument("--cache-dir", help="keep token ids here between runs")
    return parser.parse_args(argv)


def extract_command(args: argparse.Namespace) -> int:
    """``extract``."""
    from bort.finetuning.sources import own_tokenizer

    supernet, chosen = open_supernet(args.run), Multipliers(args.width, args.depth)
    if Path(args.output).exists() and any(Path(args.output).iterdir()):
        raise BortError(f"{args.output}: holds files already; choose another folder")
    folder = extract(args.run, args.output, chosen, own_tokenizer(supernet.folder))
    small = chosen.architecture(supernet.full)
    trained = args.width in supernet.widths and args.depth in supernet.depths
    print(f"{folder}: {small.display}, {small.head_size} units a head, "
          f"{small.parameters(supernet.stored.config['vocab_size'])['body']:,} parameters"
          + ("" if trained else "; this width and depth were not trained together"))
    return 0


def table_command(args: argparse.Namespace) -> int:
    """``table``."""
    from bort.engines.engine import open_engine
    from bort.finetuning.sources import choose_tokenizer
    from bort.finetuning.task_data import ReadOptions, read_task

    supernet = open_supernet(args.run)
    full, vocab_size = supernet.full, supernet.stored.config["vocab_size"]
    max_length = supernet.max_length
    tokenizer = choose_tokenizer(supernet.folder, None)
    chosen = grid(shares(args.widths, "--widths") if args.widths else supernet.widths,
                  shares(args.depths, "--depths") if args.depths else supernet.depths, full)
    args.length = min(128, max_length) if args.length is None else args.length
    if not 1 <= args.length <= max_length:
        raise BortError(f"--length {args.length}: the model takes from 1 to {max_length} tokens")
    if args.trials < 0:
        raise BortError(f"--trials must not be negative, not {args.trials}")
    task = args.task or supernet.task
    if task is None:
        raise BortError(f"{supernet.folder}: does not say which task it was trained for; name it with --task")
    data = read_task(task, args.data_dir, tokenizer, max_length, ReadOptions(
        encoding=args.encoding, cache_dir=args.cache_dir, train=False))
    dev = data.development
    networks = [extract_network(supernet, one) for one in chosen]
    rows = [row_of(one, full, dev.metrics(network, tokenizer.pad_id), vocab_size, max_length,
                   args.length) for one, network in zip(chosen, networks)]
    if args.trials:
        engines = [open_engine(network, options=EngineOptions(args.engine)) for network in networks]
        for row, seconds in zip(rows, measure(engines, vocab_size, args.length, args.trials)):
            row["seconds"] = seconds
    output = Path(args.output) if args.output else supernet.folder.parent / "table"
    output.mkdir(parents=True, exist_ok=True)
    metric = next(iter(data.task.metrics))
    text = write_table(output, rows, metric, f"{data.task.name}: sub-networks of {full.display}",
                       [f"Dev set of {len(dev.tokens)} examples; FLOPs and latency at 1 x {args.length} "
                        f"tokens" + (f", medians of {args.trials} passes of {engines[0].report}."
                                     if args.trials else ".")])
    write_json(output / "results.json", {"task": data.task.name, "length": args.length, "trials": args.trials,
                                         "engine": engines[0].report.to_dict() if args.trials else None,
                                         "model": supernet.stored.config.get("sha256"), "subnetworks": rows})
    print(text)
    print(f"\n{output}/table.md, table.csv, pareto.png, results.json")
    return 0


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command line."""
    args = arguments(argv)
    return {"extract": extract_command, "table": table_command}[args.command](args)


if __name__ == "__main__":
    sys.exit(run_command(main))
