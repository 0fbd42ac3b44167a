"""Niantic's SPZ: about a tenth of a PLY. Versions 3 and 4 are written, 2 to 4 read.

The layout is that of nianticlabs/spz, `src/cc/load-spz.cc`. Its text says y up (RUB), while the tools that write and
show such files put the PLY frame into them; so do `write` and, unless a file says otherwise, `read`.
"""

import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdream_cli.errors import EnvironmentProblem, UsageProblem
from segdream_cli.files import replacing
from segdream_cli.formats import OPACITY_LOGIT_LIMIT, Float32s, Splats, from_ply_frame, tidied, to_ply_frame
from segdream_cli.formats.ply import ANOTHER_FILE, opened, require_finite

Bytes = NDArray[np.uint8]
UInt32s = NDArray[np.uint32]

MAGIC = b"NGSP"
HEADER = struct.Struct("<4sIIBBBB")
"""Magic, version, count, SH degree, fractional bits, flags, number of streams (0 before version 4)."""
HEADER_4 = struct.Struct("<4sIIBBBBI12x")
"""The same and the offset of the table of contents."""
STREAM = struct.Struct("<QQ")
"""A row of that table: bytes in the file, bytes unpacked."""
HAS_EXTENSIONS = 2
COORDINATE_SYSTEM = 0xADBE0003
"""An extension of Adobe's: the frame that the file stands in."""
RUB, RDF = 4, 6
"""y up, which is the inner frame; and the PLY frame."""

FRACTIONAL_BITS = (12, 16, 20)
"""Those to choose from: steps of 2.4e-4, 1.5e-5 and 9.5e-7 of a unit, out to 2048, 128 and 8 units."""
COLOUR_SCALE = 0.15
HALF_ROOT = np.float32(np.sqrt(0.5))
"""No component of a unit quaternion but the largest is larger."""
COEFFICIENTS = (0, 3, 8, 15, 24)
"""Higher spherical harmonics by degree; those of degree 4 are read over."""

UNPACKED_FREE = 1 << 26
"""Bytes that any file may unpack to; beyond, one that unpacks to UNPACKED_RATIO times its size is a bomb."""
UNPACKED_RATIO = 64
EXTENSIONS_LIMIT = 1 << 16
DEFLATED_AT_ONCE = 1 << 20
"""Bytes that a thread deflates at a time; the file does not depend on how many threads there are."""
GZIP_LEVEL = 6
STRATEGIES = (zlib.Z_RLE, zlib.Z_FILTERED, zlib.Z_DEFAULT_STRATEGY)
ZSTANDARD_LEVELS = (1, 12)
SAMPLE = 1 << 16
"""Bytes of an attribute that choose among them: noise comes out smaller, and much faster, if few repeats are sought."""

_EVERY_BYTE = np.arange(256, dtype=np.float64)
with np.errstate(divide="ignore"):
    BYTE_LOGITS: Float32s = np.clip(
        np.log(_EVERY_BYTE / 255) - np.log1p(-_EVERY_BYTE / 255), -OPACITY_LOGIT_LIMIT, OPACITY_LOGIT_LIMIT
    ).astype(np.float32)
"""Opacity logit of each byte of opacity."""
_BYTE_SCALES = (_EVERY_BYTE / 16 - 10).astype(np.float32)
_BYTE_COLOURS = ((_EVERY_BYTE / 255 - 0.5) / COLOUR_SCALE).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Header:
    version: int
    count: int
    degree: int
    fractional_bits: int
    flags: int = 0
    streams: int = 0

    def packed(self) -> bytes:
        """Its first 16 bytes."""
        values = (self.version, self.count, self.degree, self.fractional_bits, self.flags, self.streams)
        return HEADER.pack(MAGIC, *values)

    def sizes(self) -> Mapping[str, int]:
        """Attribute -> bytes, in the order of the file; an attribute without any is left out."""
        rotation = 4 if self.version > 2 else 3
        rows = {"means": 9, "alphas": 1, "colours": 3, "scales": 3, "rotations": rotation}
        rows["harmonics"] = 3 * COEFFICIENTS[self.degree]
        return {name: self.count * row for name, row in rows.items() if row}


