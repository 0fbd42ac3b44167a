"""Camera geometry by its laws, progressive ranges by the release's table, and the statistics of every draw."""

import dataclasses
import math
import typing
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from segdream_cli.config import CameraConfig
from segdream_cli.config.sections import Background
from segdream_cli.render.cameras import (
    BACKGROUNDS,
    VIEW_FILL,
    VIEW_FOV_DEG,
    Cameras,
    camera_ranges,
    frame_sphere,
    orbit,
    sample_backgrounds,
    sample_cameras,
    turntable_azimuths,
)

STILL = {"position_jitter": 0.0, "target_jitter": 0.0, "up_jitter": 0.0}
MANY = 4000
CPU = torch.device("cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def camera(azimuth: float, elevation: float = 0.0, radius: float = 3.0, fov: float = 0.6, size: int = 64) -> Cameras:
    return orbit(*(torch.tensor([float(value)]) for value in (azimuth, elevation, radius, fov)), size)


def project(cameras: Cameras, point: tuple[float, float, float]) -> tuple[list[float], float]:
    """Pixel and depth of a world point in the first camera."""
    x = cameras.viewmats[0] @ torch.tensor([*point, 1.0])
    u = cameras.Ks[0] @ x[:3]
    return (u[:2] / u[2]).tolist(), float(x[2])


def assert_rigid(cameras: Cameras) -> None:
    rotation = cameras.viewmats[:, :3, :3].double()
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().expand_as(rotation), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(len(cameras)).double(), rtol=0, atol=1e-5)
    assert torch.equal(cameras.viewmats[:, 3], torch.tensor([0.0, 0, 0, 1]).expand(len(cameras), 4))


@given(st.floats(-720, 720), st.floats(-90, 90), st.floats(0.5, 10))
def test_orbit_cameras_are_rigid_and_look_at_the_origin(azimuth: float, elevation: float, radius: float) -> None:
    cameras = camera(azimuth, elevation, radius)
    assert_rigid(cameras)
    pixel, depth = project(cameras, (0.0, 0.0, 0.0))
    assert pixel == pytest.approx([32, 32], abs=1e-3)
    assert depth == pytest.approx(radius, rel=1e-4)
    a, e = math.radians(azimuth), math.radians(elevation)
    place = [math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)]
    assert (cameras.positions[0] / radius).tolist() == pytest.approx(place, abs=1e-4)


def test_orbit_front_camera_sees_the_front() -> None:
    """Azimuth 0: +Z comes towards the camera, +X is right in the image, +Y is up in it."""
    front = camera(0)
    assert front.positions[0].tolist() == pytest.approx([0, 0, 3])
    assert project(front, (0, 0, 1))[1] == pytest.approx(2)
    (right, _), (_, up) = project(front, (0.5, 0, 0))[0], project(front, (0, 0.5, 0))[0]
    assert right > 40
    assert up < 24


def test_orbit_azimuth_grows_towards_the_left() -> None:
    left = camera(90)
    assert left.positions[0].tolist() == pytest.approx([3, 0, 0], abs=1e-6)
    assert project(left, (0, 0, 1))[0][0] < 24  # the object faces the image's left
    assert camera(180).positions[0].tolist() == pytest.approx([0, 0, -3], abs=1e-6)
    assert camera(0, 30).positions[0, 1] == pytest.approx(1.5)


@pytest.mark.parametrize("elevation", [90.0, -90.0])
@pytest.mark.parametrize("azimuth", [0.0, 37.0, 90.0, -135.0])
def test_orbit_at_the_poles(azimuth: float, elevation: float) -> None:
    pole, near = camera(azimuth, elevation), camera(azimuth, elevation * 0.985)
    assert_rigid(pole)
    assert (pole.viewmats[:, :3, :3] - near.viewmats[:, :3, :3]).abs().max() < 0.04
    assert pole.positions[0].tolist() == pytest.approx([0, math.copysign(3, elevation), 0], abs=1e-5)


def test_orbit_field_of_view_reaches_the_edge() -> None:
    cameras = camera(0, radius=3.0, fov=0.6, size=100)
    edge = 3 * math.tan(0.3)
    assert project(cameras, (edge, 0, 0))[0] == pytest.approx([100, 50], abs=1e-3)
    assert project(cameras, (0, edge, 0))[0] == pytest.approx([50, 0], abs=1e-3)


