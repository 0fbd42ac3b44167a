"""`segdream view`: an asset in the browser."""

import time
from pathlib import Path
from typing import Annotated

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.output import Output
from segdream_cli.cli.reading import AsSplatsOption, FrameOption, StrictOption, read_assets
from segdream_cli.cli.reporter import open_browser
from segdream_cli.cli.schema import Ready
from segdream_cli.cli.signals import StopOnSignal


def view(
    asset: Annotated[Path, typer.Argument(help="Asset to show.")],
    frame: FrameOption = None,
    strict: StrictOption = False,
    as_splats: AsSplatsOption = False,
    no_browser: shared.NoBrowserOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Show an asset in the browser until Ctrl-C.

    segdream view bus.ply
    """
    from segdream_cli.formats.page import document, title_of
    from segdream_cli.viewer.server import PageServer

    sink = Output(json=json, quiet=quiet)
    (splats,) = read_assets([asset], sink, frame=frame, strict=strict, as_splats=as_splats)
    title = title_of(splats, asset.stem)
    document(splats, title)  # an asset that can't be shown is refused here, not in the browser
    server = PageServer()
    server.publish(splats, title)
    with StopOnSignal() as stop:
        server.start()
        sink.result(Ready(url=server.url, asset=asset, gaussians=len(splats)), server.url)
        if not no_browser:
            open_browser(server.url)
        sink.note("press Ctrl-C to end")
        while not stop.is_set():
            time.sleep(0.1)
        server.close()
    raise typer.Exit(stop.exit_code)
