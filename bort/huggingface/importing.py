"""From Hugging Face's format, or from GluonNLP's BERT, into a model folder."""
from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from bort.checkpoints import model_folder
from bort.checkpoints.inspection import mlm_head_state, network_facts
from bort.checkpoints.params_file import read_ndarrays
from bort.errors import BortError
from bort.files import PathLike, read_json, sha256_file
from bort.huggingface import names
from bort.huggingface.heads import unpad_heads, unscaled
from bort.huggingface.output import refuse_foreign
from bort.huggingface.tensor_files import SAFETENSORS_FILE, inside, open_folder
from bort.huggingface.tensors import Lazy, Makers, Tensor
from bort.models.bert import RELEASED_MLM_EPSILON, initial_value
from bort.tasks.registry import get_task
from bort.text.tokenizers.loading import Tokenizer, find_tokenizer_files, load_tokenizer

logger = logging.getLogger("bort.huggingface")

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_OUTPUTS = 1 << 16
TOKEN_TYPES = ("keep", "fold", "refuse")
NO_SEPARATOR = ("it tells the two texts of a pair apart, and no tokenizer says which token separates them: "
                "every token counts as type 0 (import it again with --tokenizer DIR)")


class Report(NamedTuple):
    """What a conversion did: the folder written, and remarks on what was left out, folded or invented."""

    folder: Path
    notes: List[str]


class Source(NamedTuple):
    """A foreign model, read and checked but not yet converted.

    ``description`` is what ``checkpoints.describe`` would say of it, ``arrays`` its parameters by our names
    (float32, made when asked for), ``record`` what the model folder's config remembers of its origin.
    """

    description: Dict[str, Any]
    arrays: Lazy
    record: Dict[str, Any]
    notes: List[str]


def read_folder(folder: PathLike, token_types: str = "keep", body_only: bool = False,
                seed: int = 0, mlm_layer_norm_eps: Optional[float] = None) -> Source:
    """Read a folder of transformers without writing anything; arguments and errors as
    :func:`import_folder`."""
    folder = Path(folder)
    where = str(folder / CONFIG_FILE)
    if not folder.is_dir():
        raise BortError(f"{folder}: no such folder; give the one that holds {CONFIG_FILE} and "
                        f"{SAFETENSORS_FILE}")
    config = read_json(inside(folder, CONFIG_FILE), max_bytes=MAX_CONFIG_BYTES)
    tensors, files = open_folder(folder, names.TIED)
    if isinstance(config, dict) and config.get("model_type") is None:  # TinyBERT's own tools leave it out
        config["model_type"] = names.infer_layout([name[names.unwrapped(list(tensors)):] for name in tensors])
    description = names.read_config(config, where)
    layout, pad_id, head_dropout = config["model_type"], description.pop("pad_id"), description.pop(
                                                                                                    "head_dropout")
    full = names.canonical(list(tensors), layout, str(folder))
    stored = {full[name]: tensor for name, tensor in tensors.items()}
    depth = description["architecture"]["depth"]
    if depth > len(stored):
        raise BortError(f"{where}: num_hidden_layers is {depth}, but there are only {len(stored)} tensors")
    head = None if body_only else names.head_name(layout, config, list(stored), where)
    mlm = not body_only and any(theirs in stored for _, theirs in names.MLM_NAMES[layout])
    ours = config.get(names.OUR_KEY)
    ours = ours if isinstance(ours, dict) else {}
    notes: List[str] = []
    if mlm_layer_norm_eps is not None:
        description["mlm_layer_norm_eps"] = mlm_layer_norm_eps
    elif names.is_released_bort(config, description):
        description["mlm_layer_norm_eps"] = RELEASED_MLM_EPSILON
        notes.append("a Bort of the release: its MLM head has the release's epsilon, "
                     f"{RELEASED_MLM_EPSILON:g} "
                     f"(--mlm-layer-norm-eps {description['layer_norm_eps']:g} gives transformers' logits)")
    else:
        description["mlm_layer_norm_eps"] = ours.get("mlm_layer_norm_eps", description["mlm_layer_norm_eps"])
    if head == "classifier":
        description["head"] = _read_head(config, ours.get("head"), stored, layout, head_dropout)
    types = stored.get(f"{layout}.{names.TOKEN_TYPES}")
    if types is not None and token_types == "keep" and len(types.shape) == 2 and types.shape[0] > 1:
        description.update(token_types=types.shape[0], separator_id=ours.get("separator_id"))
    pooler = all(f"{layout}.{theirs}" in stored for _, theirs in names.OPTIONAL_NAMES["pooler"])
    if pooler and not body_only and head != "classifier":
        description["pooler"] = True
    shapes = model_folder.expected_shapes(model_folder.build(description, where))
    mapping = names.name_map(layout, depth, mlm, head == "classifier", description)
    for copy, ours_name in names.TIED_COPIES[layout].items():
        if copy in stored and mapping.get(ours_name, copy) not in stored:  # stored under its other name only
            stored[mapping[ours_name]] = stored.pop(copy)
    makers = _pick(folder, stored, shapes, mapping, layout, pad_id, body_only, notes)
    if types is not None and "token_types" not in description:
        _fold_token_types(types.array(), makers, shapes, token_types, str(folder), notes)
    if "heads" in ours:
        unpad_heads(makers, description, ours["heads"], notes)
        shapes = model_folder.expected_shapes(model_folder.build(description, where))
    if head == "classifier":
        kind = unscaled(makers, ours.get("head"), notes)
        description["head"]["kind"] = kind or "pooled"
        if layout == "roberta":
            notes.append("transformers gives a RoBERTa classifier two </s> between the texts of a pair, this "
                         "project one: expect slightly other scores on pairs")
    state = _complete_mlm_head(makers, shapes, mlm, seed, notes)
    record = {"mlm_head": state, "imported_from": {
        "model_type": layout, "architectures": names.class_names(config), "notes": notes,
        "files": {path.name: sha256_file(path) for path in files}}}
    return Source(description, Lazy(makers), record, notes)


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


