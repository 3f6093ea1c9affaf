"""Hugging Face's files: the tokenizers library's ids; of two files, the one that transformers lets win."""

from __future__ import annotations

import json
import logging
import shutil
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bort.errors import BortError
from bort.huggingface.tokenizer import write_tokenizer
from bort.text.tokenizers.loading import load_tokenizer
from tests.text.tokenizer_files import (
    KINDS,
    MARKER,
    byte_engine,
    small_bpe_files,
    small_wordpiece_files,
    spoil,
    word_engine,
)

TEXTS = [
    "The DOGS, covid19 [E11] caf\u00e9 cafe\u0301.",
    "the dog covid19s",
    " dog  the\tdog",
    "a [MASK] <mask> </s>",
    "",
    "\u4e2d\u6587 \uac00 \u1112\u1161\u11ab",
    "x" * 120,
    "covid19\u0301 [E11",
]


def engines(folder):
    """Tokenizers with settings that are neither RoBERTa's nor BERT's, by what is unusual."""
    found = {
        "word added": word_engine(added=("covid19",), special=("[E11]",)),
        "word prefix": word_engine(prefix="@@"),
        "word long": word_engine(),
        "byte added": byte_engine(folder / "a", added=("covid19", AddedToken("[E11]", lstrip=True))),
        "byte prefix space": byte_engine(folder / "b", prefix_space=True),
    }
    found["word long"].model = models.WordPiece(
        vocab=found["word long"].get_vocab(False), unk_token="[UNK]", max_input_chars_per_word=200
    )
    for name, normalizer in (
        ("none", None),
        ("NFC", normalizers.NFC()),
        ("Lowercase", normalizers.Lowercase()),
        ("sequence", normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])),
    ):
        for kind, engine in (("word", word_engine()), ("byte", byte_engine(folder / "c"))):
            engine.normalizer = normalizer
            found[f"{kind} {name}"] = engine
    pieces = [
        ("<s>", 0.0),
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("<mask>", 0.0),
        ("\u2581the", -2.0),
        ("\u2581", -3.0),
        ("dog", -3.0),
        *((letter, -5.0) for letter in "abcdefghiklmnoprstuvwy19[]E"),
    ]
    unigram = Tokenizer(models.Unigram(pieces, 3))
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    unigram.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    found["unigram"] = unigram
    return found


@pytest.fixture(scope="module")
def unusual(tmp_path_factory):
    return engines(tmp_path_factory.mktemp("engines"))


NAMES = [
    "word added",
    "word prefix",
    "word long",
    "word none",
    "word NFC",
    "word Lowercase",
    "word sequence",
    "byte added",
    "byte prefix space",
    "byte NFC",
    "byte Lowercase",
    "byte sequence",
    "unigram",
]


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_the_tokenizers_library(name, unusual, tmp_path):
    engine = unusual[name]
    engine.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert ours.kind == "huggingface" and ours.vocab_size == engine.get_vocab_size()
    specials = {ours.names[key] for key in ("bos", "pad", "eos", "mask")}
    for text in TEXTS:
        if not any(token in text for token in specials):
            assert ours.encode(text) == engine.encode(text, add_special_tokens=False).ids, text

    @settings(max_examples=40)
    @given(
        st.lists(
            st.sampled_from(
                [*"aeo E1[]", "the", "The", " ", "  ", "covid19", "[E11]", "e\u0301", "\u00e9", "dog"]
            ),
            max_size=12,
        ).map("".join)
    )
    def check(text):
        assert ours.encode(text) == engine.encode(text, add_special_tokens=False).ids

    check()
    ours.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.fingerprint == ours.fingerprint and again.encode_batch(TEXTS) == ours.encode_batch(TEXTS)
    assert again.special_ids == ours.special_ids and again.names == ours.names


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_spelled_in_a_text_are_text(name, unusual, tmp_path):
    unusual[name].save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    for text in (" ".join(ours.names.values()), f"the {MARKER}dog{MARKER}"):
        row = ours.encode(text)
        assert not set(row) & (ours.special_ids - {ours.unk_id, ours.marker_id})
        assert row.count(ours.marker_id) == 2 or MARKER not in text or ours.marker_id == ours.unk_id
    assert ours.decode([ours.bos_id, *ours.encode("dog"), ours.eos_id]).strip() == "dog"


