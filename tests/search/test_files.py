"""The files of a search: settings, rows, lines; changed and damaged."""
from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bort.architecture import Architecture, parse
from bort.errors import BortError
from bort.json_files import read_json, read_jsonl
from bort.search.report import write_table
from bort.search.settings import SearchSettings
from bort.search.shared_folder import SearchFolder
from bort.search.timing import Trials, measured_speed
from bort.text.tokenizers.loading import load_tokenizer
from tests.search.tiny_search import (
    BY_COST,
    SETTINGS,
    TEACHER,
    run,
    search,
)

pytestmark = pytest.mark.filterwarnings("ignore:the teacher .* has no weights")


def test_without_training_rows_are_appended_once_and_only_what_is_missing(tmp_path):
    rows = search(tmp_path / "run", BY_COST, TEACHER)
    path = tmp_path / "run" / "candidates.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(rows) == len(lines) == 4
    assert search(tmp_path / "run", BY_COST, TEACHER, resume=True) == rows
    assert path.read_bytes().splitlines(keepends=True) == lines
    path.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # killed while appending
    assert search(tmp_path / "run", BY_COST, TEACHER, resume=True) == rows
    assert path.read_bytes().splitlines(keepends=True) == lines


def test_settings_that_nobody_works_with_are_replaced(tmp_path):
    first = SearchFolder(tmp_path, {"lr": 1})
    SearchFolder(tmp_path, {"lr": 1}).close()  # started together with the first
    for resume in (False, True):
        with pytest.raises(BortError, match="resume|other settings"):
            SearchFolder(tmp_path, {"lr": 2}, resume)
    assert read_json(tmp_path / "config.json")["settings"] == {"lr": 1}
    first.close()
    with SearchFolder(tmp_path, {"lr": 2}) as folder:
        assert read_json(tmp_path / "config.json")["settings"] == {"lr": 2}
        folder.append({"x": 1}, name="other.jsonl")
    with pytest.raises(BortError, match="--resume"):
        SearchFolder(tmp_path, {"lr": 3})
    with pytest.raises(BortError, match="lr was 2 and is 3"):
        SearchFolder(tmp_path, {"lr": 3}, resume=True)


def test_a_command_that_failed_does_not_block_the_corrected_one(corpus, tmp_path, capsys):
    assert run(tmp_path / "run", corpus, "--speed-lines", "100000") == 2
    assert "lower these" in capsys.readouterr().err
    assert run(tmp_path / "run", corpus) == 0


@pytest.mark.parametrize("line, message", [("[]", "not an object"), ('{"name": "1,2,8,8"}', "has no"),
                                           ("x", "not valid")])
