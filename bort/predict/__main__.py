"""``python -m bort.predict``."""
import sys

from bort.errors import run_command
from bort.predict.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
