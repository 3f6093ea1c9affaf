"""Model folders and bare ``.params`` files: ``load``, ``save``, ``python -m bort.checkpoints
inspect|verify``.

A model folder holds ``config.json``, ``model.params`` and, with a tokenizer, its files. Parameter names are
those of the original release (H hidden, U units of all heads: H, or fewer in a network cut out of a wider
one, I intermediate, V vocabulary, P positions, i a layer, C classes):

    encoder.position_weight                                                      (P, H)
    encoder.layer_norm.{gamma,beta}                                              (H,)
    encoder.transformer_cells.{i}.attention_cell.proj_{query,key,value}.{weight,bias}   (U, H), (U,)
    encoder.transformer_cells.{i}.proj.{weight,bias}                             (H, U), (H,)
    encoder.transformer_cells.{i}.layer_norm.{gamma,beta}                        (H,)
    encoder.transformer_cells.{i}.ffn.ffn_1.{weight,bias}                        (I, H), (I,)
    encoder.transformer_cells.{i}.ffn.ffn_2.{weight,bias}                        (H, I), (H,)
    encoder.transformer_cells.{i}.ffn.layer_norm.{gamma,beta}                    (H,)
    word_embed.0.weight                                                          (V, H)
    token_type_embed.0.weight, where there are token types (BERT, MiniLM)        (types, H)
    pooler.{weight,bias}, where BERT's pooler is carried                         (H, H), (H,)
    decoder.0.{weight,bias}, decoder.2.{gamma,beta}, decoder.3.bias              (H, H), (H,); (H,); (V,)
    decoder.3.weight: word_embed.0.weight again; released files hold it twice, ours once

A classifier's file has all of these under ``bort.`` and its head under ``classifier.``; those of the
release have no ``decoder.*``.
"""
from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple, Union

import numpy as np

from bort.architecture import Architecture, parse
from bort.backend.mxnet import mx
from bort.checkpoints.arrays import check_finite, differences, random_mlm_head
from bort.checkpoints.locate import (
    CONFIG_FILE,
    EMBEDDING,
    FORMAT,
    FORMAT_VERSION,
    PARAMETERS_FILE,
    TIED,
    Located,
    bare_config,
    infer_architecture,
    locate,
    plain_name,
    read_parameters,
)
from bort.checkpoints.params_file import write_ndarrays
from bort.errors import BortError
from bort.files import PathLike, sha256_file
from bort.json_files import shown, write_json
from bort.models import Bert, Classifier, initialize

Model = Union[Bert, Classifier]
POOLER = ("pooler.weight", "pooler.bias")
MAX_TOKEN_TYPES = 1 << 10
__all__ = ["CONFIG_FILE", "EMBEDDING", "FORMAT", "FORMAT_VERSION", "PARAMETERS_FILE", "TIED", "Located",
           "Model", "Stored", "build", "describe", "expected_shapes", "fit",
           "infer_architecture", "load", "load_or_initialize", "locate", "parameter_arrays",
           "read", "read_parameters", "save", "set_parameters", "write"]


def build(config: Mapping[str, Any], where: str, dropout: Optional[float] = None) -> Model:
    """The uninitialized network that a folder's ``config.json`` describes.

    Raises:
        BortError: a key is missing or holds what no network of this family has.
    """
    try:
        number = {key: config.get(key, default) for key, default in
                  (("vocab_size", None), ("max_length", 512), ("dropout", 0.1), ("layer_norm_eps", 1e-5),
                   ("mlm_layer_norm_eps", 1e-12))}
        if dropout is not None:
            number["dropout"] = dropout
        for key, value in number.items():
            whole = key in ("vocab_size", "max_length")
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not (
                    1 <= value <= 1 << 28 if whole else 0 <= value < 1):
                raise BortError(f"{key} is {shown(value, 80)}")
        number.update(_embedding_options(config, number["vocab_size"]))
        bert = Bert(Architecture.from_dict(config.get("architecture")), **number)
        head = config.get("head")
        if head is None:
            return bert
        _check_head(head)
        model = Classifier(bert, head.get("num_outputs"), head.get("kind", ""),
                           number["dropout"] if dropout is not None else head.get("dropout", 0.1))
        model.task_name, model.labels = head.get("task"), head.get("labels")
        model.encoding = head.get("encoding")
        return model
    except BortError as error:
        raise BortError(f"{where}: {error}") from error


def _embedding_options(config: Mapping[str, Any], vocab_size: int) -> Dict[str, Any]:
    """``token_types``, ``separator_id`` and ``pooler`` of a config; folders without them have none of it."""
    types, separator = config.get("token_types", 0), config.get("separator_id")
    pooler = config.get("pooler", False)
    if type(types) is not int or not 0 <= types <= MAX_TOKEN_TYPES:
        raise BortError(f"token_types is {shown(types, 80)}")
    if separator is not None and (type(separator) is not int or not 0 <= separator < vocab_size):
        raise BortError(f"separator_id is {shown(separator, 80)}, not a token id below {vocab_size}")
    if type(pooler) is not bool:
        raise BortError(f"pooler is {shown(pooler, 80)}")
    return {"token_types": types, "separator_id": separator, "pooler": pooler}


