"""The one exception a user is expected to mend, and how commands report it."""
from __future__ import annotations

import os
import sys
from typing import Callable, List, Optional


class BortError(ValueError):
    """Something the user can put right: the message names the file, the line and the remedy where there is
    one."""


def run_command(main: Callable[[Optional[List[str]]], Optional[int]],
                argv: Optional[List[str]] = None) -> int:
    """Call ``main(argv)`` and turn its outcome into an exit code.

    0 is success, 2 bad input (:class:`BortError`, printed as one ``error: ...`` line without a traceback),
    130 an interrupt from the keyboard, 141 a closed output pipe. Other exceptions are bugs and keep their
    traceback.
    """
    try:
        return int(main(argv) or 0)
    except BortError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`... | head`); Python would complain again when it flushes at
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
