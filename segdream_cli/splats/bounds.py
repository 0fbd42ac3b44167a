"""The sphere that a view of an asset frames: it holds the asset but for stray Gaussians.

A Gaussian is visible if its opacity is above 0.1; if none is, all count. The centre is the middle of the box between
the quantiles 0.005 and 0.995 of the visible centres. The radius is the quantile 0.995 of the distance from there that
visible Gaussians reach with two standard deviations.
"""

import numpy as np

from segdream_cli.splats import Float32s, Splats

VISIBLE_OPACITY = 0.1
DEVIATIONS = 2
"""Standard deviations to which a Gaussian counts."""
TAIL = 0.005
"""Share of the Gaussians that may lie beyond each bound."""
LEAST_RADIUS = 1e-3


def bounds(splats: Splats) -> tuple[Float32s, float]:
    """Centre [3] and radius of the sphere, without torch; `gaussians.bounds` computes it on tensors."""
    visible = splats.opacity_logits > np.log(VISIBLE_OPACITY / (1 - VISIBLE_OPACITY))
    if not visible.any():
        visible = np.ones(len(splats), bool)
    means, reach = splats.means[visible], DEVIATIONS * np.exp(splats.log_scales[visible].max(axis=1))
    center = center_of(means)
    return center, radius_of(np.linalg.norm(means - center, axis=1) + reach)


def center_of(means: Float32s) -> Float32s:
    """The centre [3] for the centres [n, 3] of the visible Gaussians."""
    low, high = np.quantile(means, [TAIL, 1 - TAIL], axis=0)
    return np.asarray((low + high) / 2, np.float32)


def radius_of(distances: Float32s) -> float:
    """The radius for the distances [n] from the centre that the visible Gaussians reach."""
    return max(float(np.quantile(distances, 1 - TAIL)), LEAST_RADIUS)
