"""SuperSplat's compressed PLY: 16 bytes a Gaussian in chunks of 256, which know their bounds.

The layout is that of PlayCanvas's splat-transform, `writers/write-compressed-ply.ts`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdream_cli.errors import UsageProblem
from segdream_cli.formats.ordering import along_z_curve
from segdream_cli.formats.ply import (
    ANOTHER_FILE,
    HEADER_LIMIT,
    REST_COUNTS,
    opened,
    provenance_comments,
    provenance_of,
    refuse_nonfinite,
    require_finite,
    rest_names,
)
from segdream_cli.formats.spz_values import BYTE_LOGITS, UInt32s
from segdream_cli.splats import SH_C0, Float32s, Splats, find_nonfinite, from_ply_frame, sanitize, to_ply_frame
from segdream_cli.util.files import atomic_write

CHUNK = 256
CACHED_CHUNKS = 64
BOUNDS = tuple(
    tuple(f"{end}_{what}" for what in names)
    for names in (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b"))
    for end in ("min", "max")
)
"""Columns of a chunk: least and greatest centre, log-scale and colour. Early files have no bounds of colour."""
PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
BITS_3 = (11, 10, 11)
"""Bits of x, y and z in a packed position or scale."""
BITS_4 = (8, 8, 8, 8)
TYPES = {"float": "<f4", "float32": "<f4", "uint": "<u4", "uint32": "<u4", "uchar": "u1", "uint8": "u1"}
ROOT_2 = np.float32(np.sqrt(2))


def write(path: Path, splats: Splats) -> None:
    """Writes chunks of Gaussians that lie close together, in the PLY frame.

    Centres and log-scales are rounded to 1/2047 of a chunk's extent (y to 1/1023), colours and opacities to bytes,
    quaternions to ten bits for each but the largest component; higher spherical harmonics are kept within ±4 in steps
    of 1/32. The order becomes that of a Z-curve. Clamps as in `ply.write`; the provenance is in the header.

    Raises:
        SegdreamError: there are no Gaussians, some are not finite, or the disk is full.
        UsageProblem: the folder can't be written.
    """
    require_finite(splats)
    turned = to_ply_frame(sanitize(splats))
    n, k, _ = turned.shN.shape
    order = along_z_curve(turned.means)
    bounds, vertices = _packed(turned, order)
    elements = [("chunk", len(bounds), "float", [name for names in BOUNDS for name in names])]
    elements += [("vertex", n, "uint", list(PACKED))]
    elements += [("sh", n, "uchar", list(rest_names(3 * k)))] if k else []
    header = ["ply", "format binary_little_endian 1.0"]
    header += [f"comment {comment}" for comment in provenance_comments(splats)]
    for name, count, kind, properties in elements:
        header += [f"element {name} {count}", *(f"property {kind} {each}" for each in properties)]
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        stream.write("\n".join([*header, "end_header", ""]).encode("ascii"))
        stream.writelines(
            [bounds.tobytes(), vertices.tobytes(), _packed_harmonics(turned.shN).take(order, axis=0).tobytes()]
        )


def read(path: Path) -> Splats:
    """The Gaussians of a compressed PLY, in the inner frame, within the rounding of its bits.

    Raises:
        UsageProblem: the file can't be opened, is no compressed PLY, is damaged, or a value can't be right.
    """
    with opened(path) as stream:
        content = stream.read()
    elements, comments = _elements(path, content)
    chunks, vertices = elements["chunk"], elements["vertex"]
    n = len(vertices)
    splats = Splats(
        means=np.empty((n, 3), np.float32),
        quats=np.empty((n, 4), np.float32),
        log_scales=np.empty((n, 3), np.float32),
        opacity_logits=BYTE_LOGITS[vertices["packed_color"] & 255],
        sh0=np.empty((n, 3), np.float32),
        shN=_unpacked_harmonics(path, elements.get("sh"), n),
        provenance=provenance_of(comments),
    )
    for start in range(0, len(chunks), CACHED_CHUNKS):  # all of a block while it is in the cache
        block = slice(start * CHUNK, min(n, (start + CACHED_CHUNKS) * CHUNK))
        _unpack(chunks[start : start + CACHED_CHUNKS], vertices[block], splats, block)
    refuse_nonfinite(path, find_nonfinite(splats), n)
    return from_ply_frame(sanitize(splats))


def _unpack(chunks: NDArray[np.void], vertices: NDArray[np.void], splats: Splats, rows: slice) -> None:
    """Fills rows of `splats` with the centres, rotations, scales and colours of whole chunks."""
    names = chunks.dtype.names or ()
    bounds = [
        np.repeat(np.stack([chunks[name] for name in each], axis=1), CHUNK, axis=0)[: len(vertices)]
        for each in BOUNDS
        if set(each) <= set(names)
    ]
    colours = _unpacked(vertices["packed_color"] >> np.uint32(8), BITS_4[:3])
    with np.errstate(invalid="ignore", over="ignore"):  # bounds that are not finite are refused afterwards
        if len(bounds) == len(BOUNDS):
            colours = _within(colours, *bounds[4:6])
        splats.means[rows] = _within(_unpacked(vertices["packed_position"], BITS_3), *bounds[0:2])
        splats.log_scales[rows] = _within(_unpacked(vertices["packed_scale"], BITS_3), *bounds[2:4])
        splats.sh0[rows] = (colours - np.float32(0.5)) / np.float32(SH_C0)
    splats.quats[rows] = _unpacked_quats(vertices["packed_rotation"])


def _packed(splats: Splats, order: NDArray[np.intp]) -> tuple[Float32s, UInt32s]:
    """The chunks' bounds, [chunks, 18], and the packed vertices, [n, 4], of Gaussians taken in this order."""
    n = len(order)
    filled = np.concatenate([order, np.repeat(order[-1:], -n % CHUNK)]).reshape(-1, CHUNK)
    colours = splats.sh0 * np.float32(SH_C0) + np.float32(0.5)
    bounds = []
    units = []
    for values in (splats.means, splats.log_scales, colours):
        halves = (
            values.take(filled, axis=0) / 2
        )  # [chunks, 256, 3]; the difference of two whole ones can be too large for a float
        least, greatest = halves.min(axis=1, keepdims=True), halves.max(axis=1, keepdims=True)
        extent = np.where(greatest > least, greatest - least, 1)
        units.append(((halves - least) / extent).reshape(-1, 3)[:n])
        bounds += [2 * least[:, 0], 2 * greatest[:, 0]]
    opacities = 1 / (1 + np.exp(-splats.opacity_logits[order]))
    vertices = np.empty((n, 4), "<u4")
    vertices[:, 0] = _packed_units(units[0], BITS_3)
    vertices[:, 1] = _packed_quats(splats.quats.take(order, axis=0))
    vertices[:, 2] = _packed_units(units[1], BITS_3)
    vertices[:, 3] = _packed_units(np.concatenate([units[2], opacities[:, None]], axis=1), BITS_4)
    return np.concatenate(bounds, axis=1).astype("<f4"), vertices


