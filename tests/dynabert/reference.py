"""A sub-network's loss and gradients in PyTorch, written apart from the project's own code."""
from __future__ import annotations

import math

import numpy as np


def _forward(torch, weights, heads, size, inner, layers, ids, valid):
    functional = torch.nn.functional
    hidden = weights["word_embed.0.weight"].shape[1]
    x = weights["word_embed.0.weight"][ids] + weights["encoder.position_weight"][:ids.shape[1]]
    x = functional.layer_norm(x, (hidden,), weights["encoder.layer_norm.gamma"],
                              weights["encoder.layer_norm.beta"], 1e-5)
    padding = torch.arange(ids.shape[1])[None, :] >= valid[:, None]
    states, units = [x], heads * size
    for layer in layers:
        cell = f"encoder.transformer_cells.{layer}."

        query, key, value = (
            (x @ weights[cell + f"attention_cell.proj_{name}.weight"][:units].T
             + weights[cell + f"attention_cell.proj_{name}.bias"][:units]
             ).reshape(*ids.shape, heads, size).transpose(1, 2) for name in ("query", "key", "value"))
        scores = query @ key.transpose(2, 3) / math.sqrt(size)
        scores = scores.masked_fill(padding[:, None, None, :], -1e4)
        context = (scores.softmax(-1) @ value).transpose(1, 2).reshape(*ids.shape, units)
        attended = context @ weights[cell + "proj.weight"][:, :units].T + weights[cell + "proj.bias"]
        x = functional.layer_norm(x + attended, (hidden,), weights[cell + "layer_norm.gamma"],
                                  weights[cell + "layer_norm.beta"], 1e-5)
        middle = functional.gelu(x @ weights[cell + "ffn.ffn_1.weight"][:inner].T
                                 + weights[cell + "ffn.ffn_1.bias"][:inner])
        out = middle @ weights[cell + "ffn.ffn_2.weight"][:, :inner].T + weights[cell + "ffn.ffn_2.bias"]
        x = functional.layer_norm(x + out, (hidden,), weights[cell + "ffn.layer_norm.gamma"],
                                  weights[cell + "ffn.layer_norm.beta"], 1e-5)
        states.append(x)
    logits = x[:, 0] @ weights["classifier.1.weight"].T + weights["classifier.1.bias"]
    return logits, states


def reference_loss(torch, student, teacher, full, chosen, ids, valid):
    """The depth stage's loss (both weights 1) and its gradients by the model's own names."""
    def plain(arrays, grad):
        return {name[5:] if name.startswith("bort.") else name:
                torch.tensor(np.array(array), requires_grad=grad) for name, array in arrays.items()}

    own, taught = plain(student, True), plain(teacher, False)
    ids, valid = torch.tensor(ids, dtype=torch.long), torch.tensor(valid, dtype=torch.long)
    small = chosen.architecture(full)
    logits, states = _forward(torch, own, small.heads, small.head_size, small.intermediate,
                              chosen.layers(full), ids, valid)
    wanted, matched = _forward(torch, taught, full.heads, full.head_size, full.intermediate,
                               range(full.depth), ids, valid)
    loss = -(wanted.softmax(-1) * logits.log_softmax(-1)).sum() / len(ids)
    keep = (torch.arange(ids.shape[1])[None, :] < valid[:, None])[..., None]
    for state, place in zip(states, (*chosen.layers(full), full.depth)):
        loss = loss + ((state - matched[place]) ** 2 * keep).sum() / (valid.sum() * full.hidden)
    loss.backward()
    gradients = {}
    for name, tensor in own.items():
        if tensor.grad is not None:
            key = name if name.startswith("classifier") else f"bort.{name}"
            gradients[key] = tensor.grad.numpy()
    return float(loss), gradients
