"""The page that shows an asset while it is made."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from segdream_cli.splats import Splats
from segdream_cli.viewer.server import PageServer


class LivePage:
    """A page that is served from the first `show` to the end of the `with` block.

    Args:
        announce: receives the page's address.
    """

    def __init__(self, announce: Callable[[str], object]) -> None:
        self._announce = announce
        self._server: PageServer | None = None
        self._latest: Callable[[], Splats] | None = None
        self._title = self._progress = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is None or self._latest is None:
            return
        if kind is None:
            self._server.publish(self._latest(), self._title, self._progress, done=True)
            self._server.wait_for_pages()
        self._server.close()

    def show(self, latest: Callable[[], Splats], title: str, progress: str = "") -> None:
        """Shows what `latest` returns, if an open page is due for an update; it is called once more at the end.

        Args:
            latest: returns the asset's current state.
            title: the page's heading.
            progress: a line below it.
        """
        self._latest, self._title, self._progress = latest, title, progress
        if self._server is None:
            self._server = PageServer(live=True)
            self._server.publish(latest(), title, progress)
            self._server.start()
            self._announce(self._server.url)
        elif self._server.needs_edition():
            self._server.publish(latest(), title, progress)
