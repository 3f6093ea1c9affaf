"""Tensor files of the outside world: safetensors (one file or shards) both ways, ``pytorch_model.bin``
inwards.

A safetensors file is a uint64 length, that many bytes of JSON header ``{name: {dtype, shape,
data_offsets}}``, and the data. Every number of the header is checked against the size of the file before
anything of that size is made, and the data is mapped, not copied, so that time and memory are bounded by the
file whatever it claims.
"""
from __future__ import annotations

import collections.abc
import json
import math
import mmap
import os
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Tuple

import numpy as np

from bort.errors import BortError
from bort.files import PathLike, atomic_write, parse_json, read_json

MAX_HEADER_BYTES = 1 << 20
"""A 24-layer network's header has 50 kB."""
MAX_TENSORS = 1 << 14
MAX_DIMENSIONS = 8
SAFETENSORS_FILE = "model.safetensors"
TORCH_FILE = "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4,
          "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16"}


Makers = Dict[str, Callable[[], np.ndarray]]
"""Arrays by name, not yet made."""


class Tensor(NamedTuple):
    """A tensor of a file that is read when :meth:`array` is called."""

    dtype: str
    shape: Tuple[int, ...]
    where: str
    read: Callable[[], np.ndarray]

    def array(self) -> np.ndarray:
        """The values as float32 (float16 and bfloat16 widen exactly), without a copy when they are that
        already.

        Raises:
            BortError: they are not floating-point numbers, or they are too large for float32.
        """
        if self.dtype == "BF16":
            return (self.read().astype(np.uint32) << 16).view(np.float32)
        if self.dtype not in _FLOATS:
            raise BortError(f"{self.where} holds {self.dtype}, not floating-point numbers (a quantized "
                            "model?)")
        values = self.read()
        if self.dtype != "F64":
            return values.astype(np.float32, copy=False)
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        if np.isinf(narrow).sum() != np.isinf(values).sum():
            raise BortError(f"{self.where} has values beyond float32")
        return narrow


def inside(folder: Path, name: str) -> Path:
    """The path of the file ``name`` of ``folder``, which neither its name nor a link takes out of it.

    One way out is taken: Hugging Face's download cache keeps ``snapshots/REVISION/FILE`` as links to the
    ``blobs`` folder beside ``snapshots``.

    Raises:
        BortError: the name is a path, or a link leads elsewhere.
    """
    if not re.fullmatch(r"[\w][\w.+-]{0,200}", name):
        raise BortError(f"{folder}: refuses to open {name[:200]!r}, which is not the plain name of a file")
    path, root = folder / name, folder.resolve()
    target = path.resolve()
    cache = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    if target.parent != root and (cache is None or target.parent != cache):
        raise BortError(f"{path}: a link out of its folder (to {target}), which is not followed; copy the "
                        "file instead")
    return path


