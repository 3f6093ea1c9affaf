"""Files over HTTP that arrive whole or not at all: resumed, verified, placed atomically. For data and
checkpoints."""
from __future__ import annotations

import contextlib
import http.client
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

from bort.downloads.archives import Limits, extract
from bort.errors import BortError
from bort.files import PathLike, read_json, sha256_file, write_json

__all__ = ["Limits", "extract", "fetch", "lock", "mirrored"]

logger = logging.getLogger("bort.downloads.http")

BLOCK = 1 << 16
MAX_BYTES = 16 << 30
ATTEMPTS = 5
"""Failures in a row, without a single new byte, after which an address is given up."""
MAX_CONNECTIONS = 200
"""Connections to one address altogether: a server that sends a few bytes each time is given up as well."""
_FINAL_STATUS = frozenset([400, 401, 403, 404, 405, 406, 410, 451])
"""Answers that another attempt would not change."""


class _Retry(Exception):
    """A passing failure of one attempt."""


class _GiveUp(Exception):
    """This address will not do; the next one may."""


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https only, and never from https back to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise _GiveUp(f"redirected to {newurl[:200]}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    # build_opener would add handlers for file: and ftp: addresses.
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
                    urllib.request.HTTPDefaultErrorHandler, _SafeRedirects,
                    urllib.request.HTTPErrorProcessor):
        opener.add_handler(handler())
    return opener


def mirrored(url: str, mirrors: Sequence[str] = ()) -> List[str]:
    """Where a file may be: on each mirror under its own name, then at ``url``.

    ``mirrors`` and the addresses in the environment variable ``BORT_MIRRORS`` (separated by commas) are bases
    like ``https://host/folder``.
    """
    name = urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1]
    bases = [base.strip() for base in [*mirrors, *os.environ.get("BORT_MIRRORS", "").split(",")]
             if base.strip()]
    return list(dict.fromkeys([*(f"{base.rstrip('/')}/{name}" for base in bases), url]))