def write(path: Path, splats: Splats, *, version: int = 3, fractional_bits: int | None = None) -> None:
    """Writes SPZ in the PLY frame; what the format has no room for is rounded or clamped.

    Centres are rounded to 2^-fractional_bits. Log-scales become bytes in steps of 1/16 from -10 to 5.94, opacities in
    steps of 1/255, sh0 in steps of 0.026 within ±3.33. Of the higher spherical harmonics within ±1, degree 1 keeps 5
    bits, the others 4, as in the official library. Provenance is dropped.

    Args:
        path: the file, replaced as a whole.
        splats: the asset; clamps as in `ply.write`.
        version: 3, one gzip member, which every reader takes; or 4, zstandard streams.
        fractional_bits: 12, 16 or 20; None is 16, or fewer where the centres reach beyond 128 units.

    Raises:
        UsageProblem: there is no such version, the centres reach too far, or the folder can't be written.
        SegdreamError: there are no Gaussians, some are not finite, or the disk is full.
        EnvironmentProblem: version 4 is wanted and zstandard is not installed.
    """
    require_finite(splats)
    if version not in (3, 4):
        raise UsageProblem(f"SPZ is written in version 3 or 4, not {version}", hint="--format spz")
    bits = _checked_bits(splats, fractional_bits)
    turned = to_ply_frame(tidied(splats))
    blocks = [block for block in _blocks(turned, bits) if block.size]
    streams = len(blocks) if version == 4 else 0
    header = _Header(version, len(splats), COEFFICIENTS.index(splats.shN.shape[1]), bits, streams=streams)
    parts = _zstandard_file(header, blocks) if version == 4 else _gzip_file(header, blocks)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.writelines(parts)


def read(path: Path) -> Splats:
    """The Gaussians of an SPZ file of version 2, 3 or 4, in the inner frame, within the rounding of its bytes.

    A file is taken as standing in the PLY frame unless an extension of it names another. Spherical harmonics of
    degree 4 are left out.

    Raises:
        UsageProblem: the file can't be opened, is no SPZ, is damaged, or unpacks to too much.
        EnvironmentProblem: it is of version 4 and zstandard is not installed.
    """
    with opened(path) as stream:
        content = stream.read()
    if content[:4] == MAGIC:
        header, blocks, extensions = _zstandard_blocks(path, content)
    elif content[:2] == b"\x1f\x8b":
        header, blocks, extensions = _gzip_blocks(path, content)
    else:
        raise UsageProblem(f"{path} is not an SPZ file", hint=ANOTHER_FILE)
    k = COEFFICIENTS[header.degree]
    harmonics = blocks.get("harmonics", np.zeros(0, np.uint8)).reshape(header.count, k, 3)[:, :15]
    splats = tidied(
        Splats(
            means=_unpacked_means(blocks["means"], header.fractional_bits),
            quats=_unpacked_quats(blocks["rotations"], header.version),
            log_scales=_BYTE_SCALES[blocks["scales"].reshape(-1, 3)],
            opacity_logits=BYTE_LOGITS[blocks["alphas"]],
            sh0=_BYTE_COLOURS[blocks["colours"].reshape(-1, 3)],
            shN=_unpacked_harmonics(harmonics),
        )
    )
    return splats if _frame(path, header, extensions) == RUB else from_ply_frame(splats)


def _checked_bits(splats: Splats, wanted: int | None) -> int:
    """The number of fractional bits to write with, after the check that the centres fit."""
    reach = float(np.abs(splats.means).max())
    if wanted is not None and wanted not in FRACTIONAL_BITS:
        raise UsageProblem(f"SPZ is written with 12, 16 or 20 fractional bits, not {wanted}", hint="--spz-bits 16")
    for bits in (16, 12, 8, 4, 0) if wanted is None else (wanted,):
        if reach * 2**bits <= 2**23 - 1:
            return bits
    bits = 0 if wanted is None else wanted
    raise UsageProblem(
        f"the centres reach {reach:.4g} units from the origin, and SPZ with {bits} fractional bits ends at "
        f"{2 ** (23 - bits)}",
        hint="--spz-bits 12" if reach < 2**11 else "--format ply",
    )


