"""Reading corpora: formats, compression, dumps, markup, and files that are not what they should be."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bort.errors import BortError
from bort.files import LFS_POINTER
from bort.text import compressed
from bort.text.corpus import readers
from bort.text.corpus.cleaning import clean_document
from bort.text.corpus.readers import read_documents
from bort.text.corpus.segmentation import count_words
from bort.text.corpus.sentences import blank_after, split_sentences
from bort.text.corpus.sources import PAPER_MIN_WORDS, ReadCounts, ReadOptions, find_sources

TEXT = "First paragraph of\nthe file.\n\n \nSecond one here.\r\n\r\nThird, with é and \u4e2d.\n"
DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><siteinfo><sitename>W</sitename></siteinfo>
<page><title>A</title><ns>0</ns><revision><text xml:space="preserve">Old.</text></revision><revision><text>
'''Alpha''' is a [[Greek alphabet|Greek]] letter.&lt;ref&gt;Book.&lt;/ref&gt; {{citation|x={{y}}}}
It is &amp;amp; was first.
== History ==
[[File:A.png|thumb|A caption.]]
{| class="wikitable"
| 1 || 2
|}
* [[Beta]]
* This entry is a sentence.
</text></revision></page>
<page><title>Talk:A</title><ns>1</ns><revision><text>Chatter here.</text></revision></page>
<page><title>B</title><ns>0</ns><redirect title="A"/><revision><text>#REDIRECT [[A]]</text></revision></page>
</mediawiki>"""
WORD = """==French==
# Un [[chien]] qui est grand.
==English==
===Noun===
# {{lb|en|zoology}} A [[mammal]], ''Canis familiaris'', that has been [[domesticate]]d for ages by people.
#* {{quote-book|en}} An example that is not a definition although it has more than ten words in it.
## A male dog.
"""


def read(path, counts=None, **options):
    given = ReadOptions(**options)
    sources, _ = find_sources([path], given.format)
    return [
        document for source in sources for document in read_documents(source, given, counts or ReadCounts())
    ]


def clean(raw, format="text", min_words=1):
    dropped = Counter()
    return list(clean_document(raw, format, min_words, dropped)), dropped


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "suffix, opener", [("", open), (".gz", gzip.open), (".bz2", bz2.open), (".xz", lzma.open)]
)
@pytest.mark.parametrize("documents, expected", [("paragraph", 3), ("line", 4), ("file", 1)])
def test_plain_and_compressed_text(tmp_path, suffix, opener, documents, expected):
    path = tmp_path / f"a.txt{suffix}"
    with opener(path, "wb") as stream:
        stream.write(TEXT.encode())
    found = read(path, documents=documents)
    assert len(found) == expected
    assert " ".join(" ".join(found).split()) == " ".join(TEXT.split())


def test_concatenated_compressed_streams_are_read_to_the_end(tmp_path):
    (tmp_path / "a.txt.bz2").write_bytes(bz2.compress(b"One.\n\n") + bz2.compress(b"Two.\n"))
    assert [text.strip() for text in read(tmp_path / "a.txt.bz2")] == ["One.", "Two."]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_ends(tmp_path, encoding, end):
    (tmp_path / "a.txt").write_bytes(f"Caf\u00e9.{end}{end}Two.".encode(encoding))
    assert [text.strip() for text in read(tmp_path / "a.txt")] == ["Caf\u00e9.", "Two."]
    (tmp_path / "a.csv").write_bytes(f"a,text{end}1,Caf\u00e9.{end}".encode(encoding))
    assert read(tmp_path / "a.csv", text_column="text") == ["Caf\u00e9."]


