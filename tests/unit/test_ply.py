"""The INRIA PLY: its bytes, files of other tools, and everything that can be wrong with one."""

import os
import re
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plyfile import PlyData, PlyElement

from segdream_cli.errors import UsageProblem
from segdream_cli.formats import ply, points
from segdream_cli.formats.common import Reading
from segdream_cli.splats import GROUPS, Splats, find_nonfinite, to_ply_frame

STRICT = Reading(strict=True)
NAMES_SH0 = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
NAMES_SH0 += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]


def random_splats(n: int = 50, k: int = 0, **provenance: object) -> Splats:
    rng = np.random.default_rng(n + k)
    quats = rng.normal(size=(n, 4))
    return Splats(
        means=rng.normal(size=(n, 3)).astype(np.float32),
        quats=(quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        log_scales=rng.uniform(-6, -1, (n, 3)).astype(np.float32),
        opacity_logits=rng.normal(scale=3, size=n).astype(np.float32),
        sh0=rng.normal(size=(n, 3)).astype(np.float32),
        shN=rng.normal(size=(n, k, 3)).astype(np.float32),
        provenance=provenance,
    )


def split(path: Path) -> tuple[list[str], bytes]:
    header, end, body = path.read_bytes().partition(b"end_header\n")
    assert end
    return header.decode("ascii").split("\n"), body


def table(path: Path) -> dict[str, np.ndarray]:
    """Columns of a little-endian PLY of floats, parsed by hand."""
    lines, body = split(path)
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    values = np.frombuffer(body, "<f4").reshape(-1, len(names))
    return {name: values[:, i] for i, name in enumerate(names)}


@pytest.fixture
def asset(tmp_path: Path) -> Path:
    path = tmp_path / "asset.ply"
    ply.write(path, random_splats(20), pad_sh=False)
    return path


def rewrite(path: Path, *changes: tuple[bytes, bytes]) -> Path:
    content = path.read_bytes()
    for old, new in changes:
        assert old in content
        content = content.replace(old, new, 1)
    path.write_bytes(content)
    return path


def assert_same(a: Splats, b: Splats, atol: float = 0) -> None:
    for name in GROUPS:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=atol, rtol=0, err_msg=name)
        assert getattr(a, name).dtype == np.float32
        assert getattr(a, name).flags.c_contiguous


@pytest.mark.parametrize("k", [0, 3, 8, 15])
def test_write_lays_out_inria_columns(tmp_path: Path, k: int) -> None:
    splats = random_splats(11, k)
    ply.write(tmp_path / "compact.ply", splats, pad_sh=False)
    ply.write(tmp_path / "padded.ply", splats)
    for name, stored in (("compact", k), ("padded", 15)):
        lines, body = split(tmp_path / f"{name}.ply")
        rest = [f"f_rest_{i}" for i in range(3 * stored)]
        assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 11"]
        assert lines[3:-1] == [f"property float {each}" for each in NAMES_SH0[:9] + rest + NAMES_SH0[9:]]
        assert len(body) == 11 * 4 * (17 + 3 * stored)
        columns = table(tmp_path / f"{name}.ply")
        for i in range(11):
            x, y, z = splats.means[i]
            w, qx, qy, qz = splats.quats[i]
            assert [columns[axis][i] for axis in "xyz"] == [x, -y, -z]
            assert [columns[f"rot_{j}"][i] for j in range(4)] == [w, qx, -qy, -qz]
            assert [columns[f"scale_{j}"][i] for j in range(3)] == list(splats.log_scales[i])
            assert [columns[f"f_dc_{j}"][i] for j in range(3)] == list(splats.sh0[i])
            assert columns["opacity"][i] == splats.opacity_logits[i]
            assert [columns[f"n{axis}"][i] for axis in "xyz"] == [0, 0, 0]
            signs = "--+-++-+-+--+-+"  # formats.md 1.2, as it prints them
            for channel in range(3):
                for j in range(stored):
                    expected = splats.shN[i, j, channel] * (1 if signs[j] == "+" else -1) if j < k else 0
                    assert columns[f"f_rest_{channel * stored + j}"][i] == expected


