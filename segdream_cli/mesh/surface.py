"""Gaussians from triangle meshes: discs spread evenly over the surface, in the colours of its materials.

Colours are the base colour, without light. Meshes are read as in glTF: y up, the front faces +Z.
"""

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import KDTree

from segdream_cli.errors import UsageProblem
from segdream_cli.formats import glb, gltf
from segdream_cli.formats.common import extras_provenance, open_asset, to_opacity_logits
from segdream_cli.formats.provenance import known_provenance
from segdream_cli.formats.sniff import sniff
from segdream_cli.mesh import accessors, draco
from segdream_cli.splats import SH_C0, Float64s, Splats

UNREADABLE = {"EXT_meshopt_compression", "KHR_texture_basisu"}
"""Extensions of glTF without which a mesh would be read wrongly, even if it does not require them."""
HARMLESS = (
    draco.EXTENSION,
    accessors.TRANSFORM,
    accessors.WEBP,
    "KHR_lights_",
    "KHR_materials_",
    "KHR_mesh_quantization",
    "KHR_xmp",
)
"""Starts of extensions that a mesh may require: they are read, or change neither its shape nor its base colour."""
SAMPLES = 8
"""Points of the surface per Gaussian, which takes their mean colour."""
ROUNDS = 2
"""Rounds of Lloyd's relaxation, which spreads the Gaussians evenly."""
NORMAL_WEIGHT = 2.0
"""Weight of the normals beside positions in spacings: keeps the two sides of a thin sheet apart."""
WIDTH, THICKNESS = 0.6, 0.15
"""Standard deviations of a disc along the surface and across it, in spacings."""
OPACITY = 0.95
CLEAR = 0.05
"""Opacity of a material below which a point of it is dropped."""
GRAY = 0.5
"""Colour of a surface without one."""
LONGEST_NAME = 200
"""Characters of a file's name that messages show."""


def is_mesh(path: Path) -> bool:
    """Whether a file is read as a mesh: an .obj, or binary glTF without Gaussians.

    Raises:
        UsageProblem: the .glb can't be read.
    """
    return path.suffix.lower() == ".obj" or (sniff(path) == "glb" and not glb.holds_gaussians(path))


def read(path: Path, count: int) -> Splats:
    """At most `count` Gaussians on the surface of a mesh, the same ones each time.

    Raises:
        UsageProblem: the file or a file that it names can't be read, or it has no surface.
    """
    with open_asset(path) as stream:
        if path.suffix.lower() == ".obj":
            parts, provenance = _load(path, stream, "obj"), {}
        else:
            document, content = _unpack_glb(path, stream)
            parts, provenance = _load(path, content, "glb"), known_provenance(extras_provenance(document))
    if not parts:
        raise UsageProblem(f"{path} has no faces")
    corners = np.concatenate([triangles for triangles, _ in parts])
    bad = sum(_count_unusable(triangles, shade) for triangles, shade in parts)
    if bad:
        raise UsageProblem(
            f"{path}: {bad} of {len(corners)} faces have a corner, texture coordinate or colour that is not a finite "
            "number"
        )
    extent = float(np.ptp(corners.reshape(-1, 3), axis=0).max())
    # of size 1, so that areas neither overflow nor vanish
    parts = [(triangles / (extent or 1), shade) for triangles, shade in parts]
    points, normals, colors, area = _sample(parts, SAMPLES * count)
    if not len(points):
        raise UsageProblem(f"{path} has no visible surface: its faces have no area, or are transparent")
    count = min(count, len(points))
    spacing = float(np.sqrt(SAMPLES * area))
    cluster = _relax(points, normals, spacing, count)
    kept = np.flatnonzero(_counts(cluster, count)[:, 0])
    points, normals, colors = (_means(values, cluster, count)[kept] for values in (points, normals, colors))
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(lengths > 1e-6, normals / np.maximum(lengths, 1e-6), [0, 0, 1])
    sizes = extent * spacing * np.array([WIDTH, WIDTH, THICKNESS])
    return Splats(
        means=(extent * points).astype(np.float32),
        quats=_quats_along(normals).astype(np.float32),
        log_scales=np.tile(np.log(sizes), (len(kept), 1)).astype(np.float32),
        opacity_logits=to_opacity_logits(OPACITY * colors[:, 3]),
        sh0=((to_srgb(colors[:, :3]) - 0.5) / SH_C0).astype(np.float32),
        shN=np.zeros((len(kept), 0, 3), np.float32),
        provenance=dict(provenance),
    )


