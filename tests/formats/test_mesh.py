"""Meshes: known solids, sides and handedness, the texture beside images, files in other people's readers."""

import dataclasses
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from segdream_cli import mesh
from segdream_cli.cli import run
from segdream_cli.errors import EnvironmentProblem, SegdreamError, UsageProblem
from segdream_cli.formats import write
from segdream_cli.mesh import Mesh, surface
from segdream_cli.render.cameras import Cameras, frame_sphere
from segdream_cli.render.view import render
from segdream_cli.splats import GROUPS, SH_C0, Splats
from segdream_cli.splats.gaussians import Gaussians

pytestmark = pytest.mark.slow

LIBRARIES = ("skimage", "trimesh", "xatlas", "fast_simplification")
RED, BLUE, GREEN, WHITE = (0.9, 0.1, 0.1), (0.1, 0.2, 0.9), (0.1, 0.8, 0.2), (0.95, 0.95, 0.95)
SMALL = {"resolution": 64, "faces": 3000, "texture_size": 256}


@pytest.fixture(scope="module")
def trimesh():
    for name in LIBRARIES:
        pytest.importorskip(name, reason=f'the extra "mesh" is not installed: {name} is missing')
    return pytest.importorskip("trimesh")


def balls(means, colours, sigma=0.02, opacity=0.9) -> Splats:
    n = len(means)
    return Splats(
        means=np.asarray(means, np.float32),
        quats=np.tile(np.float32([1, 0, 0, 0]), (n, 1)),
        log_scales=np.full((n, 3), np.log(sigma), np.float32),
        opacity_logits=np.full(n, np.log(opacity / (1 - opacity)), np.float32),
        sh0=((np.asarray(colours) - 0.5) / SH_C0).astype(np.float32),
        shN=np.zeros((n, 0, 3), np.float32),
    )


def shell(radius: float, n: int = 4000, sigma: float = 0.02) -> Splats:
    """A sphere about (0.1, 0, -0.1), evenly covered (Fibonacci's spiral); red where x is above 0.1, blue elsewhere."""
    height = 1 - (np.arange(n) + 0.5) * 2 / n
    turn = np.arange(n) * np.pi * (3 - np.sqrt(5))
    flat = np.sqrt(1 - height**2)
    directions = np.stack([flat * np.cos(turn), height, flat * np.sin(turn)], axis=1)
    colours = np.where(directions[:, :1] > 0, RED, BLUE)
    return balls(radius * directions + [0.1, 0, -0.1], colours, sigma)


def boxes(*parts) -> Splats:
    """Boxes (low corner, high corner, colour) filled with a lattice of Gaussians."""
    means, colours = [], []
    for low, high, colour in parts:
        axes = [np.arange(a, b + 1e-6, 0.03) for a, b in zip(low, high, strict=True)]
        lattice = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        means.append(lattice)
        colours.append(np.tile(colour, (len(lattice), 1)))
    return balls(np.concatenate(means), np.concatenate(colours), sigma=0.018)


CHIRAL = (
    ((-0.3, -0.6, -0.09), (-0.12, 0.6, 0.09), WHITE),
    ((-0.12, 0.42, -0.09), (0.4, 0.6, 0.09), RED),
    ((-0.12, 0.0, -0.09), (0.2, 0.15, 0.09), GREEN),
    ((-0.3, -0.6, 0.09), (-0.12, -0.42, 0.5), BLUE),
)
"""The letter F as seen from +Z, with a foot towards the viewer."""


@pytest.fixture(scope="module")
def letter(trimesh) -> Mesh:
    return mesh.extract(boxes(*CHIRAL), **SMALL)


@pytest.fixture(scope="module")
def ball(trimesh) -> Mesh:
    return mesh.extract(shell(0.6), **SMALL)


@pytest.fixture(scope="module")
def painted(trimesh) -> Mesh:
    return mesh.extract(boxes(*CHIRAL), **SMALL, colors="vertex")


