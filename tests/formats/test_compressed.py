"""Compressed PLY: bytes by hand, a scalar decoder on plyfile, other people's files, hostile files."""

import dataclasses
import math
import re
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from closeness import angles, opacities
from hypothesis import given, settings
from hypothesis import strategies as st
from plyfile import PlyData

from segdream_cli.errors import SegdreamError, UsageProblem
from segdream_cli.formats import compressed, ply
from segdream_cli.formats.ordering import along_z_curve
from segdream_cli.splats import GROUPS, Splats, find_nonfinite, from_ply_frame, to_ply_frame

DATA = Path(__file__).parents[1] / "data"
GOLDEN = DATA / "splat_transform.compressed.ply"
ANGLE = 0.28
"""Degrees: half of sqrt(2)/1023 in each of three components moves the fourth, the largest and at least 1/2, by up to
three times as much; in all sqrt(12) of it, and twice that as an angle."""
C0 = 0.28209479177387814


def picked(splats: Splats, rows: np.ndarray | slice, k: int = 15) -> Splats:
    parts = {name: getattr(splats, name)[rows] for name in GROUPS}
    return Splats(**{**parts, "shN": parts["shN"][:, :k]}, provenance=splats.provenance)


def in_file_order(splats: Splats) -> Splats:
    return picked(splats, along_z_curve(to_ply_frame(splats).means), splats.shN.shape[1])


def chunk_extents(path: Path, what: tuple[str, ...], n: int) -> np.ndarray:
    """Extents [n, 3] of the chunk of each Gaussian."""
    chunks = PlyData.read(str(path))["chunk"]
    extents = [chunks[f"max_{each}"].astype(float) - chunks[f"min_{each}"].astype(float) for each in what]
    return np.repeat(np.stack(extents, axis=1), 256, axis=0)[:n]


def check(back: Splats, splats: Splats, path: Path) -> None:
    """`back` is `splats` within half a step of each of the format's bits, by the chunks' bounds in `path`."""
    n = len(splats)
    steps = np.array([2047, 1023, 2047]) * 2
    means, scales, colours = (
        chunk_extents(path, what, n) for what in ("xyz", ("scale_x", "scale_y", "scale_z"), "rgb")
    )
    assert (np.abs(back.means - splats.means) <= means / steps * 1.001 + 1e-6).all()
    assert (np.abs(back.log_scales - splats.log_scales) <= scales / steps * 1.001 + 1e-5).all()
    assert (np.abs(back.sh0 - splats.sh0) * C0 <= colours / 510 * 1.001 + 1e-5).all()
    np.testing.assert_allclose(opacities(back), opacities(splats), rtol=0, atol=0.5 / 255 + 1e-6)
    assert angles(back.quats, splats.quats).max() < ANGLE
    assert back.shN.shape == splats.shN.shape
    np.testing.assert_allclose(back.shN, splats.shN, rtol=0, atol=1 / 64 + 1e-6)