def test_files_that_say_no_more_than_bert_or_roberta_are_those_kinds(tmp_path):
    word_engine().save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).kind == "wordpiece"
    byte_engine(tmp_path / "b").save(str(tmp_path / "b" / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "b" / "tokenizer.json")
    assert loaded.kind == "bpe"
    assert loaded.fingerprint == load_tokenizer(small_bpe_files(tmp_path / "plain")).fingerprint
    engine = word_engine()
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    for text in ("The DOGS, caf\u00e9 cafe\u0301.", "x" * 101, "\u4e2d\u6587"):
        assert ours.encode(text) == engine.encode(text, add_special_tokens=False).ids


def test_the_word_starts_of_a_file_follow_its_model(unusual, tmp_path):
    for name, starting, inside in (
        ("word prefix", "dog", "@@s"),
        ("byte added", "\u0120the", "dog"),
        ("unigram", "\u2581the", "dog"),
    ):
        unusual[name].save(str(tmp_path / "tokenizer.json"))
        ours = load_tokenizer(tmp_path)
        starts = dict(zip(map(ours.id_to_token, range(ours.vocab_size)), ours.word_starts()))
        assert starts[starting] and not starts[inside]
        assert starts[ours.names["mask"]]


# ---------------------------------------------------------------- two files

BERT = {"tokenizer_class": "BertTokenizer"}
ROBERTA = {"tokenizer_class": "RobertaTokenizerFast"}
GENERIC = {"tokenizer_class": "PreTrainedTokenizerFast"}
# (lower-casing or prefix space of tokenizer.json; tokenizer_config.json; model type; tokens of "The dog").
CASED, LOWER = ["The", "dog"], ["the", "dog"]
BERT_CASES = [
    (True, {**BERT, "do_lower_case": False}, None, CASED),
    (False, {**BERT, "do_lower_case": True}, None, LOWER),
    (False, BERT, None, LOWER),
    (False, None, "bert", LOWER),
    (False, {"do_lower_case": False}, "distilbert", CASED),
    (False, {**GENERIC, "do_lower_case": True}, "bert", CASED),
    (False, {"do_lower_case": True}, None, CASED),
    (False, None, None, CASED),
    (True, None, None, LOWER),
]
GLUED, SPACED = ["t", "he"], ["\u0120the"]
ROBERTA_CASES = [
    (True, ROBERTA, None, GLUED),
    (False, {**ROBERTA, "add_prefix_space": True}, None, SPACED),
    (True, None, "roberta", GLUED),
    (False, {**GENERIC, "add_prefix_space": True}, "roberta", GLUED),
    (True, {**GENERIC, "add_prefix_space": False}, None, SPACED),
    (True, None, None, SPACED),
    (False, {"add_prefix_space": True}, "roberta", SPACED),
]


def written(folder, engine, config, model_type):
    engine.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def tokens_of(tokenizer, text):
    return [tokenizer.id_to_token(index) for index in tokenizer.encode(text)]


@pytest.mark.parametrize("lowercase, config, model_type, expected", BERT_CASES)
def test_lower_casing_comes_from_the_file_that_transformers_lets_win(
    tmp_path, lowercase, config, model_type, expected
):
    engine = word_engine()
    engine.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    folder = written(tmp_path, engine, config, model_type)
    assert tokens_of(load_tokenizer(folder), "The dog") == expected


@pytest.mark.parametrize("prefix, config, model_type, expected", ROBERTA_CASES)
def test_the_prefix_space_comes_from_the_file_that_transformers_lets_win(
    tmp_path, prefix, config, model_type, expected
):
    folder = written(tmp_path, byte_engine(tmp_path / "files", prefix), config, model_type)
    assert tokens_of(load_tokenizer(folder), "the") == expected


@pytest.mark.parametrize("number", range(len(BERT_CASES) + len(ROBERTA_CASES)))
def test_transformers_agrees(tmp_path, number, monkeypatch):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    setting, config, model_type, _ = (BERT_CASES + ROBERTA_CASES)[number]
    if number < len(BERT_CASES):
        engine = word_engine(added=("covid19",))
        engine.normalizer = normalizers.BertNormalizer(lowercase=setting)
    else:
        engine = byte_engine(tmp_path / "files", setting, added=("covid19",))
    folder = written(tmp_path, engine, config, model_type)
    named = model_type or (config or {}).get("tokenizer_class")
    theirs = (transformers.AutoTokenizer if named else transformers.PreTrainedTokenizerFast).from_pretrained(
        str(folder)
    )
    ours = load_tokenizer(folder)
    for text in TEXTS[:3] + TEXTS[4:]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text


def test_files_without_tokenizer_json_follow_their_configuration(tmp_path):
    folder = small_bpe_files(tmp_path / "bpe")
    plain = load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({**ROBERTA, "add_prefix_space": True}))
    spaced = load_tokenizer(folder)
    assert (
        tokens_of(plain, "the the") == ["t", "he", "\u0120the"]
        and tokens_of(spaced, "the the") == ["\u0120the"] * 2
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(ROBERTA))
    (folder / "added_tokens.json").write_text(json.dumps({"covid19": plain.vocab_size}))
    assert load_tokenizer(folder).encode("covid19") == [plain.vocab_size]
    folder = small_wordpiece_files(tmp_path / "words")
    count = len((folder / "vocab.txt").read_text().split())
    config = {**BERT, "added_tokens_decoder": {str(count): {"content": "covid19", "special": False}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(folder).encode("The covid19")[1:] == [count]


def test_a_cased_vocabulary_is_not_lower_cased_in_silence(tmp_path, caplog):
    folder = small_wordpiece_files(tmp_path)
    with caplog.at_level(logging.WARNING, "bort.text"):
        assert tokens_of(load_tokenizer(folder), "The dog") == LOWER and not caplog.records
        with (folder / "vocab.txt").open("a") as stream:
            stream.write("Dog\nBark\nCafe\n")
        assert tokens_of(load_tokenizer(folder), "The dog") == CASED
    assert "do_lower_case" in caplog.text
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert tokens_of(load_tokenizer(folder), "The dog") == LOWER


def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, pieces):
    folder = small_wordpiece_files(tmp_path / "words", tokenizer_class="BertJapaneseTokenizer")
    with pytest.raises(BortError, match="BertJapaneseTokenizer does more than vocab.txt"):
        load_tokenizer(folder)
    pieces.save(tmp_path / "pieces")
    (tmp_path / "pieces" / "bort_tokenizer.json").unlink()
    config = tmp_path / "pieces" / "tokenizer_config.json"
    for content, message in (
        ({"do_lower_case": True}, "do_lower_case changes text"),
        ({"tokenizer_class": "XLMRobertaTokenizer"}, "XLMRobertaTokenizer gives other ids"),
    ):
        config.write_text(json.dumps(content))
        with pytest.raises(BortError, match=message):
            load_tokenizer(tmp_path / "pieces")
    byte_engine(tmp_path / "clip").save(str(tmp_path / "clip" / "tokenizer.json"))
    spoil(tmp_path / "clip" / "tokenizer.json", '"end_of_word_suffix": null', '"end_of_word_suffix": "</w>"')
    with pytest.raises(BortError, match="marks the ends of words"):
        load_tokenizer(tmp_path / "clip" / "tokenizer.json")


# ---------------------------------------------------------------- export


@pytest.mark.parametrize("kind", KINDS)
def test_exported_files_give_the_same_ids_or_say_where_not(kind, every_kind, tmp_path):
    tokenizer = every_kind[kind]
    note = write_tokenizer(tokenizer, tmp_path, 64)
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    composed = [text for text in TEXTS if not any(name in text for name in tokenizer.names.values())]
    for text in [*composed, unicodedata.normalize("NFD", "Vi\u1ec7t Nam caf\u00e9 \ud55c\uae00 \u01d8")]:
        assert theirs.encode(text).ids == [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
    stacked = "n\u0303\u0323\u0331 \ufb01\u030c"
    same = theirs.encode(stacked, add_special_tokens=False).ids == tokenizer.encode(stacked)
    assert same == (note is None) and (note is None or "combining marks" in note)
    assert same == (kind != "sentencepiece")


# ---------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
    "content",
    [
        b"[1]",
        b'{"model": 5}',
        b'{"model": {"type": "WordPiece", "vocab": {"[PAD]": 0}}, "normalizer": [1]}',
        b'{"model": {"type": "WordPiece", "vocab": {"[UNK]": 0}}, "added_tokens": [{"content": {}}]}',
        b'{"model": {"type": ["BPE"], "vocab": {}, "merges": []}}',
        b'{"model": {"type": "Other"}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}, '
        b'"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}}',
        b'{"model": {"type": "WordPiece", "vocab": {"a": 1e999}}, "added_tokens": {"a": 1}}',
        b'{"model": {"vocab": [["a", 1]], "type": "Unigram", "unk_id": 9}}',
    ],
)
def test_broken_files_are_refused_with_their_name(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BortError, match="tokenizer.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "name, content",
    [
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"tokenizer_class": 5}'),
        ("tokenizer_config.json", '{"tokenizer_class": "BertTokenizer", "do_lower_case": "no"}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": "y"}}'),
        ("added_tokens.json", '{"a": "b"}'),
        ("config.json", "5"),
    ],
)
def test_broken_configurations_are_refused_with_their_name(tmp_path, name, content):
    word_engine().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_text(content)
    with pytest.raises(BortError, match=name):
        load_tokenizer(tmp_path)


def test_a_file_without_its_own_unknown_token_is_refused(tmp_path):
    word_engine(prefix="@@").save(str(tmp_path / "tokenizer.json"))
    spoil(tmp_path / "tokenizer.json", '"unk_token": "[UNK]"', '"unk_token": "[NONE]"')
    with pytest.raises(BortError, match="no .*NONE.*unk_token"):
        load_tokenizer(tmp_path)


def test_added_tokens_whose_ids_cannot_be_are_refused(tmp_path):
    word_engine(added=("covid19",)).save(str(tmp_path / "tokenizer.json"))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"][-1]["id"] += 7
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BortError, match="added token 'covid19' has the id"):
        load_tokenizer(tmp_path)


def test_saved_files_that_changed_are_noticed(tmp_path):
    word_engine(prefix="@@").save(str(tmp_path / "tokenizer.json"))
    load_tokenizer(tmp_path).save(tmp_path / "saved")
    shutil.copy(tmp_path / "saved" / "tokenizer.json", tmp_path / "before.json")
    spoil(tmp_path / "saved" / "tokenizer.json", '"lowercase": true', '"lowercase": false')
    with pytest.raises(BortError, match="fingerprint"):
        load_tokenizer(tmp_path / "saved")