def _read_head(config: Mapping[str, Any], ours: Any, stored: Mapping[str, Tensor], layout: str,
               dropout: float) -> Dict[str, Any]:
    tensor = stored[dict(names.HEAD_NAMES[layout])["classifier.3.weight"]]
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


def _pick(folder: Path, stored: Mapping[str, Tensor], shapes: Mapping[str, Tuple[int, ...]],
          mapping: Mapping[str, str], layout: str, pad_id: int, body_only: bool, notes: List[str]) -> Makers:
    """Our parameters' makers, after every tensor of the folder was placed, explained or refused."""
    copies = {theirs: ours for theirs, ours in names.TIED_COPIES[layout].items() if ours in mapping}
    used = {*mapping.values(), *copies, f"{layout}.{names.TOKEN_TYPES}"}
    used.update(f"{layout}.{name}" for name in names.NOT_PARAMETERS)
    others = [name for name in stored if name not in used]
    in_body = re.compile(rf"{layout}\.(embeddings|encoder)\.").match
    left_out = [name for name in others if name.startswith(names.LEFT_OUT[layout]) or body_only
                and not in_body(name)]
    wanted = {theirs: names.expected_shape(ours, shapes[ours], layout, pad_id)
              for ours, theirs in mapping.items()}
    extra = [name for name in others if name not in left_out]
    problems = model_folder.differences(wanted, {name: stored[name].shape for name in (*wanted, *extra)
                                                 if name in stored})
    if problems:
        prefix = names.common_prefix(list(stored))
        if len(extra) == len(stored) and prefix:
            problems += f"; every name begins with {prefix + '.'!r}, which has to be taken off"
        elif not body_only and not any(in_body(name) for name in extra):
            problems += "; --body-only imports the body without its heads" if extra else ""
        raise BortError(f"{folder}: its tensors are not those of the network in {CONFIG_FILE}: {problems}")
    for theirs, ours in copies.items():
        if theirs in stored and not np.array_equal(stored[theirs].array(), stored[mapping[ours]].array()):
            raise BortError(f"{folder}: {theirs} and {mapping[ours]} differ, but the MLM head uses the same "
                            "one")
    if left_out:
        parts = sorted({".".join(name.split(".")[:2]) for name in left_out})
        notes.append(f"left out, as no network of this project has them: {', '.join(parts)} ({len(left_out)} "
                     "tensors)")
    makers: Makers = {ours: stored[theirs].array for ours, theirs in mapping.items()}
    if layout == "roberta":
        positions = makers["encoder.position_weight"]
        makers["encoder.position_weight"] = lambda: positions()[pad_id + 1:]
    return makers


