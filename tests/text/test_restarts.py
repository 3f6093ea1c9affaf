"""Preparations that are interrupted and go on, with the same shards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bort.errors import BortError
from bort.text.shards.dataset import ShardDataset
from bort.text.shards.plan import PrepareOptions
from bort.text.shards.prepare import prepare
from bort.text.shards.workers import WorkerPool
from tests.text.shard_files import content, options

ROOT = Path(__file__).resolve().parents[2]


def test_a_finished_folder_is_not_made_again_and_others_are_refused(
    shards, corpus, tokenizer_folder, tmp_path
):
    before = content(shards)
    again = prepare(options(corpus, tokenizer_folder, shards))
    assert again["already_finished"] and content(shards) == before
    for change, message in (
        ({"seed": 2}, "seed 1 -> 2"),
        ({"max_length": 32}, "max_length"),
        ({"inputs": [corpus / "a.txt"]}, "inputs"),
        ({"tokenizer": None, "vocab_size": 300}, "tokenizer"),
    ):
        with pytest.raises(BortError, match=f"another preparation.*{message}"):
            prepare(options(corpus, tokenizer_folder, shards, **change))
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(BortError, match=r"not empty \(mine.txt"):
        prepare(options(corpus, tokenizer_folder, tmp_path))
    assert content(shards) == before


def test_an_error_at_any_point_leaves_a_folder_that_continues(
    shards, corpus, tokenizer_folder, tmp_path, monkeypatch
):
    """Stop the work after each of its files in turn, as a kill would, and start again in the same folder."""

    class Killed(BaseException):
        pass

    output = tmp_path / "out"
    generator = random.Random(0)
    real = os.replace
    attempts = 0
    for _ in range(60):
        attempts += 1
        left = generator.randrange(1, 14)

        def replace_some(source, target):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            real(source, target)

        monkeypatch.setattr(os, "replace", replace_some)
        try:
            prepare(options(corpus, tokenizer_folder, output))
            break
        except Killed:
            with pytest.raises(BortError, match="run the same command again|no shards"):
                ShardDataset(output)
    monkeypatch.setattr(os, "replace", real)
    assert attempts > 4 and content(output) == content(shards)


def children_of(pid):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_kill_9_and_restart_give_the_same_shards(shards, corpus, tokenizer_folder, tmp_path):
    output = tmp_path / "killed"
    code = (
        "import sys; from bort.text.shards.plan import PrepareOptions; from bort.text.shards.prepare "
        f"import prepare\nprepare(PrepareOptions(inputs=[{str(corpus)!r}], output={str(output)!r}, "
        f"tokenizer={str(tokenizer_folder)!r}, max_length=64, seed=1, block_characters=8000, "
        "bucket_bytes=60_000, workers=2))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=str(ROOT))
    deadline = time.time() + 60
    while time.time() < deadline and process.poll() is None and len(list(output.glob("work/spill-*"))) < 3:
        time.sleep(0.005)
    assert process.poll() is None, "it was to be killed before its end"
    with pytest.raises(BortError, match="another run is writing"):
        prepare(options(corpus, tokenizer_folder, output))
    workers = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2
    while time.time() < deadline and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers), "workers end with their parent"
    assert not (output / "index.json").exists()
    prepare(options(corpus, tokenizer_folder, output))
    assert content(output) == content(shards)


def test_a_worker_that_dies_is_reported():
    with pytest.raises(BortError, match="worker process was killed"):
        with WorkerPool(2) as pool:
            pool.start(int)
            pool.submit(os._exit, 3)
            pool.wait()


def test_errors_of_workers_reach_the_user(tmp_path, tokenizer_folder, corpus):
    output = tmp_path / "out"
    prepare(options(corpus, tokenizer_folder, output))
    (output / "index.json").unlink()
    (output / "work").mkdir()
    (output / "work" / "group-000000.json").write_text('{"blocks": 1, "rows": 0, "pages": 0, "broken": []}')
    (output / "work" / "spill-000000-000000").write_bytes(b"something else entirely")
    for workers in (1, 2):
        with pytest.raises(BortError, match="spill-000000-000000: not a file of this program"):
            prepare(options(corpus, tokenizer_folder, output, workers=workers))


def test_a_folder_in_which_nothing_was_made_takes_other_options(tmp_path, tokenizer_folder):
    (tmp_path / "text.txt").write_text("Letters of an alphabet are many.\n\nMore of them, too.\n")
    given = {"inputs": [tmp_path / "text.txt"], "output": tmp_path / "out", "workers": 1, "progress": False,
             "split": "1,0,0"}
    with pytest.raises(BortError, match="ask for more"):
        prepare(PrepareOptions(**given, vocab_size=16))
    with pytest.raises(BortError, match="no text found"):
        prepare(PrepareOptions(**given, tokenizer=tokenizer_folder, min_words=50))
    assert prepare(PrepareOptions(**given, tokenizer=tokenizer_folder))["splits"]["train"]["sequences"]
    with pytest.raises(BortError, match="another preparation"):
        prepare(PrepareOptions(**given, tokenizer=tokenizer_folder, min_words=2))
