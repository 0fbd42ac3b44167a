"""Disparity maps, and the regularizers beside the distillation loss.

Shapes: c views of h by w pixels, n Gaussians; a assets.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli.config import LossConfig


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


def outside(means: Float[Tensor, "*a n 3"]) -> Float[Tensor, "*a n"]:
    """Distance of each centre beyond the unit sphere, 0 within."""
    beyond: Tensor = means.norm(dim=-1) - 1
    return beyond.clamp_min(0)


def regularizers(
    weights: LossConfig,
    opacity_ramp: float,
    rgb: Float[Tensor, "b h w 3"],
    disparities: Float[Tensor, "b h w 1"] | None,
    means: Float[Tensor, "a n 3"],
    scales: Float[Tensor, "a n 3"],
    opacities: Float[Tensor, "a n"],
    counts: Int[Tensor, " a"],
) -> Float[Tensor, ""]:
    """The weighted terms, summed over the assets: each is a mean over an asset's own views or Gaussians.

    Args:
        weights: weights of the terms; a term of weight 0 is not computed.
        opacity_ramp: factor in 0..1 on the weight of the opacities.
        rgb: images, the same number of each asset.
        disparities: their disparity maps; None if that term is off.
        means: centres; beyond an asset's count they lie within the unit sphere.
        scales: standard deviations, 0 beyond the count.
        opacities: in 0..1, 0 beyond the count.
        counts: number of Gaussians of each asset, without padding.
    """
    total = means.new_zeros(())
    if weights.tv_rgb:
        total = total + len(counts) * weights.tv_rgb * total_variation(rgb)
    if weights.tv_disparity and disparities is not None:
        total = total + len(counts) * weights.tv_disparity * total_variation(disparities)
    if weights.scale:
        total = total + weights.scale * (scales.sum((1, 2)) / (3 * counts)).sum()
    if weights.opacity:
        total = total + weights.opacity * opacity_ramp * (opacities.sum(1) / counts).sum()
    if weights.outside:
        total = total + weights.outside * (outside(means).sum(1) / counts).sum()
    return total
