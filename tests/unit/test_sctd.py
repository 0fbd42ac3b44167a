"""The SCTD gradient against the literal sequence of solver steps, autograd of the printed loss, and golden numbers."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import AnalyticPrior, draw
from sctd_reference import Literal, Row
from torch import Tensor

from segdream_cli.config.distill import SctdConfig
from segdream_cli.distill.guidance import Conditions
from segdream_cli.distill.schedule import NoiseSchedule
from segdream_cli.distill.sctd import Times, sctd

GOLDEN = Path(__file__).parent.parent / "golden" / "sctd.json"
SHORT, LONG = (120, 60, 20), (450, 430, 404)
FAR = (979, 800, 788)
ROWS = {"one step": [SHORT, (101, 25, 20)], "two steps": [LONG, FAR], "mixed": [SHORT, LONG, (149, 149 - 40, 20), FAR]}
PRIOR = AnalyticPrior(variance=0.3, latent_shape=(4, 3, 3))
SCHEDULE = NoiseSchedule(PRIOR.alphas_cumprod)
PERP_NEG = torch.tensor([[-2.0, 0.0, -0.4, -1.0], [-0.5, 0.0, 0.0, -0.2]])


def curved(latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    """A network that is not linear in its latents, so that its Jacobian matters."""
    eps = PRIOR.predict_noise(latents, timesteps, text)
    return eps + 0.3 * torch.tanh(latents + eps.roll(1, -1)) * (timesteps[:, None, None, None] / 1000)


def literal(config: SctdConfig) -> Literal:
    def one(latents: Tensor, t: int, text: Tensor) -> Tensor:
        return curved(latents[None], torch.tensor([t]), text[None])[0]

    return Literal(one, PRIOR.alphas_cumprod, config)


def problem(rows: list[tuple[int, int, int]], *, perp_neg: bool = False) -> dict[str, Any]:
    """Arguments of `sctd` for rows with these times."""
    b, encode = len(rows), PRIOR.encode_text
    return {
        "latents": draw(b, 4, 3, 3),
        "noise": draw(b, 4, 3, 3, seed=1),
        "times": Times(*torch.tensor(rows).T),
        "conditions": Conditions(
            null=encode([""]).expand(b, -1, -1),
            uncond=encode(["blurry"]).expand(b, -1, -1),
            positive=encode([f"view {i}" for i in range(b)]),
            negatives=encode(["front", "side"])[:, None].expand(-1, b, -1, -1),
            weights=PERP_NEG[:, :b] if perp_neg else torch.zeros(2, b),
        ),
    }


def gradient(config: SctdConfig, given: dict[str, Any]) -> Tensor:
    return sctd(curved, SCHEDULE, config=config, **given)


def expected(config: SctdConfig, given: dict[str, Any]) -> Tensor:
    """The reference's gradient, row by row."""
    text, times, reference = given["conditions"], given["times"], literal(config)
    rows = [
        Row(
            noise=given["noise"][i],
            times=(int(times.t[i]), int(times.s[i]), int(times.e[i])),
            null=text.null[i],
            uncond=text.uncond[i],
            positive=text.positive[i],
            negatives=list(text.negatives[:, i]),
            weights=text.weights[:, i].tolist(),
        )
        for i in range(len(given["latents"]))
    ]
    compute = reference.released if config.loss == "released" else reference.eq10
    return torch.stack([compute(z_0, row) for z_0, row in zip(given["latents"], rows, strict=True)])


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.norm() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10 * float(theirs.abs().max()))


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("loss", ["released", "eq10"])
def test_sctd_equals_the_literal_steps(loss: Any, perp_neg: bool, rows: list[tuple[int, int, int]]) -> None:
    config, given = SctdConfig(loss=loss), problem(rows, perp_neg=perp_neg)
    assert_equal(gradient(config, given), expected(config, given))


@pytest.mark.parametrize("loss", ["released", "eq10"])
@pytest.mark.parametrize(
    "changes",
    [
        {"double_guidance": False},
        {"cross_weight": 0.0},
        {"cross_weight": 3.25},
        {"guidance_scale": 1.0},
        {"guidance_scale": 30.0},
        {"weight": "b_t"},
        {"weight": "none"},
        {"grad_scale": 2.5},
        {"t_tau": 0},
        {"t_tau": 1000},
        {"prior_weight": 0.6},
        {"prior_weight": 2.0, "guidance_scale": 1.0},
        {"reuse_noise": True},
        {"reuse_noise": True, "t_tau": 1000},
    ],
    ids=lambda changes: "-".join(f"{key}={value}" for key, value in changes.items()),
)
def test_sctd_settings_act_as_in_the_literal_steps(changes: dict[str, Any], loss: Any) -> None:
    given, plain = problem(ROWS["mixed"], perp_neg=True), SctdConfig(loss=loss)
    config = dataclasses.replace(plain, **changes)
    assert_equal(gradient(config, given), expected(config, given))
    assert not torch.allclose(gradient(config, given), gradient(plain, given), rtol=1e-3)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("changes", [{}, {"prior_weight": 3.0}, {"reuse_noise": True}], ids=str)