def _fold_token_types(rows: np.ndarray, makers: Makers, shapes: Mapping[str, Tuple[int, ...]], choice: str,
                      where: str, notes: List[str]) -> None:
    """Add row 0 of the token types to the positions: every token has a position, and here all have type 0."""
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != shapes["encoder.position_weight"][1]:
        raise BortError(f"{where}: its token type embeddings have the shape {rows.shape}")
    if (rows != rows[0]).any():
        if choice != "fold":
            raise BortError(f"{where}: it tells {len(rows)} types of tokens apart: import it with "
                            "--token-types keep, or with --token-types fold if every token is to count as "
                            "one of the first text")
        notes.append(f"token types 1 to {len(rows) - 1} were left out: every token counts as type 0 "
                     "(--token-types fold)")
    if rows[0].any():  # adding zeros would turn -0.0 into 0.0
        positions = makers["encoder.position_weight"]
        makers["encoder.position_weight"] = lambda: positions() + rows[0]
        notes.append("the embedding of token type 0 was added to the position embeddings, which gives the "
                     "same outputs")


def _complete_mlm_head(makers: Makers, shapes: Mapping[str, Tuple[int, ...]], there: bool, seed: int,
                       notes: List[str]) -> str:
    """"trained", "untrained" or "absent"; in the last case the makers get a random head."""
    parts = [name for name in shapes if name.startswith("decoder.")]
    if there:
        state = mlm_head_state({name: makers[name]() for name in parts})
        what = "the MLM head is RANDOM: it was stored as it had been initialized"
    else:
        state = "absent"
        what = f"there is no MLM head; a RANDOM one was drawn from seed {seed}"
        makers.update((name, _initial(name, shapes[name], seed)) for name in parts)
    if state != "trained":
        notes.append(f"{what}. The body is not affected, but fill-mask and distilling from this model need a "
                     "trained head")
    return state


