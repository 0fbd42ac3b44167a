"""Attributes of a binary glTF mesh as plain floats.

trimesh takes normalized integers for whole numbers, sparse values for zeros, and the first texture coordinates for
those of every texture. Colours of a primitive without a material are rounded to bytes by it, and fans are left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdream_cli.errors import UsageProblem
from segdream_cli.formats.gltf import TYPES, Gltf, child
from segdream_cli.splats import Float32s, Float64s

TRANSFORM = "KHR_texture_transform"
WEBP = "EXT_texture_webp"
GLOSSINESS = "KHR_materials_pbrSpecularGlossiness"
SHAPES: Mapping[str, Sequence[str]] = MappingProxyType(
    {"COLOR_0": ("VEC3", "VEC4"), "POSITION": ("VEC3",), "TEXCOORD_0": ("VEC2",)}
)
"""Attribute that is read -> types that the format allows."""
FLOAT, TRIANGLE_FAN = 5126, 6
KINDS = [(FLOAT, False), *((kind, normalized) for kind in TYPES if kind != FLOAT for normalized in (False, True))]
"""Component types with `normalized`, also those of KHR_mesh_quantization."""


def primitives(gltf: Gltf) -> Iterator[dict[str, Any]]:
    """The primitives of all meshes of a document, which can be changed."""
    for i in range(len(gltf.array(gltf.document, "meshes"))):
        yield from (each for each in gltf.array(gltf.item("meshes", i), "primitives") if isinstance(each, dict))


def append(gltf: Gltf, body: bytearray, values: NDArray[Any], accessor: dict[str, Any]) -> int:
    """Appends rows of numbers to the binary chunk `body` of a document; returns the index of their accessor."""
    if "uri" in gltf.item("buffers", 0):
        raise gltf.damage_error("its first buffer is not its binary chunk")
    body += bytes(-len(body) % 4)
    views, accessors = gltf.array(gltf.document, "bufferViews"), gltf.array(gltf.document, "accessors")
    views.append({"buffer": 0, "byteOffset": len(body), "byteLength": values.nbytes})
    accessors.append({**accessor, "bufferView": len(views) - 1, "count": len(values)})
    body += values.tobytes()
    gltf.document["buffers"][0]["byteLength"] = len(body)
    return len(accessors) - 1


def to_floats(path: Path, document: dict[str, Any], body: bytes) -> bytes:
    """Gives each primitive of `document` attributes of floats; returns the binary chunk that holds their values.

    TEXCOORD_0 becomes the texture coordinates of the base colour, after its KHR_texture_transform.

    Raises:
        UsageProblem: an attribute is damaged or sparse, or a primitive is a triangle fan.
    """
    gltf, extended = Gltf(path, document, body), bytearray(body)
    done: dict[tuple[int, bytes], int] = {}
    for primitive in primitives(gltf):
        if primitive.get("mode") == TRIANGLE_FAN:
            raise UsageProblem(f"{path} has a triangle fan, which segdream can't read; save the mesh as triangles")
        channel, matrix = _texture_coordinates(gltf, primitive)
        if "indices" in primitive and "sparse" in gltf.item("accessors", primitive["indices"]):
            raise UsageProblem(f"{path}: the indices of its faces are sparse, which segdream can't read")
        given = child(primitive, "attributes")
        attributes = {**given, "TEXCOORD_0": given.get(f"TEXCOORD_{channel}")}
        attributes = {name: index for name, index in attributes.items() if index is not None}
        found = {name: gltf.item("accessors", attributes[name]) for name in SHAPES if name in attributes}
        if len({gltf.whole(accessor, "count") for accessor in found.values()}) > 1:
            raise gltf.damage_error(f"{', '.join(found)} have different numbers of rows")
        for name, accessor in found.items():
            if accessor.get("type") not in SHAPES[name]:
                raise gltf.damage_error(f"{name} has a type that the format does not allow")
            moved = name == "TEXCOORD_0" and not np.array_equal(matrix, np.eye(2, 3))
            if accessor.get("componentType") == FLOAT and "sparse" not in accessor and not moved:
                continue
            key = attributes[name], matrix.tobytes() if moved else b""
            if key not in done:
                values = _values(gltf, name, attributes[name])
                if moved:
                    with np.errstate(over="ignore", invalid="ignore"):  # the reader refuses what is not finite
                        values = (values @ matrix[:, :2].T + matrix[:, 2]).astype("<f4")
                done[key] = append(gltf, extended, values, {"componentType": FLOAT, "type": accessor["type"]})
            attributes[name] = done[key]
        primitive["attributes"] = attributes
        if "COLOR_0" in attributes and "material" not in primitive:
            primitive["material"] = len(gltf.array(document, "materials"))
    document["materials"] = [*gltf.array(document, "materials"), {}]
    return bytes(extended)


def _values(gltf: Gltf, name: str, index: Any) -> Float32s:
    """The values of an attribute, [n, width]."""
    width = int(gltf.item("accessors", index)["type"].removeprefix("VEC"))
    return gltf.values(name, index, width, KINDS)


def _texture_coordinates(gltf: Gltf, primitive: Mapping[str, Any]) -> tuple[int, Float64s]:
    """The index of a primitive's texture coordinates for its base colour, and what transforms them, [2, 3].

    Raises:
        UsageProblem: the texture of the base colour is missing, or in a format that can't be read.
    """
    if "material" not in primitive:
        return 0, np.eye(2, 3)
    material = gltf.item("materials", primitive["material"])
    plain = child(child(material, "pbrMetallicRoughness"), "baseColorTexture")
    info = child(child(child(material, "extensions"), GLOSSINESS), "diffuseTexture") or plain
    if "index" in info:
        texture = gltf.item("textures", info["index"])
        if "source" not in texture and WEBP not in child(texture, "extensions"):
            raise UsageProblem(f"{gltf.path} has a texture that segdream can't read; save it as PNG or JPEG")
    transform = child(child(info, "extensions"), TRANSFORM)
    angle = gltf.numbers({"rotation": [transform.get("rotation", 0.0)]}, "rotation", np.zeros(1))[0]
    # counter-clockwise where v goes down, after the scale
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix = np.empty((2, 3))
    matrix[:, :2] = rotation * gltf.numbers(transform, "scale", np.ones(2))
    matrix[:, 2] = gltf.numbers(transform, "offset", np.zeros(2))
    return gltf.whole(transform, "texCoord", gltf.whole(info, "texCoord", 0)), matrix
