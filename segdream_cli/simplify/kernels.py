"""The numba kernel of `merging`: greedy pairwise merging of neighbours by moment matching.

A cluster is a row of `COLUMNS` numbers. Its mass is opacity times `area`, so masses add up; means, covariances, colours
and visibilities are averages weighted by mass times visibility, with the spread of the means added to the covariance.
A cluster's opacity is its mass over the area of its covariance, at most `ALPHA_CAP`.

The cost of a merge is the squared difference between the two clusters and their union as images. Each cluster is a 2D
Gaussian on the planes yz, xz and xy, of the amplitude opacity times visibility times (colour, background), and

    <G_a, G_b> = 2 pi sqrt(|A| |B| / |A + B|) exp(-d^T (A + B)^-1 d / 2),     d the difference of the means,

so the integral of the squared difference has a closed form.

Importing this module compiles the kernel, or loads it from numba's cache.
"""

import math
from typing import Any

import numba
import numpy as np

from segdream_cli.render.raster.kernel_cache import compile_kernel

MASS, X, Y, Z, XX, XY, XZ, YY, YZ, ZZ, RED, GREEN, BLUE, VISIBILITY = range(14)
COLUMNS = 14
ALPHA_CAP = 0.999
BACKGROUND = 3.0
"""Squared amplitude of the background that a Gaussian hides: white, in three channels."""
CONTRAST = 0.3
"""Weight of the squared difference of colours, over the harmonic mean of the masses. It counts at any size, so that
fine texture is not merged to one colour."""
FARTHEST = 60.0
"""Squared Mahalanobis distance beyond which a product is 0."""

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz", "arcp"}}
_helper = numba.njit(**_OPTIONS)


@_helper
def _area(c):  # type: ignore[no-untyped-def]
    """Root mean square of the areas of an ellipsoid's three principal cross-sections, over pi; see `merging.areas`."""
    minors = c[XX] * c[YY] - c[XY] * c[XY] + c[XX] * c[ZZ] - c[XZ] * c[XZ] + c[YY] * c[ZZ] - c[YZ] * c[YZ]
    return math.sqrt(max(minors, 1e-40) / 3)


@_helper
def _amplitude(c):  # type: ignore[no-untyped-def]
    return min(c[MASS] / _area(c), ALPHA_CAP) * c[VISIBILITY]


@_helper
def _unite(a, b, union):  # type: ignore[no-untyped-def]
    """Fills the cluster of two."""
    weight_a, weight_b = a[MASS] * a[VISIBILITY], b[MASS] * b[VISIBILITY]
    share_a = weight_a / (weight_a + weight_b)
    share_b = 1 - share_a
    union[MASS] = a[MASS] + b[MASS]
    for k in range(X, COLUMNS):
        union[k] = share_a * a[k] + share_b * b[k]
    dx, dy, dz, between = b[X] - a[X], b[Y] - a[Y], b[Z] - a[Z], share_a * share_b
    union[XX] += between * dx * dx
    union[XY] += between * dx * dy
    union[XZ] += between * dx * dz
    union[YY] += between * dy * dy
    union[YZ] += between * dy * dz
    union[ZZ] += between * dz * dz


@_helper
def _product(a, b, u, v, blur):  # type: ignore[no-untyped-def]
    """<G_a, G_b> / 2 pi on the plane of the axes u < v, with `blur` added to both variances."""
    uu, uv, vv = XX + (0, 3, 5)[u], (XX + v, YZ)[u], XX + (0, 3, 5)[v]
    a_uu, a_uv, a_vv = a[uu] + blur, a[uv], a[vv] + blur
    b_uu, b_uv, b_vv = b[uu] + blur, b[uv], b[vv] + blur
    s_uu, s_uv, s_vv = a_uu + b_uu, a_uv + b_uv, a_vv + b_vv
    determinant = s_uu * s_vv - s_uv * s_uv
    du, dv = a[X + u] - b[X + u], a[X + v] - b[X + v]
    distance = (s_vv * du * du - 2 * s_uv * du * dv + s_uu * dv * dv) / determinant
    if not distance < FARTHEST:
        return 0.0
    areas = max(a_uu * a_vv - a_uv * a_uv, 0.0) * max(b_uu * b_vv - b_uv * b_uv, 0.0)
    return math.sqrt(areas / determinant) * math.exp(-0.5 * distance)


@_helper
def _self_product(a, u, v, blur):  # type: ignore[no-untyped-def]
    """<G_a, G_a> / 2 pi."""
    uu, uv, vv = XX + (0, 3, 5)[u], (XX + v, YZ)[u], XX + (0, 3, 5)[v]
    return 0.5 * math.sqrt(max((a[uu] + blur) * (a[vv] + blur) - a[uv] * a[uv], 0.0))


