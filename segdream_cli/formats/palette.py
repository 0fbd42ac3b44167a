"""Codebooks and palettes: k-means in one and in many dimensions, in numpy.

`sog` uses them to reduce a million values to 256, and a million Gaussians to 65536 entries, in seconds on a CPU.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdream_cli.splats import Float32s

Indices = NDArray[np.intp]

CODES = 256
CODEBOOK_STEPS = 100
KNOTS = 2048
"""Quantiles that approximate a density."""
CELLS = 1 << 16
"""Cells of the table that finds the nearest code."""
LLOYD_STEPS = 5
"""Iterations; further ones reduce the error by less than 1 %."""
SHARED_PRODUCT = 1 << 18
"""Number of multiplications from which OpenBLAS uses several threads."""
CACHED_VALUES = 1 << 17


def codebook(values: Float32s) -> Float32s:
    """256 values in ascending order that approximate all of `values`.

    One-dimensional k-means: from the quantiles of the cube root of the density (Panter and Dite), which is optimal
    for many levels, by Lloyd's steps on cumulative sums. Up to 256 different values are kept unchanged.
    """
    ordered = np.sort(values, axis=None).astype(np.float64)
    levels = ordered[np.flatnonzero(np.diff(ordered, prepend=np.nan))][: CODES + 1]
    if len(levels) > CODES:
        knots = ordered[np.linspace(0, len(ordered) - 1, KNOTS).astype(np.intp)]
        mass = np.cumsum(np.diff(knots, prepend=knots[0]) ** (2 / 3))  # width times the cube root of 1 / width
        levels = np.interp((np.arange(CODES) + 0.5) / CODES * mass[-1], mass, knots)
        levels = _lloyd_1d(ordered, levels)
    return np.pad(levels, (0, CODES - len(levels)), mode="edge").astype(np.float32)


def nearest_codes(codes: Float32s, values: Float32s) -> NDArray[np.uint8]:
    """Index of the nearest of the 256 ascending `codes` for each of `values`, in their shape.

    A table of equal cells gives the index of all values but those that share a cell with the middle between two codes.
    It takes a tenth of the time of a binary search. Rounding is harmless: it keeps the order of values and middles.
    """
    middles = (codes[1:].astype(np.float64) + codes[:-1]) / 2
    width = max(middles[-1] - middles[0], float(np.finfo(np.float32).tiny))

    def cells(some: NDArray[Any]) -> NDArray[np.int32]:
        share: NDArray[np.float64] = (some - middles[0]) * (CELLS / width)
        return np.clip(share, 0, CELLS, out=share).astype(np.int32)

    flat = values.reshape(-1)
    starts_of_cells, own = cells(middles), cells(flat)
    table = np.searchsorted(starts_of_cells, np.arange(CELLS + 1)).astype(np.uint8)
    indices = table.take(own)
    shared = np.zeros(CELLS + 1, bool)
    shared[starts_of_cells] = True
    unsure = np.flatnonzero(shared.take(own))
    indices[unsure] = np.searchsorted(middles, flat[unsure])
    return indices.reshape(values.shape)


def _lloyd_1d(ordered: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lloyd's algorithm on sorted values; a level without values moves to where the squared error is largest."""
    sums = np.concatenate([[0], np.cumsum(ordered)])
    squares = None
    for _ in range(CODEBOOK_STEPS):
        bounds = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        bounds = np.concatenate([[0], bounds, [len(ordered)]])
        counts = np.diff(bounds)
        totals = np.diff(sums[bounds])
        levels = np.where(counts, totals / np.maximum(counts, 1), levels)
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            if squares is None:
                squares = np.concatenate([[0], np.cumsum(ordered**2)])
            errors = np.diff(squares[bounds]) - totals * levels * (counts > 0)
            worst = np.argsort(errors)[-len(empty) :]
            levels[empty] = (levels[worst] + ordered[bounds[worst + 1] - 1]) / 2  # the middle of its upper half
            levels.sort()
    return levels