@pytest.fixture(scope="module")
def hulls(trimesh) -> Mesh:
    pytest.importorskip("coacd")
    return mesh.collide(boxes(*CHIRAL))


def welded(trimesh, one: Mesh):
    return trimesh.Trimesh(one.vertices, one.faces, process=False).process(merge_tex=True, merge_norm=True)


def texels(one: Mesh, uv: np.ndarray) -> np.ndarray:
    """Colours 0..1 at places of the texture."""
    size = len(one.texture)
    row, column = np.floor(np.stack([1 - uv[:, 1], uv[:, 0]]) * size).astype(int).clip(0, size - 1)
    return one.texture[row, column] / 255


def texels_near(one: Mesh, points: np.ndarray) -> np.ndarray:
    """Colours 0..1 at the vertices nearest to `points`."""
    nearest = [np.linalg.norm(one.vertices - point, axis=1).argmin() for point in points]
    return texels(one, one.uvs[nearest])


def test_extract_closes_a_shell(trimesh, ball: Mesh) -> None:
    """One sphere, not one inside another; the surface lies within two standard deviations outside."""
    closed = welded(trimesh, ball)
    assert ball.watertight
    assert closed.is_watertight
    assert closed.is_winding_consistent
    assert (ball.components, closed.body_count, closed.euler_number) == (1, 1, 2)
    assert len(closed.faces) == SMALL["faces"]
    distance = np.linalg.norm(closed.vertices - [0.1, 0, -0.1], axis=1)
    assert distance.min() > 0.6
    assert distance.max() < 0.65
    least, most = 4 / 3 * np.pi * np.array([0.6, 0.64]) ** 3
    assert least < closed.volume < most  # positive: the triangles face outwards
    assert ball.coverage > 0.99


def test_extract_normals_are_unit_and_outward(ball: Mesh) -> None:
    outwards = ball.vertices - np.float32([0.1, 0, -0.1])
    outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
    assert np.einsum("vd,vd->v", outwards, ball.normals).min() > 0.9
    np.testing.assert_allclose(np.linalg.norm(ball.normals, axis=1), 1, atol=1e-5)


def test_extract_silhouette_is_half_opaque(trimesh, ball: Mesh) -> None:
    """Along the edge of the image of a shell: the radius at which the rasteriser's alpha is one half."""
    gaussians = Gaussians.from_splats(shell(0.6))
    size = 400
    # from so far away that lines of sight are all but parallel
    viewmats, Ks = torch.eye(4)[None], torch.zeros(1, 3, 3)
    viewmats[0, :3, 3] = torch.tensor([-0.1, 0, 100.1])
    Ks[0, 0, 0] = Ks[0, 1, 1] = 100 * size / 2
    Ks[0, :2, 2], Ks[0, 2, 2] = size / 2, 1
    with torch.no_grad():
        seen = render(gaussians, Cameras(viewmats, Ks, torch.zeros(1), torch.zeros(1), size))
    area = (seen.alpha > 0.5).sum().item() / (size / 2) ** 2
    outline = np.sqrt(area / np.pi)
    solid = (3 / (4 * np.pi) * welded(trimesh, ball).volume) ** (1 / 3)
    assert abs(solid - outline) < 0.02  # a cell of the grid