def decoded(path: Path, i: int) -> dict[str, list[float]]:
    """The i-th Gaussian by PlayCanvas's text, in integers and doubles, through plyfile."""
    data = PlyData.read(str(path))
    chunk, vertex = data["chunk"][i // 256], data["vertex"][i]

    def within(name: str, packed: int, shift: int, bits: int) -> float:
        unit = ((packed >> shift) & (2**bits - 1)) / (2**bits - 1)
        return float(chunk[f"min_{name}"]) * (1 - unit) + float(chunk[f"max_{name}"]) * unit

    position, rotation, scale, colour = (
        int(vertex[f"packed_{name}"]) for name in ("position", "rotation", "scale", "color")
    )
    others = [(((rotation >> shift) & 1023) / 1023 - 0.5) * math.sqrt(2) for shift in (20, 10, 0)]
    largest = math.sqrt(max(0, 1 - sum(other**2 for other in others)))
    quats = [*others[: rotation >> 30], largest, *others[rotation >> 30 :]]
    sh = [data["sh"][i][f"f_rest_{j}"] for j in range(len(data["sh"].properties))] if "sh" in data else []
    alpha = (colour & 255) / 255
    return {
        "means": [
            within(name, position, shift, bits) for name, shift, bits in (("x", 21, 11), ("y", 11, 10), ("z", 0, 11))
        ],
        "quats": quats,
        "log_scales": [
            within(f"scale_{name}", scale, shift, bits)
            for name, shift, bits in (("x", 21, 11), ("y", 11, 10), ("z", 0, 11))
        ],
        "opacity_logits": [-math.log(1 / alpha - 1) if 0 < alpha < 1 else math.copysign(15, alpha - 0.5)],
        "sh0": [(within(name, colour, shift, 8) - 0.5) / C0 for name, shift in (("r", 24), ("g", 16), ("b", 8))],
        "shN": [((0 if byte == 0 else 1 if byte == 255 else (byte + 0.5) / 256) - 0.5) * 8 for byte in map(int, sh)],
    }


def test_write_lays_out_two_gaussians(tmp_path: Path) -> None:
    """The ends of a chunk by hand; where both agree there is no extent, and the bits are zero."""
    two = Splats(
        means=np.array([[1, -2, 3], [0, -1, 3]], np.float32),
        quats=np.array([[-0.5, 0.5, -0.5, 0.5], [0, 0.6, 0, -0.8]], np.float32),
        log_scales=np.array([[-3, -4, -5], [-3, -4.5, -30]], np.float32),
        opacity_logits=np.array([99, np.log(0.6 / 0.4)], np.float32),
        sh0=np.array([[0.5 / C0, 0, 0], [0, -0.5 / C0, 0]], np.float32),
        shN=np.array([[[0.5, 0, -9], [0.26, 9, 0], [0, 0, 1]], np.zeros((3, 3))], np.float32),
    )
    compressed.write(tmp_path / "a.compressed.ply", two)
    header, _, body = (tmp_path / "a.compressed.ply").read_bytes().partition(b"end_header\n")
    assert header.decode("ascii").splitlines() == [
        "ply",
        "format binary_little_endian 1.0",
        "element chunk 1",
        *(f"property float {end}_{axis}" for end in ("min", "max") for axis in "xyz"),
        *(f"property float {end}_scale_{axis}" for end in ("min", "max") for axis in "xyz"),
        *(f"property float {end}_{channel}" for end in ("min", "max") for channel in "rgb"),
        "element vertex 2",
        *(f"property uint packed_{name}" for name in ("position", "rotation", "scale", "color")),
        "element sh 2",
        *(f"property uchar f_rest_{i}" for i in range(9)),
    ]
    # y and z turned; the second, at x = 0 and y = 1, comes first on the curve
    bounds = struct.unpack("<18f", body[:72])
    assert bounds == pytest.approx((0, 1, -3, 1, 2, -3, -3, -4.5, -20, -3, -4, -5, 0.5, 0, 0.5, 1, 0.5, 0.5), abs=1e-6)
    words = struct.unpack("<8I", body[72:104])
    assert words[0] == 0
    assert words[4] == (2047 << 21) | (1023 << 11)
    # w, x, y, z turned: 0, 0.6, 0, 0.8 and -0.5, 0.5, 0.5, -0.5; the largest, z and w, is left out, and positive
    assert words[1] == (3 << 30) | (512 << 20) | (round((0.6 / math.sqrt(2) + 0.5) * 1023) << 10) | 512
    high, low = round((0.5 / math.sqrt(2) + 0.5) * 1023), round((-0.5 / math.sqrt(2) + 0.5) * 1023)
    assert words[5] == (0 << 30) | (low << 20) | (low << 10) | high
    assert words[2] == 0
    assert words[6] == (1023 << 11) | 2047
    assert words[3] == 153  # 0.6 * 255
    assert words[7] == (255 << 24) | (255 << 16) | 255
    assert tuple(body[104:113]) == (128,) * 9
    # channel-major; m = -1, 0, 1 with the signs -, -, +; 128 + 32 v
    assert tuple(body[113:]) == (112, 119, 128, 128, 0, 128, 255, 128, 160)


@pytest.mark.parametrize("k", [0, 3, 8, 15])
def test_read_is_within_rounding(tmp_path: Path, chiral: Splats, k: int) -> None:
    path = tmp_path / "a.compressed.ply"
    splats = picked(chiral, slice(None), k)
    compressed.write(path, splats)
    back = compressed.read(path)
    check(back, in_file_order(splats), path)
    assert back.provenance == splats.provenance
    np.testing.assert_allclose(np.linalg.norm(back.quats, axis=1), 1, atol=1e-6)
    for name in GROUPS:
        assert getattr(back, name).dtype == np.float32


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 400])
def test_read_matches_a_scalar_decoder(tmp_path: Path, chiral: Splats, count: int) -> None:
    path = tmp_path / "a.compressed.ply"
    compressed.write(path, picked(chiral, slice(count)))
    back = to_ply_frame(compressed.read(path))
    assert len(back) == count
    for i in {0, count // 2, count - 1}:
        for name, values in decoded(path, i).items():
            found = getattr(back, name)[i]
            found = found.T.reshape(-1) if name == "shN" else np.atleast_1d(found)
            np.testing.assert_allclose(found, values, rtol=1e-4, atol=2e-5, err_msg=name)


def test_rotations_round_trip(tmp_path: Path, chiral: Splats) -> None:
    """Each component is largest once, with either sign, beside zeros and beside equals."""
    corners = np.array([[w, x, y, z] for w in (-1, 0, 1) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)])
    corners = corners[np.abs(corners).sum(axis=1) > 0]
    quats = (corners / np.linalg.norm(corners, axis=1, keepdims=True)).astype(np.float32)
    splats = dataclasses.replace(picked(chiral, slice(len(quats))), quats=quats)
    compressed.write(tmp_path / "a.compressed.ply", splats)
    assert angles(compressed.read(tmp_path / "a.compressed.ply").quats, in_file_order(splats).quats).max() < ANGLE


