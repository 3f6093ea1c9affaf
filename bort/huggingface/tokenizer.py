"""A tokenizer for transformers' ``AutoTokenizer`` that gives the ids this project's models were trained on.

Beside the vocabulary's own files goes a ``tokenizer.json`` whose template puts one ``</s>`` between the
segments of a pair (RoBERTa's class at Hugging Face puts two). Every token is of type 0, unless the exported
model tells the texts of a pair apart.
"""
from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from bort.errors import BortError
from bort.files import atomic_write
from bort.json_files import read_json, write_json
from bort.text.tokenizers.base import Tokenizer
from bort.text.tokenizers.pieces import MODEL_FILE
from bort.text.tokenizers.tokenizer_json import FileTokenizer

CONFIG_FILE = "tokenizer_config.json"
_PROBES = ("Hello world! It's 3.14 o'clock, isn't it?", "  two  blanks\tand a tab ", "a",
           "don't THE Ünïcödé ﬁne ½ ①", "中文 日本語 한국어", "emoji 🙂 and \u200b zero width",
           "x" * 40 + " antidisestablishmentarianism", "\u00a0nbsp\u2028line",
           "www.example.com/a_b-c?d=e&f=%20", "",
           "Cafe\u0301 Vie\u0323\u0302t Nam, u\u0308ber, \u1112\u1161\u11ab, \u304b\u3099")
_STACKED_PROBES = ("a\u0301\u0301", "e\u0302\u0301\u0323", "o\u0323\u0304\u0301x", "\ufb01\u030c",
                   "\u304b\u3099\u309a", "n\u0303\u0323\u0331", "\u0928\u093c\u0301", "\u0e01\u0e33\u0e49")
"""Letters with several combining marks, or marks without a composed form. The tokenizers library looks each
such cluster up whole or mark by mark, SentencePiece takes the longest entry of its table."""


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int,
                    typed: bool = False) -> Optional[str]:
    """Write a tokenizer's own files and, if its kind can be expressed, ``tokenizer.json``.

    Args:
        typed: the second text of a pair is of token type 1.

    Returns:
        What a reader of the export has to know, or None: there is no ``tokenizer.json``, or it gives other
        ids where a letter carries several combining marks.

    Raises:
        BortError: the folder cannot be written to.
    """
    tokenizer.save(folder)
    engine = _engine(tokenizer, folder)
    note = stated = None
    if engine is not None:
        differing = _first_differing(_PROBES, engine, tokenizer)
        stacked = _first_differing(_STACKED_PROBES, engine, tokenizer)
        if differing is None:
            _finish(engine, tokenizer, typed)
            with atomic_write(folder / "tokenizer.json") as stream:
                stream.write(engine.to_str(pretty=False))
        else:
            note = f"its tokenizer.json would give other ids for {differing!r}"
        if stacked is not None and note is None:
            stated = ("the tokenizer's ids of some text: transformers gives others where a letter carries "
                      f"combining marks that NFC does not compose, such as {ascii(stacked)}")
    else:
        note = "its kind has no tokenizer.json"
    settings: Dict[str, Any] = {}
    if (folder / CONFIG_FILE).is_file():  # WordPiece keeps its own settings there
        found = read_json(folder / CONFIG_FILE)
        settings = found if isinstance(found, dict) else {}
    names = tokenizer.names
    settings.update({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length,
                     "bos_token": names["bos"], "cls_token": names["bos"], "eos_token": names["eos"],
                     "sep_token": names["eos"], "unk_token": names["unk"], "pad_token": names["pad"],
                     "mask_token": names["mask"], "model_input_names": [
                         "input_ids", *(["token_type_ids"] if typed else []), "attention_mask"],
                     "clean_up_tokenization_spaces": False})
    write_json(folder / CONFIG_FILE, settings)
    return stated or (note and f"{note}: transformers cannot load this tokenizer, use bort.load_tokenizer")


