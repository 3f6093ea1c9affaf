"""What our parameters and settings are called at Hugging Face: one table of names, one
translation of config.json.

Layouts are Hugging Face's model types. ``bert`` is what a Bort is there (plain ``BertModel`` with one
token type); ``roberta`` has two more rows of positions before the first that is used, and other names
for its heads.
"""
from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from bort.architecture import PRESETS, ROBERTA_VOCAB_SIZE, Architecture
from bort.errors import BortError
from bort.json_files import shown

LAYOUTS = ("bert", "roberta")

# Ours on the left. Body names stand under the layout's prefix ("bert.", "roberta."), which BertModel and
# RobertaModel leave out; {i} is a layer. At Hugging Face all of this exists in both layouts under the same
# names.
BODY_NAMES = (
    ("word_embed.0.weight", "embeddings.word_embeddings.weight"),
    ("encoder.position_weight", "embeddings.position_embeddings.weight"),
    ("encoder.layer_norm.gamma", "embeddings.LayerNorm.weight"),
    ("encoder.layer_norm.beta", "embeddings.LayerNorm.bias"),
)
LAYER_NAMES = tuple((f"encoder.transformer_cells.{{i}}.{ours}", f"encoder.layer.{{i}}.{theirs}") for ours,
                    theirs in (("attention_cell.proj_query.weight", "attention.self.query.weight"),
                               ("attention_cell.proj_query.bias", "attention.self.query.bias"),
                               ("attention_cell.proj_key.weight", "attention.self.key.weight"),
                               ("attention_cell.proj_key.bias", "attention.self.key.bias"),
                               ("attention_cell.proj_value.weight", "attention.self.value.weight"),
                               ("attention_cell.proj_value.bias", "attention.self.value.bias"),
                               ("proj.weight", "attention.output.dense.weight"),
                               ("proj.bias", "attention.output.dense.bias"),
                               ("layer_norm.gamma", "attention.output.LayerNorm.weight"),
                               ("layer_norm.beta", "attention.output.LayerNorm.bias"),
                               ("ffn.ffn_1.weight", "intermediate.dense.weight"),
                               ("ffn.ffn_1.bias", "intermediate.dense.bias"),
                               ("ffn.ffn_2.weight", "output.dense.weight"),
                               ("ffn.ffn_2.bias", "output.dense.bias"),
                               ("ffn.layer_norm.gamma", "output.LayerNorm.weight"),
                               ("ffn.layer_norm.beta", "output.LayerNorm.bias"),))
MLM_NAMES = {"bert": (("decoder.0.weight", "cls.predictions.transform.dense.weight"),
                      ("decoder.0.bias", "cls.predictions.transform.dense.bias"),
                      ("decoder.2.gamma", "cls.predictions.transform.LayerNorm.weight"),
                      ("decoder.2.beta", "cls.predictions.transform.LayerNorm.bias"),
                      ("decoder.3.bias", "cls.predictions.bias")),
             "roberta": (("decoder.0.weight", "lm_head.dense.weight"),
                         ("decoder.0.bias", "lm_head.dense.bias"),
                         ("decoder.2.gamma", "lm_head.layer_norm.weight"),
                         ("decoder.2.beta", "lm_head.layer_norm.bias"), ("decoder.3.bias", "lm_head.bias")),}
HEAD_NAMES = {"bert": (("classifier.1.weight", "bert.pooler.dense.weight"),
                       ("classifier.1.bias", "bert.pooler.dense.bias"),
                       ("classifier.3.weight", "classifier.weight"),
                       ("classifier.3.bias", "classifier.bias")),
              "roberta": (("classifier.1.weight", "classifier.dense.weight"),
                          ("classifier.1.bias", "classifier.dense.bias"),
                          ("classifier.3.weight", "classifier.out_proj.weight"),
                          ("classifier.3.bias", "classifier.out_proj.bias")),}
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
OPTIONAL_NAMES = {"token_types": (("token_type_embed.0.weight", TOKEN_TYPES),),
                  "pooler": (("pooler.weight", "pooler.dense.weight"), ("pooler.bias", "pooler.dense.bias"))}
