"""Gaussians to triangles: `extract` makes a closed mesh with colours, `collide` convex pieces, `write` stores either.

A point belongs to the solid if it is hidden from every side: every straight line to it from outside passes an
opacity of at least one half. That is the surface that images of the asset show, it fills the inside of a shell,
and it has no holes (the opacity field of Yu et al., https://arxiv.org/abs/2404.10772, on a grid). The colours
come from images from all around. Everything stays in the inner frame, which is glTF's: y up, the
front faces +Z.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from segdream_cli.errors import SegdreamError
from segdream_cli.formats.common import require_finite
from segdream_cli.mesh.files import SUFFIXES, write
from segdream_cli.mesh.libraries import PIECES, UNWRAP, check_packages, library
from segdream_cli.mesh.solid import Field, opacity_field
from segdream_cli.mesh.texture import bake, color_vertices
from segdream_cli.mesh.triangles import Floats, Indices, Mesh, resize, to_frame
from segdream_cli.splats import Splats
from segdream_cli.splats.gaussians import Gaussians, bounds

__all__ = [
    "SUFFIXES",
    "Mesh",
    "check_packages",
    "collide",
    "extract",
    "resize",
    "stages",
    "to_frame",
    "write",
]

SURFACE, TRIANGLES, UNWRAPPING, TEXTURE, COLORS, CONVEX = (
    *("surface", "triangles", "texture coordinates", "texture", "colours", "convex pieces"),
)
RESOLUTION, FIRST_LOOK = 192, 64
"""Steps along the longest side: of the grid, and of the coarse grid that finds the solid."""
MARGIN = 1.25
"""Half side of the coarse grid's box, in radii of the asset."""
CARE = 3
"""Aggressiveness of the simplification, 0 to 10; from 7 on it tears a mesh in three."""
CRUMB = 0.02
"""Share of the largest part's volume below which a part is dropped."""
TOLERANCES = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4)
"""Distances in grid steps by which manifold3d may move the surface of a mesh that a simplification tears."""
SPONGE = 20
"""Triangles per squared resolution above which the mesh is not simplified; a ball has six."""
COARSER, COARSEST = 0.6, 32
"""Factor on the resolution for the next attempt, and the lowest resolution."""
FACES_OF_PART = 100
"""Minimum number of triangles per part: if there would be fewer, the smallest parts are dropped."""
COLLISION_RESOLUTION, COLLISION_FACES = 96, 3000
"""Steps of the grid, and triangles of the closed surface that convex pieces approximate."""
CONCAVITY, MOST_PIECES, CORNERS = 0.1, 32, 64
"""CoACD's threshold, and limits that physics engines keep: pieces of an object, and vertices of a piece."""
SEARCH = {"mcts_nodes": 10, "mcts_iterations": 50, "resolution": 1000}
"""CoACD's search for cuts: a third of its own defaults, in a third of the time, for pieces as good on assets."""


@dataclass(frozen=True, slots=True)
class _Closed:
    """A closed surface."""

    triangles: Any
    """As a trimesh."""
    step: float
    """Of the grid."""
    left_out: int
    resolution: int
    enough: int


def stages(*, colors: str = "texture", collision: bool = False) -> tuple[str, ...]:
    """Names of the parts of `extract` or, with `collision`, of `collide`."""
    last = (CONVEX,) if collision else (COLORS,) if colors == "vertex" else (UNWRAPPING, TEXTURE)
    return SURFACE, TRIANGLES, *last


