"""`Splats`: one asset as numpy arrays. Readers return it, writers take it, edits change it.

Arrays are in the inner frame: right-handed, y up, the object faces +Z. Files of the PLY family stand half a turn about
X away from it (x right, y down, z away), so their writers apply `to_ply_frame` and their readers `from_ply_frame`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]
Float64s = NDArray[np.float64]

GROUPS = ("means", "quats", "log_scales", "opacity_logits", "sh0", "shN")
"""The arrays of an asset, in the order of the fields of `Splats`; each is a parameter group of the optimizer."""
LOG_SCALE_LIMIT = 20.0
OPACITY_LOGIT_LIMIT = 15.0

SH_C0 = 0.28209479177387814
"""Value of the degree-0 spherical harmonic: a colour is 0.5 + SH_C0 * sh0."""
BANDS = (0, 3, 8, 15)
"""Coefficients beyond the first, up to each degree of spherical harmonics."""
# Sign of each basis function of degree 1 to 3 (m = -l..l) under (x, y, z) -> (x, -y, -z).
_HALF_TURN_SIGNS = np.array([-1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1], np.float32)


@dataclass(frozen=True, slots=True)
class Splats:
    """n Gaussians before their activations, float32, in the inner frame (y up, facing +Z).

    Raises:
        ValueError: the shapes do not fit together.
    """

    means: Float32s
    """Centres, [n, 3]."""
    quats: Float32s
    """Unit rotations wxyz, [n, 4]."""
    log_scales: Float32s
    """Natural logarithm of the standard deviations, [n, 3]."""
    opacity_logits: Float32s
    """Opacity before the sigmoid, [n]."""
    sh0: Float32s
    """Spherical harmonics of degree 0, [n, 3] RGB."""
    shN: Float32s
    """Higher spherical harmonics, [n, k, 3] with k = 0, 3, 8 or 15: l = 1..3, m = -l..l, RGB innermost."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Prompt, seed, prior, method, version and the like, as JSON values; may be empty."""
    antialiased: bool = False
    """Whether a viewer should widen small Gaussians without brightening them, as Mip-Splatting's were optimised."""

    def __post_init__(self) -> None:
        n, k = len(self.means), self.shN.shape[1]
        shapes = [array.shape for array in self.arrays().values()]
        if shapes != [(n, 3), (n, 4), (n, 3), (n,), (n, 3), (n, k, 3)] or k not in BANDS:
            raise ValueError(f"shapes that do not make Gaussians: {shapes}")

    def __len__(self) -> int:
        return len(self.means)

    def copy(self) -> "Splats":
        """The same Gaussians in memory of their own."""
        arrays: dict[str, Any] = {name: array.copy() for name, array in self.arrays().items()}
        return dataclasses.replace(self, **arrays)

    def arrays(self) -> dict[str, Float32s]:
        """The six arrays by their names, without copies."""
        return {name: getattr(self, name) for name in GROUPS}

    def select(self, rows: NDArray[np.intp]) -> "Splats":
        """The Gaussians with these indices, in this order, as a copy."""
        return self._map(lambda values: values.take(rows, axis=0))

    def slice_rows(self, rows: slice) -> "Splats":
        """A slice of the Gaussians, in the same memory."""
        return self._map(lambda values: values[rows])

    def _map(self, change: Callable[[Float32s], Float32s]) -> "Splats":
        changed: dict[str, Any] = {name: change(array) for name, array in self.arrays().items()}
        return dataclasses.replace(self, **changed)


def to_ply_frame(splats: Splats) -> Splats:
    """A copy after half a turn about X: (x, y, z) -> (x, -y, -z), spherical harmonics included."""
    return _half_turn(splats, *(np.empty(each.shape, np.float32) for each in (splats.means, splats.quats, splats.shN)))