@pytest.mark.parametrize("k", [0, 3, 8, 15])
@pytest.mark.parametrize("pad_sh", [True, False])
def test_read_keeps_every_bit_of_write(tmp_path: Path, k: int, pad_sh: bool) -> None:
    splats = random_splats(70, k, prompt="a cat", seed=3)
    ply.write(tmp_path / "a.ply", splats, pad_sh=pad_sh)
    back = ply.read(tmp_path / "a.ply")
    assert_same(back, splats)
    assert back.provenance == {"prompt": "a cat", "seed": 3}
    ply.write(tmp_path / "b.ply", back, pad_sh=pad_sh)
    assert (tmp_path / "b.ply").read_bytes() == (tmp_path / "a.ply").read_bytes()


def test_write_sanitizes_values(tmp_path: Path) -> None:
    splats = random_splats(4)
    splats.log_scales[0] = (-50, 30, 1)
    splats.opacity_logits[:2] = (99, -99)
    splats.quats[1] = (0, 0, 3, 4)
    splats.quats[2] = 0
    before = {name: getattr(splats, name).copy() for name in GROUPS}
    ply.write(tmp_path / "a.ply", splats)
    columns = table(tmp_path / "a.ply")
    assert [columns[f"scale_{j}"][0] for j in range(3)] == [-20, 20, 1]
    assert list(columns["opacity"][:2]) == [15, -15]
    assert [columns[f"rot_{j}"][1] for j in range(4)] == pytest.approx([0, 0, -0.6, -0.8])
    assert [columns[f"rot_{j}"][2] for j in range(4)] == [1, 0, 0, 0]
    for name in GROUPS:
        np.testing.assert_array_equal(getattr(splats, name), before[name])


@pytest.mark.parametrize(
    "prompt",
    [
        "a yellow school bus",
        "größer 日本 🚌",
        "line\nend_header\r\nelement vertex 5",
        'quo"te \\ back',
        "\x00\x7f\u2028",
        "",
    ],
)
def test_write_stores_provenance_as_one_ascii_line(tmp_path: Path, prompt: str) -> None:
    provenance = {"seed": 7, "prompt": prompt, "prior": {"name": "p", "sha256": None}, "version": "0.1.0"}
    ply.write(tmp_path / "a.ply", random_splats(3, **provenance))
    lines, body = split(tmp_path / "a.ply")
    assert len(body) == 3 * 248
    assert len([line for line in lines if line.startswith("comment ")]) == 1
    assert ply.read(tmp_path / "a.ply").provenance == provenance
    foreign = PlyData.read(str(tmp_path / "a.ply"))
    assert foreign.comments == [lines[2].removeprefix("comment ")]


@pytest.mark.parametrize(
    "comment", ["segdream", "segdream {", "segdream [1]", "segdream " + "[" * 9000, "by another tool"]
)
def test_read_ignores_foreign_comments(asset: Path, comment: str) -> None:
    rewrite(asset, (b"element", b"comment %s\nelement" % comment.encode()))
    back = ply.read(asset)
    assert not back.provenance
    assert len(back) == 20


def test_read_inria_file(tmp_path: Path) -> None:
    """As graphdeco's `save_ply` makes it: a list of tuples, quaternions as they come out of the optimiser."""
    rng = np.random.default_rng(4)
    names = [*NAMES_SH0[:9], *(f"f_rest_{i}" for i in range(45)), *NAMES_SH0[9:]]
    values = rng.normal(size=(25, 62)).astype(np.float32)
    rows = np.array(list(map(tuple, values)), dtype=[(name, "f4") for name in names])
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(tmp_path / "point_cloud.ply"))
    back = ply.read(tmp_path / "point_cloud.ply")
    np.testing.assert_array_equal(back.means, values[:, :3] * [1, -1, -1])
    quats = values[:, 58:] / np.linalg.norm(values[:, 58:].astype(float), axis=1, keepdims=True) * [1, 1, -1, -1]
    np.testing.assert_allclose(back.quats, quats, atol=1e-6)
    assert back.shN.shape == (25, 15, 3)
    np.testing.assert_array_equal(back.shN[:, 4], values[:, [9 + 4, 9 + 19, 9 + 34]])  # l = 2, m = -1 keeps its sign
    np.testing.assert_array_equal(back.shN[:, 0], -values[:, [9, 9 + 15, 9 + 30]])  # l = 1, m = -1 does not


