"""Reading assets for a command: the options of how, and the notes of the readers."""

import math
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from segdream_cli.cli.output import Output
from segdream_cli.errors import UsageProblem

if TYPE_CHECKING:
    from segdream_cli.formats.common import Reading
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
FrameOption = Annotated[
    str | None,
    typer.Option(
        "--frame",
        help="Where the axes of the file point, such as rdf: right, down, forward.",
        show_default="as the file or its format says",
        rich_help_panel=READING,
    ),
]


def read_assets(
    paths: Sequence[Path], sink: Output, *, frame: str | None, strict: bool, as_splats: bool
) -> "list[Splats]":
    """The assets in `paths`, read as `choose_reading` says.

    Raises:
        SegdreamError: see `formats.read`.
    """
    from segdream_cli import formats

    reading = choose_reading(paths, sink, frame=frame, strict=strict, as_splats=as_splats)
    return [formats.read(path, reading) for path in paths]


def check_assets(paths: Sequence[Path]) -> None:
    """Refuses paths without an asset, before they are read.

    Raises:
        UsageProblem: see `formats.kind_of`.
    """
    from segdream_cli import formats

    for path in paths:
        formats.kind_of(path)


def choose_reading(
    paths: Sequence[Path], sink: Output, *, frame: str | None, strict: bool, as_splats: bool
) -> "Reading":
    """How to read `paths`, whose axes are those of `frame`; notes go to `sink`.

    Raises:
        UsageProblem: there is no such frame, or a path can't be opened or is no asset.
    """
    from segdream_cli import formats
    from segdream_cli.formats.common import Reading

    if as_splats and "points" not in map(formats.kind_of, paths):
        sink.note("--as-splats has no effect: no asset is a plain point cloud")
    return Reading(strict=strict, as_splats=as_splats, frame=parse_frame(frame), note=sink.note)


def parse_frame(text: str | None, option: str = "--frame") -> str | None:
    """The name of a frame in lower case.

    Raises:
        UsageProblem: there is no such frame.
    """
    from segdream_cli.splats.frames import check_frame

    return None if text is None else check_frame(text, option)


def parse_up(text: str) -> str:
    """The axis that points up, without its plus sign.

    Raises:
        UsageProblem: it is no axis.
    """
    from segdream_cli.splats.frames import UPRIGHT

    axis = text.lower().removeprefix("+")
    if axis not in UPRIGHT:
        raise UsageProblem(f"--up {quote(text)} is not one of {', '.join(UPRIGHT)}", hint="--up z")
    return axis


def parse_front(text: str, up: str = "y") -> float:
    """The azimuth in degrees of a front, given as an axis or as a number, once the axis `up` is +y.

    Raises:
        UsageProblem: it is neither, or points up or down.
    """
    from segdream_cli.splats.frames import AXES, azimuth_of

    across = [axis for axis in AXES if axis[-1] != up[-1]]
    axis = text.lower().removeprefix("+")
    if axis in across:
        return azimuth_of(axis, up)
    try:
        azimuth = float(text)
    except ValueError:
        azimuth = math.nan
    if not abs(azimuth) <= 360:
        raise UsageProblem(
            f"--front {quote(text)} is not {', '.join(across)} or an azimuth in degrees", hint=f"--front {across[0]}"
        )
    return azimuth