def test_along_z_curve_is_morton_order() -> None:
    grid = np.array([[x, y, z] for x in range(8) for y in range(8) for z in range(8)], np.float32)
    means = grid[np.random.default_rng(0).permutation(len(grid))]

    def code(mean: np.ndarray) -> int:
        return sum(((int(mean[axis]) >> bit) & 1) << (3 * bit + axis) for axis in range(3) for bit in range(3))

    ordered = means[along_z_curve(means)]
    assert [code(mean) for mean in ordered] == list(range(512))
    np.testing.assert_array_equal(along_z_curve(np.ones((5, 3), np.float32)), range(5))


def test_write_keeps_far_values(tmp_path: Path, three: Splats) -> None:
    """No difference of two floats overflows, in either direction."""
    path = tmp_path / "a.compressed.ply"
    far = dataclasses.replace(three, means=three.means * np.float32(3e38), sh0=three.sh0 * np.float32(1e38))
    compressed.write(path, far)
    check(compressed.read(path), in_file_order(far), path)


def test_read_splat_transform_file(three: Splats) -> None:
    """Release 3.7.0 wrote it from the PLY of `three`."""
    back = compressed.read(GOLDEN)
    order = [int(np.abs(three.means - mean).sum(axis=1).argmin()) for mean in back.means]
    assert sorted(order) == [0, 1, 2]
    check(back, picked(three, np.array(order), 3), GOLDEN)


def test_write_matches_splat_transform(tmp_path: Path, three: Splats) -> None:
    """Bounds to the last bit of a float, words but for a tie's last bit, all spherical harmonics."""
    compressed.write(tmp_path / "a.compressed.ply", compressed.read(GOLDEN))
    ours, theirs = PlyData.read(str(tmp_path / "a.compressed.ply")), PlyData.read(str(GOLDEN))
    for name in theirs["chunk"].data.dtype.names:
        np.testing.assert_allclose(ours["chunk"][name], theirs["chunk"][name], rtol=1e-6, atol=1e-7)
    orders = [along_z_curve(np.stack([data["vertex"]["packed_position"]] * 3, axis=1)) for data in (ours, theirs)]
    for name in theirs["vertex"].data.dtype.names:
        words = [
            data["vertex"][name][order].astype(np.int64) for data, order in zip((ours, theirs), orders, strict=True)
        ]
        assert np.abs(words[0] - words[1]).max() <= 1
    for name in theirs["sh"].data.dtype.names:
        np.testing.assert_array_equal(ours["sh"][name][orders[0]], theirs["sh"][name][orders[1]])