def extract(
    splats: Splats,
    *,
    resolution: int = RESOLUTION,
    faces: int = 20_000,
    colors: str = "texture",
    texture_size: int = 1024,
    opacity: float = 0.5,
    device: torch.device | None = None,
    begin: Callable[[str], object] = lambda stage: None,
) -> Mesh:
    """The surface that images of `splats` show, as triangles with a texture or with colours of their vertices.

    Args:
        splats: the asset.
        resolution: cells of the grid along the longest side of the solid; detail below a cell is lost.
        faces: maximum number of triangles. The grid is coarser where no closed surface has so few, as for a sponge; the
            coarsest grid keeps its triangles even if there are more.
        colors: "texture", or "vertex" for one colour per vertex.
        texture_size: side of the texture in pixels.
        opacity: opacity that a straight line from outside has passed at the surface; a lower value keeps fainter and
            thinner parts, and makes all parts thicker.
        device: where the images for the colours are rendered; the CPU if not given.
        begin: receives the name of each of the `stages` that begins; a coarser grid begins with the first again.

    Raises:
        EnvironmentProblem: a library of the extra "mesh" is missing.
        SegdreamError: there are no Gaussians, some are not finite, or they are nowhere opaque enough for a surface.
    """
    check_packages(*([UNWRAP] if colors == "texture" else []))
    closed = _close(splats, resolution, faces, opacity, begin)
    device = device or torch.device("cpu")
    vertices = np.asarray(closed.triangles.vertices, np.float32)
    normals = np.asarray(closed.triangles.vertex_normals, np.float32)
    uvs, texture, painted = None, None, None
    if colors == "vertex":
        begin(COLORS)
        corners = np.asarray(closed.triangles.faces, np.int64)
        painted, coverage = color_vertices(splats, closed.triangles, closed.step, device)
    else:
        begin(UNWRAPPING)
        kept, corners, uvs = _unwrap(closed.triangles, texture_size)
        begin(TEXTURE)
        texture, coverage = bake(splats, closed.triangles, corners, uvs, texture_size, closed.step, device)
        vertices, normals = vertices[kept], normals[kept]
    return Mesh(
        vertices=vertices,
        normals=normals,
        uvs=uvs,
        faces=corners,
        texture=texture,
        watertight=bool(closed.triangles.is_watertight and closed.triangles.is_winding_consistent),
        components=int(closed.triangles.body_count),
        left_out=closed.left_out,
        resolution=closed.resolution,
        enough=closed.enough,
        coverage=coverage,
        provenance=dict(splats.provenance),
        colors=painted,
    )


def collide(splats: Splats, *, opacity: float = 0.5, begin: Callable[[str], object] = lambda stage: None) -> Mesh:
    """Convex pieces that together cover the surface of `extract`, for physics, without colours.

    They come from a coarse grid and CoACD (Wei et al., https://arxiv.org/abs/2205.02961): at most 32 of 64 vertices.
    Small parts of the asset are dropped, as by `extract`.

    Args:
        splats: the asset.
        opacity: as for `extract`.
        begin: receives the name of each of the `stages` that begins.

    Raises:
        EnvironmentProblem: a library of the extra "mesh" is missing.
        SegdreamError: as for `extract`.
    """
    check_packages(PIECES)
    closed = _close(splats, COLLISION_RESOLUTION, COLLISION_FACES, opacity, begin)
    begin(CONVEX)
    coacd = library(PIECES)
    coacd.set_log_level("error")
    source = coacd.Mesh(np.asarray(closed.triangles.vertices), np.asarray(closed.triangles.faces))
    found = coacd.run_coacd(
        source,
        threshold=CONCAVITY,
        max_convex_hull=MOST_PIECES,
        preprocess_mode="off",  # the surface is closed
        decimate=True,
        max_ch_vertex=CORNERS,
        **SEARCH,
    )
    firsts = np.cumsum([0, *(len(vertices) for vertices, _ in found)])
    pieces = [library("trimesh").Trimesh(*piece, process=False) for piece in found]
    return Mesh(
        vertices=np.concatenate([vertices for vertices, _ in found]).astype(np.float32),
        normals=None,
        uvs=None,
        faces=np.concatenate([faces + first for (_, faces), first in zip(found, firsts, strict=False)]).astype(
            np.int64
        ),
        texture=None,
        watertight=all(piece.is_watertight and piece.is_winding_consistent for piece in pieces),
        components=len(found),
        left_out=closed.left_out,
        resolution=closed.resolution,
        enough=0,
        coverage=0.0,
        provenance=dict(splats.provenance),
        pieces=tuple(len(faces) for _, faces in found),
    )


