"""Tokenizers: RoBERTa's ids, agreement with GluonNLP, round trips, and files that are not what they should
be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bort.errors import BortError
from bort.text.corpus.embedded import embedded_sentences
from bort.text.tokenizers import bpe
from bort.text.tokenizers.base import SETTINGS_FILE
from bort.text.tokenizers.loading import (
    Tokenizer,
    find_default_tokenizer,
    load_tokenizer,
    train_sentencepiece,
)

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
RELEASED = SHARED / "bpe"
needs_released = pytest.mark.skipif(
    not RELEASED.is_dir(), reason="RoBERTa's vocabulary is not on this machine"
)
MARKER = Tokenizer.MARKER
HOSTILE = [
    "",
    " ",
    "a\0b",
    "\ud800 x",
    "x\udfff\ud800",
    "\ud83d\ude00",
    "\u200b\ufeff\x85\x1c\x7f",
    "\t\n  a \r\n",
    "\U0010ffff\u0378",
    "é" * 5000,
    "<s> </s> <mask> <pad> [CLS] [MASK]",
]


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


@pytest.fixture(scope="module")
def pieces():
    return train_sentencepiece(embedded_sentences()[:1500], 1200)


@pytest.fixture(scope="module")
def every_kind(pieces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    return {
        "bpe": load_tokenizer(small_bpe_files(folder / "bpe")),
        "sentencepiece": pieces,
        "wordpiece": load_tokenizer(small_wordpiece_files(folder / "wordpiece")),
    }


# ---------------------------------------------------------------- byte-pair encoding


def test_small_bpe_applies_its_merges_by_rank(tmp_path):
    tokenizer = load_tokenizer(small_bpe_files(tmp_path))
    names = [tokenizer.id_to_token(index) for index in tokenizer.encode("the dog, the café")]
    assert names == ["t", "he", "Ġ", "dog", ",", "Ġthe", "Ġ", "c", "a", "f", "Ã", "©"]
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.mask_id == tokenizer.vocab_size - 1


def test_word_starts_of_bpe(tmp_path):
    tokenizer = load_tokenizer(small_bpe_files(tmp_path))
    starts = tokenizer.word_starts()
    assert starts.dtype == bool and starts.shape == (tokenizer.vocab_size,)
    expected = {
        "Ġthe": True,
        "dog": False,
        ",": True,
        "Ġ": True,
        "<s>": True,
        "<mask>": True,
        "e": False,
        "Ã": False,
    }
    assert {token: bool(starts[tokenizer.token_to_id(token)]) for token in expected} == expected


def test_marked_words_keep_their_ids(tmp_path):
    tokenizer = load_tokenizer(small_bpe_files(tmp_path))
    plain, marked = tokenizer.encode("a dog the"), tokenizer.encode(f"a {MARKER}dog{MARKER} the")
    assert [index for index in marked if index != tokenizer.marker_id] == plain
    assert marked.count(tokenizer.marker_id) == 2
    assert tokenizer.id_to_token(tokenizer.marker_id) == "madeupword0000"


def test_the_memory_of_words_does_not_change_ids(tmp_path, monkeypatch):
    folder = small_bpe_files(tmp_path)
    texts = embedded_sentences()[:60] + [" " + text for text in embedded_sentences()[60:80]]
    tokenizer = load_tokenizer(folder)
    expected = tokenizer.encode_batch(texts)
    assert tokenizer.encode_batch(texts) == expected, "the second time from memory"
    monkeypatch.setattr(bpe, "_MOST_REMEMBERED", 3)
    forgetful = load_tokenizer(folder)
    assert forgetful.encode_batch(texts) == expected
    assert len(forgetful._spaced) <= 3 and len(forgetful._plain) <= 3


@needs_released
def test_released_vocabulary_gives_robertas_ids():
    tokenizer = load_tokenizer(RELEASED)
    assert tokenizer.encode("Hello world! cécé herlolip") == [
        31414,
        232,
        328,
        740,
        1140,
        12695,
        69,
        46078,
        1588,
    ]
    assert tokenizer.encode("Schloß Nymphenburg in Munich is really nice!") == [
        18077,
        4082,
        7804,
        8606,
        6195,
        2457,
        3321,
        11,
        10489,
        16,
        269,
        2579,
        328,
    ]
    assert (tokenizer.vocab_size, tokenizer.mask_id, tokenizer.marker_id) == (50265, 50264, 50261)


@needs_released
def test_all_layouts_of_robertas_vocabulary_are_one(tmp_path):
    expected = load_tokenizer(RELEASED)
    gluonnlp, fairseq, saved, single = (
        tmp_path / name for name in ("gluonnlp", "fairseq", "saved", "single")
    )
    for folder in (gluonnlp, fairseq, single):
        folder.mkdir()
    vocabulary = next(RELEASED.glob("*.vocab"))
    shutil.copy(vocabulary, gluonnlp)
    shutil.copy(RELEASED / "vocab.bpe", gluonnlp / "openai_webtext_bpe_ranks-396d4d8e.json")
    for name in ("encoder.json", "vocab.bpe", "dict.txt"):
        shutil.copy(RELEASED / name, fairseq)
    expected.save(saved)
    expected._engine.save(str(single / "tokenizer.json"))
    for folder in (gluonnlp, fairseq, saved, single, single / "tokenizer.json"):
        assert load_tokenizer(folder).fingerprint == expected.fingerprint, folder


@needs_released
def test_equal_to_gluonnlp_on_arbitrary_unicode(tmp_path):
    try:
        import bort.backend.mxnet  # noqa: F401  GluonNLP needs its NumPy aliases
    except BortError as error:
        pytest.skip(str(error))
    transforms = pytest.importorskip("gluonnlp.data.transforms")
    gluonnlp_vocabulary = json.loads(next(RELEASED.glob("*.vocab")).read_text(encoding="utf-8"))[
        "token_to_idx"
    ]
    shutil.copy(RELEASED / "vocab.bpe", tmp_path / "openai_webtext_bpe_ranks-396d4d8e.json")
    theirs = transforms.GPT2BPETokenizer(root=str(tmp_path))
    ours = load_tokenizer(RELEASED)
    pieces = st.one_of(
        st.text(),
        st.sampled_from(
            [
                " ",
                "  ",
                "\n",
                "'s",
                "'LL",
                "don't",
                "\u3000",
                "\x1c",
                "½",
                "9",
                "\u0558",
                "\U0001d6a6",
                "ﬁ",
                "👩‍👩‍👧",
            ]
        ),
    )

    @settings(max_examples=300, deadline=None)
    @given(st.lists(pieces, max_size=8).map("".join))
    def check(text):
        assert ours.encode(text) == [gluonnlp_vocabulary[token] for token in theirs(text)]
        assert ours.decode(ours.encode(text)) == text

    check()
    for text in embedded_sentences()[:300]:
        assert ours.encode(text) == [gluonnlp_vocabulary[token] for token in theirs(text)]


# ---------------------------------------------------------------- SentencePiece


def test_sentencepiece_reserves_its_specials(pieces):
    assert [pieces.id_to_token(index) for index in range(6)] == [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<mask>",
        MARKER,
    ]
    assert pieces.special_ids == frozenset(range(6)) and pieces.marker_id == 5
    assert pieces.unk_id not in pieces.encode("\u4e2d\u6587 naïve \U0001f600"), (
        "bytes spell unknown characters"
    )
    assert not set(pieces.encode("<s> </s> <mask> <pad>")) & pieces.special_ids


def test_sentencepiece_training_repeats_and_follows_its_seed():
    lines = embedded_sentences()[:400]
    first, again, other = (train_sentencepiece(lines, 320, seed=seed, max_lines=200) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.vocab_size == 320 and first.token_to_id("<0x41>") == first.unk_id, "too small to spell bytes"


def test_sentencepiece_uses_long_lines_and_ignores_nul():
    tokenizer = train_sentencepiece(["a\0b " + "extra plain " * 2000, "\ud800 \U000f1b07 short"], 60)
    assert tokenizer.unk_id not in tokenizer.encode("extra plain short a b"), "every character was seen"
    assert tokenizer.unk_id in tokenizer.encode("q")


def test_sentencepiece_needs_text_and_room():
    with pytest.raises(BortError, match="no text"):
        train_sentencepiece(["", "  "], 300)
    with pytest.raises(BortError, match="SentencePiece cannot make 20 ids"):
        train_sentencepiece(embedded_sentences()[:200], 20)
    with pytest.raises(BortError, match="at least 16"):
        train_sentencepiece(["a"], 3)


# ---------------------------------------------------------------- WordPiece


def test_wordpiece_follows_its_lower_casing(tmp_path):
    lower = load_tokenizer(small_wordpiece_files(tmp_path / "lower"))
    cased = load_tokenizer(small_wordpiece_files(tmp_path / "cased", do_lower_case=False))
    text = "The DOGS barked, café."
    assert [lower.id_to_token(index) for index in lower.encode(text)] == [
        "the",
        "dogs",
        "bark",
        "##ed",
        ",",
        "cafe",
        ".",
    ]
    assert [cased.id_to_token(index) for index in cased.encode(text)] == [
        "The",
        "[UNK]",
        "bark",
        "##ed",
        ",",
        "[UNK]",
        ".",
    ]
    assert lower.fingerprint != cased.fingerprint
    assert (lower.bos_id, lower.eos_id, lower.pad_id, lower.mask_id, lower.marker_id) == (3, 4, 0, 5, 1)
    assert lower.decode(lower.encode(text)) == "the dogs barked , cafe ."


# ---------------------------------------------------------------- all kinds


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece", "wordpiece"])
def test_save_and_load_give_the_same_tokenizer(kind, every_kind, tmp_path):
    tokenizer = every_kind[kind]
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    texts = [*embedded_sentences()[:200], *HOSTILE, f"the {MARKER}dog{MARKER}"]
    assert loaded.kind == kind and loaded.fingerprint == tokenizer.fingerprint
    assert loaded.special_ids == tokenizer.special_ids and loaded.marker_id == tokenizer.marker_id
    assert loaded.encode_batch(texts) == tokenizer.encode_batch(texts)
    assert np.array_equal(loaded.word_starts(), tokenizer.word_starts())


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece", "wordpiece"])
def test_hostile_strings_give_ids_of_the_vocabulary(kind, every_kind):
    tokenizer = every_kind[kind]
    rows = tokenizer.encode_batch(HOSTILE)
    assert rows == [tokenizer.encode(text) for text in HOSTILE]
    assert rows[0] == []
    for row in rows:
        assert all(0 <= index < tokenizer.vocab_size for index in row)
        assert not set(row) & (set(tokenizer.special_ids) - {tokenizer.unk_id})
        assert isinstance(tokenizer.decode(row), str)
    assert len(tokenizer.encode("word " * 200_000)) >= 200_000


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece", "wordpiece"])
@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.characters()))
def test_encoding_never_fails(kind, every_kind, text):
    ids = every_kind[kind].encode(text)
    every_kind[kind].decode(ids)
    if kind == "bpe":
        assert every_kind[kind].decode(ids) == text.encode("utf-16-le", "surrogatepass").decode(
            "utf-16-le", "replace"
        )


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece", "wordpiece"])
def test_markers_become_the_marker_id(kind, every_kind):
    tokenizer = every_kind[kind]
    text = f"the {MARKER}dog{MARKER}, {MARKER}{MARKER}"
    ids = tokenizer.encode(text)
    assert ids.count(tokenizer.marker_id) == 4
    assert tokenizer.decode(ids).count(MARKER) == 4
    begin = ids.index(tokenizer.marker_id)
    end = ids.index(tokenizer.marker_id, begin + 1)
    assert tokenizer.decode(ids[begin + 1 : end]).strip() == "dog"


def test_decode_refuses_ids_outside_the_vocabulary(every_kind):
    for tokenizer in every_kind.values():
        for bad in (-1, tokenizer.vocab_size):
            with pytest.raises(BortError, match="not in the vocabulary"):
                tokenizer.decode([bad])
        assert tokenizer.decode([tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id]) == ""


def test_encode_batch_refuses_a_bare_string(every_kind):
    with pytest.raises(TypeError):
        every_kind["bpe"].encode_batch("text")


# ---------------------------------------------------------------- damaged or missing files


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        ("merges.txt", "h e", "h e x", r"merges\.txt, line 3.*not a merge"),
        ("merges.txt", "d o\n", "q o\n", r"merge 4, 'q o', needs the token 'qo'"),
        ("vocab.json", '"<s>": 0', '"<s>": 1', r"vocab\.json: .*share the id 1"),
        ("vocab.json", '"<s>": 0', '"<s>": 99999', r"vocab\.json: '<s>' has the id 99999"),
        ("vocab.json", '"<s>": 0', '"<s>": true', r"'<s>' has the id True"),
        ("vocab.json", '"<mask>"', '"mask"', r"vocab\.json: the vocabulary has no '<mask>'"),
        ("vocab.json", '"!"', '"!!!"', r"not a byte-level vocabulary"),
        ("vocab.json", "{", "[", r"vocab\.json: not valid JSON"),
    ],
)
def test_damaged_bpe_files_are_named(tmp_path, name, old, new, message):
    spoil(small_bpe_files(tmp_path) / name, old, new)
    with pytest.raises(BortError, match=message):
        load_tokenizer(tmp_path)


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path):
    merges = small_bpe_files(tmp_path) / "merges.txt"
    merges.write_bytes(merges.read_bytes() + b"\xff\xfe\n")
    with pytest.raises(BortError, match=r"merges\.txt, line 7: not UTF-8"):
        load_tokenizer(tmp_path)


def test_saved_files_that_changed_are_noticed(tmp_path):
    load_tokenizer(small_bpe_files(tmp_path / "a")).save(tmp_path / "b")
    spoil(tmp_path / "b" / "merges.txt", "d o\ndo g\n", "")
    with pytest.raises(BortError, match="fingerprint"):
        load_tokenizer(tmp_path / "b")
    (tmp_path / "b" / SETTINGS_FILE).unlink()
    load_tokenizer(tmp_path / "b")


@needs_released
@pytest.mark.parametrize(
    "line, message",
    [
        ("13 x", "line 1: .*not a token and its count"),
        ("99999 5", "line 1: encoder.json has no id 99999"),
        ("262 5", "line 2: .*twice"),
    ],
)
def test_damaged_dictionary_is_named(tmp_path, line, message):
    for name in ("encoder.json", "vocab.bpe", "dict.txt"):
        shutil.copy(RELEASED / name, tmp_path)
        (tmp_path / name).chmod(0o644)
    spoil(tmp_path / "dict.txt", "13 850314647", line)
    with pytest.raises(BortError, match=message):
        load_tokenizer(tmp_path)


def test_damaged_wordpiece_and_sentencepiece_files_are_named(tmp_path, pieces):
    spoil(small_wordpiece_files(tmp_path / "twice") / "vocab.txt", "dogs", "dog")
    with pytest.raises(BortError, match=r"vocab\.txt, line 9: 'dog' is on line 8 too"):
        load_tokenizer(tmp_path / "twice")
    with pytest.raises(BortError, match="do_lower_case|lowercase"):
        load_tokenizer(small_wordpiece_files(tmp_path / "setting", do_lower_case="False"))
    pieces.save(tmp_path / "pieces")
    model = tmp_path / "pieces" / "sentencepiece.model"
    data = model.read_bytes()
    for damaged in (b"", b"not a model at all", data[: len(data) // 2], b"\xff" * 1000):
        model.write_bytes(damaged)
        with pytest.raises(BortError, match="sentencepiece.model|fingerprint"):
            load_tokenizer(tmp_path / "pieces")


def test_missing_and_half_tokenizers_say_what_is_needed(tmp_path):
    with pytest.raises(BortError, match="no such file or folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(BortError, match="no tokenizer in it.*dict.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(BortError, match="vocab.json alone is not a whole tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    with pytest.raises(BortError, match="Unigram"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(BortError, match="tokenizer.json"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_default_tokenizer_is_found_where_gluonnlp_keeps_it(tmp_path, monkeypatch):
    monkeypatch.delenv("BORT_HOME", raising=False)
    monkeypatch.delenv("MXNET_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_default_tokenizer() is None
    models = tmp_path / ".mxnet" / "models"
    models.mkdir(parents=True)
    (models / "book_corpus_wiki_en_cased-0.vocab").write_text("{}")
    assert find_default_tokenizer() is None, "another vocabulary alone is not RoBERTa's"
    (models / "openwebtext_ccnews_stories_books_cased-2b804f8f.vocab").write_text("{}")
    (models / "openai_webtext_bpe_ranks-396d4d8e.json").write_text("#version: 0.2\n")
    assert find_default_tokenizer() == models
    monkeypatch.setenv("BORT_HOME", str(small_bpe_files(tmp_path / "home" / "tokenizer").parent))
    assert find_default_tokenizer() == tmp_path / "home" / "tokenizer"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_children_encode_without_waiting_for_threads(every_kind, capfd, monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    texts = ["the dogs bark"] * 3000
    for tokenizer in every_kind.values():
        expected = tokenizer.encode_batch(texts)
        child = os.fork()
        if child == 0:
            os._exit(0 if tokenizer.encode_batch(texts) == expected else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert "TOKENIZERS_PARALLELISM" not in os.environ and capfd.readouterr().err == ""


def test_no_mxnet_is_imported():
    code = (
        "import sys, bort.text.tokenizers.loading, bort.text.corpus.embedded, bort.text.tokenizers.base; "
        "sys.exit('mxnet' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=str(Path(__file__).parents[2])).returncode == 0
