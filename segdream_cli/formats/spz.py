"""Niantic's SPZ: about a tenth of a PLY. Versions 3 and 4 are written, 1 to 4 read.

The layout is that of nianticlabs/spz, `src/cc/load-spz.cc`. The frame of a file is RUB unless its record
SPZ_ADOBE_coordinate_system names another. Readers of version 3 know no such record, so it is written in RUB; version 4
is written in the PLY frame with the record, so readers that know it and those that show a file as it is agree.
"""

import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from shlex import quote
from types import ModuleType
from typing import Any

import numpy as np

from segdream_cli.errors import EnvironmentProblem, UsageProblem
from segdream_cli.formats.common import (
    BYTE_LOGITS,
    DEFAULT,
    GZIP,
    SIGNATURE,
    SPZ_4,
    SPZ_MAGIC,
    UNPACKED_FREE,
    UNPACKED_RATIO,
    Reading,
    finish,
    open_asset,
    parse_provenance,
    provenance_comments,
    require_finite,
)
from segdream_cli.formats.spz_values import (
    BYTE_COLOURS,
    BYTE_SCALES,
    Bytes,
    pack_blocks,
    unpack_harmonics,
    unpack_means,
    unpack_quats,
)
from segdream_cli.splats import Splats, sanitize
from segdream_cli.splats.frames import INNER, PLY, to_frame
from segdream_cli.util.files import atomic_write

HEADER = struct.Struct("<4sIIBBBB")
"""Magic, version, count, SH degree, fractional bits, flags, number of streams (0 before version 4)."""
HEADER_4 = struct.Struct("<4sIIBBBBI12x")
"""The same and the offset of the table of contents."""
STREAM = struct.Struct("<QQ")
"""A row of that table: bytes in the file, bytes unpacked."""
ANTIALIASED, HAS_EXTENSIONS = 1, 2
"""Flags of the header."""
COORDINATE_SYSTEM = 0xADBE0003
"""Adobe's extension: the frame of the file."""
NUMBERED_FRAMES = (
    *("", "ldb", "rdb", "lub", "rub", "ldf", "rdf", "luf", "ruf"),
    *("lfd", "rfd", "lfu", "rfu", "lbd", "rbd", "lbu", "rbu"),
)
"""Name of each number in that record; zero means unspecified."""
DEFAULT_FRAME = INNER
"""The frame of a file that names none."""
FRAME_3, FRAME_4 = DEFAULT_FRAME, PLY
"""The frames in which `write` stores the two versions."""
FRAME_COMMENT = "frame "
"""Start of the line of gzip's comment that names the frame."""
PROVENANCE_0_1 = 0x5E6D0001
"""The record for provenance of segdream 0.1, whose files are in the PLY frame; the official library warns of it."""
SKIPPABLE = 0x184D2A50
"""Magic of a zstandard frame that decoders skip (RFC 8878, 3.1.2); ours follows the last stream, with provenance."""
NOTE_LIMIT = 1 << 15
"""Maximum length of that comment in bytes; a longer one is left out."""
GZIP_COMMENT = 16
"""Flag of gzip's header: a zero-terminated text follows the ten bytes of the header."""
FRACTIONAL_BITS = (12, 16, 20)
"""Choices of fractional bits: steps of 2.4e-4, 1.5e-5 and 9.5e-7 of a unit, out to 2048, 128 and 8 units."""
COEFFICIENTS = (0, 3, 8, 15, 24)
"""Number of higher spherical harmonics by degree."""
KEPT = 15
"""Number of those that are kept: none of degree 4."""

EXTENSIONS_LIMIT = 1 << 16
DEFLATED_AT_ONCE = 1 << 20
"""Bytes that a thread deflates at a time; the file does not depend on how many threads there are."""
GZIP_LEVEL = 6
STRATEGIES = (zlib.Z_RLE, zlib.Z_FILTERED, zlib.Z_DEFAULT_STRATEGY)
ZSTANDARD_LITERALS = {"strategy": 1, "min_match": 7, "window_log": 17, "hash_log": 6}
"""Parameters with which zstandard hardly searches: of noise, short repetitions cost more than they save."""
ZSTANDARD_REPETITIONS = {
    **{"strategy": 7, "min_match": 3, "window_log": 17, "hash_log": 15, "chain_log": 12, "search_log": 4},
    "target_length": 32,
}
"""Parameters with which it weighs repetitions of three bytes and more, as deflate does, by their cost: assets from
formats with coarse steps repeat colours and parts of centres."""
SAMPLE = 1 << 16
"""Number of bytes of an attribute that choose a strategy: noise gets smaller, and much faster, with fewer searches."""


