"""Real size and pivot: `export --height --unit --pivot`, read back by other programs' readers."""

import dataclasses
from pathlib import Path

import numpy as np
import plyfile
import pytest
import trimesh

from segdream_cli import cli, mesh, read, write
from segdream_cli.errors import UsageProblem
from segdream_cli.splats import Splats
from segdream_cli.splats.sizing import Sizing, extents, parse_length, resize

BOX = np.array([0.5, 0.3, 0.8])
"""Half sides of the test asset, whose middle is at `MIDDLE`."""
MIDDLE = np.array([0.2, -0.1, 0.4])


def box(deviation: float = 1e-4, opacity: float = 0.9) -> Splats:
    """3,000 Gaussians of one deviation in a box, eight of them in its corners."""
    rng = np.random.default_rng(2)
    means = rng.uniform(-BOX, BOX, (3000, 3))
    means[:8] = BOX * np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, 8).T
    n = len(means)
    return Splats(
        means=(means + MIDDLE).astype(np.float32),
        quats=rng.normal(size=(n, 4)).astype(np.float32),
        log_scales=np.full((n, 3), np.log(deviation), np.float32),
        opacity_logits=np.full(n, np.log(opacity / (1 - opacity)), np.float32),
        sh0=np.zeros((n, 3), np.float32),
        shN=np.zeros((n, 0, 3), np.float32),
    )


def export(asset: Path, *arguments: object) -> int:
    return cli.run(["export", str(asset), "-q", *map(str, arguments)])


def ply_means(path: Path) -> np.ndarray:
    """Centres in y-up coordinates, from the columns of a PLY file, which has y down and z backwards."""
    rows = plyfile.PlyData.read(path)["vertex"]
    return np.stack([rows["x"], -rows["y"], -rows["z"]], axis=1).astype(np.float64)


def test_extents_end_at_half_of_the_opacity() -> None:
    splats = box()
    splats.means[:] = MIDDLE
    axis, half_turn = np.array([0.6, 0.0, 0.8]), np.pi / 3
    splats.quats[:] = [np.cos(half_turn), *np.sin(half_turn) * axis]
    splats.log_scales[:] = np.log([0.1, 0.2, 0.3])
    low, high = extents(splats)
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.eye(3) + np.sin(2 * half_turn) * k + (1 - np.cos(2 * half_turn)) * k @ k  # Rodrigues
    deviations = np.sqrt(np.diag(turn @ np.diag([0.01, 0.04, 0.09]) @ turn.T))
    ends = (high - low) / 2 / deviations  # 0.9 exp(-ends^2 / 2) is the opacity there
    np.testing.assert_allclose(0.9 * np.exp(-(ends**2) / 2), 0.5, rtol=1e-4)
    np.testing.assert_allclose((high + low) / 2, MIDDLE, atol=1e-6)


def test_extents_leave_out_strays_and_what_can_not_be_seen() -> None:
    splats = box()
    splats.means[100] += 50
    splats.means[101:200] += 50
    splats.opacity_logits[101:200] = -9
    low, high = extents(splats)
    np.testing.assert_allclose(high - low, 2 * BOX, rtol=0.02)


@pytest.mark.parametrize(("pivot", "low_y"), [("ground", 0.0), ("center", -1.0)])
def test_export_places_splats_in_their_real_size(tmp_path: Path, pivot: str, low_y: float) -> None:
    write(tmp_path / "a.ply", box())
    assert export(tmp_path / "a.ply", "--height", "2m", "--pivot", pivot, "-o", tmp_path / "b.ply") == 0
    found = ply_means(tmp_path / "b.ply")
    sides = 2 * BOX * 2 / 0.6
    np.testing.assert_allclose(np.ptp(found, axis=0), sides, rtol=2e-3)
    np.testing.assert_allclose(found.min(axis=0), [-sides[0] / 2, low_y, -sides[2] / 2], atol=4e-3)
    before = ply_means(tmp_path / "a.ply")
    turned = (found - found.mean(axis=0)) / (before - before.mean(axis=0))
    np.testing.assert_allclose(turned, turned.mean(), rtol=2e-2)  # one factor for all axes and Gaussians


def test_export_unit_scales_coordinates_and_deviations(tmp_path: Path) -> None:
    write(tmp_path / "a.ply", box())
    for unit, factor in {"cm": 100, "mm": 1000, "in": 1 / 0.0254, "ft": 1 / 0.3048}.items():
        out = tmp_path / f"{unit}.ply"
        assert export(tmp_path / "a.ply", "--unit", unit, "-o", out) == 0
        np.testing.assert_allclose(ply_means(out), factor * ply_means(tmp_path / "a.ply"), rtol=1e-5, atol=1e-4)
        deviations = np.exp(plyfile.PlyData.read(out)["vertex"]["scale_0"])
        np.testing.assert_allclose(deviations, 1e-4 * factor, rtol=1e-5)


