"""RACE (Table 6) from a model folder: every task whose data is there, the paper's figures beside ours.

# The whole table, by Agora with the paper's convergent hyper-parameters; a teacher for each task in
# runs/teachers:
python -m benchmarks.race --model bort --data race/ --teachers runs/teachers

# Plain fine-tuning with the same hyper-parameters; a few tasks; other settings:
python -m benchmarks.race --model bort --data race/ --tasks RACE-M
python -m benchmarks.race --model bort --data race/ --tasks RACE-M -- --epochs 5 --lr 3e-5 --weight-decay
0.01

# What it would cost on this machine, and elsewhere:
python -m benchmarks.race --model bort --data race/ --estimate
"""

from __future__ import annotations

import sys
from typing import List, Optional

from benchmarks.harness.task_tables import Table, run_table
from bort.errors import run_command
from bort.paper import TABLE_6

TABLE = Table("race", "Table 6: RACE", TABLE_6, "race/")


def main(argv: Optional[List[str]] = None) -> int:
    return run_table(TABLE, __doc__, argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