@pytest.mark.filterwarnings("ignore")  # gsplat's import warns
@pytest.mark.parametrize("k", [0, 3, 8, 15])
def test_read_gsplat_export(tmp_path: Path, k: int) -> None:
    torch = pytest.importorskip("torch")
    exporter = pytest.importorskip("gsplat.exporter")
    turned = to_ply_frame(random_splats(30, k))
    means, quats, log_scales, logits, sh0, shN = (torch.from_numpy(getattr(turned, name)) for name in GROUPS)
    content = exporter.export_splats(means, log_scales, quats, logits, sh0[:, None], shN, format="ply")
    (tmp_path / "gsplat.ply").write_bytes(content)
    assert content.count(b"property float ") == 14 + 3 * k
    assert_same(ply.read(tmp_path / "gsplat.ply"), random_splats(30, k))
    ours = ply.read(tmp_path / "gsplat.ply")
    ply.write(tmp_path / "ours.ply", ours, pad_sh=False)
    with_normals = table(tmp_path / "ours.ply")
    theirs = table(tmp_path / "gsplat.ply")
    assert {name: column.tolist() for name, column in theirs.items()} == {
        name: column.tolist() for name, column in with_normals.items() if name not in ("nx", "ny", "nz")
    }


@pytest.mark.parametrize("order", ["ascii", "<", ">"])
@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_read_other_encodings_orders_and_extra_properties(tmp_path: Path, order: str, kind: str) -> None:
    """SuperSplat and other editors add properties and elements; ASCII, big-endian and double files are in the wild."""
    splats = random_splats(12, 3)
    ply.write(tmp_path / "ours.ply", splats, pad_sh=False)
    columns = table(tmp_path / "ours.ply")
    names = list(np.random.default_rng(5).permutation(list(columns)))
    rows = np.zeros(12, [("state", "u1"), *((name, kind) for name in names), ("transform", "i4")])
    for name in names:
        rows[name] = columns[name]
    before = PlyElement.describe(np.zeros(2, [("version", "i4"), ("gain", "f4")]), "info")
    after = PlyElement.describe(np.array([((1, 2, 3),)], [("vertex_indices", "i4", 3)]), "face")
    text = order == "ascii"
    data = PlyData([before, PlyElement.describe(rows, "vertex"), after], text=text, byte_order="=" if text else order)
    data.write(str(tmp_path / "theirs.ply"))
    assert_same(ply.read(tmp_path / "theirs.ply"), splats, atol=1e-6 if text else 0)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_read_header_accepts_what_plyfile_refuses(asset: Path, newline: bytes) -> None:
    header, _, body = asset.read_bytes().partition(b"end_header\n")
    extra = "comment größer als 日本\nobj_info \x00\x1c by café\n".encode()
    header = header.replace(b"format", b"comment before the format\nformat").replace(b"element", extra + b"element")
    empty = b"element camera 0\nproperty list uchar int ids\nelement nothing 0\nelement vertex"
    header = header.replace(b"element vertex", empty)
    asset.write_bytes((header + b"end_header  \n").replace(b"\n", newline) + b"\n" * 0 + body + b"trailing bytes")
    assert_same(ply.read(asset), random_splats(20))


