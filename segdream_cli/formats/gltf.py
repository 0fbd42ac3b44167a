"""An untrusted glTF 2.0 document, binary or as text: its buffers, accessors and nodes."""

import base64
import binascii
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from segdream_cli.errors import UsageProblem
from segdream_cli.formats.common import escapes_archive, open_asset
from segdream_cli.splats import Float32s, Float64s
from segdream_cli.splats.transform import rotation_matrices
from segdream_cli.util.files import parse_json

JSON_CHUNK, BIN_CHUNK = 0x4E4F534A, 0x004E4942
JSON_LIMIT = 16 << 20
"""Limit in bytes of the JSON of a .glb; that of one primitive takes about 5,000."""
DATA = "data:"
"""Start of the address of a buffer that is in the JSON itself, in base64."""
TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}
WIDTHS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}


def load(path: Path) -> "Gltf":
    """The document in a .glb or .gltf file.

    Raises:
        UsageProblem: the file can't be opened, is neither, or is damaged.
    """
    with open_asset(path) as stream:
        if stream.read(4) == b"glTF":
            stream.seek(0)
            return Gltf(path, *chunks(path, stream))
        stream.seek(0)
        content = stream.read()
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{":
        raise UsageProblem(f"{path} is not a .glb file")
    document = _parse(path, content)
    return Gltf(path, document, b"")


def chunks(path: Path, stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """The JSON document and the binary chunk of a .glb; raises the errors of `load`."""
    head = stream.read(20)
    if len(head) < 20 or head[:4] != b"glTF":
        raise UsageProblem(f"{path} is not a .glb file")
    _, version, size, length, kind = struct.unpack("<5I", head)
    if version != 2:
        raise UsageProblem(f"{path} is glTF version {version}, and segdream reads only version 2")
    actual = stream.seek(0, 2)
    if actual < size:
        raise UsageProblem(f"{path} is truncated: its header claims {size} bytes, and it has {actual}")
    if kind != JSON_CHUNK or length > min(size - 20, JSON_LIMIT):
        raise UsageProblem(f"{path} is damaged: it does not start with a JSON chunk that fits")
    stream.seek(20)
    document = _parse(path, stream.read(length))
    head = stream.read(8)
    length, kind = struct.unpack("<2I", head) if len(head) == 8 else (0, 0)
    if kind != BIN_CHUNK or length > size - stream.tell():
        raise UsageProblem(f"{path} is damaged: it has no binary chunk that fits")
    return document, stream.read(length)


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    """The object in a JSON text; empty if it is none."""
    try:
        document = parse_json(content)
    except ValueError as problem:
        raise UsageProblem(f"{path} is damaged: its JSON can't be read: {problem}") from problem
    return document if isinstance(document, dict) else {}


@dataclass(frozen=True, slots=True)
class Gltf:
    """A document with its binary chunk, which is empty in a .gltf file."""

    path: Path
    document: Mapping[str, Any]
    body: bytes
    loaded: dict[int, bytes] = field(default_factory=dict)
    """Buffers that were read from elsewhere."""

    def damage_error(self, reason: str) -> UsageProblem:
        """The error to raise for invalid content."""
        return UsageProblem(f"{self.path} is damaged: {reason}")

    def version(self) -> str | None:
        """The version of glTF that the document names."""
        found = child(self.document, "asset").get("version")
        return found if isinstance(found, str) else None

    def item(self, kind: str, index: Any) -> Mapping[str, Any]:
        """An object of one of the document's arrays, such as `nodes`."""
        found = self.document.get(kind)
        if not isinstance(found, list) or type(index) is not int or not 0 <= index < len(found):
            raise self.damage_error(f"it has no {kind}[{str(index)[:20]}]")
        if not isinstance(found[index], dict):
            raise self.damage_error(f"{kind}[{index}] is not an object")
        return dict(found[index])

    def array(self, parent: Mapping[str, Any], key: str) -> list[Any]:
        """An array, which may be missing."""
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

    def numbers(self, parent: Mapping[str, Any], key: str, default: NDArray[Any]) -> Float64s:
        """The finite numbers of an object's array, as many as there are by default."""
        found = parent.get(key, default.tolist())
        if not isinstance(found, list) or len(found) != default.size or {type(v) for v in found} - {int, float}:
            raise self.damage_error(f"{key} is not {default.size} numbers")
        try:
            values = np.array(found, np.float64)
        except OverflowError:
            values = np.array([np.nan])
        if not np.isfinite(values).all():
            raise self.damage_error(f"{key} is not finite")
        return values

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

    def buffer(self, index: int) -> bytes:
        """The bytes of a buffer: the binary chunk, base64 in the JSON, or a file beside the document or below it."""
        entry = self.item("buffers", index)
        uri = entry.get("uri")
        if uri is None:
            return self.body if index == 0 else b""
        if index not in self.loaded:
            self.loaded[index] = self._fetch(str(uri), self.whole(entry, "byteLength"))
        return self.loaded[index]

    def _fetch(self, uri: str, size: int) -> bytes:
        """The content of an address, at most `size` bytes."""
        if uri.startswith(DATA):
            try:
                return base64.b64decode(uri.partition(",")[2], validate=True)[:size]
            except (binascii.Error, ValueError) as problem:
                raise self.damage_error(f"a buffer is not base64: {problem}") from problem
        name, folder = unquote(uri), self.path.parent.resolve()
        if escapes_archive(name) or "\0" in name or not (folder / name).resolve().is_relative_to(folder):
            raise UsageProblem(
                f"{self.path}: its buffer {name[:80]!r} is outside its folder, where segdream does not read"
            )
        with open_asset(self.path.parent / name) as stream:
            return stream.read(size)

    def view(self, index: Any) -> tuple[bytes, int, int, Mapping[str, Any]]:
        """A bufferView: its buffer, the offset and number of its bytes there, and its entry."""
        view = self.item("bufferViews", index)
        content = self.buffer(self.whole(view, "buffer"))
        start, size = self.whole(view, "byteOffset", 0), self.whole(view, "byteLength")
        if start + size > len(content):
            raise self.damage_error(f"bufferViews[{index}] claims {str(size)[:20]} bytes, more than its buffer holds")
        return content, start, size, view

    def values(self, name: str, index: Any, width: int, kinds: "list[tuple[int, bool]]") -> Float32s:
        """The values of an attribute, [n, width], whose component type and `normalized` are one of `kinds`."""
        accessor = self.item("accessors", index)
        kind = accessor.get("componentType"), accessor.get("normalized", False)
        if accessor.get("type") != WIDTHS[width] or kind not in kinds:
            raise self.damage_error(f"{name} has a type that the format does not allow")
        if "sparse" in accessor or "bufferView" not in accessor:
            raise UsageProblem(f"{self.path}: {name} is sparse, which segdream can't read")
        content, start, size, view = self.view(accessor["bufferView"])
        dtype = np.dtype(TYPES[kind[0]])
        row = width * dtype.itemsize
        count, stride = self.whole(accessor, "count"), self.whole(view, "byteStride", row)
        offset = self.whole(accessor, "byteOffset", 0)
        if not count or stride < row:
            raise self.damage_error(f"{name} has {str(count)[:20]} rows, {str(stride)[:20]} bytes apart")
        if offset + (count - 1) * stride + row > size:
            raise self.damage_error(f"{name} claims {str(count)[:20]} rows, more than its bytes hold")
        stored = np.ndarray((count, width), dtype, content, start + offset, (stride, dtype.itemsize))
        if not kind[1]:
            return stored.astype(np.float32)
        return np.maximum(stored / np.float32(np.iinfo(dtype).max), np.float32(-1))


def child(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object in another one; empty if there is none."""
    found = parent.get(key)
    return found if isinstance(found, dict) else {}