def fetch(urls: Sequence[str], target: PathLike, sha256: Optional[str] = None, progress: bool = True, *,
          max_bytes: int = MAX_BYTES, timeout: float = 30.0, wait: float = 1.0, remedy: str = "") -> Path:
    """Download the first address that works to ``target``, and return that path.

    A broken transfer goes on where it stopped (if the server can, and still has the same file), also in a
    later
    process: what has arrived is kept in ``<target>.part``. ``target`` itself appears only when everything has
        arrived
    and has the checksum. An existing ``target`` is kept if its checksum is right, or if none is given.
    Processes that want the same target take turns.

    Args:
        urls: http or https addresses of the same file, best first.
        sha256: of the whole file, in hexadecimal.
        max_bytes: a larger file is refused, whether announced or not.
        timeout: seconds without a byte after which a connection counts as broken.
        wait: seconds before the second attempt; doubled before each further one.
        remedy: what the user can do when no address works, for the message; by default, to save the file by
            hand.

    Raises:
        BortError: no address gave the file; the message says what happened at each and what can be done.
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
                _Transfer(url, target, max_bytes, timeout, wait, progress).run(sha256)
                return target
            except _GiveUp as error:
                failures.append(f"{url}: {error}")
                logger.warning("%s: %s", url, error)
    tried = "\n  ".join(failures)
    remedy = remedy or f"Fetch it by other means and save it as {target}, or name a mirror in BORT_MIRRORS"
    raise BortError(f"{target.name} could not be downloaded:\n  {tried}\n{remedy}")


class _Transfer:
    """One file from one address."""

    def __init__(self, url: str, target: Path, max_bytes: int, timeout: float, wait: float,
                 progress: bool) -> None:
        self.url, self.target, self.max_bytes = url, target, max_bytes
        self.timeout, self.wait, self.progress = timeout, wait, progress
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
                time.sleep(min(60.0, self.wait * 2 ** max(0, failures - 1)))
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
        request = urllib.request.Request(self.url, headers={
            "User-Agent": "bort", "Accept-Encoding": "identity", **self._resumable(checked)})
        try:
            response = _opener().open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416:
                    # Nothing is left to send: either everything is here, or more than the file has.
                    if _number((error.headers.get("Content-Range")
                                or "").rpartition("/")[2]) == self._have() > 0:
                        return
                    self._forget()
                    raise _Retry("the server no longer has the part that was asked for") from error
                failure = " ".join(f"the server answered {error.code} {error.reason}".split())
                raise (_GiveUp if error.code in _FINAL_STATUS or error.code < 400
                       else _Retry)(failure) from error
        except (http.client.HTTPException, OSError) as error:
            raise _Retry(str(getattr(error, "reason", "") or f"{type(error).__name__}: {error}")) from error
        except ValueError as error:  # an address that is none
            raise _GiveUp(str(error)) from error
        with response:
            self._receive(response)

    def _receive(self, response: Any) -> None:
        if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise _GiveUp("the server sends the file compressed, though asked not to")
        start = 0
        total = _number(response.headers.get("Content-Length"))
        if response.status == 206:
            start, total = _content_range(response.headers.get("Content-Range"))
            if start != self._have():
                self._forget()
                raise _Retry("the server sent another part than was asked for")
            self.resumed = True
        elif response.status != 200:
            raise _GiveUp(f"the server answered {response.status}")
        if total is not None and total > self.max_bytes:
            raise _GiveUp(f"the file has {total:,} bytes, more than the {self.max_bytes:,} allowed here")
        # Only a strong validator says that two answers are the same bytes.
        etag = response.headers.get("ETag") or ""
        validator = etag if etag.startswith('"') else response.headers.get("Last-Modified") or ""
        write_json(self.note, {"url": self.url, "validator": validator})
        with open(self.part, "ab" if start else "wb") as stream:
            received = self._copy(response, stream, start, total)
            stream.flush()
            os.fsync(stream.fileno())
        if total is not None and received < total:
            raise _Retry(f"the connection ended after {received:,} of {total:,} bytes")

    def _copy(self, response: Any, stream: Any, start: int, total: Optional[int]) -> int:
        from tqdm import tqdm

        received = start
        with tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=self.target.name,
                  disable=not self.progress) as bar:
            while True:
                try:
                    block = response.read(BLOCK)
                except http.client.IncompleteRead as error:
                    stream.write(error.partial)
                    raise _Retry("the connection ended in the middle of a chunk") from error
                except (http.client.HTTPException, OSError, ValueError) as error:
                    # Of the connection: errors of the file come from write, and are not passing ones.
                    raise _Retry(f"{type(error).__name__}: {error}") from error
                if not block:
                    return received
                received += len(block)
                if received > self.max_bytes or (total is not None and received > total):
                    self._forget()
                    raise _GiveUp("the server sends more than the "
                                  f"{min(self.max_bytes, total or self.max_bytes):,} bytes it may")
                stream.write(block)
                bar.update(len(block))


def _number(text: Optional[str]) -> Optional[int]:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


def _content_range(text: Optional[str]) -> Any:
    """``(start, total)`` of ``bytes 5-9/10``; the total is None where the server does not tell."""
    unit, _, span = (text or "").partition(" ")
    first, _, total = span.partition("/")
    start = _number(first.partition("-")[0])
    if unit != "bytes" or start is None:
        raise _GiveUp(f"the server's Content-Range is {text!r}")
    return start, _number(total)


@contextlib.contextmanager
def lock(path: PathLike, timeout: float = 3600.0) -> Iterator[None]:
    """Hold a file lock: whoever comes second waits. It dies with its process, so a leftover file does not
    block.

    Raises:
        BortError: another process held it for ``timeout`` seconds, or the file cannot be made.
    """
    path = Path(path)
    try:
        stream = open(path, "a+", encoding="ascii")
    except OSError as error:
        raise BortError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    with stream:
        try:
            import fcntl
        except ImportError:  # not POSIX: go on without
            yield
            return
        deadline = time.monotonic() + timeout
        told = False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise BortError(f"{path}: another process has held it for {timeout:.0f} s") from error
                if not told:
                    logger.warning("%s: waiting for another process that is at it", path)
                    told = True
                time.sleep(0.1)
        try:
            yield
        finally:
            # The file stays: to remove it would let a waiting process lock a file that is no longer there.
            fcntl.flock(stream, fcntl.LOCK_UN)
