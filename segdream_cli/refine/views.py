"""The views of a round of refinement: cameras all around the object, and a colour behind each."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli.config import RefineConfig
from segdream_cli.render.cameras import Cameras, frame_sphere

GOLDEN_ANGLE_DEG = 137.508
"""Its successive multiples, however many, spread well over a circle."""


def round_cameras(config: RefineConfig, index: int, views: Int[Tensor, " v"], size: int) -> Cameras:
    """Cameras of some views of a round, on the CPU; numbers continue from round to round, so that no view repeats.

    Args:
        config: the elevations, and the number of views of the rounds before.
        index: of the round.
        views: indices of the views in the round.
        size: side of the image in pixels.
    """
    number = views + sum(config.views[:index])
    elevations = torch.tensor(config.elevations_deg)
    return frame_sphere((number * GOLDEN_ANGLE_DEG).remainder(360), elevations[number % len(elevations)], size)


def draw_backgrounds(config: RefineConfig, count: int, generator: torch.Generator) -> Float[Tensor, "v 3"]:
    """A uniform random colour for each of `count` views."""
    low, high = config.background
    return low + (high - low) * torch.rand(count, 3, generator=generator)
