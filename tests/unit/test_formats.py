"""The format table, the PLY family's frame, .splat and point clouds."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import KDTree

from segdream_cli import formats
from segdream_cli.errors import SegdreamError, UsageProblem
from segdream_cli.formats import FORMATS, points, splat
from segdream_cli.formats.common import Reading
from segdream_cli.splats import Splats, find_nonfinite, from_ply_frame, to_ply_frame


def random_splats(n: int = 50, k: int = 0, seed: int = 0, **provenance: object) -> Splats:
    rng = np.random.default_rng(seed)
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


def rotation(quat: np.ndarray) -> np.ndarray:
    """Rodrigues' formula on the axis and angle of a wxyz quaternion."""
    angle = 2 * np.arctan2(np.linalg.norm(quat[1:]), quat[0])
    x, y, z = quat[1:] / np.linalg.norm(quat[1:])
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def sh_basis(direction: np.ndarray) -> np.ndarray:
    """Real spherical harmonics of degree 1 to 3 with the Condon-Shortley sign (-1)^m, m = -l..l.

    Written from the trigonometric definition, K_lm P_l^|m|(cos theta) {sqrt2 sin |m|phi, 1, sqrt2 cos m phi}, with
    Legendre functions without that sign; checked below against the polynomials that renderers use.
    """
    x, y, z = direction
    s = np.hypot(x, y)
    phi = np.arctan2(y, x)
    legendre = {
        (1, 0): z,
        (1, 1): s,
        (2, 0): (3 * z**2 - 1) / 2,
        (2, 1): 3 * z * s,
        (2, 2): 3 * s**2,
        (3, 0): (5 * z**3 - 3 * z) / 2,
        (3, 1): 1.5 * (5 * z**2 - 1) * s,
        (3, 2): 15 * z * s**2,
        (3, 3): 15 * s**3,
    }
    values = []
    for degree in (1, 2, 3):
        for m in range(-degree, degree + 1):
            a = abs(m)
            ratio = np.prod(np.arange(degree - a + 1, degree + a + 1, dtype=float))
            norm = np.sqrt((2 * degree + 1) / (4 * np.pi) / ratio)
            azimuthal = 1.0 if m == 0 else np.sqrt(2) * (np.sin(a * phi) if m < 0 else np.cos(m * phi))
            values.append((-1) ** m * norm * legendre[degree, a] * azimuthal)
    return np.array(values)


def test_reference_sh_basis_has_known_values() -> None:
    x, y, z = direction = np.array([0.48, 0.6, 0.64])
    found = sh_basis(direction)
    np.testing.assert_allclose(found[:3], 0.4886025119 * np.array([-y, z, -x]), rtol=1e-9)
    np.testing.assert_allclose(found[3], 1.0925484306 * x * y, rtol=1e-9)
    np.testing.assert_allclose(found[7], 0.5462742153 * (x * x - y * y), rtol=1e-9)
    np.testing.assert_allclose(found[8], -0.5900435899 * y * (3 * x * x - y * y), rtol=1e-9)
    np.testing.assert_allclose(found[14], -0.5900435899 * x * (x * x - 3 * y * y), rtol=1e-9)


@pytest.mark.parametrize("k", [0, 3, 8, 15])
def test_to_ply_frame_turns_everything(k: int) -> None:
    splats = random_splats(20, k)
    turned = to_ply_frame(splats)
    half_turn = np.diag([1.0, -1.0, -1.0])
    np.testing.assert_array_equal(turned.means, splats.means @ half_turn.astype(np.float32))
    for i in range(20):
        expected = half_turn @ rotation(splats.quats[i]) @ half_turn
        np.testing.assert_allclose(rotation(turned.quats[i]), expected, atol=1e-5)
    rng = np.random.default_rng(1)
    for _ in range(50):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        before = np.einsum("k,nkc->nc", sh_basis(direction)[:k], splats.shN)
        after = np.einsum("k,nkc->nc", sh_basis(half_turn @ direction)[:k], turned.shN)
        np.testing.assert_allclose(after, before, atol=1e-5)
    back = from_ply_frame(turned)
    for name in ("means", "quats", "log_scales", "opacity_logits", "sh0", "shN"):
        np.testing.assert_array_equal(getattr(back, name), getattr(splats, name))


