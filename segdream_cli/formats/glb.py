"""Binary glTF 2.0 with KHR_gaussian_splatting, as ratified by Khronos in 2026.

The Gaussians are one primitive of points in the inner frame, which is glTF's: y up, the front faces +Z. Scales and
opacities are stored after their activations, quaternions as xyzw, spherical harmonics as one attribute per coefficient.
A viewer without the extension shows a cloud of points in COLOR_0, which is linear where ours are sRGB.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from segdream_cli import __version__
from segdream_cli.errors import SegdreamError, UsageProblem
from segdream_cli.formats.common import (
    ANOTHER_FILE,
    DEFAULT,
    Reading,
    extras_provenance,
    finish,
    open_asset,
    provenance_extras,
    require_finite,
    to_log_scales,
    to_opacity_logits,
)
from segdream_cli.splats import BANDS, SH_C0, Float32s, Float64s, Splats, concat, sanitize
from segdream_cli.splats.transform import rotation_matrices, transform
from segdream_cli.util.files import atomic_write, parse_json

EXTENSION = "KHR_gaussian_splatting"
ROTATION, SCALE, OPACITY = (f"{EXTENSION}:{name}" for name in ("ROTATION", "SCALE", "OPACITY"))
SH0 = f"{EXTENSION}:SH_DEGREE_0_COEF_0"
REST = tuple(f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{i}" for degree in (1, 2, 3) for i in range(2 * degree + 1))

MAGIC, JSON_CHUNK, BIN_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
SIZE_LIMIT = 1 << 32
JSON_LIMIT = 16 << 20
"""Limit in bytes; the JSON of one primitive takes about 5,000."""

_TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}
_WIDTHS = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
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
    columns = _columns(sanitize(splats))
    text = json.dumps(_document(columns, provenance_extras(splats)), allow_nan=False, separators=(",", ":")).encode(
        "ascii"
    )
    text += b" " * (-len(text) % 4)
    body = sum(column.nbytes for column in columns.values())
    size = 28 + len(text) + body
    if size >= SIZE_LIMIT:
        raise SegdreamError(f"{len(splats)} Gaussians do not fit the 4 GiB of a .glb", hint="--format ply")
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        stream.write(struct.pack("<5I", MAGIC, 2, size, len(text), JSON_CHUNK))
        stream.write(text)
        stream.write(struct.pack("<2I", body, BIN_CHUNK))
        for column in columns.values():
            stream.write(np.ascontiguousarray(column).data)


def _columns(splats: Splats) -> dict[str, NDArray[Any]]:
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


def _document(columns: Mapping[str, NDArray[Any]], extras: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a .glb with these attributes, whose `asset` gets `extras`."""
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    offset = 0
    for i, (name, column) in enumerate(columns.items()):
        count, width = column.shape
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": column.nbytes, "target": 34962})
        accessor = {"bufferView": i, "componentType": 5126, "count": count, "type": _WIDTHS[width]}
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
    """All Gaussians of a .glb's scene, where its nodes place them, in the inner frame.

    Raises:
        UsageProblem: the file can't be opened, is not a .glb file, is damaged, or holds something other than Gaussians
            of the ellipse kernel in sRGB.
    """
    with open_asset(path) as stream:
        document, body = chunks(path, stream)
    glb = _Glb(path, document, body)
    parts: list[Splats] = []
    room = len(body) // 12  # positions that a file without repetitions can hold
    for matrix, primitive in glb.find_primitives():
        part = glb.splats(primitive)
        room -= len(part)
        if room < 0:
            raise glb.damage_error("its nodes repeat the Gaussians more often than memory allows")
        if not np.array_equal(matrix, np.eye(4)):
            try:
                with np.errstate(over="ignore", invalid="ignore"):  # overflow is refused below
                    part = transform(part, matrix[:3, :3], matrix[:3, 3])
            except ValueError as problem:
                raise UsageProblem(
                    f"{path}: a node {problem} its Gaussians, which segdream can't read", hint=ANOTHER_FILE
                ) from problem
        parts.append(part)
    if not parts:
        raise UsageProblem(f"{path} holds no Gaussians: no primitive of its scene has {EXTENSION}", hint=ANOTHER_FILE)
    return finish(path, concat(parts, extras_provenance(document)), reading)


def holds_gaussians(path: Path) -> bool:
    """Whether a .glb has Gaussians; one without them holds triangles, lines or points.

    Raises:
        UsageProblem: the file can't be opened, is not a .glb file, or is damaged.
    """
    with open_asset(path) as stream:
        document, _ = chunks(path, stream)
    return EXTENSION in json.dumps(document)


