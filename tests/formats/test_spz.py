"""SPZ: bytes by hand, bounds from the rounding, other people's files, hostile files."""

import dataclasses
import gzip
import struct
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from closeness import angles, opacities
from covariances import covariances
from hypothesis import given, settings
from hypothesis import strategies as st

from segdream_cli.errors import EnvironmentProblem, SegdreamError, UsageProblem
from segdream_cli.formats import ply, read, spz
from segdream_cli.formats.common import Reading
from segdream_cli.splats import GROUPS, Splats, find_nonfinite, to_ply_frame
from segdream_cli.splats.frames import from_frame

DATA = Path(__file__).parents[1] / "data"
ANGLE = 0.28
"""Degrees: half of 1/511 of the largest second component in each of three components moves the fourth, the largest
and at least 1/2, by up to three times as much; in all sqrt(12) of it, and twice that as an angle."""


@pytest.fixture
def zstandard() -> ModuleType:
    return pytest.importorskip("zstandard", reason="SPZ version 4 needs it")


def sh_degree(splats: Splats, k: int) -> Splats:
    return dataclasses.replace(splats, shN=splats.shN[:, :k])


def check(back: Splats, splats: Splats, bits: int) -> None:
    """`back` is `splats` within half a step of each of the format's bytes, none missing or moved."""
    np.testing.assert_allclose(back.means, splats.means, rtol=0, atol=2.0 ** -(bits + 1) * 1.0001)
    np.testing.assert_allclose(back.log_scales, splats.log_scales, rtol=0, atol=1 / 32 + 1e-6)
    np.testing.assert_allclose(opacities(back), opacities(splats), rtol=0, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(back.sh0, splats.sh0, rtol=0, atol=0.5 / 255 / 0.15 + 1e-6)
    assert angles(back.quats, splats.quats).max() < ANGLE
    assert back.shN.shape == splats.shN.shape
    if splats.shN.size:  # two roundings: to 1/128, then to 8 or 16 of them
        error = np.abs(back.shN - splats.shN).max(axis=(0, 2))
        assert error[:3].max() <= (0.5 + 4) / 128 + 1e-6
        assert error[3:].max(initial=0) <= (0.5 + 8) / 128 + 1e-6


def payload(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def test_write_lays_out_one_gaussian(tmp_path: Path) -> None:
    """One Gaussian by hand, from the official library's source."""
    one = Splats(
        means=np.array([[0.5, -0.25, 2.0]], np.float32),
        quats=np.array([[0.1, 0.7, -0.1, -0.7]], np.float32),  # unit
        log_scales=np.array([[-3, 1, -99]], np.float32),
        opacity_logits=np.array([np.log(0.6 / 0.4)], np.float32),
        sh0=np.array([[1.0, 9.0, -9.0]], np.float32),
        shN=np.array([[[0.5, 0, -9], [0.26, 9, 0], [0, 0, 1]]], np.float32),
    )
    spz.write(tmp_path / "a.spz", one)
    raw = payload(tmp_path / "a.spz")
    assert raw[:16] == struct.pack("<4sIIBBBB", b"NGSP", 3, 1, 1, 16, 0, 0)
    body = raw[16:]
    fixed = b"".join(round(value * 65536).to_bytes(4, "little", signed=True)[:3] for value in (0.5, -0.25, 2.0))
    assert body[:9] == fixed
    assert body[9] == 153  # 0.6 * 255
    assert tuple(body[10:13]) == (166, 255, 0)  # (0.15 + 0.5) * 255 = 165.75
    assert tuple(body[13:16]) == ((-3 + 10) * 16, (1 + 10) * 16, 0)
    # x, y, z, w: 0.7, -0.1, -0.7, 0.1; the largest, x, is left out; the sign bits of the next two are set
    small, large = (int(value / np.sqrt(0.5) * 511 + 0.5) for value in (0.1, 0.7))
    assert struct.unpack("<I", body[16:20])[0] == (0 << 30) | (1 << 29 | small << 20) | (1 << 19 | large << 10) | small
    # 5 bits: multiples of 8, 0.26 * 128 = 33 rounds to 32
    assert tuple(body[20:]) == (192, 128, 0, 160, 255, 128, 128, 128, 255)


@pytest.mark.parametrize("k", [0, 3, 8, 15])
@pytest.mark.parametrize("bits", [12, 16, 20, None])
@pytest.mark.parametrize("version", [3, 4])
def test_read_is_within_rounding(
    tmp_path: Path, chiral: Splats, version: int, bits: int | None, k: int, request: pytest.FixtureRequest
) -> None:
    if version == 4:
        request.getfixturevalue("zstandard")
    splats = sh_degree(chiral, k)
    spz.write(tmp_path / "a.spz", splats, version=version, fractional_bits=bits)
    back = spz.read(tmp_path / "a.spz")
    check(back, splats, bits or 16)
    np.testing.assert_allclose(np.linalg.norm(back.quats, axis=1), 1, atol=1e-6)
    assert back.provenance == splats.provenance
    for name in GROUPS:
        assert getattr(back, name).dtype == np.float32


def test_read_of_every_rotation_byte(tmp_path: Path, chiral: Splats) -> None:
    """Each component is largest once, with either sign, beside zeros and beside equals."""
    corners = np.array([[w, x, y, z] for w in (-1, 0, 1) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)])
    corners = corners[np.abs(corners).sum(axis=1) > 0]
    quats = (corners / np.linalg.norm(corners, axis=1, keepdims=True)).astype(np.float32)
    n = len(quats)
    parts = {name: getattr(chiral, name)[:n] for name in GROUPS}
    spz.write(tmp_path / "a.spz", Splats(**{**parts, "quats": quats}))
    assert angles(spz.read(tmp_path / "a.spz").quats, quats).max() < ANGLE


def test_write_lays_out_version_4(tmp_path: Path, chiral: Splats, zstandard: ModuleType) -> None:
    """Header, table and frames by hand; the frames hold what version 3 holds."""
    for k, streams in ((0, 5), (8, 6)):
        splats = dataclasses.replace(sh_degree(chiral, k), provenance={})
        spz.write(tmp_path / "3.spz", splats, frame="rdf")
        spz.write(tmp_path / "4.spz", splats, version=4)
        raw = (tmp_path / "4.spz").read_bytes()
        header = struct.unpack("<4sIIBBBBI12x", raw[:32])
        assert header == (b"NGSP", 4, len(splats), (0, 3, 8).index(k), 16, 2, streams, 44)
        assert raw[32:44] == struct.pack("<III", 0xADBE0003, 4, 6)  # SPZ_ADOBE_coordinate_system: RDF
        table = [struct.unpack_from("<QQ", raw, 44 + 16 * i) for i in range(streams)]
        start = 44 + 16 * streams
        unpacked = b""
        for packed, size in table:
            block = zstandard.ZstdDecompressor().decompress(raw[start : start + packed])
            assert len(block) == size
            unpacked += block
            start += packed
        assert start == len(raw)
        assert unpacked == payload(tmp_path / "3.spz")[16:]


def test_write_makes_one_gzip_member(tmp_path: Path, chiral: Splats, monkeypatch: pytest.MonkeyPatch) -> None:
    many = Splats(*(np.tile(getattr(chiral, name).T, 120).T for name in GROUPS))
    spz.write(tmp_path / "a.spz", many)
    stream = zlib.decompressobj(wbits=31)
    raw = stream.decompress((tmp_path / "a.spz").read_bytes())
    assert stream.eof  # the check sum was right
    assert not stream.unused_data
    assert len(raw) == 16 + 48000 * 65 > 2 * spz.DEFLATED_AT_ONCE
    check(spz.read(tmp_path / "a.spz"), many, 16)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    spz.write(tmp_path / "b.spz", many)
    assert (tmp_path / "a.spz").read_bytes() == (tmp_path / "b.spz").read_bytes()


@pytest.mark.parametrize(
    ("reach", "bits"), [(127.9, 16), (128.0, 12), (2047.9, 12), (2048, 8), (30000, 8), (5e5, 4), (8e6, 0)]
)
def test_write_reduces_bits_for_far_centers(tmp_path: Path, three: Splats, reach: float, bits: int) -> None:
    far = dataclasses.replace(three, means=three.means / 0.75 * np.float32(reach))
    spz.write(tmp_path / "a.spz", far)
    assert payload(tmp_path / "a.spz")[13] == bits
    check(spz.read(tmp_path / "a.spz"), far, bits)


@pytest.mark.parametrize("version", [3, 4])
def test_write_hides_provenance_from_other_readers(tmp_path: Path, three: Splats, version: int) -> None:
    """gzip's own comment, or a zstandard frame that decoders skip; the rest of the file is as without it."""
    about = {"prompt": "a bus", "seed": 3}
    for name, provenance in (("bare", {}), ("told", about), ("long", {"prompt": "x" * 40_000})):
        spz.write(tmp_path / name, dataclasses.replace(three, provenance=provenance), version=version)
    bare, told = ((tmp_path / name).read_bytes() for name in ("bare", "told"))
    text = b'segdream {"prompt": "a bus", "seed": 3}'
    if version == 3:
        assert bare[:21] == b"\x1f\x8b\x08\x10\0\0\0\0\0\xff" + b"frame rub\n\0"
        assert told == bare[:20] + text + bare[20:]
        assert gzip.decompress(told) == gzip.decompress(bare)
    else:
        skipped = struct.pack("<II", 0x184D2A50, len(text)) + text
        last = 44 + 16 * 5  # its row of the table: of means, alphas, colours, scales, rotations, harmonics
        size = struct.pack("<Q", struct.unpack_from("<Q", bare, last)[0] + len(skipped))
        assert told == bare[:last] + size + bare[last + 8 :] + skipped
    assert spz.read(tmp_path / "told").provenance == about
    assert (tmp_path / "long").read_bytes() == bare


def test_write_refuses_bad_options(tmp_path: Path, three: Splats) -> None:
    path = tmp_path / "a.spz"
    far = dataclasses.replace(three, means=three.means * 16)
    with pytest.raises(
        UsageProblem, match="12 units from the origin, and SPZ with 20 fractional bits reaches only 8"
    ) as caught:
        spz.write(path, far, fractional_bits=20)
    assert caught.value.hint == "--spz-bits 12"
    with pytest.raises(UsageProblem, match="reaches only 8388608"):
        spz.write(path, dataclasses.replace(three, means=three.means * 2**25))
    with pytest.raises(UsageProblem, match="not 13"):
        spz.write(path, three, fractional_bits=13)
    with pytest.raises(UsageProblem, match="version 3 or 4, not 2"):
        spz.write(path, three, version=2)
    three.means[1, 1] = np.nan
    with pytest.raises(SegdreamError, match="1 of 3 Gaussians"):
        spz.write(path, three)
    with pytest.raises(SegdreamError, match="no Gaussians"):
        spz.write(path, Splats(*(getattr(three, name)[:0] for name in GROUPS)))
    assert not list(tmp_path.iterdir())


def test_write_version_4_without_zstandard(tmp_path: Path, three: Splats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(EnvironmentProblem, match="needs the package zstandard") as caught:
        spz.write(tmp_path / "a.spz", three, version=4)
    assert caught.value.hint == "pip install zstandard"
    assert not list(tmp_path.iterdir())
    with pytest.raises(EnvironmentProblem, match="needs the package zstandard"):
        spz.read(DATA / "official_v4.spz")


@pytest.mark.parametrize("version", [2, 3, 4])
def test_read_files_of_the_official_library(version: int, three: Splats, request: pytest.FixtureRequest) -> None:
    """`@adobe/spz` 0.2.3 wrote them, with its 12 bits, in the PLY frame, which they do not name."""
    if version == 4:
        request.getfixturevalue("zstandard")
    notes: list[str] = []
    read(DATA / f"official_v{version}.spz", Reading(note=notes.append))
    assert [note.endswith("as SPZ specifies; if it is upside down, add --frame rdf") for note in notes] == [True]
    back = read(DATA / f"official_v{version}.spz", Reading(frame="rdf", note=notes.append))
    assert len(notes) == 1
    np.testing.assert_array_equal(back.means, three.means)
    np.testing.assert_array_equal(back.log_scales, three.log_scales)
    np.testing.assert_array_equal(back.shN, three.shN)
    np.testing.assert_allclose(back.sh0, three.sh0, atol=0.5 / 255 / 0.15 + 1e-6)
    np.testing.assert_allclose(opacities(back), opacities(three), atol=0.5 / 255 + 1e-6)
    assert angles(back.quats, three.quats).max() < (ANGLE if version > 2 else 1.6)


def legacy(
    version: int, n: int, degree: int, *blocks: bytes, flags: int = 0, bits: int = 12, extra: bytes = b""
) -> bytes:
    return gzip.compress(
        struct.pack("<4sIIBBBB", b"NGSP", version, n, degree, bits, flags, 0) + b"".join(blocks) + extra
    )


MEANS = bytes([0, 0x10, 0, 0, 0xF0, 0xFF, 0, 0, 0x80])
"""1, -1 and -2048 with 12 bits."""
REST = bytes([255, 0, 128, 255, 0, 160, 255])
"""Opacity, colour, scale."""


def test_read_version_2_and_extreme_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.spz").write_bytes(legacy(2, 1, 0, MEANS, REST, bytes([255, 128, 0])))
    back = spz.read(tmp_path / "a.spz")
    np.testing.assert_array_equal(back.means, [[1, -1, -2048]])
    np.testing.assert_array_equal(back.opacity_logits, [15])
    np.testing.assert_array_equal(back.log_scales, [[-10, 0, 5.9375]])
    np.testing.assert_allclose(back.sh0, [[-0.5 / 0.15, 0.5 / 255 / 0.15, 0.5 / 0.15]], rtol=1e-5)
    np.testing.assert_allclose(back.quats, [[0, 0.5**0.5, 0, -(0.5**0.5)]], atol=0.004)  # too long for w
    assert back.shN.shape == (1, 0, 3)


def test_read_version_1(tmp_path: Path) -> None:
    """Half floats, and rotations as in version 2; one row is not finite."""
    halves = np.array([[1.5, -0.25, 1000], [np.inf, 0, 0], [0, np.nan, 0]], "<f2").tobytes()
    rest = b"".join(bytes([value]) * 3 for value in REST)
    (tmp_path / "a.spz").write_bytes(legacy(1, 3, 0, halves, rest, bytes([255, 128, 0]) * 3))
    said: list[str] = []
    back = spz.read(tmp_path / "a.spz", Reading(note=said.append))
    np.testing.assert_array_equal(back.means, [[1.5, -0.25, 1000]])
    np.testing.assert_allclose(back.quats, [[0, 0.5**0.5, 0, -(0.5**0.5)]], atol=0.004)
    assert "2 of 3 rows" in said[-1]


@pytest.mark.parametrize("version", [2, 3])
def test_read_without_gzip(tmp_path: Path, version: int, three: Splats) -> None:
    packed = DATA / f"official_v{version}.spz"
    (tmp_path / "a.spz").write_bytes(payload(packed))
    expected, back = spz.read(packed), spz.read(tmp_path / "a.spz")
    for name in GROUPS:
        np.testing.assert_array_equal(getattr(back, name), getattr(expected, name))
    assert len(back) == len(three)


def test_read_drops_degree_4(tmp_path: Path) -> None:
    values = np.arange(72, dtype=np.uint8)
    (tmp_path / "a.spz").write_bytes(legacy(3, 1, 4, MEANS, REST, bytes(4), values.tobytes()))
    said: list[str] = []
    back = spz.read(tmp_path / "a.spz", Reading(note=said.append))
    assert "degree 4 are cut to degree 3" in said[0]
    np.testing.assert_array_equal(back.shN[0], values[:45].reshape(15, 3) / 128 - 1)


def extension(kind: int, *values: int) -> bytes:
    return struct.pack(f"<II{len(values)}I", kind, 4 * len(values), *values)


@pytest.mark.parametrize(
    ("flags", "extra", "turned"),
    [
        (2, extension(0xADBE0003, 6), True),
        (2, extension(0xADBE0003, 4), False),
        (2, extension(7, 4, 4) + extension(0xADBE0003, 4), False),
        (2, extension(0xADBE0003, 0), False),  # unspecified
        (2, extension(0xADBE0003, 17), False),  # unknown
        (0, extension(0xADBE0003, 6), False),  # not announced
        (2, bytes(1 << 15) + extension(0xADBE0003, 6), True),  # four thousand without content
        (2, extension(7, 1)[:-2], False),
        (2, extension(0xADBE0003)[:-1], False),
    ],
)
def test_read_follows_the_frame_extension(tmp_path: Path, flags: int, extra: bytes, turned: bool) -> None:
    (tmp_path / "a.spz").write_bytes(legacy(3, 1, 0, MEANS, REST, bytes(4), flags=flags, extra=extra))
    np.testing.assert_array_equal(spz.read(tmp_path / "a.spz").means, [[1, 1, 2048] if turned else [1, -1, -2048]])


def test_read_knows_files_of_segdream_0_1(tmp_path: Path, three: Splats, zstandard: ModuleType) -> None:
    """Their provenance tells them from files of other tools: they are in the PLY frame, and do not say so."""
    about = {"prompt": "a bus"}
    text = b'segdream {"prompt": "a bus"}'
    spz.write(tmp_path / "3.spz", three, frame="rdf")
    whole = (tmp_path / "3.spz").read_bytes()
    (tmp_path / "3.spz").write_bytes(whole[:10] + text + whole[20:])
    spz.write(tmp_path / "4.spz", three, version=4)
    whole = (tmp_path / "4.spz").read_bytes()
    record = struct.pack("<II", 0x5E6D0001, len(text)) + text
    toc = struct.pack("<I", 32 + len(record))
    (tmp_path / "4.spz").write_bytes(whole[:16] + toc + whole[20:32] + record + whole[44:])
    for name in ("3.spz", "4.spz"):
        notes: list[str] = []
        back = spz.read(tmp_path / name, Reading(note=notes.append))
        assert not notes
        check(back, three, 16)
        assert back.provenance == about


def test_write_refuses_frames_without_a_number(tmp_path: Path, three: Splats) -> None:
    with pytest.raises(UsageProblem, match="SPZ can't name the frame fru; it knows ldb, rdb"):
        spz.write(tmp_path / "a.spz", three, frame="fru")


BODY = MEANS + REST + bytes(4)
DAMAGE = {
    "empty": (b"", "is empty"),
    "another format": (b"ply\n", "is not an SPZ file"),
    "gzip of something": (gzip.compress(bytes(99)), "is not an SPZ file"),
    "gzip of little": (gzip.compress(b"NGSP"), "truncated in its header"),
    "version 0": (legacy(0, 1, 0, BODY), "version 0; segdream reads versions 1 to 4"),
    "version 3 without gzip, cut off": (gzip.decompress(legacy(3, 1, 0, BODY))[:-1], "is truncated"),
    "version 5": (legacy(5, 1, 0, BODY), "version 5"),
    "version 4 in gzip": (legacy(4, 1, 0, BODY), "table of contents"),
    "no Gaussians": (legacy(3, 0, 0), "zero Gaussians"),
    "degree 5": (legacy(3, 1, 5, BODY), "claims SH degree 5"),
    "25 bits": (legacy(3, 1, 0, BODY, bits=25), "claims .* 25 fractional bits"),
    "payload cut off": (legacy(3, 1, 0, BODY[:-1]), "is truncated"),
    "two claimed": (legacy(3, 2, 0, BODY), "is truncated"),
    "file cut off": (legacy(3, 1, 0, BODY)[:-9], "is truncated"),
    "check sum cut off": (legacy(3, 1, 0, BODY)[:-4], "is truncated"),
    "check sum wrong": (legacy(3, 1, 0, BODY)[:-8] + bytes(8), "is damaged: Error -3"),
    "not gzip behind its magic": (b"\x1f\x8b" + bytes(50), "is damaged: Error -3"),
    "a billion": (legacy(3, 10**9, 0, BODY), "claims 1000000000 Gaussians, .* .* but has only"),
    "more than claimed": (legacy(3, 1, 0, BODY, extra=bytes(1 << 17)), "holds more than its header claims"),
    "version 4 cut off": (struct.pack("<4sIIBBBB", b"NGSP", 4, 1, 0, 12, 0, 5), "damaged"),
    "version 4, a billion": (struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 10**9, 0, 12, 0, 5, 32), "but has only"),
}


@pytest.mark.parametrize(("content", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
def test_read_refuses_damaged_files(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.spz"
    path.write_bytes(content)
    with pytest.raises(UsageProblem, match=reason) as caught:
        spz.read(path)
    assert str(path) in caught.value.message


def test_read_refuses_damaged_version_4(tmp_path: Path, zstandard: ModuleType) -> None:
    whole = (DATA / "official_v4.spz").read_bytes()
    path = tmp_path / "a.spz"

    def refused(content: bytes, reason: str) -> None:
        path.write_bytes(content)
        with pytest.raises(UsageProblem, match=reason):
            spz.read(path)

    for table in (31, len(whole), 2**32 - 1):
        refused(whole[:16] + struct.pack("<I", table) + whole[20:], "table of contents")
    refused(whole[:15] + b"\5" + whole[16:], "table of contents")
    refused(whole[:32] + struct.pack("<Q", 2**63) + whole[40:], "truncated in its means")
    refused(whole[:40] + struct.pack("<Q", 28) + whole[48:], "means do not take 27 bytes")
    refused(whole[:-1], "truncated in its harmonics")
    start = 32 + 16 * 6
    refused(whole[:start] + bytes(4) + whole[start + 4 :], "damaged in its means|means do not take 27")
    packed = struct.unpack_from("<Q", whole, 32)[0]
    for frame, reason in (
        (zstandard.ZstdCompressor().compress(bytes(1 << 30)), "means do not take 27 bytes"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20)), "damaged in its means"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(26)), "truncated in its means"),
    ):
        refused(whole[:32] + struct.pack("<Q", len(frame)) + whole[40:start] + frame + whole[start + packed :], reason)


def test_read_bounds_memory_of_bombs(tmp_path: Path) -> None:
    """Half a megabyte that inflates to 128, and claims what it inflates to, or less, is left deflated."""
    size = 1 << 27
    honest, modest = (
        gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", 3, count, 0, 12, 0, 0) + bytes(size), 1)
        for count in (size // 20, 1)
    )
    tracemalloc.start()
    for content, reason in ((honest, "but has only"), (modest, "holds more than its header claims")):
        assert len(content) < 2e6
        (tmp_path / "a.spz").write_bytes(content)
        tracemalloc.reset_peak()
        with pytest.raises(UsageProblem, match=reason):
            spz.read(tmp_path / "a.spz")
        assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()


EDITS = st.tuples(
    st.sampled_from(["set", "cut", "insert", "truncate", "number"]),
    st.floats(0, 1),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1]),
)