def test_read_normalizes_quaternions(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    ply.write(path, random_splats(5), pad_sh=False)
    lines, body = split(path)
    values = np.frombuffer(body, "<f4").reshape(5, 17).copy()
    values[:, -4:] = [(0, 0, 0, 0), (1e-42, 0, 0, 0), (3e38, 3e38, 3e38, 3e38), (0, -5, 0, 0), (2, 0, 0, 0)]
    path.write_bytes("\n".join(lines).encode() + b"end_header\n" + values.tobytes())
    expected = [(1, 0, 0, 0), (1, 0, 0, 0), (0.5, 0.5, -0.5, -0.5), (0, -1, 0, 0), (1, 0, 0, 0)]
    np.testing.assert_allclose(ply.read(path).quats, expected, atol=1e-6)


def test_read_clamps_values_out_of_range(asset: Path) -> None:
    lines, body = split(asset)
    values = np.frombuffer(body, "<f4").reshape(20, 17).copy()
    values[0, 9], values[1, 10] = -1e30, 1e30
    asset.write_bytes("\n".join(lines).encode() + b"end_header\n" + values.tobytes())
    back = ply.read(asset)
    assert back.opacity_logits[0] == -15
    assert back.log_scales[1, 0] == 20


def holding(*rows: str, header: str = "") -> bytes:
    properties = "".join(f"property float {name}\n" for name in NAMES_SH0 if not name.startswith("n"))
    lines = f"ply\nformat ascii 1.0\nelement vertex {len(rows)}\n{properties}end_header\n"
    return ((header or lines) + "\n".join(rows) + "\n").encode()


ROW = " ".join(["0.5"] * 14)

DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "is empty"),
    "not a PLY": (lambda _: b"\x89PNG\r\n\x1a\n" + bytes(500), "is not a PLY file"),
    "begins like one": (lambda _: b"plywood is not a format\n", "is not a PLY file"),
    "header cut": (lambda whole: whole[:80], "header has no end"),
    "nothing but the first line": (lambda _: b"ply\n", "header has no end"),
    "no body": (lambda whole: whole.partition(b"end_header\n")[0] + b"end_header\n", "is truncated.* 0 bytes follow"),
    "one byte short": (lambda whole: whole[:-1], "is truncated: its header claims 20 rows, of at least 1360 bytes"),
    "claims billions": (lambda whole: whole.replace(b"vertex 20", b"vertex 99999999999999"), "is truncated"),
    "claims more digits than there are": (
        lambda whole: whole.replace(b"vertex 20", b"vertex " + b"9" * 5000),
        "number of",
    ),
    "text claims billions": (lambda _: holding(ROW).replace(b"vertex 1", b"vertex 99999999999"), "is truncated"),
    "no rows": (lambda whole: whole.replace(b"vertex 20", b"vertex 0"), "zero Gaussians"),
    "negative rows": (lambda whole: whole.replace(b"vertex 20", b"vertex -20"), "does not give a number of rows"),
    "text for a count": (
        lambda whole: whole.replace(b"vertex 20", b"vertex many"),
        "'element vertex many' does not give",
    ),
    "no count": (lambda whole: whole.replace(b"vertex 20", b"vertex"), "does not give a number of rows"),
    "no vertices": (lambda whole: whole.replace(b"element vertex", b"element points"), "no vertex element"),
    "no format": (lambda whole: whole.replace(b"format binary_little_endian 1.0\n", b""), "is damaged"),
    "unknown format": (
        lambda whole: whole.replace(b"little_endian", b"middle_endian"),
        "is damaged: 'format binary_middle_endian 1.0'",
    ),
    "unknown type": (lambda whole: whole.replace(b"float opacity", b"floaty opacity"), "floaty"),
    "list property": (
        lambda whole: whole.replace(b"float opacity", b"list uchar float opacity"),
        "element vertex has the list property opacity",
    ),
    "property twice": (lambda whole: whole.replace(b"float nx", b"float x"), "has the property x twice"),
    "property missing": (lambda whole: whole.replace(b"rot_3", b"rot_w"), "lacks the properties rot_3$"),
    "half a rotation": (lambda whole: whole.replace(b"rot_1", b"rotx1"), "lacks the properties rot_1$"),
    "compressed": (
        lambda whole: whole.replace(b"property float x\n", b"property float packed_position\n"),
        "is a compressed PLY",
    ),
    "list element in front": (
        lambda whole: whole.replace(b"element", b"element face 1\nproperty list uchar int ids\nelement", 1),
        "element face has the list property ids",
    ),
    "element without properties": (
        lambda whole: whole.replace(b"element", b"element face 9999999999\nelement", 1),
        "element face has no properties",
    ),
    "text where a number belongs": (lambda _: holding(ROW, ROW.replace("0.5", "half", 1)), "row 1: property 'x'"),
    "text not in ASCII": (lambda _: holding(ROW.replace("0.5", "½", 1)), "is damaged"),
    "too few values in a line": (lambda _: holding(ROW, ROW[:-4]), "row 1: property 'rot_3': early end-of-line"),
    "too many values in a line": (lambda _: holding(ROW, ROW + " 1"), "row 1: expected end-of-line"),
    "infinite in text": (
        lambda _: holding(ROW, ROW, ROW[:-3] + "inf"),
        "1 of 3 rows .* not a finite number, the first is row 2",
    ),
    "binary taken for text": (lambda whole: whole.replace(b"binary_little_endian", b"ascii"), "is damaged"),
}