def _packed_units(units: Float32s, widths: tuple[int, ...]) -> UInt32s:
    """Columns of values in 0..1, rounded to as many bits each, the first column in the highest bits."""
    packed = np.zeros(len(units), np.uint32)
    for i, width in enumerate(widths):
        packed = (packed << width) | np.rint(units[:, i] * (2**width - 1)).astype(np.uint32)
    return packed


def _unpacked(packed: UInt32s, widths: tuple[int, ...]) -> Float32s:
    units = np.empty((len(packed), len(widths)), np.float32)
    shift = sum(widths)
    for i, width in enumerate(widths):
        shift -= width
        units[:, i] = ((packed >> shift) & (2**width - 1)) / np.float32(2**width - 1)
    return units


def _within(units: Float32s, least: Float32s, greatest: Float32s) -> Float32s:
    values: Float32s = least * (1 - units) + greatest * units
    return values


def _packed_quats(quats: Float32s) -> UInt32s:
    """Two bits for the largest of w, x, y, z, made positive and left out; ten for each of the others."""
    largest = np.abs(quats).argmax(axis=1)
    signs = np.sign(quats[np.arange(len(quats)), largest])
    units = np.clip(quats * signs[:, None] / ROOT_2 + np.float32(0.5), 0, 1)
    packed: UInt32s = largest.astype(np.uint32)
    for i in range(4):
        packed = np.where(largest == i, packed, (packed << 10) | np.rint(units[:, i] * 1023).astype(np.uint32))
    return packed


def _unpacked_quats(packed: UInt32s) -> Float32s:
    largest = (packed >> 30).astype(np.intp)
    quats = np.empty((len(packed), 4), np.float32)
    rest = packed
    for i in (3, 2, 1, 0):
        quats[:, i] = np.where(largest == i, 0, ((rest & 1023) / np.float32(1023) - np.float32(0.5)) * ROOT_2)
        rest = np.where(largest == i, rest, rest >> 10)
    squares = np.einsum("nq,nq->n", quats, quats)
    quats[np.arange(len(quats)), largest] = np.sqrt(np.maximum(0, 1 - squares))
    return quats


def _packed_harmonics(shN: Float32s) -> NDArray[np.uint8]:
    """[n, k, 3] as bytes [n, 3, k], channel-major as in the file."""
    n, k, _ = shN.shape
    packed = np.empty((n, 3, k), np.uint8)
    for start in range(0, n, 4096):  # a block stays in the cache from step to step
        block = np.clip(shN[start : start + 4096], -4, 4) * 32 + 128
        packed[start : start + 4096] = np.clip(block, 0, 255, out=block).transpose(0, 2, 1)
    return packed


