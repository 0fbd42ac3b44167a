"""Gaussians to a closed, textured triangle mesh: `extract` makes one, `write` stores it as .glb or .obj.

A point belongs to the solid if it is hidden from every side: every straight line to it from outside passes an
opacity of at least one half. That is the surface that images of the asset show, it fills the inside of a shell,
and it has no holes (the opacity field of Yu et al., https://arxiv.org/abs/2404.10772, on a grid). The texture
comes from images from all around. Everything stays in the inner frame, which is glTF's: y up, the
front faces +Z.
"""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segdream_cli import __version__
from segdream_cli.errors import EnvironmentProblem, SegdreamError, UsageProblem
from segdream_cli.formats.common import require_finite
from segdream_cli.mesh.solid import Field, opacity_field
from segdream_cli.mesh.texture import bake
from segdream_cli.splats import Splats
from segdream_cli.splats.frames import axes
from segdream_cli.splats.gaussians import Gaussians, bounds
from segdream_cli.splats.sizing import Sizing
from segdream_cli.util.files import write_together

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Indices = NDArray[np.int64]

SUFFIXES = (".glb", ".obj")
LIBRARIES = ("skimage.measure", "trimesh", "fast_simplification", "xatlas")
STAGES = SURFACE, TRIANGLES, UNWRAPPING, TEXTURE = "surface", "triangles", "texture coordinates", "texture"
"""Names of the parts of `extract`."""
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
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


@dataclass(frozen=True, slots=True)
class Mesh:
    """Triangles with one texture, in the inner frame; vertices repeat along the seams of the texture."""

    vertices: Floats
    """[v, 3]."""
    normals: Floats
    """Unit, outward and smooth across seams, [v, 3]."""
    uvs: Floats
    """Texture coordinates in 0..1, v upwards from the last row of the texture, [v, 2]."""
    faces: Indices
    """Counter-clockwise seen from outside, [f, 3]."""
    texture: Bytes
    """sRGB colours of the asset's images, with the light in them, [h, w, 3]."""
    watertight: bool
    """Whether every edge belongs to two triangles after the seams are closed."""
    components: int
    """Number of parts that do not touch."""
    left_out: int
    """Number of parts dropped because the requested triangles are too few for them."""
    resolution: int
    """Steps of the grid along its longest side: fewer than requested if the surface had too many holes."""
    enough: int
    """Triangles to request for the full resolution; 0 if the grid has it, or if parts were dropped."""
    coverage: float
    """Share of the surface that at least one image shows; the rest takes the colours around it."""
    provenance: dict[str, Any] = field(default_factory=dict)