@pytest.mark.parametrize(("change", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
def test_read_refuses_damaged_files(asset: Path, change: Callable[[bytes], bytes], reason: str) -> None:
    asset.write_bytes(change(asset.read_bytes()))
    with pytest.raises(UsageProblem, match=reason) as caught:
        ply.read(asset, STRICT)
    assert str(asset) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_read_counts_nonfinite_rows(tmp_path: Path, kind: str, value: float) -> None:
    rows = np.ones(9, [(name, kind) for name in NAMES_SH0])
    rows["z"][3] = rows["rot_0"][3] = rows["f_dc_2"][7] = value
    rows["opacity"] = rows["x"] = np.arange(9)
    data = PlyData([PlyElement.describe(rows, "vertex")], byte_order=kind[0])
    data.write(str(tmp_path / "a.ply"))
    with pytest.raises(UsageProblem, match=r"2 of 9 rows .*, the first is row 3") as caught:
        ply.read(tmp_path / "a.ply", STRICT)
    assert caught.value.message.endswith("and --strict refuses such rows")
    said: list[str] = []
    back = ply.read(tmp_path / "a.ply", Reading(note=said.append))
    np.testing.assert_array_equal(back.means[:, 0], [0, 1, 2, 4, 5, 6, 8])
    np.testing.assert_array_equal(back.opacity_logits, [0, 1, 2, 4, 5, 6, 8])
    (note,) = said
    assert "2 of 9 rows have a value that is not a finite number and are left out; --strict refuses" in note


def test_read_takes_infinite_opacities_and_scales_of_zero(tmp_path: Path) -> None:
    """An alpha of 1 or 0, and a flat Gaussian; an infinite scale and NaN have no such meaning."""
    rows = np.ones(6, [(name, "f4") for name in NAMES_SH0])
    rows["opacity"] = (np.inf, -np.inf, 2, 3, np.nan, 5)
    rows["scale_1"] = (1, -np.inf, -np.inf, np.inf, 1, np.nan)
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(tmp_path / "a.ply"))
    said: list[str] = []
    back = ply.read(tmp_path / "a.ply", Reading(note=said.append))
    np.testing.assert_array_equal(back.opacity_logits, [15, -15, 2])
    np.testing.assert_array_equal(back.log_scales[:, 1], [1, -20, -20])
    assert "3 of 6 rows" in said[0]


def test_read_refuses_signalling_nan_in_padding(tmp_path: Path) -> None:
    ply.write(tmp_path / "a.ply", random_splats(4))
    content = bytearray((tmp_path / "a.ply").read_bytes())
    row = len(content) - 248  # the last one: position, normal, first harmonics, then the 45 of the padding
    content[row + 9 * 4 : row + 10 * 4] = struct.pack("<I", 0x7FA00000)
    (tmp_path / "a.ply").write_bytes(content)
    with pytest.raises(UsageProblem, match=r"1 of 4 rows .*, the first is row 3"):
        ply.read(tmp_path / "a.ply", STRICT)
    assert len(ply.read(tmp_path / "a.ply")) == 3


def test_read_refuses_doubles_beyond_float32(tmp_path: Path) -> None:
    rows = np.ones(3, [(name, "f8") for name in NAMES_SH0])
    rows["x"][1] = 1e300
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(tmp_path / "a.ply"))
    with pytest.raises(UsageProblem, match=r"1 of 3 rows .*, the first is row 1"):
        ply.read(tmp_path / "a.ply", STRICT)


