"""Reading assets for a command: the options of how, and the notes of the readers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdream_cli.cli.output import Output

if TYPE_CHECKING:
    from segdream_cli.splats import Splats

READING = "Reading"

StrictOption = Annotated[
    bool,
    typer.Option("--strict", help="Refuse assets with non-finite rows.", rich_help_panel=READING),
]
AsSplatsOption = Annotated[
    bool,
    typer.Option("--as-splats", help="Read a plain point cloud as small Gaussians.", rich_help_panel=READING),
]


def read_assets(paths: Sequence[Path], sink: Output, *, strict: bool, as_splats: bool) -> "list[Splats]":
    """The assets in `paths`; notes go to `sink`.

    Raises:
        SegdreamError: see `formats.read`.
    """
    from segdream_cli import formats
    from segdream_cli.formats.common import Reading

    reading = Reading(strict=strict, as_splats=as_splats, note=sink.note)
    if as_splats and "points" not in map(formats.kind_of, paths):
        sink.note("--as-splats has no effect: no asset is a plain point cloud")
    return [formats.read(path, reading) for path in paths]
