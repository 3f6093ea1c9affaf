"""The network in plain numpy, float64: an independent statement of what ``Bert`` computes."""
from __future__ import annotations

import numpy as np
from scipy.special import erf, softmax


def parameters_of(model):
    """Parameters by name as float64."""
    return {name: parameter.data().asnumpy().astype("float64")
            for name, parameter in model._collect_params_with_prefix().items()}


def types_of(token_ids, separator_id):
    """0 up to the first separator and with it, then 1."""
    types, second = [], 0
    for token in token_ids:
        types.append(second)
        second = max(second, int(token == separator_id))
    return types


def hidden_states(model, token_ids, types=None):
    """The last hidden states (T, H) of one unpadded sequence of token ids, and of ``types`` where the network
    has any."""
    p, a = parameters_of(model), model.architecture
    x = p["word_embed.0.weight"][token_ids] + p["encoder.position_weight"][:len(token_ids)]
    if types is not None:
        x = x + p["token_type_embed.0.weight"][types]
    x = layer_norm(x, p, "encoder.layer_norm", model.layer_norm_eps)
    for index in range(a.depth):
        cell = f"encoder.transformer_cells.{index}."
        query, key, value = (linear(x, p, f"{cell}attention_cell.proj_{name}")
                             for name in ("query", "key", "value"))
        heads = []
        for head in range(a.heads):
            units = slice(head * a.head_size, (head + 1) * a.head_size)
            scores = query[:, units] @ key[:, units].T / np.sqrt(a.head_size)
            heads.append(softmax(scores, axis=-1) @ value[:, units])
        attended = linear(np.concatenate(heads, axis=1), p, f"{cell}proj")
        x = layer_norm(x + attended, p, f"{cell}layer_norm", model.layer_norm_eps)
        inner = linear(x, p, f"{cell}ffn.ffn_1")
        inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
        x = layer_norm(x + linear(inner, p, f"{cell}ffn.ffn_2"), p, f"{cell}ffn.layer_norm",
                       model.layer_norm_eps)
    return x


def linear(x, p, name):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def layer_norm(x, p, name, epsilon):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon) * p[f"{name}.gamma"] + p[f"{name}.beta"]
