"""`segdream view`: assets in the browser."""

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
from segdream_cli.errors import UsageProblem

MOST_ASSETS = 12
"""Each needs a WebGL context, of which browsers allow 16."""


def view(
    assets: Annotated[list[Path], typer.Argument(metavar="ASSET", help="Asset to show; several appear side by side.")],
    frame: FrameOption = None,
    strict: StrictOption = False,
    as_splats: AsSplatsOption = False,
    no_browser: shared.NoBrowserOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Show assets in the browser until Ctrl-C.

    segdream view bus.ply

    segdream view bus.ply car.spz
    """
    from segdream_cli.formats.page import document, title_of
    from segdream_cli.viewer.server import PageServer

    sink = Output(json=json, quiet=quiet)
    if len(assets) > MOST_ASSETS:
        raise UsageProblem(
            f"{len(assets)} assets are too many: a browser shows {MOST_ASSETS} at once",
            without=[str(asset) for asset in assets[MOST_ASSETS:]],
        )
    splats = read_assets(assets, sink, frame=frame, strict=strict, as_splats=as_splats)
    titles = [title_of(each, asset.stem) for each, asset in zip(splats, assets, strict=True)]
    server = PageServer()
    if len(assets) == 1:
        document(splats[0], titles[0])  # an asset that can't be shown is refused here, not in the browser
        server.publish(splats[0], titles[0])
    else:
        names = titles if len(set(titles)) == len(titles) else [str(asset) for asset in assets]
        server.publish_row(splats, names)
    with StopOnSignal() as stop:
        server.start()
        gaussians = sum(len(each) for each in splats)
        sink.result(Ready(url=server.url, asset=assets[0], assets=assets, gaussians=gaussians), server.url)
        if not no_browser:
            open_browser(server.url)
        sink.note("press Ctrl-C to end")
        while not stop.is_set():
            time.sleep(0.1)
        server.close()
    raise typer.Exit(stop.exit_code)
