"""An independent SCTD, step by step and one row of latents at a time, in float64: no closed form, no batching.

The solver step is Eq. 5 with its integral by λ, the guidance the textbook's; nothing is shared with the package.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Noise = Callable[[Tensor, int, Tensor], Tensor]
"""(latents [c h w], timestep, text [l d]) -> noise estimate [c h w]"""


@dataclass(frozen=True)
class Row:
    """The inputs of the distillation of one row of latents."""

    noise: Tensor
    times: tuple[int, int, int]
    null: Tensor
    uncond: Tensor
    positive: Tensor
    negatives: list[Tensor]
    weights: list[float]


@dataclass(frozen=True)
class Literal:
    """The literal sequence of solver steps under one network and one noise schedule."""

    noise_estimate: Noise
    alphas_cumprod: Tensor
    settings: Any

    def alpha(self, t: int) -> float:
        return math.sqrt(float(self.alphas_cumprod[t]))

    def sigma(self, t: int) -> float:
        return math.sqrt(1 - float(self.alphas_cumprod[t]))

    def consistency(self, z: Tensor, t: int, s: int, eps: Tensor) -> Tensor:
        """Eq. 5; the integral of exp(-λ) from λ_t to λ_s is exp(-λ_t) - exp(-λ_s)."""
        lambda_t, lambda_s = (math.log(self.alpha(time) / self.sigma(time)) for time in (t, s))
        integral = math.exp(-lambda_t) - math.exp(-lambda_s)
        return self.alpha(s) / self.alpha(t) * z - self.alpha(s) * eps * integral

    def guided(self, z: Tensor, t: int, row: Row) -> Tensor:
        """Classifier-free guidance, and Perp-Neg where there are weights."""
        scale = self.settings.guidance_scale if self.settings.double_guidance else 1.0
        base = self.noise_estimate(z, t, row.uncond)
        positive = self.noise_estimate(z, t, row.positive) - base
        total = positive
        for weight, text in zip(row.weights, row.negatives, strict=True):
            negative = self.noise_estimate(z, t, text) - base
            total = total + weight * (negative - (negative * positive).sum() / (positive * positive).sum() * positive)
        return base + scale * total

    def points(self, z_0: Tensor, row: Row) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z_e, z_t, G(ẑ_s, s, ∅) and G(z_t, t, y)."""
        t, s, e = row.times
        z_e = self.alpha(e) * z_0 + self.sigma(e) * row.noise
        last = self.noise_estimate(z_e, e, row.null)
        if t >= self.settings.t_tau:
            z_s = self.consistency(z_e, e, s, last)
            last = self.noise_estimate(z_s, s, row.null)
            z_t = self.consistency(z_s, s, t, last)
        else:
            z_t = self.consistency(z_e, e, t, last)
        eps_t = self.guided(z_t, t, row)
        z_s_hat = self.consistency(z_t, t, s, eps_t)
        eps_s_hat = last if self.settings.reuse_noise else self.noise_estimate(z_s_hat, s, row.null)
        return z_e, z_t, self.consistency(z_s_hat, s, e, eps_s_hat), self.consistency(z_t, t, e, eps_t)

    def cross_weight(self) -> float:
        given: float | None = self.settings.cross_weight
        return float(self.settings.guidance_scale + 1) if given is None else given

    def factor(self, row: Row) -> float:
        """The weight over t, times grad_scale."""
        t, _, e = row.times
        length = self.sigma(t) / self.alpha(t) - self.sigma(e) / self.alpha(e)
        return float(
            self.settings.grad_scale
            * {
                "none": 1.0,
                "sigma_over_alpha": self.sigma(t) / self.alpha(t),
                "b_t": self.sigma(t) ** 2 / (self.alpha(e) * length) ** 2,
            }[self.settings.weight]
        )

    def released(self, z_0: Tensor, row: Row) -> Tensor:
        """The release: grad_scale weight ((G_s - z_e) + (ω + 1) (z_e - G_t) + prior_weight (z_e - G_s))."""
        z_e, _, g_s, g_t = self.points(z_0, row)
        prior = self.settings.prior_weight * (z_e - g_s)
        return self.factor(row) * ((g_s - z_e) + self.cross_weight() * (z_e - g_t) + prior)

    def eq10(self, z_0: Tensor, row: Row) -> Tensor:
        """Autograd of Eq. 10's squared norms, and of the generative prior's as a third one.

        G(z_t, t, ∅) is replaced by z_e under the approximation.
        """
        with torch.enable_grad():
            leaf = z_0.detach().requires_grad_()
            z_e, z_t, g_s, g_t = self.points(leaf, row)
            t, _, e = row.times
            g = z_e if self.settings.approximate else self.consistency(z_t, t, e, self.noise_estimate(z_t, t, row.null))
            own = (g_s.detach() - g).square().sum()
            cross = (self.cross_weight() * (g - g_t.detach())).square().sum()
            prior = (self.settings.prior_weight * (z_e - g_s.detach())).square().sum()
            (gradient,) = torch.autograd.grad(self.factor(row) * (own + cross + prior), leaf)
        return gradient
