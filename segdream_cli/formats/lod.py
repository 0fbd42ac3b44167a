"""Streamed SOG of PlayCanvas: a folder with `lod-meta.json` and, per level of detail, SOG units of many chunks.

A binary tree divides space; its leaves are chunks. Each leaf has a bound and, for each level, the unit, the first row
and the number of its Gaussians there. A viewer draws one level of each leaf, chosen by distance, and loads the units
that it needs. Level 0 is the finest. All files are in the PLY frame. `write` follows PlayCanvas's manual, "The Streamed
SOG Format"; only writing is implemented.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdream_cli.formats import sog
from segdream_cli.formats.common import require_finite
from segdream_cli.formats.ordering import along_z_curve
from segdream_cli.formats.sniff import META
from segdream_cli.splats import Float32s, Splats, sanitize, to_ply_frame
from segdream_cli.splats.transform import rotation_matrices
from segdream_cli.util.files import atomic_folder

LOD_META = "lod-meta.json"
CHUNK = 1 << 16
"""Largest number of Gaussians of a leaf, all levels together."""
UNIT = 1 << 18
"""Number of Gaussians from which a level starts another unit."""
Indices = NDArray[np.intp]


@dataclass(slots=True)
class _Level:
    """A level of detail while chunks are assigned to its units."""

    splats: Splats
    boxes: Float32s
    """Half sides of the boxes about the ellipsoids of one standard deviation, [n, 3]."""
    units: list[list[Indices]] = field(default_factory=list)

    def place(self, rows: Indices) -> tuple[int, int]:
        """Adds the rows of a chunk; returns the index of their unit and their first row in it."""
        filled = sum(map(len, self.units[-1])) if self.units else UNIT
        if filled >= UNIT:
            self.units.append([])
            filled = 0
        self.units[-1].append(rows)
        return len(self.units) - 1, filled


def write(folder: Path, levels: Sequence[Splats], *, chunk: int = CHUNK) -> None:
    """Writes a folder, replaced as a whole; rounding as in `sog.write`.

    Args:
        folder: the folder, which need not exist.
        levels: the same asset with fewer and fewer Gaussians.
        chunk: largest number of Gaussians of a leaf, all levels together.

    Raises:
        SegdreamError: a level has no Gaussians, some are not finite, or the disk is full.
        UsageProblem: the folder can't be written.
    """
    for splats in levels:
        require_finite(splats)
    turned = [_Level(part, _half_sides(part)) for part in (to_ply_frame(sanitize(splats)) for splats in levels)]
    about = sog.describe(levels[0])
    files: dict[tuple[int, int], int] = {}
    tree = _split(turned, [np.arange(len(splats)) for splats in levels], chunk, files)
    names = [f"{level}_{unit}/{META}" for level, unit in files]
    meta = {
        "version": 1,
        "asset": about,
        "count": sum(map(len, levels)),
        "counts": [len(splats) for splats in levels],
        "lodLevels": len(levels),
        "lodErrors": False,
        "filenames": names,
        "tree": tree,
    }
    with atomic_folder(folder) as new:
        (new / LOD_META).write_bytes(json.dumps(meta, allow_nan=False).encode())
        for (level, unit), name in zip(files, names, strict=True):
            rows = np.concatenate(turned[level].units[unit])
            (new / name).parent.mkdir()
            for file, content in sog.encode(turned[level].splats.select(rows), about).items():
                (new / name).with_name(file).write_bytes(content)


def _half_sides(splats: Splats) -> Float32s:
    found: Float32s = (np.abs(rotation_matrices(splats.quats)) @ np.exp(splats.log_scales)[..., None])[..., 0]
    return found


def _split(
    levels: Sequence[_Level], rows: Sequence[Indices], chunk: int, files: dict[tuple[int, int], int]
) -> dict[str, Any]:
    """The node of the tree with the `rows` of each level; adds units to `files`, level and unit -> index."""
    if sum(map(len, rows)) <= chunk:
        return _leaf(levels, rows, files)
    means = np.concatenate([level.splats.means[part] for level, part in zip(levels, rows, strict=True)])
    axis = int(np.argmax(means.max(axis=0) - means.min(axis=0)))
    # by rank, so that equal coordinates are divided too
    lower = np.zeros(len(means), bool)
    lower[np.argpartition(means[:, axis], len(means) // 2)[: len(means) // 2]] = True
    ends = np.cumsum([len(part) for part in rows])[:-1]
    sides = np.split(lower, ends)
    children = [
        _split(levels, [part[side == is_lower] for part, side in zip(rows, sides, strict=True)], chunk, files)
        for is_lower in (True, False)
    ]
    bounds = [child["bound"] for child in children]
    bound = {
        "min": np.min([each["min"] for each in bounds], axis=0).tolist(),
        "max": np.max([each["max"] for each in bounds], axis=0).tolist(),
    }
    return {"bound": bound, "children": children}


def _leaf(levels: Sequence[_Level], rows: Sequence[Indices], files: dict[tuple[int, int], int]) -> dict[str, Any]:
    """A leaf; within it, the rows of each level go along a Z-curve."""
    lods: dict[str, dict[str, int]] = {}
    low, high = [], []
    for i, (level, part) in enumerate(zip(levels, rows, strict=True)):
        if not len(part):
            continue
        part = part[along_z_curve(level.splats.means[part])]
        low.append((level.splats.means[part] - level.boxes[part]).min(axis=0))
        high.append((level.splats.means[part] + level.boxes[part]).max(axis=0))
        unit, offset = level.place(part)
        file = files.setdefault((i, unit), len(files))
        lods[str(i)] = {"file": file, "offset": offset, "count": len(part)}
    return {"bound": {"min": np.min(low, axis=0).tolist(), "max": np.max(high, axis=0).tolist()}, "lods": lods}
