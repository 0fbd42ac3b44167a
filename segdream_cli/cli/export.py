"""`segdream export`: an asset in another format."""

from pathlib import Path
from typing import Annotated

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.output import Output
from segdream_cli.errors import UsageProblem


def export(
    asset: Annotated[Path | None, typer.Argument(help="Asset to convert.")] = None,
    outputs: Annotated[
        list[Path] | None,
        typer.Option("-o", "--output", help="File to write; repeatable.", rich_help_panel=shared.OUTPUT),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="Format where the suffix leaves a choice.", rich_help_panel=shared.OUTPUT),
    ] = None,
    formats: Annotated[bool, typer.Option("--formats", help="Show the known formats and exit.")] = False,
    force: shared.ForceOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Convert an asset.

    segdream export bus.ply -o bus.splat

    segdream export bus.ply --format points -o cloud.ply
    """
    from segdream_cli.files import check_output
    from segdream_cli.formats import FORMATS, check_format, read, write

    sink = Output(json=json, quiet=quiet)
    if formats:
        for name, row in FORMATS.items():
            sink.result(f"{name:12} {row.suffix:8} {row.description}")
        return
    if asset is None or not outputs:
        raise UsageProblem("give an ASSET and at least one -o", hint="segdream export bus.ply -o bus.splat")
    for path in outputs:
        check_format(path, format)
        check_output(path, force=force)
    splats = read(asset)
    for path in outputs:
        write(path, splats, format)
        sink.result(path, asset=str(asset), gaussians=len(splats), bytes=path.stat().st_size)
