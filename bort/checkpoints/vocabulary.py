"""Whether a network and a tokenizer belong together."""
from __future__ import annotations

from typing import Any, Mapping, Optional

from bort.checkpoints.locate import locate
from bort.files import PathLike


def fingerprint_in(config: Optional[Mapping[str, Any]]) -> Optional[str]:
    """The fingerprint of the tokenizer that a folder's ``config.json`` names; None where it names none."""
    tokenizer = (config or {}).get("tokenizer")
    found = tokenizer.get("fingerprint") if isinstance(tokenizer, Mapping) else None
    return found if isinstance(found, str) else None


def fits(rows: int, recorded: Optional[str], tokenizer: Any) -> bool:
    """Whether a network with ``rows`` word vectors can be fed by ``tokenizer``.

    One vector for each id is right for any tokenizer. More vectors than ids are ordinary as well (tables are
    padded to a round number), but prove nothing: then the folder must name this tokenizer.

    Args:
        recorded: :func:`fingerprint_in` of the network's config.
        tokenizer: has ``vocab_size`` and ``fingerprint``.
    """
    return rows == tokenizer.vocab_size or (rows > tokenizer.vocab_size and recorded is not None
                                            and recorded == tokenizer.fingerprint)


def recorded_at(path: PathLike) -> Optional[str]:
    """:func:`fingerprint_in` of the model folder or file at ``path``."""
    return fingerprint_in(locate(path).config)