def test_folders_are_read_in_the_order_of_names(tmp_path):
    for name in (
        "b.txt",
        "a/z.txt",
        "a/b.md5",
        ".hidden.txt",
        "out/x.txt",
        "news.en-00001-of-00100",
        "c.jsonl",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    sources, passed = find_sources([tmp_path], avoid=tmp_path / "out")
    assert [(source.name, source.format) for source in sources] == [
        ("b.txt", "text"),
        ("c.jsonl", "jsonl"),
        ("news.en-00001-of-00100", "sentences"),
        ("a/z.txt", "text"),
    ]
    assert passed == ["a/b.md5"]


def test_what_cannot_be_read_is_said(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("nowhere", "no such file"),
        ("a.zip", "unpack it first"),
        ("empty", "no text files"),
    ):
        with pytest.raises(BortError, match=message):
            find_sources([tmp_path / path])


def test_tables_give_one_column(tmp_path):
    (tmp_path / "a.csv").write_text(
        'word,definition\ncat,"A small, furry ""pet""\nof the house."\ndog,\nrow\n'
    )
    (tmp_path / "a.tsv").write_text('1\tA "quoted\n2\tB\n')
    (tmp_path / "a.jsonl").write_text(
        '{"text": "One."}\nbroken\n{"text": 5}\n{"body": "Two.", "text": "Three."}\n'
    )
    counts = ReadCounts()
    assert read(tmp_path / "a.csv", counts, text_column="definition") == [
        'A small, furry "pet"\nof the house.'
    ]
    assert counts.rows == 2
    assert read(tmp_path / "a.tsv", text_column="2") == ['A "quoted', "B"]
    assert read(tmp_path / "a.jsonl") == ["One.", "Three."]
    assert read(tmp_path / "a.jsonl", text_column="body") == ["Two."]
    with pytest.raises(BortError, match="--text-column"):
        read(tmp_path / "a.csv")
    with pytest.raises(BortError, match="no column 'text'.*word, definition"):
        read(tmp_path / "a.csv", text_column="text")
    (tmp_path / "b.jsonl").write_text('{"body": "x"}\n' * 1000)
    with pytest.raises(BortError, match="no field 'text'"):
        read(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    "name, damage",
    [
        ("a.txt.gz", lambda text: gzip.compress(text)[:-20]),
        ("a.txt.gz", lambda text: b"\x1f\x8b" + b"\0" * 50),
        ("a.txt.bz2", lambda text: bz2.compress(text)[:-20]),
        ("a.txt.xz", lambda text: lzma.compress(text)[:-20]),
        ("a.txt.xz", lambda text: text),
        ("a.xml", lambda text: DUMP.encode()[:-40]),
        ("a.xml", lambda text: b"\0\1\2 not xml"),
    ],
)
def test_damaged_files_are_named_or_read_in_part(tmp_path, name, damage):
    text = "".join(f"Sentence number {number} stands here.\n\n" for number in range(5000)).encode()
    path = tmp_path / name
    path.write_bytes(damage(text))
    with pytest.raises(BortError, match=rf"{name}: damaged or incomplete.*--skip-broken"):
        read(path)
    counts = ReadCounts()
    found = read(path, counts, skip_broken=True)
    assert len(counts.broken) == 1 and counts.broken[0].startswith(name)
    if "Alpha" in path.read_bytes().decode("utf-8", "replace"):
        assert len(found) == 1, "pages before the damage are kept"


def test_a_file_without_line_ends_comes_in_bounded_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_MAX_LINE", 1000)
    monkeypatch.setattr(readers, "MAX_DOCUMENT", 5000)
    (tmp_path / "a.txt").write_text("word " * 4000)
    found = read(tmp_path / "a.txt", documents="file")
    assert max(map(len, found)) <= 6000 and "".join(found) == "word " * 4000


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    os.symlink(tmp_path / "gone", tmp_path / "b.txt")
    (tmp_path / "c.txt").write_text("Here.")
    sources, passed = find_sources([tmp_path])
    assert [source.name for source in sources] == ["c.txt"] and passed == ["a.txt", "b.txt"]
    with pytest.raises(BortError, match="a.txt: not a regular file"):
        find_sources([tmp_path / "a.txt"])


def test_urban_dictionary_is_known_by_its_name(tmp_path):
    (tmp_path / "urbandict-word-defs.csv").write_text("word_id,word,definition\n1,cat,A small furry pet.\n")
    (tmp_path / "urban-dictionary.jsonl").write_text('{"word": "dog", "definition": "A pet that barks."}\n')
    sources, _ = find_sources([tmp_path])
    assert [source.format for source in sources] == ["urbandictionary"] * 2
    assert read(tmp_path) == ["A pet that barks.", "A small furry pet."]
    assert PAPER_MIN_WORDS["urbandictionary"] == PAPER_MIN_WORDS["wiktionary"] == 11


def test_compressed_bombs_end_early(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "FREE_BYTES", 1 << 20)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a b\n" * (1 << 20)))
    with pytest.raises(
        BortError, match="a.txt.gz: refused .it unpacks to more than 1,048,576 bytes"
    ):
        read(tmp_path / "a.txt.gz")
    counts = ReadCounts()
    assert (
        read(tmp_path / "a.txt.gz", counts, skip_broken=True, documents="line")[0] == "a b\n"
        and counts.broken
    )


def test_xz_files_with_huge_dictionaries_are_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20, "preset": 0}]
    data = bytearray(lzma.compress(b"Some text.\n" * 100, filters=filters))
    (tmp_path / "a.txt.xz").write_bytes(data)
    assert len(read(tmp_path / "a.txt.xz", documents="line")) == 100
    # Of the block's header, the dictionary's size (40 is 4 GiB - 1), and the header's own checksum.
    size = (data[12] + 1) * 4
    place = data.index(b"\x21\x01", 12) + 2
    data[place] = 40
    data[12 + size - 4 : 12 + size] = zlib.crc32(bytes(data[12 : 12 + size - 4])).to_bytes(4, "little")
    (tmp_path / "a.txt.xz").write_bytes(data)
    with pytest.raises(BortError, match="a.txt.xz: refused .it asks for more than 256 MiB of memory.;"):
        read(tmp_path / "a.txt.xz")


