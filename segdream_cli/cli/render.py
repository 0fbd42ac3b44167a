"""`segdream render`: films and pictures of an asset."""

import math
import re
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.output import Output
from segdream_cli.config import AUTO
from segdream_cli.errors import UsageProblem

Channel = StrEnum("Channel", ["rgb", "alpha", "depth", "normals"])
TURNTABLE, SHEET, STILL, FRAMES = "turntable", "contact sheet", "view", "frames"
UNUSED = {
    TURNTABLE: set[str](),
    FRAMES: {"fps"},
    SHEET: {"fps", "n_frames"},
    STILL: {"fps", "n_frames", "elevation"},
}
"""Parameters without a meaning for a kind of picture."""


def render(
    context: typer.Context,
    asset: Annotated[Path, typer.Argument(help="Asset to show.")],
    output: shared.OutputOption = None,
    turntable: Annotated[
        bool, typer.Option("--turntable", help="A film of one turn (.mp4, .gif, .webp); the default.")
    ] = False,
    view: Annotated[str | None, typer.Option("--view", help="A picture from AZIMUTH,ELEVATION in degrees.")] = None,
    sheet: Annotated[bool, typer.Option("--contact-sheet", help="One picture of eight sides.")] = False,
    frames: Annotated[bool, typer.Option("--frames", help="The turn as numbered PNG files; -o is a folder.")] = False,
    channel: Annotated[Channel, typer.Option("--channel", help="What to show.")] = Channel.rgb,
    size: Annotated[int, typer.Option("--size", min=16, max=4096, help="Side of the picture in pixels.")] = 512,
    n_frames: Annotated[int, typer.Option("--n-frames", min=2, max=3600, help="Pictures in a turn.")] = 120,
    fps: Annotated[float, typer.Option("--fps", min=1, max=120, help="Frames a second.")] = 30.0,
    elevation: Annotated[float, typer.Option("--elevation", min=-90, max=90, help="Degrees above the horizon.")] = 15.0,
    background: Annotated[
        str, typer.Option("--background", help="white, black, #rrggbb, or transparent for a PNG.")
    ] = "white",
    device: shared.DeviceOption = AUTO,
    force: shared.ForceOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Make a film or pictures of an asset.

    segdream render bus.ply --turntable -o turn.mp4

    segdream render bus.ply --view 45,20 -o bus.png
    """
    kinds = {TURNTABLE: turntable, STILL: view is not None, SHEET: sheet, FRAMES: frames}
    asked = [kind for kind, given in kinds.items() if given] or [TURNTABLE]
    hint = f"segdream render {quote(str(asset))} --turntable"
    if len(asked) > 1:
        raise UsageProblem(f"one of {' and '.join(asked)} at a time", hint=hint)
    kind = asked[0]
    idle = UNUSED[kind] if channel == Channel.rgb else UNUSED[kind] | {"background"}
    shared.refuse_given(context, idle, f"changes nothing in a {kind} of {channel}", hint)
    angles = parse_view(view) if view is not None else (0.0, elevation)
    color = parse_background(background)
    if color is None and kind in (TURNTABLE, SHEET):
        raise UsageProblem(f"a {kind} has no transparency", hint="--frames or --view with --background transparent")
    path = output or default_output(asset, kind)
    check_target(path, kind, force=force)
    from segdream_cli.cli.shot import Shot

    shot = Shot.load(asset, device, size, str(channel), color)
    if kind == TURNTABLE:
        shot.film(path, n_frames, fps, elevation)
    elif kind == FRAMES:
        shot.frames(path, n_frames, elevation)
    elif kind == SHEET:
        shot.sheet(path, elevation)
    else:
        shot.still(path, *angles)
    sink = Output(json=json, quiet=quiet)
    about = {"asset": str(asset), "kind": kind, "channel": str(channel), "size": size}
    if channel == Channel.depth and kind in (STILL, FRAMES):
        near, far = shot.depth_range()
        sink.note(f"grey 1 is {near:.4f} from the camera, 65535 is {far:.4f}; 0 is nothing")
        about |= {"near": near, "far": far}
    sink.result(path, **about)


def parse_view(text: str) -> tuple[float, float]:
    """Azimuth and elevation of `AZ,EL`.

    Raises:
        UsageProblem: the text is something else, or the elevation is beyond the poles.
    """
    match = re.fullmatch(r"\s*([-+]?[\d.]+)\s*,\s*([-+]?[\d.]+)\s*", text)
    try:
        azimuth, elevation = (float(part) for part in match.groups()) if match else (math.nan, math.nan)
    except ValueError:
        azimuth = elevation = math.nan
    if not (abs(azimuth) <= 1e6 and abs(elevation) <= 90):
        raise UsageProblem(f"--view {text!r} is not AZIMUTH,ELEVATION in degrees", hint="--view 45,20")
    return azimuth, elevation


def parse_background(text: str) -> tuple[float, float, float] | None:
    """A colour in 0..1, or None for a transparent background.

    Raises:
        UsageProblem: the text names no colour.
    """
    from PIL import ImageColor

    if text == "transparent":
        return None
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise UsageProblem(f"--background {text!r} is no colour", hint="--background white, or '#20c0ff'") from None
    return red / 255, green / 255, blue / 255


def default_output(asset: Path, kind: str) -> Path:
    """Where a picture goes that was given no name: beside the asset."""
    endings = {TURNTABLE: ".mp4", SHEET: "-sheet.png", STILL: "-view.png", FRAMES: "-frames"}
    return asset.with_name(asset.stem + endings[kind])


def check_target(path: Path, kind: str, *, force: bool) -> None:
    """Refuses an output that could not be written at the end.

    Raises:
        UsageProblem, OutputExists: its suffix, its folder or its being there already.
    """
    from segdream_cli.files import check_output
    from segdream_cli.video import check_suffix

    if kind == FRAMES:
        there = sorted(path.glob("frame-*.png")) if path.is_dir() else []
        check_output(there[0] if there else path / "frame" if path.is_dir() else path, force=force and bool(there))
        return
    if kind == TURNTABLE:
        check_suffix(path)
    elif path.suffix.lower() != ".png":
        raise UsageProblem(f"a {kind} is a PNG file, and {path} is not named so", hint=f"-o {path.with_suffix('.png')}")
    check_output(path, force=force)
