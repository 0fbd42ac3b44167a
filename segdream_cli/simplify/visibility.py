"""How much of each Gaussian is seen from around an asset, by the weights of renders."""

import math

import numpy as np
import torch

from segdream_cli.render.cameras import Cameras, frame_sphere
from segdream_cli.render.raster import cpu
from segdream_cli.splats import Float64s, Splats
from segdream_cli.splats.gaussians import Gaussians, bounds

VIEWS, SIZE = 8, 256
GOLDEN_DEG = 180 * (3 - math.sqrt(5))
"""Turn from one view to the next on Fibonacci's spiral."""


def around(splats: Splats, count: int, size: int) -> Cameras:
    """`count` cameras evenly over all directions, that frame the asset in images of `size` pixels."""
    center, extent = bounds(Gaussians.from_splats(splats))
    steps = torch.arange(count)
    elevation = torch.rad2deg(torch.asin(1 - (2 * steps + 1) / count))
    return frame_sphere((GOLDEN_DEG * steps) % 360, elevation, size, center=center, extent=extent)


@torch.no_grad()
def visibility(splats: Splats) -> Float64s:
    """The share [n] of each Gaussian's alpha that reaches the cameras around the asset, 0..1.

    It is the sum of its weights in the renders over that of its alpha with nothing in front of it; 0 where no camera
    sees it.
    """
    gaussians, cameras = Gaussians.from_splats(splats), around(splats, VIEWS, SIZE)
    shape = gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities
    seen, whole = cpu.weights(*shape, cameras.viewmats, cameras.Ks, SIZE, SIZE)
    return np.clip(seen / np.maximum(whole, 1e-300), 0, 1)