def test_to_ply_frame_turns_covariances() -> None:
    splats = random_splats(20)
    turned = to_ply_frame(splats)
    half_turn = np.diag([1.0, -1.0, -1.0])
    for i in range(20):
        covariance = [
            rotation(each.quats[i]) @ np.diag(np.exp(2 * each.log_scales[i])) @ rotation(each.quats[i]).T
            for each in (splats, turned)
        ]
        np.testing.assert_allclose(covariance[1], half_turn @ covariance[0] @ half_turn, atol=1e-6)


def test_splats_refuses_inconsistent_shapes() -> None:
    a = random_splats(5)
    parts = (a.quats, a.log_scales, a.opacity_logits, a.sh0)
    with pytest.raises(ValueError, match="shapes"):
        Splats(a.means[:1], *parts, a.shN)
    with pytest.raises(ValueError, match="shapes"):
        Splats(a.means, *parts, np.zeros((5, 4, 3), np.float32))


def test_format_of_suffixes() -> None:
    assert formats.format_of(Path("a.ply")) == "ply"
    assert formats.format_of(Path("A B.SPLAT")) == "splat"
    for name, hint in (("cat.plyy", "cat.ply"), ("cat.spalt", "cat.splat"), ("cat", "cat.ply")):
        with pytest.raises(UsageProblem, match=r"\.ply, .*\.splat") as caught:
            formats.format_of(Path(name))
        assert caught.value.hint == f"-o {hint}"


def test_read_refuses_unknown_files(tmp_path: Path) -> None:
    """A page can't be read, so the message does not name its suffix."""
    for name in ("cat.htm", "cat", "cat.las"):
        (tmp_path / name).write_bytes(b"LASF" + bytes(500))
        with pytest.raises(UsageProblem, match=r"is no asset that segdream reads; it reads \.ply, .*\.splat") as caught:
            formats.read(tmp_path / name)
        assert caught.value.hint is None
        assert ".html" not in caught.value.message
    with pytest.raises(UsageProblem, match="No such file"):
        formats.read(tmp_path / "missing")


def test_read_refuses_folders(tmp_path: Path) -> None:
    folder = tmp_path / "assets.ply"
    folder.mkdir()
    with pytest.raises(UsageProblem, match="is not a file") as caught:
        formats.read(folder)
    assert caught.value.hint == f"segdream generate 'a yellow school bus' -o {folder}/bus.ply"
    with pytest.raises(UsageProblem, match="too long"):
        formats.read(Path("a" * 300))


def test_read_offers_to_resume_a_stopped_run(tmp_path: Path) -> None:
    run = tmp_path / "bus.run"
    run.mkdir()
    (tmp_path / "bug.ply").touch()
    (run / "checkpoint.safetensors").touch()
    with pytest.raises(UsageProblem, match="No such file") as caught:
        formats.read(tmp_path / "bus.ply")
    assert caught.value.hint == f"segdream generate --resume {run}"
    assert not caught.value.words
    (tmp_path / "bus.ply").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    for name in ("bus.ply", "bus.txt"):  # it exists, or no run writes it
        with pytest.raises(UsageProblem) as caught:
            formats.read(tmp_path / name)
        assert "--resume" not in str(caught.value.hint)


@pytest.mark.parametrize("name", FORMATS)
def test_formats_read_what_they_write(tmp_path: Path, name: str) -> None:
    row = FORMATS[name]
    splats = random_splats(40)
    path = tmp_path / f"a{row.suffix}"
    formats.write(path, splats, format=name)
    if not row.readable:
        with pytest.raises(UsageProblem, match=r"holds points, not Gaussians|but not read them"):
            formats.read(path)
        return
    back = formats.read(path)
    assert len(back) == 40
    # Each centre has its partner, in another order perhaps, within the coarsest format's rounding.
    distance, partner = KDTree(splats.means).query(back.means)
    assert distance.max() < 2e-3 * np.ptp(splats.means)
    assert len(set(partner)) == 40


