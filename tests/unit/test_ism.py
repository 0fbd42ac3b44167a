"""ISM against LucidDreamer's sequence of steps in plain numbers, its closed forms on Gaussian data, and its draws."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from fakes import draw
from hypothesis import given
from hypothesis import strategies as st
from methods_reference import POINT, PRIOR, Literal, curved, mean, ratio, texts
from torch import Tensor

from segdream_cli.config import Config
from segdream_cli.config.distill import IsmConfig
from segdream_cli.distill.ism import Draw, Ism, ism
from segdream_cli.distill.schedule import NoiseSchedule
from segdream_cli.errors import UsageProblem

SCHEDULE = NoiseSchedule(PRIOR.alphas_cumprod)
T, S = torch.tensor([81, 83, 281, 500, 980]), torch.tensor([1, 2, 201, 420, 895])
LATENTS, NOISE = draw(5, 4, 3, 3), draw(5, 4, 3, 3, seed=1)
SHAPE = (4, 4, 2, 2)


def build(**settings: Any) -> Ism:
    changes = {f"distill.{key.replace('__', '.')}": value for key, value in settings.items()}
    return Ism(Config().set({"distill.method": "ism"} | changes))


def generators(seed: int = 5) -> dict[str, torch.Generator]:
    return {name: torch.Generator().manual_seed(seed) for name in ("times", "noise")}


def draw_many(method: Ism, step: int, count: int = 3000) -> Tensor:
    """(t, s) of many draws of a step."""
    source = generators()
    drawn = [method.draw(step, (1, 1, 1, 1), {}, source) for _ in range(count)]
    return torch.tensor([(each.t, each.s) for each in drawn])


@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weight": "none"},
        {"guidance_scale": 1.0},
        {"guidance_scale": 30.0, "grad_scale": 2.5},
        {"inversion_stride": 1000, "inversion_steps": 1},
        {"inversion_stride": 50, "inversion_steps": 3},
    ],
    ids=lambda changes: "-".join(f"{key}={value}" for key, value in changes.items()) or "default",
)
def test_ism_equals_the_steps_of_luciddreamer_row_by_row(changes: dict[str, Any], perp_neg: bool) -> None:
    """Rows need 0 to 5 steps of inversion, so the calls of the network differ in size."""
    text, config = texts(5, perp_neg=perp_neg), IsmConfig(**changes)
    ours, literal = ism(curved, SCHEDULE, LATENTS, NOISE, T, S, text, config), Literal(curved, text)
    for i, (t, s) in enumerate(zip(T.tolist(), S.tolist(), strict=True)):
        expected = literal.ism(
            LATENTS[i], NOISE[i], t, s, i,
            scale=config.guidance_scale, stride=config.inversion_stride, steps=config.inversion_steps,
        )  # fmt: skip
        expected *= config.grad_scale * (ratio(t) if config.weight == "sigma_over_alpha" else 1)
        assert expected.norm() > 1e-3
        torch.testing.assert_close(ours[i], expected, rtol=1e-9, atol=1e-10)


@given(st.integers(21, 980), st.integers(1, 100), st.floats(0, 30))
def test_ism_has_its_closed_form_on_gaussian_data(t: int, interval: int, scale: float) -> None:
    """Each step p -> q without text multiplies x - mu_null by 1 + (r_q - r_p) r_p / (S + r_p²)."""
    text, config, variance = texts(1), IsmConfig(guidance_scale=scale), float(PRIOR.variance)
    s = max(t - interval, 1)
    ours = ism(
        PRIOR.predict_noise, SCHEDULE, LATENTS[:1], NOISE[:1], torch.tensor([t]), torch.tensor([s]), text, config
    )
    null, uncond, positive = (mean(part[0]) for part in (text.null, text.uncond, text.positive))
    target = uncond + scale * (positive - uncond)
    y, times = LATENTS[0] + ratio(1) * NOISE[0] - null, [*range(1, s, 200), s, t]
    for lower, upper in pairwise(times):
        y_s, factor = y, ratio(lower) / (variance + ratio(lower) ** 2)
        y = y * (1 + (ratio(upper) - ratio(lower)) * factor)
    r_t, r_s = ratio(t), ratio(s)
    expected = 0.1 * r_t * (r_t * (y + null - target) / (variance + r_t**2) - r_s * y_s / (variance + r_s**2))
    torch.testing.assert_close(ours[0], expected, rtol=1e-8, atol=1e-9)


def test_ism_on_data_at_a_point_is_a_constant_pull() -> None:
    """0.1 (mu_null - m), whatever the latents, the noise and the times; m = mu_u + ω (mu_y - mu_u)."""
    text = texts(5)
    for seed in (2, 3):
        ours = ism(POINT.predict_noise, SCHEDULE, draw(5, 4, 3, 3, seed=seed), NOISE * seed, T, S, text, IsmConfig())
        for i in range(5):
            null, uncond, positive = (mean(part[i]) for part in (text.null, text.uncond, text.positive))
            torch.testing.assert_close(ours[i], 0.1 * (null - uncond - 7.5 * (positive - uncond)), rtol=1e-7, atol=1e-8)


def test_ism_evaluates_no_step_of_length_zero() -> None:
    rows = []

    def counting(latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        rows.append(timesteps.tolist())
        return curved(latents, timesteps, text)

    ism(counting, SCHEDULE, LATENTS, NOISE, T, S, texts(5), IsmConfig())
    inversion = [[1, 1, 1, 1], [201, 201], [401, 401], [601], [801]]
    assert rows == [*inversion, S.tolist(), T.tolist() * 2]


@pytest.mark.parametrize(
    ("step", "settings", "high", "interval"),
    [
        (1, {}, 979, 99),
        (1, {"perp_neg": True}, 979, 100),
        (750, {}, 740, 90),
        (1501, {}, 500, 80),
        (1501, {"ism__interval": 25, "ism__interval_start": 25}, 500, 25),
        (1, {"warmup_steps": 0}, 500, 80),
    ],
)
def test_draws_are_those_of_luciddreamer(step: int, settings: dict[str, Any], high: int, interval: int) -> None:
    """The lower end stays, the upper one slides down, and s stops at timestep 1."""
    t, s = draw_many(build(**settings), step).T
    assert (int(t.min()), int(t.max())) == (pytest.approx(21, abs=3), pytest.approx(high, abs=3))
    assert int(t.min()) >= 21
    assert int(t.max()) <= high
    assert torch.equal(s, (t - interval).clamp_min(1))
    assert float(t.double().mean()) == pytest.approx((21 + high) / 2, rel=0.03)


def test_noise_is_fresh_and_has_a_constant_per_channel() -> None:
    shape, source = (3, 4, 64, 64), generators()
    method = build(ism__noise_offset=2.0)
    assert method.init_state(shape, source) == {}
    first, second = (method.draw(step, shape, {}, source).noise for step in (1, 2))
    assert not torch.equal(first, second)
    constants = first.mean((2, 3))
    torch.testing.assert_close(constants, constants[:1].expand(3, -1), atol=0.1, rtol=0)
    assert constants[0].std() > 0.5
    assert float((first - constants[:, :, None, None]).std()) == pytest.approx(1, abs=0.02)


def test_fixed_noise_is_that_of_the_state() -> None:
    method, source = build(ism__fixed_noise=True), generators()
    state = method.init_state(SHAPE, source)
    assert all(method.draw(step, SHAPE, state, source).noise is state["noise"] for step in (1, 2))


def test_gradient_takes_each_asset_by_its_own_draw() -> None:
    method, text = build(), texts(4)
    draws = [Draw(500, 420, NOISE[:2]), Draw(90, 10, NOISE[2:4])]
    assert method.describe(draws[1]) == {"t": 90, "s": 10}
    together = method.gradient(PRIOR, SCHEDULE, LATENTS[:4], text, draws).latents
    for place, drawn in enumerate(draws):
        rows = slice(2 * place, 2 * place + 2)
        alone = method.gradient(PRIOR, SCHEDULE, LATENTS[rows], text.rows(rows), [drawn]).latents
        torch.testing.assert_close(together[rows], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("perp_neg", [False, True])
def test_rows_per_view_are_those_of_a_run(perp_neg: bool) -> None:
    """LucidDreamer takes 4.66 rows (simulated from its code), of which steps of length zero are left out."""
    method, source = build(perp_neg=perp_neg), generators()
    steps = [-(-(method.draw(step, (1, 1, 1, 1), {}, source).s - 1) // 200) for step in range(1, 5001)]
    guidance = 3.5 if perp_neg else 2
    published, ours = (sum(counts) / len(steps) + 1 + guidance for counts in ([max(n, 1) for n in steps], steps))
    assert published == pytest.approx(4.66 + guidance - 2, abs=0.05)
    assert method.rows_per_view == pytest.approx(ours, abs=0.03)


def test_rows_per_view_follow_the_inversion() -> None:
    """A single step always: 4 rows but where s is timestep 1; and a run without steps has an estimate too."""
    assert 3.8 < build(ism__inversion_stride=1000, ism__inversion_steps=1).rows_per_view < 4
    assert Ism(Config().set({"optim.steps": 0})).rows_per_view > 3


@pytest.mark.parametrize("limits", [{"t_min": 500}, {"t_high": 990}, {"t_max": 400}])
def test_check_refuses_limits_that_leave_nothing(limits: dict[str, int]) -> None:
    with pytest.raises(UsageProblem, match=r"distill\.ism\.t_min must be below t_high"):
        IsmConfig(**limits).check()
    IsmConfig().check()
