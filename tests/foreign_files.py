"""Files that segdream reads and does not write, made from the descriptions of their layouts."""

import base64
import gzip
import io
import json
import struct
from typing import Any

import numpy as np
from PIL import Image

from segdream_cli.splats import Splats, to_ply_frame

KHR, PACKED = "KHR_gaussian_splatting", "KHR_gaussian_splatting_compression_spz_2"
SIDE, CAPACITY = 0.5, 16


def ksplat_file(splats: Splats, level: int, degree: int, sections: int = 1, room: int = 0) -> bytes:
    """A .ksplat of Gaussians in full buckets of 16 and one that is partly filled, in each of some sections.

    The last section has `room` for more.
    """
    turned = to_ply_frame(splats)
    k = (0, 3, 8)[degree]
    headers, bodies, total = b"", b"", 0
    for index, part in enumerate(np.array_split(np.arange(len(turned)), sections)):
        full, rest = divmod(len(part), CAPACITY)
        spare = room if index == sections - 1 else 0
        groups = [part[i * CAPACITY : (i + 1) * CAPACITY] for i in range(full + (rest > 0))]
        centers = np.array([turned.means[group].mean(axis=0) for group in groups], "<f4")
        headers += struct.pack(
            "<IIIIfHxxIxxxxIIH",
            len(part),
            len(part) + spare,
            CAPACITY,
            len(groups),
            SIDE,
            12,
            0,
            full,
            rest > 0,
            degree,
        ).ljust(1024, b"\0")
        bodies += struct.pack("<I", rest) * (rest > 0) + centers.tobytes()
        for group, center in zip(groups, centers, strict=True):
            for i in group:
                bodies += _ksplat_row(turned, i, center, level, k)
        bodies += bytes(spare * len(_ksplat_row(turned, 0, centers[0], level, k)))
        total += len(part) + spare
    head = struct.pack("<BBxxIIIIH14xff", 0, 1, sections, sections, total, len(turned), level, -1.0, 1.0)
    return head.ljust(4096, b"\0") + headers + bodies


def _ksplat_row(splats: Splats, i: int, center: np.ndarray, level: int, k: int) -> bytes:
    mean, scale, quat = splats.means[i], np.exp(splats.log_scales[i]), splats.quats[i]
    color = np.rint(np.clip(0.5 + 0.28209479177387814 * splats.sh0[i], 0, 1) * 255)
    alpha = np.rint(255 / (1 + np.exp(-splats.opacity_logits[i])))
    blocks = [splats.shN[i, first:end].T.ravel() for first, end in ((0, 3), (3, 8)) if end <= k]  # colour by colour
    harmonics = np.concatenate([*blocks, np.zeros(0, np.float32)])
    stored = np.rint((mean - center) / (SIDE / 2) * 32767) + 32767
    bytes_of_color = np.array([*color, alpha], "u1").tobytes()
    if level == 0:
        return np.array([*mean, *scale, *quat], "<f4").tobytes() + bytes_of_color + harmonics.astype("<f4").tobytes()
    base = stored.astype("<u2").tobytes() + np.array([*scale, *quat], "<f2").tobytes() + bytes_of_color
    return base + (
        harmonics.astype("<f2").tobytes() if level == 1 else np.rint((harmonics + 1) / 2 * 255).astype("u1").tobytes()
    )


