"""Unpacking archives that somebody else made: nothing outside the target folder,
no links, no bombs, all or nothing."""
from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional, Tuple

from bort.errors import BortError
from bort.files import PathLike, open_regular

BLOCK = 1 << 16
MAX_NAME = 1024
MAX_DEPTH = 32
MAX_HEADER = 1 << 20
"""Bytes of one of tar's extended headers, which are read into memory; real ones have some hundreds."""
_SKIPPED = ("__MACOSX",)


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to. The largest official one, RACE, has 28,000 files and 100 MB, ratio 5."""

    files: int = 100_000
    total_bytes: int = 4 << 30
    ratio: float = 200.0
    """Unpacked to packed size; text reaches about 10. Counted from the first :attr:`free_bytes` on."""
    free_bytes: int = 16 << 20


class _Refused(Exception):
    """Why an archive is not unpacked."""


class _Budget:
    """Counts what really comes out: what an archive says about itself proves nothing."""

    def __init__(self, limits: Limits, packed: int) -> None:
        self.limits, self.total, self.count = limits, 0, 0
        self.allowed = min(limits.total_bytes, max(limits.free_bytes, int(packed * limits.ratio)))

    def add_bytes(self, number: int) -> None:
        self.total += number
        if self.total > self.allowed:
            raise _Refused(f"it unpacks to more than {self.allowed:,} bytes")

    def add_file(self) -> None:
        self.count += 1
        if self.count > self.limits.files:
            raise _Refused(f"it holds more than {self.limits.files:,} files")


class _Counted:
    """A readable stream whose bytes are counted against a budget."""

    def __init__(self, stream: Any, budget: _Budget) -> None:
        self.stream, self.budget = stream, budget

    def read(self, size: int = BLOCK) -> bytes:
        data = self.stream.read(min(size, BLOCK) if size >= 0 else BLOCK)
        self.budget.add_bytes(len(data))
        return data


def _counted(stream: Any, budget: _Budget) -> Any:
    return _Counted(stream, budget)


class _TarInfo(tarfile.TarInfo):
    """Refuses extended headers that claim to be enormous before they are read into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in tarfile.SUPPORTED_TYPES or self.type in (
                tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
                tarfile.SOLARIS_XHDTYPE):
            if self.size > MAX_HEADER:
                raise _Refused("one of its headers is larger than any real one")
        return super()._proc_member(archive)  # type: ignore[misc]  # of tarfile, but in no stub


