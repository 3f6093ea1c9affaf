"""Files over HTTP that arrive whole or not at all: resumed, verified, placed atomically.
For data and checkpoints."""
from __future__ import annotations

import contextlib
import logging
import os
import time
import urllib.parse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import requests
import urllib3
from requests.adapters import HTTPAdapter
from tqdm import tqdm

from bort.downloads.locks import lock
from bort.errors import BortError
from bort.files import PathLike, sha256_file
from bort.json_files import read_json, write_json

logger = logging.getLogger("bort.downloads.http")

BLOCK = 1 << 16
MAX_BYTES = 16 << 30
MAX_REDIRECTS = 10
ATTEMPTS = 5
"""Failures in a row, without a single new byte, after which an address is given up."""
MAX_CONNECTIONS = 200
"""Connections to one address altogether: a server that sends a few bytes each time is given up as well."""
_PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
"""Answers that another attempt may change."""


@dataclass(frozen=True)
class Terms:
    """How a file is fetched.

    Attributes:
        max_bytes: a larger file is refused, whether announced or not.
        timeout: seconds without a byte after which a connection counts as broken.
        wait: seconds before the second attempt; doubled before each further one.
        progress: show a bar.
    """

    max_bytes: int = MAX_BYTES
    timeout: float = 30.0
    wait: float = 1.0
    progress: bool = True

    def at_most(self, max_bytes: int) -> "Terms":
        """The same for files of at most that size."""
        return replace(self, max_bytes=max_bytes)


class DownloadError(BortError):
    """No address gave the file; ``failures`` says for each what happened, in one line."""

    def __init__(self, what: str, failures: Sequence[str], remedy: str) -> None:
        tried = "\n  ".join(failures)
        super().__init__(f"{what} could not be downloaded:\n  {tried}\n{remedy}")
        self.failures = list(failures)


class _Retry(Exception):
    """A passing failure of one attempt."""


class _GiveUp(Exception):
    """This address will not do; the next one may."""


class _Session(requests.Session):
    """Follows redirections to http and https only, and never from https back to http; tries again where no
    answer or a passing one came. What breaks in the middle of the body is resumed by :class:`_Transfer`."""

    def __init__(self, wait: float) -> None:
        super().__init__()
        self.max_redirects = MAX_REDIRECTS
        # No Retry-After: a server must not make us wait for as long as it likes.
        retry = urllib3.Retry(ATTEMPTS - 1, redirect=0, status_forcelist=_PASSING_STATUS, backoff_factor=wait,
                              raise_on_status=False, respect_retry_after_header=False)
        for scheme in ("http://", "https://"):
            self.mount(scheme, HTTPAdapter(max_retries=retry))

    def get_redirect_target(self, resp: requests.Response) -> Optional[str]:
        target = super().get_redirect_target(resp)
        if target is not None:
            target = urllib.parse.urljoin(resp.url, target)
            scheme = urllib.parse.urlsplit(target).scheme
            if scheme not in ("http", "https") or (resp.url.startswith("https:") and scheme == "http"):
                raise _GiveUp(f"redirected to {target[:200]}, which is not followed")
        return target


def mirror_addresses(name: str, mirrors: Sequence[str] = ()) -> List[str]:
    """Where the file ``name`` is on the mirrors: ``mirrors``, then those in the environment variable
    ``BORT_MIRRORS`` (separated by commas), all of them bases like ``https://host/folder``."""
    bases = [base.strip() for base in (*mirrors, *os.environ.get("BORT_MIRRORS", "").split(","))]
    return list(dict.fromkeys(f"{base.rstrip('/')}/{name}" for base in bases if base))


def mirrored(url: str, mirrors: Sequence[str] = ()) -> List[str]:
    """Where a file may be: on each mirror under its own name (:func:`mirror_addresses`), then at ``url``."""
    name = urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1]
    return list(dict.fromkeys([*mirror_addresses(name, mirrors), url]))


def fetch(urls: Sequence[str], target: PathLike, sha256: Optional[str] = None, terms: Optional[Terms] = None,
          remedy: str = "") -> Path:
    """Download the first address that works to ``target``, and return that path.

    A broken transfer goes on where it stopped (if the server can, and still has the same file), also in a
    later process: what has arrived is kept in ``<target>.part``. ``target`` itself appears only when
    everything has arrived and has the checksum. An existing ``target`` is kept if its checksum is right, or
    if none is given. Processes that want the same target take turns.

    Args:
        urls: http or https addresses of the same file, best first.
        sha256: of the whole file, in hexadecimal.
        remedy: what the user can do when no address works, for the message; by default, to save the
            file by hand.

    Raises:
        DownloadError: no address gave the file; the message says what happened at each and what can be done.
        BortError: an address is not valid, or the folder cannot be written to.
    """
    target = Path(target)
    urls = [urls] if isinstance(urls, str) else list(urls)
    for url in urls:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise BortError(f"{url}: only http and https addresses can be downloaded")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BortError(f"{target.parent}: cannot be made ({error.strerror})") from error
    with lock(target.with_name(f".{target.name}.lock")):
        if target.is_file():
            if sha256 is None or sha256_file(target) == sha256.lower():
                return target
            logger.warning("%s: its checksum is not the expected one; it is downloaded again", target)
        failures = []
        for url in urls:
            try:
                _Transfer(url, target, terms or Terms()).run(sha256)
                return target
            except _GiveUp as error:
                failures.append(f"{url}: {error}")
                logger.warning("%s: %s", url, error)
    raise DownloadError(target.name, failures, remedy or f"Fetch it by other means and save it as {target}, "
                        "or name a mirror in BORT_MIRRORS")


