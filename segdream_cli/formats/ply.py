"""The INRIA layout of Gaussian-splat PLY, and the reading of PLY vertices from any tool.

There is no text standard; the layout is that of graphdeco-inria/gaussian-splatting, `scene/gaussian_model.py`.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData, PlyElement, PlyListProperty, PlyParseError, PlyProperty

from segdream_cli.errors import SegdreamError, UsageProblem
from segdream_cli.formats import not_a_file
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
CACHED_ROWS = 4096
PACKED = "packed_position"
"""A property of PlayCanvas's compressed form."""

HEADER_LIMIT = 1 << 20
"""Bytes in which a header must end."""
SIGNATURE = "segdream "
"""What our one header comment starts with; JSON follows."""
ANOTHER_FILE = 'give another file, or make one: segdream generate "a red mushroom" -o mushroom.ply'


_PRINTABLE = bytes(code if 32 <= code < 127 or code in b"\t\r\n" else ord("?") for code in range(256))


def rest_names(count: int) -> tuple[str, ...]:
    """The properties of `count` higher spherical-harmonics values."""
    return tuple(f"f_rest_{i}" for i in range(count))


def provenance_comments(splats: Splats) -> list[str]:
    """The header comments of `splats`: its provenance as one line of ASCII JSON, or nothing.

    plyfile takes no other characters, and a line break in a prompt would end the comment; JSON escapes both.
    """
    if not splats.provenance:
        return []
    return [SIGNATURE + json.dumps(dict(splats.provenance), ensure_ascii=True, sort_keys=True)]


def require_finite(splats: Splats) -> None:
    """Refuses to write what no viewer could show.

    Raises:
        SegdreamError: there are no Gaussians, or some have a value that is not a finite number.
    """
    if not len(splats):
        raise SegdreamError("there are no Gaussians to write", hint="go back to the last checkpoint with --resume")
    bad = find_nonfinite(splats)
    if len(bad):
        raise SegdreamError(
            f"{len(bad)} of {len(splats)} Gaussians have a value that is not a finite number, first number {bad[0]}",
            hint="go back to the last checkpoint with --resume",
        )


def write(path: Path, splats: Splats, *, pad_sh: bool = True) -> None:
    """Writes the INRIA layout, little-endian, in the PLY frame.

    Args:
        path: the file, replaced as a whole.
        splats: the asset; its log-scales are clamped to [-20, 20], its opacity logits to [-15, 15].
        pad_sh: fill the spherical harmonics with zeros up to degree 3, which the reference loader and older
            importers insist on (248 bytes a Gaussian); otherwise write only those that are there (68 at degree 0).

    Raises:
        SegdreamError: there are no Gaussians, some are not finite, or the disk is full.
        UsageProblem: the folder can't be written.
    """
    require_finite(splats)
    n, k, _ = splats.shN.shape
    channel = max(REST_COUNTS) // 3 if pad_sh else k
    names = (*MEANS, *NORMALS, *SH0, *rest_names(3 * channel), *OPACITY, *LOG_SCALES, *QUATS)
    element = PlyElement("vertex", [PlyProperty(name, "f4") for name in names], n)
    header = PlyData([element], byte_order="<", comments=provenance_comments(splats)).header
    table = np.zeros((CACHED_ROWS, len(names)), "<f4")
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        stream.write(f"{header}\n".encode("ascii"))
        for start in range(0, n, CACHED_ROWS):  # a block stays in the cache from step to step
            part = splats.slice_rows(slice(start, start + CACHED_ROWS))
            stream.write(_filled(table[: len(part)], to_ply_frame(sanitize(part)), channel).data)


def _filled(table: Float32s, splats: Splats, channel: int) -> Float32s:
    """The table with the values of as many Gaussians, in columns as in the file."""
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
    """Writes a structured array as the vertices of a little-endian PLY; errors as `files.atomic_write`."""
    data = PlyData([PlyElement.describe(rows, "vertex")], byte_order="<", comments=comments)
    with atomic_write(path) as temporary:
        data.write(str(temporary))


def holds_gaussians(path: Path) -> bool:
    """Whether a PLY is an asset rather than a point cloud or a mesh; only its header is read.

    Raises:
        UsageProblem: the file can't be opened, is no PLY, is damaged, or has no vertices.
    """
    with opened(path) as stream:
        return is_asset(item.name for item in _read_header(path, stream).layout["vertex"].properties)


def is_asset(names: Iterable[str]) -> bool:
    """Whether vertices with these properties are Gaussians, be it in a form that can't be read."""
    return not {*SH0, *LOG_SCALES, PACKED}.isdisjoint(names)


def read(path: Path) -> Splats:
    """The Gaussians of a PLY by this or another tool, in the inner frame.

    Any property order, ASCII or either byte order, float or double, with or without normals; properties that are not
    an asset's are passed over. Quaternions are normalised, zero ones become the identity; log-scales and opacity
    logits are clamped as in `write`; the highest bands of spherical harmonics are left out where all is zero.

    Raises:
        UsageProblem: the file can't be opened, is no PLY, is damaged, or holds something other than Gaussians.
    """
    vertices = read_vertices(path)
    return splats_of(path, vertices)


