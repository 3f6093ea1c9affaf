"""Downloads against a server that drops, truncates, redirects, lies and ignores what it is asked."""
from __future__ import annotations

import hashlib
import json
import multiprocessing
import threading
from dataclasses import replace

import pytest

from bort.downloads.http import DownloadError, Terms, fetch, mirrored
from bort.downloads.locks import lock
from bort.errors import BortError
from tests.local_http import Site, serve

BODY = bytes(range(256)) * 2000
QUICK = Terms(progress=False, wait=0.01)
SHA = hashlib.sha256(BODY).hexdigest()


def get(site, folder, name="data.bin", sha256=SHA, **settings):
    return fetch([f"{site.url}/{name}"], folder / "target.bin", sha256, replace(QUICK, **settings))


def leftovers(folder):
    names = {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}
    return sorted(names - {"target.bin"})


def test_a_whole_file_arrives_and_is_not_fetched_twice(tmp_path):
    with serve(Site({"/data.bin": BODY})) as site:
        assert get(site, tmp_path).read_bytes() == BODY and leftovers(tmp_path) == []
        get(site, tmp_path)
        assert len(site.requests) == 1
        (tmp_path / "target.bin").write_bytes(b"damaged")
        assert get(site, tmp_path).read_bytes() == BODY and len(site.requests) == 2


def test_dropped_connections_go_on_where_they_stopped(tmp_path):
    with serve(Site({"/data.bin": BODY}, drop_after=[100_000, 70_000, 0, 200_000])) as site:
        assert get(site, tmp_path).read_bytes() == BODY
        assert [asked for _, asked in site.requests] == [
            None, "bytes=100000-", "bytes=170000-", "bytes=170000-", "bytes=370000-"]


def test_a_later_process_resumes(tmp_path):
    with serve(Site({"/data.bin": BODY}, drop_after=[100_000, *[0] * 5])) as site:
        with pytest.raises(BortError, match="could not be downloaded"):
            get(site, tmp_path)
        assert not (tmp_path / "target.bin").exists()
        assert leftovers(tmp_path) == ["target.bin.part", "target.bin.part.json"]
        site.requests.clear()
        assert get(site, tmp_path).read_bytes() == BODY
        assert [asked for _, asked in site.requests] == ["bytes=100000-"]


def test_a_server_that_ignores_ranges_sends_everything_again(tmp_path):
    with serve(Site({"/data.bin": BODY}, drop_after=[100_000], ignore_range=True)) as site:
        assert get(site, tmp_path).read_bytes() == BODY


def test_a_file_that_changed_meanwhile_is_not_patched_together(tmp_path):
    new = BODY[::-1]
    with serve(Site({"/data.bin": BODY}, drop_after=[100_000, *[0] * 5])) as site:
        with pytest.raises(BortError):
            get(site, tmp_path, sha256=None)
        site.files["/data.bin"], site.etag = new, '"v2"'
        assert get(site, tmp_path, sha256=None).read_bytes() == new


def test_without_an_etag_only_a_checksum_allows_resuming(tmp_path):
    with serve(Site({"/data.bin": BODY}, drop_after=[100_000], etag=None)) as site:
        assert get(site, tmp_path).read_bytes() == BODY and site.requests[-1][1] == "bytes=100000-"
    (tmp_path / "target.bin").unlink()
    with serve(Site({"/data.bin": BODY}, drop_after=[100_000], etag=None)) as site:
        assert get(site, tmp_path, sha256=None).read_bytes() == BODY and site.requests[-1][1] is None


def test_a_patched_file_with_a_wrong_checksum_is_fetched_whole_once_more(tmp_path):
    new = BODY[::-1]
    with serve(Site({"/data.bin": BODY}, drop_after=[100_000, *[0] * 5], etag=None)) as site:
        with pytest.raises(BortError):
            get(site, tmp_path)
        site.files["/data.bin"] = new
        assert get(site, tmp_path, sha256=hashlib.sha256(new).hexdigest()).read_bytes() == new


def test_a_complete_part_needs_only_its_checksum(tmp_path):
    with serve(Site({"/data.bin": BODY})) as site:
        (tmp_path / "target.bin.part").write_bytes(BODY)
        (tmp_path / "target.bin.part.json").write_text(json.dumps({"url": f"{site.url}/data.bin",
                                                                   "validator": '"v1"'}))
        assert get(site, tmp_path).read_bytes() == BODY and len(site.requests) == 1
    with serve(Site({"/data.bin": BODY})) as site:
        (tmp_path / "target.bin").unlink()
        (tmp_path / "target.bin.part").write_bytes(BODY + b"too much")
        (tmp_path / "target.bin.part.json").write_text(json.dumps({"url": f"{site.url}/data.bin",
                                                                   "validator": '"v1"'}))
        assert get(site, tmp_path).read_bytes() == BODY