def make(
    *,
    counts: tuple[int, ...] = (1, 1),
    chunk: str = "min_x min_y min_z max_x max_y max_z "
    + " ".join(f"{e}_scale_{a}" for e in ("min", "max") for a in "xyz"),
    vertex: str = "packed_position packed_rotation packed_scale packed_color",
    sh: str = "",
    kinds: tuple[str, ...] = ("float", "uint", "uchar"),
    body: bytes | None = None,
) -> bytes:
    """A compressed PLY of one Gaussian without bounds of colour, as early files are."""
    lines = ["ply", "format binary_little_endian 1.0", "comment by hand"]
    columns = (chunk, vertex, sh) if sh else (chunk, vertex)
    for name, count, kind, names in zip(("chunk", "vertex", "sh"), counts, kinds, columns, strict=False):
        lines += [f"element {name} {count}", *(f"property {kind} {each}" for each in names.split())]
    if body is None:
        body = struct.pack("<12f", 0, 0, 0, 1, 2, 3, -4, -5, -6, -3, -3, -3)
        body += struct.pack("<4I", (2047 << 21) | (1023 << 11) | 2047, 512 << 20, 0, 0x33_FF_00_80) + bytes(
            len(sh.split())
        )
    return "\n".join([*lines, "end_header", ""]).encode() + body