def test_write_refuses_unknown_formats_and_wrong_suffixes(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=r"use one of ply, ply-compact, .*, splat, points") as caught:
        formats.write(tmp_path / "a.ply", random_splats(), format="ply_compact")
    assert caught.value.hint == "--format ply-compact"
    with pytest.raises(UsageProblem, match=r"written to \.splat files") as caught:
        formats.write(tmp_path / "a.ply", random_splats(), format="splat")
    assert caught.value.hint == f"-o {tmp_path / 'a.splat'}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("writer", [formats.ply.write, splat.write, points.write])
def test_writers_refuse_nonfinite_values(tmp_path: Path, writer: Callable[[Path, Splats], None]) -> None:
    splats = random_splats(30)
    splats.log_scales[7, 1] = np.nan
    splats.sh0[21, 0] = -np.inf
    with pytest.raises(SegdreamError, match=r"2 of 30 Gaussians .* the first is number 7") as caught:
        writer(tmp_path / "a.out", splats)
    assert caught.value.exit_code == 1
    with pytest.raises(SegdreamError, match="no Gaussians"):
        writer(tmp_path / "a.out", random_splats(0))
    with pytest.raises(UsageProblem, match="can't be written"):
        writer(tmp_path / "missing" / "a.out", random_splats(3))
    assert not list(tmp_path.iterdir())


def test_splat_write_lays_out_bytes(tmp_path: Path) -> None:
    """One Gaussian by hand, from the format's description."""
    one = Splats(
        means=np.array([[1, 2, 3]], np.float32),
        quats=np.array([[0.5, -0.5, 0.5, 0.5]], np.float32),
        log_scales=np.log(np.array([[0.1, 0.2, 0.4]], np.float32)),
        opacity_logits=np.array([np.log(0.6 / 0.4)], np.float32),
        sh0=np.array([[0.4 / 0.28209479177387814, 9.0, -9.0]], np.float32),
        shN=np.ones((1, 15, 3), np.float32),
    )
    splat.write(tmp_path / "a.splat", one)
    row = struct.unpack("<6f8B", (tmp_path / "a.splat").read_bytes())
    assert row[:6] == pytest.approx((1, -2, -3, 0.1, 0.2, 0.4), rel=1e-6)
    assert row[6:10] == (230, 255, 0, 153)  # 0.9 * 255 = 229.5, 0.6 * 255 = 153
    assert row[10:] == (192, 64, 64, 64)  # wxyz, y and z turned


def test_splat_write_sorts_by_volume_times_opacity(tmp_path: Path) -> None:
    splat.write(tmp_path / "a.splat", random_splats(300))
    rows = np.fromfile(
        tmp_path / "a.splat", np.dtype([("m", "<f4", 3), ("s", "<f4", 3), ("c", "u1", 4), ("q", "u1", 4)])
    )
    weight = rows["s"].prod(axis=1) * rows["c"][:, 3]
    clear = rows["c"][:, 3] > 60  # where the byte's rounding is small
    assert clear.sum() > 100
    assert (weight[clear][1:] <= weight[clear][:-1] * 1.02).all()


def test_splat_read_is_within_rounding(tmp_path: Path) -> None:
    splats = random_splats(400, k=3)
    splat.write(tmp_path / "a.splat", splats)
    back = splat.read(tmp_path / "a.splat")
    nearest = np.array([np.abs(splats.means - mean).sum(axis=1).argmin() for mean in back.means])
    assert sorted(nearest) == list(range(400))
    np.testing.assert_array_equal(back.means, splats.means[nearest])
    np.testing.assert_allclose(back.log_scales, splats.log_scales[nearest], atol=1e-5)
    colours = [np.clip(0.5 + 0.28209479177387814 * each, 0, 1) for each in (back.sh0, splats.sh0[nearest])]
    np.testing.assert_allclose(*colours, atol=0.5 / 255 + 1e-6)
    opacities = [
        1 / (1 + np.exp(-each.astype(float))) for each in (back.opacity_logits, splats.opacity_logits[nearest])
    ]
    np.testing.assert_allclose(*opacities, atol=0.5 / 255 + 1e-6)
    cosines = np.abs((back.quats * splats.quats[nearest]).sum(axis=1))
    assert np.degrees(2 * np.arccos(np.minimum(cosines, 1))).max() < 1.0
    np.testing.assert_allclose(np.linalg.norm(back.quats, axis=1), 1, atol=1e-6)
    assert back.shN.shape == (400, 0, 3)
    assert not back.provenance