@dataclass(frozen=True, slots=True)
class _Header:
    version: int
    count: int
    degree: int
    fractional_bits: int
    flags: int = 0
    streams: int = 0

    def to_bytes(self) -> bytes:
        """The first 16 bytes of a file, decoded."""
        values = (self.version, self.count, self.degree, self.fractional_bits, self.flags, self.streams)
        return HEADER.pack(SPZ_MAGIC, *values)

    def sizes(self) -> Mapping[str, int]:
        """Attribute -> number of bytes, in the order of the file; attributes without bytes are left out."""
        rotation = 4 if self.version > 2 else 3
        rows = {"means": 6 if self.version == 1 else 9, "alphas": 1, "colours": 3, "scales": 3, "rotations": rotation}
        rows["harmonics"] = 3 * COEFFICIENTS[self.degree]
        return {name: self.count * row for name, row in rows.items() if row}


def write(
    path: Path, splats: Splats, *, version: int = 3, fractional_bits: int | None = None, frame: str | None = None
) -> None:
    """Writes SPZ; rounds or clamps values that the format can't hold.

    Centres are rounded to 2^-fractional_bits. Log-scales become bytes in steps of 1/16 from -10 to 5.94, opacities in
    steps of 1/255, sh0 in steps of 0.026 within ±3.33. Of the higher spherical harmonics within ±1, degree 1 keeps 5
    bits, the others 4, as in the official library. Provenance goes where readers ignore it: into the comment of
    the gzip member, or into a skippable zstandard frame of version 4.

    Args:
        path: the file, replaced as a whole.
        splats: the asset; clamps as in `ply.write`.
        version: 3, one gzip member, which every reader takes; or 4, zstandard streams.
        fractional_bits: 12, 16 or 20; None is 16, or fewer where the centres reach beyond 128 units.
        frame: where the axes of the file point, one of `NUMBERED_FRAMES`; None is RUB in version 3, RDF in version 4.

    Raises:
        UsageProblem: there is no such version or frame, the centres reach too far, or the folder can't be written.
        SegdreamError: there are no Gaussians, some are not finite, or the disk is full.
        EnvironmentProblem: version 4 is requested and zstandard is not installed.
    """
    parts = pack(splats, path, version=version, fractional_bits=fractional_bits, frame=frame)
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        stream.writelines(parts)


def pack(
    splats: Splats,
    path: Path | None = None,
    *,
    version: int = 3,
    fractional_bits: int | None = None,
    frame: str | None = None,
) -> Iterator[bytes]:
    """The content of the file that `write` makes, in pieces; raises its errors, with `path` in their hints."""
    require_finite(splats)
    if version not in (3, 4):
        raise UsageProblem(f"SPZ is written in version 3 or 4, not {version}", hint="--format spz")
    frame = frame or (FRAME_4 if version == 4 else FRAME_3)
    check_frame(frame)
    bits = _choose_bits(path, splats, fractional_bits)
    turned = to_frame(sanitize(splats), frame)
    blocks = [block for block in pack_blocks(turned, bits) if block.size]
    note = "".join(provenance_comments(splats)).encode("ascii")
    note = note if len(note) <= NOTE_LIMIT else b""
    streams, flags = (len(blocks), HAS_EXTENSIONS) if version == 4 else (0, 0)
    flags |= ANTIALIASED if splats.antialiased else 0
    header = _Header(version, len(splats), COEFFICIENTS.index(splats.shN.shape[1]), bits, flags, streams)
    return (_zstandard_file if version == 4 else _gzip_file)(header, blocks, frame, note)


def read(path: Path, reading: Reading = DEFAULT) -> Splats:
    """The Gaussians of an SPZ file of version 1 to 4, in the inner frame, within the rounding of its bytes.

    The file is in the frame RUB unless it or `reading` names another; a note tells of a file that names none.
    Spherical harmonics of degree 4 are left out.

    Raises:
        UsageProblem: the file can't be opened, is no SPZ, is damaged, or unpacks to too much.
        EnvironmentProblem: it is of version 4 and zstandard is not installed.
    """
    with open_asset(path) as stream:
        return parse(path, stream.read(), reading)


