"""From a model folder, or a bare ``.params`` file, into a folder for transformers."""
from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np

from bort.architecture import Architecture
from bort.checkpoints import model_folder
from bort.checkpoints.inspection import find_tokenizer, mlm_head_state
from bort.errors import BortError
from bort.files import PathLike, atomic_write, read_bytes, write_json
from bort.huggingface import names
from bort.huggingface.heads import pad_heads, scaled
from bort.huggingface.importing import CONFIG_FILE, Report, config_of
from bort.huggingface.model_card import CARD_FILE, SIGNATURE, find_results, model_card
from bort.huggingface.narrow import fill_heads
from bort.huggingface.output import refuse_foreign
from bort.huggingface.tensor_files import SAFETENSORS_FILE, write_safetensors
from bort.huggingface.tensors import Lazy, Makers
from bort.huggingface.tokenizer import write_tokenizer

logger = logging.getLogger("bort.huggingface")

DTYPES = ("float32", "float16")
MLM_CHOICES = ("auto", "keep", "drop")
MAX_CARD_BYTES = 16 << 20


def export_folder(source: PathLike, out: PathLike, architecture: Optional[str] = None,
                  heads: Optional[int] = None, tokenizer: Optional[PathLike] = None, dtype: str = "float32",
                  layout: str = "bert", mlm_head: str = "auto") -> Report:
    """Make a folder for transformers of a model folder or a bare ``.params`` file.

    Args:
        source, architecture, heads: as for ``checkpoints.load``.
        out: the folder to write: ``config.json``, ``model.safetensors``, the tokenizer's files and a model
            card.
        tokenizer: a folder to take the tokenizer from instead of the model's own.
        dtype: "float32" or "float16".
        layout: "bert" (what a Bort is at Hugging Face) or "roberta" (leading position rows, and ``lm_head``).
        mlm_head: "keep", "drop", or "auto": keep it if it is trained. A classifier has none at Hugging Face.

    Raises:
        BortError: the source is broken, or cannot be expressed as asked.
    """
    stored = model_folder.read(source, architecture, heads)
    out = Path(out)
    if out.resolve() == stored.located.folder.resolve():
        raise BortError(f"{out}: the folder to export to must be another than the model's own")
    model = model_folder.build(stored.config, str(stored.located.config_file))
    config: Dict[str, Any] = {**stored.config, **model_folder.describe(model)}
    shapes = model_folder.expected_shapes(model)
    arrays = model_folder.fit(model, stored.arrays, str(stored.located.parameters))
    found = find_tokenizer(stored, tokenizer)
    notes: List[str] = []
    makers: Makers = {name: _as_float32(array) for name, array in arrays.items()}
    config = fill_heads(makers, shapes, config, str(source))
    head = "classifier" if config.get("head") else _mlm_choice(stored, mlm_head, notes)
    special = {f"{key}_token_id": getattr(found, f"{key}_id", default)
               for key, default in (("bos", 0), ("pad", 1), ("eos", 2))}
    settings = names.write_config(config, layout, head, dtype, special)
    ours: Dict[str, Any] = {"mlm_layer_norm_eps": float(config["mlm_layer_norm_eps"])}
    if head == "classifier":
        ours["head"] = scaled(makers, config["head"], settings["hidden_size"], dtype)
        shapes.update((f"classifier.3.{part}", makers[f"classifier.3.{part}"]().shape) for part in ("weight",
                                                                                                    "bias"))
        shapes.update((f"classifier.1.{part}", makers[f"classifier.1.{part}"]().shape) for part in ("weight",
                                                                                                    "bias"))
        notes.append("the MLM head: transformers' classifiers have none")
    elif head == "mlm" and config["mlm_layer_norm_eps"] != config["layer_norm_eps"]:
        place = {"bert": "cls.predictions.transform.LayerNorm", "roberta": "lm_head.layer_norm"}[layout]
        notes.append(f"the MLM head's own epsilon, {config['mlm_layer_norm_eps']:g}: transformers uses the "
                     f"encoder's, {config['layer_norm_eps']:g}, there too. For equal logits set "
                     f"model.{place}.eps")
    if config.get("separator_id") is not None:
        ours["separator_id"] = config["separator_id"]
    whole = Architecture.from_dict(config["architecture"])
    if whole.attention_units != whole.hidden:
        settings["num_attention_heads"] = pad_heads(makers, shapes, whole)
        ours["heads"] = whole.heads
    settings[names.OUR_KEY] = ours
    config["tokenizer"] = None if found is None else {"kind": found.kind, "fingerprint": found.fingerprint}
    refuse_foreign(out, (CONFIG_FILE, SAFETENSORS_FILE, CARD_FILE), found is not None, _is_export(out))
    target, target_shapes = _target(makers, shapes, layout, {**settings, **config}, head)
    if found is None:
        notes.append("a tokenizer: the model's folder has none (--tokenizer DIR adds one)")
    else:
        note = write_tokenizer(found, out, config["max_length"], config.get("token_types", 0) > 1)
        notes += [note] if note else []
    write_safetensors(out / SAFETENSORS_FILE, target, target_shapes, dtype)
    results = find_results(stored.located.folder)
    with atomic_write(out / CARD_FILE) as stream:
        stream.write(model_card(config, settings["architectures"][0], dtype, results, notes))
    write_json(out / CONFIG_FILE, settings)
    for note in notes:
        logger.warning("%s: not exported: %s", source, note)
    return Report(out, notes)


def _is_export(out: Path) -> bool:
    card = out / CARD_FILE
    return isinstance(config_of(out).get(names.OUR_KEY), dict) and (
        not card.exists() or SIGNATURE.encode() in read_bytes(card, max_bytes=MAX_CARD_BYTES))


def _as_float32(array: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: np.asarray(array, dtype="float32")


def _mlm_choice(stored: model_folder.Stored, choice: str, notes: List[str]) -> Optional[str]:
    state = mlm_head_state(stored.arrays, stored.config)
    if choice == "keep" or choice == "auto" and state == "trained":
        return "mlm"
    notes.append("the MLM head"
                 + ("" if choice == "drop" else ": it is random (--mlm-head keep exports it anyway)"))
    return None


def _target(makers: Makers, shapes: Mapping[str, Tuple[int, ...]], layout: str, settings: Mapping[str, Any],
            head: Optional[str]) -> Tuple[Lazy, Dict[str, Tuple[int, ...]]]:
    """Hugging Face's tensors by their names: makers and shapes."""
    hidden, skipped = settings["hidden_size"], settings["pad_token_id"] + 1
    mapping = names.name_map(layout, settings["num_hidden_layers"], head == "mlm", head == "classifier",
                             settings)
    result = {theirs: makers[ours] for ours, theirs in mapping.items()}
    sizes = {theirs: names.expected_shape(ours, shapes[ours], layout, skipped - 1) for ours,
             theirs in mapping.items()}
    if layout == "roberta":
        name, positions = mapping["encoder.position_weight"], makers["encoder.position_weight"]
        result[name] = lambda: np.concatenate([np.zeros((skipped, hidden), dtype="float32"), positions()])
    result.setdefault(f"{layout}.{names.TOKEN_TYPES}", lambda: np.zeros((1, hidden), dtype="float32"))
    sizes.setdefault(f"{layout}.{names.TOKEN_TYPES}", (1, hidden))
    if head is None:  # BertModel itself has no prefix
        result = {name[len(layout) + 1:]: maker for name, maker in result.items()}
        sizes = {name[len(layout) + 1:]: size for name, size in sizes.items()}
    return Lazy(result), sizes
