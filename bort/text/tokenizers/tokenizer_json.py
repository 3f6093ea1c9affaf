"""Hugging Face's ``tokenizer.json``, run by the ``tokenizers`` library as it is.

A file that says no more than RoBERTa's byte-level BPE or BERT's WordPiece becomes one of the project's own
kinds, so that the same vocabulary has the same fingerprint in every layout. Every other (added tokens, other
normalizers, prefixes, models) is a :class:`FileTokenizer`: all that decides its ids is the library's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import tokenizers

from bort.errors import BortError
from bort.files import atomic_write
from bort.json_files import shown
from bort.text.tokenizers.base import Tokenizer, fixed_specials, tokens_in_order
from bort.text.tokenizers.bpe import BytePairTokenizer, starts_word_in_bytes
from bort.text.tokenizers.wordpiece import MARKERS, WordPieceTokenizer

JSON_FILE = "tokenizer.json"
SPECIALS = {
    "bos": ("[CLS]", "<s>"),
    "pad": ("[PAD]", "<pad>"),
    "eos": ("[SEP]", "</s>"),
    "unk": ("[UNK]", "<unk>"),
    "mask": ("[MASK]", "<mask>"),
}
_MARKERS = (Tokenizer.MARKER, *MARKERS, "madeupword0000")
_SPARE = re.compile(r"\[unused\d+\]|madeupword\d{4}")
_NO_IDS = ("version", "truncation", "padding", "post_processor", "decoder")
"""Members that do not decide the ids of a text."""
_CHUNK = 2048


class FileTokenizer(Tokenizer):
    """A ``tokenizer.json``. Its added tokens count in a text, but for the five special ones."""

    kind = "huggingface"

    def __init__(
        self, content: Mapping[str, Any], names: Optional[Mapping[str, str]] = None, where: str = JSON_FILE
    ) -> None:
        """Build from what is in the file.

        Args:
            content: the file's JSON.
            names: the special tokens under the keys bos, pad, eos, unk and mask, where they are known; the
                usual spellings are looked for otherwise.
            where: named in errors.

        Raises:
            BortError: the library cannot read it, a special token is missing, or its model is of a kind whose
                tokens do not show where words begin.
        """
        self._where = where
        self._engine = engine_of(content, where)
        ids = self._engine.get_vocab(with_added_tokens=True)
        tokens = tokens_in_order(ids, where)
        candidates = {key: ((names or {}).get(key, ""), *found) for key, found in SPECIALS.items()}
        specials = fixed_specials(tokens, candidates, where)
        # As the library writes it, defaults filled in; told apart from the file by its special tokens only.
        self._content: Dict[str, Any] = json.loads(self._engine.to_str())
        added = self._content["added_tokens"]
        for entry in added:
            entry["special"] = entry["content"] in specials.values()
        self._engine = self.engine()
        matched = {entry["content"] for entry in added}
        self._model = self._content["model"]
        self._pretokenizer = json.dumps(self._content["pre_tokenizer"])
        self._check_kind(where)
        decisive = {name: value for name, value in self._content.items() if name not in _NO_IDS}
        decisive["added_tokens"] = [entry for entry in added if not entry["special"]]
        marker = next((token for token in _MARKERS if token in ids and token not in matched), None)
        spare = [ids[token] for token in tokens if _SPARE.fullmatch(token) and token not in matched]
        super().__init__(tokens, specials, marker, spare, decisive)
        self._never = {self.bos_id, self.pad_id, self.eos_id, self.mask_id} - {self.unk_id}

    def engine(self) -> Any:
        """The library's tokenizer, to which the five special tokens are ordinary text."""
        engine = engine_of(self._content, JSON_FILE)
        engine.encode_special_tokens = True
        return engine

    def _check_kind(self, where: str) -> None:
        kind, unknown = self._model["type"], self._model.get("unk_token")
        if unknown is not None and unknown not in self._model["vocab"]:
            raise BortError(f"{where}: its vocabulary has no {unknown!r}, which the file names as unk_token")
        if kind == "BPE" and self._model.get("end_of_word_suffix"):
            raise BortError(
                f"{where}: its BPE marks the ends of words ({shown(self._model['end_of_word_suffix'])}), "
                "which this project's models do not use"
            )

    def _encode_plain(self, texts: List[str]) -> List[List[int]]:
        rows: List[List[int]] = []
        encode = self._engine.encode_batch_fast
        for start in range(0, len(texts), _CHUNK):
            try:
                encodings = encode(texts[start : start + _CHUNK], add_special_tokens=False)
            except Exception as error:  # the library has no narrower class
                raise BortError(f"{self._where}: the tokenizers library cannot apply it ({error})") from error
            for encoding in encodings:
                row = encoding.ids
                # A unigram or whole-word model can find a special token spelled out in a text.
                if not self._never.isdisjoint(row):
                    row = [self.unk_id if index in self._never else index for index in row]
                rows.append(row)
        return rows

    def _decode_plain(self, ids: List[int]) -> str:
        return self._engine.decode(ids, skip_special_tokens=False)

    def _starts_word(self, token: str) -> bool:
        kind = self._model["type"]
        if kind == "WordPiece":
            return not token.startswith(self._model["continuing_subword_prefix"])
        if kind == "WordLevel":
            return True
        if "ByteLevel" in self._pretokenizer:
            return starts_word_in_bytes(token)
        return token.startswith("\u2581") or not any(char.isalnum() for char in token)

    def _write_files(self, folder: Path) -> None:
        with atomic_write(folder / JSON_FILE) as stream:
            json.dump(self._content, stream, ensure_ascii=False)