def _count_unusable(triangles: Float64s, shade: "_Shade") -> int:
    """Number of triangles [f, 3, 3] with a value beyond 32-bit numbers, at a corner or among what colours it."""
    columns = (shade.uv, *(factor for factor in shade.factors if factor.ndim == 2))
    values = [triangles, *(column[shade.faces] for column in columns if column is not None)]
    usable = [(np.abs(each) <= np.finfo(np.float32).max).all(axis=(1, 2)) for each in values]
    return int((~np.logical_and.reduce(usable)).sum())


@dataclass(frozen=True, slots=True)
class _Shade:
    """The base colour of a geometry's points: a texture, a factor and colours of the vertices, each or none."""

    faces: NDArray[np.intp]
    """[f, 3]."""
    uv: Float64s | None
    """Texture coordinates from the lower left, [v, 2]."""
    texture: NDArray[np.uint8] | None
    """sRGB and opacity, [h, w, 4]."""
    factors: Sequence[Float64s]
    """Linear RGB and opacity, [4] or one per vertex [v, 4]; the texture is multiplied by them."""
    cutoff: float | None
    """Opacity below which a point is clear and above which it is solid; 0: the surface blends; None: all is solid."""

    def __call__(self, face: NDArray[np.intp], weights: Float64s) -> Float64s:
        """Linear RGB and opacity [n, 4] of the points with these weights [n, 3] in these faces [n]."""
        corners = self.faces[face]
        found = np.ones((len(face), 4))
        if self.texture is not None and self.uv is not None:
            found = self._texels(np.einsum("nc,ncd->nd", weights, self.uv[corners]))
        elif not self.factors:
            found[:, :3] = to_linear(np.array(GRAY))
        for factor in self.factors:
            found = found * (factor if factor.ndim == 1 else np.einsum("nc,ncd->nd", weights, factor[corners]))
        if self.cutoff is None:
            found[:, 3] = 1
        elif self.cutoff:
            found[:, 3] = found[:, 3] >= self.cutoff
        return found

    def _texels(self, uv: Float64s) -> Float64s:
        """The texels [n, 4] at these coordinates [n, 2], outside of which the texture repeats."""
        texture = np.asarray(self.texture)
        height, width, _ = texture.shape
        u, v = (uv % 1.0).T
        row, column = np.minimum((1 - v) * height, height - 1).astype(int), np.minimum(u * width, width - 1).astype(int)
        texels = texture[row, column] / 255
        return np.concatenate([to_linear(texels[:, :3]), texels[:, 3:]], axis=1)


def to_linear(srgb: Float64s) -> Float64s:
    """Linear values of sRGB values in 0..1."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Float64s) -> Float64s:
    """The sRGB values of linear values in 0..1."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055)


def _shade(geometry: Any, *, gltf: bool) -> _Shade:
    """The colours of a trimesh geometry.

    glTF multiplies texture, factor and vertex colours, the latter two linear. An .obj has the first that exists of
    texture, vertex colours and Kd, all in sRGB.
    """
    visual = geometry.visual
    material = getattr(visual, "material", None)
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    uv = getattr(visual, "uv", None)
    # trimesh gives an .obj without materials a made-up image, which unlike one of a file has no format
    textured = image is not None and image.format is not None and uv is not None
    texture = np.asarray(image.convert("RGBA")) if image is not None and textured else None
    colors = getattr(visual, "vertex_attributes", {}).get("color")
    if colors is None:
        colors = geometry.vertex_attributes.get("color")
    if colors is None and visual.kind in ("vertex", "face"):
        colors = visual.vertex_colors
    flat = getattr(material, "baseColorFactor", None) if gltf else getattr(material, "kwargs", {}).get("kd")
    factors = [_rgba(each, gltf=gltf) for each in (colors, flat) if each is not None]
    return _Shade(
        faces=np.asarray(geometry.faces, np.intp),
        uv=None if texture is None else np.asarray(uv, np.float64),
        texture=texture,
        factors=factors if gltf else factors[:1] if texture is None else [],
        cutoff={"MASK": getattr(material, "alphaCutoff", None) or 0.5, "BLEND": 0.0}.get(
            getattr(material, "alphaMode", None) or ""
        ),
    )