def clusters(points: Float32s, count: int) -> tuple[Float32s, NDArray[np.uint16]]:
    """At most `count` centres [c, d] for `points` [n, d], and the index of each point's centre [n].

    k-means in two levels: groups first, then k-means within each, with entries in proportion to what is left of the
    squared error. It takes about the square root of the time of one level, and its error is within 2 % of it.
    """
    exponent = np.frexp(np.abs(points).max())[1]
    points = np.ldexp(points, -exponent)  # within one, so that squares neither overflow nor vanish
    group_count = max(1, min(count, int(np.sqrt(len(points)) / 2)))
    sample = points[:: max(1, len(points) // (64 * group_count))]
    members = _split(_nearest(points, _lloyd(sample, group_count)[0]), group_count)
    groups = [group for group in members if len(group)]
    spreads = np.array([points[group].var(axis=0).sum() * len(group) for group in groups], np.float64)
    sizes = _shares(spreads, np.array([len(group) for group in groups]), count)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda group, size: _lloyd(points[group], size), groups, sizes))
    labels = np.empty(len(points), np.uint16)
    starts = np.cumsum(sizes) - sizes
    for group, start, (_, nearest) in zip(groups, starts, found, strict=True):
        labels[group] = start + nearest
    centres = [own for own, _ in found]
    return np.ldexp(np.concatenate(centres), exponent), labels


def _shares(spreads: NDArray[np.float64], limits: Indices, total: int) -> Indices:
    """Entries per group: at least one, at most its limit, and at most `total` in sum if that allows one for each.

    By the spread to the power d / (d + 2), which is optimal for d dimensions; data of this kind fills about eight.
    """
    weights = spreads**0.8
    wanted = np.where(weights > 0, limits, 1)
    if wanted.sum() <= total:
        return wanted
    low, high = 0.0, total / weights[weights > 0].min() + 1
    for _ in range(100):  # the factor at which the capped shares just fit
        middle = (low + high) / 2
        fits = np.clip(middle * weights, 1, wanted).astype(np.intp).sum() <= total
        low, high = (middle, high) if fits else (low, middle)
    return np.clip(low * weights, 1, wanted).astype(np.intp)


def _lloyd(points: Float32s, count: int) -> tuple[Float32s, Indices]:
    """`count` centres by Lloyd's algorithm from random points, and the nearest one of each point."""
    if count >= len(points):
        return points, np.arange(len(points))
    centres = points[np.random.default_rng(0).choice(len(points), count, replace=False)]
    for _ in range(LLOYD_STEPS):
        labels = _nearest(points, centres)
        counts = np.bincount(labels, minlength=count)
        used = counts > 0
        starts = np.cumsum(counts) - counts
        sums = np.add.reduceat(points[np.argsort(labels, kind="stable")], starts[used], axis=0)
        centres[used] = sums / counts[used, None]
    return centres, _nearest(points, centres)


def _nearest(points: Float32s, centres: Float32s) -> Indices:
    """Index of the nearest of `centres` [k, d] for each of `points` [n, d].

    Each product of the stack is too small for OpenBLAS to use several threads: several threads take a hundred times as
    long if another process uses the cores.
    """
    n, d = points.shape
    halves = np.einsum("kd,kd->k", centres, centres) / 2
    rows = 1 + SHARED_PRODUCT // (centres.size + 1)
    stacked = np.zeros((-(-n // rows), rows, d), np.float32)
    stacked.reshape(-1, d)[:n] = points
    nearest = np.empty(stacked.shape[:2], np.intp)
    stride = 1 + CACHED_VALUES // (rows * len(centres))
    for start in range(0, len(stacked), stride):
        block = slice(start, start + stride)
        nearest[block] = np.argmax(stacked[block] @ centres.T - halves, axis=2)
    return nearest.ravel()[:n]


def _split(labels: Indices, count: int) -> list[Indices]:
    """The rows of each label."""
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=count))[:-1])