def test_read_old_files_without_color_bounds(tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(make())
    back = compressed.read(tmp_path / "a.ply")
    np.testing.assert_array_equal(back.means, [[1, -2, -3]])
    np.testing.assert_array_equal(back.log_scales, [[-4, -5, -6]])
    np.testing.assert_allclose(back.sh0, [[-0.3 / C0, 0.5 / C0, -0.5 / C0]], rtol=1e-5)
    np.testing.assert_allclose(opacities(back), [128 / 255], rtol=1e-6)
    assert back.shN.shape == (1, 0, 3)
    assert not back.provenance


REST_9 = " ".join(f"f_rest_{i}" for i in range(9))
NAN = struct.pack("<12f", 0, 0, np.nan, *[1] * 9) + bytes(16)
DAMAGE = {
    "empty": (b"", "is empty"),
    "another format": (b"NGSP", "is not a PLY"),
    "big-endian": (make().replace(b"little", b"big"), "is not a compressed PLY"),
    "no end of the header": (make()[:99], "is damaged: its header has no end"),
    "body cut off": (make()[:-1], "claims 1 rows of 'vertex', of 16 bytes, and 15 bytes follow"),
    "a billion": (make(counts=(3906250, 10**9)), "claims 3906250 rows of 'chunk', of 187500000 bytes, and 64 bytes"),
    "count beyond all": (make(counts=(1, 10**18 - 1)), "claims 9{18} rows of 'vertex'"),
    "count of too many digits": (make(counts=(1, 10**18)), "is damaged: 'element vertex 10{18}'"),
    "negative": (make(counts=(1, -1)), "is damaged: 'element vertex -1'"),
    "zero": (make(counts=(0, 0)), "zero Gaussians"),
    "chunks too many": (make(counts=(2, 1), body=bytes(200)), "2 rows of chunk where 1 Gaussians need 1"),
    "chunks too few": (make(counts=(1, 257), body=bytes(9999)), "1 rows of chunk where 257 Gaussians need 2"),
    "sh too few": (make(counts=(1, 1, 0), sh=REST_9), "0 rows of sh where 1 Gaussians need 1"),
    "sh of eight": (make(counts=(1, 1, 1), sh=REST_9[:-9]), "has 8 properties of spherical harmonics"),
    "sh misnamed": (make(counts=(1, 1, 1), sh=REST_9.replace("8", "9")), "has 9 properties of spherical"),
    "sh as numbers": (
        make(counts=(1, 1, 1), sh=REST_9, kinds=("float", "uint", "uint"), body=bytes(999)),
        "'f_rest_0' is of type uint32",
    ),
    "words as floats": (make(kinds=("float", "float")), "'packed_position' is of type float32"),
    "bounds as numbers": (make(kinds=("uint", "uint")), "'min_x' is of type uint32"),
    "doubles": (make(kinds=("double", "uint"), body=bytes(999)), "'min_x' is of type float64"),
    "lists": (
        make().replace(b"uint packed_scale", b"list uchar uint packed_scale"),
        "element vertex has the list property packed_scale",
    ),
    "property without an element": (make().replace(b"element chunk 1\n", b""), "is damaged: 'property float min_x'"),
    "property twice": (make(vertex="packed_position packed_position"), "is damaged: .*packed_position"),
    "element twice": (make().replace(b"element vertex", b"element chunk"), "is damaged: 'element chunk 1'"),
    "property missing": (make(vertex="packed_position packed_scale"), "lacks packed_rotation, packed_color"),
    "element missing": (make().replace(b"element chunk", b"element lump"), "lacks min_x, min_y"),
    "an asset that is not compressed": (make().replace(b"packed_", b"opacity_"), "holds no compressed Gaussians"),
    "letters that a terminal would obey": (
        make(counts=(9,), chunk="\x1b[2J"),
        r"'property float \\x1b\[2J'|lacks min_x",
    ),
    "many elements and properties": (
        make().replace(
            b"comment by hand",
            b"element a 0\n"
            + b"".join(b"element a%d 0\n" % i for i in range(30000))
            + b"".join(b"property uchar b%d\n" % i for i in range(25000))
            + b"comment",
        )[:-64],
        "claims 1 rows of 'chunk'",
    ),
    "not a number": (make(body=NAN), "1 of 1 rows have a value that is not a finite number"),
}


@pytest.mark.parametrize(("content", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
def test_read_refuses_damaged_files(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.compressed.ply"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(UsageProblem, match=reason) as caught:
        compressed.read(path)
    assert time.process_time() - start < 2
    assert caught.value.message.isprintable()
    assert str(path) in caught.value.message


def test_read_elements_in_any_order(tmp_path: Path, chiral: Splats) -> None:
    """As another tool might write it: an extra first element, reversed properties, CR LF."""
    source, path = tmp_path / "a.compressed.ply", tmp_path / "b.compressed.ply"
    compressed.write(source, chiral)
    data = PlyData.read(str(source))
    lines, body = [], b""
    for name in ("other", "sh", "vertex", "chunk"):
        rows = np.zeros(7, [("a", "<f4"), ("b", "u1")]) if name == "other" else data[name].data
        fields = (rows.dtype.names or ())[::-1]
        types = {np.dtype("f4"): "float32", np.dtype("u4"): "uint32", np.dtype("u1"): "uint8"}
        lines += [f"element {name} {len(rows)}", *(f"property {types[rows.dtype[each]]} {each}" for each in fields)]
        turned = np.empty(len(rows), [(each, rows.dtype[each].newbyteorder("<")) for each in fields])
        for each in fields:
            turned[each] = rows[each]
        body += turned.tobytes()
    header = "\r\n".join(["ply", "format binary_little_endian 1.0", "comment x", *lines, "end_header", ""])
    path.write_bytes(header.encode() + body)
    ours, theirs = compressed.read(source), compressed.read(path)
    for name in GROUPS:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_write_refuses_unusable_assets(tmp_path: Path, three: Splats) -> None:
    three.shN[1, 1, 1] = np.inf
    with pytest.raises(SegdreamError, match="1 of 3 Gaussians"):
        compressed.write(tmp_path / "a.compressed.ply", three)
    with pytest.raises(SegdreamError, match="no Gaussians"):
        compressed.write(tmp_path / "a.compressed.ply", picked(three, slice(0)))
    with pytest.raises(UsageProblem, match="can't be written"):
        compressed.write(tmp_path / "missing" / "a.compressed.ply", picked(three, slice(1), 3))
    assert not list(tmp_path.iterdir())


WORDS = ["element", "property", "vertex", "chunk", "sh", "uint", "uchar", "float", "list", "0", "1", "3", "257", "-1"]
WORDS += ["99999999999999999", "1e3", "end_header", "comment", "packed_color", "f_rest_0", "min_x", "", "\n", "\x1c"]
EDITS = st.tuples(
    st.sampled_from(["set", "cut", "insert", "truncate", "word", "number"]),
    st.floats(0, 1),
    st.integers(0, 255),
    st.sampled_from(WORDS),
)


def edited(content: bytes, edits: list[tuple[str, float, int, str]]) -> bytes:
    changed = bytearray(content)
    for kind, where, value, word in edits:
        at = min(int(where * len(changed)), max(len(changed) - 1, 0))
        match kind:
            case "set" if changed:
                changed[at] = value
            case "cut":
                del changed[at : at + 1 + value % 40]
            case "insert":
                changed[at:at] = bytes([value]) * (1 + value % 5)
            case "truncate":
                del changed[at:]
            case "number":
                changed[at : at + 4] = struct.pack("<f", (np.inf, np.nan, 3e38, -3e38)[value % 4])
            case _:
                words = list(re.finditer(rb"\S+", bytes(changed[:1200])))
                if words:
                    found = words[min(int(where * len(words)), len(words) - 1)]
                    changed[found.start() : found.end()] = word.encode()
    return bytes(changed)


@pytest.mark.slow
@settings(max_examples=500)
@given(old=st.booleans(), edits=st.lists(EDITS, min_size=1, max_size=4))
def test_read_of_mutated_files(
    tmp_path_factory: pytest.TempPathFactory, old: bool, edits: list[tuple[str, float, int, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.compressed.ply"
    path.write_bytes(edited(make() if old else GOLDEN.read_bytes(), edits))
    with suppress(UsageProblem):
        found = compressed.read(path)
        assert len(found) > 0
        assert not len(find_nonfinite(found))
        assert np.abs(np.linalg.norm(found.quats, axis=1) - 1).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("k", [0, 3, 15])
def test_splat_transform_reads_ours(
    tmp_path: Path, chiral: Splats, splat_transform: Callable[..., None], k: int
) -> None:
    splats = picked(chiral, slice(None), k)
    compressed.write(tmp_path / "a.compressed.ply", splats)
    splat_transform(tmp_path / "a.compressed.ply", tmp_path / "a.ply")
    check(ply.read(tmp_path / "a.ply"), in_file_order(splats), tmp_path / "a.compressed.ply")


@pytest.mark.slow
@pytest.mark.parametrize("k", [0, 3, 15])
def test_read_files_that_splat_transform_writes(
    tmp_path: Path, chiral: Splats, splat_transform: Callable[..., None], k: int
) -> None:
    splats = picked(chiral, slice(None), k)
    ply.write(tmp_path / "a.ply", splats, pad_sh=False)
    splat_transform(tmp_path / "a.ply", tmp_path / "a.compressed.ply")
    back = compressed.read(tmp_path / "a.compressed.ply")
    order = np.abs(back.means[:, None] - splats.means[None]).sum(axis=2).argmin(axis=1)
    assert sorted(order) == list(range(len(splats)))
    check(back, picked(splats, order, k), tmp_path / "a.compressed.ply")


@pytest.mark.slow
def test_gsply_reads_ours(tmp_path: Path, chiral: Splats) -> None:
    gsply = pytest.importorskip("gsply", reason="pip install gsply")
    compressed.write(tmp_path / "a.compressed.ply", chiral)
    data = gsply.plyread(str(tmp_path / "a.compressed.ply"))
    found = Splats(data.means, data.quats, data.scales, data.opacities, data.sh0, data.shN)
    check(from_ply_frame(found), in_file_order(chiral), tmp_path / "a.compressed.ply")
