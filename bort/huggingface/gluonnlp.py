"""GluonNLP's BERT: a ``.params`` file with token types, a pooler and a next-sentence head."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from bort.checkpoints import model_folder
from bort.checkpoints.arrays import differences
from bort.checkpoints.params_file import read_ndarrays
from bort.errors import BortError
from bort.files import PathLike, sha256_file
from bort.huggingface.conversion import Report, Source, complete_mlm_head, fold_token_types, write_import
from bort.huggingface.tensors import Lazy, Makers


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
    problems = differences(
        shapes, {name: array.shape for name, array in arrays.items() if name not in left_out},
        optional=() if mlm else [name for name in shapes if name.startswith("decoder.")])
    if problems:
        raise BortError(f"{where}: its parameters are not those of this family: {problems}")
    notes = [f"left out, as no network of this project has them: {', '.join(left_out)}"] if left_out else []
    makers: Makers = {name: _as_float32(array) for name, array in arrays.items() if name in shapes}
    if types is not None and not kept:
        fold_token_types(np.asarray(types, dtype="float32"), makers, shapes, token_types, where, notes)
    state = complete_mlm_head(makers, shapes, mlm, seed, notes)
    record = {"mlm_head": state, "imported_from": {"format": "GluonNLP", "notes": notes,
                                                   "files": {Path(source).name: sha256_file(source)}}}
    return write_import(Source(description, Lazy(makers), record, notes), source, out, tokenizer)


def _as_float32(array: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: np.asarray(array, dtype="float32")
