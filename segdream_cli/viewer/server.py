"""One page on the loopback address: an asset to look at, or one that is still being made."""

import json
import re
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from segdream_cli.errors import EnvironmentProblem, SegdreamError
from segdream_cli.formats.page import document, edition
from segdream_cli.splats import Splats

NEWER = "/newer"
"""Where a page asks for what comes after the edition that it has."""
INTERVAL_S = 1.0
"""Between two editions."""
GONE_S = 5.0
"""A page that has not asked for so long is taken as closed; an open one asks twice a second."""


@dataclass(frozen=True, slots=True)
class _Edition:
    number: int
    splats: Splats
    title: str
    done: bool


class PageServer:
    """Serves the page of the edition that was published last, to this machine only, between `start` and `close`.

    Args:
        live: whether an open page asks for newer editions.

    Raises:
        EnvironmentProblem: there is no free port on the loopback address.
    """

    def __init__(self, *, live: bool = False) -> None:
        self.live = live
        self._edition: _Edition | None = None
        self._published = self._asked = -GONE_S
        self.taken = 0
        """Number of the latest edition that a page has got."""
        try:
            self._http = _Http(("127.0.0.1", 0), _Handler)
        except OSError as problem:
            raise EnvironmentProblem(
                f"no page can be served on 127.0.0.1: {problem.strerror or problem}",
                hint="segdream export bus.ply -o bus.html  # a page that needs no server",
            ) from problem
        self._http.pages = self
        self.url = f"http://127.0.0.1:{self._http.server_port}/"

    def start(self) -> None:
        """Answers from now on, in a thread of its own."""
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def close(self) -> None:
        """Ends what `start` began."""
        self._http.shutdown()
        self._http.server_close()

    def publish(self, splats: Splats, title: str, *, done: bool = False) -> None:
        """Makes a copy of `splats` the present edition; `done` tells open pages that it is the last."""
        number = self._edition.number + 1 if self._edition else 1
        self._edition = _Edition(number, splats.copy(), title, done)
        self._published = time.monotonic()

    def wanted(self) -> bool:
        """Whether a page is open and has waited long enough for a newer edition."""
        return time.monotonic() - self._published >= INTERVAL_S and self._watched()

    def wait_until_taken(self) -> None:
        """Returns once an open page has the present edition, or none is open."""
        while self._edition is not None and self.taken < self._edition.number and self._watched():
            time.sleep(0.05)

    def _watched(self) -> bool:
        return time.monotonic() - self._asked < GONE_S

    def page(self) -> bytes | None:
        """The page, or None before the first edition."""
        latest = self._edition
        if latest is None:
            return None
        return document(latest.splats, latest.title, newer=NEWER if self.live else "")

    def newer(self, number: int) -> tuple[int, bytes] | None:
        """The present edition's number and its JSON, or None if it is not newer than `number`."""
        self._asked = time.monotonic()
        latest = self._edition
        if latest is None or latest.number <= number:
            return None
        facts: dict[str, Any] = {"number": latest.number, "done": latest.done}
        return latest.number, json.dumps(facts | dict(edition(latest.splats, latest.title))).encode()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    pages: PageServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: a page that is closed while it loads is no error of the command's."""


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    server_version, sys_version = "segdream", ""

    def do_GET(self) -> None:
        """Answers the page, or what is newer."""
        host, port = self.headers.get("Host", ""), self.server.server_port
        if host not in (f"127.0.0.1:{port}", f"localhost:{port}"):  # another site's name for this machine
            return self._answer(HTTPStatus.FORBIDDEN)
        address = urlsplit(self.path)
        try:
            if address.path == "/":
                page = self.server.pages.page()
                return self._answer(HTTPStatus.OK if page else HTTPStatus.SERVICE_UNAVAILABLE, page, "text/html")
            if address.path == NEWER and self.server.pages.live:
                return self._answer_newer(parse_qs(address.query).get("after", ["0"])[0])
        except SegdreamError:  # an edition that can't be shown; the next may be better
            return self._answer(HTTPStatus.SERVICE_UNAVAILABLE)
        return self._answer(HTTPStatus.NOT_FOUND)

    def _answer_newer(self, after: str) -> None:
        found = self.server.pages.newer(int(after) if re.fullmatch("[0-9]{1,9}", after) else 0)
        if found is None:
            return self._answer(HTTPStatus.NO_CONTENT)
        number, content = found
        self._answer(HTTPStatus.OK, content, "application/json")
        self.server.pages.taken = number

    def _answer(self, status: HTTPStatus, content: bytes | None = None, kind: str = "text/plain") -> None:
        self.send_response(status)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""
