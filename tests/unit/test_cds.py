"""CDS against Consistent3D's formulas in plain numbers, autograd of the printed loss, closed forms, its schedules."""

from typing import Any

import pytest
import torch
from fakes import draw
from hypothesis import given
from hypothesis import strategies as st
from methods_reference import POINT, PRIOR, Literal, abar, curved, mean, ratio, texts

from segdream_cli.config import Config
from segdream_cli.config.distill import CdsConfig
from segdream_cli.distill.cds import Cds, Draw, cds
from segdream_cli.distill.schedule import NoiseSchedule
from segdream_cli.errors import UsageProblem

SCHEDULE = NoiseSchedule(PRIOR.alphas_cumprod)
T, NEXT = torch.tensor([200, 399, 650, 980]), torch.tensor([100, 100, 520, 880])
LATENTS, NOISE = draw(4, 4, 3, 3), draw(4, 4, 3, 3, seed=1)
UNCLIPPED = (1e9, 1e9)


def build(**settings: Any) -> Cds:
    return Cds(Config().set({"distill.method": "cds", **settings}))


def generators(seed: int = 5) -> dict[str, torch.Generator]:
    return {name: torch.Generator().manual_seed(seed) for name in ("times", "noise")}


@pytest.mark.parametrize("loss", ["released", "printed"])
@pytest.mark.parametrize("weight", ["none", "sigma_squared"])
@pytest.mark.parametrize(("progress", "scale", "limit"), [(0.0, 30.0, 2.0), (0.25, 24.0, 5.0), (1.0, 6.0, 14.0)])
def test_cds_equals_its_formula_row_by_row(loss: Any, weight: Any, progress: float, scale: float, limit: float) -> None:
    """Guidance scale and limit are linear in the share of the run that is done; the limit comes after the weight."""
    config = CdsConfig(
        loss=loss, weight=weight, guidance_scale=30.0, guidance_end=0.2, clip=(2.0, 14.0), grad_scale=2.5
    )
    text = texts(4)
    ours, literal = cds(curved, SCHEDULE, LATENTS, NOISE, T, NEXT, text, config, progress), Literal(curved, text)
    for i, (t, t_next) in enumerate(zip(T.tolist(), NEXT.tolist(), strict=True)):
        eps_t, eps_next = literal.cds(LATENTS[i], NOISE[i], t, t_next, i, scale=scale)
        factor = (1 - abar(t) if weight == "sigma_squared" else 1) * (-ratio(t_next) if loss == "printed" else 1)
        pull = factor * (eps_t - eps_next)
        clipped = [min(max(value, -limit), limit) for value in pull.flatten().tolist()]
        expected = 2.5 * torch.tensor(clipped, dtype=torch.float64)
        torch.testing.assert_close(ours[i].flatten(), expected, rtol=1e-9, atol=1e-10)
    inside = ours.abs() < 2.5 * limit * 0.999
    assert inside.any()
    assert progress or not inside.all()


def test_printed_loss_is_differentiated_with_the_network_constant() -> None:
    """Autograd of |F(z_t, t) - sg F(z_t', t')|² / 2, F(z, t) = x - r ε̂ with x = z / α_t."""
    text, config = texts(4), CdsConfig(loss="printed", guidance_scale=7.5, guidance_end=1.0, clip=UNCLIPPED)
    ours, literal = cds(curved, SCHEDULE, LATENTS, NOISE, T, NEXT, text, config, 0.5), Literal(curved, text)
    for i, (t, t_next) in enumerate(zip(T.tolist(), NEXT.tolist(), strict=True)):
        leaf = LATENTS[i].clone().requires_grad_()
        x = leaf + ratio(t) * NOISE[i]
        eps_t, eps_next = literal.cds(LATENTS[i], NOISE[i], t, t_next, i, scale=7.5)
        x_next = (x + (ratio(t_next) - ratio(t)) * eps_t).detach()
        loss = ((x - ratio(t) * eps_t) - (x_next - ratio(t_next) * eps_next)).square().sum() / 2
        (expected,) = torch.autograd.grad(loss, leaf)
        assert expected.norm() > 1e-3
        torch.testing.assert_close(ours[i], expected, rtol=1e-9, atol=1e-10)


