"""The one exception a user is expected to mend, and how commands report it."""
from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import Callable, Iterator, List, Optional, Type, Union

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class BortError(ValueError):
    """Something the user can put right: the message names the file, the line
    and the remedy where there is one."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or the signal ``number``; the message says what was saved and how to go on."""

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


RESUME = "interrupted; the same command with --resume goes on"


def run_command(main: Callable[[Optional[List[str]]], Optional[int]], argv: Optional[List[str]] = None,
                interrupted: str = "interrupted") -> int:
    """Call ``main(argv)`` and turn its outcome into an exit code.

    0 is success, 2 bad input (:class:`BortError`, printed as one ``error: ...`` line without a traceback) or
    an output that cannot be written, 130 an interrupt from the keyboard, 143 SIGTERM, 141 a closed output
    pipe. Other exceptions are bugs and keep their traceback.

    Args:
        interrupted: the line for an interrupt that says nothing itself, such as :data:`RESUME`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # else None, or replaced by a test or notebook
        with contextlib.suppress(OSError, ValueError):
            # What the terminal lacks, and lone surrogates out of a user's JSON, are printed as escapes.
            sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _sigterm_interrupts(), _notices_on_a_line():
            code = int(main(argv) or 0)
        if sys.stdout is not None:  # it is None where the command was started with >&-
            sys.stdout.flush()
        return code
    except BortError as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt as error:
        _say(str(error) or interrupted)
        return 128 + getattr(error, "number", signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output went away (`... | head`).
        _abandon_stdout()
        return 141
    except OSError as error:
        # Files are written under their names; what has none is standard output, on a disk that is full.
        if error.filename is not None or error.errno not in _UNWRITABLE:
            raise
        _abandon_stdout()
        _say(f"error: standard output cannot be written ({error.strerror})")
        return 2


def _say(line: str) -> None:
    """A line of its own on standard error, below whatever progress bars are still drawn there."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()
    with contextlib.suppress(OSError, AttributeError):  # None: there is no such stream
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        print(" ".join(line.splitlines()), file=sys.stderr)


class _Notices(logging.Handler):
    """Prints every record as one line on standard error, below the bars: ``WARNING: ...``."""

    def emit(self, record: logging.LogRecord) -> None:
        _clear_bars()
        with contextlib.suppress(OSError, AttributeError):
            print(_notice(record.levelname, self.format(record)), file=sys.stderr)


def _notice(level: str, text: str) -> str:
    return f"{level}: {' '.join(text.splitlines())}"


def _clear_bars() -> None:
    """Make room for a line where a progress bar stands; it is drawn again below the line."""
    if "tqdm" in sys.modules and sys.stderr is not None and sys.stderr.isatty():
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.clear()


@contextlib.contextmanager
def _notices_on_a_line() -> Iterator[None]:
    """Print what is logged, and this project's own Python warnings, as one line each: without the line of
    source code and the path of a module that Python adds to warnings. Where somebody else handles logs
    already, they are left to them."""
    handlers = [] if logging.root.handlers else [_Notices()]
    default = warnings.formatwarning
    package = str(Path(__file__).parent)

    def form(message: Union[Warning, str], category: Type[Warning], filename: str, lineno: int,
             line: Optional[str] = None) -> str:
        if category is UserWarning and filename.startswith(package):
            _clear_bars()
            return _notice("WARNING", str(message)) + "\n"
        return default(message, category, filename, lineno, line)

    warnings.formatwarning = form
    for handler in handlers:
        logging.root.addHandler(handler)
    try:
        yield
    finally:
        warnings.formatwarning = default
        for handler in handlers:
            logging.root.removeHandler(handler)


def _abandon_stdout() -> None:
    """Drop what could not be printed; Python would complain again when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that it cleans up and says how to go on."""
    if threading.current_thread() is not threading.main_thread() \
            or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def interrupt(number: int, _: Optional[FrameType]) -> None:
        if os.getpid() != owner:  # a forked worker, which its pool ends in this way
            os._exit(128 + number)
        raise Interrupted(number=number)

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