def test_cameras_to_keeps_angles() -> None:
    cameras = camera(30).to(torch.device("meta"))
    assert cameras.viewmats.device.type == cameras.Ks.device.type == "meta"
    assert cameras.azimuth_deg.device.type == "cpu"


def test_frame_sphere_fits_the_sphere() -> None:
    center, extent = torch.tensor([0.3, -0.2, 0.1]), 0.7
    cameras = frame_sphere(torch.tensor([20.0, 200.0]), torch.tensor([10.0, -40.0]), 128, center=center, extent=extent)
    assert_rigid(cameras)
    distance = (cameras.positions - center).norm(dim=1)
    silhouette = torch.tan(torch.asin(extent / distance)) / math.tan(math.radians(VIEW_FOV_DEG) / 2)
    assert silhouette.tolist() == pytest.approx([VIEW_FILL] * 2, abs=0.05)
    assert silhouette.max() < 1
    assert project(cameras, tuple(center.tolist()))[0] == pytest.approx([64, 64], abs=1e-2)


def test_turntable_azimuths_do_not_repeat() -> None:
    assert turntable_azimuths(4).tolist() == [0, 90, 180, 270]
    assert len(turntable_azimuths(120)) == 120


@pytest.mark.parametrize(
    ("step", "fov", "radius", "azimuth"),
    [
        (1, (0.32, 0.60), (5.20, 5.50), 80),
        (499, (0.32, 0.60), (5.20, 5.50), 80),
        (500, (0.24, 0.60), (4.94, 5.225), 120),
        (1000, (0.18, 0.60), (4.69, 5.00), 180),
        (1500, (0.16, 0.60), (4.46, 5.00), 180),
        (2000, (0.16, 0.60), (4.24, 5.00), 180),
        (2500, (0.16, 0.60), (4.02, 5.00), 180),
        (3000, (0.16, 0.60), (3.82, 5.00), 180),
        (3500, (0.16, 0.60), (3.63, 5.00), 180),
        (4000, (0.16, 0.60), (3.50, 5.00), 180),
        (5000, (0.16, 0.60), (3.50, 5.00), 180),
    ],
)
def test_camera_ranges_widen_as_in_the_release(
    step: int, fov: tuple[float, float], radius: tuple[float, float], azimuth: float
) -> None:
    """Release ceb78a6, train.py lines 272-285: every 500 steps; limits of arguments/__init__.py lines 220-228."""
    ranges = camera_ranges(CameraConfig(azimuth_deg=80.0), step)
    assert ranges.fov_rad == pytest.approx(fov, abs=0.0051)
    assert ranges.radius == pytest.approx(radius, abs=0.0051)
    assert ranges.azimuth_deg == azimuth


def test_camera_ranges_that_never_widen() -> None:
    config = CameraConfig(widen_every=0, azimuth_deg=80.0)
    assert camera_ranges(config, 5000) == camera_ranges(config, 1)


def sample(step: int = 1, seed: int = 0, **settings: Any) -> Cameras:
    return sample_cameras(CameraConfig(**{"batch": MANY, **settings}), step, 64, [rng(seed)])


def fovs(cameras: Cameras) -> Tensor:
    return 2 * torch.atan(cameras.size / 2 / cameras.Ks[:, 0, 0])


def test_sample_cameras_fills_ranges_evenly() -> None:
    cameras = sample(**STILL, azimuth_deg=80.0)
    assert_rigid(cameras)
    radius = cameras.positions.norm(dim=1)
    for values, low, high in (
        (cameras.azimuth_deg, -80, 80),
        (cameras.elevation_deg, -15, 45),
        (radius, 5.2, 5.5),
    ):
        width = high - low
        assert low - 1e-3 <= float(values.min()) < low + 0.01 * width
        assert high - 0.01 * width < float(values.max()) <= high + 1e-3
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.02 * width)
        assert float(values.std()) == pytest.approx(width / math.sqrt(12), rel=0.05)
    assert torch.stack([cameras.azimuth_deg, cameras.elevation_deg]).corrcoef()[0, 1].abs() < 0.06


