"""An asset in front of a camera, and what `segdream render` makes of the pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from segdream_cli import formats
from segdream_cli.cameras import Cameras, turntable_azimuths, viewing
from segdream_cli.cli.session import choose_device
from segdream_cli.config import Config
from segdream_cli.gaussians import Gaussians, bounds
from segdream_cli.images import (
    contact_sheet,
    depth_preview,
    depth_to_uint16,
    normals_to_rgb,
    straight_alpha,
    to_uint8,
    write_png,
)
from segdream_cli.pipeline import Pipeline
from segdream_cli.raster import normals_from_depth
from segdream_cli.video import write_video

Picture = NDArray[Any]
SIDES = ("front", "front left", "left", "back left", "back", "back right", "right", "front right")


class Shot:
    """An asset, how it is framed, and what is shown of it.

    Args:
        pipeline: renders it.
        gaussians: the asset.
        size: side of a picture in pixels.
        channel: rgb, alpha, depth or normals.
        color: what is behind it, or None for transparency.
    """

    def __init__(
        self, pipeline: Pipeline, gaussians: Gaussians, size: int, channel: str, color: tuple[float, ...] | None
    ) -> None:
        self.pipeline, self.gaussians, self.size = pipeline, gaussians, size
        self.channel, self.color = channel, color
        self.center, self.extent = bounds(gaussians)

    @classmethod
    def load(cls, asset: Path, device: str, size: int, channel: str, color: tuple[float, ...] | None) -> Self:
        """Reads the asset; errors as `formats.read`."""
        splats = formats.read(asset)
        chosen = choose_device(device)
        return cls(Pipeline(Config(), None, chosen), Gaussians.from_splats(splats).to(chosen), size, channel, color)

    def depth_range(self) -> tuple[float, float]:
        """Distances that 1 and 65535 stand for in a 16-bit depth picture, the same for every view."""
        (position,) = self._cameras(torch.zeros(1), 0.0).positions
        distance = float((position - self.center).norm())
        return distance - self.extent, distance + self.extent

    def film(self, path: Path, n: int, fps: float, elevation: float) -> None:
        """Writes a turn as a film."""
        write_video(path, (to_uint8(picture) for picture in self._turn(n, elevation, precise=False)), fps)

    def frames(self, folder: Path, n: int, elevation: float) -> None:
        """Writes a turn as numbered pictures, depth in 16 bits."""
        folder.mkdir(exist_ok=True)
        for number, picture in enumerate(self._turn(n, elevation, precise=True)):
            write_png(folder / f"frame-{number:04d}.png", picture)

    def sheet(self, path: Path, elevation: float) -> None:
        """Writes eight sides as one picture."""
        pictures = list(self._turn(len(SIDES), elevation, precise=False))
        write_png(path, contact_sheet(pictures, columns=4, labels=SIDES))

    def still(self, path: Path, azimuth: float, elevation: float) -> None:
        """Writes one picture, depth in 16 bits."""
        write_png(path, self._picture(self._cameras(torch.tensor([azimuth]), elevation), precise=True))

    def _turn(self, n: int, elevation: float, *, precise: bool) -> Iterator[Picture]:
        """The pictures of a turn, one at a time."""
        for azimuth in turntable_azimuths(n):
            yield self._picture(self._cameras(azimuth[None], elevation), precise=precise)

    def _cameras(self, azimuth_deg: Float[Tensor, " c"], elevation: float) -> Cameras:
        elevations = torch.full_like(azimuth_deg, elevation)
        return viewing(azimuth_deg, elevations, self.size, center=self.center, extent=self.extent)

    def _picture(self, cameras: Cameras, *, precise: bool) -> Picture:
        """One camera's view as an array that `write_png` takes; depth in 16 bits if `precise`, else to look at."""
        rendering = self.pipeline.render(self.gaussians, cameras)
        rgb, alpha = rendering.rgb[0].cpu().numpy(), rendering.alpha[0, ..., 0].cpu().numpy()
        if self.channel == "alpha":
            return np.repeat(alpha[..., None], 3, axis=2)
        if self.channel == "normals":
            cameras = cameras.to(self.pipeline.device)
            normals = normals_from_depth(rendering.expected_depth(), cameras.viewmats, cameras.Ks)
            return normals_to_rgb(normals[0].cpu().numpy())
        if self.channel == "depth":
            depth = rendering.expected_depth()[0, ..., 0].cpu().numpy()
            return (depth_to_uint16 if precise else depth_preview)(depth, alpha, *self.depth_range())
        if self.color is None:
            return straight_alpha(rgb, alpha)
        picture: Picture = rgb + (1 - alpha[..., None]) * np.array(self.color, np.float32)
        return picture