def _rgba(values: Any, *, gltf: bool) -> Float64s:
    """Linear RGB and opacity [..., 4] of colours as bytes, 16-bit integers or floats, with opacity or without."""
    array = np.asarray(values)
    floats = array.astype(np.float64)
    if array.dtype.kind == "u":
        floats = floats / np.iinfo(array.dtype).max
    floats = np.clip(floats, 0, 1)
    rgb, opacity = floats[..., :3], floats[..., 3:4] if floats.shape[-1] == 4 else np.ones((*floats.shape[:-1], 1))
    return np.concatenate([rgb if gltf else to_linear(rgb), opacity], axis=-1)


class _Resolver:
    """Gives trimesh the files that a mesh names, and keeps the names of those that it can't read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing: list[str] = []

    def get(self, name: str) -> bytes:
        """The content of a material file or a texture beside the mesh; options before its name are ignored.

        Raises:
            OSError: it can't be read.
        """
        name = name.strip().strip('"')
        if name.startswith("-"):
            name = name.split()[-1]
        try:
            content = self.path_of(name).read_bytes()
            if not name.lower().endswith(".mtl"):
                Image.open(io.BytesIO(content)).verify()
        except Exception as problem:  # Pillow's decoders raise anything
            self.missing.append(name)
            raise FileNotFoundError(name) from problem
        return content

    __getitem__ = get

    def path_of(self, name: str) -> Path:
        """The path of a file that the mesh names, with either kind of slash."""
        return self.folder / name.replace("\\", "/")


def _stand_in(path: Path) -> str | None:
    """A command that puts an empty material file or a plain texture where a mesh expects one; None if it can't."""
    suffix = path.suffix.lower()
    if len(path.name) > LONGEST_NAME or path.is_dir() or suffix not in {".mtl", *Image.registered_extensions()}:
        return None
    commands = [] if path.parent.is_dir() else [["mkdir", "-p", str(path.parent)]]
    if path.exists():
        commands.append(["mv", "-n", str(path), f"{path}.bak"])
    if suffix == ".mtl":
        commands.append(["touch", str(path)])
    else:
        script = f"from PIL import Image; Image.new('RGB', (1, 1), 'gray').save({str(path)!r}, 'PNG')"
        commands.append(["python", "-c", script])
    return " && ".join(map(shlex.join, commands))


def _load(path: Path, stream: BinaryIO, kind: str) -> list[tuple[Float64s, _Shade]]:
    """The triangles [f, 3, 3] of each geometry of a mesh where the scene places it, and their colours.

    Args:
        path: the file, beside which those that it names are.
        stream: its content.
        kind: "obj" or "glb".

    Raises:
        UsageProblem: the file or a file that it names can't be read.
    """
    import trimesh  # here, since it takes a third of a second

    resolver = _Resolver(path.parent)
    parts: list[tuple[Float64s, _Shade]] = []
    try:
        scene = trimesh.load_scene(stream, file_type=kind, resolver=resolver, process=False)
        for node in sorted(scene.graph.nodes_geometry):
            matrix, name = scene.graph[node]
            geometry = scene.geometry[name]
            if not len(getattr(geometry, "faces", ())):
                continue
            corners = np.asarray(geometry.vertices, np.float64)[np.asarray(geometry.faces, np.intp)]
            parts.append((corners @ matrix[:3, :3].T + matrix[:3, 3], _shade(geometry, gltf=kind == "glb")))
    except Exception as problem:  # trimesh trusts its input, so a damaged file raises anything
        raise UsageProblem(f"{path} is damaged: {type(problem).__name__}: {str(problem)[:200]}") from problem
    if resolver.missing:
        name = resolver.missing[0]
        raise UsageProblem(
            f"{path} names the file {name[:LONGEST_NAME]}, which can't be read", hint=_stand_in(resolver.path_of(name))
        )
    return parts


