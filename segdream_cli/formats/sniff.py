"""The format of a file by its bytes, whatever its name."""

import zipfile
from os.path import isdir
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import BinaryIO

from segdream_cli.errors import UsageProblem
from segdream_cli.formats.common import GZIP, SPZ_MAGIC, ZIP_ERRORS, not_a_file, open_asset
from segdream_cli.util.files import parse_json

HEAD = 1 << 16
"""Number of bytes that the formats without a magic number are recognised by."""
META = "meta.json"
META_LIMIT = 1 << 20
"""Limit of SOG's `meta.json` in bytes; a real one takes about 15,000."""
JSON_BLANKS = b"\xef\xbb\xbf \t\r\n"
"""Bytes before a JSON text: a byte-order mark and spaces."""
LFS_POINTER = b"version https://git-lfs"
WEB_PAGES = (b"<!doctype html", b"<html")
ZIPPED = (".ply", ".splat", ".ksplat", ".spz", ".sog", ".glb")
"""Suffixes of assets that are offered in a zip."""
USD_SUFFIXES = (".usd", ".usda", ".usdc")
MAGIC = {
    b"glTF": "glb",
    b"PXR-USDC": "usd",
    b"#usda ": "usd",
    SPZ_MAGIC: "spz",
    GZIP: "spz",  # open_asset unpacks what else gzip holds
}


def sniff(path: Path) -> str | None:
    """A key of `formats.READERS`, or None if the bytes at `path` are of no known kind.

    Raises:
        UsageProblem: the file can't be opened, or it is a zip or a folder without an asset, a pointer of Git LFS in
            place of the asset, or a web page named as one.
    """
    if isdir(path):  # noqa: PTH112 - Path.is_dir raises if a name is too long
        if (path / META).is_file():
            return "sog"
        raise not_a_file(path)
    with open_asset(path) as stream:
        head = stream.read(HEAD)
        size = stream.seek(0, 2)
        stream.seek(0)
        if head[:4] in (b"ply\n", b"ply\r"):
            return _ply_kind(path, stream)
        if head[:4] == b"PK\3\4":
            return _zip_kind(path, stream)
        if head.lstrip(JSON_BLANKS)[:1] == b"{":
            return _json_kind(stream, size)
        _check_download(path, head)
        return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None) or _bare_kind(head, size)


def _check_download(path: Path, head: bytes) -> None:
    """Raises UsageProblem for what a download may leave in place of an asset."""
    if head.startswith(LFS_POINTER):
        raise UsageProblem(
            f"{path} is a pointer of Git LFS, which has not downloaded the file",
            hint=f"git -C {quote(str(path.parent))} lfs pull --include {quote(path.name)}",
        )
    if head.lstrip()[:14].lower().startswith(WEB_PAGES) and path.suffix.lower() not in (".html", ".htm"):
        raise UsageProblem(
            f"{path} is a web page, not an asset: its address was that of a page; download the file itself"
        )


def _ply_kind(path: Path, stream: BinaryIO) -> str:
    """Compressed Gaussians, plain ones, or points."""
    from segdream_cli.formats import ply, ply_header

    vertex = ply_header.read_header(path, stream).elements.get("vertex")
    names = {name for name, _ in vertex.properties} if vertex else set()
    if ply.PACKED in names:
        return "compressed-ply"
    return "points" if set(ply.MEANS) <= names and not ply.is_asset(names) else "ply"


def _zip_kind(path: Path, stream: BinaryIO) -> str:
    """SOG, whose zip holds `meta.json`, or USD, whose first member is a stage."""
    try:
        with zipfile.ZipFile(stream) as package:
            names = package.namelist()
    except ZIP_ERRORS as problem:
        raise UsageProblem(f"{path} is a damaged zip: {problem}") from problem
    if any(PurePosixPath(name).name == META and name.count("/") < 2 for name in names):
        return "sog"
    if names and PurePosixPath(names[0]).suffix.lower() in USD_SUFFIXES:
        return "usd"
    inside = ", ".join(repr(name[:40]) for name in names[:3]) or "nothing"
    if any(name.lower().endswith(ZIPPED) for name in names):
        raise UsageProblem(
            f"{path} is a zip of assets, which segdream reads one by one; it holds {inside}",
            hint=f"python -m zipfile -e {quote(str(path))} {quote(str(path.parent))}",
        )
    raise UsageProblem(f"{path} is a zip without an asset; it holds {inside}")


def _json_kind(stream: BinaryIO, size: int) -> str | None:
    """SOG's description of its images, or glTF."""
    if size > META_LIMIT:
        return "glb"
    try:
        found = parse_json(stream.read())
    except ValueError:
        return None
    return ("sog" if "means" in found else "glb" if "asset" in found else None) if isinstance(found, dict) else None


def _bare_kind(head: bytes, size: int) -> str | None:
    """The formats without a magic number, whose values must be plausible."""
    from segdream_cli.formats import ksplat, splat

    if ksplat.is_plausible(head, size):
        return "ksplat"
    return "splat" if splat.is_plausible(head, size) else None