def _blocks(splats: Splats, bits: int) -> Iterator[Bytes]:
    """The attributes as they follow each other in the file."""
    fixed = np.rint(splats.means * np.float32(2**bits)).astype("<i4", order="C")
    yield fixed.view(np.uint8).reshape(-1, 4)[:, :3].reshape(-1)  # 24 bits, little-endian
    yield _byte(255 / (1 + np.exp(-splats.opacity_logits)))
    yield _byte(np.clip(splats.sh0, -4, 4) * np.float32(COLOUR_SCALE * 255) + np.float32(127.5))
    yield _byte((splats.log_scales + 10) * 16)
    yield _packed_quats(splats.quats).astype("<u4").view(np.uint8)
    yield _packed_harmonics(splats.shN)


def _byte(values: NDArray[np.floating[Any]]) -> Bytes:
    rounded: Bytes = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded.reshape(-1)


def _packed_quats(quats: Float32s) -> UInt32s:
    """Unit quaternions wxyz, [n, 4], as [n] numbers of 32 bits.

    Two bits say which of x, y, z, w is largest, and is left out; for each of the others follow its sign, relative to
    that of the largest, and nine bits of its size.
    """
    xyzw = quats[:, (1, 2, 3, 0)]
    sizes = np.abs(xyzw)
    largest = sizes.argmax(axis=1)
    negative = np.signbit(xyzw)
    flipped = negative[np.arange(len(quats)), largest]
    packed: UInt32s = largest.astype("<u4")
    for i in range(4):
        size = (sizes[:, i] * (511 / HALF_ROOT) + np.float32(0.5)).astype(np.uint32)
        code = (packed << 10) | ((negative[:, i] ^ flipped).astype(np.uint32) << 9) | size
        packed = np.where(largest == i, packed, code)
    return packed


def _packed_harmonics(shN: Float32s) -> Bytes:
    """128 + 128 times each value, rounded to multiples of 8 in degree 1 and of 16 above."""
    _, k, _ = shN.shape
    step = np.where(np.arange(k) < 3, 8, 16).astype(np.int16)[:, None]
    packed = np.empty(shN.shape, np.uint8)
    for start in range(0, len(shN), 4096):  # a block stays in the cache from step to step
        values = np.rint(np.clip(shN[start : start + 4096], -2, 2) * 128).astype(np.int16)
        values += 128 + step // 2
        values &= -step
        packed[start : start + 4096] = np.clip(values, 0, 255, out=values)
    return packed.reshape(-1)


def _unpacked_harmonics(packed: Bytes) -> Float32s:
    values = np.empty(packed.shape, np.float32)
    for start in range(0, len(packed), 4096):
        block = values[start : start + 4096]
        np.subtract(packed[start : start + 4096], np.float32(128), out=block)
        block /= 128
    return values


def _gzip_file(header: _Header, blocks: Sequence[Bytes]) -> Iterator[bytes]:
    """One gzip member, deflated in pieces by as many threads as there are processors."""
    contents = [header.packed(), *(block.tobytes() for block in blocks)]
    pieces = [
        (content[start : start + DEFLATED_AT_ONCE], strategy)
        for content in contents
        for strategy in [_strategy(content)]
        for start in range(0, len(content), DEFLATED_AT_ONCE)
    ]
    yield b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no name, no time, unknown system
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        yield from pool.map(lambda piece: _deflated(*piece), pieces)
    yield zlib.compressobj(wbits=-zlib.MAX_WBITS).flush()  # the last block, empty
    checksum = 0
    for content in contents:
        checksum = zlib.crc32(content, checksum)
    yield struct.pack("<II", checksum, sum(map(len, contents)) % 2**32)


def _deflated(content: bytes, strategy: int) -> bytes:
    """Whole bytes of deflate, not its end."""
    deflate = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return deflate.compress(content) + deflate.flush(zlib.Z_SYNC_FLUSH)


