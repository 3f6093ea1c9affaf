"""From Hugging Face's format into a model folder."""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np

from bort.checkpoints import model_folder
from bort.checkpoints.arrays import differences
from bort.checkpoints.inspection import network_facts
from bort.errors import BortError
from bort.files import PathLike, sha256_file
from bort.huggingface import names
from bort.huggingface.conversion import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    Report,
    Source,
    complete_mlm_head,
    config_of,
    fold_token_types,
    write_import,
)
from bort.huggingface.heads import unpad_heads, unscaled
from bort.huggingface.tensor_files import SAFETENSORS_FILE, inside, open_folder
from bort.huggingface.tensors import Lazy, Makers, Tensor
from bort.json_files import read_json
from bort.models.bert import RELEASED_MLM_EPSILON
from bort.tasks.registry import get_task

MAX_OUTPUTS = 1 << 16


@dataclass
class _Foreign:
    """A folder of transformers while it is being understood.

    Attributes:
        config: its config.json; ``ours`` what an export of this project recorded in it.
        layout: the key of the tables in :mod:`bort.huggingface.names`.
        stored: its tensors by their full names.
        files: the files they are in.
        description: the network by our settings, as far as it is known.
        notes: what is left out, folded or invented.
    """

    folder: Path
    config: Dict[str, Any]
    layout: str
    stored: Dict[str, Tensor]
    files: List[Path]
    description: Dict[str, Any]
    pad_id: int
    body_only: bool
    notes: List[str] = field(default_factory=list)

    @property
    def ours(self) -> Mapping[str, Any]:
        recorded = self.config.get(names.OUR_KEY)
        return recorded if isinstance(recorded, dict) else {}

    @property
    def where(self) -> str:
        return str(self.folder / CONFIG_FILE)


def read_folder(folder: PathLike, token_types: str = "keep", body_only: bool = False,
                seed: int = 0, mlm_layer_norm_eps: Optional[float] = None) -> Source:
    """Read a folder of transformers without writing anything; arguments and errors as
    :func:`import_folder`."""
    foreign = _open(Path(folder), body_only)
    layout, stored, description, notes = foreign.layout, foreign.stored, foreign.description, foreign.notes
    head = None if body_only else names.head_name(layout, foreign.config, list(stored), foreign.where)
    mlm = not body_only and any(theirs in stored for _, theirs in names.MLM_NAMES[layout])
    _choose_mlm_epsilon(foreign, mlm_layer_norm_eps)
    head_dropout = description.pop("head_dropout")
    if head == "classifier":
        description["head"] = _read_head(foreign, head_dropout)
    types = stored.get(f"{layout}.{names.TOKEN_TYPES}")
    if types is not None and token_types == "keep" and len(types.shape) == 2 and types.shape[0] > 1:
        description.update(token_types=types.shape[0], separator_id=foreign.ours.get("separator_id"))
    pooler = all(f"{layout}.{theirs}" in stored for _, theirs in names.OPTIONAL_NAMES["pooler"])
    if pooler and not body_only and head != "classifier":
        description["pooler"] = True
    shapes = model_folder.expected_shapes(model_folder.build(description, foreign.where))
    mapping = names.name_map(layout, description["architecture"]["depth"], mlm, head == "classifier",
                             description)
    makers = _pick(foreign, shapes, mapping)
    if types is not None and "token_types" not in description:
        fold_token_types(types.array(), makers, shapes, token_types, str(folder), notes)
    if "heads" in foreign.ours:
        unpad_heads(makers, description, foreign.ours["heads"], notes)
        shapes = model_folder.expected_shapes(model_folder.build(description, foreign.where))
    if head == "classifier":
        description["head"]["kind"] = unscaled(makers, foreign.ours.get("head"), notes) or "pooled"
        if layout == "roberta":
            notes.append("transformers gives a RoBERTa classifier two </s> between the texts of a pair, this "
                         "project one: expect slightly other scores on pairs")
    state = complete_mlm_head(makers, shapes, mlm, seed, notes)
    record = {"mlm_head": state, "imported_from": {
        "model_type": layout, "architectures": names.class_names(foreign.config), "notes": notes,
        "files": {path.name: sha256_file(path) for path in foreign.files}}}
    return Source(description, Lazy(makers), record, notes)


