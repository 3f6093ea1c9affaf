"""Where a model lies and what its parameter file says of itself; no MXNet.

Parameter names are listed in :mod:`bort.checkpoints`, which makes networks of what is found here.
"""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple, Union

import numpy as np

from bort.architecture import PRESETS, Architecture, parse
from bort.checkpoints.params_file import read_ndarrays
from bort.errors import BortError
from bort.files import PathLike
from bort.json_files import read_json

FORMAT = "bort-model"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
PARAMETERS_FILE = "model.params"
MAX_CONFIG_BYTES = 4 << 20
"""A config with everything that a run records in it has some thousand bytes."""
TIED = "decoder.3.weight"
EMBEDDING = "word_embed.0.weight"
NAMED_FILES = {"bort_4_8_768_1024": "bort_4_8_768_1024", "bort_2_16_512_1024": "bort_2_16_512_1024",
               "roberta_12_768_12": "roberta-base", "roberta_24_1024_16": "roberta-large"}
"""Beginnings of published files' names, and the presets of what is in them."""


BODY = "bort."
"""What the names of a classifier's body begin with in its file."""


def plain_name(name: str) -> str:
    """A parameter's name in a ``Bert``, or under ``classifier.``, out of its name in any model or file."""
    return name[len(BODY):] if name.startswith(BODY) else name


class Located(NamedTuple):
    """Where a model lies: its parameter file, its config if it has one,
    and the folder its tokenizer would be in."""

    parameters: Path
    config: Optional[Dict[str, Any]]
    folder: Path

    @property
    def config_file(self) -> Path:
        """The file that errors about the config should name."""
        return self.parameters if self.config is None else self.folder / CONFIG_FILE


def locate(path: PathLike) -> Located:
    """Find the parameter file and config of a model folder or of a bare ``.params`` file.

    Raises:
        BortError: there is no model at ``path``, or more than one.
    """
    path = Path(path)
    if path.is_dir():
        if (path / CONFIG_FILE).is_file():
            config = read_json(path / CONFIG_FILE, max_bytes=MAX_CONFIG_BYTES)
            if not isinstance(config, dict) or config.get("format") != FORMAT:
                hint = f"; import it first: python -m bort.huggingface import {path} OUT" \
                    if isinstance(config, dict) and "model_type" in config else ""
                raise BortError(f"{path / CONFIG_FILE}: not the config of a model folder of this "
                                f"project{hint}")
            return Located(path / PARAMETERS_FILE, config, path)
        found = sorted(path.glob("*.params"))
        if len(found) != 1:
            raise BortError(f"{path}: not a model folder: no {CONFIG_FILE}, and {len(found)} .params files "
                            "instead of one")
        return Located(found[0], None, path)
    if path.is_file():
        beside = path.parent / CONFIG_FILE
        if path.name == PARAMETERS_FILE and beside.is_file():
            return locate(path.parent)
        return Located(path, None, path.parent)
    raise BortError(f"{path}: no such model folder or .params file")


def read_parameters(path: PathLike) -> Tuple[Dict[str, np.ndarray], bool]:
    """Parameters of a file by their names in a ``Bert``, heads under ``classifier.``, and whether it
    is a classifier.

    A tied matrix that is stored twice is checked and kept once.

    Raises:
        BortError: the file is broken, or the two copies of the tied matrix differ.
    """
    arrays = read_ndarrays(path)
    is_classifier = any(name.startswith(BODY) for name in arrays)
    arrays = {plain_name(name): array for name, array in arrays.items()}
    if TIED in arrays and EMBEDDING in arrays:
        if not _same(arrays[TIED], arrays[EMBEDDING]):
            raise BortError(f"{path}: {TIED} and {EMBEDDING} differ, but the MLM head uses the word "
                            "embedding's matrix")
        del arrays[TIED]
    elif TIED in arrays:
        arrays[EMBEDDING] = arrays.pop(TIED)
    return arrays, is_classifier


