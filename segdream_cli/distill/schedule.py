"""The noise schedule, its segments, the draw of (t, s, e), and one step of the first-order ODE solver.

    variable                symbol      meaning
    ----------------------  ----------  --------------------------------------------------
    alphas_cumprod[t]                   cumulated product of 1 - beta, as diffusers tabulates it
    alpha(t)                α_t         sqrt(alphas_cumprod[t])
    sigma(t)                σ_t         sqrt(1 - alphas_cumprod[t])
    noise_ratio(t)          σ̃_t        σ_t / α_t = exp(-λ_t)
    t, s, e                 t, s, s_m   start, middle and end of a denoising step, e <= s < t

Timesteps are plain integers 0..999, the indices of `alphas_cumprod`; nothing here is an index into a
thinned list. Shapes: b rows of latents, each with its own times.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli.config import DistillConfig
from segdream_cli.errors import UsageProblem

Edges = tuple[int, ...]
PredictNoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(latents [b c h w], timesteps [b], text [b l d]) -> noise estimate [b c h w]"""


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """Coefficients of the forward process, looked up in float64 and handed out in the latents' precision.

    Args:
        alphas_cumprod: one value a timestep, decreasing, in (0, 1), on the CPU.
    """

    alphas_cumprod: Float[Tensor, " T"]

    def alpha(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """α_t in float64."""
        return self.alphas_cumprod[t].double().sqrt()

    def sigma(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """σ_t in float64."""
        return (1 - self.alphas_cumprod[t].double()).sqrt()

    def noise_ratio(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """σ̃_t = σ_t / α_t in float64, so that the integral of exp(-λ) from λ_t to λ_e is σ̃_t - σ̃_e."""
        return self.sigma(t) / self.alpha(t)

    def add_noise(
        self, latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """z_t = α_t z_0 + σ_t ε."""
        return per_row(self.alpha(t), latents) * latents + per_row(self.sigma(t), latents) * noise

    def step(
        self,
        latents: Float[Tensor, "b c h w"],
        eps: Float[Tensor, "b c h w"],
        t_from: Int[Tensor, " b"],
        t_to: Int[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """Φ: one DDIM (DPM-Solver-1) step along the probability-flow ODE, in either direction (Eq. 5).

        z_to = α_to / α_from z_from + α_to (σ̃_to - σ̃_from) ε
        """
        scale = self.alpha(t_to) / self.alpha(t_from)
        shift = self.alpha(t_to) * (self.noise_ratio(t_to) - self.noise_ratio(t_from))
        return per_row(scale, latents) * latents + per_row(shift, latents) * eps


def per_row(values: Float[Tensor, " b"], like: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 1 1"]:
    """One factor a row, in the precision and on the device of `like`."""
    # without waiting: a handful of numbers is copied before the call returns, and a step makes dozens of such calls
    return values.to(like.dtype).to(like.device, non_blocking=True)[:, None, None, None]


@dataclass(frozen=True, slots=True)
class Times:
    """Start, middle and end of a denoising step for each row: e <= s < t."""

    t: Int[Tensor, " b"]
    s: Int[Tensor, " b"]
    e: Int[Tensor, " b"]

    def repeat(self, n: int) -> "Times":
        """Each row's times `n` times over, for the views of an asset."""
        return Times(*(times.repeat_interleave(n) for times in (self.t, self.s, self.e)))


def trajectory_segments(config: DistillConfig, n_timesteps: int = 1000) -> Edges:
    """The N_s + 1 edges s_0 < s_1 < ... of the sub-trajectories (section 4.3).

    `uniform` cuts [t_min, t_max] into equal parts, as the release does; `full` cuts [0, T], as the paper
    prints it; `mono` grows the parts by a constant step from t_tau - t_min on, as the release does.

    Raises:
        UsageProblem: so many segments that some would be empty, or would shrink instead of grow.
    """
    n, low, high = config.segments, config.t_min, config.t_max
    if config.segmentation == "full":
        low, high = 0, n_timesteps
    if config.segmentation == "mono" and n > 1:
        first = config.t_tau - low
        growth = 2 * (high - low - n * first) // (n * (n - 1))
        if growth < 0:
            most = (high - low) // first
            raise UsageProblem(
                f"{n} segments that start with {first} timesteps do not fit into {low}..{high}",
                hint=f"--set distill.segments={max(most, 1)}",
            )
        edges = [low + i * first + growth * i * (i - 1) // 2 for i in range(n)] + [high]
    else:
        edges = [low + i * (high - low) // n for i in range(n + 1)]
    if any(after <= before for before, after in pairwise(edges)):
        raise UsageProblem(f"{n} segments leave some of {low}..{high} empty", hint="--set distill.segments=5")
    return tuple(edges)


def draw_times(config: DistillConfig, step: int, edges: Edges, generator: torch.Generator) -> tuple[int, int, int]:
    """Draws (t, s, e) for optimisation step `step` (1, 2, ...), as the release does.

    t comes from a window that slides down over the warm-up, e is the last edge at or below it, t is lifted to
    at least `min_gap` above e but never past the next edge, and s lies between with a margin to both ends.
    """
    shift = int(config.warmup_shift * (1 - min(step / config.warmup_steps, 1))) if config.warmup_steps else 0
    low = config.t_min + (shift if config.window == "sliding" else 0)
    high = min(config.t_high + shift, config.t_max - 1)
    t = _draw(min(low, high - 1), high, generator) + 1
    segment = max(i for i, edge in enumerate(edges[:-1]) if edge <= t and edge < config.t_max - 1)
    e = edges[segment]
    t = min(max(t, e + config.min_gap), max(edges[segment + 1], t), config.t_max - 1)
    margin = min(config.s_margin, (t - e - 1) // 2)
    return t, _draw(e + margin, max(t - margin, e + margin + 1), generator), e


def _draw(low: int, high: int, generator: torch.Generator) -> int:
    """A uniform integer in [low, high)."""
    return int(torch.randint(low, high, (), generator=generator))
