"""Serves a page on the loopback address: a finished asset, or one that is being made."""

import json
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from segdream_cli.errors import EnvironmentProblem, SegdreamError
from segdream_cli.formats.page import document, edition, policy, row, row_policy
from segdream_cli.splats import Splats

NEWER = "/newer"
"""Path at which a page requests a newer edition than its own."""
INTERVAL_S = 1.0
"""Shortest time between two editions in seconds."""
LONGEST_WAIT_S = 20.0
"""Seconds after which `wait_for_pages` gives up."""
GONE_S = 5.0
"""Seconds without a request after which a page counts as closed; an open one sends two per second."""


@dataclass(frozen=True, slots=True)
class _Edition:
    number: int
    splats: Splats
    title: str
    progress: str
    done: bool


class PageServer:
    """Serves the latest edition to this machine only, between `start` and `close`.

    Args:
        live: whether an open page requests newer editions.

    Raises:
        EnvironmentProblem: there is no free port on the loopback address.
    """

    def __init__(self, *, live: bool = False) -> None:
        self.live = live
        self._edition: _Edition | None = None
        self._row: bytes | None = None
        self._pages: list[bytes] = []
        self._published = self._asked = -GONE_S
        self.sent = 0
        """Number of the latest edition that was sent to a page."""
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
        """Starts a thread that answers requests."""
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def close(self) -> None:
        """Stops answering."""
        self._http.shutdown()
        self._http.server_close()

    def publish(self, splats: Splats, title: str, progress: str = "", *, done: bool = False) -> None:
        """Makes a copy of `splats` the latest edition; `done` tells open pages that it is the last one."""
        number = self._edition.number + 1 if self._edition else 1
        self._edition = _Edition(number, splats.copy(), title, progress, done)
        self._published = time.monotonic()

    def publish_row(self, assets: Sequence[Splats], titles: Sequence[str]) -> None:
        """Serves pages of several assets, and one that shows them side by side; raises the errors of `document`."""
        self._pages = [document(splats, title) for splats, title in zip(assets, titles, strict=True)]
        rests = [f"/{number}#beside&rotate=0" for number in range(2, len(assets) + 1)]  # one turns all of them
        self._row = row(titles, ["/1#beside", *rests])

    def needs_edition(self) -> bool:
        """Whether a page is open and the latest edition is old enough."""
        return time.monotonic() - self._published >= INTERVAL_S and self._has_page()

    def wait_for_pages(self) -> None:
        """Waits until an open page has the latest edition or none is open, at most `LONGEST_WAIT_S`."""
        end = time.monotonic() + LONGEST_WAIT_S
        while self._edition is not None and self.sent < self._edition.number and self._has_page():
            if time.monotonic() > end:
                return
            time.sleep(0.05)

    def _has_page(self) -> bool:
        return time.monotonic() - self._asked < GONE_S

    def page(self) -> bytes | None:
        """The page, or None before the first edition."""
        if self._row is not None:
            return self._row
        latest = self._edition
        if latest is None:
            return None
        return document(latest.splats, latest.title, newer=NEWER if self.live else "", progress=latest.progress)

    def policy(self, path: str) -> str:
        """The Content-Security-Policy of the page at a path; only the page of several may frame others."""
        if self._row is None:
            return policy(live=self.live) + "; frame-ancestors 'none'"
        if path == "/":
            return row_policy(len(self._pages)) + "; frame-ancestors 'none'"
        return policy() + "; frame-ancestors 'self'"

    def page_in_row(self, path: str) -> bytes | None:
        """The page of one of several assets at a path, "/1" for the first; None if there is none."""
        number = int(path[1:]) if re.fullmatch("/[1-9][0-9]{0,3}", path) else 0
        return self._pages[number - 1] if 1 <= number <= len(self._pages) else None

    def newer(self, number: int) -> tuple[int, bytes] | None:
        """Number and JSON of the latest edition, or None if a page has it.

        A page whose `number` is larger has that of another server, and gets the latest.
        """
        self._asked = time.monotonic()
        latest = self._edition
        if latest is None or latest.number == number:
            return None
        facts: dict[str, Any] = {"number": latest.number, "done": latest.done}
        return latest.number, json.dumps(facts | dict(edition(latest.splats, latest.title, latest.progress))).encode()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    pages: PageServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores errors: a page that is closed while it loads is not one."""


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    server_version, sys_version = "segdream", ""

    def do_GET(self) -> None:
        """Sends the page, or a newer edition."""
        if not self._is_own():
            return self._answer(HTTPStatus.FORBIDDEN)
        address = urlsplit(self.path)
        try:
            if address.path == "/":
                page = self.server.pages.page()
                return self._answer(HTTPStatus.OK if page else HTTPStatus.SERVICE_UNAVAILABLE, page, "text/html")
            if page := self.server.pages.page_in_row(address.path):
                return self._answer(HTTPStatus.OK, page, "text/html")
            if address.path == NEWER and self.server.pages.live:
                return self._answer_newer(parse_qs(address.query).get("after", ["0"])[0])
        except SegdreamError:  # this edition can't be shown; the next one may
            return self._answer(HTTPStatus.SERVICE_UNAVAILABLE)
        return self._answer(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET

    def _is_own(self) -> bool:
        """Whether a request comes from the address bar or from this server's page, not from another site."""
        hosts = [f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")]
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")
        return (
            self.headers.get("Host", "") in hosts
            and (origin is None or origin in [f"http://{host}" for host in hosts])
            and site in (None, "same-origin", "none")
        )

    def _answer_newer(self, after: str) -> None:
        found = self.server.pages.newer(int(after) if re.fullmatch("[0-9]{1,9}", after) else 0)
        if found is None:
            return self._answer(HTTPStatus.NO_CONTENT)
        number, content = found
        self._answer(HTTPStatus.OK, content, "application/json")
        self.server.pages.sent = number

    def _answer(self, status: HTTPStatus, content: bytes | None = None, kind: str = "text/plain") -> None:
        self.send_response(status)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Content-Security-Policy", self.server.pages.policy(urlsplit(self.path).path))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content or b"")

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""
