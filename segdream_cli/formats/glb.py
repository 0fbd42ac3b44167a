"""glTF 2.0 with KHR_gaussian_splatting, as ratified by Khronos in 2026; it is written in binary.

The Gaussians are one primitive of points in the inner frame, which is glTF's: y up, the front faces +Z. Scales and
opacities are stored after their activations, quaternions as xyzw, spherical harmonics as one attribute per coefficient.
A viewer without the extension shows a cloud of points in COLOR_0, which is linear where ours are sRGB.
"""

import dataclasses
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdream_cli import __version__
from segdream_cli.errors import SegdreamError, UsageProblem
from segdream_cli.formats import spz
from segdream_cli.formats.common import (
    DEFAULT,
    Reading,
    extras_provenance,
    finish,
    provenance_extras,
    require_finite,
    to_log_scales,
    to_opacity_logits,
)
from segdream_cli.formats.gltf import BIN_CHUNK, JSON_CHUNK, WIDTHS, Gltf, child, load
from segdream_cli.splats import BANDS, SH_C0, Float32s, Float64s, Splats, concat, sanitize
from segdream_cli.splats.frames import INNER
from segdream_cli.splats.transform import transform
from segdream_cli.util.files import atomic_write

EXTENSION = "KHR_gaussian_splatting"
ROTATION, SCALE, OPACITY = (f"{EXTENSION}:{name}" for name in ("ROTATION", "SCALE", "OPACITY"))
SH0 = f"{EXTENSION}:SH_DEGREE_0_COEF_0"
REST = tuple(f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{i}" for degree in (1, 2, 3) for i in range(2 * degree + 1))

PACKED = ("KHR_gaussian_splatting_compression_spz_2", "KHR_gaussian_splatting_compression_spz")
"""Extensions that put an SPZ file in place of the accessors; not ratified, and only read."""
SRGB, LINEAR = "srgb_rec709_display", "lin_rec709_display"
HARMLESS = ("KHR_materials_", "KHR_texture_", "EXT_texture_", "KHR_lights_", "KHR_xmp", "KHR_mesh_quantization")
"""Starts of extensions that a file may require although its Gaussians do not use them."""
MAGIC = 0x46546C67
SIZE_LIMIT = 1 << 32

_FLOAT = (5126, False)
_ALLOWED = {
    "POSITION": (3, [_FLOAT]),
    ROTATION: (4, [_FLOAT, (5120, True), (5122, True)]),
    SCALE: (3, [_FLOAT, (5121, False), (5121, True), (5123, False), (5123, True)]),
    OPACITY: (1, [_FLOAT, (5121, True), (5123, True)]),
    **{name: (3, [_FLOAT]) for name in (SH0, *REST)},
}
"""Attribute -> components, and the pairs of component type and `normalized` that it may have."""


def write(path: Path, splats: Splats) -> None:
    """Writes one primitive with float attributes: 60 bytes per Gaussian, 240 with spherical harmonics of degree 3.

    Clamps as in `ply.write`. Provenance goes into `asset.extras`.

    Raises:
        SegdreamError: there are no Gaussians, some are not finite, they take 4 GiB or more, or the disk is full.
        UsageProblem: the folder can't be written.
    """
    require_finite(splats)
    columns = list_columns(sanitize(splats))
    body = sum(column.nbytes for column in columns.values())
    head = begin(make_document(columns, provenance_extras(splats)), body)
    if len(head) + body >= SIZE_LIMIT:
        raise SegdreamError(
            f"{len(splats)} Gaussians do not fit the 4 GiB of a .glb", hint=f"-o {quote(str(path.with_suffix('.ply')))}"
        )
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        stream.write(head)
        for column in columns.values():
            stream.write(np.ascontiguousarray(column).data)


def begin(document: Mapping[str, Any], body: int) -> bytes:
    """A .glb with this JSON up to its binary chunk, which has `body` bytes, a multiple of four."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 4)
    head = struct.pack("<5I", MAGIC, 2, (28 + len(text) + body) % SIZE_LIMIT, len(text), JSON_CHUNK)
    return head + text + struct.pack("<2I", body % SIZE_LIMIT, BIN_CHUNK)


def list_columns(splats: Splats) -> dict[str, NDArray[Any]]:
    """Attribute -> its little-endian values, [n, components]; rows are multiples of four bytes."""
    opacities = (1 / (1 + np.exp(-splats.opacity_logits.astype(np.float64))))[:, None]
    columns: dict[str, NDArray[Any]] = {
        "POSITION": splats.means,
        "COLOR_0": _fallback(splats, opacities),
        ROTATION: np.roll(splats.quats, -1, axis=1),
        SCALE: np.exp(splats.log_scales),
        OPACITY: opacities,
        SH0: splats.sh0,
        **{REST[i]: splats.shN[:, i] for i in range(splats.shN.shape[1])},
    }
    return {name: column if column.dtype == np.uint8 else column.astype("<f4") for name, column in columns.items()}


def _fallback(splats: Splats, opacities: Float64s) -> NDArray[np.uint8]:
    """Linear RGB and opacity as bytes."""
    display = np.clip(0.5 + SH_C0 * splats.sh0, 0, 1)
    linear = np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)
    colours: NDArray[np.uint8] = np.rint(np.concatenate([linear, opacities], axis=1) * 255).astype(np.uint8)
    return colours


def make_document(columns: Mapping[str, NDArray[Any]], extras: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a .glb with these attributes, whose `asset` gets `extras`."""
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    offset = 0
    for i, (name, column) in enumerate(columns.items()):
        count, width = column.shape
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": column.nbytes, "target": 34962})
        accessor = {"bufferView": i, "componentType": 5126, "count": count, "type": WIDTHS[width]}
        if column.dtype == np.uint8:
            accessor |= {"componentType": 5121, "normalized": True}
        if name == "POSITION":  # which glTF requires
            accessor |= {"min": column.min(axis=0).tolist(), "max": column.max(axis=0).tolist()}
        accessors.append(accessor)
        offset += column.nbytes
    primitive = {
        "attributes": {name: i for i, name in enumerate(columns)},
        "mode": 0,
        "extensions": {EXTENSION: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}},
    }
    return {
        "asset": {"version": "2.0", "generator": f"segdream {__version__}", **extras},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": offset}],
    }


