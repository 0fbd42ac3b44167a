"""Refinement's parts: views, repaint, losses and splits, each against an independent computation."""

import math
import shlex

import numpy as np
import pytest
import torch
from fakes import AnalyticPrior, draw
from scipy import ndimage

from segdream_cli.config import Config, RefineConfig
from segdream_cli.config.values import parse_assignments
from segdream_cli.distill.guidance import Conditions
from segdream_cli.distill.schedule import NoiseSchedule
from segdream_cli.errors import UsageProblem
from segdream_cli.refine.losses import fit_loss, ssim
from segdream_cli.refine.repaint import ddim_timesteps, repaint, sharpen
from segdream_cli.refine.split import prune, shrink, split
from segdream_cli.refine.views import draw_backgrounds, round_cameras
from segdream_cli.render.cameras import frame_sphere, turntable_azimuths
from segdream_cli.render.view import render
from segdream_cli.splats import GROUPS
from segdream_cli.splats.gaussians import Gaussians


def images(b=3, size=20, seed=0):
    return torch.rand(b, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def texts(prior, names):
    rows = prior.encode_text(names)
    null = torch.zeros_like(rows)
    return Conditions(null, 0.5 * rows, rows, torch.zeros(2, *rows.shape), torch.zeros(2, len(names)))


@pytest.mark.parametrize(("t0", "steps", "expected"), [(400, 4, [400, 300, 200, 100, 0]), (100, 3, [100, 67, 33, 0])])
def test_ddim_timesteps_are_even(t0, steps, expected):
    assert ddim_timesteps(t0, steps).tolist() == expected


@pytest.mark.parametrize("size", [32, 64, 160])
def test_sharpen_matches_a_literal_mask(size):
    """Luma by the weights of BT.601, the blur and the local extremes by SciPy."""
    given = images(2, size)
    array, reach = given.numpy(), max(1, round(size * 6 / 256))
    smooth = ndimage.gaussian_filter(array, (0, 0, size * 3 / 256, size * 3 / 256), mode="nearest", radius=reach)
    details = array - smooth
    luma = np.einsum("c,bchw->bhw", [0.299, 0.587, 0.114], details)[:, None]
    square = (1, 1, 2 * reach + 1, 2 * reach + 1)
    lowest = ndimage.minimum_filter(array, square, mode="nearest")
    highest = ndimage.maximum_filter(array, square, mode="nearest")
    expected = np.clip(array + 0.7 * (0.5 * details + 0.5 * luma), lowest, highest)
    np.testing.assert_allclose(sharpen(given, 0.7).numpy(), expected, atol=1e-12)
    assert sharpen(given, 0.0) is given


def test_sharpen_steepens_an_edge_without_halos():
    ramp = ((torch.arange(256.0) - 126) / 4).clamp(0, 1)  # 4 px wide
    edge = (0.25 + 0.5 * ramp).expand(1, 3, 64, 256)
    found = sharpen(edge, 1.5)
    assert found.min() == 0.25
    assert found.max() == 0.75
    assert found.diff(dim=3).max() > 1.5 * edge.diff(dim=3).max()


def test_sharpen_gives_colour_differences_half_the_weight():
    """A green and magenta pattern of one luma is enlarged by 1 + w/2, a grey one by 1 + w, where nothing clamps."""
    waves = 0.02 * torch.sin(torch.arange(256.0) * math.tau / 32).expand(256, 256)
    slope = torch.linspace(0.2, 0.8, 256)[:, None]  # its values nearby leave room above and below the pattern
    found = {}
    for name, colour in (("grey", (1.0, 1.0, 1.0)), ("colour", (1.0, -(0.299 + 0.114) / 0.587, 1.0))):
        pattern = torch.tensor(colour)[None, :, None, None] * waves
        middle = slice(64, 192)
        change = sharpen(slope + pattern, 0.5) - sharpen((slope + 0 * pattern).contiguous(), 0.5) - pattern
        found[name] = float(change[..., middle, middle].norm() / pattern[..., middle, middle].norm())
    assert found["grey"] == pytest.approx(2 * found["colour"], rel=0.02)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_repaint_matches_a_literal_ddim(scale):
    """Written with x0 estimates, as in Eq. 12 of the DDIM paper, one image at a time."""
    prior, t0, steps = AnalyticPrior(variance=0.3), 410, 7
    names, given, noise = ["a", "b", "c"], images(3, 32), draw(3, 4, 8, 8)
    conditions = texts(prior, names)
    found = repaint(prior, NoiseSchedule(prior.alphas_cumprod), given, noise, conditions, t0, steps, scale)
    times = [round(t0 * (steps - k) / steps) for k in range(steps + 1)]
    for row in range(3):
        cumulated = [float(prior.alphas_cumprod[t]) for t in times]
        z0 = prior.encode_image(given[row : row + 1], None)
        z = math.sqrt(cumulated[0]) * z0 + math.sqrt(1 - cumulated[0]) * noise[row : row + 1]
        for k in range(steps):
            t = torch.tensor([times[k]])
            cond = prior.predict_noise(z, t, conditions.positive[row : row + 1])
            uncond = prior.predict_noise(z, t, conditions.uncond[row : row + 1])
            eps = uncond + scale * (cond - uncond)
            x0 = (z - math.sqrt(1 - cumulated[k]) * eps) / math.sqrt(cumulated[k])
            z = math.sqrt(cumulated[k + 1]) * x0 + math.sqrt(1 - cumulated[k + 1]) * eps
        torch.testing.assert_close(found[row : row + 1], prior.decode(z).clamp(0, 1), rtol=1e-9, atol=1e-9)


def test_repaint_of_a_known_image_recovers_it():
    """With a prior that knows one image per text, any noise leads back to it."""
    latents = 0.8 * (2 * torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1)
    prior = AnalyticPrior({"a": latents[0], "b": latents[1]}, variance=1e-6)
    expected = prior.decode(latents)
    start = (expected + 0.1 * draw(2, 3, 32, 32, seed=2)).clamp(0, 1)
    schedule = NoiseSchedule(prior.alphas_cumprod)
    found = repaint(prior, schedule, start, draw(2, 4, 8, 8, seed=3), texts(prior, ["a", "b"]), 600, 30, 1.0)
    error = (found - expected).abs().mean()
    assert error < 0.02
    assert error < 0.3 * (start - expected).abs().mean()


def test_repaint_needs_no_gradient():
    prior = AnalyticPrior()
    given = images(1, 32).requires_grad_()
    schedule = NoiseSchedule(prior.alphas_cumprod)
    assert not repaint(prior, schedule, given, draw(1, 4, 8, 8), texts(prior, ["a"]), 100, 2, 1.0).requires_grad


def literal_ssim(x, y):
    """Window by window with numpy: weights exp(-r² / (2 1.5²)) on 11 by 11 pixels, sum 1; every second row, column."""
    r = np.arange(11) - 5
    weights = np.exp(-(r[:, None] ** 2 + r**2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for a, b in zip(x, y, strict=True):
        for top in range(0, a.shape[0] - 10, 2):
            for left in range(0, a.shape[1] - 10, 2):
                p, q = (image[top : top + 11, left : left + 11] for image in (a, b))
                mp, mq = (weights * p).sum(), (weights * q).sum()
                vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
                cov = (weights * (p - mp) * (q - mq)).sum()
                values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return np.mean(values)


@pytest.mark.parametrize("size", [11, 12, 17, 20])
def test_ssim_matches_a_literal_one(size):
    x = images(2, size, seed=1)
    y = (x + 0.2 * draw(2, 3, size, size, seed=4)).clamp(0, 1)
    for found, one, other in zip(ssim(x, y), x.numpy(), y.numpy(), strict=True):
        assert float(found) == pytest.approx(literal_ssim(one, other), abs=1e-12)
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))


def test_ssim_of_every_second_window_is_close_to_that_of_all():
    """1 - SSIM within 1 %, and its gradient away from the border within 10 %."""
    x = torch.from_numpy(ndimage.gaussian_filter(images(1, 101).numpy(), (0, 0, 1, 1))).requires_grad_()
    y = (x + 0.05 * draw(1, 3, 101, 101, seed=4)).clamp(0, 1).detach()
    every = torch.stack([ssim(x[..., i:, j:], y[..., i:, j:]) for i in (0, 1) for j in (0, 1)]).mean()
    some = ssim(x, y).mean()
    torch.testing.assert_close(1 - some, 1 - every, rtol=0.01, atol=0)
    wanted, found = (torch.autograd.grad(value, x, retain_graph=True)[0] for value in (every, some))
    inner = (..., slice(12, -12), slice(12, -12))
    assert (found - wanted)[inner].norm() < 0.1 * wanted[inner].norm()


def test_ssim_falls_with_blur():
    x = images(1, 40)
    blurred = [torch.from_numpy(ndimage.gaussian_filter(x.numpy(), (0, 0, s, s))) for s in (0.5, 1, 2)]
    values = [float(ssim(x, each)) for each in blurred]
    assert 1 > values[0] > values[1] > values[2]


def test_fit_loss_is_the_weighted_sum():
    config = RefineConfig(l1=0.7, ssim=0.3, opacity=0.5)
    x, y, alpha = images(seed=1), images(seed=2), images(seed=3)[:, :1]
    expected = 0.7 * (x - y).abs().mean() + 0.3 * (1 - ssim(x, y).mean()) + 0.5 * (alpha - alpha**2).mean()
    torch.testing.assert_close(fit_loss(config, x, alpha, y), expected)
    alone = fit_loss(RefineConfig(l1=1, ssim=0, opacity=0), x, alpha, y)
    torch.testing.assert_close(alone, (x - y).abs().mean())


def test_fit_loss_compares_coarse_views_with_the_anchors():
    """Against sums over blocks; squares of two pixels for a side of 64, of one pixel for a side below 32."""
    config = RefineConfig(l1=0, ssim=0, anchor=0.4)
    for size, cells in ((64, 32), (20, 20)):
        x, anchors = images(size=size, seed=1), images(size=cells, seed=2)
        blocks = x.reshape(3, 3, cells, size // cells, cells, size // cells).mean((3, 5))
        expected = 0.4 * (blocks - anchors).abs().mean()
        torch.testing.assert_close(fit_loss(config, x, x[:, :1], x, anchors), expected)
    assert fit_loss(config, x, x[:, :1], x) == 0


def test_strength_and_split_change_every_round():
    rounds = RefineConfig(
        enabled=True, t0=(400, 200), steps=(12, 8), gaussians=(9, 9), strength=0.3, split=False
    ).rounds
    assert [(each.t0, each.steps, each.gaussians) for each in rounds] == [(300, 12, 0), (200, 8, 0)]
    assert [(each.t0, each.steps) for each in RefineConfig(enabled=True, strength=0.005).rounds] == [(5, 5), (5, 5)]


def test_round_cameras_see_all_sides_and_heights():
    config = RefineConfig(views=(24, 24), elevations_deg=(-10.0, 15.0, 40.0))
    rounds = [round_cameras(config, index, torch.arange(24), 64) for index in (0, 1)]
    azimuths = torch.cat([each.azimuth_deg for each in rounds])
    torch.testing.assert_close(azimuths[:3], torch.tensor([0.0, 137.508, 275.016]), rtol=1e-4, atol=1e-3)
    for each in rounds:
        around = each.azimuth_deg.sort().values
        assert torch.cat([around, 360 + around[:1]]).diff().max() < 25
        assert each.elevation_deg[:4].tolist() == [-10, 15, 40, -10]
    assert azimuths.sort().values.diff().min() > 1
    chosen = round_cameras(config, 1, torch.tensor([3, 5]), 64)
    assert torch.equal(chosen.viewmats, rounds[1].viewmats[[3, 5]])


def test_draw_backgrounds_fills_its_range():
    drawn = draw_backgrounds(RefineConfig(background=(0.2, 0.6)), 500, torch.Generator().manual_seed(0))
    assert drawn.shape == (500, 3)
    assert 0.2 <= drawn.min() < 0.22
    assert 0.58 < drawn.max() <= 0.6


def cloud(n=300, seed=0, k=0):
    """A ball of Gaussians like those of an asset: elongated, of all opacities."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    return Gaussians(
        {
            "means": 0.6 * means * torch.rand(n, 1, generator=generator) ** (1 / 3),
            "quats": torch.randn(n, 4, generator=generator),
            "log_scales": (0.02 + 0.06 * torch.rand(n, 3, generator=generator)).log(),
            "opacity_logits": 4 * torch.rand(n, generator=generator) - 2,
            "sh0": 2 * means,
            "shN": torch.randn(n, k, 3, generator=generator),
        }
    )


def test_split_keeps_the_render():
    """With twice as many Gaussians, the images differ by a few hundredths on average."""
    gaussians = cloud()
    cameras = frame_sphere(turntable_azimuths(4), torch.full((4,), 20.0), 64)
    more = split(gaussians, 10_000)
    assert len(more) == 600
    with torch.no_grad():
        before, after = render(gaussians, cameras), render(more, cameras)
    covered = before.alpha > 0.1
    assert (after.rgb - before.rgb)[covered.expand_as(before.rgb)].abs().mean() < 0.02
    assert (after.alpha - before.alpha)[covered].abs().mean() < 0.02
    assert (after.alpha - before.alpha).abs().max() < 0.12


@torch.no_grad()
def test_split_of_one_gaussian_keeps_moments_and_centre():
    parts = {name: value.detach()[:1].double() for name, value in cloud(1, k=3).params.items()}
    one = Gaussians(parts)
    both = split(one, 2)
    assert len(both) == 2
    torch.testing.assert_close(both.means.mean(0), one.means[0])
    torch.testing.assert_close(both.params["shN"], one.params["shN"].expand(2, -1, -1))
    w, x, y, z = torch.nn.functional.normalize(one.params["quats"][0], dim=0).tolist()
    rotation = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )

    def covariance(scales):
        return rotation @ torch.diag(scales.square()) @ rotation.T

    shift = both.means - one.means
    second = covariance(both.scales[0]) + shift.T @ shift / 2
    torch.testing.assert_close(second, covariance(one.scales[0]), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(1 - (1 - both.opacities).prod(), one.opacities[0], rtol=1e-4, atol=0)


def test_split_takes_the_longest_axes_up_to_the_target():
    gaussians = cloud()
    more = split(gaussians, 330)
    assert len(more) == 330
    chosen = gaussians.scales.max(-1).values.topk(30).indices
    rest = [i for i in range(300) if i not in chosen.tolist()]
    for name in GROUPS:
        assert torch.equal(more.params[name][:270], gaussians.params[name][rest]), name
    assert split(gaussians, 0) is gaussians
    assert split(gaussians, 300) is gaussians


def test_prune_removes_the_faint():
    gaussians = cloud()
    fewer = prune(gaussians, 0.4)
    assert torch.equal(fewer.means, gaussians.means[gaussians.opacities >= 0.4])
    assert 0 < len(fewer) < 300
    assert prune(gaussians, 1.0) is gaussians


def test_shrink_limits_the_longest_axis_and_keeps_proportions():
    gaussians = cloud()
    limits = np.linspace(0.03, 0.07, len(gaussians), dtype=np.float32)
    smaller = shrink(gaussians, torch.from_numpy(limits))
    factors = np.minimum(1, limits / gaussians.scales.detach().numpy().max(1))
    assert 0 < (factors < 1).sum() < 300
    np.testing.assert_allclose(
        smaller.scales.detach().numpy(), gaussians.scales.detach().numpy() * factors[:, None], rtol=1e-5
    )
    for name in set(GROUPS) - {"log_scales"}:
        assert torch.equal(smaller.params[name], gaussians.params[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        {"refine.t0": [300]},
        {"refine.t0": [300, 200, 100]},
        {"refine.views": [4], "refine.t0": [250, 200, 150]},
        {"refine.steps": [0, 12]},
        {"refine.t0": []},
        {"refine.t0": 300},
        {"refine.t0": [300, 0]},
        {"refine.t0": [300.5, 200]},
        {"refine.elevations_deg": [100, 3]},
        {"refine.elevations_deg": [100]},
    ],
)
def test_settings_are_refused_with_a_hint_that_works(settings):
    with pytest.raises(UsageProblem, match="refine") as caught:
        Config().set(settings)
    hint = parse_assignments([word for word in shlex.split(caught.value.hint or "") if word != "--set"])
    Config().set({**settings, **hint})


def test_rounds_split_up_to_the_cap():
    config = Config().set({"refine.enabled": True, "refine.gaussians": [500, 5000], "refine.cap": 1000})
    assert [each.gaussians for each in config.refine.rounds] == [500, 1000]


def test_rounds_locate_their_steps():
    config = Config().set({"refine.enabled": True, "refine.iterations": [2, 3]})
    assert [config.refine.locate(step) for step in range(5)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert config.last_step == config.optim.steps + 5
    assert Config().last_step == Config().optim.steps
