"""The INRIA layout of Gaussian-splat PLY, and the vertices of PLY files by any tool.

There is no text standard; the layout is that of graphdeco-inria/gaussian-splatting, `scene/gaussian_model.py`.
"""

import io
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
    ANOTHER_FILE,
    CACHED_ROWS,
    open_asset,
    parse_provenance,
    provenance_comments,
    refuse_nonfinite,
    require_finite,
)
from segdream_cli.formats.ply_header import BYTE_ORDERS, Element, PlyHeader, damage_error, header_text, read_header
from segdream_cli.splats import Float32s, Splats, find_nonfinite, from_ply_frame, sanitize, to_ply_frame
from segdream_cli.util.files import atomic_write

MEANS = ("x", "y", "z")
NORMALS = ("nx", "ny", "nz")
SH0 = ("f_dc_0", "f_dc_1", "f_dc_2")
OPACITY = ("opacity",)
LOG_SCALES = ("scale_0", "scale_1", "scale_2")
QUATS = ("rot_0", "rot_1", "rot_2", "rot_3")
REQUIRED = (*MEANS, *SH0, *OPACITY, *LOG_SCALES, *QUATS)
REST_COUNTS = (0, 9, 24, 45)
"""Numbers of `f_rest` properties, by SH degree."""
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
    header = header_text("binary_little_endian", [element], provenance_comments(splats))
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


def holds_gaussians(path: Path) -> bool:
    """Whether a PLY is an asset rather than a point cloud or a mesh; only its header is read.

    Raises:
        UsageProblem: the file can't be opened, is not a PLY, is damaged, or has no vertices.
    """
    with open_asset(path) as stream:
        vertices = _elements_to_vertices(path, read_header(path, stream), stream)[-1]
        return is_asset(name for name, _ in vertices.properties)


def is_asset(names: Iterable[str]) -> bool:
    """Whether vertices with these properties are Gaussians, in a layout that segdream reads or another."""
    return not {*SH0, *LOG_SCALES, PACKED}.isdisjoint(names)


def read(path: Path) -> Splats:
    """The Gaussians of a PLY from any tool, in the inner frame.

    Properties may stand in any order, as text or in either byte order, as float or double; other properties are
    ignored. Quaternions are normalised, and zero ones become the identity. Log-scales and opacity logits are clamped
    as in `write`. The highest bands of spherical harmonics are dropped if they are zero for all Gaussians.

    Raises:
        UsageProblem: the file can't be opened, is not a PLY, is damaged, or holds something other than Gaussians.
    """
    return to_splats(read_vertices(path))


def to_splats(vertices: "Vertices") -> Splats:
    """The Gaussians in vertices, in the inner frame; raises the errors of `read`."""
    path = vertices.path
    names = vertices.rows.dtype.names or ()
    _require(path, names)
    rest = [name for name in names if name.startswith("f_rest_")]
    if len(rest) not in REST_COUNTS or set(rest) != set(rest_names(len(rest))):
        raise UsageProblem(
            f"{path} has {len(rest)} f_rest properties where an asset has 0, 9, 24 or 45", hint=ANOTHER_FILE
        )

    splats = Splats(
        means=vertices.floats(MEANS),
        quats=vertices.floats(QUATS),
        log_scales=vertices.floats(LOG_SCALES),
        opacity_logits=vertices.floats(OPACITY)[:, 0],
        sh0=vertices.floats(SH0),
        shN=_trim_bands(vertices.floats(rest_names(len(rest)))),
        provenance=parse_provenance(vertices.comments),
    )
    refuse_nonfinite(path, find_nonfinite(splats), len(splats))
    return from_ply_frame(sanitize(splats))


def _require(path: Path, names: Sequence[str]) -> None:
    """Refuses vertices that lack a property of Gaussians, and names what they are instead."""
    missing = [name for name in REQUIRED if name not in names]
    if not missing:
        return
    if PACKED in names:
        raise UsageProblem(
            f"{path} is a compressed PLY, whose Gaussians are packed",
            hint=f"mv {quote(str(path))} {quote(str(path.with_suffix('.compressed.ply')))}",
        )
    if not is_asset(names) and set(MEANS) <= set(names):
        raise UsageProblem(
            f"{path} holds points, not Gaussians", hint=f"segdream generate PROMPT --init {quote(str(path))}"
        )
    raise UsageProblem(f"{path} holds no Gaussians: it lacks the properties {', '.join(missing)}", hint=ANOTHER_FILE)


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
        """The named properties as float32, [n, len(names)]; values out of its range become infinite.

        Raises:
            UsageProblem: one of them is an integer in the file.
        """
        columns = np.empty((len(self.rows), len(names)), np.float32)
        for name in names:
            kind = self.rows.dtype[name]
            if kind.kind != "f":
                raise UsageProblem(
                    f"{self.path}: the property {name} is of type {kind.name}, not float", hint=ANOTHER_FILE
                )
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(columns), CACHED_ROWS):  # convert all columns of a block while it is in the cache
                block = slice(start, start + CACHED_ROWS)
                for i, name in enumerate(names):
                    columns[block, i] = self.rows[name][block]
        return columns


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
        raise UsageProblem(f"{path} has {missing}", hint=ANOTHER_FILE)
    needed, text = 0, header.layout == "ascii"
    for element in elements:
        row = element.dtype(path, BYTE_ORDERS[header.layout]).itemsize
        needed += element.count * (2 * len(element.properties) if text else row)  # as text: a digit and a separator
    size = stream.seek(0, io.SEEK_END) - header.size
    stream.seek(header.size)
    if size < needed - text:  # the last value needs no separator
        raise UsageProblem(
            f"{path} is truncated: its header claims {elements[-1].count} rows, of at least {needed} bytes, "
            f"and {size} bytes follow",
            hint=f"copy or download {path} again",
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
