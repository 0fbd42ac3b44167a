"""CSD against its formula in plain numbers, its closed form on Gaussian data, and its schedules."""

from typing import Any

import pytest
import torch
from fakes import draw
from hypothesis import given
from hypothesis import strategies as st
from methods_reference import POINT, PRIOR, Literal, abar, curved, mean, ratio, texts
from torch import Tensor

from segdream_cli.config import Config
from segdream_cli.config.distill import CsdConfig
from segdream_cli.distill.csd import Csd, Draw, csd
from segdream_cli.distill.schedule import NoiseSchedule
from segdream_cli.errors import UsageProblem

SCHEDULE = NoiseSchedule(PRIOR.alphas_cumprod)
T = torch.tensor([20, 150, 500, 980])
LATENTS, NOISE = draw(4, 4, 3, 3), draw(4, 4, 3, 3, seed=1)
COARSE = {
    "distill.negative_weight": [0.0, -1.0], "distill.anneal": 0.5, "distill.weight": "none", "distill.normalize": True,
    "distill.t_max_start": 980,
}  # fmt: skip


def build(**settings: Any) -> Csd:
    return Csd(Config().set({"distill.method": "csd", **settings}))


def generators(seed: int = 5) -> dict[str, torch.Generator]:
    return {name: torch.Generator().manual_seed(seed) for name in ("times", "noise")}


@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("weight", ["sigma_squared", "none"])
@pytest.mark.parametrize(("annealed", "u"), [(0.0, -1.0), (0.25, -0.875), (1.0, -0.5)])
def test_csd_equals_its_formula_row_by_row(annealed: float, u: float, weight: Any, perp_neg: bool) -> None:
    """Perp-Neg has its own factor, starts from the negative prompt, and pairs each row with its own texts."""
    text, config = texts(4, perp_neg=perp_neg), CsdConfig(weight=weight, perp_neg_scale=2.0)
    ours, literal = csd(curved, SCHEDULE, LATENTS, NOISE, T, text, config, annealed), Literal(curved, text)
    for i, t in enumerate(T.tolist()):
        expected = literal.csd(LATENTS[i], NOISE[i], t, i, u=u, perp_neg_scale=2.0)
        expected *= 1 - abar(t) if weight == "sigma_squared" else 1
        assert expected.norm() > 1e-3
        torch.testing.assert_close(ours[i], expected, rtol=1e-9, atol=1e-10)


@given(st.integers(1, 999), st.floats(-2, 1))
def test_csd_on_gaussian_data_is_independent_of_latents_and_noise(t: int, u: float) -> None:
    """-w r / (S + r²) (mu_y + u mu_neg + o mu_null), with o = -1 - u and r = σ_t / α_t: no fixed point."""
    text, config, r = texts(1), CsdConfig(negative_weight=(u, u)), ratio(t)
    for seed in (2, 3):
        z_0, noise = draw(1, 4, 3, 3, seed=seed), draw(1, 4, 3, 3, seed=10 + seed)
        ours = csd(PRIOR.predict_noise, SCHEDULE, z_0, noise, torch.tensor([t]), text, config, 0.5)
        means = mean(text.positive[0]) + u * mean(text.uncond[0]) - (1 + u) * mean(text.null[0])
        expected = -(1 - abar(t)) * r / (float(PRIOR.variance) + r**2) * means
        torch.testing.assert_close(ours[0], expected, rtol=1e-8, atol=1e-10)


