"""Files of meshes: binary glTF, also compressed with Draco, and .obj."""

import io
import json
import struct
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdream_cli import __version__
from segdream_cli.errors import UsageProblem
from segdream_cli.formats.gltf import BIN_CHUNK, JSON_CHUNK, WIDTHS
from segdream_cli.mesh import draco
from segdream_cli.mesh.libraries import DRACO, library
from segdream_cli.mesh.surface import to_linear
from segdream_cli.mesh.triangles import Bytes, Floats, Indices, Mesh
from segdream_cli.util.files import write_together

SUFFIXES = (".glb", ".obj")
POSITION_BITS, UV_BITS, NORMAL_BITS = 14, 14, 10
"""Bits of a coordinate in a file that Draco compresses, over the longest side of the mesh or over the texture."""
COLOR_ID = 9
"""Draco's identifier of the colours, which it does not give itself."""
JPEG_QUALITY = 90
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
UNSIGNED_SHORT, UNSIGNED_INT, FLOAT = 5123, 5125, 5126
COMPONENTS = {np.dtype(np.uint16): UNSIGNED_SHORT, np.dtype(np.uint32): UNSIGNED_INT, np.dtype(np.float32): FLOAT}


def write(path: Path, mesh: Mesh, *, compress: bool = False) -> None:
    """Writes binary glTF 2.0 with its texture, or an .obj with an .mtl and a .png of the same name beside it.

    The material of a .glb is unlit (KHR_materials_unlit), since its colours already contain the light. Each convex
    piece is a node of its own, and an object of an .obj.

    Args:
        path: the file.
        mesh: its content.
        compress: whether a .glb has its triangles compressed by Draco, and its texture as JPEG.

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
    write_together({path: _Glb(path.stem, mesh, compress).content()} if suffix == ".glb" else _obj(path, mesh))


class _Glb:
    """A binary glTF document that grows by its parts."""

    def __init__(self, name: str, mesh: Mesh, compress: bool) -> None:
        self.body = bytearray()
        self.compress = compress
        extras = {"extras": {"segdream": mesh.provenance}} if mesh.provenance else {}
        self.tree: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": f"segdream {__version__}", **extras},
            "scene": 0,
            "scenes": [{"nodes": []}],
            "nodes": [],
            "meshes": [],
            "accessors": [],
            "bufferViews": [],
        }
        if mesh.pieces:
            for i, (vertices, faces) in enumerate(mesh.split()):
                self._add_node(f"{name}_{i:02}", {"POSITION": vertices}, faces)
        else:
            self._add_material(mesh)
            self._add_node(name, _attributes(mesh), mesh.faces)

    def content(self) -> bytes:
        """The bytes of the file."""
        self.tree["buffers"] = [{"byteLength": len(self.body)}]
        text = json.dumps(self.tree, allow_nan=False, separators=(",", ":")).encode("ascii")
        text += b" " * (-len(text) % 4)
        size = 28 + len(text) + len(self.body)
        head = struct.pack("<5I", 0x46546C67, 2, size, len(text), JSON_CHUNK)
        return head + text + struct.pack("<2I", len(self.body), BIN_CHUNK) + bytes(self.body)

    def _add(self, kind: str, item: dict[str, Any]) -> int:
        """Appends to a list of the document, and returns the index."""
        items = self.tree.setdefault(kind, [])
        items.append(item)
        return len(items) - 1

    def _add_view(self, content: bytes, **keys: Any) -> int:
        """Bytes as a buffer view, padded to a multiple of four."""
        view = {"buffer": 0, "byteOffset": len(self.body), "byteLength": len(content), **keys}
        self.body += content + bytes(-len(content) % 4)
        return self._add("bufferViews", view)

    def _use(self, extension: str, *, required: bool = False) -> None:
        """Declares an extension."""
        for key in ("extensionsUsed", *(["extensionsRequired"] if required else [])):
            self.tree[key] = sorted({*self.tree.get(key, ()), extension})

    def _add_material(self, mesh: Mesh) -> None:
        """The unlit material, whose base colour is the texture; vertex colours multiply with white."""
        self._use("KHR_materials_unlit")
        base: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
        if mesh.texture is not None:
            image = _encode(mesh.texture, "JPEG" if self.compress else "PNG")
            kind = "image/jpeg" if self.compress else "image/png"
            source = self._add("images", {"mimeType": kind, "bufferView": self._add_view(image)})
            base["baseColorTexture"] = {"index": self._add("textures", {"source": source})}
        unlit: dict[str, Any] = {"KHR_materials_unlit": {}}
        self._add("materials", {"name": "baked", "pbrMetallicRoughness": base, "extensions": unlit})

    def _add_node(self, name: str, attributes: dict[str, NDArray[Any]], faces: Indices) -> None:
        """A node with triangles."""
        primitive = (self._draco if self.compress else self._plain)(attributes, faces)
        if "materials" in self.tree:
            primitive["material"] = 0
        mesh = self._add("meshes", {"name": name, "primitives": [primitive]})
        self.tree["scenes"][0]["nodes"].append(self._add("nodes", {"name": name, "mesh": mesh}))

    def _plain(self, attributes: dict[str, NDArray[Any]], faces: Indices) -> dict[str, Any]:
        """A primitive whose values stand in the buffer as they are."""
        found = {}
        for name, values in attributes.items():
            view = self._add_view(np.ascontiguousarray(values).tobytes(), target=ARRAY_BUFFER)
            found[name] = self._add("accessors", {"bufferView": view, **_describe(name, values)})
        indices = _indices(faces)
        view = self._add_view(indices.tobytes(), target=ELEMENT_ARRAY_BUFFER)
        return {
            "attributes": found,
            "indices": self._add("accessors", {"bufferView": view, **_describe("", indices)}),
        }

    def _draco(self, attributes: dict[str, NDArray[Any]], faces: Indices) -> dict[str, Any]:
        """A primitive that Draco has compressed; it rounds, reorders and welds vertices."""
        self._use(draco.EXTENSION, required=True)
        given = {name: values.astype(float) if name != "COLOR_0" else values for name, values in attributes.items()}
        content = library(DRACO).encode(
            given["POSITION"],
            faces.astype(np.uint32),
            quantization_bits=POSITION_BITS,
            compression_level=7,
            tex_coord=given.get("TEXCOORD_0"),
            tex_coord_quantization_bits=UV_BITS,
            normals=given.get("NORMAL"),
            normal_quantization_bits=NORMAL_BITS,
            generic_attributes={COLOR_ID: given["COLOR_0"]} if "COLOR_0" in given else None,
        )
        packed = library(DRACO).decode(content)
        kinds = {0: "POSITION", 1: "NORMAL", 3: "TEXCOORD_0", 4: "COLOR_0"}  # of Draco's GeometryAttribute
        ids = {kinds[int(each["attribute_type"])]: int(each["unique_id"]) for each in packed.attributes}
        points = np.asarray(packed.points, np.float32)
        accessors = {}
        for name in given:
            accessor = _describe(name, points if name == "POSITION" else attributes[name]) | {"count": len(points)}
            accessors[name] = self._add("accessors", accessor)
        indices = self._add("accessors", _describe("", _indices(np.asarray(packed.faces, np.int64))))
        extension = {"bufferView": self._add_view(content), "attributes": ids}
        return {"attributes": accessors, "indices": indices, "extensions": {draco.EXTENSION: extension}}


def _attributes(mesh: Mesh) -> dict[str, NDArray[Any]]:
    """The vertices' values by their names in glTF; colours are linear there, and alpha pads them to eight bytes."""
    found: dict[str, NDArray[Any]] = {"POSITION": mesh.vertices}
    if mesh.normals is not None:
        found["NORMAL"] = mesh.normals
    if mesh.uvs is not None:
        found["TEXCOORD_0"] = np.stack([mesh.uvs[:, 0], 1 - mesh.uvs[:, 1]], axis=1)
    found = {name: values.astype(np.float32) for name, values in found.items()}
    if mesh.colors is not None:
        linear = to_linear(mesh.colors.astype(np.float64))
        opaque = np.concatenate([linear, np.ones((len(linear), 1))], axis=1)
        found["COLOR_0"] = np.rint(opaque * 65535).astype(np.uint16)
    return found


