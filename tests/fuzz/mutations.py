"""Damaged asset files: small valid ones of every writer, changed at random or where a reader is most vulnerable."""

import gzip
import io
import random
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import zstandard

from segdream_cli import formats
from segdream_cli.formats import FORMATS
from segdream_cli.formats.common import Reading
from segdream_cli.formats.spz import HEADER_4, STREAM
from segdream_cli.splats import Splats

DATA = Path(__file__).resolve().parents[1] / "data"
"""Files that other programs wrote."""
sys.path.append(str(DATA.parent))
from foreign_files import (  # noqa: E402
    glb_file,
    gltf_file,
    gzipped,
    ksplat_file,
    old_spz,
    packed_document,
    ply_variant,
    sog_1_files,
)

FOREIGN = {
    "ksplat": ".ksplat",
    "old-spz": ".spz",
    "old-sog": ".sog",
    "ply-variants": ".ply",
    "points-as-splats": ".ply",
    "ply-gz": ".ply.gz",
    "packed-glb": ".glb",
    "gltf": ".gltf",
    "usda": ".usda",
}
"""Kinds of files that segdream only reads, with their suffixes."""
READABLE = (*(name for name, row in FORMATS.items() if row.readable), *FOREIGN)
NUMBERS = (
    0,
    1,
    2,
    3,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 62,
    (1 << 64) - 1,
)
FLOATS = (0.0, -0.0, 1e-45, 3.4e38, -3.4e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    b"0",
    b"-1",
    b"1e999",
    b"nan",
    b"4294967296",
    b"1000000000000",
    b"99999999999999999999",
    b"",
    b"null",
    b"[]",
    b"../x",
)
"""Replacements of a number in a text."""


def suffix_of(name: str) -> str:
    """The suffix of a kind of file."""
    return FOREIGN[name] if name in FOREIGN else FORMATS[name].suffix


def reading_of(name: str) -> Reading:
    """How to read a kind of file."""
    return Reading(as_splats=name == "points-as-splats")


