"""The teacher of a distillation or a search: opened and checked once, then asked at the masked positions of
the student's batches, without gradients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from bort.architecture import Architecture, parse
from bort.backend import distributed
from bort.backend.mxnet import nd
from bort.checkpoints import model_folder
from bort.checkpoints.inspection import mlm_head_state
from bort.checkpoints.vocabulary import fingerprint_in, fits
from bort.errors import BortError
from bort.files import PathLike, sha256_file
from bort.json_files import shown
from bort.masked_lm.batches import MaskedLMBatch
from bort.masked_lm.losses import Teacher
from bort.masked_lm.vocabulary_product import vocabulary_logits
from bort.models import Bert


@dataclass(frozen=True)
class MaskedLMTeacher:
    """A teacher as its files describe it; :meth:`network` builds it.

    Attributes:
        path: a model folder or ``.params`` file.
        architecture: its 4-tuple.
        identity: SHA-256 of its parameters, which tells it from another one in the same place.
        vocab_size, max_length: of the network.
        tokenizer: fingerprint of the tokenizer it was trained with, None where that is not recorded.
        bare: whether a file without a config, so that ``architecture`` was given.
        option: the command's option that named it, for messages.
    """

    path: Path
    architecture: Architecture
    identity: str
    vocab_size: int
    max_length: int
    tokenizer: Optional[str]
    bare: bool
    option: str = "--teacher"

    def check(self, tokenizer: Any, longest: int, remedy: str) -> None:
        """Refuse a teacher that cannot answer for sequences of ``tokenizer``.

        Args:
            tokenizer: has ``vocab_size`` and ``fingerprint``.
            longest: tokens of the longest sequence.
            remedy: what to do about another tokenizer, for the message.

        Raises:
            BortError: it was trained with another tokenizer, or takes shorter sequences only.
        """
        problem = ""
        if not fits(self.vocab_size, self.tokenizer, tokenizer):
            problem = f"its vocabulary has {self.vocab_size} tokens, the student's {tokenizer.vocab_size}"
        elif self.tokenizer not in (None, tokenizer.fingerprint):
            problem = "its tokenizer is not the corpus's"
        if problem:
            raise BortError(
                f"{self.option} {self.path}: {problem}: it was trained with another tokenizer, "
                f"and answers are compared token by token; {remedy}"
            )
        if longest > self.max_length:
            raise BortError(
                f"{self.option} {self.path}: takes {self.max_length} tokens, there are sequences "
                f"of {longest}; lower --max-length to {self.max_length}"
            )

    def check_head(self) -> None:
        """Refuse, without building the network, a teacher whose MLM head was never trained.

        Raises:
            BortError: so it is; the message names the command that trains one.
        """
        require_mlm_head(
            model_folder.read(self.path, self.architecture if self.bare else None, verify=False),
            f"{self.option} {self.path}",
        )

    def network(self) -> Bert:
        """The network with its weights, without gradients.

        Raises:
            BortError: the files are damaged or hold NaN, or the MLM head was never trained.
        """
        self.check_head()
        loaded = model_folder.load(self.path, self.architecture if self.bare else None)
        model = loaded.body
        model.collect_params().setattr("grad_req", "null")
        return model


def open_teacher(
    path: PathLike, architecture: Optional[str] = None, option: str = "--teacher"
) -> MaskedLMTeacher:
    """Look at a teacher's files, without building it.

    Args:
        architecture: a preset or ``D,A,H,I``: what network a bare ``.params`` file is of.
        option: the command's option that names it; its architecture is then given by ``OPTION-architecture``.

    Raises:
        BortError: there is no model at ``path``, nothing says what network a bare file is of, or
            ``architecture`` contradicts the folder.
    """
    located = model_folder.locate(path)
    given = None if architecture is None else parse(architecture, f"{option}-architecture")
    if located.config is None:
        if given is None:
            raise BortError(
                f"{option} {path} is a bare parameter file, whose network {option}-architecture "
                "D,A,H,I (or a preset) says"
            )
        config = model_folder.read(path, given, verify=False).config
        identity = sha256_file(located.parameters)
    else:
        config = located.config
        identity = str(config.get("sha256") or sha256_file(located.parameters))
    found = Architecture.from_dict(config.get("architecture"), str(path))
    if given is not None and given != found:
        raise BortError(f"{path}: holds {found.display}, not the {given.display} of {option}-architecture")
    vocab_size, max_length = config.get("vocab_size"), config.get("max_length")
    if not isinstance(vocab_size, int) or not isinstance(max_length, int):
        raise BortError(
            f"{located.config_file}: vocab_size and max_length are {shown(vocab_size)} and "
            f"{shown(max_length)}"
        )
    return MaskedLMTeacher(
        path=Path(path),
        architecture=found,
        identity=identity,
        vocab_size=vocab_size,
        max_length=max_length,
        tokenizer=fingerprint_in(located.config),
        bare=located.config is None,
        option=option,
    )


def require_mlm_head(stored: model_folder.Stored, where: str) -> None:
    """Refuse a network whose answers about masked tokens mean nothing.

    Args:
        stored: what its files hold.
        where: names it in the message, option first.

    Raises:
        BortError: it is a classifier, or its MLM head is as it was initialized.
    """
    if stored.config.get("head") is not None:
        problem = "was fine-tuned as a classifier, and its MLM head was not trained along"
    elif mlm_head_state(stored.arrays, stored.config) != "trained":
        problem = "has an MLM head that was never trained (as a file without one gets)"
    else:
        return
    raise BortError(
        f"{where}: {problem}, so that what it says of masked tokens means nothing; train a head "
        f"first: python run_pretrain.py --init {stored.located.folder} --method mlm --data SHARDS "
        "--output RUN, and take RUN/model"
    )


def on_device(batch: MaskedLMBatch) -> Any:
    """``token_ids``, ``valid_length`` and ``rows`` of a batch as NDArrays on this rank's device."""
    device = distributed.context()
    return (
        nd.array(batch.token_ids, dtype="int32", ctx=device),
        nd.array(batch.valid_length, ctx=device),
        nd.array(batch.rows, dtype="int32", ctx=device),
    )


