"""Coloured point clouds as PLY, for mesh tools and for the start of a run."""

from pathlib import Path

import numpy as np

from segdream_cli.errors import UsageProblem
from segdream_cli.formats.common import (
    DEFAULT,
    Reading,
    finish,
    keep_rows,
    parse_provenance,
    provenance_comments,
    require_finite,
)
from segdream_cli.formats.ply import (
    COLOURS,
    MEANS,
    Vertices,
    as_splats_hint,
    read_vertices,
    save,
)
from segdream_cli.splats import SH_C0, Float32s, Splats
from segdream_cli.splats.frames import INNER, axes, check_frame

NEIGHBOURS = 3
WIDTH = 0.5
"""Standard deviation of the Gaussian at a point, in root mean square distances to its nearest neighbours."""
WIDEST = 4.0
"""The same of a point far from others, in medians of all standard deviations."""
OPACITY_LOGIT = 4.0
GRAY = 0.5


def write(path: Path, splats: Splats) -> None:
    """Writes the centres, y up, with their colours 0.5 + C0 sh0 as bytes.

    Raises:
        SegdreamError: there are no Gaussians, some are not finite, or the disk is full.
        UsageProblem: the folder can't be written.
    """
    require_finite(splats)
    rows = np.empty(len(splats), [(name, "<f4") for name in MEANS] + [(name, "u1") for name in COLOURS])
    colours = np.rint(_colours(splats) * 255)
    for i in range(3):
        rows[MEANS[i]] = splats.means[:, i]
        rows[COLOURS[i]] = colours[:, i]
    save(path, rows, provenance_comments(splats))


def read(path: Path, reading: Reading = DEFAULT) -> Splats:
    """A round Gaussian at each point of a PLY point cloud or mesh, whose axes are those of the inner frame.

    Its standard deviation is `WIDTH` times the root mean square distance to the nearest neighbours, so that surfaces
    close. Points without colours are grey.

    Raises:
        UsageProblem: `reading` does not ask for `as_splats`, or the file is refused as by `read_points`.
    """
    if not reading.as_splats:
        raise UsageProblem(f"{path} holds points, not Gaussians", hint=as_splats_hint(path))
    vertices = read_vertices(path)
    _require_points(vertices)
    means = vertices.means(reading)
    n = len(means)
    colors = vertices.colors() if _has_colors(vertices) else np.full((n, 3), GRAY, np.float32)
    splats = Splats(
        means=means,
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (n, 1)),
        log_scales=np.zeros((n, 3), np.float32),
        opacity_logits=np.full(n, OPACITY_LOGIT, np.float32),
        sh0=(colors - np.float32(0.5)) / np.float32(SH_C0),
        shN=np.zeros((n, 0, 3), np.float32),
        provenance=parse_provenance(vertices.comments),
    )
    splats = finish(path, splats, reading, INNER)
    splats.log_scales[:] = _log_widths(splats.means)[:, None]
    return splats


def _log_widths(points: Float32s) -> Float32s:
    """Logarithms [n] of the standard deviations of Gaussians at `points` [n, 3]."""
    from scipy.spatial import KDTree  # slow to import

    if len(points) == 1:
        return np.zeros(1, np.float32)
    count = min(NEIGHBOURS, len(points) - 1)
    distances = KDTree(points).query(points, k=list(range(2, count + 2)))[0]  # the nearest one is the point itself
    widths = WIDTH * np.sqrt(np.mean(distances**2, axis=1))
    typical = float(np.median(widths[widths > 0])) if widths.any() else 1.0
    logarithms: Float32s = np.log(np.clip(widths, typical / WIDEST, typical * WIDEST)).astype(np.float32)
    return logarithms


def read_points(path: Path, reading: Reading = DEFAULT) -> tuple[Float32s, Float32s | None]:
    """Points [n, 3] and colours [n, 3] in 0..1, or None, of a PLY point cloud or mesh, in the inner frame.

    The file is y up unless `reading` names its frame. Colours are bytes, 16-bit integers, or floats in 0..1.

    Raises:
        UsageProblem: the file can't be opened, is not a PLY, is damaged, or has no points, or `reading` is strict and
            some are not finite.
    """
    vertices = read_vertices(path)
    _require_points(vertices)
    means, colors = vertices.means(reading), vertices.colors() if _has_colors(vertices) else None
    values = means if colors is None else np.hstack([means, colors])
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        kept = keep_rows(path, bad, len(means), reading)
        means, colors = means[kept], None if colors is None else colors[kept]
    if reading.frame is not None:
        means = (means @ axes(check_frame(reading.frame)).T).astype(np.float32)
    return means, None if colors is None else np.clip(colors, 0, 1)


def _require_points(vertices: Vertices) -> None:
    """Refuses vertices without a position."""
    missing = [name for name in MEANS if name not in (vertices.rows.dtype.names or ())]
    if missing:
        raise UsageProblem(f"{vertices.path} holds no points: it lacks {', '.join(missing)}")


def _has_colors(vertices: Vertices) -> bool:
    return set(COLOURS) <= set(vertices.rows.dtype.names or ())


def _colours(splats: Splats) -> Float32s:
    colours: Float32s = np.clip(np.float32(0.5) + np.float32(SH_C0) * splats.sh0, 0, 1)
    return colours
