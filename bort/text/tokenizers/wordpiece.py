"""WordPiece, for BERT teachers that come from Hugging Face: ``vocab.txt`` or ``tokenizer.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Optional, Sequence

import tokenizers

from bort.files import atomic_write
from bort.json_files import write_json
from bort.text.tokenizers.base import Tokenizer, fixed_specials

_SPECIALS = {
    "bos": ("[CLS]", "<s>"),
    "pad": ("[PAD]", "<pad>"),
    "eos": ("[SEP]", "</s>"),
    "unk": ("[UNK]", "<unk>"),
    "mask": ("[MASK]", "<mask>"),
}
_SETTINGS_FILE = "tokenizer_config.json"
_PREFIX = "##"
MARKERS = ("[unused0]", "[unused1]")
_CHUNK = 2048


class WordPieceTokenizer(Tokenizer):
    """BERT's tokenizer: cleaning, optional lower-casing and accent stripping,
    punctuation split off, WordPiece."""

    kind = "wordpiece"

    def __init__(
        self,
        tokens: Sequence[str],
        lowercase: bool = True,
        strip_accents: Optional[bool] = None,
        chinese: bool = True,
        where: str = "vocabulary",
    ) -> None:
        """Build from V tokens by id.

        Args:
            tokens: the vocabulary; pieces inside a word begin with ``##``.
            lowercase: ``do_lower_case`` of Hugging Face.
            strip_accents: None does as ``lowercase`` does.
            chinese: whether each CJK character is a word.
            where: named in errors.

        Raises:
            BortError: a special token is missing.
        """
        names = fixed_specials(tokens, _SPECIALS, where)
        spare = [
            index for index, token in enumerate(tokens) if token.startswith("[unused") and token.endswith("]")
        ]
        marker = next((token for token in MARKERS if token in set(tokens)), None)
        self._options = {
            "do_lower_case": lowercase,
            "strip_accents": strip_accents,
            "tokenize_chinese_chars": chinese,
        }
        super().__init__(tokens, names, marker, spare, self._options)
        model = tokenizers.models.WordPiece(
            vocab=self._ids, unk_token=names["unk"], max_input_chars_per_word=100
        )
        self._fast = tokenizers.Tokenizer(model)
        self._fast.normalizer = tokenizers.normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
        )
        self._fast.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()

    def _encode_plain(self, texts: List[str]) -> List[List[int]]:
        rows: List[List[int]] = []
        encode = getattr(self._fast, "encode_batch_fast", self._fast.encode_batch)
        for start in range(0, len(texts), _CHUNK):
            rows.extend(
                encoding.ids for encoding in encode(texts[start : start + _CHUNK], add_special_tokens=False)
            )
        return rows

    def decode(self, ids: Any) -> str:
        """As :meth:`Tokenizer.decode`, with one blank between words:
        WordPiece does not keep the original spacing."""
        words: List[str] = []
        for index in map(int, ids):
            token = self.id_to_token(index)
            if index in (self.bos_id, self.pad_id, self.eos_id):
                continue
            if index == self.marker_id != self.unk_id:
                words.append(self.MARKER)
            elif token.startswith(_PREFIX) and words:
                words[-1] += token[len(_PREFIX) :]
            else:
                words.append(token)
        return " ".join(words)

    def _starts_word(self, token: str) -> bool:
        return not token.startswith(_PREFIX)

    def _write_files(self, folder: Path) -> None:
        with atomic_write(folder / "vocab.txt") as stream:
            stream.writelines(f"{token}\n" for token in self._tokens)
        write_json(folder / _SETTINGS_FILE, {"tokenizer_class": "BertTokenizer", **self._options})