def test_xz_files_of_several_streams_and_padding_are_read(tmp_path):
    parts = [lzma.compress(f"{number}.\n".encode() * 5000) for number in range(3)]
    (tmp_path / "a.txt.xz").write_bytes(parts[0] + b"\0" * 8 + parts[1] + parts[2] + b"\0" * 4)
    assert [text[0] for text in read(tmp_path / "a.txt.xz", documents="line")] == [
        *"0" * 5000,
        *"1" * 5000,
        *"2" * 5000,
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        ("<page " + "a" * (3 << 20), "longer than"),
        ("<!-- " + "a" * (3 << 20), "longer than"),
        ("<a>" * 1000, "nested"),
    ],
)
def test_dumps_that_a_parser_would_hold_in_memory_are_refused(tmp_path, content, message):
    (tmp_path / "a.xml.bz2").write_bytes(bz2.compress(("<mediawiki>" + content).encode()))
    with pytest.raises(BortError, match=f"a.xml.bz2: damaged or incomplete .*{message}"):
        read(tmp_path / "a.xml.bz2")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_read_as_text(tmp_path_factory, data):
    assume(not data.startswith(LFS_POINTER))
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(data)
    for documents in ("paragraph", "line", "file"):
        for raw in read(path, documents=documents):
            for sentences in clean(raw)[0]:
                assert all(text == " ".join(text.split()) and text for text in sentences)
                assert not any(
                    ord(char) < 32 or 0xD800 <= ord(char) < 0xE000 for text in sentences for char in text
                )


# ---------------------------------------------------------------- cleaning


def test_prose_passes_unchanged():
    prose = 'He said "yes" (twice): 3 < 4, R&D costs $5.  A tab\tis no table. See http://a.b/c?d=e&f=g now.'
    documents, dropped = clean(prose)
    assert " ".join(documents[0]) == " ".join(prose.split()) and not dropped