def _initial(name: str, shape: Tuple[int, ...], seed: int) -> Callable[[], np.ndarray]:
    return lambda: initial_value(name, shape, seed)


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
        BortError: a broken or hostile file, or a network that is not of this family; the message says which
            part.
    """
    model = read_folder(source, token_types, body_only, seed, mlm_layer_norm_eps)
    return _write(model, source, out, tokenizer)


def import_params(source: PathLike, out: PathLike, heads: int, tokenizer: Optional[PathLike] = None,
                  token_types: str = "keep", seed: int = 0,
                  mlm_layer_norm_eps: Optional[float] = None) -> Report:
    """Make a model folder of a GluonNLP ``.params`` file that ``bort.load`` does not take as it is: BERT's.

    It has token types, a pooler and a next-sentence head beside what RoBERTa's has, and is treated as Hugging
    Face's is. ``heads`` is A, which the file does not say. Epsilons are 1e-12 for a file with token types
    (BERT) and 1e-5 for others (RoBERTa); ``mlm_layer_norm_eps`` is another one for the MLM head.

    Raises:
        BortError: see :func:`import_folder`.
    """
    arrays = dict(read_ndarrays(source))
    where = str(source)
    architecture = model_folder.infer_architecture(arrays, heads, where)
    types = arrays.get("token_type_embed.0.weight")
    copy = arrays.pop(model_folder.TIED, None)
    needed = (model_folder.EMBEDDING, "encoder.position_weight")
    if any(name not in arrays or arrays[name].ndim != 2 for name in needed):
        raise BortError(f"{where}: not a parameter file of this family: no {' or '.join(needed)} of two "
                        "dimensions")
    if copy is not None and not np.array_equal(copy, arrays[model_folder.EMBEDDING]):
        raise BortError(f"{where}: {model_folder.TIED} and {model_folder.EMBEDDING} differ, but are to be "
                        "one matrix")
    epsilon = 1e-5 if types is None else 1e-12
    description = {"architecture": architecture.to_dict(), "vocab_size": int(arrays[needed[0]].shape[0]),
                   "max_length": int(arrays[needed[1]].shape[0]), "dropout": 0.1, "layer_norm_eps": epsilon,
                   "mlm_layer_norm_eps": epsilon if mlm_layer_norm_eps is None else mlm_layer_norm_eps,
                   "head": None}
    kept = types is not None and token_types == "keep" and types.ndim == 2 and len(types) > 1
    if types is not None and kept:
        description.update(token_types=len(types), separator_id=None)
    else:
        arrays.pop("token_type_embed.0.weight", None)
    if all(name in arrays for name in model_folder.POOLER):
        description["pooler"] = True
    shapes = model_folder.expected_shapes(model_folder.build(description, where))
    left_out = [name for name in arrays if re.fullmatch(r"(pooler|classifier)\.(weight|bias)", name)
                and name not in shapes]
    mlm = any(name.startswith("decoder.") for name in arrays)
    problems = model_folder.differences(
        shapes, {name: array.shape for name, array in arrays.items() if name not in left_out},
        optional=() if mlm else [name for name in shapes if name.startswith("decoder.")])
    if problems:
        raise BortError(f"{where}: its parameters are not those of this family: {problems}")
    notes = [f"left out, as no network of this project has them: {', '.join(left_out)}"] if left_out else []
    makers: Makers = {name: _as_float32(array) for name, array in arrays.items() if name in shapes}
    if types is not None and not kept:
        _fold_token_types(np.asarray(types, dtype="float32"), makers, shapes, token_types, where, notes)
    state = _complete_mlm_head(makers, shapes, mlm, seed, notes)
    record = {"mlm_head": state, "imported_from": {"format": "GluonNLP", "notes": notes,
                                                   "files": {Path(source).name: sha256_file(source)}}}
    return _write(Source(description, Lazy(makers), record, notes), source, out, tokenizer)


def _as_float32(array: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: np.asarray(array, dtype="float32")


def _write(model: Source, source: PathLike, out: PathLike, tokenizer: Optional[PathLike]) -> Report:
    if Path(out).resolve() == Path(source).resolve():
        raise BortError(f"{out}: the model folder must be another than the one that is imported")
    found = _find_tokenizer(Path(source if tokenizer is None else tokenizer), tokenizer is not None)
    if found is None:
        model.notes.append("there is no tokenizer in it: give one with --tokenizer, or copy its files into "
                           f"{out}")
    elif found.vocab_size > model.description["vocab_size"]:
        raise BortError(f"{source}: vocab_size is {model.description['vocab_size']}, less than the "
                        f"{found.vocab_size} of the tokenizer: they do not belong together (--tokenizer DIR "
                        "takes another)")
    if model.description.get("token_types") and model.description.get("separator_id") is None:
        if found is None:
            model.notes.append(NO_SEPARATOR)
        else:
            model.description["separator_id"] = found.eos_id
    out = Path(out)
    refuse_foreign(out, (model_folder.CONFIG_FILE, model_folder.PARAMETERS_FILE), found is not None,
                   config_of(out).get("format") == model_folder.FORMAT)
    prefix = "bort." if model.description["head"] else ""
    arrays = Lazy({name if name.startswith("classifier.") else prefix + name: maker
                   for name, maker in model.arrays.makers.items()})
    for note in model.notes:
        logger.warning("%s: %s", source, note)
    return Report(model_folder.write(out, model.description, arrays, found, model.record), model.notes)


def config_of(folder: Path) -> Dict[str, Any]:
    """The config of a folder that may be none, {} where nothing can be made of it."""
    try:
        content = read_json(folder / CONFIG_FILE, max_bytes=MAX_CONFIG_BYTES)
    except BortError:
        return {}
    return content if isinstance(content, dict) else {}


def _find_tokenizer(path: Path, required: bool) -> Optional[Tokenizer]:
    if path.is_file() and not required:
        return None
    files = find_tokenizer_files(path)
    for file in files:
        inside(path, file.name)
    if not required and all(file.name == "tokenizer_config.json" for file in files):
        return None
    return load_tokenizer(path)
