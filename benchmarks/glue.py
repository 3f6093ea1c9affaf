"""GLUE (Table 4) from a model folder: every task whose data is there, the paper's figures beside ours.

# The whole table, by Agora with the paper's convergent hyper-parameters; a teacher for each task in
# runs/teachers:
python -m benchmarks.glue --model bort --data glue/ --teachers runs/teachers

# Plain fine-tuning with the same hyper-parameters; a few tasks; other settings:
python -m benchmarks.glue --model bort --data glue/ --tasks RTE
python -m benchmarks.glue --model bort --data glue/ --tasks RTE -- --epochs 5 --lr 3e-5 --weight-decay
0.01

# What it would cost on this machine, and elsewhere:
python -m benchmarks.glue --model bort --data glue/ --estimate
"""

from __future__ import annotations

import sys
from typing import List, Optional

from benchmarks.harness.task_tables import Table, run_table
from bort.errors import run_command
from bort.paper import TABLE_4

TABLE = Table("glue", "Table 4: GLUE", TABLE_4, "glue/")


def main(argv: Optional[List[str]] = None) -> int:
    return run_table(TABLE, __doc__, argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
