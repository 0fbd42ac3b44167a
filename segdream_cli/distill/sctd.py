"""Segmented Consistency Trajectory Distillation (SegmentDreamer, ICCV 2025, section 4).

One step for the latents z_0 of a rendered view, after the paper's Algorithm 1 (the numbers are ours):

    1   draw t; e is the last edge at or below it; raise t to e + min_gap; draw s       draw_times
    2   z_e = α_e z_0 + σ_e ε*                                                          NoiseSchedule.add_noise
    3   carry z_e up to z_t without text, over s if t >= t_tau                          invert
    4   ẑ_s = z_t taken down to s under the guided noise                                residuals
    5   self-consistency:  G(ẑ_s, s, e, ∅) - z_e                                        residuals
    6   cross-consistency: z_e - G(z_t, t, e, y)                                        residuals
    7   combine both, weighted over t, into the gradient with respect to z_0            pull_released, pull_eq10, weight

    variable        symbol                  meaning
    --------------  ----------------------  -----------------------------------------------------
    t, s, e         t, s, s_m               start, middle and end of a denoising step, e <= s < t; e is the lower
                                            edge of t's segment
    edges           s_0 ... s_N             ends of the sub-trajectories
    z_e, z_s, z_t   z_{s_m}, z̃_s, z̃_t      the latents noised to e, then carried up without text (Eq. 11)
    z_s_hat         ẑ_s                     z_t taken down to s under the guided noise
    eps_e, eps_s    ε(z_e, ∅), ε(z_s, ∅)    noise estimates of the inversion
    eps_t           ε̂(z_t, y)               guided noise estimate
    eps_s_hat       ε(ẑ_s, ∅)               noise estimate of the self-consistency function
    lower, upper    σ̃_s - σ̃_e, σ̃_t - σ̃_s    lengths of the two halves of the step, times α_e

G(z, t, e, y) is the consistency function of Eq. 5, one solver step from t to e under the noise estimate with text y,
and ∅ is the empty text. Differences of its values are
written in noise estimates, which spares them the cancellation between nearly equal latents.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli.config import Config
from segdream_cli.config.distill import SctdConfig
from segdream_cli.distill.guidance import Conditions, guided_noise, guided_rows
from segdream_cli.distill.method import Generators, Gradient, Shape, State, draw_noise, merge
from segdream_cli.distill.schedule import Latents, NoiseSchedule, PredictNoise, per_row
from segdream_cli.errors import UsageProblem
from segdream_cli.priors.protocol import Prior

Edges = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Times:
    """Start, middle and end of a denoising step for each row: e <= s < t, or all equal where t is an edge."""

    t: Int[Tensor, " b"]
    s: Int[Tensor, " b"]
    e: Int[Tensor, " b"]

    def repeat(self, n: int) -> "Times":
        """Each row's times `n` times over, for the views of an asset."""
        return Times(*(times.repeat_interleave(n) for times in (self.t, self.s, self.e)))


@dataclass(frozen=True, slots=True)
class Draw:
    """Random numbers of one asset's step: (t, s, e), shared by its views, and the noise ε* of each view."""

    times: tuple[int, int, int]
    noise: Float[Tensor, "v c h w"]