@pytest.mark.parametrize(
    "raw, expected",
    [
        ("<p>Hello &amp; good<br>day, <b class='x'>you</b>.</p>", ["Hello & good day, you."]),
        (
            "Before. <script type=a>var x = '</b>';</script>After. <!-- no --> <STYLE>p {}</style>End.",
            ["Before.", "After.", "End."],
        ),
        ("Name | Age | City | Zip\nJoe  said so.", ["Joe said so."]),
        ("1\t2\t3\t4\nTwo words.", ["Two words."]),
        ("Jan    12.5    13.5    14\nTwo words.", ["Two words."]),
        (" = Title = \n\n Body text here .\n", ["Body text here ."]),
        ("\0\1\2\3garbage\nFine text.", ["Fine text."]),
        ("\ufffd\ufffd\ufffd\nFine\u200b text.\ufeff", ["Fine text."]),
        ("A" * 500 + "\nFine text.", []),
        (
            "Let a<b and c>d be real numbers with a<x<b for all x.",
            ["Let a<b and c>d be real numbers with a<x<b for all x."],
        ),
        (
            "The <unk> of the <mask> was <s> here </s> and [MASK] there. See <http://a.b/c> or <john@x.org>.",
            [
                "The <unk> of the <mask> was <s> here </s> and [MASK] there.",
                "See <http://a.b/c> or <john@x.org>.",
            ],
        ),
        (
            "<p>The <unk> is <s>not</s> <i>here</i>; a<b and c>d.</p> <A HREF='x'>Link</A><br/>end.",
            ["The <unk> is not here; a<b and c>d.", "Link end."],
        ),
        ("<doc id='1' title='A'>\nSome <x-y>prose</x-y>.\n</doc>", ["Some prose."]),
        (
            "AT&T, R&D, &lt;unk&gt; &#65;&#x42; &copy &amp;amp; &#" + "1" * 100 + ";",
            ["AT&T, R&D, <unk> AB &copy &amp; &#" + "1" * 100 + ";"],
        ),
        ("Text &#" + "1" * 5000 + ";.", []),
        (
            "Span \U000f1b07mark\U000f1b07 out and in a line that is long enough to be a text.",
            ["Span mark out and in a line that is long enough to be a text."],
        ),
    ],
)
def test_markup_tables_and_garbage_are_removed(raw, expected):
    documents, _ = clean(raw)
    assert [text for sentences in documents for text in sentences] == expected


def test_short_documents_are_dropped_by_the_number_of_their_words():
    assert clean("one two three four five six seven eight nine ten", min_words=11) == ([], Counter(short=1))
    assert len(clean("one two three four five six seven eight nine ten eleven", min_words=11)[0]) == 1


CHINESE = "\u4eba\u5de5\u667a\u80fd\u662f\u79d1\u5b66\u7684\u4e00\u4e2a\u5206\u652f\uff0c"
THAI = "\u0e01\u0e32\u0e23\u0e40\u0e23\u0e35\u0e22\u0e19\u0e23\u0e39\u0e49\u0e02\u0e2d\u0e07"


@pytest.mark.parametrize("text", [CHINESE * 50 + "\u3002", THAI * 50])
def test_scripts_without_blanks_are_text(text):
    documents, dropped = clean(text, min_words=11)
    assert documents == [[text]] and not dropped
    assert clean(text[:8], min_words=11) == ([], Counter(short=1))
    assert clean(text[:20] + "QUJD" * 60) == ([], Counter(garbage=1, short=1)), "base64 stays garbage"


def test_words_are_counted_by_blanks_or_by_unicode_where_there_are_none():
    counts = {
        "": 0,
        "don't well-known  U.S.": 3,
        "\u4eba\u5de5\u667a\u80fd": 4,
        "GPT-4 \u662f\u6a21\u578b\u3002": 4,
        "\u30b3\u30f3\u30d4\u30e5\u30fc\u30bf\u306f\u901f\u3044": 4,
        "na\u00efve caf\u00e9": 2,
        THAI: 11,
    }
    assert {text: count_words(text) for text in counts} == counts