def test_read_refuses_points(tmp_path: Path) -> None:
    points.write(tmp_path / "p.ply", random_splats(5))
    with pytest.raises(UsageProblem, match="holds points, not Gaussians") as caught:
        ply.read(tmp_path / "p.ply")
    assert caught.value.hint == f"segdream export {tmp_path / 'p.ply'} --as-splats -o p-splats.ply"


def test_read_refuses_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ply")
    for path, reason in (
        (tmp_path / "missing.ply", "No such file"),
        (tmp_path, "is not a file"),
        (tmp_path / "pipe.ply", "is not a file"),
        (tmp_path / ("x" * 400), "too long"),
        (Path("/dev/null"), "is not a file"),
    ):
        with pytest.raises(UsageProblem, match=reason):
            ply.read(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="a superuser may read everything")
def test_read_reports_missing_permission(asset: Path) -> None:
    asset.chmod(0)
    with pytest.raises(UsageProblem, match="Permission denied"):
        ply.read(asset)


def test_read_translates_permission_errors(asset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageProblem, match="can't be read: Permission denied"):
        ply.read(asset)


SMALL = st.sampled_from(["binary", "ascii"])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A small valid file with bytes changed, pieces cut out or repeated, header words swapped, or its end cut off."""
    content = bytearray(SEEDS[draw(SMALL)])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        match draw(st.sampled_from(["flip", "cut", "insert", "truncate", "word", "copy"])):
            case "flip" if content:
                content[at] = draw(st.integers(0, 255))
            case "cut":
                del content[at : at + draw(st.integers(1, 20))]
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "truncate":
                del content[at:]
            case "copy":
                content[at:at] = content[: draw(st.integers(0, len(content)))][-40:]
            case _:
                words = list(re.finditer(rb"\S+", bytes(content[:600])))
                if words:
                    word = draw(st.sampled_from(words))
                    content[word.start() : word.end()] = draw(st.sampled_from(WORDS))
    return bytes(content)


WORDS = [b"element", b"property", b"list", b"vertex", b"face", b"ascii", b"binary_big_endian", b"-1", b"0", b"5"]
WORDS += [
    b"1e9",
    b"4294967296",
    b"99999999999999999",
    b"float",
    b"double",
    b"uchar",
    b"uint",
    b"end_header",
    b"comment",
]
WORDS += [
    b"\xff\xfe",
    b"",
    b"\n",
    b"\r",
    b"\x1c",
    b"f_rest_0",
    b"x",
    b"opacity",
    b"nan",
    b"1e999",
    b"ply",
    b"format",
    b"comment",
]


def _seeds() -> dict[str, bytes]:
    values = np.random.default_rng(6).normal(size=(3, 17)).astype("<f4")
    properties = "".join(f"property float {name}\n" for name in NAMES_SH0)
    head = f"element info 1\nproperty uchar a\nelement vertex 3\n{properties}end_header\n"
    rows = "\n".join(" ".join(f"{value:.3f}" for value in row) for row in values)
    return {
        "binary": f"ply\nformat binary_little_endian 1.0\n{head}".encode() + struct.pack("B", 7) + values.tobytes(),
        "ascii": f"ply\nformat ascii 1.0\n{head}7\n{rows}\n".encode(),
    }


SEEDS = _seeds()


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(content=mutated())
def test_readers_raise_only_usage_problems_on_mutated_files(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.ply"
    path.write_bytes(content)
    start = time.process_time()
    for reader in (ply.read, points.read_points):
        with suppress(UsageProblem):
            found = reader(path)
            assert not isinstance(found, Splats) or (len(found) > 0 and not len(find_nonfinite(found)))
    assert time.process_time() - start < 2  # whatever a header claims


@pytest.mark.parametrize("seed", SEEDS)
def test_mutation_seeds_are_valid(tmp_path: Path, seed: str) -> None:
    (tmp_path / "a.ply").write_bytes(SEEDS[seed])
    assert len(ply.read(tmp_path / "a.ply")) == 3


def columns_of(splats: Splats) -> dict[str, np.ndarray]:
    """The properties of a PLY of these Gaussians, of any degree."""
    turned = to_ply_frame(splats)
    found = {"x": turned.means[:, 0], "y": turned.means[:, 1], "z": turned.means[:, 2]}
    found |= {f"f_dc_{i}": turned.sh0[:, i] for i in range(3)}
    k = turned.shN.shape[1]
    found |= {f"f_rest_{c * k + i}": turned.shN[:, i, c] for c in range(3) for i in range(k)}
    found |= {"opacity": turned.opacity_logits}
    found |= {f"scale_{i}": turned.log_scales[:, i] for i in range(3)}
    return found | {f"rot_{i}": turned.quats[:, i] for i in range(4)}


def write_columns(path: Path, columns: dict[str, np.ndarray]) -> Path:
    rows = np.zeros(len(columns["x"]), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        rows[name] = column
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(path))
    return path


def read_noting(path: Path) -> tuple[Splats, list[str]]:
    said: list[str] = []
    return ply.read(path, Reading(note=said.append)), said


def test_read_of_rgb_in_place_of_f_dc(tmp_path: Path) -> None:
    """nerfstudio's `--ply-color-mode rgb`; bytes, or floats in 0..1."""
    splats = random_splats(9)
    columns = columns_of(splats)
    rgb = np.random.default_rng(3).integers(0, 256, (9, 3)).astype("u1")
    for i, name in enumerate(("red", "green", "blue")):
        columns[name] = rgb[:, i]
        del columns[f"f_dc_{i}"]
    back = ply.read(write_columns(tmp_path / "a.ply", columns))
    np.testing.assert_allclose(back.sh0, (rgb / 255 - 0.5) / 0.28209479177387814, atol=1e-6)
    np.testing.assert_array_equal(back.means, splats.means)
    as_floats = {name: column / np.float32(255) if column.dtype == "u1" else column for name, column in columns.items()}
    assert_same(ply.read(write_columns(tmp_path / "b.ply", as_floats)), back, 1e-6)
    del columns["red"]
    with pytest.raises(UsageProblem, match="lacks the properties f_dc_0, f_dc_1, f_dc_2"):
        ply.read(write_columns(tmp_path / "c.ply", columns))


