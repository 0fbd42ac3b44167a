"""Point-E's noise schedules, and the noise levels at which a stage is sampled.

Noise levels sigma are those of Karras et al. 2022, x = x0 + sigma noise. They correspond to timesteps of a network that
was trained on sqrt(a) x0 + sqrt(1 - a) noise by a = 1 / (sigma^2 + 1). Timesteps run from 0 (least noise) to 1023.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

TIMESTEPS = 1024
"""Training timesteps of Point-E's networks."""

Schedule = Literal["cosine", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Parameters of sampling; the defaults are those of the official base stage."""

    steps: int = 64
    """Number of noise levels above zero."""
    sigma_min: float = 1e-3
    """Last noise level above zero."""
    sigma_max: float = 120.0
    """First noise level."""
    rho: float = 7.0
    """Density of the levels near `sigma_min`: they have equal steps of sigma^(1 / rho)."""
    churn: float = 3.0
    """Noise added back over all steps, S_churn of Karras et al.; 0 adds none."""
    guidance_scale: float = 3.0
    """Scale of classifier-free guidance; 1 disables it."""

    @property
    def evaluations(self) -> int:
        """Network calls: two per step, one in the last step."""
        return 2 * self.steps - 1

    @property
    def gamma(self) -> float:
        """Relative rise of the noise level at the start of a step (Algorithm 2 of Karras et al.)."""
        return min(self.churn / self.steps, math.sqrt(2) - 1)

    @property
    def draws(self) -> int:
        """Sets of normal numbers that sampling needs: one to start, and with churn one per step."""
        return 1 + self.steps if self.gamma > 0 else 1


def alphas_cumprod(schedule: Schedule) -> Float64[Tensor, " t"]:
    """The cumulative product of 1 - beta at every timestep.

    linear: betas from 1e-4 to 0.02 for 1,000 steps, scaled to 1,024 (Ho et al. 2020).
    cosine: the product follows cos^2((u + 0.008) / 1.008 pi / 2), each beta at most 0.999 (Nichol and Dhariwal 2021).
    """
    if schedule == "linear":
        scale = 1000 / TIMESTEPS
        betas = torch.linspace(scale * 1e-4, scale * 0.02, TIMESTEPS, dtype=torch.float64)
    else:
        u = torch.arange(TIMESTEPS + 1, dtype=torch.float64) / TIMESTEPS
        product = ((u + 0.008) / 1.008 * math.pi / 2).cos().square()
        betas = (1 - product[1:] / product[:-1]).clamp(max=0.999)
    return (1 - betas).cumprod(0)


def noise_levels(sampling: Sampling) -> Float64[Tensor, " s"]:
    """The decreasing noise levels of a stage, followed by 0 (Eq. 5 of Karras et al. 2022)."""
    ramp = torch.linspace(0, 1, sampling.steps, dtype=torch.float64)
    first, last = sampling.sigma_max ** (1 / sampling.rho), sampling.sigma_min ** (1 / sampling.rho)
    return torch.cat([(first + ramp * (last - first)) ** sampling.rho, ramp.new_zeros(1)])


def timestep(sigma: float, alphas: Float64[Tensor, " t"]) -> int:
    """The noisiest timestep with at most the noise of `sigma`, or timestep 0 if all have more.

    Args:
        sigma: a noise level.
        alphas: the result of `alphas_cumprod`.
    """
    wanted = torch.tensor(1 / (sigma**2 + 1), dtype=torch.float64)
    not_noisier = int(torch.searchsorted(-alphas, -wanted, right=True))
    return max(not_noisier - 1, 0)
