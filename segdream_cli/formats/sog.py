"""PlayCanvas's SOG: lossless WebP images and `meta.json`, in a `.sog` zip or a folder. Version 1 is only read.

Pixel i of every image is Gaussian i, in Morton order. Positions take 16 bits per axis, rotations a byte for each of
the three smaller components; scales and colours are indices into codebooks of 256 values, and the higher spherical
harmonics of a Gaussian are one entry of a palette, whose values are indices into a codebook as well. The
specification is PlayCanvas's manual, "The SOG Format"; its text says y up, but every tool stores the PLY frame. Version
1 has no codebooks: bytes are steps between a least and a greatest value.
"""

import io
import json
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import isdir
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdream_cli import __version__
from segdream_cli.errors import UsageProblem
from segdream_cli.formats.common import (
    BYTE_LOGITS,
    DEFAULT,
    ZIP_ERRORS,
    Reading,
    check_webp,
    escapes_archive,
    extras_provenance,
    finish,
    open_asset,
    provenance_extras,
    require_finite,
)
from segdream_cli.formats.ordering import along_z_curve
from segdream_cli.formats.palette import CODES, clusters, codebook, nearest_codes
from segdream_cli.formats.sniff import JSON_BLANKS, META, META_LIMIT
from segdream_cli.splats import BANDS, Float32s, Splats, sanitize, to_ply_frame
from segdream_cli.splats.frames import PLY
from segdream_cli.util.files import atomic_write, parse_json

Bytes = NDArray[np.uint8]

PALETTE_LIMIT = 1 << 16
"""Maximum number of palette entries: labels have 16 bits."""
NOISE = "means_l.webp"
"""Image of the positions' low bytes. They are noise, so the encoder does not look for patterns in them."""
PALETTE_COLUMNS = 64
"""Entries per row of the palette's image; each takes one pixel per coefficient."""

SMALL_COUNT = 1 << 20
"""Number of Gaussians that a file of any size may claim; a file that claims more needs at least as many bytes."""
SMALL_IMAGE = 1 << 16
"""Pixels that an image may have beyond four per Gaussian."""

_SMALLER = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
"""wxyz component that is largest -> the other three."""


def check_packages() -> None:
    """Raises EnvironmentProblem if the images of a bundle can't be written."""
    check_webp()


def write(path: Path, splats: Splats, *, palette: int | None = None) -> None:
    """Writes a bundle, in the PLY frame.

    Rows go in Morton order; opacities and quaternions are rounded to bytes, positions to 1/65535 of the logarithm of
    the asset's extent. Clamps as in `ply.write`. Provenance goes into `meta.json`.

    Args:
        path: the file, replaced as a whole.
        splats: the asset.
        palette: entries for the higher spherical harmonics, 1..65536; by default, as in PlayCanvas's own writer, the
            largest power of two that is no more than there are Gaussians. Fewer make a smaller file.

    Raises:
        SegdreamError: there are no Gaussians, some are not finite, or the disk is full.
        UsageProblem: the folder can't be written, or `palette` is out of range.
    """
    require_finite(splats)
    if palette is not None and not 1 <= palette <= PALETTE_LIMIT:
        raise UsageProblem(f"a palette of {palette} entries is not in 1..{PALETTE_LIMIT}")
    files = encode(to_ply_frame(sanitize(splats)), describe(splats), palette=palette, order=along_z_curve)
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as bundle:
        for name, content in files.items():
            bundle.writestr(zipfile.ZipInfo(name), content)


def describe(splats: Splats) -> dict[str, Any]:
    """The `asset` entry of `meta.json`: this program, and the provenance."""
    return {"generator": f"segdream {__version__}", **provenance_extras(splats)}


def encode(
    splats: Splats,
    asset: Mapping[str, Any],
    *,
    palette: int | None = None,
    order: Callable[[Float32s], NDArray[np.intp]] | None = None,
) -> dict[str, bytes]:
    """The files of a bundle or a folder by their names, `meta.json` last.

    Args:
        splats: sanitised Gaussians in the PLY frame.
        asset: the `asset` entry of `meta.json`.
        palette: see `write`.
        order: the order of rows for centres [n, 3]; None keeps it.
    """
    meta: dict[str, Any] = {"version": 2, "asset": dict(asset), "count": len(splats)}
    if splats.antialiased:
        meta["model"] = "antialiased"
    with ThreadPoolExecutor() as pool:  # numpy and libwebp work outside the interpreter's lock
        books = pool.map(codebook, (splats.log_scales, splats.sh0))  # the codebooks do not depend on the order of rows
        ordered = splats if order is None else splats.select(order(splats.means))
        jobs = _plan_images(ordered, meta, books, palette)
        images = {name: pool.submit(_webp, pixels, 0 if name == NOISE else 1) for name, pixels in jobs}
        files = {name: image.result() for name, image in images.items()}
    return files | {META: json.dumps(meta, allow_nan=False).encode()}