def _open(folder: Path, body_only: bool) -> _Foreign:
    """Config and tensors, under their full names, of a folder whose settings this family can have."""
    where = str(folder / CONFIG_FILE)
    if not folder.is_dir():
        raise BortError(f"{folder}: no such folder; give the one that holds {CONFIG_FILE} and "
                        f"{SAFETENSORS_FILE}")
    config = read_json(inside(folder, CONFIG_FILE), max_bytes=MAX_CONFIG_BYTES)
    tensors, files = open_folder(folder, names.TIED)
    if isinstance(config, dict) and config.get("model_type") is None:  # TinyBERT's own tools leave it out
        config["model_type"] = names.infer_layout([name[names.unwrapped(list(tensors)):] for name in tensors])
    description = names.read_config(config, where)
    layout, pad_id = config["model_type"], description.pop("pad_id")
    depth = description["architecture"]["depth"]
    if depth > len(tensors):
        raise BortError(f"{where}: num_hidden_layers is {depth}, but there are only {len(tensors)} tensors")
    full = names.canonical(list(tensors), layout, str(folder))
    stored = {full[name]: tensor for name, tensor in tensors.items()}
    return _Foreign(folder, config, layout, stored, files, description, pad_id, body_only)


def _choose_mlm_epsilon(foreign: _Foreign, chosen: Optional[float]) -> None:
    """The epsilon of the MLM head: ``chosen``, the release's for its own Bort,
    a recorded one, or the encoder's."""
    description = foreign.description
    if chosen is not None:
        description["mlm_layer_norm_eps"] = chosen
    elif names.is_released_bort(foreign.config, description):
        description["mlm_layer_norm_eps"] = RELEASED_MLM_EPSILON
        foreign.notes.append(
            f"a Bort of the release: its MLM head has the release's epsilon, {RELEASED_MLM_EPSILON:g} "
            f"(--mlm-layer-norm-eps {description['layer_norm_eps']:g} gives transformers' logits)")
    else:
        description["mlm_layer_norm_eps"] = foreign.ours.get("mlm_layer_norm_eps",
                                                             description["mlm_layer_norm_eps"])


def _read_head(foreign: _Foreign, dropout: float) -> Dict[str, Any]:
    """The ``head`` of our config."""
    config, ours = foreign.config, foreign.ours.get("head")
    tensor = foreign.stored[dict(names.HEAD_NAMES[foreign.layout])["classifier.3.weight"]]
    if len(tensor.shape) != 2 or not 1 <= tensor.shape[0] <= MAX_OUTPUTS:
        raise BortError(f"{tensor.where} has the shape {tensor.shape}; it should be (classes, hidden_size)")
    ours = ours if isinstance(ours, dict) else {}
    task = ours.get("task") or config.get("finetuning_task")
    try:
        task = get_task(task).name if isinstance(task, str) else None
    except BortError:
        task = None
    encoding = ours.get("encoding")
    return {"kind": "pooled", "num_outputs": tensor.shape[0], "dropout": dropout, "task": task,
            "encoding": encoding if encoding in ("paper", "released") else None,
            "labels": names.read_labels(config, tensor.shape[0])}


