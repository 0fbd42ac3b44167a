"""3D Tiles of one tile for CesiumJS: a .glb whose Gaussians are packed as SPZ, and the tileset that names it.

CesiumJS 1.145 reads Gaussians in no other way: a tileset must require KHR_gaussian_splatting and
KHR_gaussian_splatting_compression_spz_2, and the SPZ file must be of version 3 at most. The base colour stands in
COLOR_0: Cesium takes the number of accessors of spherical harmonics without degree 0 for their degree.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from segdream_cli.formats import spz
from segdream_cli.formats.common import provenance_extras, require_finite
from segdream_cli.formats.glb import EXTENSION, OPACITY, PACKED, SH0, begin, list_columns, make_document
from segdream_cli.splats import Splats, sanitize
from segdream_cli.splats.frames import INNER
from segdream_cli.util.files import write_together

EXTENSIONS = [EXTENSION, PACKED[0]]
BESIDE = ".tileset.json"
"""Suffix of the tileset."""
REACH = 3
"""Standard deviations of a Gaussian that its tile's box holds."""


def write(path: Path, splats: Splats) -> None:
    """Writes the .glb, with values rounded as in `formats.spz.write`, and the tileset beside it.

    The tileset is in metres with z up, where the inner frame has y; its model matrix in Cesium places it on the globe.

    Raises:
        UsageProblem: the centres reach too far for SPZ, or the folder can't be written.
        SegdreamError: there are no Gaussians, some are not finite, or the disk is full.
    """
    require_finite(splats)
    splats = sanitize(splats)
    packed = b"".join(spz.pack(splats, path, frame=INNER))
    body = packed + bytes(-len(packed) % 4)
    tileset = json.dumps(_tileset(path.name, splats), indent=1) + "\n"
    write_together(
        {
            path: begin(_document(splats, len(packed), len(body)), len(body)) + body,
            path.with_suffix(BESIDE): tileset.encode("ascii"),
        }
    )


def _document(splats: Splats, packed: int, body: int) -> Mapping[str, Any]:
    """The JSON of a .glb with an SPZ file of `packed` bytes in place of the values of accessors."""
    columns = {name: column for name, column in list_columns(splats).items() if name not in (OPACITY, SH0)}
    document = make_document(columns, provenance_extras(splats))
    for accessor in document["accessors"]:
        del accessor["bufferView"]
    (primitive,) = document["meshes"][0]["primitives"]
    primitive["extensions"][EXTENSION]["extensions"] = {PACKED[0]: {"bufferView": 0}}
    return document | {
        "extensionsUsed": EXTENSIONS,
        "extensionsRequired": EXTENSIONS,
        "bufferViews": [{"buffer": 0, "byteLength": packed}],
        "buffers": [{"byteLength": body}],
    }


def _tileset(name: str, splats: Splats) -> Mapping[str, Any]:
    """A tileset of one tile, which disappears where it is smaller than Cesium's threshold of 16 pixels."""
    reach = REACH * np.exp(splats.log_scales.max(axis=1, keepdims=True).astype(np.float64))
    low, high = (splats.means - reach).min(axis=0), (splats.means + reach).max(axis=0)
    (x, y, z), (width, height, depth) = (high + low) / 2, (high - low) / 2
    box = [x, -z, y, width, 0, 0, 0, depth, 0, 0, 0, height]
    required = {"extensionsUsed": EXTENSIONS, "extensionsRequired": EXTENSIONS}
    return {
        "asset": {"version": "1.1"},
        "extensionsUsed": ["3DTILES_content_gltf"],
        "extensions": {"3DTILES_content_gltf": required},
        "geometricError": float(np.linalg.norm(high - low)),
        "root": {
            "boundingVolume": {"box": [float(value) for value in box]},
            "geometricError": 0,
            "refine": "ADD",
            "content": {"uri": quote(name)},
        },
    }