def _plan_images(
    splats: Splats, meta: dict[str, Any], books: Iterator[Float32s], palette: int | None
) -> Iterator[tuple[str, Callable[[], Bytes]]]:
    """Names of the image files, each with a function that computes its pixels [h, w, 3 or 4]; fills `meta`."""
    logs = np.sign(splats.means) * np.log1p(np.abs(splats.means, dtype=np.float64))
    low, high = logs.min(axis=0), logs.max(axis=0)
    meta["means"] = {"mins": low.tolist(), "maxs": high.tolist(), "files": [NOISE, "means_u.webp"]}
    steps = np.rint((logs - low) / np.where(high > low, high - low, 1) * 65535).astype(np.uint16)
    yield NOISE, lambda: _square(steps & 255)
    yield "means_u.webp", lambda: _square(steps >> 8)
    meta["quats"] = {"files": ["quats.webp"]}
    yield "quats.webp", lambda: _square(_pack_quats(splats.quats))
    scales, colours = books
    meta["scales"] = {"codebook": _short(scales), "files": ["scales.webp"]}
    yield "scales.webp", lambda: _square(nearest_codes(scales, splats.log_scales))
    meta["sh0"] = {"codebook": _short(colours), "files": ["sh0.webp"]}
    yield "sh0.webp", lambda: _square(_colours_and_alphas(colours, splats))
    n, k, _ = splats.shN.shape
    if not k:
        return
    entries, labels = clusters(splats.shN.reshape(n, 3 * k), palette or min(PALETTE_LIMIT, 1 << n.bit_length() - 1))
    values = codebook(entries)
    meta["shN"] = {
        "count": len(entries),
        "bands": BANDS.index(k),
        "codebook": _short(values),
        "files": ["shN_centroids.webp", "shN_labels.webp"],
    }
    sheet = np.zeros((-(-len(entries) // PALETTE_COLUMNS), PALETTE_COLUMNS * k, 3), np.uint8)
    sheet.reshape(-1, k, 3)[: len(entries)] = nearest_codes(values, entries).reshape(-1, k, 3)
    yield "shN_centroids.webp", lambda: sheet
    label_bytes = np.stack([labels & 255, labels >> 8, np.zeros_like(labels)], axis=1)
    yield "shN_labels.webp", lambda: _square(label_bytes)


def _colours_and_alphas(colours: Float32s, splats: Splats) -> Bytes:
    """[n, 4]: three indices into a codebook, and the opacity."""
    alphas = np.rint(255 / (1 + np.exp(-splats.opacity_logits))).astype(np.uint8)
    return np.concatenate([nearest_codes(colours, splats.sh0), alphas[:, None]], axis=1)


def _short(values: Float32s) -> list[float]:
    """Float32 values as JSON spells them in the fewest digits."""
    return [float(str(value)) for value in values]


def _pack_quats(quats: Float32s) -> Bytes:
    """[n, 4] wxyz to the three smaller components and 252 + the index of the largest, which is made positive."""
    largest = np.argmax(np.abs(quats), axis=1)
    flat, first = quats.reshape(-1), np.arange(0, quats.size, 4)
    factor = np.copysign(np.float32(255 * np.sqrt(0.5)), flat.take(first + largest))
    packed = np.empty(quats.shape, np.uint8)
    for i in range(3):  # the smaller ones, within +-sqrt(1/2)
        levels = flat.take(first + i + (largest <= i)) * factor + np.float32(127.5)
        packed[:, i] = np.clip(np.rint(levels, out=levels), 0, 255, out=levels)
    packed[:, 3] = 252 + largest
    return packed


def _square(rows: NDArray[Any]) -> Bytes:
    """[n, c] as a nearly square image whose sides are multiples of four, filled up with zeros."""
    n, channels = rows.shape
    width = 4 * int(np.ceil(np.sqrt(n) / 4))
    height = 4 * -(-n // (4 * width))
    pixels = np.zeros((height * width, channels), np.uint8)
    pixels[:n] = rows
    return pixels.reshape(height, width, channels)


def _webp(pixels: Callable[[], Bytes], effort: int) -> bytes:
    stream = io.BytesIO()
    # exact keeps colours under an alpha of zero; efforts above 1 save 0.2 % of the bytes and take three times as long
    Image.fromarray(pixels()).save(stream, "WEBP", lossless=True, exact=True, quality=20, method=effort)
    return stream.getvalue()


def read(path: Path, reading: Reading = DEFAULT) -> Splats:
    """The Gaussians of a bundle, in the inner frame, within its quantisation; memory stays in proportion to the file.

    Args:
        path: a zip, whose members may be in one folder; a folder; or the `meta.json` of a folder.
        reading: see `Reading`.

    Raises:
        UsageProblem: the file can't be opened, is not a bundle, is damaged, or claims more than it can hold.
    """
    with _open(path) as source:
        splats = _decode(source, source.meta())
    return finish(path, splats, reading, PLY)


def version(path: Path) -> int:
    """The version of a bundle; raises the errors of `read`."""
    with _open(path) as source:
        return int(source.meta().version)


@contextmanager
def _open(path: Path) -> Iterator["_Source"]:
    """The members of a zip or a folder."""
    if isdir(path):  # noqa: PTH112 - Path.is_dir raises if a name is too long
        yield _Folder.of(path, path)
        return
    with open_asset(path) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        if stream.read(64).lstrip(JSON_BLANKS)[:1] == b"{":
            yield _Folder.of(path, path.parent, path.name)
            return
        try:
            bundle = zipfile.ZipFile(stream)
        except ZIP_ERRORS as problem:
            raise UsageProblem(f"{path} is not a .sog file: {problem}") from problem
        with bundle:
            yield _Zip.of(path, size, bundle)


@dataclass(frozen=True, slots=True)
class _Source(ABC):
    """An untrusted bundle."""

    path: Path
    size: int

    @abstractmethod
    def member(self, name: str, limit: int) -> bytes:
        """The content of a member of at most `limit` bytes."""

    def damage_error(self, reason: str) -> UsageProblem:
        """The error to raise for invalid content."""
        return UsageProblem(f"{self.path} is damaged: {reason}")

    def size_error(self, name: str, size: int, limit: int) -> UsageProblem:
        """The error to raise for a member that is too large."""
        return self.damage_error(f"{name} claims {size} bytes, more than the limit of {limit}")

    def meta(self) -> "_Meta":
        """The content of `meta.json`."""
        try:
            found = parse_json(self.member(META, META_LIMIT))
        except ValueError as problem:
            raise self.damage_error(f"{META} is not JSON: {problem}") from problem
        meta = _Meta(self, found if isinstance(found, dict) else {}, META)
        if meta.version not in (1, 2):
            raise UsageProblem(f"{self.path} has SOG version {str(meta.version)[:20]}; segdream reads versions 1 and 2")
        return meta

    def image(self, name: str, fits: Callable[[int, int], bool]) -> Bytes:
        """The pixels of a lossless WebP, [h, w, 4]; checks width and height before it decodes."""
        content = self.member(name, self.size + META_LIMIT)
        shape = _webp_shape(content)
        if shape is None:
            raise self.damage_error(f"{name} is not a lossless WebP image")
        if not fits(*shape):
            raise self.damage_error(f"{name} has {shape[0]} x {shape[1]} pixels, which do not match {META}")
        try:
            with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
                pixels = np.asarray(image.convert("RGBA"))
        except (*ZIP_ERRORS, SyntaxError, Image.DecompressionBombError) as problem:
            raise self.damage_error(f"{name} can't be decoded: {problem}") from problem
        if pixels.shape[1::-1] != shape:
            raise self.damage_error(f"{name} does not have the size that it claims")
        return pixels


@dataclass(frozen=True, slots=True)
class _Zip(_Source):
    """A zip whose members may be in one folder."""

    bundle: zipfile.ZipFile
    prefix: str

    @classmethod
    def of(cls, path: Path, size: int, bundle: zipfile.ZipFile) -> "_Zip":
        """The members beside the outermost `meta.json`, after a check of all names."""
        names = bundle.namelist()
        for name in names:
            if escapes_archive(name):
                reason = f"the name {name[:80]!r} points outside the bundle"
                raise UsageProblem(f"{path} is damaged: {reason}")
        found = [name for name in names if name == META or (name.count("/") == 1 and name.endswith(f"/{META}"))]
        return cls(path, size, bundle, min(found, key=len, default=META).removesuffix(META))

    def member(self, name: str, limit: int) -> bytes:
        try:
            info = self.bundle.getinfo(self.prefix + name)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self.damage_error(f"{name} has a compression that the format does not allow")
            if info.file_size > limit:
                raise self.size_error(name, info.file_size, limit)
            return self.bundle.read(info)
        except KeyError as problem:
            raise self.damage_error(f"it lacks {name[:80]!r}") from problem
        except ZIP_ERRORS as problem:
            raise self.damage_error(f"{name} can't be unpacked: {problem}") from problem


@dataclass(frozen=True, slots=True)
class _Folder(_Source):
    """A folder of images; nothing outside it is read."""

    folder: Path
    meta_name: str

    @classmethod
    def of(cls, path: Path, folder: Path, meta_name: str = META) -> "_Folder":
        """The files of a folder."""
        try:
            size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        except OSError as problem:
            raise UsageProblem(f"{folder} can't be read: {problem.strerror}") from problem
        return cls(path, size, folder, meta_name)

    def member(self, name: str, limit: int) -> bytes:
        file = self.folder / (self.meta_name if name == META else name)
        if Path(name).name != name or "\0" in name or not file.is_file():
            raise self.damage_error(f"it lacks {name[:80]!r}")
        if self.folder.resolve() != file.resolve().parent:
            raise self.damage_error(f"{name[:80]!r} is a link that points outside the folder")
        with open_asset(file) as stream:
            content = stream.read(limit + 1)
        if len(content) > limit:
            raise self.size_error(name, file.stat().st_size, limit)
        return content


def _webp_shape(content: bytes) -> tuple[int, int] | None:
    """Width and height as the head of a WebP gives them, or None if its image is not a single lossless one."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return None
    start, canvas = 12, None
    while start + 8 <= len(content):
        kind, size = struct.unpack_from("<4sI", content, start)
        chunk = content[start + 8 : start + 18]
        if kind == b"VP8X" and len(chunk) == 10:
            canvas = int.from_bytes(chunk[4:7], "little") + 1, int.from_bytes(chunk[7:10], "little") + 1
        elif kind == b"VP8L":
            bits = int.from_bytes(chunk[1:5], "little")
            return canvas or ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif kind in (b"VP8 ", b"ANMF"):
            return None
        start += 8 + size + size % 2
    return None


@dataclass(frozen=True, slots=True)
class _Meta:
    """An object of `meta.json` that checks each entry when it is read."""

    source: _Source
    values: Mapping[str, Any]
    name: str

    @property
    def version(self) -> Any:
        """The version, which 1 does not name."""
        return self.values.get("version", 1)

    def count(self, limit: int) -> int:
        """The number of Gaussians, 1..limit."""
        if self.version == 1:
            shape = self.part("means").values.get("shape")
            first = shape[0] if isinstance(shape, list) and shape else None
            return _Meta(self.source, {"count": first}, self.name).whole("count", limit)
        return self.whole("count", limit)

    def part(self, key: str) -> "_Meta":
        found = self.values.get(key)
        if not isinstance(found, dict):
            raise self.source.damage_error(f"{self.name} has no {key}")
        return _Meta(self.source, found, key)

    def whole(self, key: str, limit: int) -> int:
        """A whole number in 1..limit."""
        found = self.values.get(key)
        if type(found) is not int or found < 1:
            raise self.source.damage_error(f"the {key} of {self.name} is not a positive integer")
        if found > limit:
            raise self.source.damage_error(f"the {key} of {self.name}, {str(found)[:20]}, exceeds the limit of {limit}")
        return found

    def numbers(self, key: str, count: int) -> NDArray[np.float64]:
        """`count` finite numbers."""
        found = self.values.get(key)
        if not isinstance(found, list) or len(found) != count or {type(value) for value in found} - {int, float}:
            raise self.source.damage_error(f"the {key} of {self.name} is not a list of {count} numbers")
        try:
            values = np.array(found, np.float64)
        except OverflowError:
            values = np.array([np.nan])
        if not np.isfinite(values).all():
            raise self.source.damage_error(f"the {key} of {self.name} has a value that is not a finite number")
        return values

    def decode(self, steps: Bytes, codebook: bool) -> Float32s:
        """The values [n, c] of bytes [n, c]: entries of the codebook, or steps from `mins` to `maxs` per column."""
        with np.errstate(over="ignore", invalid="ignore"):
            if codebook:
                return self.codebook()[steps]
            low, high = (self.numbers(key, steps.shape[-1]).astype(np.float32) for key in ("mins", "maxs"))
            values: Float32s = (low + (high - low) * (steps / np.float32(255))).astype(np.float32, copy=False)
            return values

    def codebook(self) -> Float32s:
        """256 values; a null first value, from an early writer, is filled in as in PlayCanvas's player."""
        found = self.values.get("codebook")
        if isinstance(found, list) and found[:1] == [None]:
            later = _Meta(self.source, {"codebook": found[1:]}, self.name).numbers("codebook", CODES - 1)
            return np.concatenate([[later[0] + (later[0] - later[-1]) / 255], later]).astype(np.float32)
        with np.errstate(over="ignore"):
            return self.numbers("codebook", CODES).astype(np.float32)

    def images(self, *fits: Callable[[int, int], bool]) -> list[Bytes]:
        """The images of this part as [w h, 4] rows, one for each test of width and height."""
        files = self.values.get("files")
        if not isinstance(files, list) or len(files) != len(fits) or not all(isinstance(name, str) for name in files):
            raise self.source.damage_error(f"the files entry of {self.name} is not a list of {len(fits)} names")
        return [self.source.image(*each).reshape(-1, 4) for each in zip(files, fits, strict=True)]


def _decode(source: _Source, meta: _Meta) -> Splats:
    """The Gaussians in the PLY frame; values that overflow are left for the caller to find."""
    books = meta.version == 2
    count = meta.count(max(SMALL_COUNT, source.size))

    def fits(width: int, height: int) -> bool:
        return count <= width * height <= 4 * count + SMALL_IMAGE

    low, high = (meta.part("means").numbers(key, 3) for key in ("mins", "maxs"))
    fine, coarse = (pixels[:count, :3] for pixels in meta.part("means").images(fits, fits))
    scales, quats, colours = (meta.part(key).images(fits)[0][:count] for key in ("scales", "quats", "sh0"))
    with np.errstate(over="ignore", invalid="ignore"):
        levels = low + (high - low) * (np.arange(1 << 16) / 65535)[:, None]  # the largest extent of an axis
        positions = (np.sign(levels) * np.expm1(np.abs(levels))).astype(np.float32)
        steps = coarse * np.uint16(256) + fine
    sh0 = meta.part("sh0").decode(colours[:, :3] if books else colours, books)
    return Splats(
        means=np.stack([positions[steps[:, axis], axis] for axis in range(3)], axis=1),
        quats=_unpack_quats(source, quats),
        log_scales=meta.part("scales").decode(scales[:, :3], books),
        opacity_logits=BYTE_LOGITS[colours[:, 3]] if books else sh0[:, 3].copy(),
        sh0=np.ascontiguousarray(sh0[:, :3]),
        shN=_unpack_harmonics(meta.part("shN"), count, fits, books)
        if "shN" in meta.values
        else np.zeros((count, 0, 3), "f4"),
        provenance=extras_provenance(meta.values),
        antialiased=meta.values.get("model") == "antialiased",
    )


def _unpack_quats(source: _Source, packed: Bytes) -> Float32s:
    """The inverse of `_pack_quats`."""
    if (packed[:, 3] < 252).any():
        raise source.damage_error("a rotation does not say which of its components is the largest")
    largest = packed[:, 3].astype(np.intp) - 252
    smaller = (packed[:, :3] / np.float32(255) - np.float32(0.5)) * np.float32(np.sqrt(2))
    quats = np.empty((len(packed), 4), np.float32)
    np.put_along_axis(quats, _SMALLER[largest], smaller, axis=1)
    rest = np.sqrt(np.maximum(0, 1 - np.einsum("nq,nq->n", smaller, smaller)))
    np.put_along_axis(quats, largest[:, None], rest[:, None], axis=1)
    return quats


def _unpack_harmonics(meta: _Meta, count: int, fits: Callable[[int, int], bool], books: bool) -> Float32s:
    """The higher spherical harmonics, [count, k, 3]; version 1 tells k by the width of its sheet."""
    known = (BANDS[meta.whole("bands", 3)],) if books else BANDS[1:]
    widths: list[int] = []

    def holds(width: int, height: int) -> bool:
        widths.append(width)
        return width in [PALETTE_COLUMNS * k for k in known] and PALETTE_COLUMNS * height <= PALETTE_LIMIT

    sheet, label_bytes = meta.images(holds, fits)
    k = widths[0] // PALETTE_COLUMNS
    labels = label_bytes[:count, 0] + label_bytes[:count, 1] * np.uint16(256)
    entries = len(sheet) // k
    if books:
        entries = min(meta.whole("count", PALETTE_LIMIT), entries)  # some writers round the number up
    if labels.max() >= entries:
        raise meta.source.damage_error(f"a Gaussian has entry {labels.max()} of a palette of {entries}")
    if not books:  # one range for all three colours
        ends = {key: [meta.values.get(key)] * 3 for key in ("mins", "maxs")}
        meta = _Meta(meta.source, ends, meta.name)
    palette: Float32s = meta.decode(sheet[:, :3], books).reshape(-1, k, 3)
    return palette.take(labels, axis=0)