def test_truncated_and_overlong_bodies_are_noticed(tmp_path):
    with serve(Site({"/data.bin": BODY}, lie_about_length=10, etag=None)) as site:
        with pytest.raises(BortError,
                           match="given up .*: the connection ended after 512,000 of 512,010 bytes"):
            get(site, tmp_path, sha256=None)
    with serve(Site({"/data.bin": BODY}, announce=False)) as site:
        with pytest.raises(BortError, match="sends more than the 1,000 bytes"):
            get(site, tmp_path, max_bytes=1000)
        assert get(site, tmp_path).read_bytes() == BODY
    with serve(Site({"/data.bin": BODY})) as site:
        (tmp_path / "target.bin").unlink()
        with pytest.raises(BortError, match="has 512,000 bytes, more than the 1,000 allowed"):
            get(site, tmp_path, max_bytes=1000)


def test_a_wrong_checksum_leaves_nothing_behind_and_the_next_address_is_tried(tmp_path):
    with serve(Site({"/bad": b"bad", "/data.bin": BODY})) as site:
        with pytest.raises(BortError, match=f"has the SHA-256 .* expected is {SHA}"):
            get(site, tmp_path, "bad")
        assert leftovers(tmp_path) == []
        urls = [f"{site.url}/missing", f"{site.url}/bad", f"{site.url}/data.bin"]
        assert fetch(urls, tmp_path / "target.bin", SHA, terms=QUICK).read_bytes() == BODY


def test_passing_errors_are_tried_again_and_final_ones_are_not(tmp_path):
    with serve(Site({"/data.bin": BODY}, statuses=[503, 429, 500])) as site:
        get(site, tmp_path)
        assert len(site.requests) == 4
    with serve(Site({})) as site:
        with pytest.raises(DownloadError, match="answered 404.*\n.*save it as .*other.bin"):
            fetch(f"{site.url}/data.bin", tmp_path / "other.bin", terms=QUICK)
        assert len(site.requests) == 1


def test_waiting_is_up_to_us_and_ends(tmp_path):
    """A server cannot ask for a long pause, and one that never gets well is given up with its last answer."""
    with serve(Site({"/data.bin": BODY}, statuses=[503] * 20, headers={"Retry-After": "9999"})) as site:
        with pytest.raises(DownloadError, match="answered 503") as caught:
            get(site, tmp_path)
        assert len(site.requests) == 5 and caught.value.failures[0].startswith(f"{site.url}/data.bin: ")
        site.statuses.clear()
        assert get(site, tmp_path).read_bytes() == BODY


def test_redirects_are_followed_to_http_only_and_not_for_ever(tmp_path):
    redirects = {"/moved": "/data.bin", "/loop": "/loop", "/local": "file:///etc/passwd",
                 "/ftp": "ftp://127.0.0.1/x"}
    with serve(Site({"/data.bin": BODY}, redirects=redirects)) as site:
        assert get(site, tmp_path, "moved").read_bytes() == BODY
        for name, message in (("loop", "more than 10 times"), ("local", "not followed"),
                              ("ftp", "not followed")):
            with pytest.raises(BortError, match=message):
                fetch(f"{site.url}/{name}", tmp_path / name, terms=QUICK)


def test_compressed_answers_and_foreign_addresses_are_refused(tmp_path):
    with serve(Site({"/data.bin": BODY}, headers={"Content-Encoding": "gzip"})) as site:
        with pytest.raises(BortError, match="compressed"):
            get(site, tmp_path)
    for url in ("file:///etc/passwd", "ftp://host/x", "/etc/passwd"):
        with pytest.raises(BortError, match="only http and https"):
            fetch(url, tmp_path / "x")
    with pytest.raises(BortError, match="could not be downloaded"):
        fetch("http://127.0.0.1:1/x", tmp_path / "x", terms=Terms(progress=False, wait=0.0))


def test_mirrors_come_first_with_the_files_own_name(monkeypatch):
    monkeypatch.setenv("BORT_MIRRORS", "http://b/x/, ,http://c")
    assert mirrored("https://host/some/data.zip?token=1", ["http://a"]) == [
        "http://a/data.zip", "http://b/x/data.zip", "http://c/data.zip", "https://host/some/data.zip?token=1"]
    monkeypatch.delenv("BORT_MIRRORS")
    assert mirrored("https://host/data.zip") == ["https://host/data.zip"]


def test_two_who_want_the_same_file_take_turns(tmp_path):
    with serve(Site({"/data.bin": BODY})) as site:
        threads = [threading.Thread(target=get, args=(site, tmp_path)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (tmp_path / "target.bin").read_bytes() == BODY and len(site.requests) == 1


def _hold(path, ready, release):
    with lock(path):
        ready.set()
        release.wait(30)


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "lock", ready, release))
    process.start()
    try:
        assert ready.wait(30)
        with pytest.raises(BortError, match="another process has held .*lock for"):
            with lock(tmp_path / "lock", timeout=0.2):
                pass
    finally:
        release.set()
        process.join()
    with lock(tmp_path / "lock", timeout=0.2):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BortError, match="cannot be made"):
        fetch("http://127.0.0.1:1/x", tmp_path / "file" / "folder" / "x")
