"""SDS against its formula in plain numbers, its closed form on Gaussian data, and its place in the pipeline."""

import math

import pytest
import torch
from fakes import AnalyticPrior, draw
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from segdream_cli.config import Config
from segdream_cli.config.distill import SdsConfig
from segdream_cli.distill.guidance import Conditions
from segdream_cli.distill.schedule import NoiseSchedule
from segdream_cli.distill.sds import Draw, Sds, sds
from segdream_cli.optimize.pipeline import Pipeline

VARIANCE = 0.3
PRIOR = AnalyticPrior(variance=VARIANCE, latent_shape=(4, 3, 3))
SCHEDULE = NoiseSchedule(PRIOR.alphas_cumprod)
TIMESTEPS = torch.tensor([20, 400, 980])


def conditions(weights: Tensor | None = None) -> Conditions:
    """A text of its own for each row and branch."""
    b, encode = len(TIMESTEPS), PRIOR.encode_text
    return Conditions(
        null=encode([""]).expand(b, -1, -1),
        uncond=encode(["blurry"]).expand(b, -1, -1),
        positive=encode([f"view {i}" for i in range(b)]),
        negatives=encode([f"{side} {i}" for side in ("front", "side") for i in range(b)]).unflatten(0, (2, b)),
        weights=torch.zeros(2, b) if weights is None else weights,
    )


def mean(text: Tensor) -> Tensor:
    """The data's mean under an embedding."""
    return text.reshape(4, 3, 3).double()


def predict_by_formula(z: Tensor, t: int, mu: Tensor) -> Tensor:
    """The exact noise estimate for N(mu, VARIANCE) data, from alphas_cumprod alone."""
    abar = float(PRIOR.alphas_cumprod[t])
    return math.sqrt(1 - abar) * (z - math.sqrt(abar) * mu) / (abar * VARIANCE + 1 - abar)


@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("weight", ["sigma_squared", "sigma_over_alpha", "none"])
def test_sds_equals_its_formula_row_by_row(weight: str, perp_neg: bool) -> None:
    """Also that Perp-Neg pairs each row's text with that row's latents and timestep."""
    branch_weights = torch.tensor([[-2.0, 0.0, -0.4], [-0.5, -1.0, 0.0]]) if perp_neg else None
    text, config = conditions(branch_weights), SdsConfig(guidance_scale=30.0, weight=weight, grad_scale=2.5)
    latents, noise = draw(3, 4, 3, 3), draw(3, 4, 3, 3, seed=1)
    ours = sds(PRIOR.predict_noise, SCHEDULE, latents, noise, TIMESTEPS, text, config)
    for i, t in enumerate(TIMESTEPS.tolist()):
        abar = float(PRIOR.alphas_cumprod[t])
        z_t = math.sqrt(abar) * latents[i] + math.sqrt(1 - abar) * noise[i]
        base = predict_by_formula(z_t, t, mean(text.uncond[i]))
        positive = predict_by_formula(z_t, t, mean(text.positive[i])) - base
        direction = positive.clone()
        for k in range(2):
            negative = predict_by_formula(z_t, t, mean(text.negatives[k, i])) - base
            along = (negative * positive).sum() / (positive * positive).sum()
            direction += float(text.weights[k, i]) * (negative - along * positive)
        factor = {"sigma_squared": 1 - abar, "sigma_over_alpha": math.sqrt(1 / abar - 1), "none": 1.0}[weight]
        expected = 2.5 * factor * (base + 30.0 * direction - noise[i])
        torch.testing.assert_close(ours[i], expected, rtol=1e-9, atol=1e-9)


@given(st.integers(20, 980), st.floats(0, 50))
def test_sds_averages_to_a_pull_towards_the_guided_mean(t: int, scale: float) -> None:
    """Over ε and -ε: w r / (S + r²) (z_0 - m), with r = σ_t / α_t and m = mu_u + ω (mu_y - mu_u)."""
    text, config, times = conditions(), SdsConfig(guidance_scale=scale), torch.full((3,), t)
    latents, noise = draw(3, 4, 3, 3), draw(3, 4, 3, 3, seed=1)
    both = [sds(PRIOR.predict_noise, SCHEDULE, latents, sign * noise, times, text, config) for sign in (1, -1)]
    abar = float(PRIOR.alphas_cumprod[t])
    r = math.sqrt(1 / abar - 1)
    for i in range(3):
        target = mean(text.uncond[i]) + scale * (mean(text.positive[i]) - mean(text.uncond[i]))
        expected = (1 - abar) * r / (VARIANCE + r * r) * (latents[i] - target)
        torch.testing.assert_close((both[0][i] + both[1][i]) / 2, expected, rtol=1e-7, atol=1e-8)


