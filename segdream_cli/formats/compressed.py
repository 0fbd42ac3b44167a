"""SuperSplat's compressed PLY: 16 bytes per Gaussian, in chunks of 256 with bounds.

The layout is that of PlayCanvas's splat-transform, `writers/write-compressed-ply.ts`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdream_cli.errors import UsageProblem
from segdream_cli.formats.common import (
    BYTE_LOGITS,
    CACHED_ROWS,
    DEFAULT,
    Reading,
    finish,
    open_asset,
    parse_antialiased,
    parse_provenance,
    provenance_comments,
    render_mode_comments,
    require_finite,
)
from segdream_cli.formats.ordering import along_z_curve
from segdream_cli.formats.ply import REST_COUNTS, rest_names
from segdream_cli.formats.ply_header import Element, header_text, read_header
from segdream_cli.formats.spz_values import UInt32s
from segdream_cli.splats import SH_C0, Float32s, Splats, sanitize, to_ply_frame
from segdream_cli.splats.frames import PLY
from segdream_cli.util.files import atomic_write

CHUNK = 256
CACHED_CHUNKS = 64
BOUNDS = tuple(
    tuple(f"{end}_{what}" for what in names)
    for names in (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b"))
    for end in ("min", "max")
)
"""Columns of a chunk: least and greatest centre, log-scale and colour. Old files have no bounds for colours."""
PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
BITS_3 = (11, 10, 11)
"""Bits of x, y and z in a packed position or scale."""
BITS_4 = (8, 8, 8, 8)
ROOT_2 = np.float32(np.sqrt(2))


def write(path: Path, splats: Splats) -> None:
    """Writes the Gaussians along a Z-curve, so that those of a chunk are close together, in the PLY frame.

    Centres and log-scales are rounded to 1/2047 of a chunk's extent (y to 1/1023), colours and opacities to bytes, and
    quaternions to ten bits for all but the largest component. Higher spherical harmonics are clamped to ±4 and rounded
    to 1/32. Other values are clamped as in `ply.write`; the provenance goes into the header.

    Raises:
        SegdreamError: there are no Gaussians, some are not finite, or the disk is full.
        UsageProblem: the folder can't be written.
    """
    require_finite(splats)
    turned = to_ply_frame(sanitize(splats))
    n, k, _ = turned.shN.shape
    order = along_z_curve(turned.means)
    bounds, vertices = _pack(turned, order)
    elements = [
        Element("chunk", len(bounds), [(name, "float") for names in BOUNDS for name in names]),
        Element("vertex", n, [(name, "uint") for name in PACKED]),
        *([Element("sh", n, [(name, "uchar") for name in rest_names(3 * k)])] if k else []),
    ]
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        stream.write(
            header_text("binary_little_endian", elements, [*provenance_comments(splats), *render_mode_comments(splats)])
        )
        harmonics = _pack_harmonics(turned.shN).take(order, axis=0)
        stream.writelines([bounds.tobytes(), vertices.tobytes(), harmonics.tobytes()])


def read(path: Path, reading: Reading = DEFAULT) -> Splats:
    """The Gaussians of a compressed PLY, in the inner frame, to the precision of its bits.

    Raises:
        UsageProblem: the file can't be opened, is not a compressed PLY, is damaged, or holds no finite row.
    """
    elements, comments = _read_elements(path)
    chunks, vertices = elements["chunk"], elements["vertex"]
    n = len(vertices)
    splats = Splats(
        means=np.empty((n, 3), np.float32),
        quats=np.empty((n, 4), np.float32),
        log_scales=np.empty((n, 3), np.float32),
        opacity_logits=BYTE_LOGITS[vertices["packed_color"] & 255],
        sh0=np.empty((n, 3), np.float32),
        shN=_unpack_harmonics(path, elements.get("sh"), n),
        provenance=parse_provenance(comments),
        antialiased=parse_antialiased(comments),
    )
    for start in range(0, len(chunks), CACHED_CHUNKS):  # a block stays in the cache from step to step
        block = slice(start * CHUNK, min(n, (start + CACHED_CHUNKS) * CHUNK))
        _unpack_block(chunks[start : start + CACHED_CHUNKS], vertices[block], splats, block)
    return finish(path, splats, reading, PLY)


def _unpack_block(chunks: NDArray[np.void], vertices: NDArray[np.void], splats: Splats, rows: slice) -> None:
    """Fills `rows` of `splats` with the centres, rotations, scales and colours of whole chunks."""
    names = chunks.dtype.names or ()
    bounds = [
        np.repeat(np.stack([chunks[name] for name in each], axis=1), CHUNK, axis=0)[: len(vertices)]
        for each in BOUNDS
        if set(each) <= set(names)
    ]
    colours = _unpack_units(vertices["packed_color"] >> np.uint32(8), BITS_4[:3])
    with np.errstate(invalid="ignore", over="ignore"):  # the caller refuses values that are not finite
        if len(bounds) == len(BOUNDS):
            colours = _interpolate(colours, *bounds[4:6])
        splats.means[rows] = _interpolate(_unpack_units(vertices["packed_position"], BITS_3), *bounds[0:2])
        splats.log_scales[rows] = _interpolate(_unpack_units(vertices["packed_scale"], BITS_3), *bounds[2:4])
        splats.sh0[rows] = (colours - np.float32(0.5)) / np.float32(SH_C0)
    splats.quats[rows] = _unpack_quats(vertices["packed_rotation"])


def _pack(splats: Splats, order: NDArray[np.intp]) -> tuple[Float32s, UInt32s]:
    """The chunks' bounds, [chunks, 18], and the packed vertices, [n, 4], of Gaussians taken in this order."""
    n = len(order)
    filled = np.concatenate([order, np.repeat(order[-1:], -n % CHUNK)]).reshape(-1, CHUNK)
    colours = splats.sh0 * np.float32(SH_C0) + np.float32(0.5)
    bounds = []
    units = []
    for values in (splats.means, splats.log_scales, colours):
        # [chunks, 256, 3]; halves, since the difference of two values can be too large for a float
        halves = values.take(filled, axis=0) / 2
        least, greatest = halves.min(axis=1, keepdims=True), halves.max(axis=1, keepdims=True)
        extent = np.where(greatest > least, greatest - least, 1)
        units.append(((halves - least) / extent).reshape(-1, 3)[:n])
        bounds += [2 * least[:, 0], 2 * greatest[:, 0]]
    opacities = 1 / (1 + np.exp(-splats.opacity_logits[order]))
    vertices = np.empty((n, 4), "<u4")
    vertices[:, 0] = _pack_units(units[0], BITS_3)
    vertices[:, 1] = _pack_quats(splats.quats.take(order, axis=0))
    vertices[:, 2] = _pack_units(units[1], BITS_3)
    vertices[:, 3] = _pack_units(np.concatenate([units[2], opacities[:, None]], axis=1), BITS_4)
    return np.concatenate(bounds, axis=1).astype("<f4"), vertices


