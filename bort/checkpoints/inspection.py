"""What a model's files hold, and whether they are whole: ``inspect`` and ``verify``, and what they ask."""
from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from bort.architecture import PRESETS, ROBERTA_VOCAB_SIZE, Architecture
from bort.backend.mxnet import mx
from bort.checkpoints import mlm_probe, model_folder
from bort.checkpoints.arrays import not_finite
from bort.checkpoints.params_file import read_ndarrays
from bort.errors import BortError
from bort.files import PathLike, sha256_file
from bort.text.tokenizers.loading import (
    Tokenizer,
    find_default_tokenizer,
    find_tokenizer_files,
    load_tokenizer,
)

BORT = PRESETS["bort"].architecture
# The check that was published with the weights: the text "Schloß Nymphenburg in Munich is really nice!", and
# the corner [:, :3, :3] of the last hidden states.
RELEASED_IDS = (0, 18077, 4082, 7804, 8606, 6195, 2457, 3321, 11, 10489, 16, 269, 2579, 328, 2)
RELEASED_STATES = ((-0.0349, 0.0436, -1.8654), (-0.6964, 0.0835, -1.7393), (-0.9819, 0.2956, -0.2868))
RELEASED_TOLERANCE = 1e-4
PARTS = (("embeddings", ("word_embed.", "token_type_embed.", "encoder.position_weight",
                         "encoder.layer_norm.")),
         ("encoder", ("encoder.transformer_cells.",)), ("mlm_head", ("decoder.",)),
         ("pooler", ("pooler.",)), ("classifier", ("classifier.",)))


def mlm_head_state(arrays: Mapping[str, np.ndarray], config: Optional[Mapping[str, Any]] = None) -> str:
    """"trained", "untrained" or "absent": what can be read off the MLM head's parameters without running it.

    A head whose three biases are all 0 and whose gammas are all 1 is as it was initialized; one step of
    training changes every one of them. "absent" is such a head that an import made up as its source had
    none, which ``config`` records.
    """
    zeros = all(not np.any(arrays[name]) for name in ("decoder.0.bias", "decoder.2.beta", "decoder.3.bias"))
    if not zeros or not np.all(np.asarray(arrays["decoder.2.gamma"]) == 1):
        return "trained"
    return "absent" if (config or {}).get("mlm_head") == "absent" else "untrained"


def find_tokenizer(stored: model_folder.Stored, path: Optional[PathLike] = None) -> Optional[Tokenizer]:
    """The tokenizer at ``path``, else the one in the model's folder, else the default one if V fits; or None.

    Raises:
        BortError: it is damaged, or not the one that the model was saved with.
    """
    vocab_size, recorded = stored.config["vocab_size"], stored.config.get("tokenizer")
    found: Optional[Tokenizer] = None
    if path is not None:
        found = load_tokenizer(path)
    elif any(file.name != "tokenizer_config.json" for file in find_tokenizer_files(stored.located.folder)):
        found = load_tokenizer(stored.located.folder)
    elif vocab_size == ROBERTA_VOCAB_SIZE:
        default = find_default_tokenizer()
        found = None if default is None else load_tokenizer(default)
    if found is None:
        return None
    if found.vocab_size > vocab_size:
        raise BortError(f"{path or stored.located.folder}: the tokenizer has {found.vocab_size} ids, the "
                        f"model only {vocab_size}: they do not belong together")
    if isinstance(recorded, Mapping) and recorded.get("fingerprint") != found.fingerprint:
        raise BortError(f"{path or stored.located.folder}: not the tokenizer that the model was saved with "
                        f"(its fingerprint is {found.fingerprint[:12]}..., the config says "
                        f"{str(recorded.get('fingerprint'))[:12]}...)")
    return found