def splats_of(path: Path, vertices: "Vertices") -> Splats:
    """The Gaussians in the vertices of `path`; errors as `read`."""
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
        shN=_without_padding(vertices.floats(rest_names(len(rest)))),
        provenance=provenance_of(vertices.comments),
    )
    refuse_nonfinite(path, find_nonfinite(splats), len(splats))
    return from_ply_frame(sanitize(splats))


def refuse_nonfinite(path: Path, bad: NDArray[np.intp], count: int) -> None:
    """Raises a UsageProblem if `bad`, the indices of rows of `path` that are not finite, is not empty."""
    if len(bad):
        raise UsageProblem(
            f"{path}: {len(bad)} of {count} rows have a value that is not a finite number, first row {bad[0]}",
            hint=f"npx @playcanvas/splat-transform {path} --filter-nan clean.ply",
        )


def _require(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if not missing:
        return
    if PACKED in names:
        raise UsageProblem(
            f"{path} is a compressed PLY, whose Gaussians are packed",
            hint=f"mv {path} {path.with_suffix('.compressed.ply')}",
        )
    if not is_asset(names) and set(MEANS) <= set(names):
        raise UsageProblem(f"{path} holds points, not Gaussians", hint=f"segdream generate PROMPT --init {path}")
    raise UsageProblem(f"{path} holds no Gaussians: it lacks the properties {', '.join(missing)}", hint=ANOTHER_FILE)


def _without_padding(rest: Float32s) -> Float32s:
    """[n, 3k] channel-major, as in the file, to [n, k, 3] without the highest bands where all is zero."""
    by_channel = rest.reshape(len(rest), 3, -1)  # [n, 3, k]
    k = by_channel.shape[2]
    with np.errstate(invalid="ignore"):  # a signalling NaN is found later on
        for lower in (8, 3, 0):
            if k > lower and not by_channel[:, :, lower:k].any():
                k = lower
    return np.ascontiguousarray(by_channel[:, :, :k].transpose(0, 2, 1))


def provenance_of(comments: Sequence[str]) -> dict[str, Any]:
    """What a comment of ours says; other tools' comments, and damaged ones, say nothing."""
    for comment in comments:
        if comment.startswith(SIGNATURE):
            try:
                found = json.loads(comment.removeprefix(SIGNATURE))
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                return found
    return {}


@dataclass(frozen=True, slots=True)
class Vertices:
    """The vertex element of a PLY file."""

    path: Path
    rows: NDArray[np.void]
    comments: Sequence[str]

    def floats(self, names: Sequence[str]) -> Float32s:
        """The named properties as float32, [n, len(names)]; out of its range becomes infinite.

        Raises:
            UsageProblem: one of them is a whole number in the file, which an asset's or a point's is not.
        """
        columns = np.empty((len(self.rows), len(names)), np.float32)
        for name in names:
            kind = self.rows.dtype[name]
            if kind.kind != "f":
                raise UsageProblem(
                    f"{self.path}: the property {name} is of type {kind.name}, not float", hint=ANOTHER_FILE
                )
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(columns), CACHED_ROWS):  # all columns of a block while it is in the cache
                block = slice(start, start + CACHED_ROWS)
                for i, name in enumerate(names):
                    columns[block, i] = self.rows[name][block]
        return columns


def read_vertices(path: Path) -> Vertices:
    """The vertices of a PLY file through plyfile, after the checks that plyfile does not make.

    plyfile refuses headers that are not ASCII, and believes their row counts before it looks at the size of the
    file. So it is given a header of ours: the same elements up to the vertices, in ASCII, with counts that fit.

    Raises:
        UsageProblem: the file can't be opened, is no PLY, is damaged, or has no vertices.
    """
    with opened(path) as stream:
        header = _read_header(path, stream)
        text = _with_counts(header.lines, header.counts)
        source = io.BytesIO(text + stream.read()) if header.layout.text else _HeaderThenFile(text, stream)
        data = _parsed(path, lambda: PlyData.read(source))
        vertex = data["vertex"]
        return Vertices(path, np.asarray(vertex.data), [*data.comments, *vertex.comments])


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The regular file `path`, open for reading.

    Raises:
        UsageProblem: it is missing, empty, a folder or a pipe, or may not be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise not_a_file(path)
        with path.open("rb") as stream:
            if not stream.read(1):
                raise UsageProblem(f"{path} is empty", hint=ANOTHER_FILE)
            stream.seek(0)
            yield stream
    except OSError as problem:
        raise UsageProblem(
            f"{path} can't be read: {problem.strerror or problem}", hint=f"ls -l {quote(str(path))}"
        ) from problem


