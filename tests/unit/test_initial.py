"""The first Gaussians: shapes by their statistics, distances by brute force, files by what was written into them."""

import math

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from segdream_cli.config import InitConfig
from segdream_cli.config.start import SHAPE_NAMES
from segdream_cli.errors import UsageProblem
from segdream_cli.formats import ply, spz
from segdream_cli.optimize.start import SHAPES, cloud_text, initial_gaussians, neighbour_distance, round_gaussians
from segdream_cli.priors.profile import Vocabulary
from segdream_cli.splats import GROUPS
from segdream_cli.splats.gaussians import Gaussians


def start(seed=0, **settings):
    return initial_gaussians(InitConfig(**{"shape": "sphere"} | settings), torch.Generator().manual_seed(seed))


def test_sphere_fills_a_ball_evenly():
    n, radius = 20_000, 0.6
    means = start(shape="sphere", count=n, radius=radius).means.detach()
    assert means.shape == (n, 3)
    distance = means.norm(dim=-1)
    assert distance.max() <= radius
    for share in (0.2, 0.5, 0.8):  # a ball of radius r holds (r / R)^3 of the points
        inside = float((distance < radius * share ** (1 / 3)).float().mean())
        assert inside == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))
    assert means.mean(0).abs().max() < 4 * radius / math.sqrt(5 * n)
    torch.testing.assert_close(torch.cov(means.T), torch.eye(3) * radius**2 / 5, rtol=0.05, atol=0.002)


def test_polar_sphere_is_uniform_in_distance_polar_angle_and_azimuth():
    """As the release's sphere, whose vertical axis is z; ours is y."""
    n, radius = 20_000, 0.6
    x, y, z = start(shape="polar-sphere", count=n, radius=radius).means.detach().double().T
    distance = (x * x + y * y + z * z).sqrt()
    for values in (distance / radius, (y / distance).acos() / math.pi, torch.atan2(z, x) / (2 * math.pi) % 1):
        for share in (0.2, 0.5, 0.8):
            below = float((values < share).double().mean())
            assert below == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))


def test_box_fills_a_cube_evenly():
    n, side = 20_000, 0.4
    means = start(shape="box", count=n, radius=side).means.detach()
    assert means.abs().max() <= side
    torch.testing.assert_close(torch.cov(means.T), torch.eye(3) * side**2 / 3, rtol=0.05, atol=0.001)
    assert float((means.abs() > side / 2).any(1).float().mean()) == pytest.approx(7 / 8, abs=0.02)


def test_round_gaussians_are_gray_and_of_the_given_opacity():
    gaussians = start(shape="box", count=50, opacity=0.3, gray=0.25, sh_degree=2)
    torch.testing.assert_close(gaussians.opacities.detach(), torch.full((50,), 0.3))
    torch.testing.assert_close(gaussians.colors(torch.zeros(1, 3)).detach(), torch.full((1, 50, 3), 0.25))
    assert torch.equal(gaussians.quats, torch.tensor([1.0, 0, 0, 0]).repeat(50, 1))
    assert gaussians.params["shN"].shape == (50, 8, 3)
    assert torch.equal(gaussians.scales[:, :1].expand(-1, 3), gaussians.scales)


def test_color_noise_has_the_given_deviation():
    colors = 0.5 + 0.28209479177387814 * start(count=5000, gray=0.5, color_noise=0.05).params["sh0"].detach()
    assert float(colors.std()) == pytest.approx(0.05, rel=0.05)
    assert float(colors.mean()) == pytest.approx(0.5, abs=0.003)


def test_initial_gaussians_depend_on_the_seed_alone():
    first, again, other = start(3, count=40), start(3, count=40), start(4, count=40)
    assert all(torch.equal(first.params[name], again.params[name]) for name in GROUPS)
    assert not torch.equal(first.means, other.means)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 60])
def test_neighbour_distance_equals_brute_force(n):
    means = torch.randn(n, 3, generator=torch.Generator().manual_seed(n))
    expected = []
    for i in range(n):
        squares = sorted(float((means[i] - means[j]).square().sum()) for j in range(n) if j != i)[:3]
        expected.append(math.sqrt(sum(squares) / len(squares)))
    torch.testing.assert_close(neighbour_distance(means), torch.tensor(expected))


def test_neighbour_distance_has_a_minimum():
    torch.testing.assert_close(neighbour_distance(torch.ones(9, 3)), torch.full((9,), math.sqrt(1e-7)))


def test_neighbour_distance_of_one_point():
    gaussians = round_gaussians(torch.zeros(1, 3), torch.full((1, 3), 0.5), InitConfig(), torch.Generator())
    assert len(gaussians) == 1
    assert torch.isfinite(gaussians.scales).all()
    assert 0.01 < float(gaussians.scales[0, 0].detach()) < 1


