"""The embedded prior makes an asset on the CPU, and it is the requested object, not a ball of its colour.

The reference is the procedural world that the prior was trained on: the mean of many of its school buses, seen from
four sides. The score is the overlap of silhouettes (intersection over union of soft masks) in the worst of the four
views, after the best of a few scales and heights; no horizontal shift, no rotation.
"""

import itertools

import numpy as np
import pytest
import torch

from segdream_cli import load, read
from segdream_cli.config import MINI
from segdream_cli.evaluate.measures import silhouette_iou
from segdream_cli.render.cameras import frame_sphere
from segdream_cli.render.view import render
from segdream_cli.splats.gaussians import SH_C0, Gaussians
from training.world.camera import look_at
from training.world.catalog import Combination, build
from training.world.render import draw

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
AZIMUTHS_DEG, ELEVATION_DEG, SIZE, SHARPER, BUSES = (0.0, 90.0, 180.0, 270.0), 15.0, 32, 2, 48
EXTENTS, HEIGHTS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3), (-0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15)
ENOUGH = 0.75
"""A bus reaches 0.83; the best ball 0.63, a bus turned by 90 degrees 0.48."""


@pytest.fixture(scope="module")
def reference():
    """Masks [4, 32, 32] and premultiplied colours [4, 32, 32, 3] at azimuth 0, 90, 180 and 270, in 0..1."""
    primitives, looks = build([Combination("school bus", "yellow", "")] * BUSES, np.random.default_rng(0))
    camera = frame_sphere(torch.zeros(1), torch.full((1,), ELEVATION_DEG), SIZE * SHARPER)
    tan = np.full(BUSES, camera.size / 2 / camera.Ks[0, 0, 0].item())
    distance, elevation = np.full(BUSES, camera.positions[0].norm().item()), np.full(BUSES, ELEVATION_DEG)
    means = []
    for azimuth in AZIMUTHS_DEG:
        views = look_at(np.arange(BUSES), np.full(BUSES, azimuth), elevation, tan, distance)
        images = draw(primitives, looks, views, SIZE * SHARPER, CPU).permute(0, 3, 1, 2) / 255
        means.append(torch.nn.functional.avg_pool2d(images, SHARPER).mean(0).permute(1, 2, 0).numpy())
    return np.stack(means)[..., 3], np.stack(means)[..., :3]


@pytest.fixture(scope="module")
def bus(tmp_path_factory):
    """A yellow school bus that the embedded prior made."""
    session = load(prior=MINI, quality="draft", device="cpu")
    path = tmp_path_factory.mktemp("bus") / "bus.ply"
    session.generate("a yellow school bus", output=path)
    return Gaussians.from_splats(read(path))


def ball(radius, color):
    """An opaque ball of one colour."""
    n, generator = 3000, torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    return Gaussians(
        {
            "means": radius * direction * torch.rand(n, 1, generator=generator) ** (1 / 3),
            "quats": torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
            "log_scales": torch.full((n, 3), 0.03).log(),
            "opacity_logits": torch.full((n,), 3.0),
            "sh0": ((torch.as_tensor(color).float() - 0.5) / SH_C0).repeat(n, 1),
            "shN": torch.zeros(n, 0, 3),
        }
    )


def best_views(gaussians, masks, turn_deg=0.0):
    """The overlap [4] with the masks at the scale and height that suit the worst view best, and the views there."""
    azimuths, elevations = torch.tensor(AZIMUTHS_DEG) + turn_deg, torch.full((4,), ELEVATION_DEG)
    best, seen = np.zeros(4), None
    for extent, height in itertools.product(EXTENTS, HEIGHTS):
        cameras = frame_sphere(
            azimuths, elevations, masks.shape[-1], center=torch.tensor([0.0, height, 0.0]), extent=extent
        )
        with torch.no_grad():
            image = render(gaussians, cameras)
        alpha = image.alpha[..., 0].numpy()
        overlap = silhouette_iou(alpha, masks)
        if overlap.min() > best.min():
            best, seen = overlap, image
    return best, seen


@pytest.mark.slow
def test_generate_bus_has_the_silhouette_of_a_bus(bus, reference):
    overlap, _ = best_views(bus, reference[0])
    assert overlap.min() > ENOUGH, overlap
    turned, _ = best_views(bus, reference[0], turn_deg=90.0)
    assert turned.min() < ENOUGH, turned


@pytest.mark.slow
def test_generate_bus_has_the_color_of_a_bus(bus, reference):
    """Mean colour inside the masks; yellow is far more than this distance from the other colours."""
    masks, colors = reference
    _, image = best_views(bus, masks)
    inside = masks[..., None]
    mean = (image.rgb.numpy() * inside).sum((0, 1, 2)) / (image.alpha.numpy() * inside).sum()
    expected = colors.sum((0, 1, 2)) / masks.sum()
    assert np.abs(mean - expected).max() < 0.22, (mean, expected)
    red, green, blue = mean
    assert min(red, green) > 1.5 * blue
    assert abs(red - green) < 0.2


@pytest.mark.slow
def test_silhouette_rejects_a_ball_of_the_right_color(reference):
    masks, colors = reference
    color = colors.sum((0, 1, 2)) / masks.sum()
    for radius in (0.25, 0.35, 0.45, 0.55, 0.65):
        overlap, image = best_views(ball(radius, color), masks)
        assert image is not None
        assert 0.2 < overlap.min() < ENOUGH - 0.08, overlap


def test_silhouette_accepts_the_reference(reference):
    """The masks are of a bus: long from the side, narrow from the front, and mirror images left and right."""
    masks, _ = reference
    widths = [(mask.max(0) > 0.5).sum() for mask in masks]
    assert min(widths[1], widths[3]) > 1.7 * max(widths[0], widths[2])
    assert np.abs(masks[1] - masks[3][:, ::-1]).mean() < 0.02
    assert np.abs(masks[0] - masks[0][:, ::-1]).mean() < 0.03