def _strategy(content: bytes) -> int:
    """The one of zlib's that suits the start of an attribute best."""
    return min(STRATEGIES, key=lambda strategy: len(_deflated(content[:SAMPLE], strategy)))


def _zstandard_file(header: _Header, blocks: Sequence[Bytes]) -> Iterator[bytes]:
    """Header, table of contents, and a frame for each attribute."""
    # any number of threads but zero gives the same bytes
    threads = min(os.cpu_count() or 1, 8)
    compressors = [_zstandard().ZstdCompressor(level=level, threads=threads) for level in ZSTANDARD_LEVELS]
    contents = [block.tobytes() for block in blocks]
    frames = []
    for content in contents:
        _, best = min((len(each.compress(content[:SAMPLE])), i) for i, each in enumerate(compressors))
        frames.append(compressors[best].compress(content))
    yield header.packed() + struct.pack("<I12x", HEADER_4.size)
    for content, frame in zip(contents, frames, strict=True):
        yield STREAM.pack(len(frame), len(content))
    yield from frames


def _zstandard() -> ModuleType:
    try:
        return import_module("zstandard")
    except ImportError as problem:
        raise EnvironmentProblem(
            "SPZ version 4 needs the package zstandard, which is not installed", hint="pip install zstandard"
        ) from problem


def _checked_header(path: Path, head: bytes, size: int) -> _Header:
    """The header in `head`, of a file of `size` bytes, if it claims what can be."""
    if len(head) < HEADER.size:
        raise UsageProblem(f"{path} is truncated in its header", hint=ANOTHER_FILE)
    magic, *values = HEADER.unpack_from(head)
    header = _Header(*values)
    if magic != MAGIC:
        raise UsageProblem(f"{path} is not an SPZ file", hint=ANOTHER_FILE)
    if not 2 <= header.version <= 4:
        raise UsageProblem(f"{path} is SPZ of version {header.version}; known are 2, 3 and 4", hint=ANOTHER_FILE)
    if not header.count:
        raise UsageProblem(f"{path} has zero Gaussians", hint=ANOTHER_FILE)
    if header.degree >= len(COEFFICIENTS) or header.fractional_bits > 24:
        what = f"SH degree {header.degree} and {header.fractional_bits} fractional bits"
        raise UsageProblem(f"{path} is damaged: its header claims {what}", hint=ANOTHER_FILE)
    unpacked = sum(header.sizes().values())
    if unpacked > max(UNPACKED_FREE, UNPACKED_RATIO * size):
        raise UsageProblem(
            f"{path} claims {header.count} Gaussians, of {unpacked} bytes, more than {size} bytes can honestly hold",
            hint=ANOTHER_FILE,
        )
    return header


def _gzip_blocks(path: Path, content: bytes) -> tuple[_Header, dict[str, Bytes], bytes]:
    """Header, attributes and extensions of version 2 or 3; no more is unpacked than the header claims."""
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        header = _checked_header(path, stream.decompress(content, HEADER.size), len(content))
        if header.version == 4:
            raise UsageProblem(f"{path} is damaged: version 4 inside gzip", hint=ANOTHER_FILE)
        needed = sum(header.sizes().values())
        payload = stream.decompress(stream.unconsumed_tail, needed)
        extensions = stream.decompress(stream.unconsumed_tail, EXTENSIONS_LIMIT)  # reaches the check sum as well
    except zlib.error as problem:
        raise UsageProblem(f"{path} is damaged: {problem}", hint=ANOTHER_FILE) from problem
    if len(payload) < needed or not (stream.eof or stream.unconsumed_tail):
        raise UsageProblem(f"{path} is truncated", hint=f"copy or download {path} again")
    if not stream.eof:
        raise UsageProblem(f"{path} is damaged: it holds more than its header claims", hint=ANOTHER_FILE)
    blocks, start = {}, 0
    for name, size in header.sizes().items():
        blocks[name] = np.frombuffer(payload, np.uint8, size, start)
        start += size
    return header, blocks, extensions