def webp(pixels: np.ndarray, **options: Any) -> bytes:
    """A lossless WebP of pixels [h, w, 3 or 4]."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", **{"lossless": True, "exact": True, **options})
    return stream.getvalue()


def sog_1_files(splats: Splats, k: int) -> dict[str, bytes]:
    """The files of SOG version 1, from its description: bytes are steps between the least and the greatest value."""
    turned = to_ply_frame(splats)
    n = len(turned)
    side, lines = int(np.ceil(np.sqrt(n))), -(-n // 64)

    def square(rows: np.ndarray) -> bytes:
        sheet = np.zeros((side * side, rows.shape[1]), np.uint8)
        sheet[:n] = rows
        return webp(sheet.reshape(side, side, -1))

    def steps(values: np.ndarray, levels: int) -> tuple[np.ndarray, list[float], list[float]]:
        low, high = values.min(axis=0), values.max(axis=0)
        return (
            np.rint((values - low) / np.where(high > low, high - low, 1) * levels).astype(int),
            low.tolist(),
            high.tolist(),
        )

    logs = np.sign(turned.means) * np.log1p(np.abs(turned.means))
    means, low, high = steps(logs, 65535)
    meta: dict[str, Any] = {"means": {"shape": [n, 3], "dtype": "float32", "mins": low, "maxs": high}}
    meta["means"]["files"] = ["means_l.webp", "means_u.webp"]
    files = {"means_l.webp": square(means & 255), "means_u.webp": square(means >> 8)}
    colors = np.concatenate([turned.sh0, turned.opacity_logits[:, None]], axis=1)
    for name, values in (("scales", turned.log_scales), ("sh0", colors)):
        stored, low, high = steps(values, 255)
        meta[name] = {"shape": [n, 3], "mins": low, "maxs": high, "files": [f"{name}.webp"]}
        files[f"{name}.webp"] = square(stored)
    largest = np.abs(turned.quats).argmax(axis=1)
    quats = turned.quats * np.sign(turned.quats[np.arange(n), largest])[:, None]
    smaller = np.stack([np.delete(quat, i) for quat, i in zip(quats, largest, strict=True)])
    stored = np.rint((smaller * np.sqrt(2) + 1) / 2 * 255)
    meta["quats"] = {"shape": [n, 4], "encoding": "quaternion_packed", "files": ["quats.webp"]}
    files["quats.webp"] = square(np.concatenate([stored, 252 + largest[:, None]], axis=1))
    if k:
        sheet = np.zeros((lines * 64, k, 3), np.uint8)  # an entry for each Gaussian
        sheet[:n] = np.rint((turned.shN[:, :k] + 1) / 2 * 255)
        labels = np.stack([np.arange(n) & 255, np.arange(n) >> 8, np.zeros(n)], axis=1)
        meta["shN"] = {"shape": [n, k], "mins": -1, "maxs": 1, "quantization": 8}
        meta["shN"]["files"] = ["shN_centroids.webp", "shN_labels.webp"]
        files |= {"shN_centroids.webp": webp(sheet.reshape(lines, 64 * k, 3)), "shN_labels.webp": square(labels)}
    return files | {"meta.json": json.dumps(meta).encode()}


def spz_file(version: int, count: int, degree: int, *blocks: bytes, flags: int = 0, bits: int = 12) -> bytes:
    """SPZ before version 4, without gzip."""
    return struct.pack("<4sIIBBBB", b"NGSP", version, count, degree, bits, flags, 0) + b"".join(blocks)


def old_spz(splats: Splats, version: int) -> bytes:
    """SPZ of version 1 or 2 without gzip, of degree 0; all but the centres are arbitrary bytes."""
    means = to_ply_frame(splats).means
    fixed = np.rint(means * 4096).astype("<i4").view("u1").reshape(-1, 4)[:, :3]
    centers = means.astype("<f2").tobytes() if version == 1 else fixed.tobytes()
    rest = np.random.default_rng(len(means)).integers(0, 256, 10 * len(means)).astype("u1").tobytes()
    return spz_file(version, len(means), 0, centers, rest)


def packed_document(size: int) -> dict[str, Any]:
    """The JSON of glTF whose Gaussians are an SPZ file of `size` bytes."""
    inner = {PACKED: {"bufferView": 0}}
    splatting = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display", "extensions": inner}
    return {
        "asset": {"version": "2.0"},
        "extensionsUsed": [KHR, PACKED],
        "extensionsRequired": ["KHR_materials_unlit", KHR, PACKED],
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "translation": [0, 1, 0], "scale": [1, 2, 1]}],
        "meshes": [{"primitives": [{"mode": 0, "attributes": {"POSITION": 0}, "extensions": {KHR: splatting}}]}],
        "accessors": [{"componentType": 5126, "count": 3, "type": "VEC3"}],
        "bufferViews": [{"buffer": 0, "byteLength": size}],
        "buffers": [{"byteLength": size}],
    }


def glb_file(document: dict[str, Any], body: bytes) -> bytes:
    """A .glb of a document and its binary chunk."""
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    body += bytes(-len(body) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(body))
    return head + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body


def gltf_file(document: dict[str, Any], body: bytes) -> bytes:
    """A .gltf of a document, with its buffer in base64."""
    document["buffers"][0]["uri"] = "data:application/octet-stream;base64," + base64.b64encode(body).decode()
    return json.dumps(document).encode()


def ply_variant(splats: Splats, number: int) -> bytes:
    """A PLY of 2D Gaussians with rgb (0), of integers and degree 4 (1), of geographic doubles (2), of points (3)."""
    turned, rng = to_ply_frame(splats), np.random.default_rng(number)
    n = len(turned)
    kind = "<f8" if number == 2 else "<f4"
    columns = {axis: turned.means[:, i].astype(kind) + (5e6 if number == 2 else 0) for i, axis in enumerate("xyz")}
    if number in (0, 3):
        columns |= {name: rng.integers(0, 256, n).astype("u1") for name in ("red", "green", "blue")}
    else:
        columns |= {f"f_dc_{i}": turned.sh0[:, i] for i in range(3)}
    if number != 3:
        columns |= {f"scale_{i}": turned.log_scales[:, i] for i in range(3 if number else 2)}
        columns |= {f"rot_{i}": turned.quats[:, i] for i in range(4)}
        columns["opacity"] = rng.integers(-5, 5, n).astype("i1") if number == 1 else turned.opacity_logits
    if number == 1:
        columns |= {f"f_rest_{i}": rng.normal(size=n).astype("<f4") for i in range(72)}
    rows = np.zeros(n, [(name, column.dtype) for name, column in columns.items()])
    names = {"f4": "float", "f8": "double", "u1": "uchar", "i1": "char"}
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {n}"]
    for name, column in columns.items():
        rows[name] = column
        header.append(f"property {names[column.dtype.str[1:]]} {name}")
    return "\n".join([*header, "end_header", ""]).encode() + rows.tobytes()


def gzipped(content: bytes) -> bytes:
    """A gzip member."""
    return gzip.compress(content, 1, mtime=0)