def test_read_of_2d_gaussians(tmp_path: Path) -> None:
    splats = random_splats(9)
    columns = columns_of(splats)
    del columns["scale_2"]
    back = ply.read(write_columns(tmp_path / "a.ply", columns))
    np.testing.assert_array_equal(back.log_scales[:, :2], splats.log_scales[:, :2])
    np.testing.assert_allclose(back.log_scales[:, 2], np.log(1e-6), rtol=1e-6)
    del columns["scale_1"]
    with pytest.raises(UsageProblem, match=r"lacks the properties scale_1$"):
        ply.read(write_columns(tmp_path / "b.ply", columns))


@pytest.mark.parametrize(
    ("stored", "kept", "said"),
    [
        (24, 15, "harmonics of degree 4 are cut to degree 3"),
        (4, 3, "4 spherical harmonics per colour are cut to degree 1"),
        (2, 0, "2 spherical harmonics per colour are cut to degree 0"),
        (16, 15, "16 spherical harmonics per colour are cut to degree 3"),
    ],
)
def test_read_keeps_whole_degrees(tmp_path: Path, stored: int, kept: int, said: str) -> None:
    """Degree 4 of SPZ's tools, and numbers of coefficients that are no degree; three colours one after the other."""
    splats = random_splats(9, kept)
    columns = columns_of(random_splats(9))
    turned = to_ply_frame(splats).shN
    for c in range(3):
        for i in range(stored):
            values = turned[:, i, c] if i < kept else np.full(9, 7, np.float32)
            columns[f"f_rest_{c * stored + i}"] = values
    back, notes = read_noting(write_columns(tmp_path / "a.ply", columns))
    np.testing.assert_array_equal(back.shN, splats.shN)
    assert len(notes) == 1
    assert said in notes[0]


@pytest.mark.parametrize("names", [["f_rest_0"], ["f_rest_0", "f_rest_1", "f_rest_3"], ["f_rest_a"] * 1])
def test_read_leaves_out_harmonics_without_an_order(tmp_path: Path, names: list[str]) -> None:
    columns = columns_of(random_splats(9)) | {name: np.ones(9, np.float32) for name in names}
    back, notes = read_noting(write_columns(tmp_path / "a.ply", columns))
    assert_same(back, random_splats(9))
    assert f"its {len(names)} f_rest properties are not those of three colours" in notes[0]


