"""Guided Consistency Sampling (Connect3D, Li et al., ECCV 2024; "ConnectCD" in SegmentDreamer), as its code runs it.

1   draw t; s is an interval below it; draw e below s                                           draw_times
2   z_e = α_e z_0 + σ_e ε, carried up to z_s and z_t without text                               gcs
3   h: guided noise at z_t; ẑ_s and ẑ_e: z_t taken down to s and to e under h                   gcs
4   compact consistency: G(z_t, t, e, ∅) - sg G(ẑ_s, s, e, ∅)                                   gcs
5   conditional guidance: x_n - sg x_c, the estimates of z_0 from z_e under ε(z_e, ∅)           gcs
    and from ẑ_e under the guided noise there
6   constraint on pixels: D(x_n) - D(x_c) pulls the colours of the render                       Gcs.gradient

With weights w, sums over all elements and v views, the loss is

    L = grad_scale / v (w_compact |4|² + w_guidance |5|² + w_pixel |rgb - sg(rgb + D(x_c) - D(x_n))|²)

The noise estimates are constants and all steps are linear in z_0, so dG(z_t, t, e, ∅) / dz_0 = α_e, dx_n / dz_0 = 1:

    dL / dz_0  = 2 grad_scale / v (w_compact α_e (4) + w_guidance (5))
    dL / drgb  = 2 grad_scale / v w_pixel (D(x_n) - D(x_c))

Both residuals are written in noise estimates, which spares them the cancellation between nearly equal latents.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from segdream_cli.config import Config
from segdream_cli.config.distill import GcsConfig
from segdream_cli.distill.guidance import Conditions, guided_noise, guided_rows
from segdream_cli.distill.method import Generators, Gradient, Shape, State, draw_noise, merge
from segdream_cli.distill.schedule import Latents, NoiseSchedule, PredictNoise, per_row
from segdream_cli.distill.sctd import Draw, Times
from segdream_cli.priors.protocol import Prior


class Gcs:
    """GCS as a `Method`."""

    notes: Sequence[str] = ()

    def __init__(self, config: Config) -> None:
        self._config, self._distill, self._optim = config.distill.gcs, config.distill, config.optim
        fixed = self._config.fixed_noise
        self._noise_is_fixed = config.distill.perp_neg if fixed == "auto" else fixed == "on"

    @property
    def rows_per_view(self) -> float:
        """Rows of the path up to t and of the guidance there, and those of each term that has a weight."""
        config, guided = self._config, guided_rows(perp_neg=self._distill.perp_neg)
        compact = 2 if config.compact_weight else 0
        return 2 + guided + compact + (guided if config.guidance_weight or config.pixel_weight else 0)

    @property
    def decodes_per_view(self) -> float:
        """D(x_n) and D(x_c)."""
        return 2.0 if self._config.pixel_weight else 0.0

    def init_state(self, shape: Shape, generators: Generators) -> State:
        """ε, if it is kept for the whole run."""
        return {"noise": self._draw_noise(shape, generators)} if self._noise_is_fixed else {}

    def draw(self, step: int, shape: Shape, state: State, generators: Generators) -> Draw:
        """(t, s, e), and ε."""
        window = t_window(self._config, self._distill.warmup(step), self._optim.progress(step))
        times = draw_times(window, self._config.margin, generators["times"])
        return Draw(times, state["noise"] if self._noise_is_fixed else self._draw_noise(shape, generators))

    def describe(self, draw: Draw) -> Mapping[str, int]:
        """t, s and e."""
        return dict(zip("tse", draw.times, strict=True))

    @torch.no_grad()
    def gradient(
        self, prior: Prior, schedule: NoiseSchedule, latents: Latents, conditions: Conditions, draws: Sequence[Draw]
    ) -> Gradient:
        """`gcs` of all views and its pixel term, averaged over the views of each asset."""
        views = len(latents) // len(draws)
        times = Times(*torch.tensor([draw.times for draw in draws]).T).repeat(views)
        noise = merge([draw.noise for draw in draws], latents.device)
        pull, ends = gcs(prior.predict_noise, schedule, latents, noise, times, conditions, self._config)
        if ends is None or not self._config.pixel_weight:
            return Gradient(pull / views)
        null, guided = (prior.decode(end).clamp(0, 1) for end in (ends.null, ends.guided))
        return Gradient(pull / views, 2 * self._config.grad_scale * self._config.pixel_weight / views * (null - guided))

    def _draw_noise(self, shape: Shape, generators: Generators) -> Float[Tensor, "v c h w"]:
        return draw_noise(shape, self._config.noise_offset, generators["noise"])


def t_window(config: GcsConfig, warmup: float, progress: float) -> tuple[int, int, int]:
    """Smallest and largest t, before it is lifted, and t - s. All three fall over the warm-up.

    Args:
        config: the method's settings.
        warmup: share of the warm-up that is done, 0..1.
        progress: share of the run that is done, 0..1.
    """
    left = 1 - warmup
    shift = int(config.warmup_shift * left)
    high = min(config.t_high + shift, config.t_max)
    interval = int(config.interval + math.ceil(left * (config.interval_start - config.interval)))
    return *config.t_range(min(config.t_min + 1 + shift, high), high, progress), interval


def draw_times(window: tuple[int, int, int], margin: int, generator: torch.Generator) -> tuple[int, int, int]:
    """Draws (t, s, e) as Connect3D does.

    t is lifted to interval + 2 at least; s is one interval below t; s - e is larger than `margin` and at most one
    interval, but e is at least 2. At the lowest t, s = e = 2, and the step between them has length zero. Connect3D has
    this step too: 12.9 % of the draws after the warm-up.

    Args:
        window: smallest and largest t, and the interval; see `t_window`.
        margin: the setting.
        generator: source of the two random integers.
    """
    low, high, interval = window
    t = max(int(torch.randint(low, high + 1, (), generator=generator)), interval + 2)
    s = t - interval
    e = int(torch.randint(max(s - interval, 1), max(s - margin, 2), (), generator=generator))
    return t, s, max(e, 2)


@dataclass(frozen=True, slots=True)
class Ends:
    """Estimates of z_0 at e: x_n without text, x_c under the guidance."""

    null: Latents
    guided: Latents


@torch.no_grad()
def gcs(
    predict_noise: PredictNoise,
    schedule: NoiseSchedule,
    latents: Latents,
    noise: Latents,
    times: Times,
    conditions: Conditions,
    config: GcsConfig,
) -> tuple[Latents, Ends | None]:
    """The GCS gradient of each row with respect to its latents z_0, and what the pixel term decodes.

    Terms of weight 0 are not evaluated.

    Args:
        predict_noise: the prior's noise estimate.
        schedule: its noise schedule.
        latents: encoded renders z_0.
        noise: ε, which takes z_0 to e.
        times: t, s and e of every row.
        conditions: text embeddings of every row.
        config: the method's settings.

    Returns:
        the gradient, not divided by the number of views, and the estimates of z_0; None if no term needs them.
    """
    t, s, e, null = times.t, times.s, times.e, conditions.null
    z_e = schedule.add_noise(latents, noise, e)
    eps_e = predict_noise(z_e, e, null)
    z_s = schedule.step(z_e, eps_e, e, s)
    eps_s = predict_noise(z_s, s, null)
    z_t = schedule.step(z_s, eps_s, s, t)
    eps_t = guided_noise(predict_noise, z_t, t, conditions, config.guidance_scale)  # h
    alpha_e, ratio_e = per_row(schedule.alpha(e), latents), per_row(schedule.noise_ratio(e), latents)
    lower = per_row(schedule.noise_ratio(s) - schedule.noise_ratio(e), latents)
    upper = per_row(schedule.noise_ratio(t) - schedule.noise_ratio(s), latents)

    pull, ends = torch.zeros_like(latents), None
    if config.compact_weight:  # G(z_t, t, e, ∅) - G(ẑ_s, s, e, ∅)
        eps_t_null = predict_noise(z_t, t, null)
        eps_s_hat = predict_noise(schedule.step(z_t, eps_t, t, s), s, null)
        residual = alpha_e * (upper * (eps_t - eps_t_null) + lower * (eps_s_hat - eps_t_null))
        pull = pull + config.compact_weight * alpha_e * residual
    if config.guidance_weight or config.pixel_weight:  # x_n - x_c
        z_e_hat = schedule.step(z_t, eps_t, t, e)
        eps_e_hat = guided_noise(predict_noise, z_e_hat, e, conditions, config.guidance_scale)
        residual = lower * (eps_t - eps_e) + upper * (eps_t - eps_s) + ratio_e * (eps_e_hat - eps_e)
        x_n = z_e / alpha_e - ratio_e * eps_e
        pull, ends = pull + config.guidance_weight * residual, Ends(x_n, x_n - residual)
    return 2 * config.grad_scale * pull, ends
