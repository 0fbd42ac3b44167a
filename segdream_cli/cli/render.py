"""`segdream render`: films and pictures of an asset."""

import math
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.output import Output
from segdream_cli.config import AUTO
from segdream_cli.errors import UsageProblem

if TYPE_CHECKING:
    from segdream_cli.cameras import Cameras
    from segdream_cli.gaussians import Gaussians
    from segdream_cli.pipeline import Pipeline

Channel = StrEnum("Channel", ["rgb", "alpha", "depth", "normals"])
TURNTABLE, SHEET, STILL, FRAMES = "turntable", "contact sheet", "view", "frames"


def render(
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
    if len(asked) > 1:
        raise UsageProblem(f"one of {' and '.join(asked)} at a time", hint=f"segdream render {asset} --turntable")
    kind = asked[0]
    angles = parse_view(view) if view is not None else (0.0, elevation)
    color = parse_background(background)
    if color is None and kind in (TURNTABLE, SHEET):
        raise UsageProblem(f"a {kind} has no transparency", hint="--frames or --view with --background transparent")
    path = output or default_output(asset, kind)
    check_target(path, kind, force=force)
    shot = _Shot.load(asset, device, size, channel, color)
    if kind == TURNTABLE:
        shot.film(path, n_frames, fps, elevation)
    elif kind == FRAMES:
        shot.frames(path, n_frames, elevation)
    elif kind == SHEET:
        shot.sheet(path, elevation)
    else:
        shot.still(path, *angles)
    Output(json=json, quiet=quiet).result(path, asset=str(asset), kind=kind, size=size)


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
        check_output(path / "frame", force=True) if path.is_dir() else check_output(path, force=False)
        if path.is_dir() and any(path.glob("frame-*.png")) and not force:
            check_output(next(path.glob("frame-*.png")), force=False)
        return
    if kind == TURNTABLE:
        check_suffix(path)
    elif path.suffix.lower() != ".png":
        raise UsageProblem(f"a {kind} is a PNG file, and {path} is not named so", hint=f"-o {path.with_suffix('.png')}")
    check_output(path, force=force)


class _Shot:
    """An asset in front of a camera, and what is done with the pictures."""

    def __init__(
        self, pipeline: "Pipeline", gaussians: "Gaussians", size: int, channel: str, color: tuple[float, ...] | None
    ) -> None:
        from segdream_cli.gaussians import bounds

        self.pipeline, self.gaussians, self.size = pipeline, gaussians, size
        self.channel, self.color = channel, color
        self.center, self.extent = bounds(gaussians)

    @classmethod
    def load(cls, asset: Path, device: str, size: int, channel: str, color: tuple[float, ...] | None) -> "_Shot":
        """Reads the asset; errors as `formats.read`."""
        from segdream_cli import formats
        from segdream_cli.cli.session import choose_device
        from segdream_cli.config import Config
        from segdream_cli.gaussians import Gaussians
        from segdream_cli.pipeline import Pipeline

        splats = formats.read(asset)
        chosen = choose_device(device)
        return cls(Pipeline(Config(), None, chosen), Gaussians.from_splats(splats).to(chosen), size, channel, color)

    def film(self, path: Path, n: int, fps: float, elevation: float) -> None:
        """Writes a turn as a film."""
        from segdream_cli.images import to_uint8
        from segdream_cli.video import write_video

        write_video(path, (to_uint8(picture) for picture in self._turn(n, elevation)), fps)

    def frames(self, folder: Path, n: int, elevation: float) -> None:
        """Writes a turn as numbered pictures."""
        from segdream_cli.images import write_png

        folder.mkdir(exist_ok=True)
        for number, picture in enumerate(self._turn(n, elevation)):
            write_png(folder / f"frame-{number:04d}.png", picture)

    def sheet(self, path: Path, elevation: float) -> None:
        """Writes eight sides as one picture."""
        from segdream_cli.images import contact_sheet, write_png

        names = ["front", "front left", "left", "back left", "back", "back right", "right", "front right"]
        write_png(path, contact_sheet(list(self._turn(8, elevation)), columns=4, labels=names))

    def still(self, path: Path, azimuth: float, elevation: float) -> None:
        """Writes one picture."""
        import torch

        from segdream_cli.images import write_png

        write_png(path, self._picture(self._cameras(torch.tensor([azimuth]), elevation)))

    def _turn(self, n: int, elevation: float) -> Iterator[Any]:
        """The pictures of a turn, one at a time."""
        from segdream_cli.cameras import turntable_azimuths

        for azimuth in turntable_azimuths(n):
            yield self._picture(self._cameras(azimuth[None], elevation))

    def _cameras(self, azimuth_deg: Any, elevation: float) -> "Cameras":
        import torch

        from segdream_cli.cameras import viewing

        return viewing(
            azimuth_deg, torch.full_like(azimuth_deg, elevation), self.size, center=self.center, extent=self.extent
        )

    def _picture(self, cameras: "Cameras") -> Any:
        """One camera's view as an array of floats or 16-bit depths."""
        import torch

        from segdream_cli.images import depth_preview, normals_to_rgb, straight_alpha
        from segdream_cli.raster import normals_from_depth

        rendering = self.pipeline.render(self.gaussians, cameras)
        alpha = rendering.alpha[0, ..., 0].cpu().numpy()
        if self.channel == "alpha":
            return alpha[..., None].repeat(3, axis=2)
        if self.channel == "normals":
            cameras = cameras.to(self.pipeline.device)
            normals = normals_from_depth(rendering.expected_depth(), cameras.viewmats, cameras.Ks)
            return normals_to_rgb(normals[0].cpu().numpy())
        if self.channel == "depth":
            distance = float((cameras.positions[0].cpu() - self.center).norm())
            depth = rendering.expected_depth()[0, ..., 0].cpu().numpy()
            picture = depth_preview(depth, alpha, distance - self.extent, distance + self.extent)
            return picture if picture.ndim == 3 else picture[..., None].repeat(3, axis=2)
        if self.color is None:
            return straight_alpha(rendering.rgb[0].cpu().numpy(), alpha)
        return rendering.over(torch.tensor(self.color, device=self.pipeline.device))[0].cpu().numpy()
