"""SentencePiece vocabularies: trained here where there is no BPE vocabulary,
and read from any ``.model`` file.

Vocabularies trained here are unigram models over NFKC-normalised text with ``<s>`` 0, ``<pad>`` 1, ``</s>``
2, ``<unk>`` 3, ``<mask>`` 4 and the span marker 5. With 1,000 ids or more, characters that are not in the
vocabulary are spelled in bytes (256 of the ids), so that no text is lost to ``<unk>``; a smaller vocabulary
cannot spare those ids and instead covers every character of its training text.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional

import sentencepiece

from bort.errors import BortError
from bort.files import atomic_write, read_bytes
from bort.text.tokenizers.base import Tokenizer, fixed_specials, without_surrogates

MODEL_FILE = "sentencepiece.model"
MIN_BYTE_FALLBACK = 1000
_SPACE = "\u2581"
_SPECIALS = {
    "bos": ("<s>", "[CLS]"),
    "pad": ("<pad>", "[PAD]"),
    "eos": ("</s>", "[SEP]"),
    "unk": ("<unk>", "[UNK]"),
    "mask": ("<mask>", "[MASK]"),
}
MAX_LINE_BYTES = 4096
_CHUNK = 4096


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model. Ids are the model's own, so the specials are wherever the model has them."""

    kind = "sentencepiece"

    def __init__(self, model: bytes, where: str = "SentencePiece model") -> None:
        """Build from the bytes of a ``.model`` file.

        Raises:
            BortError: the bytes are no SentencePiece model, or a special piece is missing.
        """
        processor = sentencepiece.SentencePieceProcessor()
        try:
            # An empty or damaged protocol buffer can parse as a model without pieces.
            intact = processor.LoadFromSerializedProto(model) and processor.get_piece_size() > 0
        except (RuntimeError, OSError, ValueError) as error:  # ValueError: a message that is not UTF-8
            raise BortError(
                f"{where}: not a SentencePiece model, or a damaged one ({str(error)[:200]})"
            ) from error
        if not intact:
            raise BortError(f"{where}: not a SentencePiece model (no pieces in it)")
        try:
            tokens = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
        except UnicodeDecodeError as error:
            raise BortError(f"{where}: a damaged SentencePiece model (a piece is not UTF-8)") from error
        names = fixed_specials(tokens, _SPECIALS, where)
        spare = [index for index in range(len(tokens)) if processor.is_control(index)]
        marker = self.MARKER if self.MARKER in set(tokens) else None
        super().__init__(tokens, names, marker, spare, hashlib.sha256(model).hexdigest())
        self._model = model
        self._processor = processor

    def _encode_plain(self, texts: List[str]) -> List[List[int]]:
        rows: List[List[int]] = []
        for start in range(0, len(texts), _CHUNK):
            rows.extend(self._processor.encode(texts[start : start + _CHUNK], out_type=int))
        return rows

    def _decode_plain(self, ids: List[int]) -> str:
        # The library drops the blank of a first word, which after a special token belongs to the text.
        return (" " if self._tokens[ids[0]].startswith(_SPACE) else "") + self._processor.decode(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """As :meth:`Tokenizer.decode`, without the blank that SentencePiece puts
        before a text's first word."""
        text = super().decode(ids)
        return text[1:] if text.startswith(" ") else text

    def _starts_word(self, token: str) -> bool:
        if token.startswith(_SPACE):
            return True
        if token.startswith("<0x") and token.endswith(">"):
            return False
        return not any(char.isalnum() for char in token)

    def _write_files(self, folder: Path) -> None:
        with atomic_write(folder / MODEL_FILE, "wb") as stream:
            stream.write(self._model)


def from_model_file(path: Path) -> SentencePieceTokenizer:
    """Read a ``.model`` file."""
    return SentencePieceTokenizer(read_bytes(path), str(path))


def train_sentencepiece(
    lines: Iterable[str],
    vocab_size: int,
    seed: int = 0,
    byte_fallback: Optional[bool] = None,
    threads: int = 2,
    max_lines: int = 2_000_000,
) -> SentencePieceTokenizer:
    """Train a unigram vocabulary; the same lines, size and seed give the same model, byte for byte.

    Args:
        lines: the training text, a sentence or paragraph each; those longer than 4,096 bytes are cut.
        vocab_size: ids to make. The result has fewer when the text is too small to support that many.
        seed: draws the ``max_lines`` lines that are used when there are more.
        byte_fallback: whether unknown characters are spelled in bytes; None decides by ``vocab_size`` (see
            above).
        threads: threads to train with. Sums are taken in another order with another number, so it is part of
            the recipe and does not follow the machine.
        max_lines: lines to hold in memory.

    Raises:
        BortError: no text, or a vocabulary too small for its characters.
    """
    if vocab_size < 16:
        raise BortError(f"a vocabulary of {vocab_size} ids is too small; at least 16 are needed")
    if byte_fallback is None:
        byte_fallback = vocab_size >= MIN_BYTE_FALLBACK
    sample = _sample(lines, max_lines, seed)
    if not sample:
        raise BortError("there is no text to make a vocabulary from")
    settings: Dict[str, Any] = {
        "model_type": "unigram",
        "vocab_size": vocab_size,
        "hard_vocab_limit": False,
        "bos_id": 0,
        "pad_id": 1,
        "eos_id": 2,
        "unk_id": 3,
        "bos_piece": "<s>",
        "pad_piece": "<pad>",
        "eos_piece": "</s>",
        "unk_piece": "<unk>",
        "control_symbols": ["<mask>"],
        "user_defined_symbols": [Tokenizer.MARKER],
        "byte_fallback": byte_fallback,
        "character_coverage": 0.9995 if byte_fallback else 1.0,
        "num_threads": threads,
        "shuffle_input_sentence": False,
        "max_sentence_length": 2 * MAX_LINE_BYTES,
        "minloglevel": 2,
    }
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample), model_writer=model, **settings
        )
    except (RuntimeError, OSError) as error:
        needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        why = (
            f"its characters alone take {needed.group(1)}; ask for more (--vocab-size)"
            if needed
            else " ".join(str(error)[-300:].split())
        )
        raise BortError(f"SentencePiece cannot make {vocab_size} ids from this text: {why}") from error
    return SentencePieceTokenizer(model.getvalue(), "the trained vocabulary")


def _sample(lines: Iterable[str], count: int, seed: int) -> List[str]:
    """At most ``count`` cut lines of the text, each equally likely (Vitter's reservoir), in memory for
    ``count``."""
    generator = random.Random(seed)
    kept: List[str] = []
    seen = 0
    for line in lines:
        for piece in _cut(line):
            seen += 1
            if len(kept) < count:
                kept.append(piece)
            else:
                place = generator.randrange(seen)
                if place < count:
                    kept[place] = piece
    return kept


def _cut(line: str) -> Iterator[str]:
    """Non-empty pieces of a line that the trainer takes:
    it skips what is longer than its limit, and stops at NUL."""
    line = without_surrogates(line).replace("\0", " ").replace(Tokenizer.MARKER, " ").strip()
    while line:
        if len(line.encode("utf-8")) <= MAX_LINE_BYTES:
            yield line
            return
        # A quarter of the bytes, in characters, fits whatever the characters;
        # break it at a blank if there is one.
        end = (
            line.rfind(" ", 1, MAX_LINE_BYTES // 4)
            if " " in line[1 : MAX_LINE_BYTES // 4]
            else MAX_LINE_BYTES // 4
        )
        yield line[:end]
        line = line[end:].lstrip()
