"""What every tokenizer of the project can do, whatever its kind."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, Optional, Sequence

import numpy as np

from bort.errors import BortError
from bort.files import PathLike, read_bytes
from bort.json_files import shown, write_json

SETTINGS_FILE = "bort_tokenizer.json"
FORMAT_VERSION = 1

_SURROGATES = re.compile("[\ud800-\udfff]")


def _quiet_fork() -> None:
    """Switch the Rust tokenizers' threads off in forked children: their thread pool does not survive a fork.

    The library does so by itself, but only after a warning from every child. Its switch is an environment
    variable, which therefore has to be set when the child is born, and must not stay set in the parent.
    """
    name = "TOKENIZERS_PARALLELISM"
    ours: List[bool] = []

    def before() -> None:
        ours.append(name not in os.environ)
        if ours[-1]:
            os.environ[name] = "false"

    def after() -> None:
        if ours.pop():
            os.environ.pop(name, None)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after)


_quiet_fork()


def without_surrogates(text: str) -> str:
    """``text`` that UTF-8 can hold: surrogate pairs become their character, lone surrogates U+FFFD."""
    if text.isascii() or not _SURROGATES.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class Tokenizer:
    """Text to ids and back. Use :func:`bort.text.tokenizers.loading.load_tokenizer` to make one.

    Attributes:
        kind: "bpe", "sentencepiece", "wordpiece", or "huggingface" for any other ``tokenizer.json``.
        vocab_size: number of ids, V.
        bos_id, pad_id, eos_id, unk_id, mask_id: ids of the five special tokens.
        marker_id: the id of :attr:`MARKER`, a token that ordinary text never produces: ``madeupword0000`` in
            RoBERTa's vocabulary, a reserved piece in SentencePiece vocabularies trained here, ``[unused0]``
            or ``[unused1]`` in BERT's. A vocabulary without any of these uses ``unk_id``.
        special_ids: ids that masking must neither choose nor insert; ordinary text produces none of
        them but unk.
        fingerprint: SHA-256 in hexadecimal over everything that determines ids; equal for the same vocabulary
            in another layout of files.
    """

    MARKER = "\U000f1b07"
    """A private-use character. Around a word in a text, it marks the span: ``f"the {MARKER}dog{MARKER}
    barks"``."""

    kind = ""

    def __init__(
        self,
        tokens: Sequence[str],
        names: Dict[str, str],
        marker: Optional[str],
        spare: Iterable[int],
        digest_of: Any,
    ) -> None:
        """Fill in the attributes.

        Args:
            tokens: the V tokens in the order of their ids.
            names: the special tokens under the keys bos, pad, eos, unk and mask.
            marker: the token that :attr:`MARKER` becomes, or None.
            spare: further ids that text never produces.
            digest_of: whatever besides the tokens and specials determines ids; anything that JSON can hold.

        Raises:
            BortError: a special token is not in the vocabulary.
        """
        self._tokens = list(tokens)
        self._ids = {token: index for index, token in enumerate(self._tokens)}
        missing = [name for name in names.values() if name not in self._ids]
        if missing:
            raise BortError(f"the vocabulary of {len(tokens)} tokens has no {', '.join(map(repr, missing))}")
        self.vocab_size = len(self._tokens)
        self.names = dict(names)
        self.bos_id, self.pad_id, self.eos_id, self.unk_id, self.mask_id = (
            self._ids[names[key]] for key in ("bos", "pad", "eos", "unk", "mask")
        )
        self.marker_id = self.unk_id if marker is None else self._ids[marker]
        self.special_ids: FrozenSet[int] = frozenset(
            [self.bos_id, self.pad_id, self.eos_id, self.unk_id, self.mask_id, self.marker_id, *spare]
        )
        content = json.dumps([self.kind, self._tokens, self.names, marker, digest_of], ensure_ascii=True)
        self.fingerprint = hashlib.sha256(content.encode("ascii")).hexdigest()

    # What each kind provides.
    def _encode_plain(self, texts: List[str]) -> List[List[int]]:
        raise NotImplementedError

    def _decode_plain(self, ids: List[int]) -> str:
        raise NotImplementedError

    def _starts_word(self, token: str) -> bool:
        raise NotImplementedError

    def _write_files(self, folder: Path) -> None:
        raise NotImplementedError

    # What all share.
    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str) -> List[int]:
        """Ids of a text, without special tokens but with ``marker_id`` for every :attr:`MARKER` in it.

        A blank directly before a marker moves behind it, so that the marked word has the ids it would have
        unmarked. Text that spells a special token (``<mask>``) is ordinary text. Lone surrogates count as
        U+FFFD.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> List[List[int]]:
        """:meth:`encode` of many texts at once, on all cores where the library can."""
        if isinstance(texts, str):
            raise TypeError("encode_batch takes a list of strings; encode takes one string")
        plain = [without_surrogates(text) for text in texts]
        if not any(self.MARKER in text for text in plain):
            return self._encode_plain(plain)
        parts = [_split_at(self.MARKER, text) for text in plain]
        flat = iter(self._encode_plain([part for segments in parts for part in segments]))
        rows = []
        for segments in parts:
            row = list(next(flat))
            for _ in segments[1:]:
                row.append(self.marker_id)
                row.extend(next(flat))
            rows.append(row)
        return rows

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids: bos, pad and eos vanish, the marker becomes :attr:`MARKER`, the other specials are
        spelled out.

        Raises:
            BortError: an id is not in the vocabulary.
        """
        pieces: List[str] = []
        run: List[int] = []
        for index in ids:
            index = int(index)
            token = self.id_to_token(index)
            if index not in self.special_ids:
                run.append(index)
                continue
            pieces.append(self._decode_plain(run) if run else "")
            run = []
            if index not in (self.bos_id, self.pad_id, self.eos_id):
                pieces.append(self.MARKER if index == self.marker_id != self.unk_id else token)
        pieces.append(self._decode_plain(run) if run else "")
        return "".join(pieces)

    def id_to_token(self, index: int) -> str:
        """The token of an id. Raises BortError when there is none."""
        if not 0 <= index < self.vocab_size:
            raise BortError(f"token id {index} is not in the vocabulary (0 to {self.vocab_size - 1})")
        return self._tokens[index]

    def word_starts(self) -> np.ndarray:
        """bool (V,): the token begins a new word. Punctuation on its own does, and so do special tokens."""
        starts = np.array([self._starts_word(token) for token in self._tokens], dtype=bool)
        starts[sorted(self.special_ids)] = True
        return starts

    def save(self, folder: PathLike) -> None:
        """Write the vocabulary into ``folder`` so that ``load_tokenizer(folder)``
        gives the same tokenizer."""
        folder = Path(folder)
        self._write_files(folder)
        write_json(
            folder / SETTINGS_FILE,
            {
                "format": FORMAT_VERSION,
                "kind": self.kind,
                "vocab_size": self.vocab_size,
                "fingerprint": self.fingerprint,
                "special_tokens": self.names,
            },
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]}...)"