def test_sds_cancels_the_noise_for_data_at_a_point() -> None:
    """With variance 0 each single draw gives w (z_0 - m) / r, whatever the noise."""
    point = AnalyticPrior(variance=0.0, latent_shape=(4, 3, 3))
    text, config, latents = conditions(), SdsConfig(guidance_scale=1.0), draw(3, 4, 3, 3)
    draws = [
        sds(point.predict_noise, SCHEDULE, latents, draw(3, 4, 3, 3, seed=seed), TIMESTEPS, text, config)
        for seed in (1, 2)
    ]
    torch.testing.assert_close(draws[0], draws[1], rtol=1e-8, atol=1e-9)
    abar = PRIOR.alphas_cumprod[TIMESTEPS][:, None, None, None]
    means = torch.stack([mean(embedding) for embedding in text.positive])
    torch.testing.assert_close(draws[0], (1 - abar) * (latents - means) / (1 / abar - 1).sqrt(), rtol=1e-8, atol=1e-9)


def test_draws_cover_the_timesteps_and_are_fresh() -> None:
    method = Sds(Config().set({"distill.method": "sds", "distill.t_min": 100, "distill.t_max": 103}))
    generators = {name: torch.Generator().manual_seed(5) for name in ("times", "noise")}
    assert method.init_state((64, 4, 2, 2), generators) == {}
    draws = [method.draw(step, (64, 4, 2, 2), {}, generators) for step in (1, 2)]
    assert set(torch.cat([each.t for each in draws]).tolist()) == {100, 101, 102, 103}
    assert draws[0].noise.shape == (64, 4, 2, 2)
    assert not torch.equal(draws[0].noise, draws[1].noise)
    assert method.describe(draws[0]) == {"t": draws[0].t.tolist()}


def test_gradient_averages_over_the_views_of_each_asset() -> None:
    method, latents = Sds(Config()), draw(3, 4, 3, 3)
    drawn = Draw(TIMESTEPS, draw(3, 4, 3, 3, seed=1))
    whole = sds(PRIOR.predict_noise, SCHEDULE, latents, drawn.noise, TIMESTEPS, conditions(), SdsConfig())
    torch.testing.assert_close(method.gradient(PRIOR, SCHEDULE, latents, conditions(), [drawn]).latents, whole / 3)
    each = [Draw(TIMESTEPS[i : i + 1], drawn.noise[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(method.gradient(PRIOR, SCHEDULE, latents, conditions(), each).latents, whole)


@pytest.mark.parametrize(("perp_neg", "branches"), [(False, 2), (True, 4)])
def test_rows_per_view_bound_the_network_evaluations(perp_neg: bool, branches: int) -> None:
    """The guidance evaluates two rows per view, and up to two more where Perp-Neg's branches count."""
    rows = Sds(Config().set({"distill.perp_neg": perp_neg})).rows_per_view
    assert 2 <= rows <= branches


def test_pipeline_optimizes_with_sds_and_resumes_to_the_same_bits() -> None:
    settings = {
        "distill.method": "sds", "optim.steps": 6, "init.shape": "sphere", "init.count": 40, "camera.batch": 2,
        "camera.image_size": 32, "densify.start": 0, "densify.every": 2, "densify.grad_threshold": 0.0,
        "densify.cap": 60, "densify.clone_scale": 0.08, "densify.prune_scale": 10.0,
    }  # fmt: skip
    pipeline = Pipeline(Config().set(settings), AnalyticPrior(), torch.device("cpu"))
    whole, interrupted = pipeline.prepare("a cube", 3), pipeline.prepare("a cube", 3)
    reports = list(pipeline.run([whole]))
    assert len(reports) == 6
    assert all(20 <= t <= 980 for report in reports for t in report.timesteps[0]["t"])
    run = pipeline.run([interrupted])
    for _ in range(3):
        next(run)
    restored = pipeline.restore(interrupted.tensors(), "a cube", 3)
    list(pipeline.run([restored]))
    expected = whole.tensors()
    assert all(torch.equal(value, expected[name]) for name, value in restored.tensors().items())
