"""The 4-tuple (D, A, H, I) that parametrizes the whole family, what it costs, and the space the
search runs over.

Everything here is arithmetic: no MXNet, no files but ``best.json``. Symbols are the paper's: D depth, A
attention heads, H hidden size, I intermediate size, V vocabulary, S positions ("token type embedding size" in
section 3.4), s sequence length.
"""
from __future__ import annotations

import itertools
import os
import re
from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Union

from bort.errors import BortError
from bort.json_files import read_json, shown

ROBERTA_VOCAB_SIZE = 50265
BERT_CASED_VOCAB_SIZE = 28996
BERT_UNCASED_VOCAB_SIZE = 30522
MAX_DIMENSION = 1 << 20
"""No dimension of a real network is larger; a file that claims one is broken or hostile."""


@dataclass(frozen=True, order=True, repr=False)
class Architecture:
    """An element of the search space: ``Architecture(depth=4, heads=8, hidden=1024, intermediate=768)`` is
    Bort.

    A network that was cut out of a wider one (DynaBERT) has fewer heads than H/d:
    ``Architecture(4, 6, 768, 1536, head_size=64)`` has 6 heads of 64 units over hidden states of 768.

    Args:
        head_size: units d of one attention head; None means H/A, and a given H/A is the same architecture.

    Raises:
        BortError: a member is not a positive integer, ``hidden`` is not divisible by ``heads`` (Appendix A)
        where there is no ``head_size``, or A heads of ``head_size`` have more units than ``hidden``.
    """

    depth: int
    heads: int
    hidden: int
    intermediate: int
    head_size: int = None  # type: ignore[assignment]  # None is replaced below

    def __post_init__(self) -> None:
        given = {name: value for name, value in asdict(self).items()
                 if name != "head_size" or value is not None}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise BortError(f"architecture: {name} must be an integer, not {shown(value)}")
            if value < 1:
                raise BortError(f"architecture: {name} must be positive, not {value}")
            if value > MAX_DIMENSION:
                raise BortError(f"architecture: {name}={value} is larger than any network ({MAX_DIMENSION})")
        if self.head_size is None:
            if self.hidden % self.heads:
                raise BortError(f"architecture: hidden={self.hidden} is not divisible by heads={self.heads}; "
                                "every head has hidden/heads units (Appendix A)")
            object.__setattr__(self, "head_size", self.hidden // self.heads)
        if self.attention_units > self.hidden:
            raise BortError(f"architecture: heads={self.heads} of head_size={self.head_size} have more units "
                            f"than hidden={self.hidden}")

    def __repr__(self) -> str:
        return f"Architecture({', '.join(f'{name}={value}' for name, value in self.to_dict().items())})"

    def __str__(self) -> str:
        return ",".join(map(str, self.to_dict().values()))

    @property
    def attention_units(self) -> int:
        """Units of all attention heads together, A * d: H, or fewer in a network cut out of a wider one."""
        return self.heads * self.head_size

    @property
    def display(self) -> str:
        """The tuple as the paper prints it; with d as a fifth member where d is not H/A."""
        return f"⟨{', '.join(map(str, self.to_dict().values()))}⟩"

    def to_dict(self) -> Dict[str, int]:
        """``{"depth": D, "heads": A, "hidden": H, "intermediate": I}``, the form of every JSON file we
        write; with ``"head_size": d`` where d is not H/A."""
        members = asdict(self)
        if self.attention_units == self.hidden:
            del members["head_size"]
        return members

    @classmethod
    def parse(cls, text: "Union[str, Architecture]", where: str = "--architecture") -> "Architecture":
        """:func:`parse` by another name: ``Architecture.parse("4,8,1024,768")``, a preset, or a
        ``best.json``."""
        return parse(text, where)

    @classmethod
    def from_dict(cls, value: Any, where: str = "architecture") -> "Architecture":
        """The inverse of :meth:`to_dict`; ``where`` names the source in errors.

        Raises:
            BortError: ``value`` is not such a mapping.
        """
        names = ("depth", "heads", "hidden", "intermediate")
        if not isinstance(value, Mapping) or set(value) - {"head_size"} != set(names):
            raise BortError(f"{where}: expected an object with exactly the keys {', '.join(names)} (and "
                            "head_size where it is not hidden/heads)")
        return cls(**value)

    def parameters(self, vocab_size: int = ROBERTA_VOCAB_SIZE, max_length: int = 512,
                   token_types: int = 0) -> Dict[str, int]:
        """Exact parameter counts of the network we build, by part.

        Keys: ``embeddings`` (words, positions, token types, LayerNorm), ``encoder`` (D layers), ``mlm_head``
        (without the tied word matrix), ``body`` (embeddings + encoder) and ``total`` (body + mlm_head). The
        tied matrix counts once.
        """
        hidden, inner, units = self.hidden, self.intermediate, self.attention_units
        embeddings = (vocab_size + max_length + token_types + 2) * hidden
        attention = 4 * hidden * units + 3 * units + hidden
        feed_forward = 2 * hidden * inner + inner + hidden
        encoder = self.depth * (attention + feed_forward + 4 * hidden)
        mlm_head = hidden * hidden + hidden + 2 * hidden + vocab_size
        return {"embeddings": embeddings, "encoder": encoder, "mlm_head": mlm_head,
                "body": embeddings + encoder, "total": embeddings + encoder + mlm_head}

    def lemma2_parameters(self, vocab_size: int = ROBERTA_VOCAB_SIZE, positions: int = 514) -> int:
        """p(b) of Lemma 2 (equation 13): D(4H^2 + 2HI + 9H + I) + H^2 + (V + S + 6)H.

        The paper's lemmas know heads of H/A units only. For others, which are not in the paper, the attention
        matrices have A*d in place of one H: D(4HAd + 2HI + 3Ad + 6H + I) + ...
        """
        hidden, inner, units = self.hidden, self.intermediate, self.attention_units
        return (self.depth * (4 * hidden * units + 2 * hidden * inner + 3 * units + 6 * hidden + inner)
                + hidden * hidden + (vocab_size + positions + 6) * hidden)

    def lemma1_flops(self) -> int:
        """[b] of Lemma 1 (equation 12), per token: D(4(2H-1)H + H^2 + (2H-1)I + 7I^2) + (2H-1)H + 3H.

        For heads of other than H/A units (see :meth:`lemma2_parameters`) the attention's 4(2H-1)H + H^2 is
        3(2H-1)Ad + (2Ad-1)H + AdH.
        """
        hidden, inner, units = self.hidden, self.intermediate, self.attention_units
        attention = 3 * (2 * hidden - 1) * units + (2 * units - 1) * hidden + units * hidden
        per_layer = attention + (2 * hidden - 1) * inner + 7 * inner * inner
        return self.depth * per_layer + (2 * hidden - 1) * hidden + 3 * hidden

    def flops(self, length: int, vocab_size: int = ROBERTA_VOCAB_SIZE, masked_positions: int = 0) -> int:
        """Floating-point operations of one forward pass over one sequence of ``length`` tokens.

        A multiplication and an addition count one each, so an m x n linear layer with bias costs 2mn
        per token. Softmax, LayerNorm and erf-GELU count 5, 8 and 8 per element; look-ups and dropout
        count nothing. ``masked_positions`` adds the MLM head, with its projection to the vocabulary, at
        that many positions.
        """
        hidden, inner, units = self.hidden, self.intermediate, self.attention_units
        layer_norm = 8 * hidden
        per_token = 4 * 2 * hidden * units + 2 * 2 * hidden * inner + 8 * inner + 2 * (hidden + layer_norm)
        attention = 2 * 2 * length * length * units + 5 * self.heads * length * length
        embeddings = length * (hidden + layer_norm)
        head = masked_positions * (2 * hidden * hidden + 8 * hidden + layer_norm + 2 * hidden * vocab_size)
        return embeddings + self.depth * (length * per_token + attention) + head


class Preset(NamedTuple):
    """A named architecture, the vocabulary its published parameter count includes,
    and that count in millions."""

    architecture: Architecture
    vocab_size: int
    paper_millions: Optional[float]
    label: str


def _preset(label: str, depth: int, heads: int, hidden: int, inner: int, paper: Optional[float],
            vocab_size: int = ROBERTA_VOCAB_SIZE) -> Preset:
    return Preset(Architecture(depth, heads, hidden, inner), vocab_size, paper, label)


PRESETS: Dict[str, Preset] = {
    # Table 1. The paper prints 56.14M for Bort although its own Lemma 2 gives 76.2M (see
    # benchmarks.parameters).
    "bort": _preset("Bort (A1)", 4, 8, 1024, 768, 56.14),
    "a2": _preset("A2", 4, 16, 1024, 512, 35.20),
    "a3": _preset("A3", 4, 8, 1024, 512, 35.20),
    # The release's own names are depth_heads_intermediate_hidden: mind the order of the last two.
    "bort_4_8_768_1024": _preset("Bort (released name)", 4, 8, 1024, 768, 56.14),
    "bort_2_16_512_1024": _preset("bort_2_16_512_1024", 2, 16, 1024, 512, None),
    # Table 2.
    "tinybert-4": _preset("TinyBERT (4 layers)", 4, 12, 312, 1200, 14.5, BERT_UNCASED_VOCAB_SIZE),
    "bert-of-theseus": _preset("BERT-of-Theseus", 6, 12, 768, 3072, 66, BERT_UNCASED_VOCAB_SIZE),
    "bert-mini": _preset("BERT-Mini", 4, 4, 256, 2048, 11.3, BERT_UNCASED_VOCAB_SIZE),
    "bert-small": _preset("BERT-Small", 4, 8, 512, 2048, 29.1, BERT_UNCASED_VOCAB_SIZE),
    "bert-base": _preset("BERT-base", 12, 12, 768, 3072, 110, BERT_CASED_VOCAB_SIZE),
    "bert-large": _preset("BERT-large", 24, 16, 1024, 4096, 340, BERT_CASED_VOCAB_SIZE),
    "roberta-base": _preset("RoBERTa-base", 12, 12, 768, 3072, 125),
    "roberta-large": _preset("RoBERTa-large", 24, 16, 1024, 4096, 355),
}

PAPER_SPACE: Dict[str, Sequence[int]] = {
    "depths": (2, 4, 6, 8, 10, 12),
    "heads": (4, 8, 12, 16),
    "hidden": (512, 768, 1024),
    "intermediate": (256, 512, 768, 1024, 3072),
}
"""The search space of section 3.3: 360 tuples, of which 300 are possible."""


def search_space(depths: Sequence[int] = PAPER_SPACE["depths"], heads: Sequence[int] = PAPER_SPACE["heads"],
                 hidden: Sequence[int] = PAPER_SPACE["hidden"],
                 intermediate: Sequence[int] = PAPER_SPACE["intermediate"]) -> List[Architecture]:
    """Every possible tuple of D x A x H x I in lexicographic order, without repeats.

    Tuples whose H is not divisible by A are left out, as in section 3.3.

    Raises:
        BortError: a value is not a positive integer, or no tuple is possible.
    """
    for name, values in (("depths", depths), ("heads", heads), ("hidden", hidden),
                         ("intermediate", intermediate)):
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BortError(f"search space: {name} holds {shown(value)}; every value must be a "
                                "positive integer")
    product = itertools.product(sorted(set(depths)), sorted(set(heads)), sorted(set(hidden)),
                                sorted(set(intermediate)))
    space = [Architecture(*values) for values in product if values[2] % values[1] == 0]
    if not space:
        raise BortError("search space: it is empty; it needs a value for each of depths, heads, hidden and "
                        "intermediate, and some hidden size divisible by some number of heads")
    return space


def parse(text: Union[str, Architecture], where: str = "--architecture") -> Architecture:
    """An architecture from a preset's name, from ``"D,A,H,I"`` (or ``"D,A,H,I,d"`` with a head size of its
    own), or from a ``best.json`` written by ``run_search.py``.

    Raises:
        BortError: ``text`` is none of these, or names an impossible tuple.
    """
    if isinstance(text, Architecture):
        return text
    text = text.strip()
    if text.lower() in PRESETS:
        return PRESETS[text.lower()].architecture
    if re.fullmatch(r"[-+.\w]+(\s*,\s*[-+.\w]+)+", text):
        parts = [part.strip() for part in text.split(",")]
        if len(parts) not in (4, 5):
            raise BortError(f"{where}: {text!r} has {len(parts)} numbers; expected four: "
                            "depth,heads,hidden,intermediate (a fifth is the head size where it is not "
                            "hidden/heads)")
        try:
            return Architecture(*(int(part) for part in parts))
        except ValueError as error:
            if isinstance(error, BortError):
                raise BortError(f"{where}: {error}") from error
            raise BortError(f"{where}: {text!r} is not four integers depth,heads,hidden,intermediate"
                            ) from error
    if text.endswith(".json") or os.path.isfile(text):
        content = read_json(text)
        if not isinstance(content, Mapping) or "architecture" not in content:
            raise BortError(f"{text}: no \"architecture\" in it; expected the best.json of run_search.py")
        return Architecture.from_dict(content["architecture"], where=text)
    raise BortError(f"{where}: {text!r} is not a preset ({', '.join(PRESETS)}), not four numbers like "
                    "4,8,1024,768, and not a .json file")