def parse(path: Path, content: bytes, reading: Reading = DEFAULT, frame: str | None = None) -> Splats:
    """The Gaussians of an SPZ file with this content, in the inner frame.

    Args:
        path: the file that holds it, for messages.
        content: all bytes.
        reading: see `Reading`.
        frame: the frame that it has unless it names another; None is RUB, with a note.

    Raises:
        UsageProblem, EnvironmentProblem: see `read`.
    """
    header, blocks, extensions = _unpack(path, content)
    k = COEFFICIENTS[header.degree]
    if k > KEPT:
        reading.note(f"{path}: spherical harmonics of degree {header.degree} are cut to degree 3")
    harmonics = blocks.get("harmonics", np.zeros(0, np.uint8)).reshape(header.count, k, 3)[:, :KEPT]
    records = _records(header, extensions)
    named = _named_frame(content, records) or frame
    if named is None and reading.frame is None:
        reading.note(
            f"{path} does not name its frame; read as {DEFAULT_FRAME.upper()}, as SPZ specifies; "
            f"if it is upside down, add --frame {PLY}"
        )
    return finish(
        path,
        Splats(
            means=unpack_means(blocks["means"], header.fractional_bits if header.version > 1 else None),
            quats=unpack_quats(blocks["rotations"], header.version),
            log_scales=BYTE_SCALES[blocks["scales"].reshape(-1, 3)],
            opacity_logits=BYTE_LOGITS[blocks["alphas"]],
            sh0=BYTE_COLOURS[blocks["colours"].reshape(-1, 3)],
            shN=unpack_harmonics(harmonics),
            provenance=_provenance(content, records),
            antialiased=bool(header.flags & ANTIALIASED),
        ),
        reading,
        named or DEFAULT_FRAME,
    )


def check_frame(name: str) -> None:
    """Raises UsageProblem if SPZ has no number for a frame."""
    if name not in NUMBERED_FRAMES[1:]:
        raise UsageProblem(
            f"SPZ can't name the frame {name}; it knows {', '.join(NUMBERED_FRAMES[1:])}", hint="--output-frame rub"
        )


def read_declaration(path: Path) -> tuple[int, bool, str | None]:
    """A file's version, its antialias flag, and the frame that it names, None if it names none.

    Raises:
        UsageProblem, EnvironmentProblem: see `read`.
    """
    with open_asset(path) as stream:
        content = stream.read()
    header, _, extensions = _unpack(path, content)
    return header.version, bool(header.flags & ANTIALIASED), _named_frame(content, _records(header, extensions))


def _unpack(path: Path, content: bytes) -> tuple[_Header, dict[str, Bytes], bytes]:
    """Header, attributes and extensions of any version."""
    if content[:4] == SPZ_MAGIC:
        return (_zstandard_blocks if content[4:8] == SPZ_4 else _bare_blocks)(path, content)
    if content[:2] == GZIP:
        return _gzip_blocks(path, content)
    raise UsageProblem(f"{path} is not an SPZ file")


def _choose_bits(path: Path | None, splats: Splats, wanted: int | None) -> int:
    """The number of fractional bits: `wanted`, or the largest default with which the centres fit."""
    reach = float(np.abs(splats.means).max())
    if wanted is not None and wanted not in FRACTIONAL_BITS:
        raise UsageProblem(f"SPZ is written with 12, 16 or 20 fractional bits, not {wanted}", hint="--spz-bits 16")
    for bits in (16, 12, 8, 4, 0) if wanted is None else (wanted,):
        if reach * 2**bits <= 2**23 - 1:
            return bits
    bits = 0 if wanted is None else wanted
    message = f"the centres reach {reach:.4g} units from the origin, and SPZ with {bits} fractional bits reaches only "
    message += f"{2 ** (23 - bits)}"
    if reach < 2**23 - 1:
        raise UsageProblem(message, without=["--spz-bits"], hint="--spz-bits 12" if reach < 2**11 else None)
    another = None if path is None else f"-o {quote(str(path.with_suffix('.ply')))}"
    raise UsageProblem(message, without=[f"-o {path}", "--format", "--for"], hint=another)


def _gzip_file(header: _Header, blocks: Sequence[Bytes], frame: str, note: bytes) -> Iterator[bytes]:
    """One gzip member, deflated in pieces by as many threads as there are processors."""
    contents = [header.to_bytes(), *(block.tobytes() for block in blocks)]
    pieces = [
        (content[start : start + DEFLATED_AT_ONCE], strategy)
        for content in contents
        for strategy in [_strategy(content)]
        for start in range(0, len(content), DEFLATED_AT_ONCE)
    ]
    yield b"\x1f\x8b\x08%c\0\0\0\0\0\xff" % GZIP_COMMENT  # deflate, no time, unknown system
    yield f"{FRAME_COMMENT}{frame}\n".encode() + note + b"\0"
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        yield from pool.map(lambda piece: _deflate(*piece), pieces)
    yield zlib.compressobj(wbits=-zlib.MAX_WBITS).flush()  # the last block, empty
    checksum = 0
    for content in contents:
        checksum = zlib.crc32(content, checksum)
    yield struct.pack("<II", checksum, sum(map(len, contents)) % 2**32)


