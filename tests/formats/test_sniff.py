"""Files are read by their bytes, whatever their names and through gzip."""

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from segdream_cli import formats
from segdream_cli.errors import UsageProblem
from segdream_cli.formats import FORMATS
from segdream_cli.splats import GROUPS, Splats

READABLE = [name for name, row in FORMATS.items() if row.readable]


def assert_equal(found: Splats, expected: Splats) -> None:
    for name in GROUPS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("suffix", ["", ".PLY", ".spz", ".zip"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "usdz" else name for name in READABLE]
)
def test_read_ignores_the_name(tmp_path: Path, chiral: Splats, name: str, suffix: str) -> None:
    path = tmp_path / f"a{FORMATS[name].suffix}"
    formats.write(path, chiral, name)
    expected = formats.read(path)
    other = path.rename(tmp_path / f"other{suffix}")
    assert_equal(formats.read(other), expected)
    if not suffix:
        packed = tmp_path / "packed.ply"
        packed.write_bytes(gzip.compress(other.read_bytes(), 1))
        assert_equal(formats.read(packed), expected)


def packed(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        for name, content in members:
            target.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (packed(("a.txt", b"text"), ("b/c.txt", b"")), "is a zip without an asset; it holds 'a.txt', 'b/c.txt'"),
        (packed(("a.txt", b"text"), ("b/c.PLY", b"")), "is a zip of assets, which segdream reads one by one; it holds"),
        (packed(("a.txt", b"text"))[:-30], "is a damaged zip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "is a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page, not an asset"),
        (gzip.compress(b"text" * 100), "is no asset that segdream reads"),
        (gzip.compress(b"ply\n" + bytes(500))[:-20], "is truncated"),
        (gzip.compress(b"ply\n" + bytes(500))[:-8] + bytes(8), "is damaged: Error -3"),
        (gzip.compress(b"ply\n" + bytes(70 << 20), 9), "unpacks to more than 64 times its size"),
        (b'{"version": 1}', "is no asset"),
        (b'{"means": ', "is no asset"),
        (b"{" * 100_000, "is no asset"),
        (b"\x00\x01" + bytes(8000), "is no asset"),
    ],
    ids=range(13),
)
def test_read_refuses_other_content(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(UsageProblem, match=reason) as caught:
        formats.read(path)
    assert "\n" not in caught.value.message


def test_kind_of_unknown_bytes_is_that_of_the_suffix(tmp_path: Path) -> None:
    """So that the error names the damage."""
    for name, reason in (("a.ply", "is not a PLY file"), ("a.spz", "is not an SPZ file"), ("a.glb", "is not a .glb")):
        (tmp_path / name).write_bytes(b"something else")
        with pytest.raises(UsageProblem, match=reason):
            formats.read(tmp_path / name)