"""Parts of the body that a network has if its description has the member."""
TIED_COPIES = {  # theirs -> ours; stored by older versions of transformers
    "bert": {"cls.predictions.decoder.weight": "word_embed.0.weight",
             "cls.predictions.decoder.bias": "decoder.3.bias"},
    "roberta": {"lm_head.decoder.weight": "word_embed.0.weight", "lm_head.decoder.bias": "decoder.3.bias"},
}
TIED = frozenset([*TIED_COPIES["bert"], "bert.embeddings.word_embeddings.weight", "cls.predictions.bias",
                  *TIED_COPIES["roberta"], "roberta.embeddings.word_embeddings.weight", "lm_head.bias"])
"""All names of what :data:`TIED_COPIES` ties together."""
WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What wrappers of PyTorch put before every name: DataParallel, torch.compile, and training frameworks."""
NOT_PARAMETERS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Buffers that some versions of transformers stored: the numbers 0, 1, 2, ... and zeros."""
LEFT_OUT = {"bert": ("bert.pooler.", "cls.seq_relationship."), "roberta": ("roberta.pooler.",)}
"""Parts that no network of ours has; reported, never dropped in silence. In a classifier, BERT's pooler is
its head."""
CLASSES = {"bert": ("BertModel", "BertForMaskedLM", "BertForSequenceClassification", "BertForPreTraining"),
           "roberta": ("RobertaModel", "RobertaForMaskedLM", "RobertaForSequenceClassification")}
OUR_KEY = "bort"
"""Member of an exported config.json with what Hugging Face's own members cannot say."""


def name_map(layout: str, depth: int, mlm: bool, head: bool,
             description: Optional[Mapping[str, Any]] = None) -> Dict[str, str]:
    """Our names to Hugging Face's, prefix included, of a network with ``depth`` layers, those heads, and the
    :data:`OPTIONAL_NAMES` that its description says."""
    names = {ours: f"{layout}.{theirs}" for ours, theirs in BODY_NAMES}
    for member, pairs in OPTIONAL_NAMES.items():
        names.update((ours, f"{layout}.{theirs}") for ours, theirs in pairs
                     if description is not None and description.get(member))
    for index in range(depth):
        names.update((ours.format(i=index), f"{layout}.{theirs.format(i=index)}") for ours,
                     theirs in LAYER_NAMES)
    names.update(MLM_NAMES[layout] if mlm else ())
    names.update(HEAD_NAMES[layout] if head else ())
    return names


def unwrapped(names: Sequence[str]) -> int:
    """How many leading characters of every name were put there by wrappers (:data:`WRAPPERS`)."""
    length = 0
    while names:
        found = next((wrapper for wrapper in WRAPPERS
                      if all(name.startswith(wrapper, length) for name in names)), None)
        if found is None:
            break
        length += len(found)
    return length


def common_prefix(names: Sequence[str]) -> str:
    """The dotted beginning that all names share, "" where there is none."""
    return os.path.commonprefix(list(names)).rpartition(".")[0]


def infer_layout(names: Sequence[str]) -> Optional[str]:
    """The layout whose prefix stored names have, for a config without model_type; None where they have none.

    The bare names of BertModel and RobertaModel are alike.
    """
    return next((layout for layout in LAYOUTS if any(name.startswith(f"{layout}.") for name in names)), None)


def canonical(names: Sequence[str], layout: str, where: str) -> Dict[str, str]:
    """Each stored name's full and present-day form: with the layout's prefix, LayerNorm's gamma
    and beta renamed.

    Prefixes of wrappers are taken off.

    Raises:
        BortError: two names have the same form.
    """
    result: Dict[str, str] = {}
    seen = set()
    wrapped = unwrapped(names)
    for name in names:
        full = name[wrapped:]
        if full.startswith(("embeddings.", "encoder.", "pooler.")):
            full = f"{layout}.{full}"
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if full.endswith(old):
                full = full[:-len(old)] + new
        if full in seen:
            raise BortError(f"{where}: the tensor {full!r} is there under two names")
        seen.add(full)
        result[name] = full
    return result


def class_names(config: Mapping[str, Any]) -> List[str]:
    """The classes that a config names, as far as they are names."""
    named = config.get("architectures")
    return [name[:80] for name in named[:8] if isinstance(name, str)] if isinstance(named, list) else []


