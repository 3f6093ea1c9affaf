"""PyTorch's ``pytorch_model.bin``, read through PyTorch's loader for weights only."""
from __future__ import annotations

import os
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, Tuple

import numpy as np

from bort.errors import BortError
from bort.files import PathLike, open_regular
from bort.huggingface.tensors import MAX_TENSORS, Tensor

SAFE_VERSION = (2, 6)
"""The first PyTorch whose ``weights_only=True`` keeps what it promises."""


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
    if _version(torch) < SAFE_VERSION:
        raise BortError(f"{path}: PyTorch {torch.__version__} can be made to run code by a file even when it "
                        "loads weights only (CVE-2025-32434); install 2.6 or later")
    size = _refuse_bombs(path)
    try:
        with warnings.catch_warnings():  # about versions of pickle, which the user did not choose
            warnings.simplefilter("ignore")
            content = torch.load(str(path), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile file provokes in the unpickler
        raise BortError(f"{path}: not a file of weights, or a damaged one ({type(error).__name__}: "
                        f"{str(error)[:200]})") from error
    return dict(_torch_tensors(path, content, size, torch))


def _version(torch: Any) -> Tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", str(torch.__version__))
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def _refuse_bombs(path: Path) -> int:
    """The size of the file, after a check that its archive is stored as it is
    (as PyTorch does) and not compressed."""
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if len(members) > MAX_TENSORS or not stored or sum(member.file_size for member in members) > size:
                raise BortError(f"{path}: a compressed archive, which PyTorch does not write; it is not "
                                "opened")
        return size
    except BortError:
        raise
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
