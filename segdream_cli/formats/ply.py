"""The INRIA layout of Gaussian-splat PLY, and the vertices of PLY files by any tool.

There is no text standard; the layout is that of graphdeco-inria/gaussian-splatting, `scene/gaussian_model.py`.
"""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData, PlyElement, PlyParseError

from segdream_cli.errors import UsageProblem
from segdream_cli.formats.common import (
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
from segdream_cli.formats.ply_header import BYTE_ORDERS, Element, PlyHeader, damage_error, header_text, read_header
from segdream_cli.splats import BANDS, SH_C0, Float32s, Splats, sanitize, to_ply_frame
from segdream_cli.splats.frames import PLY
from segdream_cli.util.files import atomic_write

MEANS = ("x", "y", "z")
NORMALS = ("nx", "ny", "nz")
SH0 = ("f_dc_0", "f_dc_1", "f_dc_2")
OPACITY = ("opacity",)
LOG_SCALES = ("scale_0", "scale_1", "scale_2")
QUATS = ("rot_0", "rot_1", "rot_2", "rot_3")
REQUIRED = (*MEANS, *SH0, *OPACITY, *LOG_SCALES, *QUATS)
COLOURS = ("red", "green", "blue")
REST_COUNTS = (0, 9, 24, 45)
"""Numbers of `f_rest` properties, by SH degree."""
FLAT = np.float32(np.log(1e-6))
"""Log-scale of the third axis of 2D Gaussians, which have only two."""
FAR, STEPS = 1e4, 1 << 16
"""Centres beyond FAR units are moved to the origin if float32 has fewer than STEPS values across the asset there."""
PACKED = "packed_position"
"""A property that marks PlayCanvas's compressed layout."""


def rest_names(count: int) -> tuple[str, ...]:
    """Names of `count` higher spherical-harmonics properties."""
    return tuple(f"f_rest_{i}" for i in range(count))


def write(path: Path, splats: Splats, *, pad_sh: bool = True) -> None:
    """Writes the INRIA layout, little-endian, in the PLY frame.

    Args:
        path: the file, replaced as a whole.
        splats: the asset; its log-scales are clamped to [-20, 20], its opacity logits to [-15, 15].
        pad_sh: pad the spherical harmonics with zeros to degree 3, which the reference loader and older importers
            require (248 bytes per Gaussian); otherwise write only those that the asset has (68 bytes at degree 0).

    Raises:
        SegdreamError: there are no Gaussians, some are not finite, or the disk is full.
        UsageProblem: the folder can't be written.
    """
    require_finite(splats)
    n, k, _ = splats.shN.shape
    channel = max(REST_COUNTS) // 3 if pad_sh else k
    names = (*MEANS, *NORMALS, *SH0, *rest_names(3 * channel), *OPACITY, *LOG_SCALES, *QUATS)
    element = Element("vertex", n, [(name, "float") for name in names])
    header = header_text(
        "binary_little_endian", [element], [*provenance_comments(splats), *render_mode_comments(splats)]
    )
    table = np.zeros((CACHED_ROWS, len(names)), "<f4")
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        stream.write(header)
        for start in range(0, n, CACHED_ROWS):  # a block stays in the cache from step to step
            part = splats.slice_rows(slice(start, start + CACHED_ROWS))
            stream.write(_fill(table[: len(part)], to_ply_frame(sanitize(part)), channel).data)


def _fill(table: Float32s, splats: Splats, channel: int) -> Float32s:
    """Fills `table` with as many Gaussians, in the file's columns; `channel` is the number of f_rest per colour."""
    k = splats.shN.shape[1]
    table[:, 0:3] = splats.means
    table[:, 6:9] = splats.sh0
    for rgb in range(3):
        table[:, 9 + rgb * channel :][:, :k] = splats.shN[:, :, rgb]
    table[:, -8] = splats.opacity_logits
    table[:, -7:-4] = splats.log_scales
    table[:, -4:] = splats.quats
    return table


def save(path: Path, rows: NDArray[np.void], comments: Sequence[str]) -> None:
    """Writes a structured array as the vertices of a little-endian PLY; raises the errors of `atomic_write`."""
    data = PlyData([PlyElement.describe(rows, "vertex")], byte_order="<", comments=comments)
    with atomic_write(path) as temporary:
        data.write(str(temporary))


def is_asset(names: Iterable[str]) -> bool:
    """Whether vertices with these properties are Gaussians, in a layout that segdream reads or another."""
    return not {*SH0, *LOG_SCALES, PACKED}.isdisjoint(names)


def read(path: Path, reading: Reading = DEFAULT) -> Splats:
    """The Gaussians of a PLY from any tool, in the inner frame.

    Properties may stand in any order, as text or in either byte order, as numbers of any type; other properties are
    ignored. Colours may be red, green and blue in place of f_dc. Without scale_2 the Gaussians are flat. Quaternions
    are normalised, and zero ones become the identity. Log-scales and opacity logits are clamped as in `write`. The
    highest bands of spherical harmonics are dropped if they are zero for all Gaussians, incomplete, or of degree 4.

    Raises:
        UsageProblem: the file can't be opened, is not a PLY, is damaged, or holds something other than Gaussians.
    """
    return to_splats(read_vertices(path), reading)


def to_splats(vertices: "Vertices", reading: Reading = DEFAULT) -> Splats:
    """The Gaussians in vertices, in the inner frame; raises the errors of `read`."""
    names = vertices.rows.dtype.names or ()
    _require(vertices.path, names)
    flat = LOG_SCALES[2] not in names
    log_scales = vertices.floats(LOG_SCALES[:2] if flat else LOG_SCALES)
    splats = Splats(
        means=vertices.means(reading),
        quats=vertices.floats(QUATS),
        log_scales=np.pad(log_scales, ((0, 0), (0, 1)), constant_values=FLAT) if flat else log_scales,
        opacity_logits=vertices.floats(OPACITY)[:, 0],
        sh0=vertices.floats(SH0) if SH0[0] in names else (vertices.colors() - np.float32(0.5)) / np.float32(SH_C0),
        shN=_harmonics(vertices, reading),
        provenance=parse_provenance(vertices.comments),
        antialiased=parse_antialiased(vertices.comments),
    )
    return finish(vertices.path, splats, reading, PLY)


def _require(path: Path, names: Sequence[str]) -> None:
    """Refuses vertices that lack a property of Gaussians, and names what they are instead."""
    optional = {LOG_SCALES[2]} | (set(SH0) if SH0[0] not in names and set(COLOURS) <= set(names) else set())
    missing = [name for name in REQUIRED if name not in names and name not in optional]
    if not missing:
        return
    if PACKED in names:
        raise UsageProblem(f"{path} is a compressed PLY, whose Gaussians are packed")
    if not is_asset(names) and set(MEANS) <= set(names):
        raise UsageProblem(f"{path} holds points, not Gaussians", hint=as_splats_hint(path))
    raise UsageProblem(f"{path} holds no Gaussians: it lacks the properties {', '.join(missing)}")


def as_splats_hint(path: Path) -> str:
    """The command that makes Gaussians of a point cloud."""
    return f"segdream export {quote(str(path))} --as-splats -o {quote(path.stem.partition('.')[0])}-splats.ply"


def _harmonics(vertices: "Vertices", reading: Reading) -> Float32s:
    """The whole degrees of the f_rest properties up to the third, [n, k, 3]; a note tells what is left out."""
    rest = {name for name in vertices.rows.dtype.names or () if name.startswith("f_rest_")}
    stored, odd = divmod(len(rest), 3)
    if odd or rest != set(rest_names(len(rest))):
        reading.note(
            f"{vertices.path}: its {len(rest)} f_rest properties are not those of three colours and are left out"
        )
        stored = 0
    k = max(each for each in BANDS if each <= stored)
    if k < stored:
        degree = math.isqrt(stored + 1) - 1
        whole = (degree + 1) ** 2 == stored + 1
        what = f"spherical harmonics of degree {degree}" if whole else f"{stored} spherical harmonics per colour"
        reading.note(f"{vertices.path}: {what} are cut to degree {BANDS.index(k)}")
    names = [f"f_rest_{color * stored + i}" for color in range(3) for i in range(k)]
    return _trim_bands(vertices.floats(names))


def _trim_bands(rest: Float32s) -> Float32s:
    """[n, 3k] channel-major, as in the file, to [n, k, 3] without the highest bands where all is zero."""
    by_channel = rest.reshape(len(rest), 3, -1)  # [n, 3, k]
    k = by_channel.shape[2]
    with np.errstate(invalid="ignore"):  # a signalling NaN is refused later
        for lower in (8, 3, 0):
            if k > lower and not by_channel[:, :, lower:k].any():
                k = lower
    return np.ascontiguousarray(by_channel[:, :, :k].transpose(0, 2, 1))


@dataclass(frozen=True, slots=True)
class Vertices:
    """The vertex element of a PLY file."""

    path: Path
    rows: NDArray[np.void]
    """A structured array [n]: one field per property."""
    comments: Sequence[str]
    """The comments of the file's header."""

    def floats(self, names: Sequence[str]) -> Float32s:
        """The named properties as float32, [n, len(names)]; values out of its range become infinite."""
        columns = np.empty((len(self.rows), len(names)), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(columns), CACHED_ROWS):  # convert all columns of a block while it is in the cache
                block = slice(start, start + CACHED_ROWS)
                for i, name in enumerate(names):
                    columns[block, i] = self.rows[name][block]
        return columns

    def means(self, reading: Reading) -> Float32s:
        """The centres [n, 3]; doubles that float32 would round visibly are moved to the origin, with a note."""
        columns = [self.rows[name] for name in MEANS]
        if any(column.dtype.itemsize < 8 for column in columns):
            return self.floats(MEANS)
        limit = float(np.finfo(np.float32).max)
        finite = [column[np.abs(column) <= limit] for column in columns]  # without NaN
        if not all(map(len, finite)):
            return self.floats(MEANS)
        low, high = (np.array([function(column) for column in finite], np.float64) for function in (np.min, np.max))
        reach = float(np.maximum(np.abs(low), np.abs(high)).max())
        if reach < FAR or np.spacing(np.float32(reach)) * STEPS <= (high - low).max():
            return self.floats(MEANS)
        offset = np.rint(low / 2 + high / 2)
        moved = ", ".join(f"{value:.0f}" for value in -offset)
        reading.note(f"{self.path}: its centres are moved by {moved}, because 32-bit numbers would round them too much")
        with np.errstate(over="ignore", invalid="ignore"):
            return np.stack([column - shift for column, shift in zip(columns, offset, strict=True)], 1).astype(
                np.float32
            )

    def colors(self) -> Float32s:
        """The properties red, green and blue in 0..1, [n, 3]: bytes, 16-bit integers, or floats.

        Raises:
            UsageProblem: they are of another type.
        """
        columns = np.stack([self.rows[name] for name in COLOURS], axis=1)
        if columns.dtype.kind == "f":
            return self.floats(COLOURS)
        if columns.dtype not in (np.uint8, np.uint16):
            raise UsageProblem(f"{self.path}: the colours are of type {columns.dtype.name}, not uchar, ushort or float")
        return (columns / np.iinfo(columns.dtype).max).astype(np.float32)


def read_vertices(path: Path) -> Vertices:
    """Reads the vertices of a PLY file with plyfile, after checks that plyfile does not make.

    plyfile is given a new header: the elements up to the vertices, without empty ones.

    Raises:
        UsageProblem: the file can't be opened, is not a PLY, is damaged, or has no vertices.
    """
    with open_asset(path) as stream:
        header = read_header(path, stream)
        elements = _elements_to_vertices(path, header, stream)
        text = header_text(header.layout, elements)
        source = io.BytesIO(text + stream.read()) if header.layout == "ascii" else _HeaderThenFile(text, stream)
        try:
            data = PlyData.read(source)
        except (PlyParseError, ValueError, OverflowError, TypeError) as problem:
            raise damage_error(path, problem) from problem
        return Vertices(path, np.asarray(data["vertex"].data), header.comments)


def _elements_to_vertices(path: Path, header: PlyHeader, stream: BinaryIO) -> list[Element]:
    """The elements up to the vertices, without empty ones, after the check that the file is long enough for them."""
    elements: list[Element] = []
    for element in header.elements.values():
        if element.count:
            elements.append(element)
        if element.name == "vertex":
            break
    if not elements or elements[-1].name != "vertex":
        missing = "zero Gaussians" if "vertex" in header.elements else "no vertex element"
        raise UsageProblem(f"{path} has {missing}")
    needed, text = 0, header.layout == "ascii"
    for element in elements:
        row = element.dtype(path, BYTE_ORDERS[header.layout]).itemsize
        needed += element.count * (2 * len(element.properties) if text else row)  # as text: a digit and a separator
    size = stream.seek(0, io.SEEK_END) - header.size
    stream.seek(header.size)
    if size < needed - text:  # the last value needs no separator
        raise UsageProblem(
            f"{path} is truncated: its header claims {elements[-1].count} rows, of at least {needed} bytes, "
            f"and {size} bytes follow"
        )
    return elements


class _HeaderThenFile:
    """A stream of a header and then the rest of an open file, which plyfile reads and maps."""

    def __init__(self, header: bytes, stream: BinaryIO) -> None:
        self._header = io.BytesIO(header)
        self._stream = stream
        self.seek, self.tell, self.fileno = stream.seek, stream.tell, stream.fileno

    def read(self, size: int = -1) -> bytes:
        return self._header.read(size) or self._stream.read(size)