def _close(splats: Splats, resolution: int, faces: int, opacity: float, begin: Callable[[str], object]) -> _Closed:
    """The closed surface of at most `faces` triangles, on a coarser grid if it has none; the arguments of `extract`."""
    require_finite(splats)
    closed, enough = None, None
    while closed is None:
        begin(SURFACE)
        solid, level, left_out = _solid(splats, resolution, opacity, max(1, faces // FACES_OF_PART))
        vertices, triangles, _, _ = library("skimage.measure").marching_cubes(
            solid.values, level, spacing=(solid.step,) * 3, gradient_direction="ascent", allow_degenerate=False
        )
        simple = len(triangles) < SPONGE * resolution**2 or len(triangles) <= faces
        begin(TRIANGLES)
        points = (vertices + solid.origin).astype(np.float32)
        if simple or resolution <= COARSEST:
            closed = _simplify(points, triangles, faces, solid.step)
        if closed is None and resolution <= COARSEST:
            closed = library("trimesh").Trimesh(points, triangles, process=False)
        if enough is None:
            enough = len(triangles) if closed is None and not left_out else 0
        resolution, used = max(COARSEST, int(COARSER * resolution)), resolution
    return _Closed(closed, solid.step, left_out, used, enough or 0)


def _solid(splats: Splats, resolution: int, opacity: float, most: int) -> tuple[Field, float, int]:
    """The opacity field around the solid, its value at the surface, and the number of dropped parts.

    All but the `most` largest parts are dropped; crumbs are dropped without being counted. The value at the surface is
    the opacity half way through a body of `opacity`, so images have that opacity at the outline of the mesh.
    """
    level = 1 - math.sqrt(1 - opacity)
    center, radius = bounds(Gaussians.from_splats(splats))
    low, high = center.numpy() + np.float32(MARGIN * radius) * np.array([[-1], [1]], np.float32)
    first, _ = _drop_crumbs(opacity_field(splats, low, high, FIRST_LOOK), level)
    nodes = np.argwhere(first.values > level)
    if not len(nodes):
        raise SegdreamError(
            f"no part of the asset is {opacity:.0%} opaque, so it has no surface",
            hint=f"--opacity {opacity / 2:g}",
        )
    ends = np.stack([nodes.min(axis=0) - 2, nodes.max(axis=0) + 2]).astype(np.float32)
    low = first.origin + np.float32(first.step) * ends[0]
    high = first.origin + np.float32(first.step) * ends[1]
    solid, left_out = _drop_crumbs(opacity_field(splats, low, high, resolution), level, most)
    return solid, level, left_out


def _drop_crumbs(solid: Field, level: float, most: int | None = None) -> tuple[Field, int]:
    """The field without crumbs, hollows, and parts beyond the `most` largest; the number of those parts."""
    label = library("skimage.measure").label
    parts = label(solid.values > level)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0  # the outside
    small = sizes < CRUMB * sizes.max()
    small[0] = False
    left_out = 0
    if most is not None:
        surplus = np.argsort(-sizes[1:], kind="stable")[most:] + 1
        left_out = int((~small[surplus]).sum())
        small[surplus] = True
    values = np.where(small[parts], np.float32(0), solid.values)
    outside = label(values <= level, connectivity=1)
    hollow = (outside != outside[0, 0, 0]) & (outside > 0)
    return Field(np.where(hollow, np.float32(1), values), solid.origin, solid.step), left_out


def _simplify(points: Floats, triangles: Indices, faces: int, step: float) -> Any:
    """A closed trimesh of at most `faces` triangles, or None.

    Quadric simplification keeps shapes best, but may pinch a surface; manifold3d never does.
    """
    make = library("trimesh").Trimesh
    if len(triangles) <= faces:
        return make(points, triangles, process=False)
    kept = library("fast_simplification").simplify(points, triangles, target_count=faces, agg=CARE)
    fewer = make(*kept, process=False)
    if len(fewer.faces) <= faces and fewer.is_watertight and fewer.is_winding_consistent:
        return fewer
    manifold3d = library("manifold3d")
    solid = manifold3d.Manifold(manifold3d.Mesh(vert_properties=points, tri_verts=triangles.astype(np.uint32)))
    for tolerance in TOLERANCES if solid.status() == manifold3d.Error.NoError else ():
        simple = solid.simplify(tolerance * step)
        if 0 < simple.num_tri() <= faces:
            found = simple.to_mesh()
            return make(np.asarray(found.vert_properties)[:, :3], np.asarray(found.tri_verts), process=False)
    return None


def _unwrap(closed: Any, size: int) -> tuple[Indices, Indices, Floats]:
    """The UV atlas of a mesh: the index in `closed` of each vertex [v], the faces [f, 3], and the UVs [v, 2]."""
    xatlas = library(UNWRAP)
    atlas = xatlas.Atlas()
    atlas.add_mesh(np.asarray(closed.vertices, np.float32), np.asarray(closed.faces, np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding = size, 2
    atlas.generate(pack_options=packing)
    kept, corners, uvs = atlas[0]
    return kept.astype(np.int64), corners.astype(np.int64), uvs.astype(np.float32)
