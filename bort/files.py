"""Files that are never half-written, and JSON that is never trusted: the project's only readers and writers
of both."""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import IO, Any, BinaryIO, Dict, Iterator, List, Mapping, Union

import numpy as np

from bort.errors import BortError

PathLike = Union[str, "os.PathLike[str]"]

MAX_JSON_BYTES = 64 << 20
"""A settings or index file larger than this is refused before it is parsed."""


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
        BortError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    binary = "b" in mode
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=str(path.parent), prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise BortError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        with os.fdopen(handle, mode, **({} if binary else {"encoding": "utf-8", "newline": "\n"})) as stream:
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


def _remove_quietly(name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name)


def write_json(path: PathLike, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically.

    Raises:
        BortError: a number in it is NaN or infinite, which JSON does not have, or what :func:`atomic_write`
        raises.
    """
    text = _dump(value, path, indent=2)
    with atomic_write(path) as stream:
        stream.write(text + "\n")


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _dump(value: Any, path: PathLike, **settings: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, **settings)
        if _LONE_SURROGATE.search(text):  # has no UTF-8; an escape in JSON is what it came from
            text = json.dumps(value, allow_nan=False, **settings)
        return text
    except (ValueError, RecursionError) as error:
        raise BortError(f"{path}: not written, as a number in it is not finite or it contains itself "
                        f"({error})") from error


def parse_json(text: Union[str, bytes], where: str) -> Any:
    """``json.loads`` whose every failure, deep nesting and undecodable bytes included, is a BortError naming
    ``where``."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BortError(f"{where}: not valid JSON ({error.msg} at line {error.lineno}, column {error.colno})"
                        ) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise BortError(f"{where}: not valid JSON ({type(error).__name__}: {error})") from error


def read_json(path: PathLike, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of at most ``max_bytes`` bytes.

    Raises:
        BortError: the file is missing, too large, not UTF-8, not JSON or nested too deeply.
    """
    return parse_json(read_bytes(path, max_bytes), str(path))


def append_jsonl(path: PathLike, row: Dict[str, Any]) -> None:
    """Append one JSON line and flush it to the operating system, so that a killed run keeps every finished
    line.

    Half a line left behind by a kill is removed first: appended to, it would spoil this one too.
    """
    line = _dump(row, path) + "\n"
    try:
        with open(path, "ab+") as stream:
            end = stream.seek(0, os.SEEK_END)
            if end and (stream.seek(end - 1), stream.read(1))[1] != b"\n":
                stream.seek(0)
                stream.truncate(stream.read().rfind(b"\n") + 1)
            stream.write(line.encode("utf-8"))
    except OSError as error:
        raise BortError(f"{path}: cannot be appended to ({error.strerror})") from error


def read_jsonl(path: PathLike, fields: Mapping[str, Any] = {}, remedy: str = "") -> List[Any]:
    """Rows of a JSON-lines file; a last line without its line end (a kill while writing) is dropped.

    Args:
        fields: what every row must have, and of which type (or types) it must be; with any, rows must be
            objects.
        remedy: what to do about a bad line, for the message.

    Raises:
        BortError: the file cannot be read, or another line is not JSON or lacks a field (named by number).
    """
    data = read_bytes(path)
    complete = data[: data.rfind(b"\n") + 1]
    rows = []
    for number, line in enumerate(complete.split(b"\n"), start=1):
        if line.strip():
            try:
                rows.append(parse_json(line, f"{path}, line {number}"))
                _check_fields(rows[-1], fields, f"{path}, line {number}")
            except BortError as error:
                raise BortError(f"{error}{remedy and '; '}{remedy}") from error
    return rows


def _check_fields(row: Any, fields: Mapping[str, Any], where: str) -> None:
    if fields and not isinstance(row, dict):
        raise BortError(f"{where}: not an object, but {str(row)[:40]!r}")
    for name, types in fields.items():
        if name not in row:
            raise BortError(f"{where}: has no {name!r}")
        if not isinstance(row[name], types):
            raise BortError(f"{where}: its {name!r} is {str(row[name])[:40]!r}")


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
