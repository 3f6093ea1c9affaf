"""The one exception a user is expected to mend, and how commands report it."""
from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Callable, List, Optional

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class BortError(ValueError):
    """Something the user can put right: the message names the file, the line and the remedy where there is
    one."""


def run_command(main: Callable[[Optional[List[str]]], Optional[int]],
                argv: Optional[List[str]] = None) -> int:
    """Call ``main(argv)`` and turn its outcome into an exit code.

    0 is success, 2 bad input (:class:`BortError`, printed as one ``error: ...`` line without a traceback) or
    an output that cannot be written, 130 an interrupt from the keyboard, 141 a closed output pipe. Other
    exceptions are bugs and keep their traceback.
    """
    try:
        code = int(main(argv) or 0)
        _flush()
        return code
    except BortError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away (`... | head`)
        _give_up_stdout()
        return 141
    except OSError as error:
        # Files are written under their names; what has none is standard output, on a disk that is full.
        if error.filename is not None or error.errno not in _UNWRITABLE:
            raise
        _give_up_stdout()
        return _failed(f"standard output cannot be written ({error.strerror})")


def _failed(message: str) -> int:
    with contextlib.suppress(OSError):
        _flush()
    print(f"error: {message}", file=sys.stderr)
    return 2


def _flush() -> None:
    if sys.stdout is not None:  # it is None where the command was started with >&-
        sys.stdout.flush()


def _give_up_stdout() -> None:
    """Python would complain again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
