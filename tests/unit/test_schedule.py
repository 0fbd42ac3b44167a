"""The noise schedule and the solver step against diffusers and the exact flow."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DPMSolverMultistepScheduler
from fakes import AnalyticPrior, draw, stable_diffusion_alphas
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from segdream_cli.distill.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule(stable_diffusion_alphas())
OPTIONS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
TIMES = st.integers(0, 999)


def at(*timesteps: int) -> Tensor:
    return torch.tensor(timesteps)


def test_shape_hints_are_checked_in_tests() -> None:
    with pytest.raises(TypeCheckError):
        SCHEDULE.step(draw(1, 4, 2, 2), draw(1, 4, 2, 3), at(5), at(3))


def test_fake_alphas_equal_diffusers() -> None:
    torch.testing.assert_close(
        DDIMScheduler(**OPTIONS).alphas_cumprod.double(), SCHEDULE.alphas_cumprod, rtol=1e-5, atol=1e-7
    )


def test_add_noise_equals_diffusers() -> None:
    scheduler = DDIMScheduler(**OPTIONS)
    latents, noise, t = draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1), at(0, 500, 999)
    ours = NoiseSchedule(scheduler.alphas_cumprod).add_noise(latents, noise, t)
    torch.testing.assert_close(ours, scheduler.add_noise(latents, noise, t), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n_steps", [10, 50, 1000])
def test_step_down_equals_diffusers_ddim(n_steps: int) -> None:
    scheduler = DDIMScheduler(**OPTIONS, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(n_steps)
    ours = NoiseSchedule(scheduler.alphas_cumprod)
    latents, eps, stride = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1), 1000 // n_steps
    for t in scheduler.timesteps[1:-1:7].tolist():
        theirs = scheduler.step(eps, t, latents, eta=0.0).prev_sample
        torch.testing.assert_close(ours.step(latents, eps, at(t), at(t - stride)), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_steps", [10, 50])
def test_step_up_equals_diffusers_ddim_inversion(n_steps: int) -> None:
    scheduler = DDIMInverseScheduler(**OPTIONS, clip_sample=False)
    scheduler.set_timesteps(n_steps)
    ours = NoiseSchedule(scheduler.alphas_cumprod)
    latents, eps, stride = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1), 1000 // n_steps
    for t in scheduler.timesteps[1:].tolist():  # it is called with the time it goes to
        theirs = scheduler.step(eps, t, latents).prev_sample
        torch.testing.assert_close(ours.step(latents, eps, at(t - stride), at(t)), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' use of numpy
def test_steps_down_equal_diffusers_first_order_dpm_solver() -> None:
    scheduler = DPMSolverMultistepScheduler(**OPTIONS, solver_order=1, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(20)
    ours = NoiseSchedule(scheduler.alphas_cumprod)
    theirs = mine = draw(1, 4, 2, 2)
    for i, (t, after) in enumerate(pairwise(scheduler.timesteps.tolist())):
        eps = draw(1, 4, 2, 2, seed=i)
        theirs = scheduler.step(eps, t, theirs).prev_sample
        mine = ours.step(mine, eps, at(t), at(after))
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@given(TIMES, TIMES)
def test_step_is_undone_by_the_reverse_step(t: int, s: int) -> None:
    latents, eps = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1)
    there = SCHEDULE.step(latents, eps, at(t), at(s))
    torch.testing.assert_close(SCHEDULE.step(there, eps, at(s), at(t)), latents, rtol=1e-10, atol=1e-9)


@given(TIMES, TIMES, TIMES)
def test_step_composes_under_a_constant_estimate(t: int, s: int, e: int) -> None:
    latents, eps = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1)
    halves = SCHEDULE.step(SCHEDULE.step(latents, eps, at(t), at(s)), eps, at(s), at(e))
    torch.testing.assert_close(halves, SCHEDULE.step(latents, eps, at(t), at(e)), rtol=1e-9, atol=1e-8)


@given(TIMES, TIMES)
def test_step_under_the_true_noise_is_the_forward_process(t: int, e: int) -> None:
    latents, noise = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1)
    stepped = SCHEDULE.step(SCHEDULE.add_noise(latents, noise, at(t)), noise, at(t), at(e))
    torch.testing.assert_close(stepped, SCHEDULE.add_noise(latents, noise, at(e)), rtol=1e-9, atol=1e-8)


def test_step_takes_one_timestep_per_row() -> None:
    latents, eps, t, e = draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1), at(900, 500, 20), at(20, 499, 980)
    together = SCHEDULE.step(latents, eps, t, e)
    for i in range(3):
        alone = SCHEDULE.step(latents[i : i + 1], eps[i : i + 1], t[i : i + 1], e[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=0)


def test_step_keeps_the_dtype_and_exact_coefficients() -> None:
    latents, eps = draw(1, 4, 2, 2).float(), draw(1, 4, 2, 2, seed=1).float()
    single = SCHEDULE.step(latents, eps, at(979), at(20))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, SCHEDULE.step(latents.double(), eps.double(), at(979), at(20)).float())


@pytest.mark.parametrize(("t", "e"), [(800, 100), (100, 800)])
def test_step_converges_to_the_exact_flow_with_order_one(t: int, e: int) -> None:
    prior = AnalyticPrior(variance=0.3, alphas_cumprod=stable_diffusion_alphas(100_000))
    schedule, text = NoiseSchedule(prior.alphas_cumprod), prior.encode_text(["a duck"])
    start = draw(1, *prior.latent_shape)
    exact = prior.flow(start, at(100 * t), at(100 * e), text)
    errors, counts = [], [8, 16, 32, 64, 128]
    for n in counts:
        z = start
        for before, after in pairwise(torch.linspace(100 * t, 100 * e, n + 1).round().long().split(1)):
            z = schedule.step(z, prior.predict_noise(z, before, text), before, after)
        errors.append(float((z - exact).norm()))
    slopes = [math.log(a / b) / math.log(2) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(1, abs=0.05)
    assert all(0.8 < slope < 1.2 for slope in slopes)
