"""A lock between processes that want the same file."""
from __future__ import annotations

import contextlib
from typing import Iterator

from bort.files import PathLike, lock_file


@contextlib.contextmanager
def lock(path: PathLike, timeout: float = 3600.0) -> Iterator[None]:
    """Hold a file lock: whoever comes second waits. It dies with its process, so a leftover file
    does not block.

    Raises:
        BortError: another process held it for ``timeout`` seconds, or the file cannot be made.
    """
    held = lock_file(path, f"another process has held {path} for {timeout:.0f} s", "choose another folder",
                     wait=timeout)
    try:
        yield
    finally:
        held.release()
