"""Coloured point clouds as PLY, for mesh tools and for the start of a run."""

from pathlib import Path

import numpy as np

from segdream_cli.errors import UsageProblem
from segdream_cli.formats.common import ANOTHER_FILE, provenance_comments, refuse_nonfinite, require_finite
from segdream_cli.formats.ply import MEANS, Vertices, is_asset, read_vertices, save, to_splats
from segdream_cli.splats import SH_C0, Float32s, Splats

COLOURS = ("red", "green", "blue")


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


def read(path: Path) -> tuple[Float32s, Float32s | None]:
    """Points [n, 3] and colours [n, 3] in 0..1, or None, of a PLY point cloud, mesh or asset, in the inner frame.

    Point clouds and meshes are read as y up, Gaussians as in the PLY frame. Colours are bytes, 16-bit integers, or
    floats in 0..1.

    Raises:
        UsageProblem: the file can't be opened, is not a PLY, is damaged, or has no points.
    """
    vertices = read_vertices(path)
    names = vertices.rows.dtype.names or ()
    if is_asset(names):
        splats = to_splats(vertices)
        return splats.means, _colours(splats)
    missing = [name for name in MEANS if name not in names]
    if missing:
        raise UsageProblem(f"{path} holds no points: it lacks {', '.join(missing)}", hint=ANOTHER_FILE)
    means = vertices.floats(MEANS)
    colours = _file_colours(vertices) if set(COLOURS) <= set(names) else None
    values = means if colours is None else np.hstack([means, colours])
    refuse_nonfinite(path, np.flatnonzero(~np.isfinite(values).all(axis=1)), len(means))
    return means, None if colours is None else np.clip(colours, 0, 1)


def _colours(splats: Splats) -> Float32s:
    colours: Float32s = np.clip(np.float32(0.5) + np.float32(SH_C0) * splats.sh0, 0, 1)
    return colours


def _file_colours(vertices: Vertices) -> Float32s:
    columns = np.stack([vertices.rows[name] for name in COLOURS], axis=1)
    if columns.dtype.kind == "f":
        return vertices.floats(COLOURS)
    if columns.dtype not in (np.uint8, np.uint16):
        raise UsageProblem(
            f"{vertices.path}: the colours are of type {columns.dtype.name}, not uchar, ushort or float",
            hint=ANOTHER_FILE,
        )
    return (columns / np.iinfo(columns.dtype).max).astype(np.float32)
