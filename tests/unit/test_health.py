"""Measures of health against closed forms, brute force and Gaussians whose projection is known."""

import math
import statistics

import numpy as np
import pytest
import torch

from segdream_cli import formats
from segdream_cli.evaluate.health import edge_px, examine, file_bytes, needle_share, solid_share
from segdream_cli.splats import Splats
from segdream_cli.splats.gaussians import Gaussians


def gaussians(scale: float, opacity: float, n: int = 1, spread: float = 0.0, seed: int = 0) -> Gaussians:
    """Round Gaussians of one scale and opacity, within `spread` of the origin along each axis."""
    generator = torch.Generator().manual_seed(seed)
    return Gaussians(
        {
            "means": spread * (2 * torch.rand(n, 3, generator=generator) - 1),
            "quats": torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
            "log_scales": torch.full((n, 3), math.log(scale)),
            "opacity_logits": torch.full((n,), math.log(opacity / (1 - opacity))),
            "sh0": torch.zeros(n, 3),
            "shN": torch.zeros(n, 0, 3),
        }
    )


def test_solid_share_by_the_distance_to_every_pixel_outside() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :40]
    alpha = np.where(np.hypot(y - 20, x - 18) < 15, rng.choice([0.6, 0.97, 0.99], (40, 40)), rng.random((40, 40)) / 2.1)
    outside = np.argwhere(alpha < 0.5)
    inside = [
        alpha[pixel] >= 0.97
        for pixel in np.ndindex(40, 40)
        if min(math.dist(pixel, other) for other in outside.tolist()) > 4
    ]
    assert len(inside) > 200
    assert solid_share(alpha) == pytest.approx(sum(inside) / len(inside))


def test_solid_share_ends_at_the_rim_of_the_image() -> None:
    alpha = np.ones((20, 20))
    alpha[4, 4] = alpha[3, 10] = 0.6  # the former counts, the latter is too near the rim
    assert solid_share(alpha) == pytest.approx(1 - 1 / 144)
    assert math.isnan(solid_share(np.ones((8, 8))))
    assert math.isnan(solid_share(np.zeros((40, 40))))


def test_edge_px_of_a_ramp_and_of_a_blurred_step() -> None:
    """A ramp of slope k takes 0.8 / k pixels; a step blurred by σ takes 2 · 1.28155 σ."""
    x = np.arange(80.0)
    ramp = np.clip((x - 20.3) / 16, 0, 1)
    blurred = np.array([(1 + math.erf((v - 40) / 6 / math.sqrt(2))) / 2 for v in x])
    assert edge_px(ramp[None]) == pytest.approx(0.8 * 16)
    assert edge_px(blurred[None]) == pytest.approx(2 * 1.2815516 * 6, rel=0.01)
    assert edge_px(np.stack([ramp, ramp, blurred])) == pytest.approx(0.8 * 16)


def test_edge_px_skips_what_lies_outside_the_edge() -> None:
    """Faint specks before the edge do not widen it; lines without silhouette or outside do not count."""
    speck = np.array([0, 0.3, 0, 0, 1, 1, 1, 1.0])
    assert edge_px(np.stack([speck, np.ones(8), np.full(8, 0.4)])) == pytest.approx(0.8)
    haze = np.array([0, 0.2, 0.2, 0.2, 1, 1, 1, 1.0])
    assert edge_px(haze[None]) == pytest.approx(3 + 0.7 / 0.8 - 0.1 / 0.2)
    assert math.isinf(edge_px(np.array([[0, 0.5, 0.8, 0.7]])))
    assert math.isnan(edge_px(np.full((3, 8), 0.4)))


def test_needle_share_compares_the_two_longest_axes() -> None:
    scales = np.array([[1, 0.09, 0.01], [0.09, 1, 0.09], [1, 0.9, 0.01], [0.11, 0.11, 1], [1, 0.01, 0.01]])
    opacities = np.array([0.9, 0.9, 0.9, 0.9, 0.05])  # the last needle is invisible
    splats = gaussians(1, 0.5, 5).splats({})
    splats.log_scales[:] = np.log(scales)
    splats.opacity_logits[:] = np.log(opacities / (1 - opacities))
    assert needle_share(splats) == pytest.approx(2 / 4)
    assert math.isnan(needle_share(splats.select(np.array([4]))))


@pytest.mark.parametrize("format", ["ply-compact", "spz"])
def test_file_bytes_is_the_size_of_the_file(tmp_path, format: str) -> None:
    splats: Splats = gaussians(0.1, 0.5, 50, spread=0.5).splats({})
    path = tmp_path / f"asset{formats.FORMATS[format].suffix}"
    formats.write(path, splats, format)
    assert file_bytes(splats, format) == len(path.read_bytes())


def test_examine_of_one_round_gaussian_by_its_projection() -> None:
    """Alpha is o exp(-r² / 2σ²) about the middle of all views, so widths and shares are those of circles."""
    scale, opacity, size = 0.2, 0.99, 256
    focal = size / 2 / math.tan(math.radians(20))
    sigma = focal * scale * 0.85 * math.sin(math.radians(20))  # the camera's distance is 1 / (0.85 sin 20°)

    def radius(level: float) -> float:
        return sigma * math.sqrt(2 * math.log(opacity / level))

    def width(x: float) -> float:
        """Along a line at distance x from the middle."""
        ends = [radius(level) ** 2 - x**2 for level in (0.1, 0.9)]
        return math.sqrt(ends[0]) - math.sqrt(ends[1]) if ends[1] > 0 else math.inf

    lines = [width(i + 0.5) for i in range(round(radius(0.5)))]
    found = examine(gaussians(scale, opacity), size)
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    share = (np.hypot(y, x) < radius(0.97)).sum() / (np.hypot(y, x) < radius(0.5) - 4).sum()
    assert (found.solid, found.solid_lowest) == pytest.approx((share, share), rel=0.05)
    expected = statistics.median(lines)
    assert math.isinf(expected)  # the lines within r(0.9) are fewer than half of those within r(0.5)
    assert found.roof_px == found.side_px == expected
    assert (found.gaussians, found.needles) == (1, 0)


def test_examine_of_a_ball_of_gaussians() -> None:
    """A dense ball is solid with narrow edges from all sides; the same ball at low opacity is not."""
    ball = gaussians(0.03, 0.95, 12000, spread=0.7)
    inside = ball.means.norm(dim=-1) < 0.7
    ball = Gaussians({name: value[inside] for name, value in ball.params.items()})
    solid = examine(ball, 128)
    assert solid.solid_lowest == 1
    assert 2 < solid.roof_px < 12
    assert solid.side_px == pytest.approx(solid.roof_px, rel=0.2)
    hazy = {**ball.params, "opacity_logits": torch.full((len(ball),), -2.5)}
    faint = examine(Gaussians(hazy), 128)
    assert faint.solid < 0.9
    assert faint.side_px > 1.5 * solid.side_px