def test_sentences_of_other_scripts_end_at_their_terminators():
    text = "\u4f60\u597d\u3002\u300c\u5417\uff1f\u300d\u662f\uff01\u5f88\u597d"
    sentences = split_sentences(text)
    assert sentences == ["\u4f60\u597d\u3002", "\u300c\u5417\uff1f\u300d", "\u662f\uff01", "\u5f88\u597d"]
    assert "".join(part + blank_after(part) for part in sentences).strip() == text
    assert split_sentences("\u092f\u0939\u0964 \u0935\u0939\u0964") == [
        "\u092f\u0939\u0964",
        "\u0935\u0939\u0964",
    ]
    assert blank_after("One.") == " "


def test_lines_of_east_asian_text_are_joined_without_blanks():
    assert clean("\u4eba\u5de5\uff0c\n\u667a\u80fd\nand words\nfollow.")[0] == [
        ["\u4eba\u5de5\uff0c\u667a\u80fd and words follow."]
    ]


def test_wikipedia_dump(tmp_path):
    pytest.importorskip("mwparserfromhell")
    (tmp_path / "wiki.xml.bz2").write_bytes(bz2.compress(DUMP.encode()))
    counts = ReadCounts()
    pages = read(tmp_path / "wiki.xml.bz2", counts)
    assert len(pages) == 1 and counts.pages == 2 and "Old." not in pages[0]
    documents, dropped = clean(pages[0], "wikipedia")
    assert documents == [["Alpha is a Greek letter.", "It is & was first.", "This entry is a sentence."]]
    assert dropped["structured"] == 1


def test_wiktionary_gives_english_definitions_of_more_than_ten_words():
    pytest.importorskip("mwparserfromhell")
    documents, dropped = clean(WORD, "wiktionary", min_words=11)
    assert documents == [["A mammal, Canis familiaris, that has been domesticated for ages by people."]]
    assert dropped == {"short": 1}
    assert len(clean(WORD, "wiktionary")[0]) == 2


def test_dumps_without_their_parser_say_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mwparserfromhell", None)
    with pytest.raises(BortError, match=r"bort\[corpora\]"):
        clean("text", "wikipedia")


def test_xml_bombs_are_refused(tmp_path):
    entities = "".join(f'<!ENTITY a{n} "{("&a%d;" % (n - 1)) * 10}">' for n in range(1, 12))
    (tmp_path / "a.xml").write_text(
        f'<!DOCTYPE x [<!ENTITY a0 "ha">{entities}]><mediawiki><page><ns>0</ns>'
        "<revision><text>&a11;</text></revision></page></mediawiki>"
    )
    with pytest.raises(BortError, match="document type declaration"):
        read(tmp_path / "a.xml")


@pytest.mark.parametrize(
    "pattern",
    [
        "<script",
        "<!--",
        "<a ",
        "&",
        "= ",
        '."',
        "{{a|",
        "[[a|",
        "{|",
        "'''",
        "* \n",
        "<ref>",
        "[http://x ",
        "{{a|'''",
        "\n",
        "\t",
        "a   ",
        "A.",
        "[http://xxxxxxxx",
    ],
)
def test_text_made_to_be_slow_is_not(pattern):
    pytest.importorskip("mwparserfromhell")
    for format in ("text", "wikipedia", "wiktionary"):
        clean("==English==\n" + pattern * (20_000 // len(pattern)), format)
    for number in (1, 5, 30):
        clean(pattern * number + "}}]]|}" * number, "wikipedia")


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "{{",
                "}}",
                "[[",
                "]]",
                "{|",
                "|}",
                "|",
                "\n",
                "== x ==",
                "'''",
                "<ref>",
                "</ref>",
                "<br/>",
                "word",
                " ",
                "File:",
                "http://a",
                "[",
                "]",
                "*",
                "#",
                "&lt;",
                "\0",
                "{{{",
                "<!--",
            ]
        ),
        max_size=30,
    ).map("".join)
)
def test_any_wikitext_can_be_cleaned(raw):
    pytest.importorskip("mwparserfromhell")
    for format in ("wikipedia", "wiktionary"):
        for sentences in clean("==English==\n# " + raw, format)[0]:
            assert all("{{" not in text and "[[" not in text for text in sentences)