def test_splat_read_of_extreme_bytes(tmp_path: Path) -> None:
    row = struct.pack("<6f8B", 1, 2, 3, 0, 1, 1, 255, 128, 0, 255, 128, 128, 128, 128)
    row += struct.pack("<6f8B", 1, 2, 3, 1, 1, 1, 255, 128, 0, 0, 255, 128, 128, 128)
    (tmp_path / "a.splat").write_bytes(row)
    back = splat.read(tmp_path / "a.splat")
    np.testing.assert_array_equal(back.opacity_logits, [15, -15])
    np.testing.assert_array_equal(back.log_scales[0], [-20, 0, 0])
    np.testing.assert_array_equal(back.quats, [[1, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(back.means[0], [1, -2, -3])


def splat_row(*scales: float, quat: tuple[int, ...] = (255, 128, 128, 128)) -> bytes:
    return struct.pack("<6f8B", 0, 0, 0, *scales, 255, 128, 0, 255, *quat)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (bytes(33), "33 bytes is not a multiple of 32"),
        (4 * splat_row(1, 1, 1) + splat_row(np.nan, 1, 1), "1 of 5 rows .* the first is row 4"),
        (4 * splat_row(1, 1, 1) + splat_row(1, -1, 1), "1 of 5 rows"),
        (4 * splat_row(1, 1, 1) + splat_row(1, np.inf, 1), "1 of 5 rows"),
        (2 * splat_row(1, np.inf, 1) + splat_row(1, 1, 1), "is not a .splat file"),
        (3 * splat_row(1, 1, 1, quat=(255, 255, 255, 255)), "is not a .splat file"),
        (b"solid cube, of which this is one line\n".ljust(64), "is not a .splat file"),
    ],
)
def test_splat_read_refuses_bad_files(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.splat").write_bytes(content)
    with pytest.raises(UsageProblem, match=reason):
        splat.read(tmp_path / "a.splat", Reading(strict=True))


UNIT_ROWS = st.lists(st.binary(min_size=28, max_size=28).map(lambda raw: raw + bytes((128, 128, 0, 128))), max_size=6)


@settings(max_examples=200, deadline=None)
@given(content=st.one_of(st.binary(max_size=200).map(lambda raw: raw[: len(raw) // 32 * 32]), UNIT_ROWS.map(b"".join)))
def test_splat_read_of_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.splat"
    path.write_bytes(content)
    try:
        back = splat.read(path)
    except UsageProblem:
        return
    assert 0 < len(back) <= len(content) // 32
    assert not len(find_nonfinite(back))


def test_points_write_is_a_plain_point_cloud(tmp_path: Path) -> None:
    splats = random_splats(30, prompt="a cat")
    points.write(tmp_path / "p.ply", splats)
    header, _, body = (tmp_path / "p.ply").read_bytes().partition(b"end_header\n")
    assert header.decode("ascii").splitlines() == [
        "ply",
        "format binary_little_endian 1.0",
        'comment segdream {"prompt": "a cat"}',
        "element vertex 30",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {colour}" for colour in ("red", "green", "blue")),
    ]
    for i in range(30):
        x, y, z, *rgb = struct.unpack("<3f3B", body[15 * i : 15 * i + 15])
        assert (x, y, z) == tuple(splats.means[i])  # y up: no turn
        expected = np.clip(0.5 + 0.28209479177387814 * splats.sh0[i].astype(float), 0, 1) * 255
        assert np.abs(np.array(rgb) - expected).max() <= 0.5001
    xyz, rgb = points.read_points(tmp_path / "p.ply")
    np.testing.assert_array_equal(xyz, splats.means)
    assert rgb is not None
    np.testing.assert_allclose(rgb, np.clip(0.5 + 0.28209479177387814 * splats.sh0, 0, 1), atol=0.51 / 255)


MESH = """ply
format ascii 1.0
comment a mesh, as scanners write it
element vertex 3
property double x
property double y
property double z
property uchar red
property uchar green
property uchar blue
property uchar alpha
element face 1
property list uchar int vertex_indices
end_header
0 0 0 255 0 0 255
1 0.5 0 0 51 0 255
0 1 2.5 0 0 255 255
3 0 1 2
"""


def test_points_read_of_a_mesh(tmp_path: Path) -> None:
    (tmp_path / "mesh.ply").write_text(MESH)
    xyz, rgb = points.read_points(tmp_path / "mesh.ply")
    np.testing.assert_array_equal(xyz, [[0, 0, 0], [1, 0.5, 0], [0, 1, 2.5]])
    assert rgb is not None
    np.testing.assert_allclose(rgb, [[1, 0, 0], [0, 0.2, 0], [0, 0, 1]], atol=1e-7)


@pytest.mark.parametrize(("kind", "code", "full"), [("ushort", ">3f3H", 65535), ("float", ">6f", 1.0)])
def test_points_read_of_other_color_types(tmp_path: Path, kind: str, code: str, full: float) -> None:
    colours = "".join(f"property {kind} {name}\n" for name in ("red", "green", "blue"))
    header = f"ply\nformat binary_big_endian 1.0\nelement vertex 1\n{XYZ}{colours}end_header\n"
    body = struct.pack(code, 1, 2, 3, full, 0, full)
    (tmp_path / "p.ply").write_bytes(header.encode() + body)
    xyz, rgb = points.read_points(tmp_path / "p.ply")
    np.testing.assert_array_equal(xyz, [[1, 2, 3]])
    np.testing.assert_array_equal(rgb, [[1, 0, 1]])


XYZ = "property float x\nproperty float y\nproperty float z\n"


def test_points_read_without_colors_or_points(tmp_path: Path) -> None:
    header = f"ply\nformat ascii 1.0\nelement vertex 2\n{XYZ}end_header\n"
    (tmp_path / "p.ply").write_text(f"{header}1 2 3\n4 5 6")
    xyz, rgb = points.read_points(tmp_path / "p.ply")
    np.testing.assert_array_equal(xyz, [[1, 2, 3], [4, 5, 6]])
    assert rgb is None
    (tmp_path / "p.ply").write_text(f"{header}1 2 3\n4 nan 6\n")
    notes: list[str] = []
    np.testing.assert_array_equal(points.read_points(tmp_path / "p.ply", Reading(note=notes.append))[0], [[1, 2, 3]])
    assert "1 of 2 rows have a value that is not a finite number and are left out" in notes[0]
    with pytest.raises(UsageProblem, match="the first is row 1"):
        points.read_points(tmp_path / "p.ply", Reading(strict=True))
    (tmp_path / "p.ply").write_text(header.replace("float y", "float height") + "1 2 3\n4 5 6\n")
    with pytest.raises(UsageProblem, match="lacks y"):
        points.read_points(tmp_path / "p.ply")
    reds = "property int red\nproperty int green\nproperty int blue\nend_header"
    (tmp_path / "p.ply").write_text(header.replace("end_header", reds) + "1 2 3 4 5 6\n4 5 6 7 8 9\n")
    with pytest.raises(UsageProblem, match="colours are of type int32"):
        points.read_points(tmp_path / "p.ply")


@pytest.mark.parametrize("suffix", [".ply", ".glb"])
def test_read_keeps_known_provenance_only(tmp_path: Path, suffix: str) -> None:
    """No file can nest it so deeply that it can't be written again."""
    deep: object = 1
    for _ in range(400):
        deep = [{"source": deep}]
    path = tmp_path / f"deep{suffix}"
    formats.write(
        path, random_splats(deep=deep, prompt=deep, unet_rows=10**30, steps=7, quality="q" * 10_001, prior=None)
    )
    assert formats.read(path).provenance == {"steps": 7, "prior": None}
    nested: dict[str, object] = {"prompt": "a bus"}
    for _ in range(30):
        nested = {
            "source": {"file": "a.ply", "comments": ["scan", 1, {}], "provenance": nested, "other": 1},
            "steps": 1,
        }
    formats.write(path, random_splats(**nested))
    found, depth = formats.read(path).provenance, 0
    while "source" in found:
        assert found["steps"] == 1
        assert {key: found["source"][key] for key in ("file", "comments")} == {"file": "a.ply", "comments": ["scan", 1]}
        assert "other" not in found["source"]
        found, depth = found["source"]["provenance"], depth + 1
    assert depth == 8
