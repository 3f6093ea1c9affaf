"""What every import shares: its report, token types folded into positions, a missing MLM head, the folder."""
from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from bort.checkpoints import model_folder
from bort.checkpoints.inspection import mlm_head_state
from bort.errors import BortError
from bort.files import PathLike
from bort.huggingface.output import refuse_foreign
from bort.huggingface.tensor_files import inside
from bort.huggingface.tensors import Lazy, Makers
from bort.json_files import read_json
from bort.models.initial_values import initial_value
from bort.text.tokenizers.loading import Tokenizer, find_tokenizer_files, load_tokenizer

logger = logging.getLogger("bort.huggingface")

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 1 << 20
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


def fold_token_types(rows: np.ndarray, makers: Makers, shapes: Mapping[str, Tuple[int, ...]], choice: str,
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


def complete_mlm_head(makers: Makers, shapes: Mapping[str, Tuple[int, ...]], there: bool, seed: int,
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


def write_import(model: Source, source: PathLike, out: PathLike, tokenizer: Optional[PathLike]) -> Report:
    """Write the model folder ``out`` with the tokenizer of ``tokenizer``, or else of ``source``.

    Raises:
        BortError: the tokenizer has more ids than the model, or ``out`` holds files of something else.
    """
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