@_helper
def _cost(a, b, blur, union):  # type: ignore[no-untyped-def]
    """The cost of a merge; fills the union."""
    _unite(a, b, union)
    aa, bb, mm = BACKGROUND, BACKGROUND, BACKGROUND
    ab, am, bm, contrast = BACKGROUND, BACKGROUND, BACKGROUND, 0.0
    for k in range(RED, BLUE + 1):
        aa += a[k] * a[k]
        bb += b[k] * b[k]
        mm += union[k] * union[k]
        ab += a[k] * b[k]
        am += a[k] * union[k]
        bm += b[k] * union[k]
        contrast += (a[k] - b[k]) ** 2
    alpha_a, alpha_b, alpha_m = _amplitude(a), _amplitude(b), _amplitude(union)
    total = 0.0
    for u, v in ((0, 1), (0, 2), (1, 2)):
        total += alpha_a * alpha_a * aa * _self_product(a, u, v, blur)
        total += alpha_b * alpha_b * bb * _self_product(b, u, v, blur)
        total += alpha_m * alpha_m * mm * _self_product(union, u, v, blur)
        total += 2 * alpha_a * alpha_b * ab * _product(a, b, u, v, blur)
        total -= 2 * alpha_a * alpha_m * am * _product(a, union, u, v, blur)
        total -= 2 * alpha_b * alpha_m * bm * _product(b, union, u, v, blur)
    return max(total, 0.0) + CONTRAST * contrast * a[MASS] * b[MASS] / (a[MASS] + b[MASS])


@_helper
def _root(parents, i):  # type: ignore[no-untyped-def]
    """The cluster that `i` is in; halves the path to it."""
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@_helper
def _collect(clusters, neighbors, parents, i, j, blur, union, found, costs):  # type: ignore[no-untyped-def]
    """Lists the clusters beside i and j in `found`, with their costs from i; returns their number."""
    count = 0
    for owner in (i, j):
        for k in range(neighbors.shape[1]):
            if neighbors[owner, k] < 0:
                continue
            other = _root(parents, neighbors[owner, k])
            known = other == i
            for each in range(count):
                known = known or found[each] == other
            if not known:
                found[count], costs[count] = other, _cost(clusters[i], clusters[other], blur, union)
                count += 1
        if i == j:
            break
    return count


@_helper
def _store(neighbors, partners, i, found, costs, count):  # type: ignore[no-untyped-def]
    """Keeps the cheapest of the clusters found as the neighbours of i; returns the cost of the first, inf if none."""
    order = np.argsort(costs[:count])
    for k in range(neighbors.shape[1]):
        neighbors[i, k] = found[order[k]] if k < count else -1
    partners[i] = neighbors[i, 0]
    return costs[order[0]] if count else np.inf


@_helper
def _push(heap, items, size, cost, i):  # type: ignore[no-untyped-def]
    """Adds an item to a binary heap of `size` items."""
    while size > 0:
        above = (size - 1) // 2
        if heap[above] <= cost:
            break
        heap[size], items[size] = heap[above], items[above]
        size = above
    heap[size], items[size] = cost, i


@_helper
def _pop(heap, items, size):  # type: ignore[no-untyped-def]
    """Removes the first item of a binary heap of `size` items."""
    cost, i, k = heap[size - 1], items[size - 1], 0
    while True:
        below = 2 * k + 1
        if below >= size - 1:
            break
        if below + 1 < size - 1 and heap[below + 1] < heap[below]:
            below += 1
        if heap[below] >= cost:
            break
        heap[k], items[k] = heap[below], items[below]
        k = below
    heap[k], items[k] = cost, i


def _greedy(clusters, neighbors, target, blur):  # type: ignore[no-untyped-def]
    """Merges the cheapest pair of neighbours again and again; returns the cluster of each row, its smallest index.

    A heap has the cost of each cluster's cheapest partner. An entry whose partner has changed since is computed again
    when it comes up, and one that is not the cluster's latest is skipped. It ends at `target` clusters, or earlier if
    no cluster has a neighbour.

    `clusters` and `neighbors` (-1: none) are changed in place.
    """
    n, k = neighbors.shape
    parents, partners = np.arange(n), np.empty(n, np.int32)
    versions, seen = np.zeros(n, np.int32), np.zeros(n, np.int32)  # merges of a cluster; those of its partner, if known
    heap, items, latest, size = np.empty(n), np.empty(n, np.int32), np.empty(n), 0
    found, costs, union = np.empty(2 * k, np.int32), np.empty(2 * k), np.empty(COLUMNS)
    for i in range(n):
        count = _collect(clusters, neighbors, parents, i, i, blur, union, found, costs)
        latest[i] = _store(neighbors, partners, i, found, costs, count)
        if count:
            _push(heap, items, size, latest[i], i)
            size += 1
    alive = n
    while alive > target and size > 0:
        i, cost = items[0], heap[0]
        _pop(heap, items, size)
        size -= 1
        if parents[i] != i or cost != latest[i]:
            continue
        j = partners[i]
        absorbed = i
        if parents[j] == j and versions[j] == seen[i]:
            i, absorbed = min(i, j), max(i, j)
            _unite(clusters[i], clusters[absorbed], union)
            clusters[i] = union
            parents[absorbed] = i
            versions[i] += 1
            alive -= 1
        count = _collect(clusters, neighbors, parents, i, absorbed, blur, union, found, costs)
        latest[i] = _store(neighbors, partners, i, found, costs, count)
        if count:
            seen[i] = versions[partners[i]]
            _push(heap, items, size, latest[i], i)
            size += 1
    for i in range(n):
        parents[i] = _root(parents, i)
    return parents


greedy = compile_kernel(_greedy, "i8[::1](f8[:,::1],i4[:,::1],i8,f8)", _OPTIONS)
