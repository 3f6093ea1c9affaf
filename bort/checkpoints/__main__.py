"""``python -m bort.checkpoints``."""
import sys

from bort.checkpoints.inspection import main
from bort.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
