"""Folders of Hugging Face's tokenizers: several files, of which the ones win that transformers lets win.

``tokenizer.json`` comes before ``vocab.json`` and ``vocab.txt``. Where ``tokenizer_config.json`` names BERT's
or RoBERTa's class, or ``config.json`` such a model, that class's settings stand above ``tokenizer.json``:
``do_lower_case`` (true by default), ``strip_accents`` and ``tokenize_chinese_chars`` of BERT's,
``add_prefix_space`` (false by default) of RoBERTa's. Where no such class is named, ``tokenizer.json`` is used
as it is, and those settings mean nothing, as with transformers' ``PreTrainedTokenizerFast``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from bort.errors import BortError
from bort.json_files import read_json, shown
from bort.text.tokenizers.base import Tokenizer, read_lines, tokens_in_order
from bort.text.tokenizers.bpe import BytePairTokenizer, read_merges
from bort.text.tokenizers.tokenizer_json import from_content
from bort.text.tokenizers.wordpiece import WordPieceTokenizer

logger = logging.getLogger("bort.text")

CONFIG_FILE = "tokenizer_config.json"
_BERT = frozenset(
    "bert distilbert electra convbert mobilebert squeezebert layoutlm ernie megatron-bert visual_bert".split()
)
_ROBERTA = frozenset(
    "roberta bart longformer led ibert mra data2vec-text roberta-prelayernorm gpt2 bort".split()
)
_GENERIC = frozenset(("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend"))
CASED_SHARE = 0.1
"""Share of words with capitals from which a vocabulary is taken to be cased; a lower-cased one has none."""


@dataclass(frozen=True)
class Configuration:
    """What ``tokenizer_config.json``, ``config.json`` and ``added_tokens.json`` of a folder say.

    Attributes:
        path: of ``tokenizer_config.json``, for messages.
        settings: the content of that file.
        name: the class of transformers, without "Fast"; empty where none is named.
        family: "bert", "roberta" or empty, by that class or the model's type.
        added: tokens beyond the vocabulary's, as entries of ``tokenizer.json``.
        names: the special tokens that the settings name, as a tokenizer's ``names``.
    """

    path: Path
    settings: Mapping[str, Any]
    name: str
    family: str
    added: Sequence[Mapping[str, Any]]
    names: Mapping[str, str]

    def flag(self, name: str, default: Optional[bool]) -> Optional[bool]:
        """A setting that is true or false, or None where that is its default.

        Raises:
            BortError: it is something else.
        """
        value = self.settings.get(name, default)
        if not (isinstance(value, bool) or value is default):
            raise BortError(f"{self.path}: {name} is {shown(value)}, not true or false")
        return value


def read_configuration(folder: Path) -> Configuration:
    """The configuration of a folder; an empty one where it has no such files.

    Raises:
        BortError: a file is damaged.
    """
    path = folder / CONFIG_FILE
    settings = _object(path)
    name = settings.get("tokenizer_class") or ""
    if not isinstance(name, str):
        raise BortError(f"{path}: tokenizer_class is {shown(name)}, not a name")
    name = name[:-4] if name.endswith("Fast") and name not in _GENERIC else name
    model = _object(folder / "config.json").get("model_type")
    if name:
        family = next(
            (
                kind
                for kind, models in (("bert", _BERT), ("roberta", _ROBERTA))
                if name.lower().replace("tokenizer", "") in {one.replace("-", "") for one in models}
            ),
            "",
        )
    else:
        family = "bert" if model in _BERT else "roberta" if model in _ROBERTA else ""
    names = {}
    for key, members in (
        ("bos", ("cls_token", "bos_token")),
        ("eos", ("sep_token", "eos_token")),
        ("pad", ("pad_token",)),
        ("unk", ("unk_token",)),
        ("mask", ("mask_token",)),
    ):
        values = [_spelling(settings.get(member)) for member in members]
        if any(values):
            names[key] = next(filter(None, values))
    return Configuration(path, settings, name, family, _added_tokens(folder, settings, path), names)


def _object(path: Path) -> Dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise BortError(f"{path}: a JSON object is expected")
    return content


def _spelling(token: Any) -> str:
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else ""


def _added_tokens(folder: Path, settings: Mapping[str, Any], path: Path) -> List[Dict[str, Any]]:
    listed = settings.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise BortError(f"{path}: added_tokens_decoder is not an object of ids and tokens")
    entries: Dict[int, Dict[str, Any]] = {}
    for key, value in listed.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and _spelling(value)):
            raise BortError(f"{path}: added_tokens_decoder has {shown(key, 40)}, not an id with a token")
        entries[int(key)] = dict(value) if isinstance(value, dict) else {"content": value}
    for token, index in _object(folder / "added_tokens.json").items():
        if isinstance(index, bool) or not isinstance(index, int):
            raise BortError(
                f"{folder / 'added_tokens.json'}: {token!r} has the id {shown(index)}, not a number"
            )
        entries.setdefault(index, {"content": token})
    # Transformers' defaults for what an entry leaves out.
    return [
        {
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "special": False,
            "normalized": not entry.get("special", False),
            **entry,
            "id": index,
        }
        for index, entry in sorted(entries.items())
    ]


def from_tokenizer_json(path: Path, as_saved: bool = False) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json`` and of the configuration beside it.

    Args:
        as_saved: the file is this project's own, in which the configuration's part is done.

    Raises:
        BortError: a file is damaged, or as :class:`~bort.text.tokenizers.tokenizer_json.FileTokenizer`.
    """
    configuration = read_configuration(path.parent)
    content = read_json(path)
    if isinstance(content, dict) and not as_saved:
        content = _configured(content, configuration, path)
    return from_content(content, configuration.names, str(path))