def seeds(name: str) -> list[bytes]:
    """Valid files of a format: few and some Gaussians, with and without spherical harmonics, ours and others'."""
    if name in FOREIGN:
        return [content for count in (3, 40) for content in _foreign_seeds(name, _random_splats(count, 15))]
    found = [path.read_bytes() for path in sorted(DATA.iterdir()) if _has_format(path, name)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"seed{FORMATS[name].suffix}"
        for count, k in ((1, 0), (5, 3), (40, 15)):
            formats.write(path, _random_splats(count, k), name)
            found.append(path.read_bytes())
    return found


def _foreign_seeds(name: str, splats: Splats) -> list[bytes]:
    """Files of a kind that segdream only reads."""
    if name == "ksplat":
        return [ksplat_file(splats, level, 2 - level, 1 + level) for level in range(3)]
    if name == "old-spz":
        return [old_spz(splats, version) for version in (1, 2)]
    if name == "old-sog":
        return [zip_members(sog_1_files(splats, k)) for k in (0, 3)]
    if name == "ply-variants":
        return [ply_variant(splats, number) for number in range(3)]
    if name == "points-as-splats":
        return [ply_variant(splats, 3)]
    if name == "ply-gz":
        return [gzipped(ply_variant(splats, 2))]
    if name in ("packed-glb", "gltf"):
        packed = old_spz(splats, 2)
        return [(glb_file if name == "packed-glb" else gltf_file)(packed_document(len(packed)), packed)]
    return [usda_layer(splats)]


def usda_layer(splats: Splats) -> bytes:
    """A text layer of OpenUSD."""
    from pxr import Sdf

    with TemporaryDirectory() as folder:
        formats.write(Path(folder) / "a.usdz", splats)
        Sdf.Layer.OpenAsAnonymous(f"{folder}/a.usdz").Export(f"{folder}/a.usda")
        return (Path(folder) / "a.usda").read_bytes()


def _has_format(path: Path, name: str) -> bool:
    return formats.goes_with(path, name) and (FORMATS[name].suffix != ".spz" or ("v4" in path.name) == (name == "spz4"))


def _random_splats(count: int, k: int) -> Splats:
    rng = np.random.default_rng(count)
    shapes = {"means": 3, "quats": 4, "log_scales": 3, "sh0": 3}
    values = {name: rng.normal(0, 0.5, (count, width)).astype(np.float32) for name, width in shapes.items()}
    values["quats"] /= np.linalg.norm(values["quats"], axis=1, keepdims=True)
    rest = {"opacity_logits": rng.normal(size=count), "shN": rng.normal(0, 0.2, (count, k, 3))}
    values |= {name: value.astype(np.float32) for name, value in rest.items()}
    return Splats(**values, provenance={"prompt": "a bus", "seed": count})


def mutate(name: str, rng: random.Random, sources: list[bytes]) -> bytes:
    """A damaged file; half of the changes are made inside its container, with checksums and lengths that fit."""
    content = rng.choice(sources)
    if name in CONTAINERS and rng.random() < 0.5:
        return CONTAINERS[name](rng, content)
    other = rng.choice(sources)
    return change(rng, content, other)


def change(rng: random.Random, content: bytes, other: bytes = b"") -> bytes:
    """One to eight changes of bytes, of numbers, of the length."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        _CHANGES[rng.randrange(len(_CHANGES))](rng, data, other)
    return bytes(data)


def _flip_bit(rng: random.Random, data: bytearray, _: bytes) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _change_early_byte(rng: random.Random, data: bytearray, _: bytes) -> None:
    data[rng.randrange(min(len(data), 64))] = rng.randrange(256)


def _change_number(rng: random.Random, data: bytearray, _: bytes) -> None:
    width = rng.choice((1, 2, 4, 8))
    at = rng.randrange(len(data))
    data[at : at + width] = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "big")))


def _change_float(rng: random.Random, data: bytearray, _: bytes) -> None:
    at = rng.randrange(len(data))
    data[at : at + 4] = struct.pack("<f", rng.choice(FLOATS))


def _change_word(rng: random.Random, data: bytearray, _: bytes) -> None:
    """Another number in a text, such as a header."""
    digits = [at for at in range(min(len(data), 4096)) if 48 <= data[at] < 58]
    if digits:
        at = end = rng.choice(digits)
        while end < len(data) and 48 <= data[end] < 58:
            end += 1
        data[at:end] = rng.choice(TEXTS)


def _truncate(rng: random.Random, data: bytearray, _: bytes) -> None:
    del data[rng.randrange(len(data)) :]


def _delete(rng: random.Random, data: bytearray, _: bytes) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 4, 16, 256))]


def _repeat(rng: random.Random, data: bytearray, _: bytes) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.choice((1, 4, 16, 256))]


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    if other:
        data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


_CHANGES = (
    _flip_bit,
    _flip_bit,
    _change_early_byte,
    _change_number,
    _change_number,
    _change_float,
    _change_word,
    _truncate,
    _delete,
    _repeat,
    _splice,
)


def _mutate_gzip(rng: random.Random, content: bytes) -> bytes:
    return gzip.compress(change(rng, gzip.decompress(content)), 1, mtime=0)


def _mutate_streams(rng: random.Random, content: bytes) -> bytes:
    """One of the zstandard streams of an SPZ 4, its row of the table made to fit."""
    head = bytearray(content[: HEADER_4.size])
    streams, table = head[15], struct.unpack_from("<I", head, 16)[0]
    rows = [STREAM.unpack_from(content, table + STREAM.size * i) for i in range(streams)]
    at, frames = table + STREAM.size * streams, []
    for size, _ in rows:
        frames.append(zstandard.ZstdDecompressor().decompress(content[at : at + size]))
        at += size
    chosen = rng.randrange(streams + 1)
    if chosen == streams:
        head = bytearray(change(rng, bytes(head)))
    else:
        frames[chosen] = change(rng, frames[chosen])
    packed = [zstandard.ZstdCompressor(level=1).compress(frame) for frame in frames]
    sizes = b"".join(STREAM.pack(len(one), len(frame)) for one, frame in zip(packed, frames, strict=True))
    return b"".join([head, content[HEADER_4.size : table], sizes, *packed])


def _mutate_chunk(rng: random.Random, content: bytes) -> bytes:
    """The text or the numbers of a GLB."""
    size = struct.unpack_from("<I", content, 12)[0]
    parts = [content[20 : 20 + size], content[28 + size :]]
    chosen = rng.randrange(2)
    parts[chosen] = change(rng, parts[chosen])
    padded = [part + fill * (-len(part) % 4) for part, fill in zip(parts, (b" ", b"\0"), strict=True)]
    chunks = [
        struct.pack("<I4s", len(part), kind) + part for part, kind in zip(padded, (b"JSON", b"BIN\0"), strict=True)
    ]
    return struct.pack("<4sII", b"glTF", 2, 12 + sum(map(len, chunks))) + b"".join(chunks)


def _mutate_zip(rng: random.Random, content: bytes) -> bytes:
    """A member of a zip, at a multiple of 64 bytes as .usdz requires, with its new checksum."""
    with zipfile.ZipFile(io.BytesIO(content)) as package:
        members = {info.filename: package.read(info) for info in package.infolist()}
    chosen = rng.choice(sorted(members))
    members[chosen] = change(rng, members[chosen])
    return zip_members(members)


def zip_members(members: Mapping[str, bytes]) -> bytes:
    """A zip of stored members, each at a multiple of 64 bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as package:
        for name, member in members.items():
            info = zipfile.ZipInfo(name)
            fill = -(stream.tell() + 30 + len(name.encode()) + 4) % 64
            info.extra = struct.pack("<HH", 0x1986, fill) + bytes(fill)
            package.writestr(info, member)
    return stream.getvalue()


CONTAINERS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "old-sog": _mutate_zip,
    "packed-glb": _mutate_chunk,
    "ply-gz": _mutate_gzip,
    "spz": _mutate_gzip,
    "spz4": _mutate_streams,
    "sog": _mutate_zip,
    "usdz": _mutate_zip,
    "glb": _mutate_chunk,
}
"""Formats whose container would reject nearly every changed byte."""
