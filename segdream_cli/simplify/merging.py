"""Thinning by merging: neighbours become one Gaussian with their mass, mean, covariance and colour.

The pairs are chosen greedily by the error of the images (`kernels`), where hidden Gaussians count little.
"""

import dataclasses

import numpy as np
from scipy.spatial import cKDTree

from segdream_cli.simplify import kernels
from segdream_cli.simplify.visibility import visibility
from segdream_cli.splats import SH_C0, Float32s, Float64s, Splats, sanitize
from segdream_cli.splats.bounds import bounds
from segdream_cli.splats.transform import rotation_matrices

NEIGHBORS = 10
"""Candidates for a merge, per Gaussian."""
LEAST_VISIBILITY = 0.05
"""Visibility of a Gaussian that no camera of `visibility` sees: other cameras may."""
LEAST_MASS = 1e-30
RATIO = 8
"""The largest reduction between two searches for neighbours."""
BLOCK = 1 << 16
"""Gaussians whose neighbours are searched at once, which bounds the memory of scipy's answers."""
PIXELS = 512
"""Side of the image, framing the asset, whose pixel blurs the costs as the rasteriser's does."""
BLUR = 0.3
"""Square pixels."""
_SIX = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
"""The entries of a covariance that a cluster has."""


def merge(splats: Splats, count: int) -> Splats:
    """The asset with at most `count` Gaussians; one that is not merged keeps its bits.

    A merged Gaussian stands where the first of its members was. Its spherical harmonics are averages like its colour.

    Args:
        splats: the asset.
        count: at least 1.
    """
    if count >= len(splats):
        return splats
    clean = sanitize(splats)
    rows = _clusters(clean)
    parents = _group(rows.copy(), count, _blur(clean))
    return _build(splats, rows, parents)


def areas(covariances: Float64s) -> Float64s:
    """Root mean square [n] of the areas of three principal cross-sections, over pi, of covariances [n, 6].

    It is sqrt((s1² s2² + s1² s3² + s2² s3²) / 3) for standard deviations s. The sum is that of the principal minors, so
    it needs no eigenvalues. The columns are xx, xy, xz, yy, yz, zz.
    """
    xx, xy, xz, yy, yz, zz = covariances.T
    return np.asarray(np.sqrt(np.maximum(xx * yy - xy**2 + xx * zz - xz**2 + yy * zz - yz**2, 1e-40) / 3))


def _clusters(splats: Splats) -> Float64s:
    """Each Gaussian as a cluster of `kernels`, [n, 14]."""
    rows = np.empty((len(splats), kernels.COLUMNS))
    axes = rotation_matrices(splats.quats.astype(np.float64)) * np.exp(splats.log_scales.astype(np.float64))[:, None]
    covariances = axes @ axes.mT
    rows[:, kernels.X : kernels.XX] = splats.means
    rows[:, kernels.XX : kernels.RED] = np.stack([covariances[:, i, j] for i, j in _SIX], axis=1)
    opacities = 1 / (1 + np.exp(-splats.opacity_logits.astype(np.float64)))
    rows[:, kernels.MASS] = opacities * areas(rows[:, kernels.XX : kernels.RED]) + LEAST_MASS
    rows[:, kernels.RED : kernels.VISIBILITY] = np.maximum(0.5 + SH_C0 * splats.sh0, 0)
    rows[:, kernels.VISIBILITY] = LEAST_VISIBILITY + (1 - LEAST_VISIBILITY) * visibility(splats)
    return rows


def _blur(splats: Splats) -> float:
    """`BLUR` in square units of the asset's lengths."""
    return BLUR * (2 * bounds(splats)[1] / PIXELS) ** 2


