"""Byte-level byte-pair encoding (GPT-2's, as RoBERTa and Bort use it) from each
of the layouts that people have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import regex
import tokenizers

from bort.errors import BortError
from bort.files import atomic_write
from bort.json_files import read_json, write_json
from bort.text.tokenizers.base import Tokenizer, fixed_specials, read_lines, refuse_repeats, tokens_in_order

SPECIALS = {"bos": ("<s>",), "pad": ("<pad>",), "eos": ("</s>",), "unk": ("<unk>",), "mask": ("<mask>",)}
_SPARE = re.compile(r"madeupword\d{4}|<\|endoftext\|>")

RANK_FILES = ("openai_webtext_bpe_ranks-*.json", "vocab.bpe", "merges.txt")
_MOST_REMEMBERED = 1 << 17
_LONGEST_REMEMBERED = 40

# GPT-2's rule for cutting a text into words. GPT-2's, RoBERTa's and GluonNLP's tokenizers ask the `regex`
# package what a letter is; the Rust library's Unicode tables differ on characters of recent Unicode versions.
_WORDS = regex.compile(r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""")


def byte_alphabet() -> Dict[str, int]:
    """GPT-2's 256 stand-in characters and the bytes they stand for: printable Latin-1 or U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + n): byte for n, byte in enumerate(others)},
    }


_BYTES = byte_alphabet()


def _bytes_of(token: str) -> bytes:
    """The bytes of a token; a character that stands for none (in a token that text never gives) is itself."""
    return b"".join(bytes((_BYTES[char],)) if char in _BYTES else char.encode("utf-8") for char in token)


def starts_word_in_bytes(token: str) -> bool:
    """Whether a byte-level token begins a word: it holds the blank before one, or no letter and digit."""
    if token.startswith("Ġ"):
        return True
    try:
        return not any(char.isalnum() for char in _bytes_of(token).decode("utf-8"))
    except UnicodeDecodeError:
        return False


class BytePairTokenizer(Tokenizer):
    """GPT-2's byte-level BPE without a prefix space, ids in the order of the given vocabulary."""

    kind = "bpe"

    def __init__(
        self, tokens: Sequence[str], merges: Sequence[Tuple[str, str]], where: str = "vocabulary"
    ) -> None:
        """Build from V tokens by id and the merges by rank.

        Raises:
            BortError: a special token or a byte is missing, or a merge joins or makes a token that is not
            there.
        """
        names = fixed_specials(tokens, SPECIALS, where)
        known = set(tokens)
        lacking = sorted(byte for char, byte in _BYTES.items() if char not in known)
        if lacking:
            raise BortError(
                f"{where}: not a byte-level vocabulary, {len(lacking)} of the 256 bytes have no "
                f"token (the first is byte 0x{lacking[0]:02x})"
            )
        for number, (left, right) in enumerate(merges, start=1):
            for part in (left, right, left + right):
                if part not in known:
                    raise BortError(
                        f"{where}: merge {number}, {left + ' ' + right!r}, needs the token "
                        f"{part!r}, which the vocabulary does not have; the two files do not "
                        "belong together"
                    )
        self._merges = [(left, right) for left, right in merges]
        spare = [index for index, token in enumerate(tokens) if _SPARE.fullmatch(token)]
        marker = "madeupword0000" if "madeupword0000" in known else None
        super().__init__(tokens, names, marker, spare, [list(pair) for pair in self._merges])
        engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=self._ids, merges=self._merges))
        engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._engine = engine
        self._words = _WORDS.findall
        self._plain: Dict[str, List[int]] = {}
        self._spaced: Dict[str, List[int]] = {}

    def _encode_plain(self, texts: List[str]) -> List[List[int]]:
        # Hand-written, as most words of a text were seen before: remembering them is several times faster
        # than the library alone, which follows the offset of every character.
        rows: List[List[int]] = []
        plain, spaced = self._plain, self._spaced
        for text in texts:
            row: List[int] = []
            parts = text.split(" ")
            bare = text.split()
            # Words never cross a blank that stands alone, so such a text can be cut there, without the
            # pattern. A sentence inside a document begins with a blank, which split() leaves an empty first
            # part of.
            if parts == bare:
                row += plain.get(bare[0]) or self._learn(plain, bare[0], bare[0])
                del bare[0]
            elif parts[0] or len(parts) != len(bare) + 1 or parts[1:] != bare:
                for word in self._words(text):
                    row += plain.get(word) or self._learn(plain, word, word)
                bare = []
            for part in bare:
                row += spaced.get(part) or self._learn(spaced, part, " " + part)
            rows.append(row)
        return rows

    def _learn(self, memory: Dict[str, List[int]], key: str, text: str) -> List[int]:
        words = self._words(text)
        if len(words) == 1:
            ids = self._engine.encode(text, add_special_tokens=False).ids
        else:
            ids = []
            for word in words:
                ids += self._plain.get(word) or self._learn(self._plain, word, word)
        if len(key) <= _LONGEST_REMEMBERED:
            if len(memory) >= _MOST_REMEMBERED:
                memory.clear()
            memory[key] = ids
        return ids

    def _decode_plain(self, ids: List[int]) -> str:
        return b"".join(_bytes_of(self._tokens[index]) for index in ids).decode("utf-8", "replace")

    def _starts_word(self, token: str) -> bool:
        return starts_word_in_bytes(token)

    def _write_files(self, folder: Path) -> None:
        write_json(folder / "vocab.json", self._ids)
        with atomic_write(folder / "merges.txt") as stream:
            stream.write("#version: 0.2\n")
            stream.writelines(f"{left} {right}\n" for left, right in self._merges)


def read_merges(path: Path) -> List[Tuple[str, str]]:
    """Merges of a ranks file (``vocab.bpe``, ``merges.txt``, GluonNLP's
    ``...bpe_ranks-....json``), best first.

    Raises:
        BortError: naming the first line that is not two tokens.
    """
    merges = []
    for number, line in enumerate(read_lines(path), start=1):
        if number == 1 and line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise BortError(
                f"{path}, line {number}: {line[:60]!r} is not a merge (two tokens with a blank "
                "between); the file is damaged"
            )
        merges.append((pair[0], pair[1]))
    if not merges:
        raise BortError(f"{path}: no merges in it; the file is empty or damaged")
    return merges


def from_fairseq(encoder: Path, ranks: Path, dictionary: Path) -> BytePairTokenizer:
    """GPT-2's ``encoder.json`` and ``vocab.bpe`` with fairseq's ``dict.txt``,
    whose order gives RoBERTa's ids."""
    by_id = tokens_in_order(read_json(encoder), str(encoder))
    tokens = ["<s>", "<pad>", "</s>", "<unk>"]
    for number, line in enumerate(read_lines(dictionary), start=1):
        name, blank, count = line.rpartition(" ")
        if not blank or not name or not count.isdigit():
            raise BortError(
                f"{dictionary}, line {number}: {line[:60]!r} is not a token and its count; "
                "the file is damaged"
            )
        if name.isascii() and name.isdigit():
            if len(name) > 9 or int(name) >= len(by_id):
                raise BortError(
                    f"{dictionary}, line {number}: {encoder.name} has no id {name[:40]}; "
                    "the two files do not belong together"
                )
            name = by_id[int(name)]
        tokens.append(name)
    if "<mask>" not in tokens:
        tokens.append("<mask>")
    refuse_repeats(tokens, str(dictionary), first_line=-3)  # four tokens stand before its first line
    return BytePairTokenizer(tokens, read_merges(ranks), str(dictionary))
