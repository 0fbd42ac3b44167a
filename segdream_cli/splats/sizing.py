"""The real size of an asset and the origin of its coordinates: `export --height --unit --pivot`."""

import re
from dataclasses import dataclass

import numpy as np

from segdream_cli.errors import UsageProblem
from segdream_cli.splats import Float64s, Splats
from segdream_cli.splats.bounds import VISIBLE_OPACITY
from segdream_cli.splats.transform import rotation_matrices, transform

UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254, "ft": 0.3048}
"""Unit of length -> metres."""
GROUND, CENTER = "ground", "center"
SURFACE_OPACITY = 0.5
"""Opacity at which a Gaussian ends."""
STRAY = 0.0005
"""Share of the Gaussians that may lie beyond each side."""
MOST_METRES = 1e6


@dataclass(frozen=True, slots=True)
class Sizing:
    """A uniform scale, then a shift.

    Args:
        height: the asset's height in metres; None keeps its size, in which 1 is a metre.
        unit: name of the unit of the resulting coordinates.
        pivot: "ground" puts the origin below the middle, at the lowest point; "center" into the middle of the box; None
            leaves it where it is.
    """

    height: float | None = None
    unit: str = "m"
    pivot: str | None = None

    def solve(self, low: Float64s, high: Float64s) -> tuple[float, Float64s]:
        """Factor and offset [3] for an asset between two corners [3]: x -> factor x + offset.

        Raises:
            UsageProblem: the asset has no height to scale.
        """
        factor = 1 / UNITS[self.unit]
        if self.height is not None:
            if not high[1] - low[1] > 0:
                raise UsageProblem("the asset has no height", without=["--height"], hint="--scale 2")
            factor *= self.height / (high[1] - low[1])
        if self.pivot is None:
            return factor, np.zeros(3)
        origin = (low + high) / 2
        if self.pivot == GROUND:
            origin[1] = low[1]
        return factor, -factor * origin


def resize(splats: Splats, sizing: Sizing) -> Splats:
    """The asset in its real size, with the origin of its coordinates at the pivot; raises the error of `solve`."""
    factor, offset = sizing.solve(*extents(splats))
    return transform(splats, factor * np.eye(3), offset)


def extents(splats: Splats) -> tuple[Float64s, Float64s]:
    """Lower and upper corner [3] of the box about the visible surface, without stray Gaussians.

    Along an axis of standard deviation σ, a Gaussian of opacity o reaches 1/2 at σ sqrt(2 ln(2 o)) from its centre; one
    of less opacity counts with its centre.
    """
    opacities = 1 / (1 + np.exp(-splats.opacity_logits.astype(np.float64)))
    visible = opacities > VISIBLE_OPACITY
    if not visible.any():
        visible = np.ones(len(splats), bool)
    quats = splats.quats[visible].astype(np.float64)
    axes = rotation_matrices(quats / np.linalg.norm(quats, axis=1, keepdims=True))
    scales = np.exp(splats.log_scales[visible].astype(np.float64))
    deviations = np.sqrt(((axes * scales[:, None, :]) ** 2).sum(axis=2))  # [n, 3]: roots of the covariance's diagonal
    ends = np.sqrt(2 * np.log(np.maximum(opacities[visible] / SURFACE_OPACITY, 1)))
    reach, means = ends[:, None] * deviations, splats.means[visible].astype(np.float64)
    low, high = np.quantile(means - reach, STRAY, axis=0), np.quantile(means + reach, 1 - STRAY, axis=0)
    return np.asarray(low), np.asarray(high)


def parse_length(text: str) -> float:
    """Metres of a length such as 3.2m, 45cm or 6ft; a bare number is in metres.

    Raises:
        UsageProblem: the text is something else, or not between 0 and `MOST_METRES`.
    """
    match = re.fullmatch(rf"\s*(\d*\.?\d+|\d+\.)\s*({'|'.join(UNITS)})?\s*", text)
    metres = float(match[1]) * UNITS[match[2] or "m"] if match else 0.0
    if not 1 / MOST_METRES <= metres <= MOST_METRES:
        raise UsageProblem(f"--height {text!r} is not a length such as 3.2m, 45cm or 6ft", hint="--height 1.5m")
    return metres