def test_sample_cameras_gamma_favors_the_middle() -> None:
    values = sample(**STILL, gamma=1.5).azimuth_deg.abs() / 180
    assert float(values.mean()) == pytest.approx(1 / 2.5, abs=0.02)  # the mean of U^1.5


def test_sample_cameras_one_field_of_view_per_step() -> None:
    drawn = [fovs(sample(seed=seed, batch=4)) for seed in range(400)]
    assert all(float(views.max() - views.min()) < 1e-6 for views in drawn)
    first = torch.stack([views[0] for views in drawn])
    assert 0.32 - 1e-4 <= float(first.min()) < 0.33
    assert 0.59 < float(first.max()) <= 0.60 + 1e-4
    assert float(first.mean()) == pytest.approx(0.46, abs=0.015)


def test_sample_cameras_jitter_has_the_size_of_the_release() -> None:
    """Centre uniform within 0.025, target N(0, 0.05), up N(0, 0.01); each alone."""
    fixed = {**STILL, "radius": (5.0, 5.0), "elevation_deg": (0.0, 0.0), "azimuth_deg": 0.0}
    place = sample(**{**fixed, "position_jitter": 0.025}).positions - torch.tensor([0.0, 0, 5])
    assert place.abs().max() <= 0.0251
    assert place.std(0).tolist() == pytest.approx([0.025 / math.sqrt(3)] * 3, rel=0.05)

    aimed = sample(**{**fixed, "target_jitter": 0.05})
    assert_rigid(aimed)
    forward = aimed.viewmats[:, 2, :3]
    assert (5 * forward[:, :2] / -forward[:, 2:]).std(0).tolist() == pytest.approx([0.05, 0.05], rel=0.06)

    tilted = sample(**{**fixed, "up_jitter": 0.01})
    assert_rigid(tilted)
    assert tilted.viewmats[:, 2, :3].std(0).max() < 1e-6  # still looking at the same point
    assert float(tilted.viewmats[:, 0, 1].std()) == pytest.approx(0.01, rel=0.06)  # rolled about the view axis