def _unpacked_harmonics(path: Path, rows: NDArray[np.void] | None, n: int) -> Float32s:
    if rows is None:
        return np.zeros((n, 0, 3), np.float32)
    names = list(rows.dtype.names or ())
    if len(names) not in REST_COUNTS or set(names) != set(rest_names(len(names))):
        raise UsageProblem(
            f"{path} has {len(names)} properties of spherical harmonics, not 0, 9, 24 or 45", hint=ANOTHER_FILE
        )
    k = len(names) // 3
    order = [names.index(name) for name in rest_names(len(names))]
    table = rows.view(np.uint8).reshape(n, -1)
    if order != sorted(order):
        table = table[:, order]
    values = np.empty((n, k, 3), np.float32)
    for start in range(0, n, 4096):
        stored = table[start : start + 4096].reshape(-1, 3, k).transpose(0, 2, 1)
        block = values[start : start + 4096]
        np.multiply(stored, np.float32(1 / 32), out=block)
        block -= np.float32(4 - 1 / 64)
        block[stored == 0] = -4
        block[stored == 255] = 4
    return values


def _elements(path: Path, content: bytes) -> tuple[Mapping[str, NDArray[np.void]], list[str]]:
    """The elements of the file by name, after the check that there is what the header claims; and its comments."""
    header = re.match(
        rb"ply\r?\nformat binary_little_endian 1\.0\r?\n(.*?\n)end_header\r?\n", content[:HEADER_LIMIT], re.S
    )
    if not header:
        raise UsageProblem(f"{path} is not a compressed PLY file", hint=ANOTHER_FILE)
    claims, comments = _claims(path, header[1].decode("ascii", "replace").splitlines())
    elements = {}
    start = header.end()
    for name, (count, row) in claims.items():
        if count * row.itemsize > len(content) - start:
            raise UsageProblem(
                f"{path} is truncated: its header claims {count} rows of {name[:80]!a}, of "
                f"{count * row.itemsize} bytes, and {len(content) - start} bytes follow",
                hint=f"copy or download {path} again",
            )
        elements[name] = np.frombuffer(content, row, count, start) if row.itemsize else np.zeros(0, row)
        start += count * row.itemsize
    _check(path, elements)
    return elements, comments


def _claims(path: Path, lines: list[str]) -> tuple[Mapping[str, tuple[int, np.dtype[np.void]]], list[str]]:
    """Name -> number of rows and their type, from the lines of a header; and the comments."""
    counts: dict[str, int] = {}
    properties: dict[str, list[tuple[str, str]]] = {}
    comments: list[str] = []
    current: list[tuple[str, str]] = []
    for line in lines:
        match line.split():
            case ["comment", *_]:
                comments.append(line.removeprefix("comment "))
            case ["element", name, count] if re.fullmatch(r"[0-9]{1,18}", count) and name not in counts:
                counts[name], properties[name] = int(count), (current := [])
            case ["property", kind, name] if kind in TYPES and counts:
                current.append((name, TYPES[kind]))
            case _:
                raise UsageProblem(f"{path} is damaged: {line[:80]!a} in its header", hint=ANOTHER_FILE)
    try:
        return {name: (counts[name], np.dtype(each)) for name, each in properties.items()}, comments
    except ValueError as problem:  # a property twice
        raise UsageProblem(f"{path} is damaged: {ascii(str(problem))[:120]}", hint=ANOTHER_FILE) from problem


def _check(path: Path, elements: Mapping[str, NDArray[np.void]]) -> None:
    """Refuses elements that do not make compressed Gaussians."""
    required = {"chunk": [name for names in BOUNDS[:4] for name in names], "vertex": list(PACKED)}
    missing = [
        name
        for element, names in required.items()
        for name in names
        if element not in elements or name not in (elements[element].dtype.names or ())
    ]
    if missing:
        raise UsageProblem(f"{path} holds no compressed Gaussians: it lacks {', '.join(missing)}", hint=ANOTHER_FILE)
    for element, kind in (("chunk", "<f4"), ("vertex", "<u4"), ("sh", "u1")):
        for name, (found, *_) in (elements[element].dtype.fields or {}).items() if element in elements else ():
            if found != np.dtype(kind):
                raise UsageProblem(f"{path}: the property {name[:80]!a} is of type {found.name}", hint=ANOTHER_FILE)
    n = len(elements["vertex"])
    if not n:
        raise UsageProblem(f"{path} has zero Gaussians", hint=ANOTHER_FILE)
    for element, count in (("chunk", -(-n // CHUNK)), ("sh", n)):
        if element in elements and len(elements[element]) != count:
            raise UsageProblem(
                f"{path} is damaged: {len(elements[element])} rows of {element} where {n} Gaussians need {count}",
                hint=ANOTHER_FILE,
            )