def head_name(layout: str, config: Mapping[str, Any], names: Sequence[str], where: str) -> Optional[str]:
    """"mlm", "classifier" or None: which head the folder's class has, or its tensors where no class is named.

    Raises:
        BortError: a class with another head.
    """
    named = class_names(config)
    if named and named[0] not in CLASSES[layout]:
        raise BortError(f"{where}: a {named[0]}, which has a head unknown here; supported are "
                        f"{', '.join(CLASSES[layout])} (--body-only imports any class without its head)")
    ours, theirs = HEAD_NAMES[layout][-2]
    if theirs in names and (not named or named[0].endswith("SequenceClassification")):
        return "classifier"
    return "mlm" if any(theirs in names for _, theirs in MLM_NAMES[layout]) else None


def read_config(config: Any, where: str) -> Dict[str, Any]:
    """Our settings out of a Hugging Face ``config.json``: what ``checkpoints.build`` takes, and ``pad_id``.

    Raises:
        BortError: a member is missing or says what no network of this family can do; it is named, with the
        remedy.
    """
    if not isinstance(config, dict):
        raise BortError(f"{where}: not a JSON object")
    layout = config.get("model_type")
    if layout not in LAYOUTS:
        supported = "supported are " + " and ".join(LAYOUTS)
        if layout is None:
            raise BortError(f"{where}: model_type is missing; {supported}; add the one it is")
        raise BortError(f"{where}: model_type is {shown(layout, 80)}; {supported}")
    _refuse_unsupported(config, layout, where)
    sizes = [_whole(config, key, where) for key in
             ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")]
    pad_id = _whole(config, "pad_token_id", where, {"bert": 0, "roberta": 1}[layout], lowest=0)
    rows = _whole(config, "max_position_embeddings", where)
    max_length = rows - (pad_id + 1 if layout == "roberta" else 0)
    if max_length < 1:
        raise BortError(f"{where}: max_position_embeddings {rows} leaves no position after pad_token_id "
                        f"{pad_id}")
    try:
        architecture = Architecture(*sizes)
    except BortError as error:
        raise BortError(f"{where}: {error}") from error
    epsilon = _fraction(config, "layer_norm_eps", where, 1e-12)
    dropout = _fraction(config, "hidden_dropout_prob", where, 0.1)
    head_dropout = config.get("classifier_dropout")
    return {"architecture": architecture.to_dict(), "vocab_size": _whole(config, "vocab_size", where),
            "max_length": max_length, "dropout": dropout, "layer_norm_eps": epsilon,
            "mlm_layer_norm_eps": epsilon, "head": None, "pad_id": pad_id, "head_dropout": dropout
            if head_dropout is None else _fraction(config, "classifier_dropout", where, 0.1)}


def is_released_bort(config: Mapping[str, Any], description: Mapping[str, Any]) -> bool:
    """Whether a foreign folder is one of the release's Borts (``amazon/bort``).

    It has the architecture of one and RoBERTa's vocabulary under the model type ``bert``, which no BERT has,
    and was not exported by this project. Its ``layer_norm_eps`` (1e-5) is that of the encoder alone: the MLM
    head it was converted from has 1e-12, which a config of transformers cannot say.
    """
    released = [PRESETS[name].architecture.to_dict() for name in ("bort_4_8_768_1024", "bort_2_16_512_1024")]
    return (config.get("model_type") == "bert" and OUR_KEY not in config
            and description["vocab_size"] == ROBERTA_VOCAB_SIZE and description["architecture"] in released)


def _refuse_unsupported(config: Mapping[str, Any], layout: str, where: str) -> None:
    """Members whose other values change the function that the network computes."""
    required: Tuple[Tuple[str, Any, Tuple[Any, ...], str], ...] = (
                ("hidden_act", "gelu", ("gelu", "gelu_python"),
                 "the activation of this family is the exact (erf) GELU"),
                ("position_embedding_type", "absolute", ("absolute",),
                 "positions of this family are absolute and learned"),
                ("is_decoder", False, (False,), "this family has encoders only"),
                ("add_cross_attention", False, (False,), "this family has encoders only"),
                ("tie_word_embeddings", True, (True,),
                 "the MLM head of this family shares the word embedding's matrix"),
                ("pruned_heads", {}, ({}, None), "every layer of this family has the same number of heads"),
                ("quantization_config", None, (None,), "import the unquantized model"),)
    for key, default, allowed, why in required:
        value = config.get(key, default)
        if not any(type(value) is type(known) and value == known for known in allowed):
            raise BortError(f"{where}: {key} is {shown(value, 80)}, which is not supported: {why}")
    if "embedding_size" in config and config["embedding_size"] != config.get("hidden_size"):
        raise BortError(f"{where}: embedding_size is {str(config['embedding_size'])[:80]}, not hidden_size: "
                        "a factorized embedding is not supported")


def _whole(config: Mapping[str, Any], key: str, where: str, default: Optional[int] = None,
           lowest: int = 1) -> int:
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not lowest <= value < 1 << 28:
        raise BortError(f"{where}: {key} is {shown(value, 80)}, not a whole number of at least {lowest}")
    return value


def _fraction(config: Mapping[str, Any], key: str, where: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise BortError(f"{where}: {key} is {shown(value, 80)}, not a number from 0 to 1")
    return float(value)


def read_labels(config: Mapping[str, Any], num_outputs: int) -> Optional[List[str]]:
    """The class names in the order of the outputs; None where the config has only placeholders
    (``LABEL_0``)."""
    names = config.get("id2label")
    if not isinstance(names, dict) or len(names) != num_outputs:
        return None
    given = [names.get(str(index)) for index in range(num_outputs)]
    labels = [label for label in given if isinstance(label, str) and len(label) <= 200]
    if len(labels) < num_outputs or labels == [f"LABEL_{index}" for index in range(num_outputs)]:
        return None
    return labels


def write_config(description: Mapping[str, Any], layout: str, head: Optional[str], dtype: str,
                 special_ids: Mapping[str, int]) -> Dict[str, Any]:
    """Hugging Face's ``config.json`` of a network: the inverse of :func:`read_config`.

    Args:
        description: as ``checkpoints.describe`` gives it.
        layout: "bert" or "roberta".
        head: "mlm", "classifier" or None.
        special_ids: pad_token_id, bos_token_id and eos_token_id.
    """
    architecture = Architecture.from_dict(description["architecture"])
    suffix = {"mlm": "ForMaskedLM", "classifier": "ForSequenceClassification", None: "Model"}[head]
    rows = description["max_length"] + (special_ids["pad_token_id"] + 1 if layout == "roberta" else 0)
    config: Dict[str, Any] = {
        "architectures": [layout.capitalize() + suffix], "model_type": layout, "hidden_act": "gelu",
        "hidden_size": architecture.hidden, "intermediate_size": architecture.intermediate,
        "num_hidden_layers": architecture.depth, "num_attention_heads": architecture.heads,
        "vocab_size": description["vocab_size"], "max_position_embeddings": rows,
        "type_vocab_size": description.get("token_types") or 1,
        "position_embedding_type": "absolute", "layer_norm_eps": description["layer_norm_eps"],
        "hidden_dropout_prob": description["dropout"], "attention_probs_dropout_prob": description["dropout"],
        "initializer_range": 0.02, "tie_word_embeddings": True, "torch_dtype": dtype, **special_ids}
    if head == "classifier":
        details = description["head"]
        labels = details.get("labels") or [f"LABEL_{index}" for index in range(details["num_outputs"])]
        config["classifier_dropout"] = details.get("dropout", description["dropout"])
        config["id2label"] = {str(index): str(label) for index, label in enumerate(labels)}
        config["label2id"] = {str(label): index for index, label in enumerate(labels)}
        config["problem_type"] = "single_label_classification" if details["num_outputs"] > 1 else "regression"
    return config


def expected_shape(ours: str, shape: Tuple[int, ...], layout: str, pad_id: int) -> Tuple[int, ...]:
    """The shape that Hugging Face's tensor for our parameter of ``shape`` has."""
    if layout == "roberta" and ours == "encoder.position_weight":
        return (shape[0] + pad_id + 1, shape[1])
    return shape