def extract(archive: PathLike, folder: PathLike, limits: Optional[Limits] = None) -> Path:
    """Unpack a .zip or .tar (also .gz, .bz2, .xz) into ``folder``; its format is read off its first bytes.

    Everything is unpacked beside ``folder`` first. If ``folder`` does not exist, it then appears by one
    renaming; if it does, the files are moved into it one by one, replacing those of the same name. A folder
    that wraps the whole archive is taken off. Files get ordinary permissions; macOS's ``__MACOSX`` and ``._``
    files are left out.

    Raises:
        BortError: the archive is damaged, or holds a path that leads outside (absolute, ``..``, a drive, a
            backslash), a link, a device, an encrypted file, a name twice, or more than ``limits`` allow.
            Nothing is left behind.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with open_regular(archive) as stream:
            packed = os.fstat(stream.fileno()).st_size
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=str(folder.parent), prefix=f".{folder.name}."))
    except OSError as error:
        raise BortError(f"{error.filename or archive}: cannot be read or written ({error.strerror})"
                        ) from error
    try:
        root = staging / "content"
        root.mkdir()
        budget = _Budget(limits or Limits(), packed)
        _unpack(archive, root, budget)
        if not budget.count:
            raise _Refused("it holds no files")
        entries = list(root.iterdir())
        if len(entries) == 1 and entries[0].is_dir():
            root = entries[0]
        _place(root, folder)
        return folder
    except _Refused as error:
        raise BortError(f"{archive}: is not unpacked, {error}") from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError,
            RuntimeError, ValueError, OverflowError) as error:
        raise BortError(f"{archive}: is damaged or not an archive ({type(error).__name__}: {error})"
                        ) from error
    except OSError as error:
        raise BortError(f"{archive}: unpacking failed ({error.strerror or error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unpack(archive: Path, root: Path, budget: _Budget) -> None:
    with open(archive, "rb") as stream:
        magic = stream.read(6)
    members = _zip_members if magic.startswith(b"PK") else _tar_members
    seen = set()
    for name, content in members(archive, magic, budget):
        parts = _safe_parts(name)
        if parts[0] in _SKIPPED or parts[-1].startswith("._"):
            continue
        path = root.joinpath(*parts)
        # Compared without case, as some file systems do: two names must never be one file.
        key = "/".join(parts).lower()
        if key in seen:
            raise _Refused(f"it holds {name[:200]!r} twice")
        seen.add(key)
        budget.add_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as out:
            shutil.copyfileobj(content, out, BLOCK)


def _safe_parts(name: str) -> Tuple[str, ...]:
    """The components of a member's path. Raises _Refused for one that could lead outside the folder."""
    while name.startswith("./"):
        name = name[2:]
    parts = tuple(name.split("/"))
    if (not name or len(name) > MAX_NAME or len(parts) > MAX_DEPTH
        or any(part in ("", ".", "..") for part in parts) or any(character in name for character in "\\:\0")
        or any(len(part.encode()) > 255 for part in parts)):
        raise _Refused(f"it holds a file with the unsafe name {name[:200]!r}")
    return parts


def _zip_members(archive: Path, magic: bytes, budget: _Budget) -> Iterator[Tuple[str, Any]]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            # zipfile cuts names at a NUL and turns backslashes on Windows;
            # the archive's own spelling is what counts.
            name = info.orig_filename
            _safe_parts(name.rstrip("/") or name)
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _Refused(f"{name[:200]!r} is a link or a device")
            if info.flag_bits & 1:
                raise _Refused(f"{name[:200]!r} is encrypted")
            if name.endswith("/"):
                continue
            with opened.open(info) as content:
                yield name, _counted(content, budget)


def _tar_members(archive: Path, magic: bytes, budget: _Budget) -> Iterator[Tuple[str, Any]]:
    opener: Any = (gzip.open if magic.startswith(b"\x1f\x8b") else bz2.open if magic.startswith(b"BZh")
                   else lzma.open if magic.startswith(b"\xfd7zXZ") else open)
    # Read as a stream, so that skipped members and padding count as well.
    with opener(archive, "rb") as raw, tarfile.open(fileobj=_counted(raw, budget), mode="r|",
                                                    tarinfo=_TarInfo) as opened:
        for info in opened:
            opened.members = []  # type: ignore[attr-defined]  # the list would grow with the archive
            if info.isdir():
                if info.name not in ("", "."):
                    _safe_parts(info.name.rstrip("/"))
                continue
            if not info.isreg() or info.issparse():
                raise _Refused(f"{info.name[:200]!r} is a link, a device or a sparse file")
            _safe_parts(info.name)
            if hasattr(tarfile, "data_filter"):  # Python's own opinion, where this version has one
                try:
                    tarfile.data_filter(info, str(archive.parent))
                except tarfile.FilterError as error:
                    raise _Refused(str(error)) from error
            yield info.name, opened.extractfile(info)


def _place(root: Path, folder: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for current, _, files in os.walk(root):
        os.chmod(current, 0o777 & ~umask)
        for name in files:
            os.chmod(os.path.join(current, name), 0o666 & ~umask)
    if not folder.exists():
        os.rename(root, folder)
        return
    for current, folders, files in os.walk(root):
        there = folder / os.path.relpath(current, root)
        for name in folders:
            (there / name).mkdir(exist_ok=True)
        for name in files:
            os.replace(os.path.join(current, name), there / name)