def _check_head(head: Any) -> None:
    if not isinstance(head, Mapping):
        raise BortError(f"head is {shown(head, 80)}")
    labels, dropout = head.get("labels"), head.get("dropout", 0.1)
    wrong = [key for key in ("kind", "task", "encoding") if not isinstance(head.get(key, ""),
                                                                           (str, type(None)))]
    if labels is not None and not (isinstance(labels, list)
                                   and all(isinstance(label, str) for label in labels)):
        wrong.append("labels")
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        wrong.append("dropout")
    for key in wrong:
        raise BortError(f"the head's {key} is {shown(head.get(key), 80)}")


def expected_shapes(model: Model) -> Dict[str, Tuple[int, ...]]:
    """Name to shape of every distinct parameter of ``model``, as :func:`read_parameters` names them."""
    shapes = {plain_name(name): tuple(parameter.shape) for name,
              parameter in model._collect_params_with_prefix().items() if not name.endswith(TIED)}
    return {**shapes, **{name: array.shape for name, array in _carried(model).items()}}


def _carried(model: Model) -> Dict[str, np.ndarray]:
    """What a file holds for Hugging Face alone: the pooler of a ``Bert``. A classifier's head replaces it."""
    pooler = None if isinstance(model, Classifier) else model.pooler
    return {} if pooler is None else dict(zip(POOLER, pooler))


def fit(model: Model, arrays: Mapping[str, np.ndarray], where: str) -> Dict[str, np.ndarray]:
    """``arrays``, whose names may or may not begin with ``bort.``, as :func:`expected_shapes` names them.

    Raises:
        BortError: parameters are missing, extra or of another shape; one message lists all three kinds by
        name.
    """
    wanted = expected_shapes(model)
    arrays = {plain_name(name): array for name, array in arrays.items()}
    numbers = sorted(int(name.split(".")[1]) for name in arrays if re.fullmatch(r"classifier\.\d\.weight",
                                                                                name))
    if numbers and numbers[0] == 0:  # a released head made without dropout, see ``locate``
        renamed = {"0": "1", "1": "3"}
        arrays = {re.sub(r"^classifier\.(\d)", lambda match: f"classifier.{renamed[match.group(1)]}",
                         name): array for name, array in arrays.items()}
    problems = differences(wanted, {name: array.shape for name, array in arrays.items()})
    if problems:
        raise BortError(f"{where}: its parameters are not those of {_in_words(model)}: {problems}")
    return dict(arrays)


