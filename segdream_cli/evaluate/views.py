"""The views of the evaluation protocol, rendered a few at a time.

The paper averages over 120 views per asset. Its release tests with these cameras: 120 azimuths 3 degrees apart from the
front on, elevation 0 (and 30), a distance of 3.5, a field of view of 0.55 rad, 512 px, white. A sphere of radius 0.95
about the origin then fills the image.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from segdream_cli.evaluate.metrics import Views
from segdream_cli.render.cameras import Cameras, orbit, turntable_azimuths
from segdream_cli.render.view import render
from segdream_cli.splats.gaussians import Gaussians
from segdream_cli.util.memory import out_of_memory

RADIUS, FOV_RAD = 3.5, 0.55
N_VIEWS, SIZE = 120, 512
VIEWS_AT_ONCE = 8
"""Views that are rendered together; it bounds the memory, whatever their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewProtocol:
    """The cameras of an evaluation: `n` azimuths at each elevation.

    Args:
        n: number of azimuths, evenly spaced from the front on.
        elevations_deg: elevations in turn, each with all azimuths.
        size: side of the image in pixels.
    """

    n: int = N_VIEWS
    elevations_deg: tuple[float, ...] = (0.0,)
    size: int = SIZE

    def cameras(self) -> Cameras:
        """All cameras, elevation by elevation."""
        azimuths = turntable_azimuths(self.n).repeat(len(self.elevations_deg))
        elevations = torch.tensor(self.elevations_deg).repeat_interleave(self.n)
        c = len(azimuths)
        return orbit(azimuths, elevations, torch.full((c,), RADIUS), torch.full((c,), FOV_RAD), self.size)

    def sides(self, count: int) -> "ViewProtocol":
        """`count` azimuths of the first elevation, for pictures of the asset."""
        return ViewProtocol(n=count, elevations_deg=self.elevations_deg[:1], size=self.size)

    def render(self, gaussians: Gaussians) -> Iterator[Views]:
        """The views of an asset, at most `VIEWS_AT_ONCE` at a time.

        Raises:
            OutOfMemory: the device does not have enough memory for them.
        """
        cameras = self.cameras()
        for start in range(0, len(cameras), VIEWS_AT_ONCE):
            part = cameras.slice(start, start + VIEWS_AT_ONCE).to(gaussians.device)
            doing = f"{len(part)} views of {self.size}x{self.size} pixels"
            with torch.no_grad(), out_of_memory(gaussians.device, doing, f"--size {self.size // 2}"):
                images = render(gaussians, part).over(torch.ones(3, device=gaussians.device))
            pixels = (images.clamp(0, 1) * 255 + 0.5).floor().to(torch.uint8).cpu()
            yield Views(
                images=pixels.permute(0, 3, 1, 2), azimuth_deg=part.azimuth_deg, elevation_deg=part.elevation_deg
            )