def from_ply_frame(splats: Splats) -> Splats:
    """The inverse of `to_ply_frame`, computed in place: a reader's arrays are new and large."""
    return _half_turn(splats, splats.means, splats.quats, np.ascontiguousarray(splats.shN))


def _half_turn(splats: Splats, means: Float32s, quats: Float32s, shN: Float32s) -> Splats:
    """Turns about X by 180 degrees and stores the results in these arrays; `shN` must be contiguous."""
    n, k, _ = splats.shN.shape
    signs = np.repeat(_HALF_TURN_SIGNS[:k], 3)
    np.multiply(splats.means, np.array([1, -1, -1], np.float32), out=means)
    np.multiply(splats.quats, np.array([1, 1, -1, -1], np.float32), out=quats)
    np.multiply(splats.shN.reshape(n, 3 * k), signs, out=shN.reshape(n, 3 * k))
    return dataclasses.replace(splats, means=means, quats=quats, shN=shN)


def sanitize(splats: Splats) -> Splats:
    """The asset with unit quaternions and with values that do not overflow in the float32 arithmetic of any reader.

    Log-scales are clamped to [-20, 20] and opacity logits to [-15, 15]. Quaternions of length zero become the
    identity; those that are unit to float precision keep their bits.
    """
    lengths = np.sqrt(np.einsum("nq,nq->n", splats.quats, splats.quats, dtype=np.float64))
    off = np.abs(lengths - 1) > 1e-6
    quats = splats.quats
    if off.any():
        with np.errstate(divide="ignore", invalid="ignore"):
            quats = (quats * np.where(off, 1 / lengths, 1)[:, None]).astype(np.float32)
        quats[lengths == 0] = (1, 0, 0, 0)
    return dataclasses.replace(
        splats,
        quats=quats,
        log_scales=np.clip(splats.log_scales, -LOG_SCALE_LIMIT, LOG_SCALE_LIMIT),
        opacity_logits=np.clip(splats.opacity_logits, -OPACITY_LOGIT_LIMIT, OPACITY_LOGIT_LIMIT),
    )


def find_nonfinite(splats: Splats) -> NDArray[np.intp]:
    """Indices of the Gaussians that have a NaN or an infinity among their values, in ascending order."""
    bad = np.zeros(len(splats), bool)
    for values in splats.arrays().values():
        finite = np.isfinite(values)
        if not finite.all():
            bad |= ~finite.reshape(len(splats), -1).all(axis=1)
    return np.flatnonzero(bad)


def find_unusable(splats: Splats) -> NDArray[np.intp]:
    """Indices of the Gaussians that `sanitize` can't repair, in ascending order.

    An infinite opacity logit is an opacity of 0 or 1, and a log-scale of minus infinity a scale of 0. Any other
    infinity and any NaN makes a Gaussian unusable.
    """
    if not np.isfinite(splats.opacity_logits).all() or not np.isfinite(splats.log_scales).all():
        lowest, highest = np.finfo(np.float32).min, np.finfo(np.float32).max
        splats = dataclasses.replace(
            splats,
            opacity_logits=np.clip(splats.opacity_logits, lowest, highest),
            log_scales=np.maximum(splats.log_scales, lowest),
        )
    return find_nonfinite(splats)


def concat(parts: Sequence[Splats], provenance: Mapping[str, Any]) -> Splats:
    """Joins several assets into one, with the highest degree of spherical harmonics among them."""
    if len(parts) == 1:
        return dataclasses.replace(parts[0], provenance=provenance)
    k = max(part.shN.shape[1] for part in parts)
    padded = [np.pad(part.shN, ((0, 0), (0, k - part.shN.shape[1]), (0, 0))) for part in parts]
    arrays = {name: np.concatenate([part.arrays()[name] for part in parts]) for name in GROUPS if name != "shN"}
    antialiased = all(part.antialiased for part in parts)
    return Splats(**arrays, shN=np.concatenate(padded), provenance=provenance, antialiased=antialiased)
