"""Disparity maps, and the regularisers beside the distillation loss.

Shapes: c views of h by w pixels, n Gaussians.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def disparity(
    depth: Float[Tensor, "c h w 1"], alpha: Float[Tensor, "c h w 1"], focal: Float[Tensor, " c"]
) -> Float[Tensor, "c h w 1"]:
    """Disparity scaled to 0..1 between the farthest covered pixel and the nearest (release: gaussian_renderer).

    f / (D + 10 T + 1e-5) with D the accumulated depth and T = 1 - alpha; the least value is taken where T <= 0.1,
    or anywhere if nothing is covered.

    Args:
        depth: accumulated, not divided by alpha.
        alpha: coverage in 0..1.
        focal: focal length over the image's side.
    """
    transmittance = 1 - alpha
    values = focal[:, None, None, None] / (depth + 10 * transmittance + 1e-5)
    covered = values.masked_fill(transmittance > 0.1, torch.inf).amin((1, 2, 3), keepdim=True)
    low = torch.where(covered.isinf(), values.amin((1, 2, 3), keepdim=True), covered)
    high = values.amax((1, 2, 3), keepdim=True)
    scaled: Tensor = (values - low) / (high - low).clamp_min(1e-5)
    return scaled.clamp(0, 1)


def total_variation(images: Float[Tensor, "c h w k"]) -> Float[Tensor, ""]:
    """Twice the mean squared difference of neighbouring pixels, down plus across (release)."""
    down = (images[:, 1:] - images[:, :-1]).square().mean()
    across = (images[:, :, 1:] - images[:, :, :-1]).square().mean()
    variation: Tensor = 2 * (down + across)
    return variation


def outside(means: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
    """Mean distance of the centres beyond the unit sphere."""
    beyond: Tensor = means.norm(dim=-1) - 1
    return beyond.clamp_min(0).mean()