def _configured(content: Dict[str, Any], configuration: Configuration, path: Path) -> Dict[str, Any]:
    """``content`` with the settings of the class that is named in place of its own."""
    if configuration.family == "bert":
        old = content.get("normalizer")
        new = {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": configuration.flag("tokenize_chinese_chars", True),
            "strip_accents": configuration.flag("strip_accents", None),
            "lowercase": configuration.flag("do_lower_case", True),
        }
        if old != new and "do_lower_case" not in configuration.settings:
            logger.warning(
                "%s: its normalizer is replaced by that of BERT's class, which lower-cases, as "
                "transformers does; say do_lower_case in %s",
                path,
                CONFIG_FILE,
            )
        return {**content, "normalizer": new}
    steps = content.get("pre_tokenizer")
    if configuration.family == "roberta" and isinstance(steps, dict) and steps.get("type") == "ByteLevel":
        prefix = configuration.flag("add_prefix_space", False)
        return {**content, "pre_tokenizer": {**steps, "add_prefix_space": prefix}}
    return content


def from_vocab_json(vocabulary: Path, merges: Path) -> Tokenizer:
    """Hugging Face's ``vocab.json`` and ``merges.txt``, and the configuration beside them.

    Raises:
        BortError: a file is damaged, or the two do not belong together.
    """
    tokens = tokens_in_order(read_json(vocabulary), str(vocabulary))
    pairs = read_merges(merges)
    configuration = read_configuration(vocabulary.parent)
    added = _beyond(tokens, configuration)
    prefix = configuration.flag("add_prefix_space", False)
    try:
        if not added and not prefix:
            return BytePairTokenizer(tokens, pairs, str(vocabulary))
        model = {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [list(pair) for pair in pairs],
        }
        steps = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}
        content = {"model": model, "pre_tokenizer": steps, "decoder": steps, "added_tokens": added}
        return from_content(content, configuration.names, str(vocabulary))
    except BortError as error:
        if "<|endoftext|>" in tokens and "<s>" not in tokens:
            raise BortError(
                f"{error} (it is GPT-2's own; RoBERTa's ids need fairseq's dict.txt beside "
                "encoder.json and vocab.bpe)"
            ) from error
        raise


def from_vocab_txt(path: Path) -> Tokenizer:
    """BERT's ``vocab.txt`` and the configuration beside it.

    Without ``do_lower_case``, text is lower-cased (transformers' default), unless the vocabulary is cased:
    then a warning says that it is not.

    Raises:
        BortError: a file is damaged, or the configuration names a class that does more than BERT's.
    """
    tokens = read_lines(path)
    seen: Dict[str, int] = {}
    for number, token in enumerate(tokens, start=1):
        if not token:
            raise BortError(f"{path}, line {number}: empty; the file is damaged")
        if seen.setdefault(token, number) != number:
            raise BortError(
                f"{path}, line {number}: {token!r} is on line {seen[token]} too; the file is damaged"
            )
    configuration = read_configuration(path.parent)
    if configuration.name not in _GENERIC and configuration.name and configuration.family != "bert":
        raise BortError(
            f"{configuration.path}: {configuration.name} does more than vocab.txt says; save it with "
            "transformers as a fast tokenizer (tokenizer.json) first"
        )
    default = not _is_cased(tokens)
    lowercase = configuration.flag("do_lower_case", default)
    if not default and "do_lower_case" not in configuration.settings:
        logger.warning(
            "%s: many of its words have capitals, so text is not lower-cased (transformers would); say "
            "do_lower_case in %s",
            path,
            CONFIG_FILE,
        )
    options: Dict[str, Any] = {
        "lowercase": lowercase,
        "strip_accents": configuration.flag("strip_accents", None),
        "chinese": configuration.flag("tokenize_chinese_chars", True),
    }
    added = _beyond(tokens, configuration)
    if not added:
        return WordPieceTokenizer(tokens, **options, where=str(path))
    content = {
        "model": {
            "type": "WordPiece",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "unk_token": configuration.names.get("unk", "[UNK]"),
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "lowercase": lowercase,
            "handle_chinese_chars": options["chinese"],
            "strip_accents": options["strip_accents"],
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
        "added_tokens": added,
    }
    return from_content(content, configuration.names, str(path))


def _beyond(tokens: Sequence[str], configuration: Configuration) -> List[Dict[str, Any]]:
    """The added tokens if any is new or would be split otherwise; the usual five special ones are neither."""
    usual = {
        *configuration.names.values(),
        "<s>",
        "</s>",
        "<pad>",
        "<unk>",
        "<mask>",
        "[CLS]",
        "[SEP]",
        "[PAD]",
        "[UNK]",
        "[MASK]",
    }
    places = {token: index for index, token in enumerate(tokens)}
    added = [dict(entry) for entry in configuration.added]
    if all(entry["content"] in usual and places.get(entry["content"]) == entry["id"] for entry in added):
        return []
    return added


def _is_cased(tokens: Sequence[str]) -> bool:
    words = [token for token in tokens if not (token.startswith("[") and token.endswith("]"))]
    capital = sum(token != token.lower() for token in words)
    return capital > CASED_SHARE * max(1, len(words))


def refuse_more_than_pieces(model: Path) -> None:
    """Raise BortError for a SentencePiece model beside a configuration of more than that model decides."""
    configuration = read_configuration(model.parent)
    if configuration.settings.get("do_lower_case"):
        raise BortError(
            f"{configuration.path}: do_lower_case changes text before {model.name} sees it; give the "
            "folder's tokenizer.json (transformers saves one)"
        )
    if configuration.name and configuration.name not in _GENERIC:
        raise BortError(
            f"{configuration.path}: {configuration.name} gives other ids than {model.name} alone; give "
            "the folder's tokenizer.json (transformers saves one)"
        )