def _pack_units(units: Float32s, widths: tuple[int, ...]) -> UInt32s:
    """Columns of values in 0..1, rounded to as many bits each, the first column in the highest bits."""
    packed = np.zeros(len(units), np.uint32)
    for i, width in enumerate(widths):
        packed = (packed << width) | np.rint(units[:, i] * (2**width - 1)).astype(np.uint32)
    return packed


def _unpack_units(packed: UInt32s, widths: tuple[int, ...]) -> Float32s:
    """The inverse of `_pack_units`: [n, columns] in 0..1."""
    units = np.empty((len(packed), len(widths)), np.float32)
    shift = sum(widths)
    for i, width in enumerate(widths):
        shift -= width
        units[:, i] = ((packed >> shift) & (2**width - 1)) / np.float32(2**width - 1)
    return units


def _interpolate(units: Float32s, least: Float32s, greatest: Float32s) -> Float32s:
    """Values between `least` and `greatest`, for units in 0..1."""
    values: Float32s = least * (1 - units) + greatest * units
    return values


def _pack_quats(quats: Float32s) -> UInt32s:
    """Quaternions in 32 bits: two for the index of the largest component, made positive, and ten per other one."""
    largest = np.abs(quats).argmax(axis=1)
    signs = np.sign(quats[np.arange(len(quats)), largest])
    units = np.clip(quats * signs[:, None] / ROOT_2 + np.float32(0.5), 0, 1)
    packed: UInt32s = largest.astype(np.uint32)
    for i in range(4):
        packed = np.where(largest == i, packed, (packed << 10) | np.rint(units[:, i] * 1023).astype(np.uint32))
    return packed


