"""``python -m bort.export``."""
import sys

from bort.errors import run_command
from bort.export.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
