"""Studio light: shadows against sampled points, geometry and closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from segdream_cli.render import studio
from segdream_cli.render.cameras import frame_sphere
from segdream_cli.render.studio import Ground, box_directions, light, project_down, sky_directions
from segdream_cli.render.view import render
from segdream_cli.splats import Splats
from segdream_cli.splats.gaussians import Gaussians
from segdream_cli.splats.transform import rotation_matrices


def splats(means, scales, opacity=0.99, quats=None):
    n = len(means)
    return Splats(
        means=np.float32(means),
        quats=np.float32(np.tile([1, 0, 0, 0], (n, 1)) if quats is None else quats),
        log_scales=np.log(np.float32(scales)),
        opacity_logits=np.full(n, math.log(opacity / (1 - opacity)), np.float32),
        sh0=np.ones((n, 3), np.float32),
        shN=np.zeros((n, 0, 3), np.float32),
    )


def shadow_of(asset, monkeypatch, radius=1.0):
    """The shadow on the ground at y = 0."""
    monkeypatch.setattr(studio, "extents", lambda _: (np.array([-0.5, 0, -0.5]), np.array([0.5, 1, 0.5])))
    return Ground.below(asset, Gaussians.from_splats(asset), radius)


def disc(height, radius=0.5):
    """An opaque horizontal disc of small Gaussians."""
    side = np.linspace(-radius, radius, 61)
    x, z = (each.ravel() for each in np.meshgrid(side, side))
    inside = x**2 + z**2 <= radius**2
    means = np.stack([x, np.full_like(x, height), z], axis=1)[inside]
    return splats(means, np.full((len(means), 3), (0.012, 0.0005, 0.012)))


def test_project_down_has_the_moments_of_projected_points():
    rng = np.random.default_rng(4)
    quats = rng.normal(size=(3, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    scales, means = rng.uniform(0.02, 0.1, (3, 3)), rng.uniform(0.4, 1, (3, 3))
    direction, height = np.array([0.4, 0.8, -0.2]), -0.3
    axes = rotation_matrices(quats) * scales[:, None, :]
    tensors = [torch.tensor(each, dtype=torch.float32) for each in (means, axes, direction)]
    flat, flat_quats, flat_scales = (each.numpy().astype(float) for each in project_down(*tensors, height))
    for i in range(3):
        points = means[i] + rng.normal(size=(400_000, 3)) @ axes[i].T
        shadow = points - direction * ((points[:, 1:] - height)[:, :1] / direction[1])
        np.testing.assert_allclose(shadow[:, 1], height, atol=1e-12)
        np.testing.assert_allclose(flat[i], shadow.mean(axis=0), atol=2e-3)
        turned = rotation_matrices(flat_quats[i : i + 1])[0] * flat_scales[i]
        np.testing.assert_allclose(turned @ turned.T, np.cov(shadow.T), atol=1e-4)


@pytest.mark.parametrize("directions", [sky_directions(400), box_directions(400)])
def test_directions_are_unit_vectors_around_the_zenith(directions):
    np.testing.assert_allclose(directions.norm(dim=1), 1, atol=1e-6)
    assert directions[:, 1].min() >= studio.LOWEST_SINE
    np.testing.assert_allclose(directions.mean(0)[[0, 2]], 0, atol=0.01)


def test_sky_directions_follow_the_cosine():
    """The share of a cosine-weighted sky within an angle of the zenith is sin^2."""
    up = sky_directions(2000)[:, 1].numpy()
    inside = 1 - studio.LOWEST_SINE**2
    for degrees in (20, 40, 60):
        expected = math.sin(math.radians(degrees)) ** 2 / inside
        assert (up > math.cos(math.radians(degrees))).mean() == pytest.approx(expected, abs=0.002)


def test_shadow_of_a_low_disc_is_dark_and_as_large_as_the_disc(monkeypatch):
    ground = shadow_of(disc(0.02), monkeypatch)
    side = (torch.arange(studio.SIDE) + 0.5) / studio.SIDE * 2 - 1
    x, z = torch.meshgrid(side * ground.half, side * ground.half, indexing="xy")
    distance = torch.hypot(x, z)
    assert ground.shade[distance < 0.3].min() > 0.85
    assert ground.shade[distance > 0.7].max() < 0.05
    half = (1 - studio.FAINT) / 2
    assert math.sqrt((ground.shade > half).sum() / studio.SIDE**2 * (2 * ground.half) ** 2 / math.pi) == pytest.approx(
        0.5, abs=0.05
    )


def test_shadow_of_a_high_disc_is_soft_and_weaker(monkeypatch):
    low, high = (shadow_of(disc(height), monkeypatch) for height in (0.02, 1.0))
    middle = studio.SIDE // 2
    assert high.shade[middle, middle] < 0.7 * low.shade[middle, middle]
    sky = 0.5**2 / (1 + 0.5**2)  # form factor of the disc from below its middle
    box = 1.0  # the disc covers the whole soft box
    expected = studio.SKY_SHARE * sky + (1 - studio.SKY_SHARE) * box
    found = float(high.shade[middle, middle]) * (1 - studio.FAINT) + studio.FAINT
    assert found == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 20), (120, 45), (-70, 89)])
def test_darkness_is_where_the_camera_sees_the_point(azimuth, elevation):
    shade = torch.zeros(studio.SIDE, studio.SIDE)
    shade[98:103, 248:253] = 1  # z and x
    ground = Ground(-0.4, 0.1, -0.2, 1.5, shade)
    texel = ((np.array([250, 100]) + 0.5) / studio.SIDE * 2 - 1) * 1.5
    point = np.array([0.1 + texel[0], -0.4, -0.2 + texel[1], 1])
    camera = frame_sphere(torch.tensor([float(azimuth)]), torch.tensor([float(elevation)]), 256)
    seen = camera.Ks[0].numpy() @ (camera.viewmats[0].numpy() @ point)[:3]
    dark = ground.darkness(camera, 256, 256)
    rows, columns = np.mgrid[:256, :256] + 0.5
    weights = dark.numpy()
    middle = (weights * columns).sum() / weights.sum(), (weights * rows).sum() / weights.sum()
    assert middle == pytest.approx(tuple(seen[:2] / seen[2]), abs=1.0)
    below = frame_sphere(torch.tensor([float(azimuth)]), torch.tensor([-80.0]), 256)
    assert not ground.darkness(below, 256, 256).any()


@pytest.mark.parametrize(("axes", "up"), [((0, 1, 2), 1.0), ((0, 2, 1), 0.0)], ids=["plate", "wall"])
def test_light_depends_on_the_slope_and_keeps_alpha(axes, up):
    flat = disc(0.0)
    flat.means[:], flat.log_scales[:] = flat.means[:, axes], flat.log_scales[:, axes]
    camera = frame_sphere(torch.zeros(1), torch.tensor([45.0]), 64)
    with torch.no_grad():
        seen = render(Gaussians.from_splats(flat), camera)
        dim = replace(seen, rgb=seen.rgb / 2)
        lit = light(dim, camera)
    assert torch.equal(lit.alpha, seen.alpha)
    assert float((lit.rgb / dim.rgb)[0, 32, 32, 0]) == pytest.approx(1 + studio.CONTRAST * (up - 0.5), abs=0.01)