def _deflate(content: bytes, strategy: int) -> bytes:
    """Deflate blocks that end at a byte boundary, without the final block."""
    deflate = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return deflate.compress(content) + deflate.flush(zlib.Z_SYNC_FLUSH)


def _strategy(content: bytes) -> int:
    """The strategy of zlib that compresses the start of an attribute best."""
    return min(STRATEGIES, key=lambda strategy: len(_deflate(content[:SAMPLE], strategy)))


def _zstandard_file(header: _Header, blocks: Sequence[Bytes], frame: str, note: bytes) -> Iterator[bytes]:
    """Header, the record of the frame, table of contents, a frame for each attribute, and one with the provenance."""
    # any number of threads but zero gives the same bytes
    threads, zstandard = min(os.cpu_count() or 1, 8), _zstandard()
    parameters = [
        zstandard.ZstdCompressionParameters(**each, threads=threads)
        for each in (ZSTANDARD_LITERALS, ZSTANDARD_REPETITIONS)
    ]
    compressors = [
        *(zstandard.ZstdCompressor(compression_params=each) for each in parameters),
        zstandard.ZstdCompressor(level=1, threads=threads),
    ]
    contents = [block.tobytes() for block in blocks]
    frames = []
    for content in contents:
        _, best = min((len(each.compress(content[:SAMPLE])), i) for i, each in enumerate(compressors))
        frames.append(compressors[best].compress(content))
    if note:  # as a part of the last stream: the official library refuses bytes after it
        frames[-1] += struct.pack("<II", SKIPPABLE, len(note)) + note
    record = struct.pack("<III", COORDINATE_SYSTEM, 4, NUMBERED_FRAMES.index(frame))
    yield header.to_bytes() + struct.pack("<I12x", HEADER_4.size + len(record)) + record
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


def _parse_header(path: Path, head: bytes, size: int) -> _Header:
    """The header in `head`, after the check that a file of `size` bytes can hold what it claims."""
    if len(head) < HEADER.size:
        raise UsageProblem(f"{path} is truncated in its header")
    magic, *values = HEADER.unpack_from(head)
    header = _Header(*values)
    if magic != SPZ_MAGIC:
        raise UsageProblem(f"{path} is not an SPZ file")
    if not 1 <= header.version <= 4:
        raise UsageProblem(f"{path} has SPZ version {header.version}; segdream reads versions 1 to 4")
    if not header.count:
        raise UsageProblem(f"{path} has zero Gaussians")
    if header.degree >= len(COEFFICIENTS) or header.fractional_bits > 24:
        what = f"SH degree {header.degree} and {header.fractional_bits} fractional bits"
        raise UsageProblem(f"{path} is damaged: its header claims {what}")
    unpacked = sum(header.sizes().values())
    if unpacked > max(UNPACKED_FREE, UNPACKED_RATIO * size):
        raise UsageProblem(f"{path} claims {header.count} Gaussians, of {unpacked} bytes, but has only {size} bytes")
    return header


def _gzip_blocks(path: Path, content: bytes) -> tuple[_Header, dict[str, Bytes], bytes]:
    """Header, attributes and extensions of version 1 to 3; no more is unpacked than the header claims."""
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        header = _parse_header(path, stream.decompress(content, HEADER.size), len(content))
        if header.version == 4:
            raise UsageProblem(f"{path} is damaged: version 4 inside gzip")
        needed = sum(header.sizes().values())
        payload = stream.decompress(stream.unconsumed_tail, needed)
        extensions = stream.decompress(stream.unconsumed_tail, EXTENSIONS_LIMIT)  # reads to the checksum as well
    except zlib.error as problem:
        raise UsageProblem(f"{path} is damaged: {problem}") from problem
    if len(payload) < needed or not (stream.eof or stream.unconsumed_tail):
        raise UsageProblem(f"{path} is truncated")
    if not stream.eof:
        raise UsageProblem(f"{path} is damaged: it holds more than its header claims")
    return header, _split(header, payload), extensions