def _unpack_glb(path: Path, stream: BinaryIO) -> tuple[Mapping[str, Any], BinaryIO]:
    """The document of a .glb that trimesh can read, and its content with attributes as plain floats.

    Raises:
        EnvironmentProblem: Draco's library is missing, and needed.
        UsageProblem: it needs an extension that is not known, or an attribute or a texture can't be read.
    """
    document, body = gltf.chunks(path, stream)
    used, required = (
        {str(name) for name in gltf.Gltf(path, document, body).array(document, key)}
        for key in ("extensionsUsed", "extensionsRequired")
    )
    if needed := UNREADABLE & used | {name for name in required if not name.startswith(HARMLESS)}:
        raise UsageProblem(
            f"{path} uses {', '.join(sorted(needed))[:200]}, which segdream can't read; save the mesh without it"
        )
    views: Any = document.get("bufferViews")
    for i, image in enumerate(document.get("images") or []):
        try:
            if "bufferView" in image:
                view = views[image["bufferView"]]
                start = view.get("byteOffset", 0)
                Image.open(io.BytesIO(body[start : start + view["byteLength"]])).verify()
            elif str(image.get("uri")).startswith(gltf.DATA):
                Image.open(io.BytesIO(base64.b64decode(image["uri"].partition(",")[2], validate=True))).verify()
        except Exception as problem:
            raise UsageProblem(f"{path}: its image {i} can't be read: {problem}") from problem
    if draco.EXTENSION in used | required:
        body = draco.unpack(path, document, body)
    body = accessors.to_floats(path, document, body)
    body += bytes(-len(body) % 4)
    try:
        return document, io.BytesIO(glb.begin(document, len(body)) + body)
    except (ValueError, RecursionError) as problem:
        raise UsageProblem(f"{path} is damaged: its JSON can't be read: {problem}") from problem


def _sample(parts: Sequence[tuple[Float64s, _Shade]], n: int) -> tuple[Float64s, Float64s, Float64s, float]:
    """`n` points spread over all triangles by area, without clear ones.

    Returns:
        points [m, 3], unit normals [m, 3], linear RGB and opacity [m, 4], and the area for each of them.
    """
    triangles = np.concatenate([corners for corners, _ in parts])
    crosses = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    doubled = np.linalg.norm(crosses, axis=1)
    ends = np.cumsum(doubled)
    generator = np.random.default_rng(0)
    # stratified: one point in each n-th of the area, in random order
    along = (np.arange(n) + generator.random(n)) / n * ends[-1]
    face = np.searchsorted(ends, along, side="right").clip(max=len(ends) - 1)[generator.permutation(n)]
    face = face[doubled[face] > 0]
    root, share = np.sqrt(generator.random(len(face))), generator.random(len(face))
    weights = np.stack([1 - root, root * (1 - share), root * share], axis=1)
    colors = np.empty((len(face), 4))
    first = 0
    for corners, shade in parts:
        own = (face >= first) & (face < first + len(corners))
        colors[own] = shade(face[own] - first, weights[own])
        first += len(corners)
    seen = colors[:, 3] >= CLEAR
    points = np.einsum("nc,ncd->nd", weights, triangles[face])
    normals = crosses[face] / doubled[face, None]
    return points[seen], normals[seen], colors[seen], float(ends[-1]) / 2 / n


def _relax(points: Float64s, normals: Float64s, spacing: float, count: int) -> NDArray[np.intp]:
    """The cluster, 0 to `count` - 1, of each point: `ROUNDS` rounds of Lloyd's algorithm from the first points.

    Points of two sides of a thin sheet are far from each other, since the normals count too.
    """
    features = np.concatenate([points / spacing, NORMAL_WEIGHT * normals], axis=1)
    centers = features[:count]
    for _ in range(ROUNDS):
        nearest = KDTree(centers).query(features)[1]
        centers = np.where(_counts(nearest, count) > 0, _means(features, nearest, count), centers)
    return np.asarray(KDTree(centers).query(features)[1], np.intp)


def _counts(labels: NDArray[np.intp], count: int) -> Float64s:
    """Number of points of each cluster, [count, 1]."""
    return np.bincount(labels, minlength=count)[:, None].astype(np.float64)


def _means(values: Float64s, labels: NDArray[np.intp], count: int) -> Float64s:
    """Mean of the values [n, d] of each cluster, [count, d]; 0 for an empty one."""
    sums = np.stack([np.bincount(labels, column, count) for column in values.T], axis=1)
    return np.asarray(sums / np.maximum(_counts(labels, count), 1))


def _quats_along(normals: Float64s) -> Float64s:
    """Quaternions wxyz [n, 4] that turn +z to these unit normals [n, 3]; half a turn about x for -z."""
    x, y, z = normals.T
    quats = np.stack([1 + z, -y, x, np.zeros_like(z)], axis=1)
    quats[z < -1 + 1e-9] = (0, 1, 0, 0)
    return np.asarray(quats / np.linalg.norm(quats, axis=1, keepdims=True), np.float64)