def extract(
    splats: Splats,
    *,
    resolution: int = RESOLUTION,
    faces: int = 20_000,
    texture_size: int = 1024,
    opacity: float = 0.5,
    device: torch.device | None = None,
    begin: Callable[[str], object] = lambda stage: None,
) -> Mesh:
    """The surface that images of `splats` show, as triangles with a texture.

    Args:
        splats: the asset.
        resolution: cells of the grid along the longest side of the solid; detail below a cell is lost.
        faces: maximum number of triangles. The grid is coarser where no closed surface has so few, as for a sponge; the
            coarsest grid keeps its triangles even if there are more.
        texture_size: side of the texture in pixels.
        opacity: opacity that a straight line from outside has passed at the surface; a lower value keeps fainter and
            thinner parts, and makes all parts thicker.
        device: where the images for the texture are rendered; the CPU if not given.
        begin: receives the name of each of the `STAGES` that begins; a coarser grid begins with the first again.

    Raises:
        EnvironmentProblem: a library of the extra "mesh" is missing.
        SegdreamError: there are no Gaussians, some are not finite, or they are nowhere opaque enough for a surface.
    """
    libraries = {name: _library(name) for name in LIBRARIES}
    require_finite(splats)
    closed, enough = None, None
    while closed is None:
        begin(SURFACE)
        solid, level, left_out = _solid(splats, resolution, opacity, max(1, faces // FACES_OF_PART))
        vertices, triangles, _, _ = libraries["skimage.measure"].marching_cubes(
            solid.values, level, spacing=(solid.step,) * 3, gradient_direction="ascent", allow_degenerate=False
        )
        simple = len(triangles) < SPONGE * resolution**2 or len(triangles) <= faces
        begin(TRIANGLES)
        points = (vertices + solid.origin).astype(np.float32)
        if simple or resolution <= COARSEST:
            closed = _simplify(libraries, points, triangles, faces, solid.step)
        if closed is None and resolution <= COARSEST:
            closed = libraries["trimesh"].Trimesh(points, triangles, process=False)
        if enough is None:
            enough = len(triangles) if closed is None and not left_out else 0
        resolution, used = max(COARSEST, int(COARSER * resolution)), resolution
    begin(UNWRAPPING)
    kept, corners, uvs = _unwrap(libraries["xatlas"], closed, texture_size)
    begin(TEXTURE)
    texture, coverage = bake(splats, closed, corners, uvs, texture_size, solid.step, device or torch.device("cpu"))
    return Mesh(
        vertices=np.asarray(closed.vertices, np.float32)[kept],
        normals=np.asarray(closed.vertex_normals, np.float32)[kept],
        uvs=uvs,
        faces=corners,
        texture=texture,
        watertight=bool(closed.is_watertight and closed.is_winding_consistent),
        components=int(closed.body_count),
        left_out=left_out,
        resolution=used,
        enough=enough or 0,
        coverage=coverage,
        provenance=dict(splats.provenance),
    )


def resize(mesh: Mesh, sizing: Sizing) -> Mesh:
    """The mesh in its real size, with the origin of its coordinates at the pivot; raises the error of `solve`."""
    vertices = mesh.vertices.astype(np.float64)
    factor, offset = sizing.solve(vertices.min(axis=0), vertices.max(axis=0))
    return replace(mesh, vertices=(factor * vertices + offset).astype(np.float32))


def write(path: Path, mesh: Mesh) -> None:
    """Writes binary glTF 2.0 with its texture, or an .obj with an .mtl and a .png of the same name beside it.

    The material of a .glb is unlit (KHR_materials_unlit), since the texture already contains the light.

    Raises:
        EnvironmentProblem: a library of the extra "mesh" is missing.
        UsageProblem: the suffix is neither .glb nor .obj, or the folder can't be written.
        SegdreamError: the disk is full.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageProblem(
            f"{path} has no mesh suffix; use one of {', '.join(SUFFIXES)}",
            hint=f"-o {quote(str(path.with_suffix('.glb')))}",
        )
    write_together(_glb(path, mesh) if suffix == ".glb" else _obj(path, mesh))


def to_frame(mesh: Mesh, name: str) -> Mesh:
    """The mesh in the frame `name`; its triangles agree with its normals by the right-hand rule in every frame."""
    turn = axes(name).astype(np.float32)  # from the frame to the inner one, so its transpose on columns leads back
    mirrors = np.linalg.det(turn) < 0
    return replace(
        mesh,
        vertices=mesh.vertices @ turn,
        normals=mesh.normals @ turn,
        faces=mesh.faces[:, ::-1] if mirrors else mesh.faces,
    )


def check_packages() -> None:
    """Raises EnvironmentProblem if a library of the extra "mesh" is missing."""
    for name in LIBRARIES:
        _library(name)


def _library(name: str) -> Any:
    """Imports a module of the extra "mesh"; no other code does.

    Raises:
        EnvironmentProblem: it is missing.
    """
    try:
        return import_module(name)
    except ImportError as problem:
        raise EnvironmentProblem(
            f"meshes need the library {name.partition('.')[0]}, which is missing: {problem}",
            hint='pip install "segdream[mesh]"',
        ) from problem


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
    label = _library("skimage.measure").label
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


def _simplify(libraries: Mapping[str, Any], points: Floats, triangles: Indices, faces: int, step: float) -> Any:
    """A closed trimesh of at most `faces` triangles, or None.

    Quadric simplification keeps shapes best, but may pinch a surface; manifold3d never does.
    """
    make = libraries["trimesh"].Trimesh
    if len(triangles) <= faces:
        return make(points, triangles, process=False)
    kept = libraries["fast_simplification"].simplify(points, triangles, target_count=faces, agg=CARE)
    fewer = make(*kept, process=False)
    if len(fewer.faces) <= faces and fewer.is_watertight and fewer.is_winding_consistent:
        return fewer
    manifold3d = _library("manifold3d")
    solid = manifold3d.Manifold(manifold3d.Mesh(vert_properties=points, tri_verts=triangles.astype(np.uint32)))
    for tolerance in TOLERANCES if solid.status() == manifold3d.Error.NoError else ():
        simple = solid.simplify(tolerance * step)
        if 0 < simple.num_tri() <= faces:
            found = simple.to_mesh()
            return make(np.asarray(found.vert_properties)[:, :3], np.asarray(found.tri_verts), process=False)
    return None


def _unwrap(xatlas: Any, closed: Any, size: int) -> tuple[Indices, Indices, Floats]:
    """The UV atlas of a mesh: the index in `closed` of each vertex [v], the faces [f, 3], and the UVs [v, 2]."""
    atlas = xatlas.Atlas()
    atlas.add_mesh(np.asarray(closed.vertices, np.float32), np.asarray(closed.faces, np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding = size, 2
    atlas.generate(pack_options=packing)
    kept, corners, uvs = atlas[0]
    return kept.astype(np.int64), corners.astype(np.int64), uvs.astype(np.float32)


def _to_trimesh(mesh: Mesh) -> Any:
    """The mesh with its texture as a trimesh."""
    trimesh, visual = _library("trimesh"), _library("trimesh.visual")
    material = visual.material.PBRMaterial(
        name="baked", baseColorTexture=_to_image(mesh.texture), metallicFactor=0.0, roughnessFactor=1.0
    )
    textures = visual.TextureVisuals(uv=mesh.uvs, material=material)
    return trimesh.Trimesh(
        mesh.vertices, mesh.faces, vertex_normals=mesh.normals, visual=textures, process=False, validate=False
    )


def _to_image(texture: Bytes) -> Any:
    """The texture as a Pillow image."""
    from PIL import Image

    return Image.fromarray(texture)


def _glb(path: Path, mesh: Mesh) -> dict[Path, bytes]:
    """The file of a .glb."""

    def add_extras(tree: dict[str, Any]) -> None:
        tree["asset"] = {"version": "2.0", "generator": f"segdream {__version__}"}
        if mesh.provenance:
            tree["asset"]["extras"] = {"segdream": mesh.provenance}
        tree["extensionsUsed"] = sorted({*tree.get("extensionsUsed", ()), "KHR_materials_unlit"})
        (primitive,) = tree["meshes"][0]["primitives"]
        for each in (primitive["indices"], *primitive["attributes"].values()):
            view = tree["bufferViews"][tree["accessors"][each]["bufferView"]]
            view["target"] = ELEMENT_ARRAY_BUFFER if each == primitive["indices"] else ARRAY_BUFFER
        for material in tree["materials"]:
            material.setdefault("extensions", {})["KHR_materials_unlit"] = {}

    scene = _library("trimesh").Scene({"asset": _to_trimesh(mesh)})
    content: bytes = _library("trimesh.exchange.gltf").export_glb(
        scene, include_normals=True, tree_postprocessor=add_extras
    )
    return {path: content}


def _obj(path: Path, mesh: Mesh) -> dict[Path, bytes]:
    """The files of an .obj; texture and material come first, so every .obj on disk has the files that it names."""
    image, material = path.with_suffix(".png"), path.with_suffix(".mtl")
    png = io.BytesIO()
    _to_image(mesh.texture).save(png, format="PNG")
    lines = [f"# segdream {__version__}", f"mtllib {material.name}", "usemtl baked"]
    lines += ["v {:.6g} {:.6g} {:.6g}".format(*row) for row in mesh.vertices.tolist()]
    lines += ["vt {:.6g} {:.6g}".format(*row) for row in mesh.uvs.tolist()]
    lines += ["vn {:.4g} {:.4g} {:.4g}".format(*row) for row in mesh.normals.tolist()]
    lines += ["f {0}/{0}/{0} {1}/{1}/{1} {2}/{2}/{2}".format(*row) for row in (mesh.faces + 1).tolist()]
    shading = f"newmtl baked\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {image.name}\n"
    return {image: png.getvalue(), material: shading.encode(), path: "\n".join([*lines, ""]).encode()}