def _describe(name: str, values: NDArray[Any]) -> dict[str, Any]:
    """The keys of an accessor that say what its values are."""
    width = values.shape[1] if values.ndim == 2 else 1
    accessor: dict[str, Any] = {
        "componentType": COMPONENTS[values.dtype],
        "count": len(values),
        "type": WIDTHS[width],
    }
    if name == "COLOR_0":
        accessor["normalized"] = True
    if name == "POSITION":  # which glTF requires
        accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
    return accessor


def _indices(faces: Indices) -> NDArray[Any]:
    """The corners of the faces in a row; 65,535 stands for a restart, so it needs four bytes."""
    return faces.ravel().astype(np.uint16 if faces.max(initial=0) < 65535 else np.uint32)


def _encode(texture: Bytes, kind: str) -> bytes:
    """The bytes of an image."""
    from PIL import Image

    stream = io.BytesIO()
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if kind == "JPEG" else {}
    Image.fromarray(texture).save(stream, format=kind, **options)
    return stream.getvalue()


def _obj(path: Path, mesh: Mesh) -> dict[Path, bytes]:
    """The files of an .obj; texture and material come first, so every .obj on disk has the files that it names."""
    lines, found = [f"# segdream {__version__}"], dict[Path, bytes]()
    if mesh.pieces:
        first = 1
        for i, (vertices, faces) in enumerate(mesh.split()):
            lines += [f"o {path.stem}_{i:02}", *_rows("v", vertices), *_corners(faces + first, "{0}")]
            first += len(vertices)
    elif mesh.uvs is None or mesh.texture is None or mesh.normals is None:
        colored = mesh.vertices if mesh.colors is None else np.concatenate([mesh.vertices, mesh.colors], axis=1)
        lines += _rows("v", colored)
        lines += [] if mesh.normals is None else _rows("vn", mesh.normals, 4)
        lines += _corners(mesh.faces + 1, "{0}" if mesh.normals is None else "{0}//{0}")
    else:
        image, material = path.with_suffix(".png"), path.with_suffix(".mtl")
        found[image] = _encode(mesh.texture, "PNG")
        found[material] = f"newmtl baked\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {image.name}\n".encode()
        lines += [f"mtllib {material.name}", "usemtl baked", *_rows("v", mesh.vertices), *_rows("vt", mesh.uvs)]
        lines += [*_rows("vn", mesh.normals, 4), *_corners(mesh.faces + 1, "{0}/{0}/{0}")]
    return found | {path: "\n".join([*lines, ""]).encode()}


def _rows(word: str, values: Floats, digits: int = 6) -> list[str]:
    """Lines of an .obj, one per row."""
    pattern = " ".join([word, *[f"{{:.{digits}g}}"] * values.shape[1]])
    return [pattern.format(*row) for row in values.tolist()]


def _corners(faces: Indices, corner: str) -> list[str]:
    """Lines of an .obj, one per face, whose indices start at 1."""
    pattern = " ".join(["f", *(corner.replace("0", str(i)) for i in range(3))])
    return [pattern.format(*row) for row in faces.tolist()]