def masked_states(model: Bert, token_ids: Any, valid_length: Any, rows: Any) -> Any:
    """What ``model``'s vocabulary projection takes at the masked positions, (N, H);
    recorded if the caller records."""
    return model.masked_states(token_ids, valid_length, rows)


def fit_vocabulary(probabilities: Any, vocab_size: int) -> Any:
    """(n, V') probabilities as (n, ``vocab_size``): tokens that the other network has no row for get 0.

    The rows that one of two networks has beyond the ids of their tokenizer (see
    :func:`bort.checkpoints.vocabulary.fits`) stand for no token.
    """
    count, have = probabilities.shape
    if have == vocab_size:
        return probabilities
    zeros = nd.zeros((count, vocab_size - have), ctx=probabilities.context)
    return nd.concat(probabilities, zeros, dim=1)


class LiveTeacher:
    """A network asked anew for every batch; its parameters are frozen and hold no gradients.

    Args:
        model: the teacher; the tokenizer must be the student's.
        temperature: T.
        vocab_size: rows of the student's vocabulary, where it has another number of them.
        states: what computes :func:`masked_states` in the network's place, from and to NumPy arrays: an
            engine (``bort.engines``) of its part "masked_states". The network is let go then.
        products: "bfloat16" to multiply with the vocabulary matrix in, where the engine computes in it too;
            takes a copy of the matrix.
    """

    def __init__(self, model: Bert, temperature: float, vocab_size: Optional[int] = None,
                 states: Optional[Callable[..., np.ndarray]] = None, products: str = "float32") -> None:
        self.model = model if states is None else None
        self.temperature, self.states = temperature, states
        self.vocab_size = vocab_size or model.vocab_size
        for parameter in model._collect_params_with_prefix().values():
            parameter.grad_req = "null"
        model.hybridize(static_alloc=True)
        projection = model.vocabulary_projection
        rows = min(self.vocab_size, model.vocab_size)  # beyond them, rows stand for no token of the student's
        weight, bias = (parameter.data()[:rows] for parameter in (projection.weight, projection.bias))
        self._logits = vocabulary_logits(weight, bias, products)

    def targets(self, batch: MaskedLMBatch) -> Teacher:
        """The function that :func:`bort.masked_lm.losses.head_backward` asks for probabilities."""
        if self.model is not None:
            states = masked_states(self.model, *on_device(batch))
        else:
            assert self.states is not None
            states = nd.array(self.states(batch.token_ids, batch.valid_length, batch.rows),
                              ctx=distributed.context())
        scale = 1 / self.temperature

        def probabilities(start: int, stop: int) -> Any:
            logits = self._logits(states[start:stop])
            if scale != 1:
                logits *= scale
            return fit_vocabulary(nd.softmax(logits, axis=-1, out=logits), self.vocab_size)

        return probabilities


def expected_positions(batch: MaskedLMBatch) -> np.ndarray:
    """int64 (B,): masked positions of each sequence of a batch."""
    return np.bincount(batch.rows // batch.token_ids.shape[1], minlength=len(batch.token_ids))
