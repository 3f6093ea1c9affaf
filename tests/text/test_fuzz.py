"""Whatever text, tokenizers' files and shards hold: success or a BortError, never another exception."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bort.errors import BortError
from bort.text.corpus.cleaning import clean_document
from bort.text.corpus.readers import read_documents
from bort.text.corpus.sources import ReadCounts, ReadOptions, find_sources
from bort.text.shards.dataset import SPLITS, ShardDataset
from bort.text.shards.prepare import prepare
from bort.text.tokenizers.loading import load_tokenizer
from tests.fuzz import EXAMPLES, JUNK, damaged, replaced
from tests.text.shard_files import options
from tests.text.tokenizer_files import KINDS, byte_engine, small_bpe_files, small_wordpiece_files, word_engine

PROSE = "One sentence stands here. <p>Another &amp; one.</p>\n\n\u4f60\u597d\u3002 | a | b |\n== x ==\n"
DUMP = "<mediawiki><page><ns>0</ns><revision><text>{{a|b}} [[c]] x x</text></revision></page></mediawiki>"
FILES = {
    "a.txt": PROSE,
    "b.csv": 'word,text\n1,"A text, here."\n2,B\n',
    "c.tsv": "1\tA text.\n2\tB\n",
    "d.jsonl": '{"text": "One."}\n{"text": "Two."}\n',
    "enwiki.xml": DUMP,
    "enwiktionary.xml": DUMP,
    "urbandict.csv": "word,definition\na,b c d\n",
    "news.en": "One line .\nAnother .\n",
}
PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=8 * EXAMPLES)
@given(data=st.data())
def test_corpora_of_any_bytes(name, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    suffix = data.draw(st.sampled_from(sorted(PACKERS)))
    encoding = data.draw(st.sampled_from(["utf-8", "utf-16", "utf-32"]))
    inner = data.draw(damaged(FILES[name].encode(encoding)))
    packed = PACKERS[suffix](inner)
    (folder / (name + suffix)).write_bytes(data.draw(damaged(packed)) if data.draw(st.booleans()) else packed)
    chosen = ReadOptions(
        text_column=data.draw(st.sampled_from([None, "text", "2"])),
        skip_broken=data.draw(st.booleans()),
        documents=data.draw(st.sampled_from(["paragraph", "line", "file"])),
    )
    try:
        sources, _ = find_sources([folder])
        for source in sources:
            for document in read_documents(source, chosen, ReadCounts()):
                for sentences in clean_document(document, source.format, 1, Counter()):
                    assert all(sentences)
    except BortError as error:
        assert name in str(error)
    shutil.rmtree(folder)


def layouts(folder, pieces):
    """Folders of each layout of a tokenizer, with the configuration that may stand beside it."""
    small_bpe_files(folder / "bpe")
    (folder / "bpe" / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "RobertaTokenizer", "added_tokens_decoder": '
        '{"0": {"content": "<s>", "special": true}}}'
    )
    tokens = list(json.loads((folder / "bpe" / "vocab.json").read_text()))
    (folder / "gluonnlp").mkdir()
    (folder / "gluonnlp" / "a.vocab").write_text(json.dumps({"idx_to_token": tokens}))
    shutil.copy(folder / "bpe" / "merges.txt", folder / "gluonnlp" / "vocab.bpe")
    (folder / "fairseq").mkdir()
    words = [token for token in tokens if token not in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    (folder / "fairseq" / "encoder.json").write_text(
        json.dumps({token: index for index, token in enumerate(words)})
    )
    (folder / "fairseq" / "dict.txt").write_text("".join(f"{index} 5\n" for index in range(len(words))))
    shutil.copy(folder / "bpe" / "merges.txt", folder / "fairseq" / "vocab.bpe")
    small_wordpiece_files(folder / "words", do_lower_case=True, tokenizer_class="BertTokenizer")
    for name, engine in (
        ("word json", word_engine(added=("covid19",))),
        ("word plain", word_engine()),
        ("byte json", byte_engine(folder / "unused")),
    ):
        (folder / name).mkdir()
        engine.save(str(folder / name / "tokenizer.json"))
    pieces.save(folder / "pieces")
    (folder / "model").mkdir()
    shutil.copy(folder / "pieces" / "sentencepiece.model", folder / "model")
    shutil.rmtree(folder / "unused")
    return {path.name: path for path in sorted(folder.iterdir())}


LAYOUTS = ["bpe", "byte json", "fairseq", "gluonnlp", "model", "pieces", "word json", "word plain", "words"]


@pytest.fixture(scope="module")
def tokenizer_layouts(tmp_path_factory, pieces):
    found = layouts(tmp_path_factory.mktemp("layouts"), pieces)
    assert sorted(found) == LAYOUTS and all(load_tokenizer(path).encode("the dog") for path in found.values())
    return found


def load_and_use(folder):
    try:
        tokenizer = load_tokenizer(folder)
    except BortError as error:
        assert str(error).startswith(str(folder))
        return
    ids = tokenizer.encode("The dogs covid19 bark \u4e2d e\u0301 \0 <mask>")
    assert all(0 <= index < tokenizer.vocab_size for index in ids)
    tokenizer.decode([*ids, *range(min(50, tokenizer.vocab_size))])
    tokenizer.word_starts()


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=8 * EXAMPLES)
@given(data=st.data())
def test_tokenizers_of_any_bytes(name, data, tokenizer_layouts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "t"
    shutil.copytree(tokenizer_layouts[name], folder)
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    load_and_use(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "name", ["bpe", "byte json", "gluonnlp", "pieces", "word json", "word plain", "words"]
)
@settings(max_examples=8 * EXAMPLES)
@given(data=st.data(), path=st.lists(st.integers(0, 400), min_size=1, max_size=4), junk=JUNK)
def test_tokenizers_with_a_value_of_another_type(name, data, path, junk, tokenizer_layouts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "t"
    shutil.copytree(tokenizer_layouts[name], folder)
    file = data.draw(st.sampled_from(sorted([*folder.glob("*.json"), *folder.glob("*.vocab")])))
    file.write_text(json.dumps(replaced(json.loads(file.read_text()), path, junk)))
    load_and_use(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20 * EXAMPLES)
@given(text=st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\u0301\u200d \t<>[]"))))
def test_any_text_has_ids_of_the_vocabulary(kind, text, every_kind):
    tokenizer = every_kind[kind]
    ids = tokenizer.encode(text)
    assert not set(ids) & (tokenizer.special_ids - {tokenizer.unk_id})
    assert isinstance(tokenizer.decode(ids), str)


@settings(max_examples=8 * EXAMPLES)
@given(data=st.data(), path=st.lists(st.integers(0, 12), min_size=1, max_size=6), junk=JUNK)
def test_shards_with_a_damaged_file(data, path, junk, shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "s"
    shutil.copytree(shards, folder)
    index = folder / "index.json"
    if data.draw(st.booleans()):
        index.write_text(json.dumps(replaced(json.loads(index.read_text()), path, junk)))
    else:
        file = data.draw(st.sampled_from(sorted(one for one in folder.iterdir() if one.is_file())))
        file.write_bytes(data.draw(damaged(file.read_bytes())))
    for split in SPLITS:
        try:
            dataset = ShardDataset(folder, split)
            assert len(dataset[0]) <= dataset.max_length
            dataset.check()
        except BortError as error:
            assert str(folder) in str(error)
    shutil.rmtree(folder)


@settings(max_examples=2 * EXAMPLES)
@given(data=st.data())
def test_a_preparation_whose_files_are_damaged(data, corpus, tokenizer_folder, shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "s"
    shutil.copytree(shards, folder)
    for name in data.draw(st.sampled_from([("plan.json",), ("report.json",), ("index.json", "report.json")])):
        (folder / name).write_bytes(data.draw(damaged((folder / name).read_bytes())))
    try:
        prepare(options(corpus, tokenizer_folder, folder))
    except BortError as error:
        assert str(folder) in str(error)
    shutil.rmtree(folder)
