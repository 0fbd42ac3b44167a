"""Primitives of a binary glTF file that Draco has packed (KHR_draco_mesh_compression), unpacked to plain accessors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segdream_cli.formats.gltf import TYPES, WIDTHS, Gltf, child
from segdream_cli.mesh.accessors import append, primitives
from segdream_cli.mesh.libraries import DRACO, library

EXTENSION = "KHR_draco_mesh_compression"
TRIANGLES, UNSIGNED_INT = 4, 5125


def unpack(path: Path, document: dict[str, Any], body: bytes) -> bytes:
    """Gives each packed primitive of `document` plain accessors; returns the binary chunk that holds their values.

    Raises:
        EnvironmentProblem: the library is missing.
        UsageProblem: a primitive is damaged.
    """
    library(DRACO)
    gltf, unpacked = Gltf(path, document, body), bytearray(body)
    for primitive in primitives(gltf):
        if packed := child(child(primitive, "extensions"), EXTENSION):
            _unpack_primitive(gltf, primitive, packed, unpacked)
    for key in ("extensionsUsed", "extensionsRequired"):
        document[key] = [name for name in gltf.array(document, key) if name != EXTENSION]
    return bytes(unpacked)


def _unpack_primitive(gltf: Gltf, primitive: dict[str, Any], packed: Mapping[str, Any], unpacked: bytearray) -> None:
    """Appends the values of a primitive to the chunk `unpacked`, and their views and accessors to the document."""
    content, start, size, _ = gltf.view(packed.get("bufferView"))
    try:
        mesh = library(DRACO).decode(content[start : start + size])
        columns = {each["unique_id"]: np.asarray(each["data"]) for each in mesh.attributes}
        faces = np.asarray(mesh.faces, "<u4").ravel()
    except Exception as problem:  # the library has its own exceptions, and a cloud of points has no faces
        raise gltf.damage_error(f"Draco can't unpack a primitive: {str(problem)[:200]}") from problem
    attributes = dict(child(primitive, "attributes"))
    for name, identifier in child(packed, "attributes").items():
        if type(identifier) is not int or identifier not in columns:
            raise gltf.damage_error(f"{name[:40]} is not among the attributes that Draco has packed")
        former = gltf.item("accessors", attributes.get(name))
        kind, column = former.get("componentType"), columns[identifier]
        if kind not in TYPES or column.ndim != 2 or column.shape[1] not in WIDTHS:
            raise gltf.damage_error(f"{name[:40]} has a type that the format does not allow")
        accessor = {
            "componentType": kind,
            "type": WIDTHS[column.shape[1]],
            "normalized": former.get("normalized", False),
        }
        attributes[name] = append(gltf, unpacked, column.astype(TYPES[kind]), accessor)
    primitive["attributes"], primitive["mode"] = attributes, TRIANGLES
    primitive["indices"] = append(gltf, unpacked, faces, {"componentType": UNSIGNED_INT, "type": "SCALAR"})
    primitive["extensions"] = {key: value for key, value in primitive["extensions"].items() if key != EXTENSION}
