"""Segmented Consistency Trajectory Distillation (SegmentDreamer, ICCV 2025, section 4).

    variable        symbol                  meaning
    --------------  ----------------------  -----------------------------------------------------
    z_e, z_s, z_t   z_{s_m}, z̃_s, z̃_t      the latents noised to e, then carried up without a condition (Eq. 11)
    z_s_hat         ẑ_s                     z_t taken down to s under the guided noise
    eps_e, eps_s    ε(z_e, ∅), ε(z_s, ∅)    noise estimates of the inversion
    eps_t           ε̂(z_t, y)               guided noise estimate
    eps_s_hat       ε(ẑ_s, ∅)               noise estimate of the self-consistency function
    lower, upper    σ̃_s - σ̃_e, σ̃_t - σ̃_s    lengths of the two halves of the step

G(z, t, e) is the consistency function of Eq. 5, one solver step from t to e. Differences of its values are
written out in noise estimates, which spares them the cancellation between nearly equal latents.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from segdream_cli.config import DistillConfig
from segdream_cli.distill.guidance import Conditions, guided_noise
from segdream_cli.distill.schedule import NoiseSchedule, PredictNoise, Times, per_row


@dataclass(frozen=True, slots=True)
class Inversion:
    """The unconditional path from e to t, and the noise estimates it was made of."""

    z_t: Float[Tensor, "b c h w"]
    eps_e: Float[Tensor, "b c h w"]
    eps_s: Float[Tensor, "b c h w"]


def invert(
    predict_noise: PredictNoise,
    schedule: NoiseSchedule,
    z_e: Float[Tensor, "b c h w"],
    times: Times,
    null: Float[Tensor, "b l d"],
    t_tau: int,
) -> Inversion:
    """Carries z_e up to t without a condition: over s where t >= t_tau, in one step elsewhere (Eq. 11).

    The paper prints s_m as the start of the second step and t > t_tau as its test; both follow the release.
    A one-step row's eps_s is its eps_e, which makes the two cases one formula.
    """
    eps_e = predict_noise(z_e, times.e, null)
    long = (times.t >= t_tau).nonzero(as_tuple=True)[0]
    if not len(long):
        return Inversion(schedule.step(z_e, eps_e, times.e, times.t), eps_e, eps_e)
    z_s = schedule.step(z_e, eps_e, times.e, times.s)
    if len(long) == len(z_e):
        eps_s = predict_noise(z_s, times.s, null)
    else:
        rows = long.to(z_e.device, non_blocking=True)
        eps_s = eps_e.index_copy(0, rows, predict_noise(z_s[rows], times.s[long], null[rows]))
    return Inversion(schedule.step(z_s, eps_s, times.s, times.t), eps_e, eps_s)


def sctd(
    predict_noise: PredictNoise,
    schedule: NoiseSchedule,
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    times: Times,
    conditions: Conditions,
    config: DistillConfig,
) -> Float[Tensor, "b c h w"]:
    """The gradient of the SCTD loss with respect to the latents z_0.

    `released` is the residual of Eq. 9 without its generative prior, as the official release computes it;
    `eq10` is the gradient of the two squared norms that the paper prints.

    Args:
        predict_noise: the prior's noise estimate.
        schedule: its noise schedule.
        latents: encoded renders z_0.
        noise: ε*, the noise that takes z_0 to e.
        times: t, s and e of every row.
        conditions: text embeddings of every row.
        config: the method's settings.

    Returns:
        the weighted gradient, not divided by the number of rows.
    """
    with torch.set_grad_enabled(not config.approximate):
        z_0 = latents.detach().requires_grad_(not config.approximate)
        z_e = schedule.add_noise(z_0, noise, times.e)
        inversion = invert(predict_noise, schedule, z_e, times, conditions.null, config.t_tau)
        endpoint = z_e
        if not config.approximate:
            endpoint = _consistency(predict_noise, schedule, inversion.z_t, times, conditions)
    with torch.no_grad():
        self_part, cross_part = _residuals(predict_noise, schedule, inversion, times, conditions, config)
        gap = z_e - endpoint  # zero under the approximation of section 4.4
        pull = _cotangent(self_part + gap, cross_part - gap, schedule, times, config)
    if config.approximate:
        gradient = per_row(schedule.alpha(times.e), latents) * pull
    else:
        (gradient,) = torch.autograd.grad(endpoint, z_0, pull)
    return per_row(weight(schedule, times, config), latents) * gradient


def weight(schedule: NoiseSchedule, times: Times, config: DistillConfig) -> Float[Tensor, " b"]:
    """The factor on each row's gradient: σ̃_t (release), b(t) of Eq. 8 with ω(t) = σ_t², or 1; times grad_scale."""
    if config.weight == "b_t":
        step = schedule.alpha(times.e) * (schedule.noise_ratio(times.t) - schedule.noise_ratio(times.e))
        factor = schedule.sigma(times.t).square() / step.square()
    elif config.weight == "sigma_over_alpha":
        factor = schedule.noise_ratio(times.t)
    else:
        factor = torch.ones_like(schedule.alpha(times.t))
    return config.grad_scale * factor


def _consistency(
    predict_noise: PredictNoise,
    schedule: NoiseSchedule,
    z_t: Float[Tensor, "b c h w"],
    times: Times,
    conditions: Conditions,
) -> Float[Tensor, "b c h w"]:
    """G(z_t, t, e, ∅), differentiable through the network."""
    return schedule.step(z_t, predict_noise(z_t, times.t, conditions.null), times.t, times.e)


def _residuals(
    predict_noise: PredictNoise,
    schedule: NoiseSchedule,
    inversion: Inversion,
    times: Times,
    conditions: Conditions,
    config: DistillConfig,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """G(ẑ_s, s, ∅) - z_e and z_e - G(z_t, t, y), in noise estimates."""
    scale = config.guidance_scale if config.double_guidance else 1.0
    eps_t = guided_noise(predict_noise, inversion.z_t, times.t, conditions, scale)
    z_s_hat = schedule.step(inversion.z_t, eps_t, times.t, times.s)
    eps_s_hat = predict_noise(z_s_hat, times.s, conditions.null)

    alpha_e = schedule.alpha(times.e)
    lower = per_row(alpha_e * (schedule.noise_ratio(times.s) - schedule.noise_ratio(times.e)), eps_t)
    upper = per_row(alpha_e * (schedule.noise_ratio(times.t) - schedule.noise_ratio(times.s)), eps_t)
    guided = upper * (eps_t - inversion.eps_s)
    return lower * (inversion.eps_e - eps_s_hat) - guided, lower * (eps_t - inversion.eps_e) + guided


def _cotangent(
    self_part: Float[Tensor, "b c h w"],
    cross_part: Float[Tensor, "b c h w"],
    schedule: NoiseSchedule,
    times: Times,
    config: DistillConfig,
) -> Float[Tensor, "b c h w"]:
    """What is pulled back through G(z_t, t, e, ∅): the loss's derivative, or the release's residual.

    The release hands its residual to z_0 as it is; dividing by α_e = dz_e/dz_0 keeps that under the pull-back.
    """
    cross_weight = config.guidance_scale + 1 if config.cross_weight is None else config.cross_weight
    if config.loss == "eq10":
        return 2 * (cross_weight**2 * cross_part - self_part)
    return (self_part + cross_weight * cross_part) / per_row(schedule.alpha(times.e), self_part)