def test_initial_gaussians_keep_a_ply_of_gaussians(tmp_path):
    generator = torch.Generator().manual_seed(0)
    widths = {"means": (3,), "log_scales": (3,), "opacity_logits": (), "sh0": (3,), "shN": (3, 3)}
    tensors = {name: torch.randn(6, *width, generator=generator) for name, width in widths.items()}
    tensors["quats"] = torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=-1)
    made = Gaussians(tensors)
    ply.write(tmp_path / "start.ply", made.splats({}))
    read = start(shape=str(tmp_path / "start.ply"), count=99, opacity=0.9)
    for name in GROUPS:
        torch.testing.assert_close(read.params[name], made.params[name])
    spz.write(tmp_path / "start.spz", made.splats({}))
    packed = start(shape=str(tmp_path / "start.spz"))
    torch.testing.assert_close(packed.means.detach(), made.means.detach(), rtol=0, atol=1e-3)
    turned = start(shape=str(tmp_path / "start.ply"), frame="rub")  # by a half turn about x: the file is RDF
    torch.testing.assert_close(turned.means.detach(), made.means.detach() * torch.tensor([1.0, -1, -1]))


def test_initial_gaussians_read_a_file_as_the_settings_say(tmp_path):
    """A cloud with a row that is not finite, in a frame with z up: x, y, z -> x, z, -y."""
    rows = np.array([(0, 0, 0), (1, 2, 3), (np.nan, 0, 0)], [(axis, "f4") for axis in "xyz"])
    path = tmp_path / "cloud.ply"
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(path))
    expected = torch.tensor([[0.0, 0, 0], [1, 3, -2]])
    for as_splats, opacity in ((False, 0.1), (True, 0.98)):
        notes = []
        config = InitConfig(shape=str(path), frame="rfu", as_splats=as_splats)
        found = initial_gaussians(config, torch.Generator(), note=notes.append)
        torch.testing.assert_close(found.means.detach(), expected)
        torch.testing.assert_close(found.opacities.detach(), torch.full((2,), opacity), rtol=0, atol=0.01)
        assert len(notes) == 1
        assert "1 of 3 rows" in notes[0]
        with pytest.raises(UsageProblem, match="--strict refuses"):
            start(shape=str(path), strict=True, as_splats=as_splats)


@pytest.mark.parametrize("colored", [True, False])
def test_initial_gaussians_round_a_ply_of_points(tmp_path, colored):
    xyz = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 2]], np.float32)
    rgb = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [51, 102, 153]], np.uint8)
    fields = [(axis, "f4") for axis in "xyz"]
    fields += [(name, "u1") for name in ("red", "green", "blue")] if colored else []
    rows = np.array([(*p, *c) if colored else tuple(p) for p, c in zip(xyz, rgb, strict=True)], fields)
    path = tmp_path / "CLOUD.PLY"
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(path))
    gaussians = start(shape=str(path), gray=0.3, opacity=0.2)
    torch.testing.assert_close(gaussians.means.detach(), torch.from_numpy(xyz))
    expected = torch.from_numpy(rgb / 255).float() if colored else torch.full((4, 3), 0.3)
    torch.testing.assert_close(gaussians.colors(torch.zeros(1, 3)).detach(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gaussians.scales[:, 0].detach(), neighbour_distance(torch.from_numpy(xyz)))
    torch.testing.assert_close(gaussians.opacities.detach(), torch.full((4,), 0.2))


@pytest.mark.parametrize(
    ("shape", "simpler", "prompt", "words"),
    [
        ("point-e", None, " A red Car!", "a red car"),
        ("point-e", "a car!", "a red car", "a car"),
        ("point-e", "a car", None, "a car"),
        ("point-e", None, None, None),
        ("sphere", "a zzz", "a red car", None),
        ("start.ply", None, "a red car", None),
    ],
)
def test_cloud_text(shape, simpler, prompt, words):
    config = InitConfig(shape=shape, prompt=simpler)
    assert cloud_text(config, prompt, Vocabulary(objects=("car",), colors=("red",), fillers=("a",))) == words


def test_cloud_text_refuses_unknown_words():
    for simpler in (" ", "a zzz"):
        with pytest.raises(UsageProblem):
            cloud_text(InitConfig(prompt=simpler), "a car", Vocabulary(objects=("car",), fillers=("a",)))


def test_check_start_names_the_known_shapes():
    with pytest.raises(UsageProblem, match="'spere'; use one of point-e, sphere, box, polar-sphere") as caught:
        start(shape="spere")
    assert caught.value.hint == "--init sphere"
    assert tuple(SHAPES) == SHAPE_NAMES


def test_initial_gaussians_name_a_missing_file(tmp_path):
    with pytest.raises(UsageProblem, match=r"none\.ply"):
        start(shape=str(tmp_path / "none.ply"))