def read_header(path: PathLike) -> Tuple[Dict[str, Dict[str, Any]], int, int]:
    """The checked header of a safetensors file, the offset of its data and the size of the file.

    Raises:
        BortError: the file is unreadable, truncated or not safetensors, its header is too large, or the
            tensors do not cover its data exactly once, each with the bytes its shape and dtype need.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise BortError(f"{path}: not a safetensors file, or a truncated one: its header would have "
                                f"{length} bytes (the file has {size}, and a header at most "
                                f"{MAX_HEADER_BYTES})")
            text = stream.read(length)
    except OSError as error:
        raise BortError(f"{path}: cannot be read ({error.strerror})") from error
    header = parse_json(text, f"{path}, header")
    if not isinstance(header, dict):
        raise BortError(f"{path}: its header is not a JSON object")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise BortError(f"{path}: its header names {len(header)} tensors")
    _check_layout(path, header, size - 8 - length)
    return header, 8 + length, size


def _check_layout(path: Path, header: Mapping[str, Any], data_size: int) -> None:
    spans: List[Tuple[int, int, str]] = []
    for name, entry in header.items():
        where = f"{path}: {name[:100]!r}"
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise BortError(f"{where} has not exactly dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _SIZES:
            raise BortError(f"{where} has the unknown dtype {str(dtype)[:40]!r}")
        if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
            raise BortError(f"{where} has the impossible shape {str(shape)[:80]}")
        if not _counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_size:
            raise BortError(f"{where} lies at {str(offsets)[:80]} of {data_size} bytes of data; the file is "
                            "truncated or damaged")
        needed = _SIZES[dtype] * math.prod(shape)
        if offsets[1] - offsets[0] != needed:
            raise BortError(f"{where} has {offsets[1] - offsets[0]} bytes, {dtype} {str(shape)[:80]} needs "
                            f"{needed}")
        spans.append((offsets[0], offsets[1], name))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise BortError(f"{path}: {name[:100]!r} begins at byte {start} of the data, the one before it "
                            f"ends at {end}: tensors overlap or leave a gap")
        end = stop
    if end != data_size:
        raise BortError(f"{path}: {data_size - end} bytes of its data belong to no tensor")


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 48 for number in value)


def read_safetensors(path: PathLike) -> Dict[str, Tensor]:
    """The tensors of a safetensors file by name, mapped and not yet read.

    Raises:
        BortError: see :func:`read_header`.
    """
    path = Path(path)
    header, start, size = read_header(path)
    try:
        with open(path, "rb") as stream:
            buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BortError(f"{path}: cannot be read ({error})") from error
    if len(buffer) != size:
        raise BortError(f"{path}: its size changes while it is read")
    return {name: _mapped(buffer, start, entry, f"{path}: {name}") for name, entry in header.items()}


def _mapped(buffer: mmap.mmap, start: int, entry: Mapping[str, Any], where: str) -> Tensor:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    stored = np.dtype(_FLOATS.get(dtype, "<u2" if dtype == "BF16" else "u1"))

    def read() -> np.ndarray:
        return np.frombuffer(buffer, stored, math.prod(shape),
                             start + entry["data_offsets"][0]).reshape(shape)

    return Tensor(dtype, shape, where, read)


def write_safetensors(path: PathLike, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Tuple[int, ...]],
                      dtype: str = "float32") -> None:
    """Write ``arrays`` as ``dtype``, in the order of ``shapes``, one at a time and atomically.

    Raises:
        BortError: a value does not fit into ``dtype``, or writing fails.
    """
    kind = np.dtype(dtype)
    header: Dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + kind.itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES[kind.name], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of eight
    with atomic_write(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            values = np.asarray(arrays[name])
            if values.shape != tuple(shape):
                raise BortError(f"{path}: {name} is {values.shape} instead of {tuple(shape)}")
            with np.errstate(over="ignore"):
                cast = np.ascontiguousarray(values, dtype=kind.newbyteorder("<"))
            if kind.itemsize < values.itemsize and not np.array_equal(np.isfinite(cast), np.isfinite(values)):
                raise BortError(f"{name} has values beyond {dtype}; export it as float32")
            stream.write(memoryview(cast).cast("B") if cast.size else b"")


def open_folder(folder: PathLike) -> Tuple[Dict[str, Tensor], List[Path]]:
    """The tensors of a Hugging Face folder, and the files they are in.

    Looked for, in this order: ``model.safetensors``, its shards with an index, ``pytorch_model.bin``, its
    shards.

    Raises:
        BortError: none is there, one is damaged, or a link or name leads out of the folder.
    """
    folder = Path(folder)
    for name, reader in ((SAFETENSORS_FILE, read_safetensors), (TORCH_FILE, read_torch)):
        if os.path.lexists(folder / name):
            path = inside(folder, name)
            return reader(path), [path]
        if os.path.lexists(folder / (name + INDEX_SUFFIX)):
            return _open_shards(folder, name + INDEX_SUFFIX, reader)
    others = sorted(path.name for path in folder.glob("*") if path.suffix in (".h5", ".msgpack", ".ot",
                                                                              ".bin", ".pt"))
    raise BortError(f"{folder}: neither {SAFETENSORS_FILE} nor {TORCH_FILE}"
                    + (f" (only {', '.join(others[:5])}; save the model with transformers' save_pretrained)"
                       if others else ""))


def _open_shards(folder: Path, index: str, reader: Callable[[Path], Dict[str, Tensor]]
                 ) -> Tuple[Dict[str, Tensor], List[Path]]:
    content = read_json(inside(folder, index), max_bytes=MAX_HEADER_BYTES)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str)
                                                             for name in places.values()):
        raise BortError(f"{folder / index}: no weight_map of tensor names to file names in it")
    paths = {name: inside(folder, name) for name in sorted(set(places.values()))}
    tensors: Dict[str, Tensor] = {}
    for name, path in paths.items():
        found = reader(path)
        wanted = {tensor for tensor, place in places.items() if place == name}
        if set(found) != wanted:
            differing = sorted(set(found) ^ wanted)
            raise BortError(f"{path}: its tensors are not those that {index} names for it "
                            f"({', '.join(differing[:3])}); the files do not belong together")
        tensors.update(found)
    return tensors, list(paths.values())


def read_torch(path: PathLike) -> Dict[str, Tensor]:
    """The tensors of a ``pytorch_model.bin``, through PyTorch's loader for weights only, which runs no code
    of a file.

    Raises:
        BortError: PyTorch is missing or too old for that, or the file is damaged or holds more than weights.
    """
    path = Path(path)
    try:
        import torch
    except ImportError as error:
        raise BortError(f"{path}: reading it needs PyTorch (pip install torch). Or make safetensors of it "
                        "where there is PyTorch: transformers' "
                        "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)") from error
    size = _refuse_bombs(path)
    try:
        with warnings.catch_warnings():  # about versions of pickle, which the user did not choose
            warnings.simplefilter("ignore")
            content = torch.load(str(path), map_location="cpu", weights_only=True)
    except TypeError as error:
        raise BortError(
                        f"{path}: PyTorch {torch.__version__} cannot load weights only; upgrade it") from error
    except Exception as error:  # whatever a hostile file provokes in the unpickler
        raise BortError(f"{path}: not a file of weights, or a damaged one ({type(error).__name__}: "
                        f"{str(error)[:200]})") from error
    return dict(_torch_tensors(path, content, size, torch))


def _refuse_bombs(path: Path) -> int:
    """The size of the file, after a check that its archive is stored as it is (as PyTorch does) and not
    compressed."""
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
            if len(members) > MAX_TENSORS or any(member.compress_type != zipfile.ZIP_STORED
                                                 for member in members) or sum(member.file_size
                                                                               for member in members) > size:
                raise BortError(f"{path}: a compressed archive, which PyTorch does not write; it is not "
                                "opened")
        return size
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise BortError(f"{path}: cannot be read ({error}); the file is damaged") from error


def _torch_tensors(path: Path, content: Any, size: int, torch: Any) -> Iterator[Tuple[str, Tensor]]:
    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    if not isinstance(content, Mapping) or len(content) > MAX_TENSORS:
        raise BortError(f"{path}: not a state dictionary")
    total = 0
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise BortError(f"{path}: {str(name)[:100]!r} is not a tensor")
        # A view can claim any size over a small storage. Tied matrices may count twice.
        total += value.numel() * value.element_size()
        if total > 2 * size:
            raise BortError(f"{path}: its tensors claim more than the {size} bytes of the file")
        dtype = names.get(value.dtype, str(value.dtype))
        yield name, Tensor(dtype, tuple(value.shape), f"{path}: {name}", _torch_reader(value, torch))


def _torch_reader(value: Any, torch: Any) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        plain = value.detach().contiguous()
        return (plain.view(torch.int16).numpy().view(np.uint16) if value.dtype == torch.bfloat16
                else plain.numpy())

    return read


class Lazy(collections.abc.Mapping):
    """Arrays by name, each made when it is asked for and held by nobody here."""

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self.makers: Makers = dict(makers)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)
