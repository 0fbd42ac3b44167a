"""Distillation methods as their papers' codes compute them: one row of latents at a time, in float64 and plain numbers.

Solver steps are Euler steps of x = z / α in σ / α, guidance and Perp-Neg the textbook's; nothing is shared with the
package but the class of the texts, `Conditions`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from fakes import AnalyticPrior
from torch import Tensor

from segdream_cli.distill.guidance import Conditions

PRIOR = AnalyticPrior(variance=0.3, latent_shape=(4, 3, 3))
POINT = AnalyticPrior(variance=0.0, latent_shape=(4, 3, 3))
WEIGHTS = torch.tensor([[-2.0, 0.0, -0.4, -1.0, 0.0], [-0.5, 0.0, 0.0, -0.2, -1.0]])
"""Perp-Neg's weights of up to five rows."""


def curved(latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    """A network that is not linear in its latents."""
    eps = PRIOR.predict_noise(latents, timesteps, text)
    return eps + 0.3 * torch.tanh(latents + eps.roll(1, -1)) * (timesteps[:, None, None, None] / 1000)


def texts(rows: int, *, perp_neg: bool = False) -> Conditions:
    """Texts of which no two rows share the view's or a negative one."""
    encode = PRIOR.encode_text
    return Conditions(
        null=encode([""]).expand(rows, -1, -1),
        uncond=encode(["blurry"]).expand(rows, -1, -1),
        positive=encode([f"view {i}" for i in range(rows)]),
        negatives=encode([f"{side} {i}" for side in ("front", "side") for i in range(rows)]).unflatten(0, (2, rows)),
        weights=WEIGHTS[:, :rows] if perp_neg else torch.zeros(2, rows),
    )


def mean(text: Tensor) -> Tensor:
    """The mean of an analytic prior's data under a text, [c h w]."""
    return text.reshape(PRIOR.latent_shape).double()


def abar(t: int) -> float:
    return float(PRIOR.alphas_cumprod[t])


def ratio(t: int) -> float:
    """σ_t / α_t."""
    return math.sqrt(1 / abar(t) - 1)


@dataclass(frozen=True)
class Literal:
    """A network and the texts of a batch; each method takes the index `i` of a row."""

    network: Callable[[Tensor, Tensor, Tensor], Tensor]
    conditions: Conditions

    def noise(self, x: Tensor, t: int, text: Tensor) -> Tensor:
        """The network's estimate at x = z / α_t."""
        return self.network(math.sqrt(abar(t)) * x[None], torch.tensor([t]), text[None])[0]

    def null(self, x: Tensor, t: int, i: int) -> Tensor:
        return self.noise(x, t, self.conditions.null[i])

    def away(self, x: Tensor, t: int, i: int) -> Tensor:
        """Perp-Neg's sum over the negative branches, without a scale."""
        base, total = self.noise(x, t, self.conditions.uncond[i]), torch.zeros_like(x)
        positive = self.noise(x, t, self.conditions.positive[i]) - base
        for k, weight in enumerate(self.conditions.weights[:, i].tolist()):
            negative = self.noise(x, t, self.conditions.negatives[k, i]) - base
            total += weight * (negative - (negative * positive).sum() / (positive * positive).sum() * positive)
        return total

    def guided(self, x: Tensor, t: int, i: int, scale: float) -> Tensor:
        base = self.noise(x, t, self.conditions.uncond[i])
        return base + scale * (self.noise(x, t, self.conditions.positive[i]) - base + self.away(x, t, i))

    def ism(
        self, z_0: Tensor, noise: Tensor, t: int, s: int, i: int, *, scale: float, stride: int, steps: int
    ) -> Tensor:
        """ε̂(z_t, t, y) - ε(z_s, s, ∅), over indices j as in LucidDreamer, which are timesteps j + 1."""
        j = s - 1
        k = max(j - stride * steps, 0)
        x = z_0 + ratio(k + 1) * noise
        while True:
            eps, upper = self.null(x, k + 1, i), min(k + stride, j)
            x = x + (ratio(upper + 1) - ratio(k + 1)) * eps
            k = upper
            if k == j:
                break
        eps_s = self.null(x, s, i)
        return self.guided(x + (ratio(t) - ratio(s)) * eps_s, t, i, scale) - eps_s

    def cds(self, z_0: Tensor, noise: Tensor, t: int, t_next: int, i: int, *, scale: float) -> tuple[Tensor, Tensor]:
        """The guided estimates at t and, after an Euler step, at t'."""
        x = z_0 + ratio(t) * noise
        eps_t = self.guided(x, t, i, scale)
        return eps_t, self.guided(x + (ratio(t_next) - ratio(t)) * eps_t, t_next, i, scale)

    def csd(self, z_0: Tensor, noise: Tensor, t: int, i: int, *, u: float, perp_neg_scale: float) -> Tensor:
        """The weighted sum of the three estimates, and Perp-Neg's outside of any guidance."""
        x, text = z_0 + ratio(t) * noise, self.conditions
        score = self.noise(x, t, text.positive[i]) + u * self.noise(x, t, text.uncond[i])
        return score + (-1 - u) * self.null(x, t, i) + perp_neg_scale * self.away(x, t, i)
