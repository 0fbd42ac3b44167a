"""How a stage of Point-E makes points from noise: Heun steps with churn, and classifier-free guidance in one call."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from segdream_cli.pointe.schedule import Sampling, alphas_cumprod, noise_levels, timestep
from segdream_cli.pointe.transformer import CHANNELS, PointTransformer


class Denoiser:
    """The clean points that a stage sees in noisy ones.

    With guidance, both halves of it are one call of the network: x0 = x0_uncond + scale (x0_cond - x0_uncond).
    Each half is cut to -1..1 before, their combination is not (as in the release).

    Args:
        network: predicts the noise.
        given: what it is conditioned on, a batch of one; see `PointTransformer.embed`.
        called: called after each evaluation of the network.
        evaluate: calls the network in a faster way than one kernel after the other.
    """

    def __init__(
        self,
        network: PointTransformer,
        given: Float[Tensor, "1 ..."],
        called: Callable[[], None] = lambda: None,
        evaluate: Callable[..., Tensor] | None = None,
    ) -> None:
        config = network.config
        self._evaluate = evaluate or network
        self._called = called
        self._alphas = alphas_cumprod(config.schedule)
        self._scale = config.sampling.guidance_scale
        self._tokens = network.embed(given if self._scale == 1 else torch.cat([given, torch.zeros_like(given)]))

    def __call__(self, points: Float[Tensor, "n 6"], sigma: float) -> Float[Tensor, "n 6"]:
        """The clean points, in the networks' units, seen in `points` = clean points + `sigma` noise."""
        t = timestep(sigma, self._alphas)
        alpha = float(self._alphas[t])
        batch = len(self._tokens)
        scaled = (points / math.sqrt(sigma**2 + 1)).expand(batch, -1, -1)
        timesteps = torch.full((batch,), t, device=points.device)
        noise: Tensor = self._evaluate(scaled, timesteps, self._tokens)[..., :CHANNELS]
        self._called()
        clean = (scaled / math.sqrt(alpha) - math.sqrt(1 / alpha - 1) * noise).clamp(-1, 1)
        if batch == 1:
            return clean[0]
        cond, uncond = clean.unbind()
        return uncond + self._scale * (cond - uncond)


def sample(
    denoise: Callable[[Tensor, float], Tensor], noise: Float[Tensor, "d n 6"], sampling: Sampling
) -> Float[Tensor, "n 6"]:
    """Points from noise (Algorithm 2 of Karras et al. 2022, with S_tmin = 0, S_tmax infinite and S_noise = 1).

    Args:
        denoise: from noisy points and their noise level to clean points.
        noise: standard normal numbers, `sampling.draws` sets of them.
        sampling: noise levels and churn.
    """
    start, *fresh = noise.unbind()
    levels = noise_levels(sampling).tolist()
    x: Tensor = levels[0] * start
    for step, (sigma, lower) in enumerate(pairwise(levels)):
        raised = sigma * (1 + sampling.gamma)
        if fresh:
            x = x + math.sqrt(raised**2 - sigma**2) * fresh[step]
        clean: Tensor = denoise(x, raised)
        if lower == 0:  # the step to zero ends there, whatever the slope
            return clean
        slope = (x - clean) / raised
        ahead = x + (lower - raised) * slope
        slope_ahead = (ahead - denoise(ahead, lower)) / lower
        x = x + (lower - raised) * (slope + slope_ahead) / 2
    return x
