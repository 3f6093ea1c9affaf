"""A local HTTP server that misbehaves as told."""
from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, Iterator, List, Optional, Tuple


@dataclass
class Site:
    """What a server has and how it behaves.

    ``drop_after``: bytes of the body after which each connection breaks, one entry for each request, then
    none. ``ignore_range``: always sends everything. ``etag`` None sends none. ``announce`` False leaves the
    length out. ``statuses``: answers for the next requests, before it works. ``redirects``: path -> address.
    """

    files: Dict[str, bytes]
    drop_after: List[int] = field(default_factory=list)
    ignore_range: bool = False
    etag: Optional[str] = '"v1"'
    announce: bool = True
    statuses: List[int] = field(default_factory=list)
    redirects: Dict[str, str] = field(default_factory=dict)
    headers: Dict[str, str] = field(default_factory=dict)
    lie_about_length: int = 0
    requests: List[Tuple[str, Optional[str]]] = field(default_factory=list)
    url: str = ""


@contextlib.contextmanager
def serve(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def end_headers(self) -> None:
            self.send_header("Connection", "close")  # or a client might use it again while it is being closed
            super().end_headers()

        def do_GET(self) -> None:
            self.close_connection = True
            site.requests.append((self.path, self.headers.get("Range")))
            if self.path in site.redirects:
                self.send_response(302)
                self.send_header("Location", site.redirects[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            status = site.statuses.pop(0) if site.statuses else 200
            body = site.files.get(self.path)
            if status != 200 or body is None:
                self.send_response(status if status != 200 else 404)
                for name, value in site.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.answer(body)

        def answer(self, body: bytes) -> None:
            wanted, start = self.headers.get("Range"), 0
            fresh = self.headers.get("If-Range") in (None, site.etag)
            if wanted and not site.ignore_range and fresh:
                start = int(wanted[len("bytes="):].rstrip("-"))
                if start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            if site.etag:
                self.send_header("ETag", site.etag)
            if site.announce:
                self.send_header("Content-Length", str(len(body) - start + site.lie_about_length))
            for name, value in site.headers.items():
                self.send_header(name, value)
            self.end_headers()
            rest = body[start:]
            if site.drop_after:
                rest = rest[:site.drop_after.pop(0)]
            with contextlib.suppress(OSError):
                self.wfile.write(rest)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