class Sctd:
    """SCTD as a `Method`.

    Raises:
        UsageProblem: the segments do not fit.
    """

    decodes_per_view = 0.0

    def __init__(self, config: Config) -> None:
        self._config, self._distill, self._optim = config.distill.sctd, config.distill, config.optim
        self._edges = trajectory_segments(self._config)

    @property
    def notes(self) -> list[str]:
        """Segments that shrink instead of grow, or are shorter than the smallest t - e."""
        n, gap = self._config.segments, self._config.min_gap
        lengths = [after - before for before, after in pairwise(self._edges)]
        found = []
        if self._config.segmentation == "mono" and lengths[1:] and lengths[1] < lengths[0]:
            most = (self._edges[-1] - self._edges[0]) // lengths[0]
            found.append(
                f"{n} segments of at least {lengths[0]} timesteps do not fit into {self._edges[0]}..{self._edges[-1]}: "
                f"they shrink to {min(lengths)}; --set distill.sctd.segments={most} makes them grow"
            )
        if min(lengths) < gap:
            found.append(
                f"the shortest of {n} segments has {min(lengths)} timesteps, fewer than distill.sctd.min_gap={gap}: "
                "there, t is raised to the segment's end"
            )
        return found

    @property
    def rows_per_view(self) -> float:
        """Rows of the inversion, 2 if t >= t_tau, else 1; of ε(ẑ_s, ∅), unless it is reused; and of the guidance."""
        return (
            1 + self._two_step_share() + (not self._config.reuse_noise) + guided_rows(perp_neg=self._distill.perp_neg)
        )

    def init_state(self, shape: Shape, generators: Generators) -> State:
        """ε*, kept for the whole run."""
        return {"noise": self._draw_noise(shape, generators["noise"])}

    def draw(self, step: int, shape: Shape, state: State, generators: Generators) -> Draw:
        """(t, s, e), and the run's ε* or, without `fixed_noise`, a fresh one."""
        times = draw_times(self._config, self._window(step), self._edges, generators["times"])
        fixed = self._config.fixed_noise
        return Draw(times, state["noise"] if fixed else self._draw_noise(shape, generators["noise"]))

    def describe(self, draw: Draw) -> Mapping[str, int]:
        """t, s and e."""
        return dict(zip("tse", draw.times, strict=True))

    def gradient(
        self, prior: Prior, schedule: NoiseSchedule, latents: Latents, conditions: Conditions, draws: Sequence[Draw]
    ) -> Gradient:
        """`sctd` of all views, each asset's under its own draw."""
        times = Times(*torch.tensor([draw.times for draw in draws]).T).repeat(len(latents) // len(draws))
        noise = merge([draw.noise for draw in draws], latents.device)
        return Gradient(sctd(prior.predict_noise, schedule, latents, noise, times, conditions, self._config))

    def _window(self, step: int) -> tuple[int, int]:
        """The window of t in a step."""
        return t_window(self._config, self._distill.warmup(step), self._optim.progress(step))

    def _two_step_share(self) -> float:
        """Share of the steps of a run in which t >= t_tau, so that the inversion takes two; from a grid of draws."""
        grid, hits = [(i + 0.5) / 32 for i in range(32)], 0
        for progress in grid:
            low, high = self._window(math.ceil(progress * self._optim.steps))
            drawn = [lift(self._config, self._edges, low + int(share * (high + 1 - low))) for share in grid]
            hits += sum(t >= self._config.t_tau for t, _ in drawn)
        return hits / len(grid) ** 2

    def _draw_noise(self, shape: Shape, generator: torch.Generator) -> Float[Tensor, "v c h w"]:
        """ε*, with the release's constant per channel."""
        offset = self._config.noise_offset
        if self._distill.perp_neg:
            fixed, fresh = self._config.noise_offset_perp_neg, self._config.noise_offset_perp_neg_fresh
            offset = fixed if self._config.fixed_noise else fresh
        return draw_noise(shape, offset, generator)


def trajectory_segments(config: SctdConfig, n_timesteps: int = 1000) -> Edges:
    """The N_s + 1 edges s_0 < s_1 < ... of the sub-trajectories (section 4.3).

    `uniform` cuts [t_min, t_max] into equal parts, as the release does; `full` cuts [0, T], as the paper prints
    it; `mono` starts with a part of t_tau - t_min and grows each next one by a constant, as the release does. That
    constant is negative for many segments: the paper's ablation with N_s = 10 has parts that shrink.

    Raises:
        UsageProblem: so many segments that some would be empty.
    """
    edges = _cut(config, config.segments, n_timesteps)
    if not _increase(edges):
        most = next(n for n in range(config.segments - 1, 0, -1) if _increase(_cut(config, n, n_timesteps)))
        raise UsageProblem(
            f"{config.segments} segments leave some of {edges[0]}..{edges[-1]} empty",
            hint=f"--set distill.sctd.segments={most}",
        )
    return edges


def _cut(config: SctdConfig, n: int, n_timesteps: int) -> Edges:
    """The edges of `n` segments, which may be empty."""
    low, high = (0, n_timesteps) if config.segmentation == "full" else (config.t_min, config.t_max)
    if config.segmentation == "mono" and n > 1:
        first = config.t_tau - low
        growth = 2 * (high - low - n * first) // (n * (n - 1))
        return (*(low + i * first + growth * i * (i - 1) // 2 for i in range(n)), high)
    return tuple(low + i * (high - low) // n for i in range(n + 1))


def _increase(edges: Edges) -> bool:
    return all(before < after for before, after in pairwise(edges))


def draw_times(
    config: SctdConfig, window: tuple[int, int], edges: Edges, generator: torch.Generator
) -> tuple[int, int, int]:
    """Draws (t, s, e) as the release does.

    t comes from the window, e is the last edge at or below it, t is lifted to at least `min_gap` above e but never
    past the next edge, and s lies between with a margin to both ends.

    Args:
        config: the method's settings.
        window: smallest and largest t before it is lifted; see `t_window`.
        edges: ends of the sub-trajectories.
        generator: source of the two random integers.
    """
    low, high = window
    t, e = lift(config, edges, _draw_integer(low, high + 1, generator))
    margin = max(0, min(config.s_margin, (t - e - 1) // 2))
    return t, _draw_integer(e + margin, max(t - margin, e + margin + 1), generator), e


def t_window(config: SctdConfig, warmup: float, progress: float) -> tuple[int, int]:
    """Smallest and largest t before it is lifted. The window slides down over the warm-up (release).

    Args:
        config: the method's settings.
        warmup: share of the warm-up that is done, 0..1.
        progress: share of the run that is done, 0..1.
    """
    shift = int(config.warmup_shift * (1 - warmup))
    low = config.t_min + (shift if config.window == "sliding" else 0) + 1
    high = min(config.t_high + shift, config.t_max - 1)
    return config.t_range(min(low, high), high, progress)


def lift(config: SctdConfig, edges: Edges, t: int) -> tuple[int, int]:
    """A timestep lifted to `min_gap` above e, but not past the next edge; and e, the last edge at or below it."""
    segment = max(i for i, edge in enumerate(edges[:-1]) if edge <= t and edge < config.t_max - 1)
    e = edges[segment]
    return min(max(t, e + config.min_gap), max(edges[segment + 1], t), config.t_max - 1), e


def _draw_integer(low: int, high: int, generator: torch.Generator) -> int:
    """A uniform integer in [low, high)."""
    return int(torch.randint(low, high, (), generator=generator))


@dataclass(frozen=True, slots=True)
class Inversion:
    """The unconditional path from e to t, and the noise estimates it was made of."""

    z_t: Latents
    eps_e: Latents
    eps_s: Latents


def invert(
    predict_noise: PredictNoise,
    schedule: NoiseSchedule,
    z_e: Latents,
    times: Times,
    null: Float[Tensor, "b l d"],
    t_tau: int,
) -> Inversion:
    """Carries z_e up to t without text: over s where t >= t_tau, in one step elsewhere (Eq. 11).

    The paper prints s_m as the start of the second step and t > t_tau as its condition; both follow the release.
    For one-step rows eps_s = eps_e, so one formula covers both.
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
    latents: Latents,
    noise: Latents,
    times: Times,
    conditions: Conditions,
    config: SctdConfig,
) -> Latents:
    """The gradient of the SCTD loss with respect to the latents z_0.

    Under the approximation of section 4.4, z_e stands for G(z_t, t, e, ∅), whose derivative is then α_e.
    Otherwise the combined residual is pulled back through the network.

    Args:
        predict_noise: the prior's noise estimate.
        schedule: its noise schedule.
        latents: encoded renders z_0.
        noise: ε*, which takes z_0 to e.
        times: t, s and e of every row.
        conditions: text embeddings of every row.
        config: the method's settings.

    Returns:
        the weighted gradient, not divided by the number of rows.
    """
    pull = pull_released if config.loss == "released" else pull_eq10
    cross_weight = config.guidance_scale + 1 if config.cross_weight is None else config.cross_weight
    alpha_e = per_row(schedule.alpha(times.e), latents)
    with torch.set_grad_enabled(not config.approximate):
        z_0 = latents.detach().requires_grad_(not config.approximate)
        z_e = schedule.add_noise(z_0, noise, times.e)
        inversion = invert(predict_noise, schedule, z_e, times, conditions.null, config.t_tau)
    self_part, cross_part = residuals(predict_noise, schedule, inversion, times, conditions, config)
    if config.approximate:
        gradient = alpha_e * pull(self_part, cross_part, cross_weight, alpha_e)  # dz_e / dz_0 = α_e
    else:
        with torch.enable_grad():
            eps_null = predict_noise(inversion.z_t, times.t, conditions.null)
            endpoint = schedule.step(inversion.z_t, eps_null, times.t, times.e)  # G(z_t, t, e, ∅)
        gap = (z_e - endpoint).detach()  # puts the exact endpoint in place of z_e in both residuals
        cotangent = pull(self_part + gap, cross_part - gap, cross_weight, alpha_e)
        (gradient,) = torch.autograd.grad(endpoint, z_0, cotangent)
    if config.prior_weight:
        gradient = gradient + alpha_e * pull_prior(self_part, config, alpha_e)
    return per_row(weight(schedule, times, config), latents) * gradient


@torch.no_grad()
def residuals(
    predict_noise: PredictNoise,
    schedule: NoiseSchedule,
    inversion: Inversion,
    times: Times,
    conditions: Conditions,
    config: SctdConfig,
) -> tuple[Latents, Latents]:
    """G(ẑ_s, s, e, ∅) - z_e and z_e - G(z_t, t, e, y), in noise estimates."""
    scale = config.guidance_scale if config.double_guidance else 1.0
    eps_t = guided_noise(predict_noise, inversion.z_t, times.t, conditions, scale)
    z_s_hat = schedule.step(inversion.z_t, eps_t, times.t, times.s)
    eps_s_hat = inversion.eps_s if config.reuse_noise else predict_noise(z_s_hat, times.s, conditions.null)

    alpha_e = schedule.alpha(times.e)
    lower = per_row(alpha_e * (schedule.noise_ratio(times.s) - schedule.noise_ratio(times.e)), eps_t)
    upper = per_row(alpha_e * (schedule.noise_ratio(times.t) - schedule.noise_ratio(times.s)), eps_t)
    guided = upper * (eps_t - inversion.eps_s)
    return lower * (inversion.eps_e - eps_s_hat) - guided, lower * (eps_t - inversion.eps_e) + guided


def pull_released(
    self_part: Latents, cross_part: Latents, cross_weight: float, alpha_e: Float[Tensor, "b 1 1 1"]
) -> Latents:
    """The release's pull on G(z_t, t, e, ∅): the residual of Eq. 9 without its generative prior.

    The release hands its residual to z_0 as it is; dividing by α_e = dz_e/dz_0 keeps that under the pull-back.
    """
    return (self_part + cross_weight * cross_part) / alpha_e


def pull_eq10(self_part: Latents, cross_part: Latents, cross_weight: float, _: Float[Tensor, "b 1 1 1"]) -> Latents:
    """The derivative of Eq. 10, two squared norms, with respect to G(z_t, t, e, ∅)."""
    return 2 * (cross_weight**2 * cross_part - self_part)


def pull_prior(self_part: Latents, config: SctdConfig, alpha_e: Float[Tensor, "b 1 1 1"]) -> Latents:
    """The pull of the generative prior of Eq. 9, z_e - G(ẑ_s, s, e, ∅), on z_e.

    Here z_e is the noised render itself, so this term is not pulled back through the network. `self_part` is
    G(ẑ_s, s, e, ∅) - z_e. The release's residual goes to z_0 as it is; under Eq. 10 the prior is a third squared norm.
    """
    if config.loss == "released":
        return -config.prior_weight * self_part / alpha_e
    return -2 * config.prior_weight**2 * self_part


def weight(schedule: NoiseSchedule, times: Times, config: SctdConfig) -> Float[Tensor, " b"]:
    """The factor on each row's gradient: σ̃_t (release), b(t) of Eq. 8 with ω(t) = σ_t², or 1; times grad_scale."""
    if config.weight == "b_t":
        step = schedule.alpha(times.e) * (schedule.noise_ratio(times.t) - schedule.noise_ratio(times.e))
        # a step without length, t = e, has no residual either
        factor = torch.where(step == 0, 0, schedule.sigma(times.t).square() / step.square())
    else:
        factor = schedule.weight(times.t, config.weight)
    return config.grad_scale * factor