def edited(content: bytes, edits: list[tuple[str, float, int, int]], head: int) -> bytes:
    """`content` after a few changes, half of them within its first `head` bytes."""
    changed = bytearray(content)
    for kind, where, value, number in edits:
        reach = head if value % 2 else len(changed)
        at = min(int(where * reach), max(len(changed) - 1, 0))
        match kind:
            case "set" if changed:
                changed[at] = value
            case "cut":
                del changed[at : at + 1 + value % 20]
            case "insert":
                changed[at:at] = bytes([value]) * (1 + value % 5)
            case "truncate":
                del changed[at:]
            case _:
                changed[at : at + 4] = struct.pack("<I", number)
    return bytes(changed)


def mutated(source: str, edits: list[tuple[str, float, int, int]]) -> bytes:
    """An edited file; of version 2 and 3 either the file or what it inflates to."""
    content = (DATA / f"official_{source[:2]}.spz").read_bytes()
    if source.endswith("inside"):
        return gzip.compress(edited(gzip.decompress(content), edits, 16), 1)
    return edited(content, edits, 64)


def read_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with suppress(UsageProblem):
        found = spz.read(path)
        assert len(found) > 0
        assert not len(find_nonfinite(found))
        assert not len(found) or np.abs(np.linalg.norm(found.quats, axis=1) - 1).max() < 1e-5


