"""The opacity field on a grid: the least opacity that a straight line from outside passes before each node."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdream_cli.splats import Splats
from segdream_cli.splats.transform import rotation_matrices

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

REACH = 3.0
"""Standard deviations after which a Gaussian ends."""
NARROWEST = 0.5
"""Standard deviation in grid steps to which Gaussians are widened, so their sums on the grid are accurate to 1.5%."""
COARSE_FROM = 1.5
"""Standard deviation, in steps of a coarser grid, from which Gaussians go to that grid, which is interpolated."""
LEVELS = 4
MOST_OPAQUE = 0.999
GLIMPSES = 2
"""Number of the 26 directions from which a hidden point may be visible, through random gaps between Gaussians."""
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Field:
    """Values at the nodes `origin + step * (i, j, k)`."""

    values: Floats
    origin: Floats
    step: float


def opacity_field(splats: Splats, low: Floats, high: Floats, resolution: int) -> Field:
    """The least opacity that a straight line from outside passes before each node of a box, in 0..1.

    Args:
        splats: the asset.
        low: lowest corner of the box.
        high: its highest corner.
        resolution: steps along its longest side.
    """
    density = _density(splats, low, high, resolution)
    least = np.full((GLIMPSES + 1, *density.values.shape), np.inf, np.float32)
    for direction in itertools.product((-1, 0, 1), repeat=3):
        if any(direction):
            _pass_through(density, direction, least)
    return Field(-np.expm1(-least[-1]), density.origin, density.step)


def count_pairs(counts: Indices, chunk: int = CHUNK) -> Iterator[tuple[Indices, Indices]]:
    """Pairs (i, 0), ..., (i, counts[i] - 1) for each i in turn, in arrays of about `chunk` pairs."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        done = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, done + chunk, side="right")), first + 1)
        part = counts[first:last]
        owner = np.repeat(np.arange(first, last), part)
        yield owner, np.arange(len(owner)) - np.repeat(ends[first:last] - part - done, part)
        first = last


def _pass_through(density: Field, direction: tuple[int, ...], least: Floats) -> None:
    """Inserts the optical depth of the lines along `direction` into `least`, which is sorted along its first axis."""
    axis = next(i for i in range(3) if direction[i])
    values, ranks = np.moveaxis(density.values, axis, 0), np.moveaxis(least, axis + 1, 0)
    if direction[axis] < 0:
        values, ranks = values[::-1], ranks[::-1]
    shifts = [direction[i] for i in range(3) if i != axis]
    to = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(shifts, values.shape[1:], strict=True))
    come = tuple(slice(max(-s, 0), n + min(-s, 0)) for s, n in zip(shifts, values.shape[1:], strict=True))
    half = np.float32(density.step * np.linalg.norm(direction) / 2)
    depth = np.zeros_like(values[0])  # up to the middle between the node before and this one
    for k in range(len(values)):
        here = half * values[k]  # trapezoidal rule
        rest = depth + here
        for rank in ranks[k]:
            rank[:], rest = np.minimum(rank, rest), np.maximum(rank, rest)
        passed = depth + 2 * here
        depth = np.zeros_like(depth)
        depth[to] = passed[come]


def _density(splats: Splats, low: Floats, high: Floats, resolution: int) -> Field:
    """Extinction per unit length at the nodes of a box, with at least one empty layer of nodes around it."""
    step = float((high - low).max() / resolution)
    block = 2 ** (LEVELS - 1)
    cells = (np.ceil((high - low) / step / block) * block).astype(int)
    origin = (low + high) / 2 - step * cells / 2
    scales, peaks = _widen(splats, step)
    widths = np.log2(scales.min(axis=1) / (COARSE_FROM * step))
    level = np.clip(np.floor(widths), 0, LEVELS - 1)
    values = np.zeros(cells // block + 1, np.float32)
    for each in reversed(range(LEVELS)):
        if each < LEVELS - 1:
            values = _refine(values)
        chosen = level == each
        _splat(
            values, origin, step * 2**each, splats.means[chosen], splats.quats[chosen], scales[chosen], peaks[chosen]
        )
    return Field(np.pad(values[1:-1, 1:-1, 1:-1], 1), origin.astype(np.float32), step)


def _widen(splats: Splats, step: float) -> tuple[Floats, Floats]:
    """Scales, at least those that the grid resolves, [n, 3], and each Gaussian's extinction at its centre, [n].

    Face on, the extinction along a line through the centre adds up to -ln(1 - opacity). Where widening enlarges the
    face, the extinction is reduced by the same factor.
    """
    true = np.sort(np.exp(splats.log_scales), axis=1)
    held = np.maximum(true, np.float32(NARROWEST * step))
    opacities = np.minimum(1 / (1 + np.exp(-splats.opacity_logits)), MOST_OPAQUE)
    area = (true[:, 1:] / held[:, 1:]).prod(axis=1)
    peaks = -np.log1p(-opacities) * area / (np.sqrt(2 * np.pi) * held[:, 0])
    return np.maximum(np.exp(splats.log_scales), np.float32(NARROWEST * step)), peaks.astype(np.float32)


def _refine(coarse: Floats) -> Floats:
    """Interpolates the field linearly on a grid with a node between every two."""
    for axis in range(3):
        moved = np.moveaxis(coarse, axis, 0)
        fine = np.empty((2 * len(moved) - 1, *moved.shape[1:]), np.float32)
        fine[::2] = moved
        fine[1::2] = (moved[1:] + moved[:-1]) / 2
        coarse = np.moveaxis(fine, 0, axis)
    return np.ascontiguousarray(coarse)


def _splat(
    values: Floats, origin: Floats, step: float, means: Floats, quats: Floats, scales: Floats, peaks: Floats
) -> None:
    """Adds Gaussians to the nodes in their boxes."""
    turns = rotation_matrices(quats)
    whiten = turns.transpose(0, 2, 1) / scales[:, :, None]  # [n, 3, 3], x -> the Gaussian's own axes and units
    reach = REACH * np.sqrt(((turns * scales[:, None, :]) ** 2).sum(axis=2))
    size = np.array(values.shape)
    first = np.clip(np.ceil((means - reach - origin) / step), 0, size).astype(np.int64)
    last = np.clip(np.floor((means + reach - origin) / step) + 1, first, size).astype(np.int64)
    sides = last - first
    flat = values.reshape(-1)
    position = (first * step + origin - means).astype(np.float32)
    for owner, number in count_pairs(sides.prod(axis=1)):
        depth, rows = sides[owner, 2], sides[owner, 1]
        line, k = np.divmod(number, depth)
        i, j = np.divmod(line, rows)
        offsets = position[owner] + np.float32(step) * np.stack([i, j, k], axis=1).astype(np.float32)
        squares = (np.einsum("eab,eb->ea", whiten[owner], offsets) ** 2).sum(axis=1)
        corner = first[owner]
        node = ((corner[:, 0] + i) * size[1] + corner[:, 1] + j) * size[2] + corner[:, 2] + k
        near = squares < REACH**2
        np.add.at(flat, node[near], (peaks[owner] * np.exp(-squares / 2))[near])