def _same(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and bool(np.array_equal(left, right, equal_nan=True))


def infer_architecture(arrays: Mapping[str, np.ndarray], heads: int, where: str) -> Architecture:
    """The 4-tuple that the shapes of a parameter file belong to; A cannot be read off and must be given.

    Raises:
        BortError: the arrays are not those of a network of this family.
    """
    cells = {int(match.group(1))
             for match in map(re.compile(r"encoder\.transformer_cells\.(\d{1,6})\.").match, arrays) if match}
    inner = arrays.get("encoder.transformer_cells.0.ffn.ffn_1.weight")
    if not cells or inner is None or inner.ndim != 2:
        raise BortError(f"{where}: not a parameter file of this family: no "
                        "encoder.transformer_cells.0.ffn.ffn_1.weight of two dimensions among "
                        f"{', '.join(sorted(arrays)[:4]) or 'no arrays'}, ...")
    hidden = int(inner.shape[1])
    query = arrays.get("encoder.transformer_cells.0.attention_cell.proj_query.weight")
    units = hidden if query is None or query.ndim != 2 else int(query.shape[0])
    found = {"depth": max(cells) + 1, "heads": heads, "hidden": hidden, "intermediate": int(inner.shape[0])}
    if units != hidden and isinstance(heads, int) and heads > 0 and units % heads == 0:
        found["head_size"] = units // heads
    return Architecture(**found)


def bare_config(located: Located, arrays: Mapping[str, np.ndarray], is_classifier: bool,
                 architecture: Optional[Union[str, Architecture]], heads: Optional[int]) -> Dict[str, Any]:
    """The config that a bare file would have, from its shapes and what the caller knows.

    Raises:
        BortError: the architecture is neither given nor in the file's name, or the arrays are of another
        family.
    """
    where = str(located.parameters)
    named = next((preset for name, preset in NAMED_FILES.items()
                  if re.match(rf"{name}(?![0-9])", located.parameters.name)), None)
    if architecture is not None:
        found = parse(architecture)
    elif named:
        found = parse(named)
    elif heads is not None:
        found = infer_architecture(arrays, heads, where)
    else:
        raise BortError(f"{where}: a bare parameter file does not say how many heads it has; give "
                        "--architecture D,A,H,I (4,8,1024,768 for the released bort.params) or --heads A")
    for name in (EMBEDDING, "encoder.position_weight"):
        if name not in arrays or arrays[name].ndim != 2:
            raise BortError(f"{where}: not a parameter file of this family: no {name} of two dimensions")
    config = {"architecture": found.to_dict(), "vocab_size": int(arrays[EMBEDDING].shape[0]),
              "max_length": int(arrays["encoder.position_weight"].shape[0]), "head": None}
    if located.parameters.name.startswith("roberta") or found in (
            PRESETS["roberta-base"].architecture, PRESETS["roberta-large"].architecture):
        config["mlm_layer_norm_eps"] = 1e-5  # fairseq's, in the MLM head too
    if is_classifier:
        config["head"] = _bare_head(arrays, where)
    if not any(name.startswith("decoder.") for name in arrays):
        config["mlm_head"] = "absent"  # the release's classifiers are saved without one
    return config


def _bare_head(arrays: Mapping[str, np.ndarray], where: str) -> Dict[str, Any]:
    """The head of a released classifier file;
    its layers are numbered from 0 when it was made without dropout."""
    numbers = sorted(int(name.split(".")[1]) for name in arrays if re.fullmatch(r"classifier\.\d\.weight",
                                                                                name))
    kinds = {(1, 3): ("pooled", 0.1), (0, 1): ("pooled", 0.0), (1,): ("linear", 0.1), (0,): ("linear", 0.0)}
    if tuple(numbers) not in kinds:
        raise BortError(f"{where}: its classifier has the layers {numbers}; known are classifier.1 and "
                        "classifier.3 (classifier.0 and .1 without dropout), or a single one")
    kind, dropout = kinds[tuple(numbers)]
    return {"kind": kind, "dropout": dropout,
            "num_outputs": int(arrays[f"classifier.{numbers[-1]}.weight"].shape[0])}