def chunks(path: Path, stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """The JSON document and the binary chunk; raises the errors of `holds_gaussians`."""
    head = stream.read(20)
    if len(head) < 20 or head[:4] != b"glTF":
        raise UsageProblem(f"{path} is not a .glb file", hint=ANOTHER_FILE)
    _, version, size, length, kind = struct.unpack("<5I", head)
    if version != 2:
        raise UsageProblem(f"{path} is glTF version {version}, and segdream reads only version 2", hint=ANOTHER_FILE)
    actual = stream.seek(0, 2)
    if actual < size:
        raise UsageProblem(
            f"{path} is truncated: its header claims {size} bytes, and it has {actual}",
            hint=f"copy or download {path} again",
        )
    if kind != JSON_CHUNK or length > min(size - 20, JSON_LIMIT):
        raise UsageProblem(f"{path} is damaged: it does not start with a JSON chunk that fits", hint=ANOTHER_FILE)
    stream.seek(20)
    try:
        document = parse_json(stream.read(length))
    except ValueError as problem:
        raise UsageProblem(f"{path} is damaged: its JSON can't be read: {problem}", hint=ANOTHER_FILE) from problem
    head = stream.read(8)
    length, kind = struct.unpack("<2I", head) if len(head) == 8 else (0, 0)
    if kind != BIN_CHUNK or length > size - stream.tell():
        raise UsageProblem(f"{path} is damaged: it has no binary chunk that fits", hint=ANOTHER_FILE)
    return document if isinstance(document, dict) else {}, stream.read(length)


@dataclass(frozen=True, slots=True)
class _Glb:
    """An untrusted glTF document with its binary chunk."""

    path: Path
    document: Mapping[str, Any]
    body: bytes

    def damage_error(self, reason: str) -> UsageProblem:
        """The error to raise for invalid content."""
        return UsageProblem(f"{self.path} is damaged: {reason}", hint=ANOTHER_FILE)

    def item(self, kind: str, index: Any) -> Mapping[str, Any]:
        """An object of one of the document's arrays, such as `nodes`."""
        found = self.document.get(kind)
        if not isinstance(found, list) or type(index) is not int or not 0 <= index < len(found):
            raise self.damage_error(f"it has no {kind}[{str(index)[:20]}]")
        if not isinstance(found[index], dict):
            raise self.damage_error(f"{kind}[{index}] is not an object")
        return dict(found[index])

    def array(self, parent: Mapping[str, Any], key: str) -> list[Any]:
        found = parent.get(key, [])
        if not isinstance(found, list):
            raise self.damage_error(f"its {key} is not an array")
        return found

    def whole(self, parent: Mapping[str, Any], key: str, default: int | None = None) -> int:
        """A non-negative integer."""
        found = parent.get(key, default)
        if type(found) is not int or found < 0:
            raise self.damage_error(f"{key} is {str(found)[:20]}, not a non-negative integer")
        return found

    def numbers(self, node: Mapping[str, Any], key: str, default: NDArray[Any]) -> Float64s:
        found = node.get(key, default.tolist())
        if not isinstance(found, list) or len(found) != default.size or {type(v) for v in found} - {int, float}:
            raise self.damage_error(f"a node's {key} is not {default.size} numbers")
        try:
            values = np.array(found, np.float64)
        except OverflowError:
            values = np.array([np.nan])
        if not np.isfinite(values).all():
            raise self.damage_error(f"a node's {key} is not finite")
        return values

    def find_primitives(self) -> Iterator[tuple[Float64s, Mapping[str, Any]]]:
        """The primitives of Gaussians in the scene, each with the [4, 4] matrix that places it."""
        unknown = {str(name) for name in self.array(self.document, "extensionsRequired")} - {EXTENSION}
        if unknown:
            raise UsageProblem(
                f"{self.path} requires {', '.join(sorted(unknown))[:200]}, which segdream can't read", hint=ANOTHER_FILE
            )
        scene = self.item("scenes", self.whole(self.document, "scene", 0))
        waiting = [(index, np.eye(4)) for index in reversed(self.array(scene, "nodes"))]
        visited: set[int] = set()
        while waiting:
            index, outer = waiting.pop()
            node = self.item("nodes", index)
            if index in visited:
                raise self.damage_error(f"nodes[{index}] is in the scene twice")
            visited.add(index)
            with np.errstate(over="ignore", invalid="ignore"):
                matrix = outer @ self.placement(node)
            waiting += [(child, matrix) for child in reversed(self.array(node, "children"))]
            if "mesh" in node:
                for primitive in self.array(self.item("meshes", node["mesh"]), "primitives"):
                    if isinstance(primitive, dict) and EXTENSION in _object(primitive, "extensions"):
                        yield matrix, primitive

    def placement(self, node: Mapping[str, Any]) -> Float64s:
        """The [4, 4] matrix of a node in its parent."""
        if "matrix" in node:
            return self.numbers(node, "matrix", np.eye(4).ravel()).reshape(4, 4).T
        x, y, z, w = self.numbers(node, "rotation", np.array([0, 0, 0, 1]))
        length = x * x + y * y + z * z + w * w
        if not np.isfinite(length) or length == 0:
            raise self.damage_error("a node's rotation is not a quaternion")
        matrix = np.eye(4)
        (rotation,) = rotation_matrices(np.array([[w, x, y, z]]) / np.sqrt(length))
        matrix[:3, :3] = rotation * self.numbers(node, "scale", np.ones(3))
        matrix[:3, 3] = self.numbers(node, "translation", np.zeros(3))
        return matrix

    def splats(self, primitive: Mapping[str, Any]) -> Splats:
        """The Gaussians of a primitive, in its own frame; invalid values become NaN."""
        extension = _object(_object(primitive, "extensions"), EXTENSION)
        self.refuse_unknown(primitive, extension)
        attributes = _object(primitive, "attributes")
        present = [name for name in REST if name in attributes]
        k = len(present)
        if k not in BANDS or tuple(present) != REST[:k]:
            raise self.damage_error(f"{k} coefficients of spherical harmonics do not fill whole degrees")
        names = ("POSITION", ROTATION, SCALE, OPACITY, SH0)
        missing = [name for name in names if name not in attributes]
        if missing:
            raise self.damage_error(f"its Gaussians lack {', '.join(missing)}")
        means, quats, scales, opacities, sh0 = (self.values(name, attributes[name]) for name in names)
        rest = [self.values(name, attributes[name]) for name in present]
        if len({len(column) for column in (means, quats, scales, opacities, sh0, *rest)}) > 1:
            raise self.damage_error("its attributes differ in length")
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
        inner = ", ".join(_object(extension, "extensions"))
        space, kernel = extension.get("colorSpace"), extension.get("kernel")
        reasons = {
            f"are packed by {inner[:100]}": inner,
            f"have the kernel {str(kernel)[:40]!r}, not 'ellipse'": kernel != "ellipse",
            f"have colours in {str(space)[:40]!r}, not 'srgb_rec709_display'": space != "srgb_rec709_display",
            "are not of mode 0, points": primitive.get("mode") != 0,
        }
        for reason, holds in reasons.items():
            if holds:
                raise UsageProblem(f"{self.path}: its Gaussians {reason}, which segdream can't read", hint=ANOTHER_FILE)

    def values(self, name: str, index: Any) -> Float32s:
        """The values of an attribute, [n, components]."""
        accessor = self.item("accessors", index)
        width, kinds = _ALLOWED[name]
        kind = accessor.get("componentType"), accessor.get("normalized", False)
        if accessor.get("type") != _WIDTHS[width] or kind not in kinds:
            raise self.damage_error(f"{name} has a type that the format does not allow")
        if "sparse" in accessor or "bufferView" not in accessor:
            raise UsageProblem(f"{self.path}: {name} is sparse, which segdream can't read", hint=ANOTHER_FILE)
        view = self.item("bufferViews", accessor["bufferView"])
        if view.get("buffer") != 0 or "uri" in self.item("buffers", 0):
            raise UsageProblem(
                f"{self.path}: {name} is in another file, which segdream does not read", hint=ANOTHER_FILE
            )
        dtype = np.dtype(_TYPES[kind[0]])
        row = width * dtype.itemsize
        count, stride = self.whole(accessor, "count"), self.whole(view, "byteStride", row)
        start, size = self.whole(view, "byteOffset", 0), self.whole(view, "byteLength")
        offset = self.whole(accessor, "byteOffset", 0)
        if not count or stride < row:
            raise self.damage_error(f"{name} has {str(count)[:20]} rows, {str(stride)[:20]} bytes apart")
        if offset + (count - 1) * stride + row > size or start + size > len(self.body):
            raise self.damage_error(f"{name} claims {str(count)[:20]} rows, more than its bytes hold")
        stored = np.ndarray((count, width), dtype, self.body, start + offset, (stride, dtype.itemsize))
        if not kind[1]:
            return stored.astype(np.float32)
        return np.maximum(stored / np.float32(np.iinfo(dtype).max), np.float32(-1))


def _object(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = parent.get(key)
    return found if isinstance(found, dict) else {}
