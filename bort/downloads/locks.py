"""A lock between processes that want the same file."""
from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Iterator

from filelock import FileLock, Timeout

from bort.errors import BortError
from bort.files import PathLike

logger = logging.getLogger("bort.downloads")


@contextlib.contextmanager
def lock(path: PathLike, timeout: float = 3600.0) -> Iterator[None]:
    """Hold a file lock: whoever comes second waits. It dies with its process, so a leftover file does not
    block.

    Raises:
        BortError: another process held it for ``timeout`` seconds, or the file cannot be made.
    """
    held = FileLock(str(Path(path)), timeout=0)
    try:
        try:
            held.acquire()
        except Timeout:
            logger.warning("%s: waiting for another process that holds it", path)
            held.acquire(timeout=timeout)
    except Timeout as error:
        raise BortError(f"{path}: another process has held it for {timeout:.0f} s") from error
    except OSError as error:
        raise BortError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        yield
    finally:
        held.release()
