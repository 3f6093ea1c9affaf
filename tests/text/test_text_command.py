"""The command line ``python -m bort.text``."""

from __future__ import annotations

import json
import logging

import pytest

from bort.errors import run_command
from bort.text.__main__ import main


def test_command_line(corpus, tokenizer_folder, tmp_path, capsys):
    arguments = [
        "prepare",
        "--input",
        str(corpus / "a.txt"),
        "--output",
        str(tmp_path / "o"),
        "--quiet",
        "--workers",
        "1",
        "--max-length",
        "64",
    ]
    assert main([*arguments, "--tokenizer", str(tokenizer_folder)]) == 0
    printed = capsys.readouterr().out
    assert "documents" in printed and "tokens/s" in printed and "train" in printed
    assert main(["check", str(tmp_path / "o"), "--show", "1"]) == 0
    assert "[train 0]" in capsys.readouterr().out
    assert main([*arguments, "--tokenizer", str(tokenizer_folder)]) == 0
    assert "already finished" in capsys.readouterr().out


def test_the_papers_preset_shuffles_sentences_and_splits_8_1_1(corpus, tokenizer_folder, tmp_path):
    arguments = [
        "prepare",
        "--input",
        str(corpus / "a.txt"),
        "--tokenizer",
        str(tokenizer_folder),
        "--quiet",
        "--workers",
        "1",
        "--max-length",
        "64",
        "--preset",
        "paper",
    ]
    assert main([*arguments, "--output", str(tmp_path / "a")]) == 0
    chosen = json.loads((tmp_path / "a" / "index.json").read_text())["options"]
    assert (chosen["shuffle"], chosen["split"]) == ("sentences", [0.8, 0.1, 0.1])
    assert main([*arguments, "--output", str(tmp_path / "b"), "--shuffle", "none", "--split", "1,0,0"]) == 0
    chosen = json.loads((tmp_path / "b" / "index.json").read_text())["options"]
    assert (chosen["shuffle"], chosen["split"]) == ("none", [1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--input", "nowhere"], "nowhere: no such file"),
        (["--vocab-size", "5"], "--train-tokenizer"),
        (["--tokenizer", "nowhere"], "nowhere: no such file or folder"),
        (["--split", "1,1"], "--split"),
        (["--max-length", "3"], "--max-length"),
        (["--workers", "0"], "--workers"),
        (["--seed", "-1"], "--seed"),
        (["--train-tokenizer", "sentencepiece"], "not both"),
    ],
)
def test_command_line_mistakes_end_with_2_and_one_line(
    corpus, tokenizer_folder, tmp_path, capsys, extra, message
):
    given = [
        "prepare",
        "--input",
        str(corpus),
        "--tokenizer",
        str(tokenizer_folder),
        "--quiet",
        "--output",
        str(tmp_path / "o"),
    ]
    assert run_command(main, [*given, *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "o" / "index.json").exists()


@pytest.mark.parametrize("content, message", [
    ("", "there is nothing in it"),
    ("a b", "left out were documents with too few words (1)"),
    ("." * 5000, "left out were lines that are not text (1), documents with too few words (1)")])
def test_what_was_left_out_is_said_in_words(tokenizer_folder, tmp_path, capsys, content, message):
    (tmp_path / "text.txt").write_text(content)
    given = ["prepare", "--input", str(tmp_path / "text.txt"), "--tokenizer", str(tokenizer_folder),
             "--quiet", "--output", str(tmp_path / "o"), "--min-words", "9"]
    assert run_command(main, given) == 2
    assert capsys.readouterr().err == f"error: no text found in {tmp_path / 'text.txt'}: {message}\n"


def test_a_split_not_asked_for_is_not_missed(corpus, tokenizer_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest has its own there, a command's process none
    given = ["prepare", "--input", str(corpus), "--tokenizer", str(tokenizer_folder), "--quiet",
             "--workers", "1"]
    assert run_command(main, [*given, "--output", str(tmp_path / "one"), "--split", "1,0,0"]) == 0
    assert capsys.readouterr().err == ""
    assert run_command(main, [*given, "--output", str(tmp_path / "two"), "--split", "1,0,1e-9"]) == 0
    assert "WARNING: the valid split is empty" in capsys.readouterr().err
