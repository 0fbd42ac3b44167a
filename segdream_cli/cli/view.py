"""`segdream view`: an asset in the browser; and the page on which `generate --view` shows one that is being made."""

import os
import sys
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.output import Output
from segdream_cli.runs.stopping import StopRequest

if TYPE_CHECKING:
    from segdream_cli.splats import Splats
    from segdream_cli.viewer.server import PageServer


def view(
    asset: Annotated[Path, typer.Argument(help="Asset to show.")],
    no_browser: shared.NoBrowserOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Show an asset in the browser until Ctrl-C.

    segdream view bus.ply
    """
    from segdream_cli.formats import read
    from segdream_cli.formats.page import document, title_of
    from segdream_cli.viewer.server import PageServer

    sink = Output(json=json, quiet=quiet)
    splats = read(asset)
    title = title_of(splats, asset.stem)
    document(splats, title)  # an asset that can't be shown is refused here, not in the browser
    server = PageServer()
    server.publish(splats, title)
    with StopRequest() as stop:
        server.start()
        sink.result(server.url, asset=str(asset), gaussians=len(splats))
        if not no_browser:
            open_browser(server.url)
        sink.note("press Ctrl-C to end")
        while stop.received is None:
            time.sleep(0.1)
        server.close()
    raise typer.Exit(stop.exit_code)


class Watch:
    """The page that shows what `generate` is making: it is served from the first `show` to the end of the block.

    Args:
        sink: is told its address.
        no_browser: leave it to the user to open it.
    """

    def __init__(self, sink: Output, *, no_browser: bool) -> None:
        self._sink, self._no_browser = sink, no_browser
        self._server: PageServer | None = None
        self._latest: Callable[[], Splats] | None = None
        self._title = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is None or self._latest is None:
            return
        if kind is None:
            self._server.publish(self._latest(), self._title, done=True)
            self._server.wait_until_taken()
        self._server.close()

    def show(self, latest: "Callable[[], Splats]", title: str) -> None:
        """Shows what `latest` returns now, if a page is open and due for it; it is called once more at the end."""
        self._latest, self._title = latest, title
        if self._server is None:
            from segdream_cli.viewer.server import PageServer

            self._server = PageServer(live=True)
            self._server.publish(latest(), title)
            self._server.start()
            self._sink.note(f"watch it grow: {self._server.url}")
            if not self._no_browser:
                open_browser(self._server.url)
        elif self._server.wanted():
            self._server.publish(latest(), title)


def open_browser(url: str) -> None:
    """Opens a window on the desktop, if there is one: a browser in the terminal would take it over."""
    desktop = {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"} & set(os.environ)
    if desktop or not sys.platform.startswith("linux"):
        webbrowser.open(url)
