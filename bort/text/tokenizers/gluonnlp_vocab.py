"""``gluonnlp.Vocab`` in and out: the same tokens under the same ids, for code that works with GluonNLP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, List, Optional, Sequence, Union

from bort.errors import BortError
from bort.files import PathLike
from bort.json_files import read_json
from bort.numpy_aliases import restore
from bort.text.tokenizers.base import Tokenizer, refuse_repeats
from bort.text.tokenizers.bpe import SPECIALS, BytePairTokenizer, read_merges
from bort.text.tokenizers.wordpiece import WordPieceTokenizer


def read_tokens(path: Path) -> List[str]:
    """The tokens of a ``.vocab`` file (``Vocab.to_json``) in the order of their ids.

    Raises:
        BortError: it is not such a file, or has a token twice.
    """
    content = read_json(path)
    tokens = content.get("idx_to_token") if isinstance(content, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise BortError(f"{path}: not a GluonNLP vocabulary (no list of strings 'idx_to_token' in it)")
    refuse_repeats(tokens, str(path))
    return tokens


def from_files(vocabulary: Path, ranks: Path) -> BytePairTokenizer:
    """RoBERTa's tokenizer of a ``.vocab`` file and the ranks file.

    Raises:
        BortError: a file is damaged, or the two do not belong together.
    """
    return BytePairTokenizer(read_tokens(vocabulary), read_merges(ranks), str(vocabulary))


def tokenizer_of(vocab: Any, ranks: Optional[PathLike] = None, lowercase: bool = True) -> Tokenizer:
    """The tokenizer of a ``gluonnlp.Vocab``, as of ``gluonnlp.model.get_model(..., dataset_name=...)``.

    Args:
        vocab: RoBERTa's or BERT's.
        ranks: RoBERTa's ranks file (``openai_webtext_bpe_ranks-*.json``, ``vocab.bpe``); None for BERT's,
            whose WordPiece needs no other file.
        lowercase: of BERT's: whether text is lower-cased.

    Raises:
        BortError: the vocabulary is neither, or the ranks file is damaged or another one's.

    Example:
        >>> import gluonnlp
        >>> network, vocab = gluonnlp.model.get_model("bert_12_768_12", "book_corpus_wiki_en_cased")
        >>> tokenizer_of(vocab, lowercase=False).encode("A text.")
    """
    tokens = list(getattr(vocab, "idx_to_token", None) or ())
    if not all(isinstance(token, str) for token in tokens):
        raise BortError("the GluonNLP vocabulary holds something else than text tokens")
    refuse_repeats(tokens, "the GluonNLP vocabulary")
    where = "the GluonNLP vocabulary"
    if ranks is None:
        return WordPieceTokenizer(tokens, lowercase=lowercase, where=where)
    return BytePairTokenizer(tokens, read_merges(Path(ranks)), where)


def vocab_of(tokenizer: Union[Tokenizer, Sequence[str]]) -> Any:
    """A ``gluonnlp.Vocab`` of a tokenizer's tokens (or of RoBERTa's tokens), in the order of their ids.

    Raises:
        BortError: GluonNLP is not installed.
    """
    restore()  # GluonNLP imports MXNet, which uses NumPy's old names
    try:
        import gluonnlp
    except ImportError as error:
        raise BortError(
            "a gluonnlp.Vocab needs GluonNLP: pip install gluonnlp==0.10.0. bort.load and "
            "bort.load_tokenizer do without"
        ) from error
    names = {key: spellings[0] for key, spellings in SPECIALS.items()}
    if isinstance(tokenizer, Tokenizer):
        names = tokenizer.names
        tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.vocab_size)]
    else:
        tokens = list(tokenizer)
    members = {
        "mask_token": names["mask"],
        "padding_token": names["pad"],
        "bos_token": names["bos"],
        "eos_token": names["eos"],
    }
    content = {
        "idx_to_token": tokens,
        "token_to_idx": {token: index for index, token in enumerate(tokens)},
        "reserved_tokens": list(members.values()),
        "unknown_token": names["unk"],
        "identifiers_to_tokens": members,
    }
    return gluonnlp.Vocab.from_json(json.dumps(content))
