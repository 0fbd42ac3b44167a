"""GCS against autograd of its printed loss in plain steps, its closed form on data at a point, and its draws."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import AnalyticPrior, draw
from hypothesis import given
from hypothesis import strategies as st
from sctd_reference import Literal, Row
from torch import Tensor

from segdream_cli.config import Config
from segdream_cli.config.distill import GcsConfig
from segdream_cli.distill.gcs import Gcs, draw_times, t_window
from segdream_cli.distill.guidance import Conditions
from segdream_cli.distill.method import Gradient
from segdream_cli.distill.schedule import NoiseSchedule
from segdream_cli.distill.sctd import Draw
from segdream_cli.errors import UsageProblem
from segdream_cli.optimize.pipeline import Pipeline

LATENT = (4, 3, 3)
PRIOR = AnalyticPrior(variance=0.3, latent_shape=LATENT, image_size=12)
POINT = AnalyticPrior(variance=0.0, latent_shape=LATENT, image_size=12)
SCHEDULE = NoiseSchedule(PRIOR.alphas_cumprod)
TIMES = [(82, 2, 2), (480, 400, 330), (980, 880, 790)]
VIEWS = 2
ROWS = VIEWS * len(TIMES)
PERP_NEG = torch.tensor([[-2.0, 0.0, -0.4, -1.0, 0.0, -0.1], [-0.5, 0.0, 0.0, -0.2, -1.0, 0.0]])


class Curved(AnalyticPrior):
    """A network that is not linear in its latents, and a decoder that leaves 0..1 here and there."""

    def predict_noise(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        eps = super().predict_noise(latents, timesteps, text)
        return eps + 0.3 * torch.tanh(latents + eps.roll(1, -1)) * (timesteps[:, None, None, None] / 1000)


CURVED = Curved(variance=0.3, latent_shape=LATENT, image_size=12)


def conditions(*, perp_neg: bool = False) -> Conditions:
    """A text of its own for each row and branch."""
    encode = PRIOR.encode_text
    return Conditions(
        null=encode([""]).expand(ROWS, -1, -1),
        uncond=encode(["blurry"]).expand(ROWS, -1, -1),
        positive=encode([f"view {i}" for i in range(ROWS)]),
        negatives=encode([f"{side} {i}" for side in ("front", "side") for i in range(ROWS)]).unflatten(0, (2, ROWS)),
        weights=PERP_NEG if perp_neg else torch.zeros(2, ROWS),
    )


def method(perp_neg: bool = False, **changes: Any) -> Gcs:
    settings = {"distill.method": "gcs", "distill.perp_neg": perp_neg}
    return Gcs(Config().set(settings | {f"distill.gcs.{key}": value for key, value in changes.items()}))


def gradient(prior: AnalyticPrior, noise: Tensor, latents: Tensor, text: Conditions, **changes: Any) -> Gradient:
    draws = [Draw(times, noise[VIEWS * i : VIEWS * (i + 1)]) for i, times in enumerate(TIMES)]
    return method(**changes).gradient(prior, SCHEDULE, latents, text, draws)


def printed_loss(prior: AnalyticPrior, config: GcsConfig, z_0: Tensor, rgb: Tensor, rows: list[Row]) -> Tensor:
    """0.1 / B (w_cc |G_t - sg G_s|² + w_gc |sg x_c - x_n|² + w_cp |rgb - sg(rgb + D(x_c) - D(x_n))|²) of one asset.

    Every solver step and estimate of z_0 is taken as written; noise estimates are constants.
    """

    def estimate(latents: Tensor, t: int, text: Tensor) -> Tensor:
        return prior.predict_noise(latents.detach()[None], torch.tensor([t]), text[None])[0]

    settings = SimpleNamespace(guidance_scale=config.guidance_scale, double_guidance=True)
    steps, total = Literal(estimate, prior.alphas_cumprod, settings), torch.zeros((), dtype=torch.float64)
    phi, decode = steps.consistency, lambda latents: prior.decode(latents[None])[0].clamp(0, 1)
    for z, colors, row in zip(z_0, rgb, rows, strict=True):
        t, s, e = row.times
        z_e = steps.alpha(e) * z + steps.sigma(e) * row.noise
        eps_e = estimate(z_e, e, row.null)
        z_s = phi(z_e, e, s, eps_e)
        z_t = phi(z_s, s, t, estimate(z_s, s, row.null))
        h = steps.guided(z_t, t, row)
        down, hat = phi(z_t, t, s, h), phi(z_t, t, e, h)
        g_s = phi(down, s, e, estimate(down, s, row.null))
        g_t = phi(z_t, t, e, estimate(z_t, t, row.null))
        x_c = (hat - steps.sigma(e) * steps.guided(hat, e, row)) / steps.alpha(e)
        x_n = (z_e - steps.sigma(e) * eps_e) / steps.alpha(e)
        wanted = colors + decode(x_c) - decode(x_n)
        total = total + config.compact_weight * (g_t - g_s.detach()).square().sum()
        total = total + config.guidance_weight * (x_c.detach() - x_n).square().sum()
        total = total + config.pixel_weight * (colors - wanted.detach()).square().sum()
    return config.grad_scale / len(rows) * total


def expected(config: GcsConfig, latents: Tensor, noise: Tensor, text: Conditions) -> tuple[Tensor, Tensor]:
    """The gradients of the printed loss by autograd, asset by asset."""
    found = []
    for i, times in enumerate(TIMES):
        rows = [
            Row(
                noise[k], times, text.null[k], text.uncond[k], text.positive[k], list(text.negatives[:, k]),
                text.weights[:, k].tolist(),
            )
            for k in range(VIEWS * i, VIEWS * (i + 1))
        ]  # fmt: skip
        z_0 = latents[VIEWS * i : VIEWS * (i + 1)].clone().requires_grad_()
        rgb = draw(VIEWS, 3, 12, 12, seed=9).requires_grad_()
        found.append(torch.autograd.grad(printed_loss(CURVED, config, z_0, rgb, rows), (z_0, rgb), allow_unused=True))
    return torch.cat([z for z, _ in found]), torch.cat([x for _, x in found])


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.norm() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10 * float(theirs.abs().max()))


LATENTS, NOISE = draw(ROWS, *LATENT), draw(ROWS, *LATENT, seed=1)
CHANGES: list[dict[str, Any]] = [
    {},
    {"compact_weight": 0.0},
    {"guidance_weight": 0.0},
    {"compact_weight": 3.0, "guidance_weight": 0.2, "pixel_weight": 0.9},
    {"guidance_scale": 1.0},
    {"guidance_scale": 30.0, "grad_scale": 2.5},
]


@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: "-".join(changes) or "published")
def test_gcs_is_the_gradient_of_its_printed_loss(changes: dict[str, Any], perp_neg: bool) -> None:
    """Three assets of two views, one of them with a step of length zero."""
    text, config = conditions(perp_neg=perp_neg), dataclasses.replace(GcsConfig(), **changes)
    ours = gradient(CURVED, NOISE, LATENTS, text, perp_neg=perp_neg, **changes)
    by_latents, by_rgb = expected(config, LATENTS, NOISE, text)
    assert_equal(ours.latents, by_latents)
    assert ours.rgb is not None
    assert_equal(ours.rgb, by_rgb)


def test_gcs_clamps_decoded_images() -> None:
    clamped = gradient(CURVED, NOISE, LATENTS, conditions()).rgb
    assert clamped is not None
    assert float(clamped.abs().max()) <= 0.1 * 0.5 * 2 / VIEWS + 1e-12  # the difference of two images in 0..1
    assert float((clamped == 0).double().mean()) > 0.1  # where both images lie outside on one side


def test_gcs_without_pixel_weight_decodes_nothing() -> None:
    class Blind(Curved):
        def decode(self, latents: Tensor) -> Tensor:
            raise AssertionError

    prior = Blind(variance=0.3, latent_shape=LATENT, image_size=12)
    ours = gradient(prior, NOISE, LATENTS, conditions(), pixel_weight=0.0)
    assert ours.rgb is None
    assert torch.equal(ours.latents, gradient(CURVED, NOISE, LATENTS, conditions()).latents)


@given(st.integers(0, 10**6), st.floats(0, 20))
def test_gcs_on_data_at_a_point_is_a_constant_pull(seed: int, scale: float) -> None:
    """-(0.2 / B) (w_cc abar_e r_e (1 / r_s - 1 / r_t) + w_gc) (m - mu_null), m = mu_u + ω (mu_y - mu_u).

    And the images: 0.2 w_cp / B (D(mu_null) - D(m)).
    """
    text = conditions()
    latents, noise = draw(ROWS, *LATENT, seed=seed), draw(ROWS, *LATENT, seed=seed + 1)
    ours = gradient(POINT, noise, latents, text, guidance_scale=scale)
    assert ours.rgb is not None

    def ratio(t: int) -> float:
        return math.sqrt(1 / float(PRIOR.alphas_cumprod[t]) - 1)

    for k in range(ROWS):
        t, s, e = TIMES[k // VIEWS]
        null, uncond, positive = (part[k].reshape(LATENT) for part in (text.null, text.uncond, text.positive))
        target = uncond + scale * (positive - uncond)
        factor = float(PRIOR.alphas_cumprod[e]) * ratio(e) * (1 / ratio(s) - 1 / ratio(t)) + 0.5
        torch.testing.assert_close(ours.latents[k], -0.2 / VIEWS * factor * (target - null), rtol=1e-6, atol=1e-7)
        before, after = (PRIOR.decode(latent[None])[0].clamp(0, 1) for latent in (null, target))
        torch.testing.assert_close(ours.rgb[k], 0.1 / VIEWS * (before - after), rtol=1e-6, atol=1e-7)


def published_times(i: int, delta: int, k: int) -> tuple[int, int, int]:
    """Timesteps of a drawn index i, and of the k-th of the indices that e may have."""
    i = max(i, delta + 1)
    j = max(i - delta, 1)
    choices = range(max(i - 2 * delta, 0), max(i - delta - 10, 1))
    return i + 1, j + 1, max(choices[k % len(choices)], 1) + 1


@pytest.mark.parametrize("step", [1, 400, 1499, 1500, 5000])
def test_draws_are_those_of_the_release(step: int) -> None:
    left = 1 - min(step / 1500, 1)
    low, high, delta = 20 + int(480 * left), 499 + int(480 * left), int(80 + math.ceil(20 * left))
    generator = torch.Generator().manual_seed(step)
    window = t_window(GcsConfig(), min(step / 1500, 1.0), step / 5000)
    drawn = [draw_times(window, 10, generator) for _ in range(8000)]
    possible = {published_times(i, delta, k) for i in range(low, high + 1) for k in range(delta)}
    assert set(drawn) <= possible
    t, s, e = torch.tensor(drawn).T
    assert (int(t.min()), int(t.max())) == (max(low, delta + 1) + 1, high + 1)
    assert len(set(drawn)) > 0.75 * len(possible) * (1 - math.exp(-8000 / len(possible)))
    spread = ((s - e - 11).double() / (delta - 11))[s > 2 * delta]  # uniform in 0..1 far from the lowest e
    if len(spread):
        assert float(spread.mean()) == pytest.approx(0.5, abs=0.02)
        assert (float(spread.min()), float(spread.max())) == (0, 1)
    empty = float((s == e).double().mean())
    lifted = max(0, delta + 2 - low)  # indices up to delta + 1, 62 after the warm-up
    assert empty == pytest.approx(lifted / 480, abs=0.02)
    assert lifted == 62 or step < 1500


def test_draw_times_shortens_windows_that_leave_no_room() -> None:
    config = GcsConfig(t_min=0, t_high=40, t_max=60, warmup_shift=300, interval=5, interval_start=5, margin=4)
    config.check()
    generator = torch.Generator().manual_seed(0)
    for warmup in (0.0, 0.5, 1.0):
        for _ in range(200):
            t, s, e = draw_times(t_window(config, warmup, warmup), 4, generator)
            assert 2 <= e <= s < t <= 60


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"t_min": 500}, r"distill\.gcs\.t_min must be below t_high"),
        ({"t_high": 990}, r"t_high must not exceed t_max"),
        ({"margin": 80}, r"distill\.gcs\.margin must be below interval"),
        ({"interval_start": 5}, r"distill\.gcs\.margin must be below interval"),
        ({"interval": 979}, r"must not exceed t_max - 2 = 978"),
    ],
)
def test_check_refuses_what_leaves_nothing_to_draw_and_its_hint_cures(changes: dict[str, int], match: str) -> None:
    config = Config().set({"distill.method": "gcs"})
    overrides = {f"distill.gcs.{key}": value for key, value in changes.items()}
    with pytest.raises(UsageProblem, match=match) as caught:
        config.set(overrides)
    cure = dict(part.split("=") for part in (caught.value.hint or "").replace("--set ", "").split())
    config.set(overrides | {key: int(value) for key, value in cure.items()})


@pytest.mark.parametrize(
    ("perp_neg", "setting", "fixed"),
    [(False, "auto", False), (True, "auto", True), (False, "on", True), (True, "off", False)],
)
def test_noise_is_fixed_with_perp_neg_only(perp_neg: bool, setting: str, fixed: bool) -> None:
    shape, generators = (2, 4, 3, 3), {name: torch.Generator().manual_seed(5) for name in ("times", "noise")}
    gcs = method(perp_neg, fixed_noise=setting)
    state = gcs.init_state(shape, generators)
    assert set(state) == ({"noise"} if fixed else set())
    draws = [gcs.draw(step, shape, state, generators) for step in (1, 2)]
    assert torch.equal(draws[0].noise, draws[1].noise) is fixed
    assert draws[0].noise.shape == shape
    assert gcs.describe(draws[0]) == dict(zip("tse", draws[0].times, strict=True))


def test_noise_has_an_offset_per_channel_for_all_views() -> None:
    shape, generators = (3, 4, 64, 64), {name: torch.Generator().manual_seed(5) for name in ("times", "noise")}
    drawn = method(noise_offset=2.0).draw(1, shape, {}, generators).noise
    means = drawn.mean((2, 3))
    torch.testing.assert_close(means, means[:1].expand(3, -1), atol=0.1, rtol=0)
    assert float(means[0].std()) > 0.5


@pytest.mark.parametrize(
    ("changes", "rows", "decodes"),
    [
        ({}, 8, 2),
        ({"pixel_weight": 0.0}, 8, 0),
        ({"guidance_weight": 0.0, "pixel_weight": 0.0}, 6, 0),
        ({"compact_weight": 0.0}, 6, 2),
        ({"guidance_weight": 0.0}, 8, 2),
    ],
)
def test_rows_and_decodes_per_view_are_those_evaluated(changes: dict[str, float], rows: int, decodes: int) -> None:
    class Counting(Curved):
        def __init__(self) -> None:
            super().__init__(variance=0.3, latent_shape=LATENT, image_size=12)
            self.rows = self.images = 0

        def predict_noise(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
            self.rows += len(latents)
            return super().predict_noise(latents, timesteps, text)

        def decode(self, latents: Tensor) -> Tensor:
            self.images += len(latents)
            return super().decode(latents)

    prior = Counting()
    gradient(prior, NOISE, LATENTS, conditions(), **changes)
    assert (prior.rows, prior.images) == (rows * ROWS, decodes * ROWS)
    assert (method(**changes).rows_per_view, method(**changes).decodes_per_view) == (rows, decodes)


def test_rows_per_view_with_perp_neg() -> None:
    """Twelve less the branches of weight zero: 11, since both guided estimates take 3.5 on average."""
    assert method(perp_neg=True).rows_per_view == 11


PIPELINE = {
    "distill.method": "gcs", "distill.perp_neg": True, "optim.steps": 6, "init.shape": "sphere", "init.count": 40,
    "camera.batch": 2, "camera.image_size": 32, "densify.start": 0, "densify.every": 2, "densify.grad_threshold": 0.0,
    "densify.cap": 60, "densify.clone_scale": 0.08, "densify.prune_scale": 10.0, "optim.beg": True,
    "optim.beg_start": 0, "optim.beg_threshold": 0.4,
}  # fmt: skip


def test_pipeline_optimizes_with_gcs_and_resumes_to_the_same_bits() -> None:
    pipeline = Pipeline(Config().set(PIPELINE), AnalyticPrior(), torch.device("cpu"))
    whole, interrupted = pipeline.prepare("a cube", 3), pipeline.prepare("a cube", 3)
    reports = list(pipeline.run([whole]))
    assert all(2 <= times["e"] <= times["s"] < times["t"] <= 980 for report in reports for times in report.timesteps)
    run = pipeline.run([interrupted])
    for _ in range(3):
        next(run)
    restored = pipeline.restore(interrupted.tensors(), "a cube", 3)
    list(pipeline.run([restored]))
    expected = whole.tensors()
    assert all(torch.equal(value, expected[name]) for name, value in restored.tensors().items())


def test_assets_of_a_batch_equal_their_solo_runs() -> None:
    pipeline = Pipeline(Config().set(PIPELINE), AnalyticPrior(), torch.device("cpu"))
    batch, solo = ([pipeline.prepare(prompt, i) for i, prompt in enumerate(("a cube", "a ball"))] for _ in range(2))
    list(pipeline.run(batch))
    for one, other in zip(batch, solo, strict=True):
        list(pipeline.run([other]))
        for name, value in one.tensors().items():
            torch.testing.assert_close(value, other.tensors()[name], rtol=1e-4, atol=1e-5)


def test_pixel_term_pulls_the_colours_on_disparity_steps() -> None:
    runs = {}
    for weight in (0.0, 0.5):
        changes = {"distill.gcs.pixel_weight": weight, "distill.disparity_probability": 1.0, "optim.beg": False}
        pipeline = Pipeline(Config().set(PIPELINE | changes), AnalyticPrior(), torch.device("cpu"))
        asset = pipeline.prepare("a cube", 3)
        next(pipeline.run([asset]))
        runs[weight] = asset.tensors()
    moment = "adam.sh0.exp_avg"
    plain, pulled = (runs[weight][moment].abs().sum() for weight in (0.0, 0.5))
    assert pulled > 3 * plain  # without the term, only the total variation moves the base colours