def test_sctd_exact_is_autograd_through_the_network(
    rows: list[tuple[int, int, int]], perp_neg: bool, changes: dict[str, Any]
) -> None:
    config, given = SctdConfig(loss="eq10", approximate=False, **changes), problem(rows, perp_neg=perp_neg)
    ours = gradient(config, given)
    assert_equal(ours, expected(config, given))
    assert not ours.requires_grad
    assert not torch.allclose(ours, gradient(dataclasses.replace(config, approximate=True), given), rtol=1e-3)


def test_sctd_exact_is_the_slope_of_the_printed_loss() -> None:
    """Finite differences of Eq. 10 along random directions, its stopped terms held at the point."""
    config, given = SctdConfig(loss="eq10", approximate=False), problem(ROWS["mixed"])
    text, times, reference = given["conditions"], given["times"], literal(config)
    ours, h = gradient(config, given), 1e-5
    for i in range(len(ours)):
        row = Row(
            given["noise"][i],
            (int(times.t[i]), int(times.s[i]), int(times.e[i])),
            text.null[i],
            text.uncond[i],
            text.positive[i],
            [],
            [],
        )
        _, _, g_s, g_t = reference.points(given["latents"][i], row)

        def loss(z_0: Tensor, row: Row = row, g_s: Tensor = g_s, g_t: Tensor = g_t) -> Tensor:
            _, z_t, _, _ = reference.points(z_0, row)
            t, _, e = row.times
            g = reference.consistency(z_t, t, e, reference.noise_estimate(z_t, t, row.null))
            return reference.factor(row) * ((g_s - g).square().sum() + (8.5 * (g - g_t)).square().sum())

        direction = draw(4, 3, 3, seed=i + 5)
        ahead, behind = (loss(given["latents"][i] + sign * h * direction) for sign in (1, -1))
        torch.testing.assert_close((ours[i] * direction).sum(), (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prior_weight", [0.0, 0.7])
def test_sctd_exact_pulls_the_released_residual_back(prior_weight: float) -> None:
    """Without the approximation z_e becomes G(z_t, t, ∅), and dG/dz_0 over α_e takes the place of 1.

    The generative prior holds z_e itself, so it reaches z_0 as it is.
    """
    plain = SctdConfig(approximate=False, weight="none", grad_scale=1.0)
    config, given = dataclasses.replace(plain, prior_weight=prior_weight), problem([LONG])
    text, (t, s, e) = given["conditions"], LONG
    reference, z_0 = literal(config), given["latents"][0].clone().requires_grad_()
    row = Row(given["noise"][0], (t, s, e), text.null[0], text.uncond[0], text.positive[0], [], [])
    z_e, z_t, g_s, g_t = reference.points(z_0, row)
    g = reference.consistency(z_t, t, e, reference.noise_estimate(z_t, t, row.null))
    residual = ((g_s - g) + 8.5 * (g - g_t)).detach()
    (pulled,) = torch.autograd.grad(g, z_0, residual / reference.alpha(e))
    assert_equal(gradient(config, given)[0], pulled + prior_weight * (z_e - g_s).detach())


@pytest.mark.parametrize("approximate", [True, False])
def test_sctd_rows_are_independent(approximate: bool) -> None:
    config = SctdConfig(loss="eq10", approximate=approximate)
    given = problem(ROWS["mixed"], perp_neg=True)
    together = gradient(config, given)
    for i in range(4):
        times = Times(*(part[i : i + 1] for part in (given["times"].t, given["times"].s, given["times"].e)))
        text = given["conditions"]
        alone = {
            "latents": given["latents"][i : i + 1],
            "noise": given["noise"][i : i + 1],
            "times": times,
            "conditions": Conditions(
                null=text.null[i : i + 1],
                uncond=text.uncond[i : i + 1],
                positive=text.positive[i : i + 1],
                negatives=text.negatives[:, i : i + 1],
                weights=text.weights[:, i : i + 1],
            ),
        }
        torch.testing.assert_close(together[i : i + 1], gradient(config, alone), rtol=1e-12, atol=1e-12)


def test_sctd_evaluates_the_network_as_often_as_the_release() -> None:
    """5 evaluations per row from t_tau on, 4 below, 2 more where both Perp-Neg branches count.

    Release ceb78a6, guidance/sctd_utils.py lines 374-394, 300 (2 per row for guidance) and 279 (4 with Perp-Neg).
    """
    for rows, perp_neg, evaluations in ([LONG], False, 5), ([SHORT], False, 4), ([LONG], True, 7), ([SHORT], True, 6):
        seen: list[int] = []

        def counting(latents: Tensor, t: Tensor, text: Tensor, seen: list[int] = seen) -> Tensor:
            seen.append(len(latents))
            return curved(latents, t, text)

        sctd(counting, SCHEDULE, config=SctdConfig(), **problem(rows, perp_neg=perp_neg))
        assert sum(seen) == evaluations
        seen.clear()
        sctd(counting, SCHEDULE, config=SctdConfig(reuse_noise=True), **problem(rows, perp_neg=perp_neg))
        assert sum(seen) == evaluations - 1
        seen.clear()
        sctd(counting, SCHEDULE, config=SctdConfig(t_tau=1000), **problem(rows, perp_neg=perp_neg))
        assert sum(seen) == (6 if perp_neg else 4)


def gaussian_problem(variance: float) -> tuple[AnalyticPrior, dict[str, Any], Tensor, Tensor]:
    """A prior N(mu, variance), arguments of `sctd` for it, mu of the empty text, and the guided mean at ω = 7.5."""
    prior = AnalyticPrior({"": draw(4, 3, 3, seed=9)}, variance=variance, latent_shape=(4, 3, 3))
    null, uncond, positive = (prior.encode_text([text]) for text in ("", "blurry", "a duck"))
    given = problem([LONG]) | {"conditions": Conditions(null, uncond, positive, null[None], torch.zeros(1, 1))}
    mean, base, target = (text.reshape(4, 3, 3) for text in (null, uncond, positive))
    return prior, given, mean, base + 7.5 * (target - base)


@pytest.mark.parametrize("rows", [LONG, SHORT, FAR])
@pytest.mark.parametrize("prior_weight", [0.0, 0.4, 1.0, 2.0])
def test_sctd_has_its_closed_form_for_data_at_a_point(prior_weight: float, rows: tuple[int, int, int]) -> None:
    """For data at mu, unguided steps are exact; with r = σ / α, and p the weight of the generative prior,

    0.1 r_t α_e [(1 - p) r_e (1 / r_s - 1 / r_t) - (ω + 1) (1 - r_e / r_t)] (m - mu_null), whatever z_0 and ε*.
    """
    prior, given, mean, guided = gaussian_problem(0.0)
    given["times"] = Times(*torch.tensor([rows]).T)
    ours = sctd(prior.predict_noise, SCHEDULE, config=SctdConfig(prior_weight=prior_weight), **given)[0]
    r_t, r_s, r_e = (math.sqrt(1 / float(PRIOR.alphas_cumprod[time]) - 1) for time in rows)
    alpha_e = math.sqrt(float(PRIOR.alphas_cumprod[rows[2]]))
    own, cross = (1 - prior_weight) * r_e * (1 / r_s - 1 / r_t), 8.5 * (1 - r_e / r_t)
    torch.testing.assert_close(ours, 0.1 * r_t * alpha_e * (own - cross) * (guided - mean), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("loss", ["released", "eq10"])
@pytest.mark.parametrize("reuse_noise", [False, True])
def test_sctd_has_its_closed_form_for_gaussian_data(reuse_noise: bool, loss: Any) -> None:
    """With x = z / α and data N(mu, v), ε = r (x - mu) / (v + r²): Eq. 9 and Eq. 10 as numbers, two steps up."""
    variance, p, (t, s, e) = 0.3, 0.7, LONG
    prior, given, mean, guided = gaussian_problem(variance)
    config = SctdConfig(loss=loss, prior_weight=p, reuse_noise=reuse_noise, weight="none", grad_scale=1.0)
    ours = sctd(prior.predict_noise, SCHEDULE, config=config, **given)[0]
    r = {time: math.sqrt(1 / float(PRIOR.alphas_cumprod[time]) - 1) for time in LONG}
    alpha_e = math.sqrt(float(PRIOR.alphas_cumprod[e]))

    def eps(x: Tensor, time: int, mu: Tensor) -> Tensor:
        return r[time] * (x - mu) / (variance + r[time] ** 2)

    x_e = given["latents"][0] + r[e] * given["noise"][0]
    x_s = x_e + (r[s] - r[e]) * eps(x_e, e, mean)
    x_t = x_s + (r[t] - r[s]) * eps(x_s, s, mean)
    eps_hat = eps(x_t, t, guided)
    x_s_hat = x_t - (r[t] - r[s]) * eps_hat
    eps_s_hat = eps(x_s, s, mean) if reuse_noise else eps(x_s_hat, s, mean)
    z_e, g_t, g_s = (alpha_e * x for x in (x_e, x_t - (r[t] - r[e]) * eps_hat, x_s_hat - (r[s] - r[e]) * eps_s_hat))
    own, cross, last = g_s - z_e, z_e - g_t, z_e - g_s
    expected = own + 8.5 * cross + p * last
    if loss == "eq10":
        expected = 2 * alpha_e * (8.5**2 * cross - own + p**2 * last)
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8)


def test_sctd_prior_of_weight_one_cancels_the_self_consistency() -> None:
    """Under the approximation Eq. 9 as printed is (ω + 1) times the cross-consistency alone."""
    given = problem(ROWS["mixed"])
    ours = gradient(SctdConfig(prior_weight=1.0, weight="none", grad_scale=1.0), given)
    cross = 8.5 * gradient(SctdConfig(cross_weight=1.0, prior_weight=1.0, weight="none", grad_scale=1.0), given)
    assert_equal(ours, cross)
    assert not torch.allclose(ours, gradient(SctdConfig(weight="none", grad_scale=1.0), given), rtol=1e-3)


def test_sctd_under_one_text_is_the_inversion_error() -> None:
    """Under one text for all branches and steps of the exact flow, self and cross terms are the solver's alone."""
    text = PRIOR.encode_text([""])
    given = problem([LONG]) | {
        "conditions": Conditions(text, text, text, text[None], torch.zeros(1, 1)),
    }
    config = SctdConfig(weight="none", grad_scale=1.0)
    pull = sctd(PRIOR.predict_noise, SCHEDULE, config=config, **given)
    z_e = SCHEDULE.add_noise(given["latents"], given["noise"], given["times"].e)
    guided = sctd(PRIOR.predict_noise, SCHEDULE, config=config, **problem([LONG]))
    assert pull.norm() < 0.1 * z_e.norm()
    assert pull.norm() < 0.1 * guided.norm()


@pytest.mark.parametrize("approximate", [True, False])
@pytest.mark.parametrize("weight", ["b_t", "sigma_over_alpha"])
def test_sctd_has_no_gradient_where_t_is_an_edge(weight: Any, approximate: bool) -> None:
    """The step from t to e = t has no length; other rows keep their gradient."""
    given, config = problem([LONG, (404, 404, 404)]), SctdConfig(loss="eq10", weight=weight, approximate=approximate)
    ours = gradient(config, given)
    assert torch.equal(ours[1], torch.zeros_like(ours[1]))
    assert_equal(ours[:1], expected(config, problem([LONG, FAR]))[:1])


def test_sctd_descent_reaches_the_mean_of_the_text() -> None:
    """On an unconditional prior at 0 and a text at mu, latents end where the guided prior is at rest, along mu."""
    text = PRIOR.encode_text(["a duck"])
    null = PRIOR.encode_text([""])
    latents, noise = 0.1 * draw(1, 4, 3, 3), draw(1, 4, 3, 3, seed=1)
    conditions = Conditions(null, null, text, text[None], torch.zeros(1, 1))
    config = SctdConfig(guidance_scale=2.0)
    mean = text.reshape(1, 4, 3, 3)
    before = torch.cosine_similarity(latents.flatten(), mean.flatten(), 0)
    for t, s, e in itertools.islice(itertools.cycle([LONG, SHORT, (300, 250, 212)]), 300):
        times = Times(torch.tensor([t]), torch.tensor([s]), torch.tensor([e]))
        latents = latents - 0.3 * sctd(PRIOR.predict_noise, SCHEDULE, latents, noise, times, conditions, config)
    after = torch.cosine_similarity(latents.flatten(), mean.flatten(), 0)
    assert before < 0.5
    assert after > 0.95


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text()), ids=lambda case: case["name"])
def test_sctd_golden_numbers(case: dict[str, Any]) -> None:
    """Numbers of the literal reference, written by golden/make.py: to 1e-8 in float64, to 2e-4 in float32."""
    given = problem([tuple(times) for times in case["times"]], perp_neg=case["perp_neg"])
    config, theirs = SctdConfig(**case["settings"]), torch.tensor(case["gradient"], dtype=torch.float64)
    torch.testing.assert_close(gradient(config, given), theirs, rtol=1e-8, atol=1e-8 * float(theirs.abs().max()))
    single = given | {"latents": given["latents"].float(), "noise": given["noise"].float()}
    ours = gradient(config, single)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-4, atol=2e-4 * float(theirs.abs().max()))