def engine_of(content: Mapping[str, Any], where: str) -> Any:
    """The library's tokenizer of a ``tokenizer.json``.

    Raises:
        BortError: the library cannot read it, or gives an added token another id than the file says.
    """
    try:
        engine = tokenizers.Tokenizer.from_str(json.dumps(content))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library's own errors, and panics, have no narrower class
        reason = " ".join(str(error).split())[:200]
        raise BortError(f"{where}: not a tokenizer that the tokenizers library reads ({reason})") from error
    engine.no_truncation()
    engine.no_padding()
    for entry in content.get("added_tokens") or []:
        given, found = entry.get("id"), engine.token_to_id(entry.get("content"))
        if given != found:
            raise BortError(
                f"{where}: the added token {shown(entry.get('content'))} has the id {shown(given)}, "
                f"which the tokenizers library makes {found!r}; the file is damaged or another program's"
            )
    return engine


def from_content(content: Any, names: Optional[Mapping[str, str]], where: str) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``: one of the project's own kinds where it says no more than that.

    Raises:
        BortError: as :class:`FileTokenizer`.
    """
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise BortError(f"{where}: not a Hugging Face tokenizer (no 'model' in it)")
    if "type" not in model:  # old files have none; a list of merges tells
        model = {"type": "BPE" if "merges" in model else "WordPiece", **model}
    content = {**content, "model": model}
    return _own_kind(content, where) or FileTokenizer(content, names, where)


def _own_kind(content: Mapping[str, Any], where: str) -> Optional[Tokenizer]:
    """The same tokenizer as one of the project's own kinds, None where that would not give all its ids."""
    model, normalizer, steps = (content.get(name) or {} for name in ("model", "normalizer", "pre_tokenizer"))
    added = content.get("added_tokens") or []
    vocabulary: Any = model.get("vocab")
    if not all(isinstance(part, dict) for part in (normalizer, steps, vocabulary)) or not isinstance(
        added, list
    ):
        return None
    usual = {spelling for spellings in SPECIALS.values() for spelling in spellings}
    for entry in added:
        token = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(token, str) or token not in usual:
            return None
    if model.get("unk_token") not in (None, "[UNK]", "<unk>"):
        return None
    ids = {**{entry["content"]: entry.get("id") for entry in added}, **dict(vocabulary)}
    if model["type"] == "BPE":
        odd = [
            name
            for name in (
                "dropout",
                "byte_fallback",
                "ignore_merges",
                "continuing_subword_prefix",
                "end_of_word_suffix",
            )
            if model.get(name)
        ]
        plain = steps.get("type") == "ByteLevel" and steps.get("use_regex", True)
        if not odd and plain and not normalizer and steps.get("add_prefix_space") is False:
            return BytePairTokenizer(tokens_in_order(ids, where), _merges(model, where), where)
    elif model["type"] == "WordPiece":
        plain = steps == {"type": "BertPreTokenizer"} and model.get("max_input_chars_per_word", 100) == 100
        plain = plain and model.get("continuing_subword_prefix", "##") == "##"
        lowercase, accents, chinese = (
            normalizer.get(name, "") for name in ("lowercase", "strip_accents", "handle_chinese_chars")
        )
        known = lowercase in (True, False) and chinese in (True, False) and accents in (True, False, None)
        cleaning = normalizer.get("type") == "BertNormalizer" and normalizer.get("clean_text") is True
        if plain and cleaning and known:
            return WordPieceTokenizer(
                tokens_in_order(ids, where),
                lowercase=lowercase,
                strip_accents=accents,
                chinese=chinese,
                where=where,
            )
    return None


def _merges(model: Mapping[str, Any], where: str) -> List[Tuple[str, str]]:
    merges = []
    for number, merge in enumerate(model.get("merges") or [], start=1):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise BortError(
                f"{where}: model.merges, entry {number}: {shown(merge)} is not a pair of tokens"
            )
        merges.append((pair[0], pair[1]))
    return merges
