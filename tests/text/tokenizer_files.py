"""Small vocabularies in the layouts that people have, and where RoBERTa's real one is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from bort.text.tokenizers import bpe
from bort.text.tokenizers.base import Tokenizer
from tests.conftest import REAL_DATA

RELEASED = Path(os.environ.get(REAL_DATA, "nowhere")) / "bpe"
needs_released = pytest.mark.skipif(
    not RELEASED.is_dir(), reason=f"{REAL_DATA} names no folder with RoBERTa's vocabulary"
)
MARKER = Tokenizer.MARKER
KINDS = ["bpe", "sentencepiece", "wordpiece", "huggingface"]


def small_bpe_files(folder: Path) -> Path:
    """Hugging Face's layout of a byte-level vocabulary with five merges."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(bpe.byte_alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("d", "o"), ("do", "g")]
    tokens = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *alphabet,
        *(a + b for a, b in merges),
        "madeupword0000",
        "<mask>",
    ]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8"
    )
    return folder


def small_wordpiece_files(folder: Path, **options) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [
        "[PAD]",
        "[unused0]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "dog",
        "dogs",
        "##s",
        "##ed",
        "bark",
        "The",
        ",",
        ".",
        "cafe",
        "e",
    ]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    if options:
        (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def word_engine(prefix: str = "##", added: tuple = (), special: tuple = ()) -> tokenizers.Tokenizer:
    """The library's own WordPiece tokenizer of a small vocabulary, lower-casing, with added tokens."""
    names = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [
        *names,
        "the",
        "dog",
        "The",
        "Dog",
        "caf\u00e9",
        "cafe",
        prefix + "s",
        ",",
        ".",
        *"abcdefghiklmnoprstuvwy19[]E",
    ]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    model = models.WordPiece(vocab=vocabulary, unk_token="[UNK]", continuing_subword_prefix=prefix)
    engine = tokenizers.Tokenizer(model)
    engine.normalizer = normalizers.BertNormalizer()
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.add_special_tokens([name for name in names if name != "[unused0]"])
    engine.add_special_tokens(list(special))
    engine.add_tokens(list(added))
    return engine


def byte_engine(folder: Path, prefix_space: bool = False, added: tuple = ()) -> tokenizers.Tokenizer:
    """The library's own tokenizer of :func:`small_bpe_files`."""
    small_bpe_files(folder)
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    engine = tokenizers.Tokenizer(model)
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    engine.add_tokens(list(added))
    return engine
