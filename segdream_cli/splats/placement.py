"""The transform of an asset to the working frame, in which segdream optimises, and its inverse.

Assets from other tools have any size and position, and stray Gaussians. The object is what remains without those beyond
`STRAY` times the radius of the middle nine tenths of the visible centres; it is measured by the rule of `bounds`.
"""

from dataclasses import dataclass

import numpy as np

from segdream_cli.splats import Float64s, Splats
from segdream_cli.splats.bounds import DEVIATIONS, VISIBLE_OPACITY, center_of, radius_of
from segdream_cli.splats.frames import upright_rotation
from segdream_cli.splats.transform import transform

WORKING_RADIUS = 0.95
"""Radius of an object in the working frame; the median of the procedural world's objects is 0.93, without the reach of
their Gaussians."""
CORE = 0.05
"""Share of the visible centres beyond each side of the box that sets the first radius."""
STRAY = 3.0
"""Radii of that box beyond which a Gaussian is stray."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The similarity x -> matrix x + offset from an asset's own frame to the working frame."""

    matrix: Float64s
    """A rotation times a factor, [3, 3]."""
    offset: Float64s
    """[3]."""

    def apply(self, splats: Splats) -> Splats:
        """The asset in the working frame."""
        return transform(splats, self.matrix, self.offset)

    def undo(self, splats: Splats) -> Splats:
        """The asset in its own frame."""
        inverse = np.asarray(np.linalg.inv(self.matrix), np.float64)
        return transform(splats, inverse, -inverse @ self.offset)


def place(splats: Splats, front_deg: float = 0.0, up: str = "y") -> Placement:
    """The placement that centres the object, scales it to `WORKING_RADIUS`, stands it up and turns its front to +Z.

    Args:
        splats: the asset.
        front_deg: azimuth of its front after `UPRIGHT` of `up`: 0 is +z, 90 is +x.
        up: the axis of its own frame that points up.

    Raises:
        ValueError: the asset has no extent, or one that 32-bit floats can't square.
    """
    center, radius = _measure(splats)
    if not 1e-18 < radius < 1e18:
        raise ValueError(f"a radius of {radius:.3g}")
    matrix = WORKING_RADIUS / radius * upright_rotation(up, front_deg)
    return Placement(matrix, -matrix @ center)


def _measure(splats: Splats) -> tuple[Float64s, float]:
    """Centre [3] and radius of the object, without stray Gaussians."""
    visible = splats.opacity_logits > np.log(VISIBLE_OPACITY / (1 - VISIBLE_OPACITY))
    if not visible.any():
        visible = np.ones(len(splats), bool)
    means = splats.means[visible].astype(np.float64)
    reach = DEVIATIONS * np.exp(splats.log_scales[visible].astype(np.float64).max(axis=1))
    low, high = np.quantile(means, [CORE, 1 - CORE], axis=0)
    core = max(float(np.linalg.norm(high - low)) / 2, float(np.median(reach)))
    near = np.linalg.norm(means - (low + high) / 2, axis=1) + reach <= STRAY * core
    means, reach = means[near], reach[near]
    if not len(means):
        return (low + high) / 2, core
    center = (low + high) / 2 + center_of(((means - (low + high) / 2) / core).astype(np.float32)) * np.float64(core)
    distances = (np.linalg.norm(means - center, axis=1) + reach) / core
    return center, core * radius_of(distances.astype(np.float32))
