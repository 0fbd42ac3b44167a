"""The `.ksplat` format of mkkellogg/GaussianSplats3D, which segdream only reads.

A header of 4096 bytes, one of 1024 per section, then the sections. A section holds the centres of buckets and its
Gaussians, with positions relative to those. The layout is that of the project's `SplatBuffer.js`.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdream_cli.errors import UsageProblem
from segdream_cli.formats.common import (
    BYTE_LOGITS,
    DEFAULT,
    Reading,
    finish,
    open_asset,
    to_log_scales,
)
from segdream_cli.splats import BANDS, SH_C0, Float32s, Splats, concat
from segdream_cli.splats.frames import PLY

HEADER_SIZE, SECTION_SIZE = 4096, 1024
HEADER = struct.Struct("<BB2xIIIIH14xff")
"""Version, sections, used sections, Gaussians, used Gaussians, compression level, least and greatest harmonic."""
SECTION = struct.Struct("<IIIIfH2xI4xIIH")
"""Gaussians, room for them, bucket capacity, buckets, side of a bucket, its bytes, steps from its centre to its side,
full and partly filled buckets, SH degree."""
LEVELS = (("<f4", "<f4", "<f4"), ("<u2", "<f2", "<f2"), ("<u2", "<f2", "u1"))
"""Types of centres, of scales and rotations, and of harmonics, by compression level."""
STEPS = 32767
"""Default of the steps from a bucket's centre to its side."""
HARMONICS_RANGE = 1.5
"""Default of the greatest harmonic in bytes."""


def is_plausible(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `head` can be a .ksplat, which has no magic number."""
    if len(head) < HEADER.size or size < HEADER_SIZE + SECTION_SIZE:
        return False
    major, minor, sections, used, room, count, level, *_ = HEADER.unpack_from(head)
    return (
        (major, minor) == (0, 1)
        and level < len(LEVELS)
        and 0 < used <= sections <= (size - HEADER_SIZE) // SECTION_SIZE
        and 0 < count <= room <= size // 24
    )


def read(path: Path, reading: Reading = DEFAULT) -> Splats:
    """The Gaussians of a .ksplat file, in the inner frame, to the precision of its numbers.

    Raises:
        UsageProblem: the file can't be opened, is not a .ksplat, is damaged, or holds no finite row.
    """
    with open_asset(path) as stream:
        content = stream.read()
    if not is_plausible(content, len(content)):
        raise UsageProblem(f"{path} is not a .ksplat file of version 0.1")
    _, _, sections, _, _, _, level, *ends = HEADER.unpack_from(content)
    low, high = ends[0] or -HARMONICS_RANGE, ends[1] or HARMONICS_RANGE
    parts = [_splats(section, low, high) for section in _sections(path, content, sections, level)]
    if not parts:
        raise UsageProblem(f"{path} has zero Gaussians")
    return finish(path, concat(parts, {}), reading, PLY)


@dataclass(frozen=True, slots=True)
class _Section:
    """The Gaussians of a section as they are stored."""

    rows: NDArray[np.void]
    means: Float32s
    degree: int


def _sections(path: Path, content: bytes, count: int, level: int) -> Iterator[_Section]:
    """The sections that hold Gaussians."""
    start = HEADER_SIZE + count * SECTION_SIZE
    for index in range(count):
        n, room, capacity, buckets, side, stride, steps, full, partial, degree = SECTION.unpack_from(
            content, HEADER_SIZE + index * SECTION_SIZE
        )
        if degree >= len(BANDS):
            raise _damage(path, f"section {index} claims SH degree {degree}")
        row = _row(level, 3 * BANDS[degree])
        data = start + 4 * partial + stride * buckets
        end = data + room * row.itemsize
        if n > room or end > len(content) or (buckets and stride < 12):
            raise _damage(path, f"section {index} claims {n} Gaussians in {buckets} buckets, more than its bytes hold")
        if n:
            rows = np.frombuffer(content, row, n, data)
            means = rows["means"].astype(np.float32)
            if level:
                lengths = np.frombuffer(content, "<u4", partial, start).astype(np.int64)
                if capacity * full > n or (lengths > n).any() or not n <= capacity * full + int(lengths.sum()):
                    raise _damage(path, f"the buckets of section {index} do not hold its {n} Gaussians")
                bucket = np.repeat(np.arange(full + partial), np.concatenate([np.full(full, capacity), lengths]))[:n]
                if bucket.max() >= buckets:
                    raise _damage(path, f"section {index} has {buckets} buckets and refers to more")
                centers = np.ndarray((buckets, 3), "<f4", content, start + 4 * partial, (stride, 4))
                with np.errstate(over="ignore", invalid="ignore"):
                    means = (means - (steps or STEPS)) * np.float32(side / 2 / (steps or STEPS)) + centers[bucket]
            yield _Section(rows, means, degree)
        start = end


def _row(level: int, harmonics: int) -> "np.dtype[np.void]":
    """The type of a Gaussian."""
    centre, value, harmonic = LEVELS[level]
    fields = [("means", centre, 3), ("scales", value, 3), ("quats", value, 4), ("rgba", "u1", 4)]
    return np.dtype([*fields, ("harmonics", harmonic, harmonics)])


def _splats(section: _Section, low: float, high: float) -> Splats:
    """The Gaussians of a section in the PLY frame; `low` and `high` are the harmonics of the bytes 0 and 255."""
    rows = section.rows
    harmonics = rows["harmonics"].astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if rows["harmonics"].dtype == np.uint8:
            harmonics = np.float32(low) + harmonics * np.float32((high - low) / 255)
        quats = rows["quats"].astype(np.float32)
        log_scales = to_log_scales(rows["scales"].astype(np.float32))
    shN = np.empty((len(rows), BANDS[section.degree], 3), np.float32)
    for first, end in pairwise(BANDS[: section.degree + 1]):  # a degree per block
        block = harmonics[:, 3 * first : 3 * end].reshape(-1, 3, end - first)
        shN[:, first:end] = block.transpose(0, 2, 1)
    return Splats(
        means=np.ascontiguousarray(section.means, np.float32),
        quats=quats,
        log_scales=log_scales,
        opacity_logits=BYTE_LOGITS[rows["rgba"][:, 3]],
        sh0=((rows["rgba"][:, :3] / np.float32(255) - np.float32(0.5)) / np.float32(SH_C0)).astype(np.float32),
        shN=shN,
    )


def _damage(path: Path, reason: str) -> UsageProblem:
    return UsageProblem(f"{path} is damaged: {reason}")