def _zstandard_blocks(path: Path, content: bytes) -> tuple[_Header, dict[str, Bytes], bytes]:
    """Header, attributes and extensions of version 4; no more is unpacked than the header claims."""
    header = _checked_header(path, content, len(content))
    if header.version != 4 or len(content) < HEADER_4.size:
        raise UsageProblem(f"{path} is damaged: version {header.version} outside gzip", hint=ANOTHER_FILE)
    table = HEADER_4.unpack_from(content)[-1]
    sizes = header.sizes()
    start = table + STREAM.size * header.streams
    if header.streams != len(sizes) or not HEADER_4.size <= table <= start <= len(content):
        raise UsageProblem(f"{path} is damaged in its table of contents", hint=ANOTHER_FILE)
    zstandard = _zstandard()
    blocks = {}
    for (packed, claimed), (name, size) in zip(STREAM.iter_unpack(content[table:start]), sizes.items(), strict=True):
        if packed > len(content) - start:
            raise UsageProblem(f"{path} is truncated in its {name}", hint=f"copy or download {path} again")
        try:
            frame = memoryview(content)[start : start + packed]
            if claimed != size or zstandard.frame_content_size(frame) not in (-1, size):
                raise UsageProblem(f"{path} is damaged: its {name} are not of {size} bytes", hint=ANOTHER_FILE)
            block = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)
        except zstandard.ZstdError as problem:
            raise UsageProblem(f"{path} is damaged in its {name}: {problem}", hint=ANOTHER_FILE) from problem
        if len(block) != size:
            raise UsageProblem(f"{path} is truncated in its {name}", hint=f"copy or download {path} again")
        blocks[name] = np.frombuffer(block, np.uint8)
        start += packed
    return header, blocks, content[HEADER_4.size : min(table, HEADER_4.size + EXTENSIONS_LIMIT)]


def _frame(path: Path, header: _Header, extensions: bytes) -> int:
    """Adobe's number of the frame that the file stands in: RDF, unless an extension says RUB."""
    at = 0 if header.flags & HAS_EXTENSIONS else len(extensions)
    while at + 8 <= len(extensions):
        kind, size = struct.unpack_from("<II", extensions, at)
        if kind == COORDINATE_SYSTEM and size >= 4 and at + 12 <= len(extensions):
            frame: int = struct.unpack_from("<I", extensions, at + 8)[0]
            if frame in (RUB, RDF):
                return frame
            if frame:  # zero says nothing
                raise UsageProblem(
                    f"{path} stands in the frame {frame} of SPZ_ADOBE_coordinate_system; known are 4 (RUB) and 6 (RDF)",
                    hint=ANOTHER_FILE,
                )
        at += 8 + size
    return RDF


def _unpacked_means(block: Bytes, bits: int) -> Float32s:
    shifted = np.zeros((len(block) // 3, 4), np.uint8)
    shifted[:, 1:] = block.reshape(-1, 3)
    fixed = shifted.view("<i4") >> 8  # the shift carries the sign down
    return (fixed.astype(np.float32) * np.float32(0.5**bits)).reshape(-1, 3)


def _unpacked_quats(block: Bytes, version: int) -> Float32s:
    """The wxyz of the bytes of `_packed_quats`; in version 2 from bytes of x, y and z, with w positive."""
    if version == 2:
        xyz = block.reshape(-1, 3).astype(np.float32) / np.float32(127.5) - 1
        w = np.sqrt(np.maximum(0, 1 - np.einsum("nc,nc->n", xyz, xyz)))
        return np.concatenate([w[:, None], xyz], axis=1)
    packed = np.frombuffer(block, "<u4").astype(np.uint32)
    largest = (packed >> 30).astype(np.intp)
    xyzw = np.empty((len(packed), 4), np.float32)
    for i in (3, 2, 1, 0):
        size = (packed & 511).astype(np.float32) * (HALF_ROOT / 511)
        signed = np.where(packed & 512, -size, size)
        xyzw[:, i] = np.where(largest == i, 0, signed)
        packed = np.where(largest == i, packed, packed >> 10)
    rest = np.einsum("nq,nq->n", xyzw, xyzw)
    xyzw[np.arange(len(xyzw)), largest] = np.sqrt(np.maximum(0, 1 - rest))
    return xyzw[:, (3, 0, 1, 2)]