def inspect(path: PathLike, architecture: Optional[str] = None, heads: Optional[int] = None,
            tokenizer: Optional[PathLike] = None) -> Dict[str, Any]:
    """What a model folder or bare ``.params`` file holds, without building the network.

    Raises:
        BortError: there is no model, or it cannot be read.
    """
    stored = model_folder.read(path, architecture, heads, verify=False)
    located, config = stored.located, stored.config
    description = model_folder.describe(model_folder.build(config, str(located.config_file)))
    found = find_tokenizer(stored, tokenizer)
    checksum = sha256_file(located.parameters)
    recorded = config.get("sha256")
    kind = "model folder" if located.config is not None else "bare parameter file"
    state = mlm_head_state(stored.arrays, config) if "decoder.0.bias" in stored.arrays else "missing"
    shapes = {name: array.shape for name, array in stored.arrays.items()
              if state != "absent" or not name.startswith("decoder.")}
    return {"kind": kind + (" of a classifier" if config.get("head") else ""),
            "parameters_file": str(located.parameters), **network_facts(description, shapes),
            "dtypes": sorted({str(array.dtype) for array in stored.arrays.values()}), "sha256": checksum,
            "checksum": "not recorded" if recorded is None else "as recorded" if recorded == checksum
            else f"NOT the recorded {recorded}", "mlm_head": mlm_head_state(stored.arrays, config)
            if "decoder.0.bias" in stored.arrays else "missing", "tokenizer": None if found is None
            else {"kind": found.kind, "vocab_size": found.vocab_size, "fingerprint": found.fingerprint},
            "records": {key: value for key, value in config.items() if key not in _KNOWN}}


_KNOWN = frozenset(("format", "format_version", "architecture", "vocab_size", "max_length", "dropout",
                    "layer_norm_eps", "mlm_layer_norm_eps", "token_types", "separator_id", "pooler", "head",
                    "tokenizer", "sha256", "mlm_head"))


def network_facts(config: Mapping[str, Any], shapes: Mapping[str, Tuple[int, ...]]) -> Dict[str, Any]:
    """What ``inspect`` reports of a network: its config in short, and parameters counted by part."""
    counts = {part: sum(int(np.prod(shape, dtype=np.int64)) for name, shape in shapes.items()
                        if name.startswith(prefixes)) for part, prefixes in PARTS}
    architecture = Architecture.from_dict(config["architecture"])
    preset = next((name for name, preset in PRESETS.items() if preset.architecture == architecture), None)
    return {"architecture": str(architecture), "preset": preset, "vocab_size": config["vocab_size"],
            "max_length": config["max_length"], "layer_norm_eps": config["layer_norm_eps"],
            "mlm_layer_norm_eps": config["mlm_layer_norm_eps"],
            **{key: config[key] for key in ("token_types", "separator_id") if key in config},
            "parameters": {**{part: count for part, count in counts.items() if count},
                           "total": sum(counts.values())}, "head": config["head"]}


class Check(NamedTuple):
    """One line of ``verify``: ``outcome`` is "ok", "warning", "failed" or "skipped"."""

    name: str
    outcome: str
    detail: str


