"""A real HTTP server of a few files, which can misbehave on request."""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer(ThreadingHTTPServer):
    """Serves `files` with strong ETags and byte ranges (RFC 9110), from a thread of its own.

    The first entries of `script` answer the first requests in place of that: each is called with the request's
    handler.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.script: list[Callable[[Any], None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges(self) -> list[str | None]:
        """The Range header of each request so far."""
        return [asked for _, asked in self.requests]


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        if self.server.script:
            self.server.script.pop(0)(self)
        else:
            self.send_file()

    def send_file(
        self,
        *,
        body: int | None = None,
        pause: float = 0,
        length: bool = True,
        etag: str | None = "strong",
        ranges: bool = True,
        if_range: bool = True,
    ) -> None:
        """Answers with the requested file or range.

        Args:
            body: bytes to send before the connection is closed; all of them if not given.
            pause: seconds before the connection is closed.
            length: whether Content-Length is stated.
            etag: strong, weak or none.
            ranges: whether Range is understood.
            if_range: whether If-Range is understood.
        """
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_page(404, "<html><h1>Not Found</h1></html>")
        mark = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if ranges else None
        if start and if_range and self.headers.get("If-Range") not in (None, mark):
            start = None
        first = int(start[1]) if start else 0
        if start and first >= len(content):
            return self.send_page(416, "")
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if length:
            self.send_header("Content-Length", str(len(content) - first))
        if etag is not None:
            self.send_header("ETag", mark if etag == "strong" else f"W/{mark}")
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        try:
            self.wfile.write(content[first:] if body is None else content[first : first + body])
            self.wfile.flush()
        except OSError:  # the client has hung up
            return None
        time.sleep(pause)
        return None

    def send_page(self, status: int, page: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def running() -> Iterator[FileServer]:
    """A server while the block runs."""
    server = FileServer()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