def _split_at(marker: str, text: str) -> List[str]:
    segments = text.split(marker)
    for index in range(len(segments) - 1):
        if segments[index].endswith(" "):
            segments[index] = segments[index][:-1]
            segments[index + 1] = " " + segments[index + 1]
    return segments


def tokens_in_order(ids: Any, where: str) -> List[str]:
    """The tokens of a ``{token: id}`` mapping, by id, after checking that the ids are 0 to V-1 without
    gap or repeat.

    Raises:
        BortError: naming ``where`` and the first offending entry.
    """
    if not isinstance(ids, dict) or not ids:
        raise BortError(f"{where}: not a vocabulary (a JSON object of token: id is expected)")
    tokens: List[Optional[str]] = [None] * len(ids)
    for token, index in ids.items():
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(tokens):
            raise BortError(
                f"{where}: {token!r} has the id {shown(index)}, not a whole number from 0 to "
                f"{len(tokens) - 1}; the file is damaged or incomplete"
            )
        if tokens[index] is not None:
            raise BortError(
                f"{where}: {token!r} and {tokens[index]!r} share the id {index}; the file is damaged"
            )
        tokens[index] = token
    return [token for token in tokens if token is not None]  # as many as there are: all have one


def refuse_repeats(tokens: Sequence[str], where: str, first_line: Optional[int] = None) -> None:
    """Raise BortError naming ``where`` and the first token that is there twice.

    Args:
        first_line: the line of the first token, where each has one of its own.
    """
    seen: Dict[str, int] = {}
    for index, token in enumerate(tokens):
        before = seen.setdefault(token, index)
        if before != index:
            line = "" if first_line is None else f", line {index + first_line}"
            raise BortError(f"{where}{line}: the token {token[:60]!r} is in it twice; the file is damaged")


def read_lines(path: Path) -> List[str]:
    """Lines of a UTF-8 file, split at LF alone (byte-level alphabets contain other line
    separators), CR removed.

    Raises:
        BortError: the file cannot be read, or is not UTF-8 (the line is named).
    """
    data = read_bytes(path)
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BortError(f"{path}, line {line}: not UTF-8 text; the file is damaged") from error
    if lines and not lines[-1]:
        lines.pop()
    return [line[:-1] if line.endswith("\r") else line for line in lines]


def fixed_specials(
    tokens: Sequence[str], candidates: Mapping[str, Sequence[str]], where: str
) -> Dict[str, str]:
    """The first of each special token's spellings that the vocabulary has.

    Raises:
        BortError: naming ``where`` and every special token that is missing.
    """
    known = set(tokens)
    spellings = {key: [name for name in names if name in known] for key, names in candidates.items()}
    missing = [candidates[key][0] for key, names in spellings.items() if not names]
    if missing:
        raise BortError(f"{where}: the vocabulary has no {', '.join(map(repr, missing))}")
    return {key: names[0] for key, names in spellings.items()}