def set_parameters(model: Model, arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Give ``model`` its values, cast to each parameter's own dtype; errors as :func:`fit`."""
    arrays = fit(model, arrays, where)
    for name, parameter in model._collect_params_with_prefix().items():
        if not name.endswith(TIED):
            if parameter._data is None:
                parameter.initialize(init="zeros")
            parameter.set_data(mx.nd.array(arrays[plain_name(name)], dtype=parameter.dtype))
    if not isinstance(model, Classifier) and model.pooler is not None:
        weight, bias = (np.array(arrays[name], dtype="float32") for name in POOLER)
        model.pooler = weight, bias


def _in_words(model: Model) -> str:
    head = f" with a {model.head} head of {model.num_outputs}" if isinstance(model, Classifier) else ""
    bert = model.body
    types = f", {bert.token_types} token types" if bert.token_types else ""
    return f"{model.architecture.display}, V={model.vocab_size}{types}{head}"


class Stored(NamedTuple):
    """What a model's files hold; the config is their own, or derived from the shapes of a bare file."""

    located: Located
    config: Mapping[str, Any]
    arrays: Dict[str, np.ndarray]


def read(path: PathLike, architecture: Optional[Union[str, Architecture]] = None, heads: Optional[int] = None,
         verify: bool = True) -> Stored:
    """What :func:`load` reads before it builds the network: views of the mapped file in the file's own dtype.

    A bare file without an MLM head (the release's classifiers) gets a random one, as its config's
    ``mlm_head`` then says ("absent").

    Args:
        verify: compare the file with its recorded checksum, and refuse NaN and infinity.
    """
    located = locate(path)
    where = str(located.parameters)
    if located.config is None:
        arrays, is_classifier = read_parameters(located.parameters)
        config: Mapping[str, Any] = bare_config(located, arrays, is_classifier, architecture, heads)
        if config.get("mlm_head") == "absent":
            arrays.update(random_mlm_head(*arrays[EMBEDDING].shape))
    else:
        config = located.config
        if config.get("format_version") != FORMAT_VERSION:
            found = shown(config.get("format_version"))
            raise BortError(f"{located.config_file}: format_version {found}; this "
                            f"version of bort reads {FORMAT_VERSION}")
        recorded = config.get("sha256")
        if verify and recorded is not None and sha256_file(located.parameters) != recorded:
            raise BortError(f"{where}: its checksum is not the one in {CONFIG_FILE}: the file was damaged or "
                            "replaced; copy the folder again")
        arrays, _ = read_parameters(located.parameters)
        if architecture is not None:
            held = Architecture.from_dict(config.get("architecture"), str(located.config_file))
            if parse(architecture) != held:
                raise BortError(f"{located.folder}: holds {held.display}, not {parse(architecture).display}")
    _check_claims(config, arrays, where)
    if verify:
        check_finite(arrays, where)
    return Stored(located, config, arrays)


def load(path: PathLike, architecture: Optional[Union[str, Architecture]] = None, heads: Optional[int] = None,
         dropout: Optional[float] = None, verify: bool = True) -> Model:
    """Load a model folder or a bare released ``.params`` file (float32 or float16; held as float32).

    Args:
        path: a model folder, a folder with one ``.params`` file, or that file.
        architecture: for a bare file, a preset, ``"D,A,H,I"`` or an :class:`Architecture`; else checked
            against the folder's own.
        heads: for a bare file, A alone; the rest is read off the shapes.
        dropout: replaces the stored probability, also in the head.
        verify: compare the file with the checksum in ``config.json``, and refuse NaN and infinity.

    Returns:
        A :class:`Bert`, or a :class:`Classifier` when the file has a head.

    Raises:
        BortError: nothing there, a broken or foreign file, a checksum that differs, or parameters that
            do not fit.
    """
    stored = read(path, architecture, heads, verify)
    model = build(stored.config, str(stored.located.config_file), dropout)
    set_parameters(model, stored.arrays, str(stored.located.parameters))
    return model


def _check_claims(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse a config that claims a network out of proportion to its file before
    anything of that size is built."""
    claimed = config.get("architecture")
    cells = sum(name.endswith("attention_cell.proj_query.weight") for name in arrays)
    if isinstance(claimed, Mapping) and isinstance(claimed.get("depth"),
                                                   int) and claimed["depth"] > max(cells, 1) + 64:
        raise BortError(f"{where}: has {cells} layers, not {claimed['depth']}")


def load_or_initialize(source: Union[PathLike, Architecture], vocab_size: int, seed: int,
                       **settings: Any) -> Bert:
    """``source`` as a model folder if there is one, else as an architecture drawn from ``seed``; always a
    ``Bert``."""
    if not isinstance(source, Architecture) and Path(source).exists() and not str(source).endswith(".json"):
        model = load(source, **settings)
        return model.body
    model = Bert(parse(source if isinstance(source, Architecture) else str(source)), vocab_size, **settings)
    initialize(model, seed)
    return model


def parameter_arrays(model: Model) -> Dict[str, np.ndarray]:
    """Every distinct parameter by its name in the file; the tied matrix once."""
    arrays = {name: parameter.data().asnumpy() for name,
              parameter in model._collect_params_with_prefix().items() if not name.endswith(TIED)}
    return {**arrays, **_carried(model)}


def describe(model: Model) -> Dict[str, Any]:
    """The members of ``config.json`` that say what network ``model`` is."""
    bert = model.body
    options = asdict(bert.options)
    if not bert.token_types:
        del options["token_types"], options["separator_id"]
    if not _carried(model):
        del options["pooler"]
    config: Dict[str, Any] = {"architecture": bert.architecture.to_dict(), "vocab_size": bert.vocab_size,
                              **options, "head": None}
    if isinstance(model, Classifier):
        config["head"] = {"kind": model.head, "num_outputs": model.num_outputs, "dropout": model.head_dropout,
                          "task": model.task_name, "encoding": model.encoding,
                          "labels": model.labels}
    return config


def save(model: Model, folder: PathLike, tokenizer: Any = None,
         extra: Optional[Mapping[str, Any]] = None) -> Path:
    """Write a model folder; every file appears whole or not at all, and the config, last, holds the checksum.

    Args:
        tokenizer: a :class:`bort.text.tokenizers.loading.Tokenizer` whose files go into the folder.
        extra: more members of ``config.json`` (training provenance); names of our own are not replaced.

    Raises:
        BortError: the folder cannot be written to; what it held before is still there.
    """
    return write(folder, describe(model), parameter_arrays(model), tokenizer, extra)


def write(folder: PathLike, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray],
          tokenizer: Any = None, extra: Optional[Mapping[str, Any]] = None) -> Path:
    """:func:`save` of a network that was never built;
    ``arrays`` may make each array only when it is asked for."""
    folder = Path(folder)
    config = {"format": FORMAT, "format_version": FORMAT_VERSION, **description, "tokenizer": None}
    if tokenizer is not None:
        tokenizer.save(folder)
        config["tokenizer"] = {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint}
    # The slow part happens beside the old files, so that a kill leaves a folder whose checksum does not fit
    # only if it comes between the two last lines.
    fresh = folder / f".{PARAMETERS_FILE}.new"
    write_ndarrays(fresh, arrays)
    config["sha256"] = sha256_file(fresh)
    os.replace(fresh, folder / PARAMETERS_FILE)
    write_json(folder / CONFIG_FILE, {**dict(extra or {}), **config})
    return folder