@pytest.mark.slow
@settings(max_examples=400)
@given(source=st.sampled_from(["v2 inside", "v2", "v3 inside", "v3"]), edits=st.lists(EDITS, min_size=1, max_size=4))
def test_read_of_mutated_files(
    tmp_path_factory: pytest.TempPathFactory, source: str, edits: list[tuple[str, float, int, int]]
) -> None:
    read_or_refused(tmp_path_factory.getbasetemp() / "mutated.spz", mutated(source, edits))


@pytest.mark.slow
@settings(max_examples=250)
@given(edits=st.lists(EDITS, min_size=1, max_size=4))
def test_read_of_mutated_version_4_files(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[str, float, int, int]]
) -> None:
    pytest.importorskip("zstandard", reason="SPZ version 4 needs it")
    read_or_refused(tmp_path_factory.getbasetemp() / "mutated.spz", mutated("v4", edits))


class Official:
    """The official library, `@adobe/spz`, with assets in the caller's frame."""

    def __init__(self, node_modules: Path, folder: Path) -> None:
        self._library = node_modules / "@adobe" / "spz" / "dist" / "spz.js"
        if not self._library.exists():
            pytest.skip(f"{self._library} is missing: npm install @adobe/spz")
        self._node = node_modules / ".bin" / "node"
        self._arrays = folder / "arrays.bin"

    def _run(self, *arguments: object) -> None:
        command = [self._node, Path(__file__).with_name("adobe_spz.mjs"), self._library, *arguments]
        done = subprocess.run([str(each) for each in command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "WARNING" not in done.stdout + done.stderr

    def load(self, path: Path, frame: str, n: int, k: int) -> Splats:
        self._run("load", path, self._arrays, frame)
        flat = np.fromfile(self._arrays, "<f4")
        ends = np.cumsum([3 * n, 4 * n, 3 * n, n, 3 * n])
        means, quats, log_scales, logits, sh0, shN = np.split(flat, ends)
        return Splats(
            means.reshape(n, 3),
            quats.reshape(n, 4)[:, [3, 0, 1, 2]],
            log_scales.reshape(n, 3),
            logits,
            sh0.reshape(n, 3),
            shN.reshape(n, k, 3),
        )

    def save(self, path: Path, splats: Splats, frame: str, version: int) -> None:
        parts = (splats.means, splats.quats[:, [1, 2, 3, 0]], splats.log_scales)
        parts += (splats.opacity_logits, splats.sh0, splats.shN)
        self._arrays.write_bytes(b"".join(part.astype("<f4").tobytes() for part in parts))
        degree = (0, 3, 8, 15).index(splats.shN.shape[1])
        self._run("save", self._arrays, path, frame, len(splats), degree, version)


@pytest.fixture
def official(node_modules: Path, tmp_path: Path) -> Official:
    return Official(node_modules, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("version", "bits"), [(3, 12), (3, 16), (3, 20), (4, 16)])
@pytest.mark.parametrize("k", [0, 3, 15])
def test_official_library_reads_ours(
    tmp_path: Path, chiral: Splats, official: Official, version: int, bits: int, k: int, request: pytest.FixtureRequest
) -> None:
    """Its conversions from the frame of the file are ours, with spherical harmonics, and it warns of nothing."""
    if version == 4:
        request.getfixturevalue("zstandard")
    splats = sh_degree(chiral, k)
    spz.write(tmp_path / "a.spz", splats, version=version, fractional_bits=bits)
    check(official.load(tmp_path / "a.spz", "RUB", len(splats), k), splats, bits)
    check(official.load(tmp_path / "a.spz", "RDF", len(splats), k), to_ply_frame(splats), bits)


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_official_library_reads_old_versions_the_same(
    tmp_path: Path, chiral: Splats, official: Official, version: int
) -> None:
    n, rng, turned = len(chiral), np.random.default_rng(3), to_ply_frame(chiral)
    fixed = np.rint(turned.means * 4096).astype("<i4").view("u1").reshape(-1, 4)[:, :3]
    means = turned.means.astype("<f2").tobytes() if version == 1 else fixed.tobytes()
    (tmp_path / "a.spz").write_bytes(legacy(version, n, 0, means, rng.integers(0, 256, 10 * n).astype("u1").tobytes()))
    ours, theirs = spz.read(tmp_path / "a.spz"), official.load(tmp_path / "a.spz", "UNSPECIFIED", n, 0)
    for name in ("means", "log_scales", "sh0"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-6, err_msg=name)
    np.testing.assert_allclose(opacities(ours), opacities(theirs), atol=1e-6)
    unit = theirs.quats / np.linalg.norm(theirs.quats, axis=1, keepdims=True)  # random bytes are no unit quaternions
    np.testing.assert_allclose(ours.quats, unit, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("version", [3, 4])
def test_read_files_that_the_official_library_writes(
    tmp_path: Path, chiral: Splats, official: Official, version: int, request: pytest.FixtureRequest
) -> None:
    if version == 4:
        request.getfixturevalue("zstandard")
    path = tmp_path / "a.spz"
    official.save(path, to_ply_frame(chiral), "RDF", version)
    check(spz.read(path), chiral, 12)
    official.save(path, to_ply_frame(chiral), "UNSPECIFIED", version)  # as its ply_to_spz does
    check(read(path, Reading(frame="rdf")), chiral, 12)


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["rub", "rdf", "luf", "ruf", "rfu", "lbd"])
def test_frame_record_agrees_with_the_official_library(
    tmp_path: Path, chiral: Splats, official: Official, stored: str, zstandard: ModuleType
) -> None:
    """In version 4 only: for older ones, release 0.2.3 can't tell the length of what follows, and gives up."""
    path = tmp_path / "a.spz"
    spz.write(path, chiral, version=4, frame=stored)
    for back in (spz.read(path), official.load(path, "RUB", len(chiral), 15)):
        np.testing.assert_allclose(back.means, chiral.means, atol=2**-16)
        sizes = np.exp(2 * chiral.log_scales.max(axis=1))[:, None, None]
        assert (
            np.abs((covariances(back) - covariances(chiral)) / sizes).max() < 2 / 32 + 0.02
        )  # of scales, of rotations
        np.testing.assert_allclose(back.shN, chiral.shN, atol=2 * 8.5 / 128)  # rounded in the other frame


@pytest.mark.slow
def test_write_bytes_equal_the_official_librarys(tmp_path: Path, chiral: Splats, official: Official) -> None:
    official.save(tmp_path / "theirs.spz", chiral, "RUB", 3)
    spz.write(tmp_path / "ours.spz", chiral, fractional_bits=12)
    theirs, ours = (np.frombuffer(payload(tmp_path / f"{who}.spz"), np.uint8) for who in ("theirs", "ours"))
    n = len(chiral)
    np.testing.assert_array_equal(ours[:16], theirs[:16])
    np.testing.assert_array_equal(ours[16 + 9 * n : 16 + 16 * n], theirs[16 + 9 * n : 16 + 16 * n])
    np.testing.assert_array_equal(ours[16 + 20 * n :], theirs[16 + 20 * n :])
    assert (ours != theirs).mean() < 1e-3  # ties of a rounding


@pytest.mark.slow
@pytest.mark.parametrize(("version", "bits"), [(3, 12), (3, 16), (3, 20), (4, 16)])
def test_splat_transform_reads_ours(
    tmp_path: Path,
    chiral: Splats,
    splat_transform: Callable[..., None],
    version: int,
    bits: int,
    request: pytest.FixtureRequest,
) -> None:
    """Release 3.7.0 takes every file as it comes; 2.7.1 and the official library take version 3 as we write it."""
    if version == 4:
        request.getfixturevalue("zstandard")
    spz.write(tmp_path / "a.spz", chiral, version=version, fractional_bits=bits)
    splat_transform(tmp_path / "a.spz", tmp_path / "a.ply")
    check(read(tmp_path / "a.ply", Reading(frame="rub" if version == 3 else "rdf")), chiral, bits)


@pytest.mark.slow
def test_read_files_that_splat_transform_writes(
    tmp_path: Path, chiral: Splats, splat_transform: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    ply.write(tmp_path / "a.ply", chiral)
    splat_transform(tmp_path / "a.ply", tmp_path / "a.spz")
    if (tmp_path / "a.spz").read_bytes()[:4] == b"NGSP":
        request.getfixturevalue("zstandard")
    check(read(tmp_path / "a.spz", Reading(frame="rdf")), chiral, 12)  # which the file does not say


@pytest.mark.slow
@pytest.mark.parametrize("version", [3, 4])
def test_gsply_reads_ours(tmp_path: Path, chiral: Splats, version: int, request: pytest.FixtureRequest) -> None:
    gsply = pytest.importorskip("gsply", reason="pip install gsply")
    if version == 4:
        request.getfixturevalue("zstandard")
    spz.write(tmp_path / "a.spz", chiral, version=version)
    data = gsply.read_spz(str(tmp_path / "a.spz"))
    found = Splats(data.means, data.quats, data.scales, data.opacities, data.sh0, data.shN)
    check(from_frame(found, "rub" if version == 3 else "rdf"), chiral, 16)


@pytest.mark.parametrize("k", [0, 15])
@pytest.mark.parametrize("steps", [None, 1000])
def test_version_4_is_no_larger_than_version_3(
    tmp_path: Path, chiral: Splats, zstandard: ModuleType, k: int, steps: int | None
) -> None:
    """But for its table of contents, and a thousandth for the lengths of codes that zstandard limits to 11 bits.

    Centres that another format has rounded and sorted repeat in pieces of a few bytes.
    """
    rng = np.random.default_rng(3)
    rows = np.concatenate([np.arange(len(chiral))] * 25)
    many = sh_degree(chiral, k).select(rows)
    noise = {name: rng.normal(0, 0.05, values.shape).astype("f4") for name, values in many.arrays().items()}
    many = dataclasses.replace(many, **{name: values + noise[name] for name, values in many.arrays().items()})
    if steps is not None:
        many = dataclasses.replace(many, means=np.rint(many.means * steps) / np.float32(steps))
        many = many.select(np.lexsort(many.means.T))
    for version in (3, 4):
        spz.write(tmp_path / f"{version}.spz", many, version=version)
    older, newer = ((tmp_path / f"{version}.spz").stat().st_size for version in (3, 4))
    assert newer <= older * 1.001 + 128
