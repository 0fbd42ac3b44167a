"""Stray Gaussians: an asset's parts that do not touch, and those to drop.

Gaussians of opacity 0.1 and more are linked if their centres are no farther from each other than the sum of their
reaches, two standard deviations of a disc of the same area, or if they share a cell of a grid as wide as the median
reach. The parts are the connected components; a fainter Gaussian belongs to the part of its nearest linked neighbour,
or to none.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from segdream_cli.splats import Float64s, Splats
from segdream_cli.splats.bounds import DEVIATIONS, VISIBLE_OPACITY

NEIGHBORS = 16
"""Nearest Gaussians that one may be linked to."""
SMALL = 0.01
"""Share of the largest part's mass below which a part is a floater."""
Indices = NDArray[np.intp]


def find_parts(splats: Splats) -> tuple[Indices, Float64s]:
    """The part of each Gaussian [n], -1 for none, and the mass of each part: the sum of opacity times cross-section."""
    opacities = 1 / (1 + np.exp(-splats.opacity_logits.astype(np.float64)))
    scales = np.sort(splats.log_scales.astype(np.float64), axis=1)
    discs = np.exp(scales[:, 1] + scales[:, 2])
    reaches = DEVIATIONS * np.sqrt(discs)
    solid = np.flatnonzero(opacities >= min(VISIBLE_OPACITY, opacities.max() / 2))
    labels = np.full(len(splats), -1)
    means = splats.means.astype(np.float64)
    labels[solid] = _components(means[solid], reaches[solid])
    faint = np.setdiff1d(np.arange(len(splats)), solid)
    if len(faint):
        distances, nearest = cKDTree(means[solid]).query(means[faint])
        near = distances <= reaches[faint] + reaches[solid[nearest]]
        labels[faint[near]] = labels[solid[nearest[near]]]
    inside = labels >= 0
    masses = np.asarray(np.bincount(labels[inside], (opacities * discs)[inside]), np.float64)
    return labels, masses


def largest_part(splats: Splats) -> Splats:
    """The part with the largest mass."""
    labels, masses = find_parts(splats)
    return splats.select(np.flatnonzero(labels == np.argmax(masses)))


def without_floaters(splats: Splats) -> Splats:
    """The asset without Gaussians of no part, and without parts of less than 1 % of the largest part's mass."""
    labels, masses = find_parts(splats)
    kept = np.append(masses >= SMALL * masses.max(), False)  # the last for the label -1
    return splats.select(np.flatnonzero(kept[labels]))


def _components(means: Float64s, reaches: Float64s) -> Indices:
    """The connected component of each Gaussian [n]."""
    n = len(means)
    distances, others = cKDTree(means).query(means, k=np.arange(1, min(NEIGHBORS + 1, n) + 1), workers=-1)
    touches = distances <= reaches[:, None] + reaches[others]
    first, second = np.broadcast_to(np.arange(n)[:, None], others.shape)[touches], others[touches]
    # among more than 16 Gaussians in one place, all neighbours are within the place: cells link it to others
    cells = np.floor((means - means.min(axis=0)) / max(float(np.median(reaches)), np.finfo(np.float32).tiny))
    same: Any = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    links = np.concatenate([first, np.arange(n)]), np.concatenate([second, same[1][same[2].reshape(-1)]])
    return np.asarray(connected_components(coo_array((np.ones(len(links[0]), bool), links), shape=(n, n)))[1])
