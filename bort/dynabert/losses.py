"""What a sub-network learns from its teacher (DynaBERT, section 2.2).

    loss  =  logit_weight * SCE(logits, teacher's logits)  +  hidden_weight * sum_l MSE(H_l, teacher's H_l)

SCE is the cross-entropy to the teacher's softmax, summed over classes; in regression it is the squared error
to the teacher's value. The hidden states are those of the embeddings and of every layer that stayed. MSE is a
mean over the H units of all tokens that are not padding, whose states have no meaning.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence

from bort.backend.mxnet import nd
from bort.finetuning.losses import hard_loss, regression_loss, soft_loss


@dataclass(frozen=True)
class LossWeights:
    """Factors of the terms: the published 1 and 0.1 of the width stage, 1 and 1 of the depth stage; ``hard``
    replaces both by the loss on labels (the last stage)."""

    logits: float = 1.0
    hidden: float = 0.1
    hard: bool = False


@dataclass
class Outputs:
    """What a network says of a batch: logits (B, C), and D + 1 hidden states (B, T, H),
    embeddings first."""

    logits: Any
    states: List[Any]


def hidden_loss(states: Sequence[Any], wanted: Sequence[Any], valid_length: Any, tokens: int) -> Any:
    """The sum over layers of mean squared errors.

    Args:
        states, wanted: equally many arrays (B, T, H); no gradient flows to ``wanted``.
        valid_length: (B,) float32.
        tokens: by how many tokens to divide: those of the whole step's batch, on all ranks.

    Returns:
        A scalar NDArray.
    """
    total = 0.0
    for own, other in zip(states, wanted):
        difference = nd.SequenceMask(own - nd.BlockGrad(other), valid_length, use_sequence_length=True,
                                     axis=1)
        total = total + nd.square(difference).sum() / (tokens * own.shape[2])
    return total


@dataclass(frozen=True)
class StepSize:
    """What a whole step's batch holds, on all ranks: the losses of its parts are divided by it."""

    examples: int
    tokens: int


def batch_loss(outputs: Outputs, teacher: Optional[Outputs], matched: Sequence[int], labels: Any,
               valid_length: Any, weights: LossWeights, size: StepSize) -> Any:
    """The loss of one sub-network on a part of a batch, as that part's share of the batch's mean.

    Args:
        outputs: of the sub-network, whose n layers give n + 1 states.
        teacher: outputs of its teacher; None for the loss on labels.
        matched: for each state of the sub-network, the teacher's that it learns.
        labels: (B,) float32, used if ``weights.hard``.
    """
    if weights.hard or teacher is None:
        loss_of = regression_loss if outputs.logits.shape[-1] == 1 else hard_loss
        return loss_of(outputs.logits, labels).sum() / size.examples
    loss = weights.logits * soft_loss(outputs.logits, teacher.logits, 1.0).sum() / size.examples
    if weights.hidden:
        wanted = [teacher.states[index] for index in matched]
        loss = loss + weights.hidden * hidden_loss(outputs.states, wanted, valid_length, size.tokens)
    return loss