def read(path: Path, reading: Reading = DEFAULT) -> Splats:
    """All Gaussians of the scene of a .glb or .gltf, where its nodes place them, in the inner frame.

    Gaussians that KHR_gaussian_splatting_compression_spz_2 packs are taken as SPZ stores them, as Cesium does. Colours
    in linear light become sRGB. A .gltf reads no buffer outside its folder.

    Raises:
        UsageProblem: the file can't be opened, is not glTF, is damaged, or holds something other than Gaussians of the
            ellipse kernel.
    """
    scene = _Scene(load(path), reading)
    parts: list[Splats] = []
    for matrix, primitive in scene.find_primitives():
        part = scene.splats(primitive)
        if sum(map(len, parts)) + len(part) > scene.room():
            raise scene.gltf.damage_error("its nodes repeat the Gaussians more often than memory allows")
        if not np.array_equal(matrix, np.eye(4)):
            try:
                with np.errstate(over="ignore", invalid="ignore"):  # overflow is refused below
                    part = transform(part, matrix[:3, :3], matrix[:3, 3])
            except ValueError as problem:
                raise UsageProblem(f"{path}: a node {problem} its Gaussians, which segdream can't read") from problem
        parts.append(part)
    if not parts:
        raise UsageProblem(f"{path} holds no Gaussians: no primitive of its scene has {EXTENSION}")
    return finish(path, concat(parts, extras_provenance(scene.gltf.document)), reading, INNER)


def holds_gaussians(path: Path) -> bool:
    """Whether a .glb or .gltf has Gaussians; one without them holds triangles, lines or points.

    Raises:
        UsageProblem: the file can't be opened, is not glTF, or is damaged.
    """
    return EXTENSION in json.dumps(load(path).document)


