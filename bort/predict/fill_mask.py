"""The likeliest tokens at the masks of a text: ``python -m bort.predict fill-mask``."""
from __future__ import annotations

import logging
from typing import Any, List, NamedTuple, Optional

import numpy as np

from bort.batching import pad_batch
from bort.checkpoints import inspection, model_folder
from bort.engines.base import EngineOptions, Work
from bort.engines.engine import open_engine
from bort.errors import BortError
from bort.files import PathLike
from bort.models import Classifier
from bort.probabilities import softmax
from bort.text.tokenizers.base import Tokenizer

logger = logging.getLogger("bort.predict")
MASKS = ("<mask>", "[MASK]")


class Candidate(NamedTuple):
    """A token for a mask: its text, its probability, and the whole text with it (and the best tokens
    elsewhere)."""

    token: str
    probability: float
    text: str


class MaskFiller:
    """A model with an MLM head.

    Args:
        model: a model folder or ``.params`` file.
        tokenizer: a folder to take the tokenizer from.
        force: use a head that is random, or that a fine-tuned body no longer fits.
        architecture, heads: of a bare ``.params`` file.
        engine: what computes; by default the network as it is, which a few texts are done with soonest.

    Raises:
        BortError: there is no tokenizer, or the head is of no use (and not ``force``).
    """

    def __init__(self, model: PathLike, tokenizer: Optional[PathLike] = None, force: bool = False,
                 architecture: Optional[str] = None, heads: Optional[int] = None,
                 engine: Optional[EngineOptions] = None) -> None:
        stored = model_folder.read(model, architecture, heads)
        network = model_folder.build(stored.config, str(stored.located.config_file))
        arrays = model_folder.fit(network, stored.arrays, str(model))
        problem = None
        if inspection.mlm_head_state(arrays, stored.config) != "trained":
            problem = ("its MLM head is random (as in the published conversion of Bort), so that its tokens "
                       "mean nothing")
        elif isinstance(network, Classifier):
            problem = "it was fine-tuned as a classifier, and its MLM head was not trained along"
        if problem and not force:
            raise BortError(f"{model}: {problem}; --force fills masks nevertheless")
        if problem:
            logger.warning("%s: %s", model, problem)
        found = inspection.find_tokenizer(stored, tokenizer)
        if found is None:
            raise BortError(f"{model}: there is no tokenizer with it; give --tokenizer DIR")
        model_folder.set_parameters(network, stored.arrays, str(model))
        self.tokenizer: Tokenizer = found
        self.model: Any = network.body
        self._logits = open_engine(self.model, "mlm", engine, work=Work(0) if engine is None else None)

    def __call__(self, text: str, top: int = 5) -> List[List[Candidate]]:
        """For every mask in ``text`` its ``top`` likeliest tokens, best first.

        Raises:
            BortError: there is no mask in the text, or it is too long for the model.
        """
        ids = encode_masked(self.tokenizer, text)
        if len(ids) > self.model.max_length:
            raise BortError(f"the text has {len(ids)} tokens, the model takes {self.model.max_length}")
        masks = [place for place, token in enumerate(ids) if token == self.tokenizer.mask_id]
        token_ids, valid_length = pad_batch([np.asarray(ids)], self.tokenizer.pad_id, self.model.max_length,
                                            multiple=1)
        logits = self._logits(token_ids, valid_length, np.asarray([masks], dtype=np.int32))
        scores = logits[0].astype(np.float64)
        if not np.isfinite(scores).all():
            raise BortError("the model's outputs are not finite: its parameters are damaged (python -m "
                            "bort.checkpoints verify)")
        scores = softmax(scores)
        order = np.argsort(-scores[:, :self.tokenizer.vocab_size], axis=1, kind="stable")[:, :top]
        best = dict(zip(masks, order[:, 0].tolist()))
        return [[Candidate(self._spell(token), float(scores[row, token]),
                           self._with(ids, {**best, place: token})) for token in order[row].tolist()] for row,
                place in enumerate(masks)]

    def _spell(self, token: int) -> str:
        text = self.tokenizer.decode([token]).strip()
        return text or self.tokenizer.id_to_token(token)

    def _with(self, ids: List[int], tokens: dict) -> str:
        return self.tokenizer.decode([tokens.get(place, token) for place, token in enumerate(ids)]).strip()


def encode_masked(tokenizer: Tokenizer, text: str) -> List[int]:
    """``<s> text </s>`` with the mask's id for every ``<mask>`` (or ``[MASK]``) in it.

    As in RoBERTa's own tokenizer, a blank before the mask belongs to the mask.

    Raises:
        BortError: there is none.
    """
    pieces = text.replace(MASKS[1], MASKS[0]).split(MASKS[0])
    if len(pieces) < 2:
        raise BortError(f"no {' or '.join(MASKS)} in the text {text[:80]!r}")
    pieces = [piece.rstrip(" ") for piece in pieces[:-1]] + pieces[-1:]
    ids = [tokenizer.bos_id]
    for number, row in enumerate(tokenizer.encode_batch(pieces)):
        ids += ([tokenizer.mask_id] if number else []) + row
    return ids + [tokenizer.eos_id]