def test_export_places_other_formats_alike(tmp_path: Path) -> None:
    write(tmp_path / "a.ply", box())
    names = ["b.ply", "b.spz", "b.splat", "b.glb"]
    outputs = [word for name in names for word in ("-o", tmp_path / name)]
    assert export(tmp_path / "a.ply", "--height", "170cm", "--pivot", "ground", *outputs) == 0
    for name in names:
        low, high = extents(read(tmp_path / name))
        assert high[1] - low[1] == pytest.approx(1.7, rel=2e-3), name
        np.testing.assert_allclose([(low + high)[0], low[1], (low + high)[2]], 0, atol=2e-3, err_msg=name)
    scene = trimesh.load_scene(tmp_path / "b.glb")  # knows no Gaussians, but reads their centres
    assert scene.bounds[:, 1] == pytest.approx([0, 1.7], abs=4e-3)


def test_export_places_meshes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = trimesh.creation.box(2 * BOX)
    shape.apply_translation(MIDDLE)
    made = _mesh(np.float32(shape.vertices), shape.faces)
    monkeypatch.setattr(mesh, "extract", lambda *_, **__: made)
    write(tmp_path / "a.ply", box())
    for name, unit, height in (("b.glb", "m", 1.5), ("b.obj", "cm", 150)):
        sizes = ("--height", "1.5m", "--unit", unit, "--pivot", "ground")
        assert export(tmp_path / "a.ply", "--format", "mesh", *sizes, "-o", tmp_path / name) == 0
        low, high = trimesh.load_scene(tmp_path / name).bounds
        np.testing.assert_allclose(low, height / 0.6 * BOX * (-1, 0, -1), atol=1e-5 * height)
        np.testing.assert_allclose(high, height / 0.6 * BOX * (1, 2, 1), rtol=1e-5)


def test_resize_of_a_mesh_keeps_its_form() -> None:
    vertices = np.array([[0, 1, 0], [2, 1, 0], [2, 5, 3]], np.float32)
    plain = _mesh(vertices, np.array([[0, 1, 2]]))
    resized = mesh.resize(plain, Sizing(height=2.0, unit="cm", pivot="center"))
    np.testing.assert_allclose(resized.vertices, [[-50, -100, -75], [50, -100, -75], [50, 100, 75]], rtol=1e-6)
    assert resized.faces is plain.faces


def _mesh(vertices: np.ndarray, faces: np.ndarray) -> mesh.Mesh:
    """A black mesh."""
    flat = np.zeros_like(vertices)
    texture = np.zeros((4, 4, 3), np.uint8)
    return mesh.Mesh(vertices, flat + np.array((0, 1, 0)), flat[:, :2], faces, texture, True, 1, 0, 9, 0, 1.0)


def test_resize_turns_nothing() -> None:
    splats = dataclasses.replace(box(), provenance={"prompt": "a box"})
    again = resize(splats, Sizing(height=1.0))
    np.testing.assert_allclose(again.quats, splats.quats, atol=1e-6)
    assert again.provenance == splats.provenance


@pytest.mark.parametrize(
    ("text", "metres"), [("3.2m", 3.2), ("45 cm", 0.45), (".5in", 0.0127), ("6ft", 1.8288), ("2", 2)]
)
def test_parse_length_reads_units(text: str, metres: float) -> None:
    assert parse_length(text) == pytest.approx(metres)


@pytest.mark.parametrize("text", ["", "m", "-1m", "0", "1e3", "3 miles", "1e-9m", "99999999m", "nan"])
def test_parse_length_refuses_other_texts(text: str) -> None:
    with pytest.raises(UsageProblem, match="is not a length"):
        parse_length(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--unit", "cm", "-o", "b.glb"), ".glb files are in metres"),
        (("--height", "2m", "--scale", "2", "-o", "b.ply"), "--scale has no effect"),
        (("--pivot", "ground", "--center", "-o", "b.ply"), "--center has no effect"),
        (("--height", "tall", "-o", "b.ply"), "'tall' is not a length"),
    ],
)
def test_export_refuses_sizes_that_can_not_be(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write("a.ply", box())
    assert export(Path("a.ply"), *arguments) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]