def _first_differing(texts: Sequence[str], engine: Any, tokenizer: Tokenizer) -> Optional[str]:
    return next((text for text in texts if _ids(engine, text) != tokenizer.encode(text)), None)


def _ids(engine: Any, text: str) -> List[int]:
    return engine.encode(text, add_special_tokens=False).ids


def _engine(tokenizer: Tokenizer, folder: Path) -> Any:
    """The same tokenizer out of the ``tokenizers`` package, without special tokens;
    None if that has no such kind."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    if isinstance(tokenizer, FileTokenizer):
        return tokenizer.engine()
    if tokenizer.kind == "bpe":
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        engine = tokenizers.Tokenizer(model)
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
    elif tokenizer.kind == "wordpiece":
        settings = read_json(folder / CONFIG_FILE)
        vocabulary = {tokenizer.id_to_token(index): index for index in range(tokenizer.vocab_size)}
        engine = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=tokenizer.names["unk"],
                                                       max_input_chars_per_word=100))
        engine.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=settings["tokenize_chinese_chars"],
            strip_accents=settings["strip_accents"], lowercase=settings["do_lower_case"])
        engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        engine.decoder = decoders.WordPiece()
    else:
        return _unigram(tokenizer, (folder / MODEL_FILE).read_bytes())
    return engine


def _finish(engine: Any, tokenizer: Tokenizer, typed: bool) -> None:
    """Special tokens, and the template of the project's inputs."""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    names = tokenizer.names
    # As in RoBERTa's own tokenizer, a blank before the mask belongs to it.
    engine.add_special_tokens([AddedToken(name, normalized=False, lstrip=key == "mask")
                               for key, name in names.items()])
    begin, end = names["bos"], names["eos"]
    engine.post_processor = TemplateProcessing(
        single=f"{begin} $A {end}", pair=f"{begin} $A:0 {end}:0 $B:{int(typed)} {end}:{int(typed)}",
        special_tokens=[(begin, tokenizer.bos_id), (end, tokenizer.eos_id)])


def _unigram(tokenizer: Tokenizer, proto: bytes) -> Any:
    """A SentencePiece unigram model in the ``tokenizers`` package; None for other types of model.

    The protocol buffer's fields: 1 pieces (1 text, 2 score), 2 trainer (3 type, 1 is unigram; 35 byte
    fallback), 3 normalizer (2 character map).
    """
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    pieces: List[Tuple[str, float]] = []
    charsmap, kind, fallback = b"", 1, False
    try:
        for field, value in _fields(proto):
            if field == 1:
                members = dict(_fields(value))
                pieces.append((members[1].decode("utf-8"),
                               struct.unpack("<f", members.get(2, b"\0\0\0\0"))[0]))
            elif field == 2:
                members = dict(_fields(value))
                kind, fallback = members.get(3, 1), bool(members.get(35, 0))
            elif field == 3:
                charsmap = dict(_fields(value)).get(2, b"")
        if kind != 1 or len(pieces) != tokenizer.vocab_size:
            return None
        engine = tokenizers.Tokenizer(models.Unigram(pieces, tokenizer.unk_id, *([True] if fallback else [])))
    except (KeyError, IndexError, ValueError, struct.error, TypeError) as error:
        raise BortError(f"the SentencePiece model cannot be read ({error})") from error
    steps: List[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if charsmap and tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9"):
        # The library looks a letter's cluster of marks up whole or not at all; composed, it is one character.
        steps.insert(0, normalizers.NFC())
    # SentencePiece strips blanks at both ends and joins runs of them.
    steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip(left=True, right=True)]
    engine.normalizer = normalizers.Sequence(steps)
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    engine.decoder = decoders.Metaspace()
    return engine


def _fields(message: bytes) -> Iterator[Tuple[int, Any]]:
    """``(field number, value)`` of a protocol buffer's top level: ints, or bytes for everything longer."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 or shift > 63:
                return value

    while place < len(message):
        key = varint()
        wire = key & 7
        if wire == 0:
            yield key >> 3, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        length = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        yield key >> 3, message[place:place + length]
        place += length