def _pick(foreign: _Foreign, shapes: Mapping[str, Tuple[int, ...]], mapping: Mapping[str, str]) -> Makers:
    """Our parameters' makers, after every tensor of the folder was placed, explained or refused."""
    folder, layout, stored, pad_id = foreign.folder, foreign.layout, foreign.stored, foreign.pad_id
    for copy, ours in names.TIED_COPIES[layout].items():
        if copy in stored and mapping.get(ours, copy) not in stored:  # stored under its other name only
            stored[mapping[ours]] = stored.pop(copy)
    copies = {theirs: ours for theirs, ours in names.TIED_COPIES[layout].items() if ours in mapping}
    used = {*mapping.values(), *copies, f"{layout}.{names.TOKEN_TYPES}"}
    used.update(f"{layout}.{name}" for name in names.NOT_PARAMETERS)
    others = [name for name in stored if name not in used]
    in_body = re.compile(rf"{layout}\.(embeddings|encoder)\.").match
    left_out = [name for name in others if name.startswith(names.LEFT_OUT[layout])
                or foreign.body_only and not in_body(name)]
    wanted = {theirs: names.expected_shape(ours, shapes[ours], layout, pad_id)
              for ours, theirs in mapping.items()}
    extra = [name for name in others if name not in left_out]
    problems = differences(wanted, {name: stored[name].shape for name in (*wanted, *extra)
                                                 if name in stored})
    if problems:
        prefix = names.common_prefix(list(stored))
        if len(extra) == len(stored) and prefix:
            problems += f"; every name begins with {prefix + '.'!r}, which has to be taken off"
        elif not foreign.body_only and not any(in_body(name) for name in extra):
            problems += "; --body-only imports the body without its heads" if extra else ""
        raise BortError(f"{folder}: its tensors are not those of the network in {CONFIG_FILE}: {problems}")
    for theirs, ours in copies.items():
        if theirs in stored and not np.array_equal(stored[theirs].array(), stored[mapping[ours]].array()):
            raise BortError(f"{folder}: {theirs} and {mapping[ours]} differ, but the MLM head uses the same "
                            "one")
    if left_out:
        parts = sorted({".".join(name.split(".")[:2]) for name in left_out})
        foreign.notes.append(f"left out, as no network of this project has them: {', '.join(parts)} "
                             f"({len(left_out)} tensors)")
    makers: Makers = {ours: stored[theirs].array for ours, theirs in mapping.items()}
    if layout == "roberta":
        positions = makers["encoder.position_weight"]
        makers["encoder.position_weight"] = lambda: positions()[pad_id + 1:]
    return makers


def is_foreign(path: PathLike) -> bool:
    """Whether ``path`` is a folder in Hugging Face's format."""
    config = config_of(Path(path))
    return "model_type" in config and config.get("format") != model_folder.FORMAT


def inspect_folder(path: PathLike) -> Dict[str, Any]:
    """What a Hugging Face folder holds, in the form of :func:`bort.checkpoints.inspection.inspect`.

    Raises:
        BortError: as :func:`import_folder`.
    """
    source = read_folder(path)
    shapes = model_folder.expected_shapes(model_folder.build(source.description, str(path)))
    if source.record["mlm_head"] == "absent":
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("decoder.")}
    origin = source.record["imported_from"]
    return {"kind": f"Hugging Face folder ({origin['model_type']}); python -m bort.huggingface import {path} "
            "OUT makes a model folder of it", **network_facts(source.description, shapes),
            "mlm_head": source.record["mlm_head"], "files": origin["files"], "notes": source.notes}


def import_folder(source: PathLike, out: PathLike, tokenizer: Optional[PathLike] = None,
                  token_types: str = "keep", body_only: bool = False, seed: int = 0,
                  mlm_layer_norm_eps: Optional[float] = None) -> Report:
    """Make a model folder of a folder that transformers wrote.

    Args:
        source: holds ``config.json`` and ``model.safetensors`` (or its shards, or ``pytorch_model.bin``); its
            class is one of ``names.CLASSES``. float64, float16 and bfloat16 become float32.
        out: the model folder to write.
        tokenizer: a folder to take the tokenizer from instead of ``source``.
        token_types: of a network with more than one: "keep" them; "fold" takes type 0 for every token;
            "refuse" stops where they differ.
        body_only: leave heads and the pooler out, of whatever class.
        seed: of the MLM head where there is none.
        mlm_layer_norm_eps: epsilon of the MLM head's LayerNorm. By default what an export of this project
            recorded, 1e-12 for a Bort of the release (:func:`names.is_released_bort`), else the encoder's,
            which transformers uses there.

    Raises:
        BortError: a broken or hostile file, or a network that is not of this family; the message
            says which part.
    """
    model = read_folder(source, token_types, body_only, seed, mlm_layer_norm_eps)
    return write_import(model, source, out, tokenizer)
