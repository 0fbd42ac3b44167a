"""Edits of an asset between reading and writing: prune, crop, transform, drop harmonics."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdream_cli.errors import UsageProblem
from segdream_cli.splats import BANDS, Splats
from segdream_cli.splats.bounds import bounds
from segdream_cli.splats.frames import AXES, upright_rotation
from segdream_cli.splats.transform import reflect, rotation_xyz, transform


@dataclass(frozen=True, slots=True)
class Edits:
    """Changes to an asset, applied in the order of the fields; None and False change nothing.

    Lengths and axes are those of the inner frame: y up, the object faces +Z, 1 is the radius of the unit sphere.
    """

    mirror: str | None = None
    """Mirror along this axis, x, y or z."""
    up: str = "y"
    """The axis that points up, x to -z; it becomes +y."""
    front_deg: float = 0.0
    """Azimuth of the front after that: 0 is +z, 90 is +x; it becomes +z."""
    prune_opacity: float | None = None
    """Drop Gaussians of less opacity, 0..1."""
    crop: Sequence[float] | None = None
    """Keep those whose centre lies in a box (x0, y0, z0, x1, y1, z1), or in a ball about the origin (radius,)."""
    center: bool = False
    """Move the centre of the asset's `bounds` to the origin."""
    rotate: Sequence[float] | None = None
    """Degrees about x, then y, then z, all fixed axes through the origin; counter-clockwise seen from the tip of the
    axis."""
    scale: float | None = None
    """Factor on all lengths, from the origin; positive."""
    sh: int | None = None
    """Drop spherical harmonics above this degree, 0..3."""


Tell = Callable[[str, int, int], object]
"""Receives the option of an edit that drops Gaussians, the number kept, and the number before it."""


def apply_edits(
    splats: Splats,
    edits: Edits,
    tell: Tell = lambda option, kept, of: None,
    reduce: Callable[[Splats], Splats] = lambda splats: splats,
) -> Splats:
    """The asset after `edits`; the Gaussians kept stay in their order, with the asset's provenance.

    Args:
        splats: the asset.
        edits: what to change.
        tell: hears how many Gaussians each edit keeps.
        reduce: a change of its own, between the crop and the placement.

    Raises:
        UsageProblem: no Gaussian would be left.
    """
    splats = _stand(splats, edits)
    before = len(splats)
    if edits.prune_opacity is not None:
        opacities = 1 / (1 + np.exp(-splats.opacity_logits.astype(np.float64)))
        kept = np.flatnonzero(opacities >= edits.prune_opacity)
        reason = f"no Gaussian has an opacity of {edits.prune_opacity:g}: the highest is {opacities.max(initial=0):.3g}"
        splats = _keep(splats, kept, reason, f"--prune-opacity {edits.prune_opacity / 2:g}")
        tell("--prune-opacity", len(splats), before)
        before = len(splats)
    if edits.crop is not None:
        splats = _crop(splats, edits.crop)
        tell("--crop", len(splats), before)
    return _truncate_sh(_place(reduce(splats), edits), edits.sh)


def _stand(splats: Splats, edits: Edits) -> Splats:
    """The asset mirrored and turned upright, with its front towards +z; itself without such an edit."""
    if edits.mirror is not None:  # a point reflection and half a turn about the axis
        axis = AXES[edits.mirror]
        splats = transform(reflect(splats), 2 * np.outer(axis, axis) - np.eye(3), np.zeros(3))
    matrix = upright_rotation(edits.up, edits.front_deg)
    return splats if np.array_equal(matrix, np.eye(3)) else transform(splats, matrix, np.zeros(3))


def _place(splats: Splats, edits: Edits) -> Splats:
    """The asset centred, rotated and scaled; bit for bit the same without such an edit."""
    matrix, offset = np.eye(3), np.zeros(3)
    if edits.rotate is not None:
        matrix = rotation_xyz(edits.rotate)
    if edits.scale is not None:
        matrix = edits.scale * matrix
    if edits.center:
        offset = -matrix @ bounds(splats)[0].astype(np.float64)
    if np.array_equal(matrix, np.eye(3)):
        return dataclasses.replace(splats, means=(splats.means + offset).astype(np.float32))
    return transform(splats, matrix, offset)


def _crop(splats: Splats, shape: Sequence[float]) -> Splats:
    """The Gaussians with their centre in a ball (radius,) or a box (x0, y0, z0, x1, y1, z1)."""
    if len(shape) == 1:
        distances = np.linalg.norm(splats.means.astype(np.float64), axis=1)
        inside, where = distances <= shape[0], "the ball"
        hint = f"--crop {2 * distances.min():.3g}"
    else:
        low, high = np.array(shape, np.float32).reshape(2, 3)  # in the precision of the centres
        inside, where = ((splats.means >= low) & (splats.means <= high)).all(axis=1), "the box"
        hint = "--crop " + ",".join(f"{end:.3g}" for end in (*splats.means.min(axis=0), *splats.means.max(axis=0)))
    return _keep(splats, np.flatnonzero(inside), f"no Gaussian has its centre in {where} of --crop", hint)


def _truncate_sh(splats: Splats, degree: int | None) -> Splats:
    """The asset without spherical harmonics above `degree`."""
    if degree is None or splats.shN.shape[1] <= BANDS[degree]:
        return splats
    return dataclasses.replace(splats, shN=np.ascontiguousarray(splats.shN[:, : BANDS[degree]]))


def _keep(splats: Splats, rows: NDArray[np.intp], reason: str, hint: str) -> Splats:
    """The Gaussians in `rows`; raises a UsageProblem with `reason` and `hint` if there are none."""
    if not len(rows):
        raise UsageProblem(reason, hint=hint)
    return splats if len(rows) == len(splats) else splats.select(rows)