def _unpack_quats(packed: UInt32s) -> Float32s:
    """The inverse of `_pack_quats`: [n, 4] wxyz."""
    largest = (packed >> 30).astype(np.intp)
    quats = np.empty((len(packed), 4), np.float32)
    rest = packed
    for i in (3, 2, 1, 0):
        quats[:, i] = np.where(largest == i, 0, ((rest & 1023) / np.float32(1023) - np.float32(0.5)) * ROOT_2)
        rest = np.where(largest == i, rest, rest >> 10)
    squares = np.einsum("nq,nq->n", quats, quats)
    quats[np.arange(len(quats)), largest] = np.sqrt(np.maximum(0, 1 - squares))
    return quats


def _pack_harmonics(shN: Float32s) -> NDArray[np.uint8]:
    """[n, k, 3] as bytes [n, 3, k], channel-major as in the file."""
    n, k, _ = shN.shape
    packed = np.empty((n, 3, k), np.uint8)
    for start in range(0, n, CACHED_ROWS):  # a block stays in the cache from step to step
        block = np.clip(shN[start : start + CACHED_ROWS], -4, 4) * 32 + 128
        packed[start : start + CACHED_ROWS] = np.clip(block, 0, 255, out=block).transpose(0, 2, 1)
    return packed


def _unpack_harmonics(path: Path, rows: NDArray[np.void] | None, n: int) -> Float32s:
    """The higher spherical harmonics [n, k, 3] of the element `sh`, if there is one."""
    if rows is None:
        return np.zeros((n, 0, 3), np.float32)
    names = list(rows.dtype.names or ())
    if len(names) not in REST_COUNTS or set(names) != set(rest_names(len(names))):
        raise UsageProblem(f"{path} has {len(names)} properties of spherical harmonics, not 0, 9, 24 or 45")
    k = len(names) // 3
    order = [names.index(name) for name in rest_names(len(names))]
    table = rows.view(np.uint8).reshape(n, -1)
    if order != sorted(order):
        table = table[:, order]
    values = np.empty((n, k, 3), np.float32)
    for start in range(0, n, CACHED_ROWS):
        stored = table[start : start + CACHED_ROWS].reshape(-1, 3, k).transpose(0, 2, 1)
        block = values[start : start + CACHED_ROWS]
        np.multiply(stored, np.float32(1 / 32), out=block)
        block -= np.float32(4 - 1 / 64)
        block[stored == 0] = -4
        block[stored == 255] = 4
    return values


def _read_elements(path: Path) -> tuple[Mapping[str, NDArray[np.void]], Sequence[str]]:
    """The elements of the file by name, if it has as many bytes as its header claims; and its comments."""
    with open_asset(path) as stream:
        header = read_header(path, stream)
        content = stream.read()
    if header.layout != "binary_little_endian":
        raise UsageProblem(f"{path} is not a compressed PLY file: its layout is {header.layout}")
    elements = {}
    start = 0
    for name, element in header.elements.items():
        if not element.properties:
            elements[name] = np.zeros(0, [])
            continue
        row = element.dtype(path, "<")
        size = element.count * row.itemsize
        if size > len(content) - start:
            raise UsageProblem(
                f"{path} is truncated: its header claims {element.count} rows of {name[:80]!r}, of {size} bytes, "
                f"and {len(content) - start} bytes follow"
            )
        elements[name] = np.frombuffer(content, row, element.count, start)
        start += size
    _check(path, elements)
    return elements, header.comments


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
        raise UsageProblem(f"{path} holds no compressed Gaussians: it lacks {', '.join(missing)}")
    for element, kind in (("chunk", "<f4"), ("vertex", "<u4"), ("sh", "u1")):
        for name, (found, *_) in (elements[element].dtype.fields or {}).items() if element in elements else ():
            if found != np.dtype(kind):
                raise UsageProblem(f"{path}: the property {name[:80]!r} is of type {found.name}")
    n = len(elements["vertex"])
    if not n:
        raise UsageProblem(f"{path} has zero Gaussians")
    for element, count in (("chunk", -(-n // CHUNK)), ("sh", n)):
        if element in elements and len(elements[element]) != count:
            raise UsageProblem(
                f"{path} is damaged: {len(elements[element])} rows of {element} where {n} Gaussians need {count}"
            )