def _bare_blocks(path: Path, content: bytes) -> tuple[_Header, dict[str, Bytes], bytes]:
    """Header, attributes and extensions of version 1 to 3 without gzip."""
    header = _parse_header(path, content, len(content))
    end = HEADER.size + sum(header.sizes().values())
    if len(content) < end:
        raise UsageProblem(f"{path} is truncated")
    return header, _split(header, content[HEADER.size : end]), content[end : end + EXTENSIONS_LIMIT]


def _split(header: _Header, payload: bytes) -> dict[str, Bytes]:
    """The attributes, which follow each other."""
    blocks, start = {}, 0
    for name, size in header.sizes().items():
        blocks[name] = np.frombuffer(payload, np.uint8, size, start)
        start += size
    return blocks


def _zstandard_blocks(path: Path, content: bytes) -> tuple[_Header, dict[str, Bytes], bytes]:
    """Header, attributes and extensions of version 4; no more is unpacked than the header claims."""
    header = _parse_header(path, content, len(content))
    if header.version != 4 or len(content) < HEADER_4.size:
        raise UsageProblem(f"{path} is damaged: version {header.version} outside gzip")
    table = HEADER_4.unpack_from(content)[-1]
    sizes = header.sizes()
    start = table + STREAM.size * header.streams
    if header.streams != len(sizes) or not HEADER_4.size <= table <= start <= len(content):
        raise UsageProblem(f"{path} is damaged in its table of contents")
    zstandard = _zstandard()
    blocks = {}
    for (packed, claimed), (name, size) in zip(STREAM.iter_unpack(content[table:start]), sizes.items(), strict=True):
        if packed > len(content) - start:
            raise UsageProblem(f"{path} is truncated in its {name}")
        try:
            frame = memoryview(content)[start : start + packed]
            if claimed != size or zstandard.frame_content_size(frame) not in (-1, size):
                raise UsageProblem(f"{path} is damaged: its {name} do not take {size} bytes")
            block = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)
        except zstandard.ZstdError as problem:
            raise UsageProblem(f"{path} is damaged in its {name}: {problem}") from problem
        if len(block) != size:
            raise UsageProblem(f"{path} is truncated in its {name}")
        blocks[name] = np.frombuffer(block, np.uint8)
        start += packed
    return header, blocks, content[HEADER_4.size : min(table, HEADER_4.size + EXTENSIONS_LIMIT)]


def _records(header: _Header, extensions: bytes) -> Mapping[int, bytes]:
    """Extension -> its bytes; truncated ones are left out."""
    found: dict[int, bytes] = {}
    at = 0 if header.flags & HAS_EXTENSIONS else len(extensions)
    while at + 8 <= len(extensions):
        kind, size = struct.unpack_from("<II", extensions, at)
        if at + 8 + size <= len(extensions):
            found.setdefault(kind, extensions[at + 8 : at + 8 + size])
        at += 8 + size
    return found


def _named_frame(content: bytes, records: Mapping[int, bytes]) -> str | None:
    """The frame that the record or gzip's comment names; PLY's for files of segdream 0.1, which named none."""
    number: int = struct.unpack_from("<I", records.get(COORDINATE_SYSTEM, b"").ljust(4, b"\0"))[0]
    if 0 < number < len(NUMBERED_FRAMES):  # the official library skips the record if it knows no such frame
        return NUMBERED_FRAMES[number]
    first, _, _ = _gzip_comment(content).partition("\n")
    named = first.removeprefix(FRAME_COMMENT)
    if first.startswith(FRAME_COMMENT) and named in NUMBERED_FRAMES:
        return named
    return PLY if first.startswith(SIGNATURE) or PROVENANCE_0_1 in records else None


def _gzip_comment(content: bytes) -> str:
    """The comment of a gzip member that has no other optional fields before it; empty if there is none."""
    if content[:2] != GZIP or content[3] != GZIP_COMMENT:
        return ""
    return content[10 : 10 + NOTE_LIMIT + 100].partition(b"\0")[0].decode("ascii", "replace")


def _provenance(content: bytes, records: Mapping[int, bytes]) -> Mapping[str, Any]:
    """The provenance that `write` put into gzip's comment or into a skippable frame; empty if there is none."""
    notes = [*_gzip_comment(content).split("\n"), records.get(PROVENANCE_0_1, b"").decode("ascii", "replace")]
    start = content.rfind(struct.pack("<I", SKIPPABLE), -NOTE_LIMIT - 8)  # no byte of JSON in ASCII looks like it
    if start >= 0 and content[start + 4 : start + 8] == struct.pack("<I", len(content) - start - 8):
        notes.append(content[start + 8 :].decode("ascii", "replace"))
    return parse_provenance(notes)
