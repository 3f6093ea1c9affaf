"""A student that starts from a larger network's weights: word vectors on their principal components, layers
evenly spaced, the heaviest units of attention and neurons of each.

Not in the paper, whose students start from random weights. With too little text such a network learns how
frequent words are and little more (``benchmarks/results/showcase.md``).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from bort.architecture import Architecture, parse
from bort.checkpoints import model_folder, vocabulary
from bort.errors import BortError
from bort.files import PathLike
from bort.models import Bert, initialize

Arrays = Mapping[str, np.ndarray]
CELL = "encoder.transformer_cells.{}."
EMBEDDINGS = ("encoder.position_weight", "token_type_embed.0.weight")


def warm_started(
    folder: PathLike, architecture: str, tokenizer: Any, dropout: Optional[float] = None
) -> Bert:
    """A network of ``architecture`` that starts from the model in ``folder``.

    Args:
        architecture: ``D,A,H,I``, a preset or a ``best.json``; no number larger than the model's.
        tokenizer: the corpus's; the model must have its vocabulary.
        dropout: that of the model by default.

    Raises:
        BortError: the vocabulary is not the corpus's, or the model is smaller than the student somewhere.
    """
    large = model_folder.load(folder).body
    if not vocabulary.fits(large.vocab_size, vocabulary.recorded_at(folder), tokenizer):
        raise BortError(
            f"--warm-start {folder}: its vocabulary has {large.vocab_size} tokens, the corpus's "
            f"{tokenizer.vocab_size}; prepare the corpus with this model's tokenizer"
        )
    small = parse(architecture)
    options = replace(large.options, pooler=False)
    if dropout is not None:
        options = replace(options, dropout=dropout)
    try:
        arrays = shrunk(model_folder.parameter_arrays(large), large.architecture, small)
    except BortError as error:
        raise BortError(f"--warm-start {folder}: {error}") from error
    student = Bert(small, large.vocab_size, **asdict(options))
    initialize(student, 0)
    model_folder.set_parameters(student, arrays, str(folder))
    return student


def shrunk(arrays: Arrays, large: Architecture, small: Architecture) -> Dict[str, np.ndarray]:
    """The parameters of ``small`` out of those of ``large``.

    Hidden states are projected on the H' leading principal components of the word vectors, with every matrix
    that reads or writes them; nothing is projected where H' = H, and nothing changes at all where all sizes
    are equal. Layer i of D' is layer round(i D / D') (counted from 1), so that the last one stays. Of the
    heads those with the largest norm of value times output matrix stay, of the neurons those with the largest
    product of the norms of what they read and write, each in their old order.

    Args:
        arrays: float32, by the names of :mod:`bort.checkpoints.model_folder`.

    Raises:
        BortError: ``small`` is larger somewhere.
    """
    sizes = [(xi.depth, xi.attention_units, xi.hidden, xi.intermediate) for xi in (small, large)]
    if any(size > most for size, most in zip(*sizes)):
        raise BortError(f"{small.display} is larger than its {large.display} in depth, units of attention, "
                        "hidden size or intermediate size; choose a smaller --architecture")
    basis = principal_components(arrays["word_embed.0.weight"], small.hidden)
    found = {name: arrays[name] @ basis for name in EMBEDDINGS if name in arrays}
    words = arrays["word_embed.0.weight"]
    if small.hidden < large.hidden:
        words = words - words.mean(axis=0)
    found["word_embed.0.weight"] = words @ basis
    found.update(_normalization(arrays, "encoder.layer_norm.", basis))
    for new, old in enumerate(layers_kept(large.depth, small.depth)):
        cell = {name[len(CELL.format(old)):]: array for name, array in arrays.items()
                if name.startswith(CELL.format(old))}
        layer = _layer(cell, basis, large.head_size, small)
        found.update({CELL.format(new) + name: array for name, array in layer.items()})
    found["decoder.0.weight"] = basis.T @ arrays["decoder.0.weight"] @ basis
    found["decoder.0.bias"] = arrays["decoder.0.bias"] @ basis
    found.update(_normalization(arrays, "decoder.2.", basis))
    found["decoder.3.bias"] = arrays["decoder.3.bias"]
    return {name: np.ascontiguousarray(array, dtype="float32") for name, array in found.items()}


def principal_components(words: np.ndarray, size: int) -> np.ndarray:
    """An orthonormal basis (H, size) of the directions in which word vectors (V, H) differ most; the identity
    where ``size`` is H."""
    hidden = words.shape[1]
    if size == hidden:
        return np.eye(hidden, dtype="float32")
    _, vectors = np.linalg.eigh(np.cov(words.astype("float64"), rowvar=False))
    leading = vectors[:, ::-1][:, :size]
    return leading * np.sign(leading[np.abs(leading).argmax(axis=0), np.arange(size)])  # one of two signs


def layers_kept(depth: int, kept: int) -> List[int]:
    """Indices (from 0) of ``kept`` evenly spaced layers of ``depth``, the last one among them."""
    return [int((place * depth + kept // 2) // kept) - 1 for place in range(1, kept + 1)]


def _layer(cell: Arrays, basis: np.ndarray, head_size: int, small: Architecture) -> Dict[str, np.ndarray]:
    """One layer's parameters, without the layer's prefix."""
    value, output = cell["attention_cell.proj_value.weight"], cell["proj.weight"]
    heads = len(value) // head_size
    parts = [slice(head * head_size, (head + 1) * head_size) for head in range(heads)]
    weight = np.array([np.linalg.norm(output[:, part] @ value[part]) for part in parts])
    kept = _heaviest(weight, -(-small.attention_units // head_size))
    units = [head * head_size + unit for head in kept for unit in range(head_size)][:small.attention_units]
    reads, writes = cell["ffn.ffn_1.weight"], cell["ffn.ffn_2.weight"]
    neurons = _heaviest(np.linalg.norm(reads, axis=1) * np.linalg.norm(writes, axis=0), small.intermediate)
    found = {
        "proj.weight": basis.T @ output[:, units],
        "proj.bias": cell["proj.bias"] @ basis,
        "ffn.ffn_1.weight": reads[neurons] @ basis,
        "ffn.ffn_1.bias": cell["ffn.ffn_1.bias"][neurons],
        "ffn.ffn_2.weight": basis.T @ writes[:, neurons],
        "ffn.ffn_2.bias": cell["ffn.ffn_2.bias"] @ basis,
        **_normalization(cell, "layer_norm.", basis),
        **_normalization(cell, "ffn.layer_norm.", basis),
    }
    for name in ("query", "key", "value"):
        name = f"attention_cell.proj_{name}."
        found[name + "weight"] = cell[name + "weight"][units] @ basis
        found[name + "bias"] = cell[name + "bias"][units]
    return found


def _heaviest(weights: np.ndarray, count: int) -> List[int]:
    """Indices of the ``count`` largest, in their order."""
    return sorted(np.argsort(-weights, kind="stable")[:count].tolist())


def _normalization(arrays: Arrays, prefix: str, basis: np.ndarray) -> Dict[str, np.ndarray]:
    """LayerNorm's parameters; of gamma, which a rotation mixes, the mean stays."""
    gamma, beta = arrays[prefix + "gamma"], arrays[prefix + "beta"]
    hidden, size = basis.shape
    kept = gamma if size == hidden else np.full(size, gamma.mean(), dtype="float32")
    return {prefix + "gamma": kept, prefix + "beta": beta @ basis}