def test_a_bad_row_is_named_with_its_remedy(tmp_path, line, message):
    search(tmp_path, BY_COST, TEACHER)
    with open(tmp_path / "candidates.jsonl", "a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    with pytest.raises(BortError, match=f"candidates.jsonl, line 5: .*{message}.*remove that line"):
        search(tmp_path, BY_COST, TEACHER, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"settings": {}}')
    (tmp_path / "other" / "speed.jsonl").write_text('{"visit": "1,2,8,8 in round 0"}\n')
    with pytest.raises(BortError, match="speed.jsonl, line 1: has no 'seconds'; remove that line"):
        measured_speed(SearchFolder(tmp_path / "other", {}, resume=True), BY_COST.space, Trials(16, 1, 1))


def test_without_training_the_whole_space_takes_neither_corpus_nor_teacher(tmp_path):
    rows = search(tmp_path / "run", SearchSettings(steps=0))
    assert len(rows) == 150 and all(row["ce"] == 1 for row in rows)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["candidates.jsonl", "claims",
                                                                          "config.json", "space.json"]
    # Nothing but size and speed counts, so the smallest and fastest tuple wins.
    assert Architecture.from_dict(rows[0]["architecture"]) == Architecture(2, 4, 512, 256)
    assert {row["interval"] for row in rows} == set(range(150))
    assert len(search(tmp_path / "all", SearchSettings(steps=0, epsilon=1, include=(parse("bort"),)))) == 300
    more = search(tmp_path / "with", SearchSettings(steps=0, include=(parse("bort"),)))
    assert len(more) == 151 and [row["interval"] for row in more if row["name"]
                                 == str(parse("bort"))] == [None]


def test_shorter_shards_are_told_of(corpus, tmp_path):
    settings = replace(SETTINGS, max_length=24, steps=1)
    with pytest.warns(UserWarning,
                      match="at most 16 tokens a line, so lines are that long and not --max-length 24"):
        rows = search(tmp_path / "run", settings, TEACHER, corpus)
    assert "lines of 24 tokens, of which the shards give at most 16," in write_table(
        tmp_path / "run", rows, read_json(tmp_path / "run" / "space.json"), settings)


def test_a_text_is_prepared_with_the_tokenizer_given_or_one_trained_on_it(text, corpus, tmp_path,
                                                                          monkeypatch):
    monkeypatch.setenv("BORT_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("MXNET_HOME", str(tmp_path / "nothing"))
    settings = replace(SETTINGS, max_length=16, steps=1)
    with pytest.warns(UserWarning, match="⟨3, 2, 24, 32⟩ has no weights"):
        given = search(tmp_path / "given", settings, TEACHER, text, tokenizer=corpus / "tokenizer")
    same = search(tmp_path / "shards", settings, TEACHER, corpus)
    assert [row["ce"] for row in given] == [row["ce"] for row in same]
    search(tmp_path / "trained", settings, TEACHER, text, tokenizer_size=50)
    assert load_tokenizer(tmp_path / "trained" / "tokenizer").vocab_size == 50
    assert read_json(tmp_path / "trained" / "space.json")["vocab_size"] == 50
    with pytest.raises(BortError, match="another tokenizer"):
        search(tmp_path / "other", settings, TEACHER, corpus, tokenizer=tmp_path / "trained" / "tokenizer")


@pytest.mark.parametrize("place", range(0, 400, 23))
def test_a_changed_row_is_noticed(tmp_path, place):
    """One digit of a row is another one: refused by its line, never a different result in silence."""
    rows = search(tmp_path, BY_COST, TEACHER)
    path = tmp_path / "candidates.jsonl"
    first, rest = path.read_bytes().split(b"\n", 1)
    digits = [index for index, byte in enumerate(first) if chr(byte).isdigit()]
    index = digits[place % len(digits)]
    other = b"1" if first[index:index + 1] != b"1" else b"2"
    path.write_bytes(first[:index] + other + first[index + 1:] + b"\n" + rest)
    with pytest.raises(BortError, match="candidates.jsonl, line 1: .*remove that line"):
        search(tmp_path, BY_COST, TEACHER, resume=True)
    path.write_bytes(rest)
    assert search(tmp_path, BY_COST, TEACHER, resume=True) == rows


def test_a_changed_space_is_made_again(tmp_path):
    search(tmp_path, BY_COST, TEACHER)
    path = tmp_path / "space.json"
    before = path.read_text()
    path.write_text(before.replace('"vocab_size": 50265', '"vocab_size": 50266'))
    assert path.read_text() != before
    search(tmp_path, BY_COST, TEACHER, resume=True)
    assert path.read_text() == before


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "lines.json"])
def test_changed_lines_are_refused(corpus, tmp_path, name):
    settings = replace(SETTINGS, max_length=16, steps=1)
    search(tmp_path / "run", settings, TEACHER, corpus)
    path = tmp_path / "run" / "lines" / name
    content = path.read_bytes()
    place = -10 if name.endswith("npy") else content.index(b'"max_length": 1') + len('"max_length": 1')
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
    with pytest.raises(BortError, match=f"{name}.*(damaged|changed)"):
        search(tmp_path / "run", settings, TEACHER, corpus, resume=True)


def test_a_search_of_an_earlier_version_is_gone_on_with(tmp_path):
    """Its settings do not tell of trials, its rows have no digests."""
    rows = search(tmp_path, BY_COST, TEACHER)
    config = read_json(tmp_path / "config.json")
    del config["settings"]["trials"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = tmp_path / "candidates.jsonl"
    stripped = [{key: value for key, value in row.items() if key != "digest"} for row in read_jsonl(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in stripped))
    assert search(tmp_path, BY_COST, TEACHER, resume=True) == rows
