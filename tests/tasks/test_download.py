"""A task's files from a server, a mirror or a local archive into its folder; and the command line around
it."""
from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bort.downloads.http import Terms
from bort.errors import BortError, run_command
from bort.tasks import TASKS, get_task
from bort.tasks import __main__ as command
from bort.tasks import download as downloads
from tests.local_http import Site, serve
from tests.tiny_tasks import make_task

ROOT = Path(__file__).resolve().parents[2]


def archive_of(name, folder):
    """The task's tiny files packed as published: one folder in a zip, or RACE's tar.gz."""
    make_task(name, folder)
    inner = {"RACE-M": "RACE", "MNLI-m": "MNLI"}.get(name, name)
    buffer = io.BytesIO()
    if inner == "RACE":
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            archive.add(folder, "RACE")
    else:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in folder.rglob("*"):
                if path.is_file():
                    archive.write(path, f"{inner}/{path.relative_to(folder)}")
    return buffer.getvalue()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A mirror with CoLA, MNLI, AX, MRPC and RACE, and the tables of the project knowing their checksums."""
    files = {"/CoLA.zip": archive_of("CoLA", tmp_path / "make/c"),
             "/MNLI.zip": archive_of("MNLI-m", tmp_path / "make/m"),
             "/RACE.tar.gz": archive_of("RACE-M", tmp_path / "make/r")}
    files["/AX.tsv"] = (make_task("AX", tmp_path / "make/a") / "diagnostic.tsv").read_bytes()
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    table = header + "".join(f"{row % 2}\t{row}\t{row + 50}\ta {row}\tb {row}\n" for row in range(20))
    files.update({"/msr_paraphrase_train.txt": table.encode(), "/msr_paraphrase_test.txt": table.encode(),
                  "/mrpc_dev_ids.tsv": b"2\t52\n"})
    with serve(Site(files)) as running:
        for name in ("CoLA", "MNLI-m", "MNLI-mm", "AX", "MRPC", "RACE-M", "RACE-H", "RACE"):
            sources = tuple(downloads.Source(f"{running.url}/{source.name.replace('QQP', 'x')}",
                                             hashlib.sha256(files[f"/{source.name}"]).hexdigest())
                            for source in downloads.SOURCES[name])
            monkeypatch.setitem(downloads.SOURCES, name, sources)
        yield running


def get(name, folder, **settings):
    return downloads.download(get_task(name), folder, terms=Terms(wait=0.01, progress=False), **settings)


def test_every_official_task_has_sources_with_checksums():
    assert set(downloads.SOURCES) == set(TASKS) - {"Embedded"}
    for sources in downloads.SOURCES.values():
        for source in sources:
            assert len(source.sha256) == 64 and set(source.sha256) <= set("0123456789abcdef")
            assert source.url.startswith(("https://dl.fbaipublicfiles.com/", "http://www.cs.cmu.edu/~glai1/"))
    with pytest.raises(BortError, match="has no published files"):
        downloads.download(get_task("Embedded"), "nowhere")


@pytest.mark.parametrize("name, folder", [("CoLA", "CoLA"), ("MNLI-mm", "MNLI"), ("AX", "AX"),
                                          ("MRPC", "MRPC"), ("RACE-H", "RACE")])
def test_download_and_read(name, folder, site, tmp_path):
    place = get(name, tmp_path / "data")
    assert place == tmp_path / "data" / folder
    for split in get_task(name).splits:
        assert len(get_task(name).read(tmp_path / "data", split)) and len(get_task(name).read(place, split))
    assert {path.name for path in (tmp_path / "data").iterdir()} == {folder, "downloads.json", ".downloads"}
    assert all(path.name.endswith(".lock") for path in (tmp_path / "data/.downloads").iterdir())
    site.requests.clear()
    # is there already, also when its own folder is named
    assert get(name, place) == place and site.requests == []


def test_one_archive_serves_both_halves_of_mnli(site, tmp_path):
    get("MNLI-m", tmp_path)
    site.requests.clear()
    get("MNLI-mm", tmp_path)
    assert site.requests == []


def test_a_mirror_is_asked_first(site, tmp_path):
    with serve(Site(dict(site.files))) as mirror:
        get("CoLA", tmp_path / "a", mirrors=[f"{mirror.url}/"])
        assert [path for path, _ in mirror.requests] == ["/CoLA.zip"] and site.requests == []
        mirror.files.clear()
        get("CoLA", tmp_path / "b", mirrors=[mirror.url])
        assert len(site.requests) == 1


def test_a_changed_file_is_refused_until_its_checksum_is_given(site, tmp_path):
    site.files["/CoLA.zip"] = archive_of("SST-2", tmp_path / "changed")
    with pytest.raises(BortError, match="it was changed or damaged"):
        get("CoLA", tmp_path / "data")
    assert not (tmp_path / "data/CoLA").exists()
    digest = hashlib.sha256(site.files["/CoLA.zip"]).hexdigest()
    get("CoLA", tmp_path / "data", sha256=digest.upper())
    assert (tmp_path / "data/CoLA/train.tsv").is_file()


def test_an_unknown_checksum_is_recorded_on_first_use_and_required_later(site, tmp_path, monkeypatch):
    source = downloads.Source(f"{site.url}/CoLA.zip", None)
    monkeypatch.setitem(downloads.SOURCES, "CoLA", (source,))
    get("CoLA", tmp_path)
    recorded = json.loads((tmp_path / "downloads.json").read_text())
    assert recorded == {source.url: {"sha256": hashlib.sha256(site.files["/CoLA.zip"]).hexdigest()}}
    site.files["/CoLA.zip"] = archive_of("CoLA", tmp_path / "make/again") + b"\0"
    with pytest.raises(BortError, match="changed or damaged"):
        get("CoLA", tmp_path, force=True)


def test_hostile_and_damaged_archives_leave_the_folder_as_it_was(site, tmp_path, monkeypatch):
    get("CoLA", tmp_path / "data")
    before = {path: path.read_bytes() for path in (tmp_path / "data/CoLA").iterdir()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("CoLA/train.tsv", "new")
        archive.writestr("../evil.tsv", "x")
    for content, message in ((buffer.getvalue(), "unsafe name"), (site.files["/CoLA.zip"][:-50], "damaged")):
        site.files["/CoLA.zip"] = content
        with pytest.raises(BortError, match=message):
            get("CoLA", tmp_path / "data", force=True, sha256=hashlib.sha256(content).hexdigest())
        assert {path: path.read_bytes() for path in (tmp_path / "data/CoLA").iterdir()} == before
    assert not (tmp_path / "data/evil.tsv").exists() and not (tmp_path / "evil.tsv").exists()


def test_an_archive_without_the_tasks_files_says_which_are_missing(site, tmp_path):
    site.files["/CoLA.zip"] = archive_of("CB", tmp_path / "make/cb")
    with pytest.raises(BortError, match="lacks the files of CoLA's train, dev, test split"):
        get("CoLA", tmp_path / "data", sha256=hashlib.sha256(site.files["/CoLA.zip"]).hexdigest())


def test_local_files_instead_of_the_network(site, tmp_path, caplog):
    local = tmp_path / "my-own-name.zip"
    local.write_bytes(archive_of("CoLA", tmp_path / "make/local"))
    assert get("CoLA", tmp_path / "data", from_files=[local]) == tmp_path / "data/CoLA"
    assert site.requests == [] and local.is_file()
    with pytest.raises(BortError, match="not found"):
        get("CoLA", tmp_path / "data", from_files=[tmp_path / "nowhere.zip"])
    with pytest.raises(BortError, match="msr_paraphrase_test.txt, mrpc_dev_ids.tsv must be given as well"):
        path = tmp_path / "msr_paraphrase_train.txt"
        path.write_bytes(site.files["/msr_paraphrase_train.txt"])
        get("MRPC", tmp_path / "data", from_files=[path])
    with pytest.raises(BortError, match="my-own-name.zip: expected msr_paraphrase_train.txt"):
        get("MRPC", tmp_path / "data", from_files=[local])


def test_a_broken_transfer_of_an_archive_resumes(site, tmp_path):
    site.drop_after = [300, 0, 200]
    get("CoLA", tmp_path)
    assert [asked for _, asked in site.requests] == [None, "bytes=300-", "bytes=300-", "bytes=500-"]


# ---- the command line


def run(*arguments):
    return run_command(command.main, [str(argument) for argument in arguments])


def test_the_command_and_the_tasks_never_import_mxnet():
    code = "import sys, bort.tasks.__main__, bort.tasks.metrics; sys.exit('mxnet' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


def test_list_names_every_task(capsys):
    assert run("list") == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in TASKS) and "SuperGLUE-RTE" in out


def test_download_and_describe_commands(site, tmp_path, capsys):
    assert run("download", "--task", "cola", "--data-dir", tmp_path) == 0
    assert run("describe", "--task", "CoLA", "--data-dir", tmp_path) == 0
    out = capsys.readouterr().out
    for line in ("CoLA: CoLA is there", "split  rows  bad  examples  labels", "train     6    0"):
        assert line in out


def test_describe_counts_tokens_with_a_tokenizer_and_names_absent_splits(real_data, tmp_path, capsys):
    make_task("RACE-M", tmp_path)
    for path in sorted((tmp_path / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert run("describe", "--task", "RACE-M", "--data-dir", tmp_path, "--tokenizer", real_data / "bpe",
               "--max-length", 10) == 0
    out = capsys.readouterr().out
    assert "over 10" in out and "100.00%" in out and "not there: test" in out and "9 questions" in out


@pytest.mark.parametrize("arguments, message", [
    (["describe", "--task", "CoLA", "--data-dir", "nowhere"], "CoLA needs train.tsv"),
    (["describe", "--task", "nothing", "--data-dir", "x"], "unknown task"),
    (["describe", "--task", "CoLA", "--data-dir", "x", "--split", "evaluation"], "has no split"),
    (["validate", "nowhere.tsv", "--task", "CoLA"], "nowhere.tsv: cannot be read"),
    (["download", "--task", "Embedded", "--data-dir", "x"], "no published files")])
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_validate_command(tmp_path, capsys):
    make_task("CoLA", tmp_path)
    (tmp_path / "CoLA.tsv").write_text("index\tprediction\n" + "".join(f"{row}\t1\n" for row in range(6)))
    assert run("validate", tmp_path / "CoLA.tsv", "--task", "CoLA", "--data-dir", tmp_path) == 0
    assert "6 predictions for CoLA, complete for" in capsys.readouterr().out
    (tmp_path / "CoLA.tsv").write_text("index\tprediction\n0\t2\n")
    assert run("validate", tmp_path / "CoLA.tsv", "--task", "CoLA") == 2
    assert "CoLA.tsv:2: expected 0 or 1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as leaving:
        run("validate")
    assert leaving.value.code == 2
