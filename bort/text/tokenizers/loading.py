"""One way in for every layout of a vocabulary that people have: ``load_tokenizer(folder)``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator, List, Optional

from bort.errors import BortError
from bort.files import PathLike
from bort.json_files import read_json
from bort.text.tokenizers import bpe, gluonnlp_vocab, huggingface, pieces
from bort.text.tokenizers.base import FORMAT_VERSION, SETTINGS_FILE, Tokenizer
from bort.text.tokenizers.pieces import train_sentencepiece
from bort.text.tokenizers.tokenizer_json import FileTokenizer

__all__ = [
    "TOKENIZER_FILES",
    "Tokenizer",
    "find_default_tokenizer",
    "find_tokenizer_files",
    "load_tokenizer",
    "train_sentencepiece",
]

TOKENIZER_FILES = (
    SETTINGS_FILE,
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.txt",
    "encoder.json",
    "vocab.bpe",
    "dict.txt",
    "openai_webtext_bpe_ranks-*.json",
    "*.vocab",
    "*.model",
)
"""Patterns of the file names that a tokenizer may consist of, for whoever copies one."""

_GLUONNLP_VOCABULARY = "openwebtext_ccnews_stories_books_cased-*.vocab"
_LAYOUTS = (
    "GluonNLP's .vocab file with openai_webtext_bpe_ranks-*.json or vocab.bpe; GPT-2's encoder.json "
    "and vocab.bpe with fairseq's dict.txt; Hugging Face's vocab.json and merges.txt, or "
    "tokenizer.json; a SentencePiece .model file; BERT's vocab.txt"
)


def find_tokenizer_files(folder: PathLike) -> List[Path]:
    """Files of ``folder`` that belong to a tokenizer, in the order of :data:`TOKENIZER_FILES`."""
    found: List[Path] = []
    for pattern in TOKENIZER_FILES:
        found.extend(
            path for path in sorted(Path(folder).glob(pattern)) if path.is_file() and path not in found
        )
    return found


def load_tokenizer(path: PathLike) -> Tokenizer:
    """Load the tokenizer in a folder, whose layout is recognised, or a ``.model`` or ``tokenizer.json`` file.

    Layouts, first match: a folder that ``Tokenizer.save`` wrote; Hugging Face's ``tokenizer.json``;
    GluonNLP's ``.vocab`` and ranks; GPT-2's ``encoder.json`` and ``vocab.bpe`` with fairseq's ``dict.txt``;
    Hugging Face's ``vocab.json`` and ``merges.txt``; a SentencePiece ``.model``; BERT's ``vocab.txt``.
    Hugging Face's with the configuration beside them (:mod:`bort.text.tokenizers.huggingface`). The layouts
    of RoBERTa's vocabulary give the same ids and the same fingerprint.

    Raises:
        BortError: no or half a layout is there, a file is damaged (with the line, where there is one), or the
            files are not the ones that were saved.
    """
    path = Path(path)
    if path.is_file():
        return _load_file(path)
    if not path.is_dir():
        raise BortError(f"{path}: no such file or folder; a tokenizer is {_LAYOUTS}")
    settings = path / SETTINGS_FILE
    if not settings.is_file():
        return _load_folder(path)
    saved = read_json(settings)
    if not isinstance(saved, dict) or not isinstance(saved.get("format"), int):
        raise BortError(f"{settings}: not a tokenizer's settings; the file is damaged")
    if saved["format"] > FORMAT_VERSION:
        raise BortError(
            f"{settings}: written by a newer version of Bort (format {saved['format']}); update Bort"
        )
    tokenizer = _load_folder(path, str(saved.get("kind")))
    if saved.get("fingerprint") != tokenizer.fingerprint:
        raise BortError(
            f"{path}: the vocabulary is not the one that was saved here (its fingerprint "
            f"is {tokenizer.fingerprint[:12]}..., {SETTINGS_FILE} says "
            f"{str(saved.get('fingerprint'))[:12]}...); restore the files, or remove "
            f"{SETTINGS_FILE} if they were changed on purpose"
        )
    return tokenizer


def _load_file(path: Path) -> Tokenizer:
    if path.suffix == ".model":
        return _from_model(path)
    if path.name == "vocab.txt":
        return huggingface.from_vocab_txt(path)
    if path.name in ("vocab.json", "encoder.json"):
        return load_tokenizer(path.parent)
    if path.suffix == ".json":
        return huggingface.from_tokenizer_json(path)
    raise BortError(f"{path}: not a tokenizer; give its folder, which holds {_LAYOUTS}")


def _load_folder(folder: Path, kind: str = "") -> Tokenizer:
    """The first layout that is whole; of a folder that ``Tokenizer.save`` wrote, that of its ``kind``."""

    def first(*patterns: str) -> Optional[Path]:
        return next(
            (path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()), None
        )

    ranks = first(*bpe.RANK_FILES)
    gluonnlp = first(_GLUONNLP_VOCABULARY, "*.vocab")
    encoder, dictionary = first("encoder.json"), first("dict.txt")
    vocabulary, merges = first("vocab.json"), first("merges.txt", "vocab.bpe")
    single, words = first("tokenizer.json"), first("vocab.txt")
    # A tokenizer.json that was exported for transformers stands beside the files that it was made from.
    if single and kind in ("", FileTokenizer.kind):
        return huggingface.from_tokenizer_json(single, as_saved=bool(kind))
    if gluonnlp and ranks:
        return gluonnlp_vocab.from_files(gluonnlp, ranks)
    if encoder and ranks and dictionary:
        return bpe.from_fairseq(encoder, ranks, dictionary)
    if vocabulary and merges:
        return huggingface.from_vocab_json(vocabulary, merges)
    model = first(pieces.MODEL_FILE, "*.model")
    if model:
        return pieces.from_model_file(model) if kind else _from_model(model)
    if words:
        return huggingface.from_vocab_txt(words)
    partial = [path.name for path in find_tokenizer_files(folder)]
    if partial:
        raise BortError(
            f"{folder}: {', '.join(partial)} alone is not a whole tokenizer; a tokenizer is {_LAYOUTS}"
        )
    raise BortError(f"{folder}: no tokenizer in it; a tokenizer is {_LAYOUTS}")


def _from_model(path: Path) -> Tokenizer:
    huggingface.refuse_more_than_pieces(path)
    return pieces.from_model_file(path)


def _default_folders() -> Iterator[Path]:
    home = os.environ.get("BORT_HOME")
    if home:
        yield Path(home)
        yield Path(home) / "tokenizer"
        yield Path(home) / "models"
    yield Path(os.environ.get("MXNET_HOME") or Path.home() / ".mxnet") / "models"


def find_default_tokenizer() -> Optional[Path]:
    """The folder of RoBERTa's vocabulary that needs no option to be found, or None.

    Looked in, in this order: ``$BORT_HOME``, its ``tokenizer`` and ``models``, and ``models`` in
    ``$MXNET_HOME`` (``~/.mxnet``), where GluonNLP keeps its downloads. A folder counts when a whole layout is
    in it.
    """
    for folder in _default_folders():
        if folder.is_dir() and find_tokenizer_files(folder):
            names = {path.name for path in find_tokenizer_files(folder)}
            ranks = any(next(folder.glob(pattern), None) for pattern in bpe.RANK_FILES)
            whole = (
                SETTINGS_FILE in names
                or "tokenizer.json" in names
                or {"vocab.json", "merges.txt"} <= names
                or {"encoder.json", "vocab.bpe", "dict.txt"} <= names
                or (ranks and next(folder.glob(_GLUONNLP_VOCABULARY), None) is not None)
                or any(name.endswith(".model") for name in names)
            )
            if whole:
                return folder
    return None
