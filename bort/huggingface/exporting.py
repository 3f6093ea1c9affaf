"""From a model folder, or a bare ``.params`` file, into a folder for transformers."""
from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np

from bort.architecture import Architecture
from bort.checkpoints import model_folder
from bort.checkpoints.inspection import find_tokenizer, mlm_head_state
from bort.errors import BortError
from bort.files import PathLike, atomic_write, read_bytes
from bort.huggingface import names
from bort.huggingface.conversion import CONFIG_FILE, Report, config_of
from bort.huggingface.heads import HEAD_LAYER, TRAINING_REMARK, WITHOUT_TANH, pad_heads, scaled
from bort.huggingface.model_card import CARD_FILE, SIGNATURE, find_results, model_card
from bort.huggingface.output import refuse_foreign
from bort.huggingface.tensor_files import SAFETENSORS_FILE, write_safetensors
from bort.huggingface.tensors import Lazy, Makers
from bort.huggingface.tokenizer import write_tokenizer
from bort.json_files import write_json

logger = logging.getLogger("bort.huggingface")

DTYPES = ("float32", "float16")
MLM_CHOICES = ("auto", "keep", "drop")
MAX_CARD_BYTES = 16 << 20


@dataclass(frozen=True)
class Form:
    """How a model is written.

    Attributes:
        dtype: "float32" or "float16".
        layout: "bert" (what a Bort is at Hugging Face) or "roberta" (leading position rows, and ``lm_head``).
        mlm_head: "keep", "drop", or "auto": keep it if it is trained. A classifier has none at Hugging Face.
    """

    dtype: str = "float32"
    layout: str = "bert"
    mlm_head: str = "auto"


def export_folder(source: PathLike, out: PathLike, architecture: Optional[str] = None,
                  heads: Optional[int] = None, tokenizer: Optional[PathLike] = None, **form: str) -> Report:
    """Make a folder for transformers of a model folder or a bare ``.params`` file.

    Args:
        source, architecture, heads: as for ``checkpoints.load``.
        out: the folder to write: ``config.json``, ``model.safetensors``, the tokenizer's files and
            a model card.
        tokenizer: a folder to take the tokenizer from instead of the model's own.
        form: members of :class:`Form`.

    Raises:
        BortError: the source is broken, or cannot be expressed as asked.
    """
    chosen = Form(**form)
    stored = model_folder.read(source, architecture, heads)
    out = Path(out)
    if out.resolve() == stored.located.folder.resolve():
        raise BortError(f"{out}: the folder to export to must be another than the model's own")
    model = model_folder.build(stored.config, str(stored.located.config_file))
    config: Dict[str, Any] = {**stored.config, **model_folder.describe(model)}
    shapes = model_folder.expected_shapes(model)
    arrays = model_folder.fit(model, stored.arrays, str(stored.located.parameters))
    found = find_tokenizer(stored, tokenizer)
    config["tokenizer"] = None if found is None else {"kind": found.kind, "fingerprint": found.fingerprint}
    makers: Makers = {name: _as_float32(array) for name, array in arrays.items()}
    lost: List[str] = []
    head = "classifier" if config.get("head") else _mlm_choice(stored, chosen.mlm_head, lost)
    special = {f"{key}_token_id": getattr(found, f"{key}_id", default)
               for key, default in (("bos", 0), ("pad", 1), ("eos", 2))}
    settings = names.write_config(config, chosen.layout, head, chosen.dtype, special)
    remarks = _express(makers, shapes, config, settings, head, chosen, lost)
    refuse_foreign(out, (CONFIG_FILE, SAFETENSORS_FILE, CARD_FILE), found is not None, _is_export(out))
    target, target_shapes = _target(makers, shapes, chosen.layout, {**settings, **config}, head)
    if found is None:
        lost.append("a tokenizer: the model's folder has none (--tokenizer DIR adds one)")
    else:
        note = write_tokenizer(found, out, config["max_length"], config.get("token_types", 0) > 1)
        lost += [note] if note else []
    write_safetensors(out / SAFETENSORS_FILE, target, target_shapes, chosen.dtype)
    results = find_results(stored.located.folder)
    with atomic_write(out / CARD_FILE) as stream:
        stream.write(model_card(config, settings["architectures"][0], chosen.dtype, results, lost, remarks))
    write_json(out / CONFIG_FILE, settings)
    for note in lost:
        logger.warning("%s: not exported: %s", source, note)
    for remark in remarks:
        logger.warning("%s: %s", source, remark)
    return Report(out, lost + remarks)


def _express(makers: Makers, shapes: Dict[str, Tuple[int, ...]], config: Mapping[str, Any],
             settings: Dict[str, Any], head: Optional[str], form: Form, lost: List[str]) -> List[str]:
    """Bring into transformers' classes what they have no member for; what they cannot say goes into
    ``settings`` under a key of our own.

    Returns:
        What a user of the folder has to know.
    """
    ours: Dict[str, Any] = {"mlm_layer_norm_eps": float(config["mlm_layer_norm_eps"])}
    remarks: List[str] = []
    if head == "classifier":
        ours["head"] = scaled(makers, config["head"], settings["hidden_size"], form.dtype)
        shapes.update((name, makers[name]().shape) for name in
                      (f"classifier.{layer}.{part}" for layer in (1, 3) for part in ("weight", "bias")))
        lost.append("the MLM head: transformers' classifiers have none")
        if config["head"]["kind"] in WITHOUT_TANH:
            remarks.append(TRAINING_REMARK.format(kind=config["head"]["kind"], layer=HEAD_LAYER[form.layout]))
    elif head == "mlm" and config["mlm_layer_norm_eps"] != config["layer_norm_eps"]:
        place = {"bert": "cls.predictions.transform.LayerNorm", "roberta": "lm_head.layer_norm"}[form.layout]
        lost.append(f"the MLM head's own epsilon, {config['mlm_layer_norm_eps']:g}: transformers uses the "
                    f"encoder's, {config['layer_norm_eps']:g}, there too. For equal logits set "
                    f"model.{place}.eps")
    if config.get("separator_id") is not None:
        ours["separator_id"] = config["separator_id"]
    whole = Architecture.from_dict(config["architecture"])
    if whole.attention_units != whole.hidden:
        settings["num_attention_heads"] = pad_heads(makers, shapes, whole)
        ours["heads"] = whole.heads
    settings[names.OUR_KEY] = ours
    return remarks


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