@dataclass(frozen=True, slots=True)
class _Header:
    """A header up to its vertices."""

    lines: Sequence[bytes]
    """Its lines, without empty elements."""
    counts: Mapping[bytes, int]
    """Element -> number of rows."""
    layout: Any
    """What plyfile makes of the lines: elements and properties, no rows."""


def _read_header(path: Path, stream: BinaryIO) -> _Header:
    """The header at the start of `stream`, which stands behind it afterwards; errors as `read_vertices`."""
    lines, start = _header_lines(path, stream)
    kept, counts = _elements_to_vertex(path, lines)
    layout = _parsed(path, lambda: PlyData.read(io.BytesIO(_with_counts(kept, {}))))
    _check_size(path, layout, counts, stream.seek(0, io.SEEK_END) - start)
    stream.seek(start)
    return _Header(kept, counts, layout)


def _header_lines(path: Path, stream: BinaryIO) -> tuple[list[bytes], int]:
    """The lines of the header with '?' for what is not printable ASCII, and the offset of what follows."""
    head = stream.read(HEADER_LIMIT)
    start = re.match(rb"ply(\r\n|\n|\r)", head)
    if not start:
        raise UsageProblem(f"{path} is not a PLY file", hint=ANOTHER_FILE)
    end = re.compile(rb"[\r\n]end_header[ \t]*" + start[1]).search(head)
    if not end:
        raise UsageProblem(f"{path} is damaged: its header has no end", hint=ANOTHER_FILE)
    return head[: end.start()].translate(_PRINTABLE).splitlines(), end.end()


def _elements_to_vertex(path: Path, lines: Sequence[bytes]) -> tuple[list[bytes], dict[bytes, int]]:
    """The header's lines up to the last property of the vertices, without empty elements; and the row counts."""
    kept: list[bytes] = []
    counts: dict[bytes, int] = {}
    skipping = False
    for line in lines:
        words = line.split()
        if words[:1] == [b"element"]:
            if b"vertex" in counts:
                break
            count = _row_count(path, words)
            skipping = count == 0 and words[1] != b"vertex"
            if not skipping:
                counts[words[1]] = count
        if words and not skipping:
            kept.append(line)
    if not counts.get(b"vertex"):
        what = "no vertex element" if b"vertex" not in counts else "zero Gaussians"
        raise UsageProblem(f"{path} has {what}", hint=ANOTHER_FILE)
    return kept, counts


def _row_count(path: Path, words: Sequence[bytes]) -> int:
    if len(words) != 3 or not re.fullmatch(rb"\d{1,18}", words[2]):
        line = b" ".join(words).decode("ascii")
        raise UsageProblem(f"{path} is damaged: {line[:80]!r} does not give a number of rows", hint=ANOTHER_FILE)
    return int(words[2])


def _with_counts(lines: Sequence[bytes], counts: Mapping[bytes, int]) -> bytes:
    """A header of these lines, in which an element that `counts` does not name has no rows."""
    rebuilt = [
        b"element %s %d" % (words[1], counts.get(words[1], 0)) if (words := line.split())[:1] == [b"element"] else line
        for line in lines
    ]
    return b"\n".join([*rebuilt, b"end_header", b""])


def _check_size(path: Path, layout: Any, counts: Mapping[bytes, int], size: int) -> None:
    """Refuses a file with fewer bytes after the header than the rows that the header claims must take."""
    needed = 0
    for element in layout:
        lists = [item.name for item in element.properties if isinstance(item, PlyListProperty)]
        if lists or not element.properties:
            what = f"the list property {lists[0]}" if lists else "no properties"
            raise UsageProblem(f"{path}: the element {element.name} has {what}", hint=ANOTHER_FILE)
        row = 2 * len(element.properties) if layout.text else element.dtype().itemsize  # text: digit and separator
        needed += counts[element.name.encode("ascii")] * row
    if size < needed - (1 if layout.text else 0):  # the last value needs no separator
        raise UsageProblem(
            f"{path} is truncated: its header claims {counts[b'vertex']} rows, of at least {needed} bytes, "
            f"and {size} bytes follow",
            hint=f"copy or download {path} again",
        )


def _parsed(path: Path, parse: Callable[[], Any]) -> Any:
    """What `parse` returns, with plyfile's ways to fail put into one."""
    try:
        return parse()
    except (PlyParseError, ValueError, OverflowError, TypeError) as problem:
        raise UsageProblem(f"{path} is damaged: {problem}", hint=ANOTHER_FILE) from problem


class _HeaderThenFile:
    """A header, then an open file from where it stands, as plyfile reads and maps it."""

    def __init__(self, header: bytes, stream: BinaryIO) -> None:
        self._header = io.BytesIO(header)
        self._stream = stream
        self.seek, self.tell, self.fileno = stream.seek, stream.tell, stream.fileno

    def read(self, size: int = -1) -> bytes:
        return self._header.read(size) or self._stream.read(size)