@given(st.integers(100, 880), st.integers(1, 299), st.floats(0, 60))
def test_cds_pulls_towards_the_guided_mean_on_gaussian_data(t_next: int, gap: int, scale: float) -> None:
    """S (r - r') / ((S + r²) (S + r'²)) (z_0 + r ε* - m), with m = mu_u + ω (mu_y - mu_u)."""
    t, text = min(t_next + gap, 980), texts(1)
    config = CdsConfig(guidance_scale=scale, guidance_end=1.0, clip=UNCLIPPED)
    times = torch.tensor([t]), torch.tensor([t_next])
    ours = cds(PRIOR.predict_noise, SCHEDULE, LATENTS[:1], NOISE[:1], *times, text, config, 0.3)
    target = mean(text.uncond[0]) + scale * (mean(text.positive[0]) - mean(text.uncond[0]))
    r, r_next, variance = ratio(t), ratio(t_next), float(PRIOR.variance)
    factor = variance * (r - r_next) / ((variance + r**2) * (variance + r_next**2))
    torch.testing.assert_close(ours[0], factor * (LATENTS[0] + r * NOISE[0] - target), rtol=1e-8, atol=1e-9)


def test_cds_vanishes_on_data_at_a_point() -> None:
    """Each step is exact there, so the estimates at both ends agree."""
    ours = cds(POINT.predict_noise, SCHEDULE, LATENTS, NOISE, T, NEXT, texts(4), CdsConfig(), 0.0)
    torch.testing.assert_close(ours, torch.zeros_like(ours), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "share", "t_next"),
    [
        ({}, 0.0, 700),
        ({}, 0.01, 640),  # 700 - 600 x 0.1
        ({}, 0.25, 400),
        ({}, 0.81, 160),
        ({"distill.t_first": 950}, 0.0, 880),
        ({"distill.t_last": 20, "distill.t_first": 60}, 0.5, 100),
        ({"distill.min_gap": 50}, 0.0, 700),
    ],
)
@pytest.mark.parametrize("steps", [100, 5000])
def test_draws_follow_the_square_root_of_the_run(
    settings: dict[str, Any], share: float, t_next: int, steps: int
) -> None:
    """The same share of a run of any length has the same timesteps; step 1 is the original's step 0."""
    method, shape = build(**settings, **{"optim.steps": steps}), (500, 1, 1, 1)
    drawn = method.draw(round(share * steps) + 1, shape, method.init_state(shape, generators()), generators())
    assert drawn.t_next == t_next
    assert drawn.progress == pytest.approx(share)
    low, high = t_next + settings.get("distill.min_gap", 100), min(t_next + 299, 980)
    assert low <= int(drawn.t.min()) <= low + 5
    assert high - 5 <= int(drawn.t.max()) <= high
    assert method.describe(drawn) == {"t": drawn.t.tolist(), "t_next": t_next}


def test_one_noise_serves_all_views_and_steps() -> None:
    method, shape, source = build(), (3, 4, 2, 2), generators()
    state = method.init_state(shape, source)
    assert state["noise"].shape == (1, 4, 2, 2)
    for step in (1, 2):
        assert torch.equal(method.draw(step, shape, state, source).noise, state["noise"].repeat(3, 1, 1, 1))


def test_gradient_averages_over_the_views_of_each_asset() -> None:
    method, text = build(), texts(4)
    whole = cds(PRIOR.predict_noise, SCHEDULE, LATENTS, NOISE, T, NEXT, text, CdsConfig(), 0.4)
    draws = [Draw(T[i : i + 2], 100, 0.4, NOISE[i : i + 2]) for i in (0, 2)]
    draws[1] = Draw(T[2:], 520, 0.4, NOISE[2:])
    ours = method.gradient(PRIOR, SCHEDULE, LATENTS, text, draws).latents
    torch.testing.assert_close(ours[:3], whole[:3] / 2)
    assert not torch.allclose(ours[3], whole[3] / 2)  # its asset has another t' than in `whole`


def test_rows_per_view_are_those_of_a_step() -> None:
    rows = []

    def counting(latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        rows.append(len(latents))
        return curved(latents, timesteps, text)

    cds(counting, SCHEDULE, LATENTS, NOISE, T, NEXT, texts(4), CdsConfig(), 0.0)
    assert build().rows_per_view == sum(rows) / 4 == 4


def test_perp_neg_is_refused() -> None:
    with pytest.raises(UsageProblem, match="cds can't be combined with Perp-Neg") as caught:
        build(**{"distill.perp_neg": True})
    assert caught.value.hint == "--set distill.perp_neg=false"


@pytest.mark.parametrize(
    ("limits", "says"), [({"min_gap": 300}, r"min_gap must not exceed"), ({"t_min": 900}, r"t_max must be at least")]
)
def test_check_refuses_limits_that_leave_nothing(limits: dict[str, int], says: str) -> None:
    with pytest.raises(UsageProblem, match=says) as caught:
        CdsConfig(**limits).check()
    hint = (caught.value.hint or "").replace("--set ", "").split()
    Config().set({f"distill.cds.{name}": value for name, value in limits.items()} | dict(_pairs(hint)))


def _pairs(assignments: list[str]) -> list[tuple[str, int]]:
    return [(key, int(value)) for key, value in (entry.split("=") for entry in assignments)]
