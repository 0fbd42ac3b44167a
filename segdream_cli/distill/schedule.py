"""The noise schedule, and one step of the first-order ODE solver.

    variable                symbol      meaning
    ----------------------  ----------  --------------------------------------------------
    alphas_cumprod[t]                   cumulated product of 1 - beta, as diffusers tabulates it
    alpha(t)                α_t         sqrt(alphas_cumprod[t])
    sigma(t)                σ_t         sqrt(1 - alphas_cumprod[t])
    noise_ratio(t)          σ̃_t        σ_t / α_t = exp(-λ_t)

Timesteps are plain integers 0..999, the indices of `alphas_cumprod`; nothing here is an index into a
thinned list. Shapes: b rows of latents, each with its own timestep.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Latents = Float[Tensor, "b c h w"]
PredictNoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(latents [b c h w], timesteps [b], text [b l d]) -> noise estimate [b c h w]"""


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """Coefficients of the forward process, looked up in float64 and applied in the precision of the latents.

    Args:
        alphas_cumprod: one value per timestep, decreasing, in (0, 1), on the CPU.
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

    def weight(
        self, t: Int[Tensor, " b"], kind: Literal["sigma_squared", "sigma_over_alpha", "none"]
    ) -> Float[Tensor, " b"]:
        """w(t) in float64: σ_t², σ_t / α_t, or 1."""
        if kind == "sigma_squared":
            return self.sigma(t).square()
        return self.noise_ratio(t) if kind == "sigma_over_alpha" else torch.ones_like(self.alpha(t))

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
    """One factor per row, in the precision and on the device of `like`."""
    # non-blocking: so few numbers are copied before the call returns, and a step makes dozens of such calls
    return values.to(like.dtype).to(like.device, non_blocking=True)[:, None, None, None]
