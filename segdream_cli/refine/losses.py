"""The difference between renders and repainted views.

Shapes: b images of h by w pixels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from segdream_cli.config import RefineConfig
from segdream_cli.refine.blur import blur

WINDOW, DEVIATION = 11, 1.5
"""Side and standard deviation in pixels of the window of SSIM."""
STRIDE = 2
"""Pixels between windows of SSIM: they overlap so much that every second row and column has nearly the same mean."""
CELLS = 32
"""Squares along the side of a coarse view."""
C1, C2 = 0.01**2, 0.03**2
"""Constants that keep the quotients of SSIM finite, for values in 0..1."""


def fit_loss(
    config: RefineConfig,
    renders: Float[Tensor, "b 3 h w"],
    alpha: Float[Tensor, "b 1 h w"],
    targets: Float[Tensor, "b 3 h w"],
    anchors: Float[Tensor, "b 3 g g"] | None = None,
) -> Float[Tensor, ""]:
    """λ_1 |x - y| + λ_s (1 - SSIM(x, y)) + λ_o α (1 - α) + λ_a |c(x) - a|, each a mean.

    The first two are the loss of 3DGS, with SSIM at every second pixel; c is `coarse`.

    Args:
        config: the weights; a term of weight 0 is not computed.
        renders: x, over the backgrounds of the targets.
        alpha: α, their opacity.
        targets: y, the repainted views.
        anchors: a, the coarse views of the asset that was given; None without one.
    """
    total = config.l1 * (renders - targets).abs().mean()
    if config.ssim:
        total = total + config.ssim * (1 - ssim(renders, targets).mean())
    if config.opacity:
        total = total + config.opacity * (alpha * (1 - alpha)).mean()
    if config.anchor and anchors is not None:
        total = total + config.anchor * (coarse(renders) - anchors).abs().mean()
    return total


def coarse(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 g g"]:
    """Means over squares of 1/32 of the side: shape and colours without the noise of details."""
    means: Tensor = F.avg_pool2d(images, max(1, images.shape[-1] // CELLS))
    return means


def ssim(x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Structural similarity (Wang et al., 2004) of each pair of images in 0..1, with an 11 by 11 Gaussian window.

    (2 μ_x μ_y + C1) (2 σ_xy + C2) / ((μ_x² + μ_y² + C1) (σ_x² + σ_y² + C2)), averaged over the channels and over
    every second window, in rows and columns, of those that lie within the image (ours; the authors take all). The
    moments under the window are those of its weights, without correction.
    """
    moments = blur(torch.cat([x, x * x + y * y, x * y], 1), WINDOW, DEVIATION, STRIDE)
    mean_x, mean_squares, mean_xy = moments.chunk(3, 1)
    mean_y = blur(y, WINDOW, DEVIATION, STRIDE)  # apart from the others, as it needs no gradient
    product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    variances, covariance = mean_squares - squares, mean_xy - product
    similarity: Tensor = (2 * product + C1) * (2 * covariance + C2) / ((squares + C1) * (variances + C2))
    return similarity.mean((1, 2, 3))