def test_read_of_integer_properties(tmp_path: Path) -> None:
    columns = columns_of(random_splats(9))
    columns |= {"opacity": np.arange(9, dtype="i1") - 4, "x": np.arange(9, dtype="u2"), "rot_0": np.ones(9, "i4")}
    back = ply.read(write_columns(tmp_path / "a.ply", columns))
    np.testing.assert_array_equal(back.opacity_logits, np.arange(9) - 4)
    np.testing.assert_array_equal(back.means[:, 0], np.arange(9))


def test_read_moves_geographic_doubles(tmp_path: Path) -> None:
    """Metres of a map projection: float32 has steps of 3 cm and 50 cm there."""
    splats = random_splats(9)
    columns = columns_of(splats)
    there = {"x": 412_345.25, "y": 5_712_345.5, "z": 120.0}
    columns |= {axis: columns[axis].astype("f8") + offset for axis, offset in there.items()}
    back, notes = read_noting(write_columns(tmp_path / "a.ply", columns))
    shift = back.means[0].astype("f8") - splats.means[0]
    np.testing.assert_allclose(back.means, splats.means + shift, atol=1e-6)
    assert np.abs(back.means).max() < 10
    (note,) = notes
    moved = np.array([float(each) for each in note.partition("moved by ")[2].partition(", because")[0].split(", ")])
    file_shift = np.array([back.means[0, 0], -back.means[0, 1], -back.means[0, 2]])
    np.testing.assert_allclose([columns[axis][0] for axis in "xyz"] + moved, file_shift, atol=1e-6)
    for far in (5.0, 9000.0):  # nothing to lose
        near = columns | {axis: columns_of(splats)[axis].astype("f8") + far for axis in "xyz"}
        assert not read_noting(write_columns(tmp_path / "b.ply", near))[1]
    wide = columns | {"x": np.linspace(0, 1e6, 9)}  # no more than float32 can tell apart
    assert not read_noting(write_columns(tmp_path / "c.ply", wide))[1]


def test_points_read_as_splats(tmp_path: Path) -> None:
    """A grid of points: each Gaussian is as wide as half the distance to its neighbours, and has the point's colour."""
    x, y = (each.ravel().astype("f4") for each in np.meshgrid(np.arange(12) * 0.25, np.arange(10) * 0.25))
    rgb = np.random.default_rng(3).integers(0, 256, (120, 3)).astype("u1")
    columns = {"x": x, "y": y, "z": 0 * x, "red": rgb[:, 0], "green": rgb[:, 1], "blue": rgb[:, 2]}
    path = write_columns(tmp_path / "a.ply", columns)
    splats = points.read(path, Reading(as_splats=True))
    np.testing.assert_array_equal(splats.means, np.stack([x, y, 0 * x], axis=1))  # y up, as for --init
    np.testing.assert_allclose(0.5 + 0.28209479177387814 * splats.sh0, rgb / 255, atol=1e-6)
    inner = (x > 0) & (x < x.max()) & (y > 0) & (y < y.max())
    np.testing.assert_allclose(splats.log_scales[inner], np.log(0.125), rtol=1e-5)
    assert (splats.opacity_logits > 3).all()
    columns["x"][5] = np.nan
    said: list[str] = []
    fewer = points.read(write_columns(tmp_path / "b.ply", columns), Reading(as_splats=True, note=said.append))
    assert len(fewer) == 119
    assert "1 of 120 rows" in said[0]
    assert np.isfinite(fewer.log_scales).all()
    with pytest.raises(UsageProblem, match="holds points, not Gaussians"):
        points.read(path)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_points_read_as_splats_of_few_or_equal_points(tmp_path: Path, count: int) -> None:
    columns = {axis: np.ones(count, "f4") for axis in "xyz"}
    splats = points.read(write_columns(tmp_path / "a.ply", columns), Reading(as_splats=True))
    assert len(splats) == count
    assert np.isfinite(splats.log_scales).all()