def test_sample_cameras_shear_as_the_release() -> None:
    """The release inverts a pose whose up vector is jittered and whose other axes are not; here in float64."""
    plain, sheared = (sample(**{"up_jitter": 0.3, "shear": shear}) for shear in (False, True))
    assert_rigid(plain)
    still = sample(up_jitter=0.0)  # the same draws
    axes = still.viewmats[:, :3, :3].double()  # rows: right, down, forward
    poses = torch.linalg.inv(sheared.viewmats.double())
    torch.testing.assert_close(poses[:, :3, 0], axes[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(poses[:, :3, 2], axes[:, 2], rtol=0, atol=1e-5)
    up = torch.nn.functional.normalize(-poses[:, :3, 1], dim=-1)
    tilt = up / (up * -axes[:, 1]).sum(-1, keepdim=True) + axes[:, 1]  # what was added to the up vector, scaled by it
    assert float(tilt.norm(dim=1).median()) > 0.2
    torch.testing.assert_close(-poses[:, :3, 1].norm(dim=1), -torch.ones(len(up)).double(), rtol=0, atol=1e-5)
    # the rigid camera has the same up vector within the plane across its view
    flat = torch.linalg.cross(torch.linalg.cross(axes[:, 2], up), axes[:, 2])
    torch.testing.assert_close(
        -plain.viewmats[:, 1, :3].double(), torch.nn.functional.normalize(flat, dim=-1), rtol=0, atol=1e-5
    )
    for cameras in (plain, sheared):
        torch.testing.assert_close(
            cameras.positions.double(), torch.linalg.inv(cameras.viewmats.double())[:, :3, 3], rtol=0, atol=1e-4
        )
        torch.testing.assert_close(cameras.positions, still.positions, rtol=0, atol=1e-4)


def test_sample_cameras_fill_sets_the_radius() -> None:
    cameras = sample(**STILL, fill=(0.5, 0.8))
    fill = 1 / (cameras.positions.norm(dim=1) * torch.tan(fovs(cameras) / 2))
    assert 0.5 - 1e-3 <= float(fill.min()) < 0.51
    assert 0.79 < float(fill.max()) <= 0.8 + 1e-3


def test_sample_cameras_stratifies_azimuths() -> None:
    for seed in range(20):
        azimuths = sample(**STILL, seed=seed, batch=4, stratified=True).azimuth_deg
        assert ((azimuths + 180) / 90).floor().tolist() == [0, 1, 2, 3]
    narrow = sample(**STILL, stratified=True, azimuth_deg=80.0).azimuth_deg
    assert narrow.abs().max() <= 80


def test_samples_repeat_with_the_same_seed() -> None:
    first, again, other = sample(seed=1, batch=4), sample(seed=1, batch=4), sample(seed=2, batch=4)
    assert torch.equal(first.viewmats, again.viewmats)
    assert torch.equal(first.Ks, again.Ks)
    assert not torch.equal(first.viewmats, other.viewmats)
    config = CameraConfig(backgrounds=dict.fromkeys(BACKGROUNDS, 1.0))
    images = [sample_backgrounds(config, 8, [rng(seed)], CPU) for seed in (1, 1, 2)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_samples_are_independent_per_generator() -> None:
    """Views of several assets in one call are those of one call each, one after the other."""
    config = CameraConfig(batch=3, stratified=True, fill=(0.5, 0.8), backgrounds=dict.fromkeys(BACKGROUNDS, 1.0))
    several, alone = ([rng(seed) for seed in range(4)] for _ in range(2))
    cameras = sample_cameras(config, 600, 64, several)
    images = sample_backgrounds(config, 8, several, CPU)
    each = [sample_cameras(config, 600, 64, [generator]) for generator in alone]
    assert len(cameras) == 12
    for name in ("viewmats", "Ks", "azimuth_deg", "elevation_deg"):
        expected = torch.cat([getattr(one, name) for one in each])
        torch.testing.assert_close(getattr(cameras, name), expected, rtol=1e-6, atol=1e-6)
    expected = torch.cat([sample_backgrounds(config, 8, [generator], CPU) for generator in alone])
    torch.testing.assert_close(images, expected, rtol=1e-6, atol=1e-6)


def test_config_lists_every_background() -> None:
    assert set(typing.get_args(Background)) == set(BACKGROUNDS)


def test_sample_backgrounds_has_the_shares_of_the_release() -> None:
    images = sample_backgrounds(CameraConfig(batch=MANY), 2, [rng()], CPU)
    assert images.shape == (MANY, 2, 2, 3)
    assert torch.equal(images, images[:, :1, :1].expand_as(images))
    colors = images[:, 0, 0]
    black = (colors == 0).all(1)
    assert float(black.double().mean()) == pytest.approx(0.67, abs=0.025)
    drawn = colors[~black]
    assert drawn.mean(0).tolist() == pytest.approx([0.5] * 3, abs=0.03)
    assert drawn.std(0).tolist() == pytest.approx([1 / math.sqrt(12)] * 3, rel=0.06)


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_sample_backgrounds_returns_images(kind: Background) -> None:
    images = sample_backgrounds(CameraConfig(batch=200, backgrounds={kind: 1.0}), 9, [rng()], CPU)
    assert images.shape == (200, 9, 9, 3)
    assert images.min() >= 0
    assert images.max() <= 1
    if kind in ("black", "white"):
        assert torch.equal(images, torch.full_like(images, float(kind == "white")))
    if kind == "gradient":
        plain = (images == images[:, :1, :1]).flatten(1).all(1)
        assert 0.4 < float(plain.double().mean()) < 0.6
        steps = (images[:, 1:] - images[:, :-1])[~plain]
        assert steps.abs().max() < 0.1
        torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=0, atol=1e-5)


def test_sample_backgrounds_skips_weight_zero() -> None:
    images = sample_backgrounds(CameraConfig(batch=500, backgrounds={"black": 0.0, "white": 2.0}), 2, [rng()], CPU)
    assert images.min() == 1


def test_config_backgrounds_are_not_shared() -> None:
    assert dataclasses.replace(CameraConfig()).backgrounds is not CameraConfig().backgrounds