def test_extract_keeps_colors_on_their_side(ball: Mesh) -> None:
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(200, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions = directions[np.abs(directions[:, 0]) > 0.15]
    found = texels_near(ball, 0.62 * directions + [0.1, 0, -0.1])
    np.testing.assert_allclose(found, np.where(directions[:, :1] > 0, RED, BLUE), atol=0.03)


def test_extract_keeps_handedness_and_colors(trimesh, letter: Mesh) -> None:
    """The arms of the F lie towards +x, its foot towards +z; neither is mirrored or turned."""
    closed = welded(trimesh, letter)
    assert closed.is_watertight
    np.testing.assert_allclose(closed.bounds, [[-0.3, -0.6, -0.09], [0.4, 0.6, 0.5]], atol=0.05)
    for low, high, colour in CHIRAL:
        centre = (np.array(low) + high) / 2
        assert contains(letter, centre)
        front = centre + np.array([0, 0, (high[2] - low[2]) / 2])
        np.testing.assert_allclose(texels_near(letter, front[None])[0], colour, atol=0.05)
    for empty in ((0.2, -0.5, 0.4), (-0.2, -0.5, -0.4), (0.2, -0.5, 0), (-0.2, 0.5, 0.4), (0.35, 0.08, 0)):
        assert not contains(letter, empty)


def crossings(one: Mesh, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances [r, f], infinite where a ray misses a triangle; barycentric weights [r, f, 3] (Möller, Trumbore)."""
    a, b, c = one.vertices[one.faces].astype(float).transpose(1, 0, 2)
    across = np.cross(rays[:, None], (c - a)[None])
    determinant = np.einsum("fd,rfd->rf", b - a, across)
    away = origin - a
    with np.errstate(divide="ignore", invalid="ignore"):
        second = np.einsum("fd,rfd->rf", away, across) / determinant
        third = rays @ np.cross(away, b - a).T / determinant
        distance = np.einsum("fd,fd->f", c - a, np.cross(away, b - a)) / determinant
    met = (second >= 0) & (third >= 0) & (second + third <= 1) & (distance > 0)
    return np.where(met, distance, np.inf), np.stack([1 - second - third, second, third], axis=-1)


def contains(one: Mesh, point) -> bool:
    """Whether a ray from the point in some direction leaves the mesh an odd number of times."""
    distance, _ = crossings(one, np.asarray(point), np.array([[0.28, 0.53, 0.8]]))
    return bool(np.isfinite(distance).sum() % 2)


def drawn(one: Mesh, cameras, view: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of the mesh and where it is, by casting a ray through each pixel."""
    size = cameras.size
    viewmat, K = cameras.viewmats[view].double().numpy(), cameras.Ks[view].double().numpy()
    eye = -viewmat[:3, :3].T @ viewmat[:3, 3]
    rendered, hit = np.zeros((size, size, 3)), np.zeros((size, size), bool)
    column = np.arange(size) + 0.5
    for row in range(size):
        inside = np.stack([(column - K[0, 2]) / K[0, 0], np.full(size, (row + 0.5 - K[1, 2]) / K[1, 1])], axis=1)
        distance, weights = crossings(one, eye, np.concatenate([inside, np.ones((size, 1))], axis=1) @ viewmat[:3, :3])
        nearest = distance.argmin(axis=1)
        hit[row] = np.isfinite(distance.min(axis=1))
        triangle, share = nearest[hit[row]], weights[np.flatnonzero(hit[row]), nearest[hit[row]]]
        rendered[row, hit[row]] = texels(one, np.einsum("tc,tcd->td", share, one.uvs[one.faces[triangle]]))
    return rendered, hit


def test_extract_matches_renders_of_the_gaussians(letter: Mesh) -> None:
    """From cameras of which none baked the texture, with the ray caster above as the renderer of the mesh."""
    gaussians = Gaussians.from_splats(boxes(*CHIRAL))
    cameras = frame_sphere(torch.tensor([20.0, 130.0, 250.0]), torch.tensor([10.0, 35.0, -20.0]), 96, extent=0.75)
    with torch.no_grad():
        seen = render(gaussians, cameras)
    for view in range(3):
        rendered, hit = drawn(letter, cameras, view)
        alpha = seen.alpha[view, :, :, 0].numpy()
        opaque = alpha > 0.5
        assert (hit & opaque).sum() / (hit | opaque).sum() > 0.93
        error = (rendered - (seen.rgb[view] / seen.alpha[view].clamp_min(1e-6)).numpy())[hit & (alpha > 0.95)]
        assert -10 * np.log10((error**2).mean()) > 22


def test_extract_keeps_rotation(trimesh) -> None:
    """The long axis and the flat one are where scipy's rotation puts them."""
    turn = Rotation.from_euler("zyx", [40, 25, 65], degrees=True)
    one = dataclasses.replace(
        balls([[0, 0, 0]], [RED], opacity=0.99),
        quats=turn.as_quat(scalar_first=True)[None].astype(np.float32),
        log_scales=np.log([[0.3, 0.15, 0.07]]).astype(np.float32),
    )
    spread, axes = np.linalg.eigh(np.cov(mesh.extract(one, **SMALL).vertices.T))
    assert np.abs(axes[:, 2] @ turn.apply([1, 0, 0])) > 0.99
    assert np.abs(axes[:, 0] @ turn.apply([0, 0, 1])) > 0.99
    assert spread[2] > 4 * spread[0]


def test_extract_drops_dust_and_keeps_parts(trimesh) -> None:
    splats = boxes(((-0.5, -0.2, -0.2), (-0.2, 0.2, 0.2), RED), ((0.2, -0.2, -0.2), (0.5, 0.2, 0.2), BLUE))
    dust = balls([[0, 0.9, 0]], [WHITE], sigma=0.03, opacity=0.99)
    both = {name: np.concatenate([getattr(splats, name), getattr(dust, name)]) for name in GROUPS}
    one = mesh.extract(Splats(**both), **SMALL)
    assert (one.components, one.watertight) == (2, True)
    assert one.vertices[:, 1].max() < 0.3


def crumbs(side: int) -> Splats:
    """Balls that do not touch, on a lattice; the one in the middle is the largest."""
    axis = np.linspace(-0.8, 0.8, side)
    means = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    lattice = balls(means, np.tile(RED, (len(means), 1)), sigma=0.2 / side, opacity=0.99)
    lattice.log_scales[len(means) // 2] += np.float32(np.log(1.2))
    return lattice


def test_extract_drops_the_smallest_parts(trimesh) -> None:
    """343 balls, and triangles for ten of them."""
    one = mesh.extract(crumbs(7), resolution=96, faces=1000, texture_size=256)
    assert (one.components, one.left_out, one.resolution, one.watertight) == (10, 333, 96, True)
    assert contains(one, np.zeros(3))
    assert len(one.faces) <= 1000


def sponge() -> Splats:
    """A ball of Gaussians at random, full of holes."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(6000, 3))
    means *= 0.8 * rng.uniform(size=(6000, 1)) ** (1 / 3) / np.linalg.norm(means, axis=1, keepdims=True)
    return balls(means, np.tile(BLUE, (6000, 1)), sigma=0.016)


def test_extract_coarsens_the_grid_for_a_sponge(trimesh) -> None:
    """Its holes would take far more triangles than requested."""
    one = mesh.extract(sponge(), resolution=96, faces=3000, texture_size=256)
    assert one.resolution < 96
    assert one.watertight
    assert len(one.faces) <= 3000


def test_extract_keeps_to_the_limit_where_a_simplification_tears(trimesh, ball: Mesh, monkeypatch) -> None:
    """manifold3d takes over on the same grid, and the surface stays within its tolerance of the other's."""
    pytest.importorskip("manifold3d")
    simplification = pytest.importorskip("fast_simplification")
    original = simplification.simplify

    def tear(*arguments, **options):
        points, triangles = original(*arguments, **options)
        return points, triangles[1:]

    monkeypatch.setattr(simplification, "simplify", tear)
    one = mesh.extract(shell(0.6), **SMALL)
    assert (one.resolution, one.watertight, one.components) == (SMALL["resolution"], True, 1)
    assert 100 < len(one.faces) <= SMALL["faces"]
    distance = np.linalg.norm(welded(trimesh, one).vertices - [0.1, 0, -0.1], axis=1)
    assert np.abs(distance - 0.62).max() < 0.02 + mesh.TOLERANCES[-1] * 1.3 / SMALL["resolution"]


def test_extract_keeps_the_grid_with_enough_triangles(trimesh, monkeypatch) -> None:
    """The number in the hint is that of the grid: nothing is simplified, so holes do not matter."""
    monkeypatch.setattr(mesh, "SPONGE", 10)  # this one has 13; one of 20 takes a finer grid and minutes
    coarse = mesh.extract(sponge(), resolution=40, faces=3000, texture_size=64)
    assert coarse.resolution < 40
    assert coarse.enough > mesh.SPONGE * 40**2
    whole = mesh.extract(sponge(), resolution=40, faces=coarse.enough, texture_size=64)
    assert (whole.resolution, len(whole.faces), whole.enough) == (40, coarse.enough, 0)
    assert mesh.extract(sponge(), resolution=40, faces=coarse.enough - 1, texture_size=64).resolution < 40


def test_export_reports_a_simplified_mesh(trimesh, tmp_path: Path, segdream_export, capsys) -> None:
    write(tmp_path / "a.ply", crumbs(5))
    segdream_export(tmp_path / "a.ply", "-o", tmp_path / "a.obj", "--faces", "200", "--texture-size", "64", "--json")
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert (facts["parts"], facts["parts_left_out"], facts["watertight"]) == (2, 123, True)
    line, others = said.err.splitlines()
    assert others.endswith("a.obj needs a.mtl and a.png beside it")
    assert "123 small parts dropped" in line
    assert line.endswith("; raise --faces to keep more")


def test_export_names_the_triangles_that_keep_the_grid(ball, tmp_path: Path, segdream_export, capsys, monkeypatch):
    write(tmp_path / "a.ply", crumbs(2))
    made = dataclasses.replace(ball, resolution=115, enough=196_720)
    monkeypatch.setattr(mesh, "extract", lambda *_, **__: made)
    segdream_export(tmp_path / "a.ply", "-o", tmp_path / "a.obj")
    assert "; use --faces 196720 to keep more\n" in capsys.readouterr().err


def test_export_collision_writes_a_mesh_without_format(hulls, tmp_path: Path, segdream_export, capsys, monkeypatch):
    write(tmp_path / "a.ply", crumbs(2))
    monkeypatch.setattr(mesh, "collide", lambda *_, **__: hulls)
    segdream_export(tmp_path / "a.ply", "-o", tmp_path / "a.glb", "-o", tmp_path / "a.spz", "--collision", "--json")
    said = capsys.readouterr()
    mesh_line, splat_line = map(json.loads, said.out.splitlines())
    assert (mesh_line["format"], mesh_line["parts"], splat_line["format"]) == ("mesh", hulls.components, "spz")
    assert f"a.glb: {hulls.components} convex pieces of {len(hulls.faces)} triangles" in said.err


@pytest.mark.parametrize(
    ("output", "options", "reason"),
    [
        ("a.glb", ("--collision", "--faces", "500"), "--faces has no effect with --collision"),
        ("a.glb", ("--collision", "--colors", "vertex"), "--colors has no effect with --collision"),
        ("a.obj", ("--colors", "vertex", "--texture-size", "64"), "--texture-size has no effect with --colors vertex"),
        ("a.obj", ("--compress",), "--compress only affects .glb meshes"),
        ("a.glb", ("--compress",), "--compress can't be used: no output is a mesh"),
        ("a.spz", ("--collision",), "a mesh needs a .glb or .obj file"),
    ],
)
def test_export_refuses_mesh_options_without_effect(trimesh, tmp_path: Path, capsys, output, options, reason) -> None:
    write(tmp_path / "a.ply", crumbs(2))
    assert run(["export", str(tmp_path / "a.ply"), "-o", str(tmp_path / output), *options]) == 2
    assert reason in capsys.readouterr().err


def test_extract_refuses_faint_gaussians(trimesh) -> None:
    faint = balls([[0, 0, 0], [0.5, 0, 0]], [RED, BLUE], opacity=0.2)
    with pytest.raises(SegdreamError, match="no surface") as caught:
        mesh.extract(faint, **SMALL)
    assert caught.value.exit_code == 1
    assert "0.25" in (caught.value.hint or "")


def test_extract_without_a_library(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "xatlas", None)
    for name in set(LIBRARIES) - {"xatlas"}:  # present or not, the first that is missing is named
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name, type(sys)(name)))
    monkeypatch.setitem(sys.modules, "skimage.measure", type(sys)("skimage.measure"))
    with pytest.raises(EnvironmentProblem, match="xatlas") as caught:
        mesh.extract(shell(0.5, 10), **SMALL)
    assert caught.value.exit_code == 3
    assert caught.value.hint == 'pip install "segdream[mesh]"'


def test_write_glb_reads_back(trimesh, tmp_path: Path, letter: Mesh) -> None:
    path = tmp_path / "f.glb"
    mesh.write(path, dataclasses.replace(letter, provenance={"prompt": "a letter “F”", "seed": 1}))
    scene = trimesh.load_scene(path)
    (back,) = scene.dump()
    np.testing.assert_array_equal(back.vertices.astype(np.float32), letter.vertices)
    np.testing.assert_array_equal(back.faces, letter.faces)
    np.testing.assert_allclose(back.visual.uv, letter.uvs, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(back.visual.material.baseColorTexture.convert("RGB")), letter.texture)
    length = struct.unpack_from("<I", path.read_bytes(), 12)[0]
    document = json.loads(path.read_bytes()[20 : 20 + length])
    assert document["nodes"] == [{"name": "f", "mesh": 0}]
    assert document["extensionsUsed"] == ["KHR_materials_unlit"]
    assert document["materials"][0]["extensions"] == {"KHR_materials_unlit": {}}
    assert document["asset"]["extras"] == {"segdream": {"prompt": "a letter “F”", "seed": 1}}


def test_write_obj_reads_back(trimesh, tmp_path: Path, letter: Mesh) -> None:
    mesh.write(tmp_path / "a letter.obj", letter)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a letter.mtl", "a letter.obj", "a letter.png"]
    back = trimesh.load_mesh(tmp_path / "a letter.obj", process=False, maintain_order=True)
    np.testing.assert_allclose(back.vertices[back.faces], letter.vertices[letter.faces], atol=2e-6)
    np.testing.assert_allclose(back.visual.uv[back.faces], letter.uvs[letter.faces], atol=2e-6)
    np.testing.assert_array_equal(np.asarray(back.visual.material.image.convert("RGB")), letter.texture)


def test_write_refuses_other_suffixes(tmp_path: Path, ball: Mesh) -> None:
    with pytest.raises(UsageProblem, match="no mesh suffix"):
        mesh.write(tmp_path / "a.stl", ball)


def test_extract_is_deterministic(trimesh, letter: Mesh) -> None:
    begun: list[str] = []
    again = mesh.extract(boxes(*CHIRAL), **SMALL, begin=begun.append)
    assert begun == list(mesh.stages())
    np.testing.assert_array_equal(again.vertices, letter.vertices)
    np.testing.assert_array_equal(again.texture, letter.texture)


def test_extract_colors_vertices_as_the_texture_does(trimesh, letter: Mesh, painted: Mesh) -> None:
    """The same surface without seams; apart from the borders of colours, both bakes agree."""
    assert (painted.texture, painted.uvs, painted.watertight) == (None, None, True)
    assert len(painted.faces) == len(letter.faces)
    np.testing.assert_allclose(np.unique(painted.vertices, axis=0), np.unique(letter.vertices, axis=0), atol=1e-6)
    error = np.abs(painted.colors - texels_near(letter, painted.vertices)).max(axis=1)
    assert np.median(error) < 0.01
    assert np.quantile(error, 0.9) < 0.1
    for low, high, colour in CHIRAL:
        front = (np.array(low) + high) / 2 + [0, 0, (high[2] - low[2]) / 2]
        nearest = np.linalg.norm(painted.vertices - front, axis=1).argmin()
        np.testing.assert_allclose(painted.colors[nearest], colour, atol=0.05)


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_write_vertex_colors_reads_back(trimesh, tmp_path: Path, painted: Mesh, suffix: str) -> None:
    """Linear in a .glb, as glTF says, and sRGB in an .obj, which is the custom."""
    mesh.write(tmp_path / f"f{suffix}", painted)
    assert [each.name for each in tmp_path.iterdir()] == [f"f{suffix}"]
    (back,) = trimesh.load_scene(tmp_path / f"f{suffix}", process=False, maintain_order=True).geometry.values()
    np.testing.assert_allclose(back.vertices[back.faces], painted.vertices[painted.faces], atol=2e-6)
    srgb = painted.colors.astype(float)
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    kept = back.visual.vertex_attributes["color"] if suffix == ".glb" else back.visual.vertex_colors
    found = kept[:, :3] / np.iinfo(kept.dtype).max
    np.testing.assert_allclose(found, linear if suffix == ".glb" else srgb, atol=0.6 / 255)


def test_collide_covers_the_surface_with_convex_pieces(trimesh, letter: Mesh, hulls: Mesh) -> None:
    """Each piece is closed and convex; together they hold the letter and leave its gaps free."""
    pieces = [trimesh.Trimesh(*piece, process=False) for piece in hulls.split()]
    assert 3 <= len(pieces) == hulls.components <= mesh.MOST_PIECES
    assert hulls.watertight
    for piece in pieces:
        assert piece.is_watertight
        assert len(piece.vertices) <= mesh.CORNERS
        a, normals = piece.triangles[:, 0], piece.face_normals
        assert (np.einsum("fvd,fd->fv", piece.vertices[None] - a[:, None], normals) < 1e-4).all()
        assert piece.volume > 0

    def inside(points: np.ndarray) -> np.ndarray:
        """Whether a point lies behind all planes of a piece, less two cells of the grid."""
        found = np.zeros(len(points), bool)
        for piece in pieces:
            away = points[:, None] - piece.triangles[None, :, 0]
            found |= (np.einsum("nfd,fd->nf", away, piece.face_normals) < 2 * 1.26 / 96).all(axis=1)
        return found

    assert inside(letter.vertices).all()
    assert inside(np.array([(low + np.array(high)) / 2 for low, high, _ in CHIRAL])).all()
    assert not inside(np.array([(0.2, -0.5, 0.4), (-0.2, -0.5, -0.4), (0.2, -0.5, 0), (0.35, 0.28, 0)])).any()
    volume = welded(trimesh, letter).volume
    assert 0.9 * volume < sum(piece.volume for piece in pieces) < 1.3 * volume


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_write_convex_pieces_reads_back(trimesh, tmp_path: Path, hulls: Mesh, suffix: str) -> None:
    """A node or an object per piece."""
    mesh.write(tmp_path / f"f{suffix}", hulls)
    scene = trimesh.load_scene(tmp_path / f"f{suffix}", process=False, split_objects=True)
    parts = sorted(scene.geometry.items())
    assert len(parts) == hulls.components
    assert suffix == ".obj" or [name for name, _ in parts] == [f"f_{i:02}" for i in range(len(parts))]
    volumes = [trimesh.Trimesh(*piece, process=False).volume for piece in hulls.split()]
    assert sorted(part.volume for _, part in parts) == pytest.approx(sorted(volumes), rel=1e-3)
    np.testing.assert_allclose(scene.bounds, [hulls.vertices.min(0), hulls.vertices.max(0)], atol=1e-5)


@pytest.mark.parametrize("kind", ["letter", "painted", "hulls"])
def test_write_compresses_a_glb(tmp_path: Path, request, kind: str) -> None:
    pytest.importorskip("DracoPy")
    one = request.getfixturevalue(kind)
    mesh.write(tmp_path / "plain.glb", one)
    mesh.write(tmp_path / "small.glb", one, compress=True)
    plain, small = ((tmp_path / f"{name}.glb").stat().st_size for name in ("plain", "small"))
    assert small < 0.6 * plain
    exact, found = (surface.read(tmp_path / f"{name}.glb", 2000) for name in ("plain", "small"))
    off, nearest = KDTree(exact.means).query(found.means)
    assert np.percentile(off, 90) < 0.05
    changed = np.abs(found.sh0 - exact.sh0[nearest]).max(axis=1)
    assert np.percentile(changed, 50) < 0.3


def test_read_refuses_damaged_draco(tmp_path: Path, painted: Mesh) -> None:
    """Its bytes have changed, or an attribute that the document names is not in them."""
    pytest.importorskip("DracoPy")
    mesh.write(tmp_path / "a.glb", painted, compress=True)
    content = (tmp_path / "a.glb").read_bytes()
    changes = {
        "Draco can't unpack a primitive": content.replace(b"DRACO", b"OCARD"),
        "is not among the attributes": re.sub(
            rb'(_compression":{"bufferView":\d,"attributes":{"\w+":)\d', rb"\g<1>7", content
        ),
    }
    for reason, changed in changes.items():
        assert changed != content
        (tmp_path / "b.glb").write_bytes(changed)
        with pytest.raises(UsageProblem, match=reason):
            surface.read(tmp_path / "b.glb", 100)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kind", ["letter", "painted", "hulls"])
def test_write_glb_passes_the_khronos_validator(
    tmp_path: Path, request, node_modules: Path, kind: str, compress: bool
) -> None:
    if not (node_modules / "gltf-validator").exists():
        pytest.skip(f"{node_modules / 'gltf-validator'} is missing: npm install gltf-validator")
    if compress:
        pytest.importorskip("DracoPy")
    path = tmp_path / "f.glb"
    mesh.write(path, dataclasses.replace(request.getfixturevalue(kind), provenance={"prompt": "F"}), compress=compress)
    script = (
        "const v = require(process.argv[1]), fs = require('fs');"
        "v.validateBytes(new Uint8Array(fs.readFileSync(process.argv[2])))"
        ".then(r => console.log(JSON.stringify(r.issues)))"
    )
    command = ["node", "-e", script, str(node_modules / "gltf-validator"), str(path)]
    command[0] = str(node_modules / ".bin" / "node")
    issues = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    unknown = {"UNSUPPORTED_EXTENSION", "UNUSED_OBJECT"} if compress else set()  # the validator does not decode Draco
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0)
    assert {each["code"] for each in issues["messages"]} <= unknown


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_surface_reads_the_mesh_back(tmp_path, letter: Mesh, suffix) -> None:
    """Gaussians at the vertices have the colours of the texture there, and the provenance of a .glb stays."""
    path = tmp_path / f"letter{suffix}"
    mesh.write(path, dataclasses.replace(letter, provenance={"prompt": "a letter"}))
    splats = surface.read(path, 3000)
    low, high = letter.vertices.min(0), letter.vertices.max(0)
    assert splats.means.min(0) == pytest.approx(low, abs=0.03)
    assert splats.means.max(0) == pytest.approx(high, abs=0.03)
    expected = texels_near(letter, splats.means)
    error = np.abs(0.5 + SH_C0 * splats.sh0 - expected).max(1)
    assert np.median(error) < 0.02
    assert np.quantile(error, 0.8) < 0.1
    assert splats.provenance == ({"prompt": "a letter"} if suffix == ".glb" else {})
