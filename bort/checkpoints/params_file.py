"""MXNet's NDArray list, the format of every ``.params`` file, read and written without MXNet.

MXNet's own reader believes what a file says of itself: a broken header makes it allocate any amount of memory
or stop the process. This one checks every number against the size of the file before it uses it, and maps the
data instead of copying it.

Layout, little-endian: uint64 0x112, uint64 0, uint64 count; the arrays, each uint32 magic, [int32 storage
type], shape, int32 device type, int32 device id, int32 dtype, data; uint64 count and the names, each uint64
length and UTF-8 bytes.
"""
from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import IO, Any, Dict, List, Mapping

import numpy as np

from bort.errors import BortError
from bort.files import PathLike, atomic_write, open_regular

_LIST_MAGIC = 0x112
_MAGIC_V1, _MAGIC_V2, _MAGIC_V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DTYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "|u1", 4: "<i4", 5: "|i1", 6: "<i8"}
_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}
_CPU = 1
MAX_ARRAYS = 1 << 16
MAX_DIMENSIONS = 8
MAX_NAME_BYTES = 1 << 12


class _Cursor:
    """Reads numbers from a buffer and refuses to step over its end."""

    def __init__(self, buffer: Any, size: int, path: Path) -> None:
        self.buffer, self.size, self.path, self.offset = buffer, size, path, 0

    def fail(self, what: str) -> BortError:
        return BortError(f"{self.path}: {what} (at byte {self.offset}); the file is truncated or not an "
                         "MXNet parameter file, copy or download it again")

    def take(self, length: int, what: str) -> int:
        start = self.offset
        if length > self.size - start:
            raise self.fail(f"it ends inside {what}")
        self.offset = start + length
        return start

    def number(self, code: str, what: str) -> int:
        length = struct.calcsize(code)
        return struct.unpack_from(f"<{code}", self.buffer, self.take(length, what))[0]


def _read_array(cursor: _Cursor) -> np.ndarray:
    magic = cursor.number("I", "an array's header")
    if magic not in (_MAGIC_V1, _MAGIC_V2, _MAGIC_V3):
        raise cursor.fail(f"an array begins with {magic:#x}")
    if magic != _MAGIC_V1 and cursor.number("i", "a storage type") != 0:
        raise cursor.fail("an array is stored sparsely, which no checkpoint of this family is")
    dimensions = cursor.number("i", "a shape")
    if not 0 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.fail(f"an array has {dimensions} dimensions")
    shape = tuple(cursor.number("q", "a shape") for _ in range(dimensions))
    if any(extent < 0 for extent in shape) or (dimensions == 0 and magic != _MAGIC_V3):
        raise cursor.fail(f"an array has the impossible shape {shape}")
    cursor.number("q", "a device")
    code = cursor.number("i", "a dtype")
    if code not in _DTYPES:
        raise cursor.fail(f"an array has the dtype code {code}, which is none of {sorted(_DTYPES)}")
    dtype = np.dtype(_DTYPES[code])
    count = 1
    for extent in shape:  # Python integers: a hostile product does not wrap around
        count *= extent
    start = cursor.take(count * dtype.itemsize, f"the data of an array of shape {shape}")
    try:
        return np.frombuffer(cursor.buffer, dtype=dtype, count=count, offset=start).reshape(shape)
    except ValueError as error:  # an empty array whose other dimensions overflow
        raise cursor.fail(f"an array has the impossible shape {shape}") from error


def read_ndarrays(path: PathLike) -> Dict[str, np.ndarray]:
    """Read a named NDArray list.

    Returns:
        Name to array. The arrays are read-only views of the memory-mapped file: copy what you keep.

    Raises:
        BortError: the file cannot be read, is truncated or foreign, has no names, repeats a name, or goes on
            after its end. Memory and time are bounded by the size of the file whatever it says.
    """
    path = Path(path)
    try:
        with open_regular(path) as stream:
            size = stream.seek(0, 2)
            buffer: Any = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise BortError(f"{path}: cannot be read ({error.strerror})") from error
    cursor = _Cursor(buffer, size, path)
    if cursor.number("Q", "the header") != _LIST_MAGIC:
        cursor.offset = 0
        raise cursor.fail("it does not begin with MXNet's list header")
    cursor.number("Q", "the header")
    count = cursor.number("Q", "the header")
    if count > MAX_ARRAYS:
        raise cursor.fail(f"it claims to hold {count} arrays")
    arrays = [_read_array(cursor) for _ in range(count)]
    names = _read_names(cursor, count)
    if cursor.offset != size:
        raise cursor.fail(f"{size - cursor.offset} bytes follow its end")
    return dict(zip(names, arrays))


def _read_names(cursor: _Cursor, count: int) -> List[str]:
    if cursor.number("Q", "the names") != count:
        raise cursor.fail("it does not hold one name for each array")
    names: List[str] = []
    for _ in range(count):
        length = cursor.number("Q", "a name")
        if length > MAX_NAME_BYTES:
            raise cursor.fail(f"a name is {length} bytes long")
        start = cursor.take(length, "a name")
        try:
            names.append(bytes(cursor.buffer[start:start + length]).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise cursor.fail("a name is not UTF-8") from error
    # Module-API files prefix every name with its kind.
    names = [name[4:] if name.startswith(("arg:", "aux:")) else name for name in names]
    if len(set(names)) != count:
        raise cursor.fail("a name is there twice")
    return names


def write_ndarrays(path: PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a named NDArray list that ``mx.nd.load`` and ``Block.load_parameters`` read; atomic.

    Raises:
        BortError: a dtype has no MXNet code, an array is a scalar, or writing fails.
    """
    for name, array in arrays.items():
        if array.dtype.newbyteorder("=") not in _CODES or array.ndim == 0:
            raise BortError(f"{path}: {name} ({array.dtype}, shape {array.shape}) cannot be stored in an "
                            "NDArray list")
    with atomic_write(path, "wb") as stream:
        _write(stream, arrays)


def _write(stream: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    stream.write(struct.pack("<QQQ", _LIST_MAGIC, 0, len(arrays)))
    for array in arrays.values():
        stream.write(struct.pack(f"<Iii{array.ndim}q", _MAGIC_V2, 0, array.ndim, *array.shape))
        stream.write(struct.pack("<iii", _CPU, 0, _CODES[array.dtype.newbyteorder("=")]))
        plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        stream.write(plain.data.cast("B") if plain.size else b"")
    stream.write(struct.pack("<Q", len(arrays)))
    for name in arrays:
        encoded = name.encode("utf-8")
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