@dataclass(frozen=True, slots=True)
class _Scene:
    """The Gaussians of an untrusted document."""

    gltf: Gltf
    reading: Reading
    unpacked: dict[int, Splats] = field(default_factory=dict)
    """Those of SPZ, by the index of their bufferView."""

    def room(self) -> int:
        """The number of Gaussians that a file without repetitions can hold: a position takes twelve bytes."""
        sizes = sum(map(len, (self.gltf.body, *self.gltf.loaded.values())))
        return sizes // 12 + sum(map(len, self.unpacked.values()))

    def find_primitives(self) -> Iterator[tuple[Float64s, Mapping[str, Any]]]:
        """The primitives of Gaussians in the scene, each with the [4, 4] matrix that places it."""
        gltf = self.gltf
        required = {str(name) for name in gltf.array(gltf.document, "extensionsRequired")} - {EXTENSION, *PACKED}
        unknown = {name for name in required if not name.startswith(HARMLESS)}
        if unknown:
            raise UsageProblem(f"{gltf.path} requires {', '.join(sorted(unknown))[:200]}, which segdream can't read")
        scene = gltf.item("scenes", gltf.whole(gltf.document, "scene", 0))
        waiting = [(index, np.eye(4)) for index in reversed(gltf.array(scene, "nodes"))]
        visited: set[int] = set()
        while waiting:
            index, outer = waiting.pop()
            node = gltf.item("nodes", index)
            if index in visited:
                raise gltf.damage_error(f"nodes[{index}] is in the scene twice")
            visited.add(index)
            with np.errstate(over="ignore", invalid="ignore"):
                matrix = outer @ gltf.placement(node)
            waiting += [(child, matrix) for child in reversed(gltf.array(node, "children"))]
            if "mesh" in node:
                for primitive in gltf.array(gltf.item("meshes", node["mesh"]), "primitives"):
                    if isinstance(primitive, dict) and EXTENSION in child(primitive, "extensions"):
                        yield matrix, primitive

    def splats(self, primitive: Mapping[str, Any]) -> Splats:
        """The Gaussians of a primitive, in its own frame; invalid values become NaN."""
        extension = child(child(primitive, "extensions"), EXTENSION)
        self.refuse_unknown(primitive, extension)
        packed = next((name for name in PACKED if name in child(extension, "extensions")), None)
        part = self.unpack(child(extension, "extensions")[packed]) if packed else self.values(primitive)
        if extension.get("colorSpace") == LINEAR:
            self.reading.note(f"{self.gltf.path}: its colours become sRGB, those that depend on the view approximately")
            part = _to_srgb(part)
        return part

    def unpack(self, packed: Any) -> Splats:
        """The Gaussians of an SPZ file in a bufferView, in the frame that it has there."""
        index = self.gltf.whole(packed if isinstance(packed, dict) else {}, "bufferView")
        content, start, size, _ = self.gltf.view(index)
        if index not in self.unpacked:
            self.unpacked[index] = spz.parse(
                self.gltf.path, content[start : start + size], replace(self.reading, frame=None), INNER
            )
        return self.unpacked[index]

    def values(self, primitive: Mapping[str, Any]) -> Splats:
        """The Gaussians in the accessors of a primitive."""
        attributes = child(primitive, "attributes")
        present = [name for name in REST if name in attributes]
        k = len(present)
        if k not in BANDS or tuple(present) != REST[:k]:
            raise self.gltf.damage_error(f"{k} coefficients of spherical harmonics do not fill whole degrees")
        names = ("POSITION", ROTATION, SCALE, OPACITY, SH0)
        missing = [name for name in names if name not in attributes]
        if missing:
            raise self.gltf.damage_error(f"its Gaussians lack {', '.join(missing)}")
        means, quats, scales, opacities, sh0 = (self.column(name, attributes) for name in names)
        rest = [self.column(name, attributes) for name in present]
        if len({len(column) for column in (means, quats, scales, opacities, sh0, *rest)}) > 1:
            raise self.gltf.damage_error("its attributes differ in length")
        return Splats(
            means=means,
            quats=np.roll(quats, 1, axis=1),
            log_scales=to_log_scales(scales),
            opacity_logits=to_opacity_logits(opacities[:, 0]),
            sh0=sh0,
            shN=np.stack(rest, axis=1) if rest else np.zeros((len(means), 0, 3), np.float32),
        )

    def refuse_unknown(self, primitive: Mapping[str, Any], extension: Mapping[str, Any]) -> None:
        """Refuses Gaussians of a kind that this reader would read wrongly."""
        inner = ", ".join(name for name in child(extension, "extensions") if name not in PACKED)
        space, kernel = extension.get("colorSpace"), extension.get("kernel")
        reasons = {
            f"are packed by {inner[:100]}": inner,
            f"have the kernel {str(kernel)[:40]!r}, not 'ellipse'": kernel != "ellipse",
            f"have colours in {str(space)[:40]!r}, not in sRGB or linear Rec. 709": space not in (SRGB, LINEAR),
            "are not of mode 0, points": primitive.get("mode") != 0,
        }
        for reason, holds in reasons.items():
            if holds:
                raise UsageProblem(f"{self.gltf.path}: its Gaussians {reason}, which segdream can't read")

    def column(self, name: str, attributes: Mapping[str, Any]) -> Float32s:
        """The values of an attribute, [n, components]."""
        return self.gltf.values(name, attributes[name], *_ALLOWED[name])


def _to_srgb(splats: Splats) -> Splats:
    """Gaussians whose colours are linear light, in sRGB; higher harmonics scale with the slope of sRGB's curve."""
    linear = np.maximum(0.5 + SH_C0 * splats.sh0.astype(np.float64), 0)
    low = linear <= 0.0031308
    bright = np.where(low, 1, linear)
    display = np.where(low, 12.92 * linear, 1.055 * bright ** (1 / 2.4) - 0.055)
    slope = np.where(low, 12.92, 1.055 / 2.4 * bright ** (1 / 2.4 - 1))
    return dataclasses.replace(
        splats,
        sh0=((display - 0.5) / SH_C0).astype(np.float32),
        shN=(splats.shN * slope[:, None]).astype(np.float32),
    )
