"""Files that are never half-written, and are opened only where they are regular ones: the project's only
readers and writers of files. JSON is in :mod:`bort.json_files`."""
from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import IO, BinaryIO, Iterator, Union

import numpy as np
from filelock import FileLock, Timeout

from bort.errors import BortError

PathLike = Union[str, "os.PathLike[str]"]

logger = logging.getLogger("bort.files")

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""First bytes of the small text that Git LFS leaves in place of a file that it has not fetched."""


def open_regular(path: PathLike) -> BinaryIO:
    """Open a regular file (or a link to one) for reading bytes: the one way in which this project opens files
    that somebody else made.

    Raises:
        BortError: it is missing, cannot be read, is a folder, a FIFO or a device (which might never end), or
            a pointer of Git LFS stands in its place.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for somebody to write to it.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BortError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = "a folder, not a file" if stat.S_ISDIR(mode) else "it is not a regular file"
        raise BortError(f"{path}: cannot be read ({kind})")
    stream = os.fdopen(handle, "rb")
    if stream.peek(len(LFS_POINTER)).startswith(LFS_POINTER):
        stream.close()
        raise BortError(f"{path}: only a pointer of Git LFS to the file; fetch the file itself (git lfs pull "
                        "in the repository it came from)")
    return stream


def read_bytes(path: PathLike, max_bytes: int = 0) -> bytes:
    """The content of a regular file.

    Args:
        max_bytes: a larger file is refused before it is read; 0 takes any.

    Raises:
        BortError: it is larger, or as :func:`open_regular`.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if max_bytes and size > max_bytes:
            raise BortError(f"{path}: {size} bytes are more than a file of this kind may have ({max_bytes})")
        try:
            return stream.read()
        except OSError as error:
            raise BortError(f"{path}: cannot be read ({error.strerror})") from error


def read_npy(path: PathLike) -> np.ndarray:
    """The array of a ``.npy`` file, mapped read-only: memory stays small whatever its header claims.

    Raises:
        BortError: it is damaged, holds Python objects, or as :func:`open_regular`.
    """
    open_regular(path).close()
    try:
        # NumPy compares shape and size before it maps the file; headers are Python literals, and bad ones
        # fail in as many ways as Python's parser.
        array = np.load(os.fspath(path), mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise BortError(f"{path}: not a .npy file, or a damaged one ({' '.join(str(error).split())[:200]})"
                        ) from error
    if not isinstance(array, np.ndarray):  # an archive of several (.npz)
        array.close()
        raise BortError(f"{path}: an archive of arrays (.npz), not a .npy file")
    return array


@contextlib.contextmanager
def atomic_write(path: PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a file that replaces ``path`` only when the block ends without an error.

    The text encoding is UTF-8 with LF line ends. The data is flushed to the disk before the replacement, so a
    crash leaves either the old content or the new one. An error inside the block removes the temporary file.

    Raises:
        BortError: the folder cannot be written to, the disk is full, or ``path`` is a device or a FIFO.
    """
    require_replaceable(path)
    path = Path(path)
    binary = "b" in mode
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=str(path.parent), prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise BortError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        with os.fdopen(handle, mode, encoding=None if binary else "utf-8",
                       newline=None if binary else "\n") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private; a result is meant to be read by whoever may read the folder.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except OSError as error:
        _remove_quietly(name)
        raise BortError(f"{path}: writing failed ({error.strerror}); what was there before is untouched"
                        ) from error
    except BaseException:
        _remove_quietly(name)
        raise


def require_replaceable(path: PathLike) -> None:
    """Refuse to put a file in the place of something else: who may write to /dev would lose a device.

    Raises:
        BortError: ``path`` is a device, a FIFO or a socket, or a link to one, or a link like /dev/stdout.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # not there, or cannot be: the writer will say so
        return
    regular = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    if not regular or (os.path.islink(path) and os.path.dirname(os.path.abspath(path)) == "/dev"):
        raise BortError(f"{path}: is not a regular file, and writing would put one in its place; name a file")


def _remove_quietly(name: PathLike) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name)


def is_leftover(name: str) -> bool:
    """Whether a file of this name is what :func:`atomic_write`, or the writer of a model folder, leaves
    behind when it is killed."""
    return re.fullmatch(r"\..+\.[a-z0-9_]{8}\.tmp|\.model\.params\.new", name) is not None


def remove_leftovers(folder: PathLike) -> None:
    """Remove what killed writers left in ``folder`` and below; only for who holds the folder's lock."""
    for place, _, names in os.walk(folder):
        for name in filter(is_leftover, names):
            _remove_quietly(os.path.join(place, name))


def file_lock(path: PathLike, remedy: str = "") -> FileLock:
    """A lock that is not taken yet; its folder is made if absent. Whoever has it loses it by ending, however.

    Raises:
        BortError: the folder cannot be made; ``remedy`` says what to do.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BortError(f"{path.parent}: cannot be made or written to ({error.strerror})"
                        f"{remedy and '; '}{remedy}") from error
    return FileLock(str(path))


def lock_file(path: PathLike, busy: str, remedy: str = "", wait: float = 0.0) -> FileLock:
    """Take a lock, which is held until ``release()`` or, however it ends, the end of this process.

    Args:
        path: the lock's file; made, with its folder, if absent.
        busy: for the message when another process has it: what that one is doing, and what to do.
        remedy: for the message when the file cannot be made.
        wait: seconds to wait for another process, with a warning that says so.

    Raises:
        BortError: another process has the lock (after ``wait``), or the file cannot be made.
    """
    path = Path(path)
    lock = file_lock(path, remedy)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise
            logger.warning("%s: waiting for another process that holds it", path)
            lock.acquire(timeout=wait)
    except Timeout as error:
        raise BortError(f"{path.parent}: {busy}") from error
    except OSError as error:
        raise BortError(f"{path.parent}: cannot be made or written to ({error.strerror})"
                        f"{remedy and '; '}{remedy}") from error
    return lock


def sha256_file(path: PathLike) -> str:
    """SHA-256 of a file's content, in hexadecimal; streams, so the file may be larger than memory."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise BortError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()