def test_csd_on_data_at_a_point() -> None:
    """-w / r (mu_y + u mu_neg + o mu_null): with variance 0 the score of the classifier is largest at small t."""
    text = texts(4)
    ours = csd(POINT.predict_noise, SCHEDULE, LATENTS, NOISE, T, text, CsdConfig(), 0.0)
    for i, t in enumerate(T.tolist()):
        expected = (1 - abar(t)) / ratio(t) * (mean(text.uncond[i]) - mean(text.positive[i]))
        torch.testing.assert_close(ours[i], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("steps", [100, 10_000])
@pytest.mark.parametrize(
    ("settings", "share", "annealed", "high"),
    [
        ({}, 0.0, 0.0, 500),
        ({}, 0.3, 0.3, 500),
        (COARSE, 0.0, 0.0, 980),
        (COARSE, 0.25, 0.5, 980),
        (COARSE, 0.49, 0.98, 980),
        (COARSE, 0.5, 1.0, 500),
        (COARSE, 0.9, 1.0, 500),
        ({"distill.anneal": 0.0}, 0.0, 1.0, 500),
    ],
)
def test_draws_follow_the_stages_over_the_run(
    settings: dict[str, Any], share: float, annealed: float, high: int, steps: int
) -> None:
    """The same share of a run of any length; the coarse stage lowers t when its weights have changed."""
    method, shape = build(**settings, **{"optim.steps": steps}), (2000, 1, 1, 1)
    source = generators()
    drawn = [method.draw(round(share * steps) + 1, shape, {}, source) for _ in range(2)]
    assert drawn[0].annealed == pytest.approx(annealed)
    times = torch.cat([each.t for each in drawn])
    assert 20 <= int(times.min()) <= 25
    assert high - 5 <= int(times.max()) <= high
    assert not torch.equal(drawn[0].noise, drawn[1].noise)
    assert method.init_state(shape, source) == {}
    assert method.describe(drawn[0]) == {"t": drawn[0].t.tolist()}


@pytest.mark.parametrize("settings", [{}, COARSE, {"distill.guidance_scale": 3.0}], ids=["default", "coarse", "scale"])
def test_gradient_of_an_asset_is_a_mean_over_its_own_views(settings: dict[str, Any]) -> None:
    """A normalised gradient has the norm 1 per asset before the division by the views, whatever the batch."""
    method, text = build(**settings), texts(4)
    draws = [Draw(T[:2], 0.3, NOISE[:2]), Draw(T[2:], 0.3, NOISE[2:])]
    ours = method.gradient(PRIOR, SCHEDULE, LATENTS, text, draws).latents
    config = Config().set({"distill.method": "csd", **settings}).distill.csd
    for place, drawn in enumerate(draws):
        rows = slice(2 * place, 2 * place + 2)
        given_rows = LATENTS[rows], NOISE[rows], drawn.t, text.rows(rows)
        pull = csd(PRIOR.predict_noise, SCHEDULE, *given_rows, config, 0.3)
        expected = config.guidance_scale * pull / 2 / (pull.norm() if config.normalize else 1)
        torch.testing.assert_close(ours[rows], expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("perp_neg", "most"), [(False, 3), (True, 5)])
def test_rows_per_view_bound_the_network_evaluations(perp_neg: bool, most: int) -> None:
    rows = []

    def counting(latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        rows.append(len(latents))
        return curved(latents, timesteps, text)

    csd(counting, SCHEDULE, LATENTS, NOISE, T, texts(4, perp_neg=perp_neg), CsdConfig(), 0.0)
    active = int(texts(4, perp_neg=perp_neg).weights.count_nonzero())
    assert rows == [2 * 4 + active, 4]
    assert 3 <= build(**{"distill.perp_neg": perp_neg}).rows_per_view <= most


@pytest.mark.parametrize(("limits", "name"), [({"t_min": 600}, "t_max"), ({"t_max_start": 10}, "t_max_start")])
def test_check_refuses_limits_that_leave_nothing(limits: dict[str, int], name: str) -> None:
    with pytest.raises(UsageProblem, match=rf"distill\.csd\.t_min must not exceed {name}, ") as caught:
        CsdConfig(**limits).check()
    hint = (caught.value.hint or "").removeprefix("--set distill.csd.t_min=")
    CsdConfig(**limits | {"t_min": int(hint)}).check()
