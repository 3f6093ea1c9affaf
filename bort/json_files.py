"""JSON that is never trusted and never half-written: settings and lists; some are sealed with a checksum."""
from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any, Dict, List, Mapping, Union

from bort.errors import BortError
from bort.files import PathLike, atomic_write, read_bytes

MAX_JSON_BYTES = 64 << 20
"""A settings or index file larger than this is refused before it is parsed."""


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


SEAL = "digest"
"""The member of a sealed JSON object that holds the checksum of all others."""


def seal(content: Mapping[str, Any], path: PathLike) -> Dict[str, Any]:
    """``content`` as JSON has it, with a member ``digest``: the SHA-256 of the others, which tells a changed,
    lost or added one. ``path`` is for messages.

    Raises:
        BortError: as :func:`write_json`.
    """
    plain = json.loads(_dump({key: value for key, value in content.items() if key != SEAL}, path))
    return {**plain, SEAL: hashlib.sha256(_dump(plain, path, sort_keys=True).encode("utf-8")).hexdigest()}


def write_sealed(path: PathLike, content: Mapping[str, Any]) -> None:
    """:func:`write_json` of an object that :func:`read_sealed` notices any damage of."""
    write_json(path, seal(content, path))


def read_sealed(path: PathLike) -> Dict[str, Any]:
    """What :func:`write_sealed` wrote, without the digest; an object of earlier versions, which has none,
    is taken as it is.

    Raises:
        BortError: as :func:`read_json`, or it is no object, or not what was written.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise BortError(f"{path}: not a JSON object")
    return unsealed(content, path)


def unsealed(content: Mapping[str, Any], where: PathLike) -> Dict[str, Any]:
    """What :func:`seal` was given; an object without a digest as it is.

    Raises:
        BortError: the object was damaged or changed; ``where`` names it.
    """
    try:
        whole = SEAL not in content or seal(content, where)[SEAL] == content[SEAL]
    except BortError:  # a number that is not finite, which is never written
        whole = False
    if not whole:
        raise BortError(f"{where}: its content does not fit its digest: it was damaged or changed")
    return {key: value for key, value in content.items() if key != SEAL}


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
    """Append one JSON line and flush it to the operating system, so that a killed run keeps
    every finished line.

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


def read_jsonl(path: PathLike, fields: Mapping[str, Any] = {}, remedy: str = "",
               sealed: bool = False) -> List[Any]:
    """Rows of a JSON-lines file; a last line without its line end (a kill while writing) is dropped.

    Args:
        fields: what every row must have, and of which type (or types) it must be; with any, rows
            must be objects.
        remedy: what to do about a bad line, for the message.
        sealed: whether rows were made by :func:`seal`; digests are checked and left out. A row of earlier
            versions, without one, is taken as it is.

    Raises:
        BortError: the file cannot be read, a sealed row was damaged, or another line is not JSON or lacks a
            field (named by number).
    """
    data = read_bytes(path)
    complete = data[: data.rfind(b"\n") + 1]
    rows = []
    for number, line in enumerate(complete.split(b"\n"), start=1):
        if line.strip():
            try:
                where = f"{path}, line {number}"
                row = parse_json(line, where)
                _check_fields(row, fields, where)
                rows.append(unsealed(row, where) if sealed else row)
            except BortError as error:
                raise BortError(f"{error}{remedy and '; '}{remedy}") from error
    return rows


def _check_fields(row: Any, fields: Mapping[str, Any], where: str) -> None:
    if fields and not isinstance(row, dict):
        raise BortError(f"{where}: not an object, but {shown(row, 40)}")
    for name, types in fields.items():
        if name not in row:
            raise BortError(f"{where}: has no {name!r}")
        if not isinstance(row[name], types):
            raise BortError(f"{where}: its {name!r} is {shown(row[name], 40)}")


def shorten(value: Any, limit: int = 60) -> str:
    """A value out of a file for an error message: a text as it is, anything else as JSON has it; on one line,
    without surrogates, and at most ``limit`` characters long."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError):
        return "a deeply nested value"
    line = " ".join(_LONE_SURROGATE.sub("\ufffd", text[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def shown(value: Any, limit: int = 60) -> str:
    """:func:`shorten` with a text in quotation marks, which tells ``'3'`` from ``3``."""
    return repr(shorten(value, limit)) if isinstance(value, str) else shorten(value, limit)
