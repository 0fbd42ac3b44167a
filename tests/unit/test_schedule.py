"""The solver against diffusers and the exact flow; segments and draws against the release's tables."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DPMSolverMultistepScheduler
from fakes import AnalyticPrior, stable_diffusion_alphas
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from segdream_cli.config import Config, DistillConfig
from segdream_cli.distill.schedule import NoiseSchedule, Times, draw_times, trajectory_segments
from segdream_cli.errors import UsageProblem

SCHEDULE = NoiseSchedule(stable_diffusion_alphas())
OPTIONS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
TIMES = st.integers(0, 999)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(*timesteps: int) -> Tensor:
    return torch.tensor(timesteps)


def test_wrong_shapes_are_caught_while_tests_run() -> None:
    with pytest.raises(TypeCheckError):
        SCHEDULE.step(draw(1, 4, 2, 2), draw(1, 4, 2, 3), at(5), at(3))


def test_the_fakes_alphas_are_diffusers() -> None:
    torch.testing.assert_close(
        DDIMScheduler(**OPTIONS).alphas_cumprod.double(), SCHEDULE.alphas_cumprod, rtol=1e-5, atol=1e-7
    )


def test_add_noise_is_diffusers() -> None:
    scheduler = DDIMScheduler(**OPTIONS)
    latents, noise, t = draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1), at(0, 500, 999)
    ours = NoiseSchedule(scheduler.alphas_cumprod).add_noise(latents, noise, t)
    torch.testing.assert_close(ours, scheduler.add_noise(latents, noise, t), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n_steps", [10, 50, 1000])
def test_a_step_down_is_diffusers_ddim(n_steps: int) -> None:
    scheduler = DDIMScheduler(**OPTIONS, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(n_steps)
    ours = NoiseSchedule(scheduler.alphas_cumprod)
    latents, eps, stride = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1), 1000 // n_steps
    for t in scheduler.timesteps[1:-1:7].tolist():
        theirs = scheduler.step(eps, t, latents, eta=0.0).prev_sample
        torch.testing.assert_close(ours.step(latents, eps, at(t), at(t - stride)), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_steps", [10, 50])
def test_a_step_up_is_diffusers_ddim_inversion(n_steps: int) -> None:
    scheduler = DDIMInverseScheduler(**OPTIONS, clip_sample=False)
    scheduler.set_timesteps(n_steps)
    ours = NoiseSchedule(scheduler.alphas_cumprod)
    latents, eps, stride = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1), 1000 // n_steps
    for t in scheduler.timesteps[1:].tolist():  # it is called with the time it goes to
        theirs = scheduler.step(eps, t, latents).prev_sample
        torch.testing.assert_close(ours.step(latents, eps, at(t - stride), at(t)), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' use of numpy
def test_a_walk_down_is_diffusers_first_order_dpm_solver() -> None:
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
def test_a_step_back_with_the_same_estimate_undoes_it(t: int, s: int) -> None:
    latents, eps = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1)
    there = SCHEDULE.step(latents, eps, at(t), at(s))
    torch.testing.assert_close(SCHEDULE.step(there, eps, at(s), at(t)), latents, rtol=1e-10, atol=1e-9)


@given(TIMES, TIMES, TIMES)
def test_a_stop_on_the_way_changes_nothing_under_a_constant_estimate(t: int, s: int, e: int) -> None:
    latents, eps = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1)
    halves = SCHEDULE.step(SCHEDULE.step(latents, eps, at(t), at(s)), eps, at(s), at(e))
    torch.testing.assert_close(halves, SCHEDULE.step(latents, eps, at(t), at(e)), rtol=1e-9, atol=1e-8)


@given(TIMES, TIMES)
def test_a_step_under_the_true_noise_is_the_forward_process(t: int, e: int) -> None:
    latents, noise = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1)
    stepped = SCHEDULE.step(SCHEDULE.add_noise(latents, noise, at(t)), noise, at(t), at(e))
    torch.testing.assert_close(stepped, SCHEDULE.add_noise(latents, noise, at(e)), rtol=1e-9, atol=1e-8)


def test_every_row_has_its_own_times() -> None:
    latents, eps, t, e = draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1), at(900, 500, 20), at(20, 499, 980)
    together = SCHEDULE.step(latents, eps, t, e)
    for i in range(3):
        alone = SCHEDULE.step(latents[i : i + 1], eps[i : i + 1], t[i : i + 1], e[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=0)


def test_half_precision_latents_keep_their_dtype_and_exact_coefficients() -> None:
    latents, eps = draw(1, 4, 2, 2).float(), draw(1, 4, 2, 2, seed=1).float()
    single = SCHEDULE.step(latents, eps, at(979), at(20))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, SCHEDULE.step(latents.double(), eps.double(), at(979), at(20)).float())


@pytest.mark.parametrize(("t", "e"), [(800, 100), (100, 800)])
def test_the_solver_converges_to_the_exact_flow_with_order_one(t: int, e: int) -> None:
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


@pytest.mark.parametrize(
    ("changes", "edges"),
    [
        ({"segments": 1}, (20, 980)),
        ({"segments": 3}, (20, 340, 660, 980)),
        ({"segments": 4}, (20, 260, 500, 740, 980)),
        ({"segments": 5}, (20, 212, 404, 596, 788, 980)),
        ({"segments": 10}, tuple(range(20, 981, 96))),
        ({"segments": 5, "segmentation": "full"}, (0, 200, 400, 600, 800, 1000)),
        ({"segments": 5, "segmentation": "mono", "t_tau": 150}, (20, 150, 311, 503, 726, 980)),
        ({"segments": 1, "segmentation": "mono"}, (20, 980)),
    ],
)
def test_segments_are_the_releases(changes: dict[str, object], edges: tuple[int, ...]) -> None:
    assert trajectory_segments(DistillConfig(**changes)) == edges


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"segmentation": "mono", "segments": 8}, "distill.segments=7"),
        ({"segmentation": "mono", "segments": 2, "t_tau": 990}, "distill.segments=1"),
        ({"segmentation": "mono", "segments": 3, "t_tau": 20}, "distill.segments="),
        ({"segments": 961}, "distill.segments="),
    ],
)
def test_segments_that_shrink_or_are_empty_are_refused(changes: dict[str, object], hint: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        trajectory_segments(DistillConfig(**changes))
    assert hint in (caught.value.hint or "")


def test_the_hint_for_shrinking_segments_works() -> None:
    assert len(trajectory_segments(DistillConfig(segmentation="mono", segments=7))) == 8


@st.composite
def configs(draw: st.DrawFn) -> DistillConfig:
    """Settings that the configuration accepts."""
    t_min = draw(st.integers(0, 200))
    t_max = draw(st.integers(t_min + 2, 1000))
    settings = {
        "t_min": t_min,
        "t_max": t_max,
        "t_high": draw(st.integers(t_min + 2, t_max)),
        "segments": draw(st.integers(1, 200)),
        "segmentation": draw(st.sampled_from(["uniform", "full", "mono"])),
        "t_tau": draw(st.integers(0, 300)),
        "window": draw(st.sampled_from(["sliding", "lower_fixed"])),
        "warmup_shift": draw(st.integers(0, 1200)),
        "warmup_steps": draw(st.integers(0, 50)),
        "min_gap": draw(st.integers(1, 300)),
        "s_margin": draw(st.integers(0, 100)),
    }
    return Config().set({f"distill.{name}": value for name, value in settings.items()}).distill


@given(configs())
def test_segments_rise_and_leave_no_gap(config: DistillConfig) -> None:
    try:
        edges = trajectory_segments(config)
    except UsageProblem:
        span = 1000 if config.segmentation == "full" else config.t_max - config.t_min
        grows = config.segmentation == "mono" and config.segments > 1
        first = config.t_tau - config.t_min if grows else 1
        assert config.segments * first > span or first < 1
        return
    low, high = (0, 1000) if config.segmentation == "full" else (config.t_min, config.t_max)
    assert (edges[0], edges[-1], len(edges)) == (low, high, config.segments + 1)
    lengths = [after - before for before, after in pairwise(edges)]
    assert min(lengths) > 0
    if config.segmentation == "mono":
        assert lengths == sorted(lengths)
    else:
        assert max(lengths) - min(lengths) <= 1


@given(configs(), st.integers(1, 60), st.integers(0, 2**32))
def test_draws_keep_their_order_and_their_segment(config: DistillConfig, step: int, seed: int) -> None:
    try:
        edges = trajectory_segments(config)
    except UsageProblem:
        return
    t, s, e = draw_times(config, step, edges, torch.Generator().manual_seed(seed))
    assert e <= s < t < config.t_max
    assert t > config.t_min
    assert e in edges[:-1]
    assert t <= min(edge for edge in edges if edge > e)
    margin = min(config.s_margin, (t - e - 1) // 2)
    assert e + margin <= s <= max(t - margin - 1, e + margin)


def draws(config: DistillConfig, step: int, n: int = 4000) -> Tensor:
    """(t, s, e) of `n` draws, [n, 3]."""
    generator, edges = torch.Generator().manual_seed(0), trajectory_segments(config)
    return torch.tensor([draw_times(config, step, edges, generator) for _ in range(n)])


def test_the_window_slides_as_the_releases() -> None:
    """peers.md 1.4: t in [500, 979] at step 1 and, but for the lift, in [21, 500] from step 1,500 on."""
    free = DistillConfig(min_gap=1)
    first, last = draws(free, 1)[:, 0], draws(free, 1500)[:, 0]
    assert (int(first.min()), int(first.max())) == (500, 979)
    assert (int(last.min()), int(last.max())) == (21, 500)
    assert draws(DistillConfig(), 1500)[:, 0].min() == 100
    assert torch.equal(draws(DistillConfig(), 1500, 50), draws(DistillConfig(), 9999, 50))
    middle = draws(free, 750)[:, 0]
    assert (int(middle.min()), int(middle.max())) == (261, 740)


def test_the_papers_window_has_a_fixed_lower_end() -> None:
    t = draws(DistillConfig(window="lower_fixed", min_gap=1), 1, 20_000)[:, 0]
    assert (int(t.min()), int(t.max())) == (21, 979)
    assert float(t.double().mean()) == pytest.approx(500, abs=8)


def test_a_run_without_warm_up_starts_where_others_end() -> None:
    assert torch.equal(draws(DistillConfig(warmup_steps=0), 1, 50), draws(DistillConfig(), 1500, 50))


def test_the_release_statistics_after_the_warm_up() -> None:
    """peers.md 1.4: 27.4 % below t_tau, half at exactly e + 80, mean gap 106, segments visited 40/40/20."""
    t, s, e = draws(DistillConfig(), 3000, 20_000).T
    within = 3 * math.sqrt(0.25 / 20_000)  # three standard deviations of a share
    assert float((t < 150).double().mean()) == pytest.approx(0.274, abs=within + 0.004)
    assert float((t == e + 80).double().mean()) == pytest.approx(0.5, abs=within + 0.005)
    assert float((t - e).double().mean()) == pytest.approx(106, abs=1)
    for edge, share in ((20, 0.4), (212, 0.4), (404, 0.2)):
        assert float((e == edge).double().mean()) == pytest.approx(share, abs=within)
    assert set(e.tolist()) == {20, 212, 404}
    assert int((s - e).min()) == 10
    assert int((t - s).min()) == 11


def test_the_release_statistics_of_a_whole_run() -> None:
    """peers.md 1.4: the one-step branch takes 20.3 % of a run's steps and 3.9 % of the warm-up's."""
    config, generator = DistillConfig(), torch.Generator().manual_seed(0)
    edges = trajectory_segments(config)
    short = torch.tensor([draw_times(config, step, edges, generator)[0] < 150 for step in range(1, 5001)]).double()
    assert float(short.mean()) == pytest.approx(0.203, abs=0.017)
    assert float(short[:1500].mean()) == pytest.approx(0.039, abs=0.015)


def test_the_lift_stops_at_the_next_edge() -> None:
    config = DistillConfig(segments=20)  # parts of 48, less than min_gap
    t, _, e = draws(config, 3000).T
    assert int((t - e).max()) == 48


def test_the_last_timestep_starts_no_segment() -> None:
    narrow = DistillConfig(t_min=970, t_high=979, warmup_steps=0, segmentation="full", segments=1000)
    t, s, e = draws(narrow, 1, 300).T  # every timestep is an edge
    assert int(t.max()) == 979
    assert bool(((e <= s) & (s < t)).all())


def test_times_repeat_for_the_views_of_an_asset() -> None:
    times = Times(at(9, 8), at(5, 4), at(1, 0)).repeat(2)
    assert times.t.tolist() == [9, 9, 8, 8]
    assert times.s.tolist() == [5, 5, 4, 4]
    assert times.e.tolist() == [1, 1, 0, 0]
