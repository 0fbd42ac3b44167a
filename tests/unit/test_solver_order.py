"""The order of the solver step: walks of `NoiseSchedule.step` across the segments of `trajectory_segments`.

Eq. 13 (Theorem 1) bounds the distillation error over a segment [s_m, s_{m+1}] by O(Δt) (s_{m+1} - s_m). These tests
prove the solver's part of it and never call `sctd`: a walk of steps of size Δt from t down to s_m errs with order 1.

The theorem supposes that G(z_t, t, y) = G(ẑ_s, s, y) for all times of a segment, where ẑ_s is one solver step of at
most Δt from z_t, and G(z, s_m, y) = z. Such a G is the walk: applying the condition once replaces G(z_t, t) by G one
step lower. By Eq. 12 and 28 a converged z_0 is where the walk ends, and z_data where the exact flow ends, both taken
from s_m to 0 with the same ε*. Here the flow is known in closed form (Gaussian data), so that the error
|z_0 - z_data|, its supremum over starting times t of the segment, is measured and not bounded. Each step errs by
O(Δt²) and there are (s_{m+1} - s_m) / Δt of them: the slope in log-log axes is 1 in the segment's length at a fixed
step, and 1 in the step at a fixed length.

The slope in the length needs lengths over which the ODE's coefficients stay alike, so up to half of s_m: near t = 0
the noise grows like sqrt(t), and a longer segment errs less than in proportion. The bound itself is tested at the
release's full lengths. One step across the whole segment, Δt = s_{m+1} - s_m, errs with slope 2, the sum of both.

Time is cut into a million parts in place of 1,000, so that lengths and steps are free; they are stated in timesteps.
"""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from fakes import AnalyticPrior, stable_diffusion_alphas
from torch import Tensor

from segdream_cli.config.distill import SctdConfig
from segdream_cli.distill.schedule import NoiseSchedule
from segdream_cli.distill.sctd import trajectory_segments

pytestmark = pytest.mark.slow

FINE = 1000  # parts of a timestep
STARTS = 4  # starting times t of a segment
TEXT = "a yellow school bus"
PRIOR = AnalyticPrior(
    variance=0.05 + 0.5 * torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64),
    alphas_cumprod=stable_diffusion_alphas(1000 * FINE),
    latent_shape=(4, 4, 4),
)
SCHEDULE = NoiseSchedule(PRIOR.alphas_cumprod)
EMBEDDING = PRIOR.encode_text([TEXT])
SEGMENT_ENDS = trajectory_segments(SctdConfig())[:-1]
FULL = 192.0  # length of the release's segments
STEPS = (0.25, 0.5, 1, 2, 4, 8)


def at(t: float) -> Tensor:
    return torch.tensor([round(t * FINE)])


def walk(z_t: Tensor, t: float, e: float, step: float) -> Tensor:
    """Solver steps from t down to e, each of size `step` but the last, which may be shorter."""
    times = [*np.arange(t, e, -step).tolist(), e]
    for before, after in pairwise(times):
        z_t = SCHEDULE.step(z_t, PRIOR.predict_noise(z_t, at(before), EMBEDDING), at(before), at(after))
    return z_t


@cache
def walk_error(e: float, length: float, step: float) -> float:
    """|z_0 - z_data| for the segment [e, e + length], the largest over starting times t."""
    generator = torch.Generator().manual_seed(0)
    spread = PRIOR.variance.sqrt()
    z_data = PRIOR.mean(TEXT) + spread * torch.randn(1, 4, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(1, 4, 4, 4, generator=generator, dtype=torch.float64)
    z_e_data = SCHEDULE.add_noise(z_data, noise, at(e))
    errors = []
    for share in np.linspace(0, 1, STARTS + 1)[1:]:
        t = e + share * length
        z_e = walk(PRIOR.flow(z_e_data, at(e), at(t), EMBEDDING), t, e, step)
        z_0 = (z_e - SCHEDULE.sigma(at(e)) * noise) / SCHEDULE.alpha(at(e))
        errors.append(float((z_0 - z_data).norm()))
    return max(errors)


def lengths(e: int) -> tuple[float, ...]:
    """Six doubling lengths up to half of e, and to a full segment at most."""
    longest = min(e / 2, FULL)
    return tuple(longest / 2**i for i in range(5, -1, -1))


def loglog_slope(sizes: tuple[float, ...], errors: list[float]) -> float:
    """The slope of the straight line through the points in log-log axes."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


@pytest.mark.parametrize("e", SEGMENT_ENDS)
def test_walk_error_is_linear_in_the_segment_length(e: int) -> None:
    sizes = lengths(e)
    errors = [walk_error(e, length, sizes[0] / 8) for length in sizes]
    assert errors == sorted(errors)
    assert loglog_slope(sizes, errors) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("e", SEGMENT_ENDS)
def test_walk_error_is_linear_in_the_step(e: int) -> None:
    errors = [walk_error(e, FULL, step) for step in STEPS]
    assert errors == sorted(errors)
    assert loglog_slope(STEPS, errors) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("e", SEGMENT_ENDS)
def test_one_step_error_is_quadratic_in_the_segment_length(e: int) -> None:
    errors = [walk_error(e, length, length) for length in lengths(e)]
    assert loglog_slope(lengths(e), errors) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("e", SEGMENT_ENDS)
def test_walk_error_of_long_segments_is_bounded_by_the_constant_of_short_ones(e: int) -> None:
    """error <= C Δt (s_{m+1} - s_m) up to the release's length, with the C of a short segment and small steps."""
    constant = walk_error(e, 3, 0.25) / (3 * 0.25)
    for length in (3, 12, 48, FULL):
        for step in (0.25, 1, 4):
            assert walk_error(e, length, min(step, length)) <= 1.01 * constant * step * length


def test_walk_error_of_a_segment_is_below_that_of_the_whole_trajectory() -> None:
    """SCTD cuts the trajectory because the length in the bound is a segment's and not T."""
    whole = walk_error(20, 960, 8)
    parts = [walk_error(e, FULL, 8) for e in SEGMENT_ENDS]
    assert max(parts) < 0.8 * whole
    assert np.mean(parts) < whole / 3
