"""Tensor files of the outside world: safetensors, one file or shards, both ways; PyTorch's inwards
(:mod:`bort.huggingface.torch_files`).

The safetensors library reads and checks; writing is done here, as the library wants all tensors in
memory at once, and this project makes each when its turn comes. Time and memory are bounded by the file
whatever it claims.
"""
from __future__ import annotations

import json
import math
import os
import re
import struct
from pathlib import Path
from typing import Any, Callable, Collection, Dict, List, Mapping, Tuple

import numpy as np
from safetensors import safe_open

from bort.errors import BortError
from bort.files import PathLike, atomic_write, open_regular
from bort.huggingface.tensors import MAX_TENSORS, Tensor
from bort.huggingface.torch_files import read_torch
from bort.json_files import parse_json, read_json

MAX_HEADER_BYTES = 1 << 20
"""A 24-layer network's header has 50 kB."""
MAX_DIMENSIONS = 8
SAFETENSORS_FILE = "model.safetensors"
TORCH_FILE = "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16"}


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


def read_safetensors(path: PathLike) -> Dict[str, Tensor]:
    """The tensors of a safetensors file by name, none of them read yet.

    The safetensors library maps the file and checks that its tensors cover its data exactly once.

    Raises:
        BortError: the file is unreadable, truncated or not safetensors, or its header is larger
            than any network's.
    """
    path = Path(path)
    with open_regular(path) as stream:
        start = stream.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if length > MAX_HEADER_BYTES:  # the library takes headers of 100 MB
        raise BortError(f"{path}: not a safetensors file, or a damaged one: its header would have {length} "
                        f"bytes (at most {MAX_HEADER_BYTES})")
    try:
        opened = safe_open(str(path), framework="numpy")
        names = list(opened.keys())
        slices = [opened.get_slice(name) for name in names] if len(names) <= MAX_TENSORS else []
        kinds = [(str(part.get_dtype()), tuple(part.get_shape())) for part in slices]
    except Exception as error:  # SafetensorError, and what Python makes of numbers beyond 64 bits
        raise BortError(f"{path}: not a safetensors file, or a truncated or damaged one "
                        f"({' '.join(str(error).split())[:200]})") from error
    if len(names) > MAX_TENSORS or any(len(shape) > MAX_DIMENSIONS for _, shape in kinds):
        raise BortError(f"{path}: its header names {len(names)} tensors, or one of more than "
                        f"{MAX_DIMENSIONS} dimensions, which no network has")
    return {name: Tensor(dtype, shape, f"{path}: {name}", _reader(opened, path, name, dtype, shape))
            for name, (dtype, shape) in zip(names, kinds)}


def _reader(opened: Any, path: Path, name: str, dtype: str, shape: Tuple[int, ...]
            ) -> Callable[[], np.ndarray]:
    if dtype != "BF16":
        return lambda: opened.get_tensor(name)

    def read() -> np.ndarray:  # NumPy has no bfloat16: its bits, mapped as the library's header has them
        with open_regular(path) as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            entry = parse_json(stream.read(length), f"{path}, header")[name]
        if 0 in shape:
            return np.zeros(shape, "<u2")
        return np.memmap(path, "<u2", "r", 8 + length + entry["data_offsets"][0], shape)

    return read


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
            stream.write(cast.data.cast("B") if cast.size else b"")


def open_folder(folder: PathLike, tied: Collection[str] = ()) -> Tuple[Dict[str, Tensor], List[Path]]:
    """The tensors of a Hugging Face folder, and the files they are in.

    Looked for, in this order: ``model.safetensors``, its shards with an index,
    ``pytorch_model.bin``, its shards.

    Args:
        tied: names of matrices that are stored once but go by several names, all of which an index may list.

    Raises:
        BortError: none is there, one is damaged, or a link or name leads out of the folder.
    """
    folder = Path(folder)
    for name, reader in ((SAFETENSORS_FILE, read_safetensors), (TORCH_FILE, read_torch)):
        if os.path.lexists(folder / name):
            path = inside(folder, name)
            return reader(path), [path]
        if os.path.lexists(folder / (name + INDEX_SUFFIX)):
            return _open_shards(folder, name + INDEX_SUFFIX, reader, tied)
    others = sorted(path.name for path in folder.glob("*") if path.suffix in (".h5", ".msgpack", ".ot",
                                                                              ".bin", ".pt"))
    raise BortError(f"{folder}: neither {SAFETENSORS_FILE} nor {TORCH_FILE}"
                    + (f" (only {', '.join(others[:5])}; save the model with transformers' save_pretrained)"
                       if others else ""))


def _open_shards(folder: Path, index: str, reader: Callable[[Path], Dict[str, Tensor]],
                 tied: Collection[str]) -> Tuple[Dict[str, Tensor], List[Path]]:
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
        differing = sorted((set(found) ^ wanted) - (wanted & set(tied)))
        if differing:
            raise BortError(f"{path}: its tensors are not those that {index} names for it "
                            f"({', '.join(differing[:3])}); the files do not belong together")
        tensors.update(found)
    return tensors, list(paths.values())