def verify(path: PathLike, architecture: Optional[str] = None, heads: Optional[int] = None,
           tokenizer: Optional[PathLike] = None, released: bool = False,
           sentences: Optional[List[str]] = None) -> List[Check]:
    """Check everything about a model that can be checked without its training data.

    Args:
        path, architecture, heads: as for ``checkpoints.load``.
        tokenizer: a folder to take the tokenizer from.
        released: the weights must be the published ones; without it, others are only remarked on.
        sentences: for the fill-mask check, in the language of the model.

    Raises:
        BortError: there is no model at ``path``, or its files cannot be read at all.
    """
    stored = model_folder.read(path, architecture, heads, verify=False)
    located = stored.located
    checks = [_checksum(stored), _tied(located.parameters)]
    try:
        model = model_folder.build(stored.config, str(located.config_file))
        model_folder.fit(model, stored.arrays, str(located.parameters))
    except BortError as error:
        return [*checks, Check("shapes", "failed", str(error))]
    checks.append(Check("shapes", "ok", f"{len(stored.arrays)} parameters, all as the architecture has them"))
    broken = not_finite(stored.arrays)
    checks.append(Check("finite values", "failed", f"NaN or infinity in {', '.join(broken[:5])}") if broken
                  else Check("finite values", "ok", "no NaN, no infinity"))
    found: Optional[Tokenizer] = None
    bert: Any = model.body
    try:
        found = find_tokenizer(stored, tokenizer)
        checks.append(Check("tokenizer", "skipped", "there is none (--tokenizer DIR)") if found is None else
                      Check("tokenizer", "ok", f"{found.kind}, {found.vocab_size} of {bert.vocab_size} ids"))
    except BortError as error:
        checks.append(Check("tokenizer", "failed", str(error)))
    if broken:
        return checks
    model_folder.set_parameters(model, stored.arrays, str(located.parameters))
    bert.hybridize()
    checks.append(_published(bert, released))
    checks.append(_fill_mask(bert, stored, found, sentences))
    return checks


def _checksum(stored: model_folder.Stored) -> Check:
    recorded = stored.config.get("sha256")
    if recorded is None:
        return Check("checksum", "skipped", "none is recorded")
    actual = sha256_file(stored.located.parameters)
    if actual == recorded:
        return Check("checksum", "ok", actual)
    return Check("checksum", "failed", f"{actual}, recorded is {recorded}: the file was damaged or replaced")


def _tied(path: PathLike) -> Check:
    # A stored copy that differs was refused by checkpoints.read before it came to this.
    twice = any(name.endswith(model_folder.TIED) for name in read_ndarrays(path))
    return Check("tied weights", "ok", "stored twice, equal" if twice else "stored once")


def _published(bert: Any, required: bool) -> Check:
    name = "released weights"
    if bert.architecture != BORT or bert.vocab_size != ROBERTA_VOCAB_SIZE:
        return Check(name, "failed" if required else "skipped",
                     f"not Bort's architecture but {bert.architecture.display}, V={bert.vocab_size}")
    states = bert(mx.nd.array([RELEASED_IDS], dtype="int32"), mx.nd.array([len(RELEASED_IDS)])).asnumpy()
    distance = float(np.abs(states[0, :3, :3] - np.asarray(RELEASED_STATES)).max())
    if distance <= RELEASED_TOLERANCE:
        return Check(name, "ok", f"the published hidden states, to {distance:.1e}")
    return Check(name, "failed" if required else "skipped",
                 f"not the published hidden states (off by {distance:.2g}), so these are other weights")


def _fill_mask(bert: Any, stored: model_folder.Stored, tokenizer: Optional[Tokenizer],
               sentences: Optional[List[str]]) -> Check:
    name = "fill-mask"
    state = mlm_head_state(stored.arrays, stored.config)
    if state != "trained":
        known = stored.config.get("mlm_head") in ("absent", "untrained") or bool(stored.config.get("head"))
        return Check(name, "warning" if known else "failed",
                     "the MLM head is random (as it was initialized): fill-mask and distilling from it give "
                     "nonsense")
    if tokenizer is None:
        return Check(name, "skipped", "needs a tokenizer")
    try:
        verdict = mlm_probe.probe(bert, tokenizer, sentences)
    except BortError as error:
        return Check(name, "skipped", str(error))
    if verdict.head == "trained":
        return Check(name, "ok", f"the MLM head is trained: {verdict}")
    if stored.config.get("head"):
        return Check(name, "warning", f"the MLM head no longer fits the fine-tuned body: {verdict}")
    if verdict.head == "frequencies":
        return Check(name, "warning",
                     f"the MLM head knows how frequent words are, but no contexts: {verdict}")
    return Check(name, "failed", f"the MLM head behaves like a random one: {verdict}")