def _group(rows: Float64s, count: int, blur: float) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The cluster of each row, as the index of its first member; changes `rows`."""
    parents = np.arange(len(rows))
    roots = parents
    while len(roots) > count:
        clusters = np.ascontiguousarray(rows[roots])
        target = max(count, len(roots) // RATIO)
        found = kernels.greedy(clusters, _neighbors(clusters[:, kernels.X : kernels.XX]), target, blur)
        rows[roots] = clusters
        parents = roots[found][np.searchsorted(roots, parents)]
        roots = roots[np.unique(found)]
    return parents


def _neighbors(means: Float64s) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    """Indices [n, 10] of the nearest other means, the nearest first; -1 where there are fewer."""
    n = len(means)
    tree, found = cKDTree(means), np.full((n, NEIGHBORS), -1, np.int32)
    for start in range(0, n, BLOCK):
        block = np.arange(start, min(start + BLOCK, n))
        nearest = tree.query(means[block], k=np.arange(1, min(NEIGHBORS + 1, n) + 1), workers=-1)[1]
        own = nearest == block[:, None]
        own[~own.any(axis=1), -1] = True  # among many equal means
        found[block, : nearest.shape[1] - 1] = nearest[~own].reshape(len(block), -1)
    return found


def _build(splats: Splats, rows: Float64s, parents: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Splats:
    """The Gaussians of the clusters, in the order of their first members."""
    roots, labels, sizes = np.unique(parents, return_inverse=True, return_counts=True)
    kept = splats.select(roots)
    merged = np.flatnonzero(sizes > 1)
    members = np.flatnonzero(sizes[labels] > 1)
    members = members[np.argsort(labels[members], kind="stable")]  # each cluster in one piece
    starts = np.cumsum(sizes[merged]) - sizes[merged]
    some = rows[members]
    weights = some[:, kernels.MASS] * some[:, kernels.VISIBILITY]
    shares = weights / np.repeat(np.add.reduceat(weights, starts), sizes[merged])

    def mean(values: Float64s | Float32s) -> Float64s:
        """The weighted mean over each cluster's members, given for the members."""
        weighted = shares.reshape(-1, *[1] * (values.ndim - 1)) * values
        return np.asarray(np.add.reduceat(weighted, starts, axis=0), np.float64)

    means = mean(some[:, kernels.X : kernels.XX])
    offsets = some[:, kernels.X : kernels.XX] - np.repeat(means, sizes[merged], axis=0)
    spread = np.stack([offsets[:, i] * offsets[:, j] for i, j in _SIX], axis=1)
    covariances = mean(some[:, kernels.XX : kernels.RED] + spread)
    opacities = np.add.reduceat(some[:, kernels.MASS], starts) / areas(covariances)
    opacities = np.clip(opacities, LEAST_MASS, kernels.ALPHA_CAP)
    quats, log_scales = _axes(covariances)
    changed: dict[str, Float64s] = {
        "means": means,
        "quats": quats,
        "log_scales": log_scales,
        "opacity_logits": np.log(opacities) - np.log1p(-opacities),
        "sh0": mean(splats.sh0[members]),
        "shN": mean(splats.shN[members]),
    }
    for name, values in changed.items():
        kept.arrays()[name][merged] = values
    return dataclasses.replace(kept, provenance=splats.provenance)


def _axes(covariances: Float64s) -> tuple[Float64s, Float64s]:
    """Unit quaternions wxyz [n, 4] and log-scales [n, 3] of covariances [n, 6]."""
    matrices = np.empty((len(covariances), 3, 3))
    for k, (i, j) in enumerate(_SIX):
        matrices[:, i, j] = matrices[:, j, i] = covariances[:, k]
    variances, axes = np.linalg.eigh(matrices)
    axes[np.linalg.det(axes) < 0, :, 0] *= -1  # a rotation, not a reflection
    return _quaternions(axes), 0.5 * np.log(np.maximum(variances, 1e-30))


def _quaternions(rotations: Float64s) -> Float64s:
    """Unit quaternions wxyz [n, 4] of rotation matrices [n, 3, 3].

    The rows of 4 q qᵀ are in the matrix; the one with the largest diagonal entry is normalised (Shepperd 1978).
    """
    r = rotations
    trace = np.trace(r, axis1=1, axis2=2)
    outer = np.empty((len(r), 4, 4))
    outer[:, 0, 0] = 1 + trace
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        outer[:, i + 1, i + 1] = 1 + 2 * r[:, i, i] - trace
        outer[:, 0, i + 1] = outer[:, i + 1, 0] = r[:, k, j] - r[:, j, k]
        outer[:, j + 1, k + 1] = outer[:, k + 1, j + 1] = r[:, j, k] + r[:, k, j]
    largest = np.argmax(np.diagonal(outer, axis1=1, axis2=2), axis=1)
    rows = np.take_along_axis(outer, largest[:, None, None], axis=1)[:, 0]
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