class _Transfer:
    """One file from one address."""

    def __init__(self, url: str, target: Path, terms: Terms) -> None:
        self.url, self.target, self.terms = url, target, terms
        self.part = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")
        self.resumed = False

    def run(self, sha256: Optional[str]) -> None:
        while True:
            self._collect(sha256 is not None)
            found = sha256_file(self.part)
            if sha256 is None or found == sha256.lower():
                break
            self._forget()
            if not self.resumed:
                raise _GiveUp(f"the file has the SHA-256 {found}, expected is {sha256.lower()}: it was "
                              "changed or damaged")
            # The two parts may be of different files: that is no verdict on the server's file, which is asked
            # for anew.
            self.resumed = False
        os.replace(self.part, self.target)
        self._forget()

    def _collect(self, checked: bool) -> None:
        """Attempts until everything is in the part file."""
        failures = connections = 0
        while True:
            had = self._have()
            try:
                return self._attempt(checked)
            except _Retry as error:
                connections += 1
                failures = 0 if self._have() > had else failures + 1
                if failures >= ATTEMPTS or connections >= MAX_CONNECTIONS:
                    raise _GiveUp(f"given up after {connections} attempts, the last: {error}") from error
                time.sleep(min(60.0, self.terms.wait * 2 ** max(0, failures - 1)))
            except OSError as error:
                raise BortError(f"{self.part}: cannot be written ({error.strerror or error})") from error

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _forget(self) -> None:
        for path in (self.part, self.note):
            with contextlib.suppress(OSError):
                path.unlink()

    def _resumable(self, checked: bool) -> Dict[str, str]:
        """Request headers that ask for the rest, if what is there came from this address.

        ``If-Range`` makes the server send everything when its file has changed. Without anything to put
        there, only a checksum can tell, so without one the transfer starts over.
        """
        have = self._have()
        if not have:
            return {}
        try:
            note = read_json(self.note, max_bytes=1 << 16)
            validator = note["validator"]
            if note["url"] == self.url and isinstance(validator, str) and (validator or checked):
                return {"Range": f"bytes={have}-", **({"If-Range": validator} if validator else {})}
        except (BortError, KeyError, TypeError):
            pass
        self._forget()
        return {}

    def _attempt(self, checked: bool) -> None:
        headers = {"User-Agent": "bort", "Accept-Encoding": "identity", **self._resumable(checked)}
        try:
            with _Session(self.terms.wait) as session, session.get(
                    self.url, headers=headers, stream=True, timeout=self.terms.timeout) as response:
                self._receive(response)
        except requests.TooManyRedirects as error:
            raise _GiveUp(f"redirected more than {MAX_REDIRECTS} times") from error
        except requests.RequestException as error:  # after all attempts, or an invalid address
            raise _GiveUp(f"{type(error).__name__}: {error}") from error

    def _receive(self, response: requests.Response) -> None:
        status, headers, start = response.status_code, response.headers, 0
        if status == 416:
            # Nothing is left to send: either everything is here, or more than the file has.
            if _number(headers.get("Content-Range", "").rpartition("/")[2]) == self._have() > 0:
                return
            self._forget()
            raise _Retry("the server no longer has the part that was asked for")
        if status not in (200, 206):
            raise _GiveUp(" ".join(f"the server answered {status} {response.reason}".split()))
        if headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise _GiveUp("the server sends the file compressed, though asked not to")
        total = _number(headers.get("Content-Length"))
        if status == 206:
            start, total = _content_range(headers.get("Content-Range"))
            if start != self._have():
                self._forget()
                raise _Retry("the server sent another part than was asked for")
            self.resumed = True
        if total is not None and total > self.terms.max_bytes:
            raise _GiveUp(f"the file has {total:,} bytes, more than the {self.terms.max_bytes:,} allowed "
                          "here")
        # Only a strong validator says that two answers are the same bytes.
        etag = headers.get("ETag") or ""
        validator = etag if etag.startswith('"') else headers.get("Last-Modified") or ""
        write_json(self.note, {"url": self.url, "validator": validator})
        with open(self.part, "ab" if start else "wb") as stream:
            received = self._copy(response, stream, start, total)
            stream.flush()
            os.fsync(stream.fileno())
        if total is not None and received < total:
            raise _Retry(f"the connection ended after {received:,} of {total:,} bytes")

    def _copy(self, response: requests.Response, stream: Any, start: int, total: Optional[int]) -> int:
        received = start
        response.raw.enforce_content_length = False  # bytes that are missing are counted by the caller
        with tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=self.target.name,
                  disable=not self.terms.progress) as bar:
            while True:
                try:
                    block = response.raw.read(BLOCK, decode_content=False)
                except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                    # Of the connection: errors of the file come from write, and are not passing ones.
                    raise _Retry(f"{type(error).__name__}: {error}") from error
                if not block:
                    return received
                received += len(block)
                if received > self.terms.max_bytes or (total is not None and received > total):
                    self._forget()
                    raise _GiveUp("the server sends more than the "
                                  f"{min(self.terms.max_bytes, total or self.terms.max_bytes):,} bytes it "
                                  "may")
                stream.write(block)
                bar.update(len(block))


def _number(text: Optional[str]) -> Optional[int]:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


def _content_range(text: Optional[str]) -> Tuple[int, Optional[int]]:
    """``(start, total)`` of ``bytes 5-9/10``; the total is None where the server does not tell."""
    unit, _, span = (text or "").partition(" ")
    first, _, total = span.partition("/")
    start = _number(first.partition("-")[0])
    if unit != "bytes" or start is None:
        raise _GiveUp(f"the server's Content-Range is {text!r}")
    return start, _number(total)
