"""Sampling of a Point-E stage: Heun steps with churn, and classifier-free guidance in one network call."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from segdream_cli.pointe.schedule import Sampling, alphas_cumprod, noise_levels, timestep
from segdream_cli.pointe.transformer import CHANNELS, PointTransformer


class Denoiser:
    """Estimates the clean points in noisy ones.

    Guidance evaluates both halves in one call of the network: x0 = x0_uncond + scale (x0_cond - x0_uncond).
    Each half is clamped to -1..1 first; their combination is not, as in the release.

    Args:
        network: predicts the noise.
        condition: the condition, a batch of one; see `PointTransformer.embed`.
        on_call: called after each evaluation of the network.
        evaluate: a faster implementation of the network's call.
    """

    def __init__(
        self,
        network: PointTransformer,
        condition: Float[Tensor, "1 ..."],
        on_call: Callable[[], None] = lambda: None,
        evaluate: Callable[..., Tensor] | None = None,
    ) -> None:
        config = network.config
        self._evaluate = evaluate or network
        self._on_call = on_call
        self._alphas = alphas_cumprod(config.schedule)
        self._scale = config.sampling.guidance_scale
        self._tokens = network.embed(
            condition if self._scale == 1 else torch.cat([condition, torch.zeros_like(condition)])
        )

    def __call__(self, points: Float[Tensor, "n 6"], sigma: float) -> Float[Tensor, "n 6"]:
        """Estimates the clean points, in the networks' units, where `points` = clean points + `sigma` noise."""
        t = timestep(sigma, self._alphas)
        alpha = float(self._alphas[t])
        batch = len(self._tokens)
        scaled = (points / math.sqrt(sigma**2 + 1)).expand(batch, -1, -1)
        timesteps = torch.full((batch,), t, device=points.device)
        noise: Tensor = self._evaluate(scaled, timesteps, self._tokens)[..., :CHANNELS]
        self._on_call()
        clean = (scaled / math.sqrt(alpha) - math.sqrt(1 / alpha - 1) * noise).clamp(-1, 1)
        if batch == 1:
            return clean[0]
        cond, uncond = clean.unbind()
        return uncond + self._scale * (cond - uncond)


def sample(
    denoise: Callable[[Tensor, float], Tensor], noise: Float[Tensor, "d n 6"], sampling: Sampling
) -> Float[Tensor, "n 6"]:
    """Samples points from noise (Algorithm 2 of Karras et al. 2022 with S_tmin = 0, S_tmax infinite, S_noise = 1).

    Args:
        denoise: maps noisy points and their noise level to clean points.
        noise: `sampling.draws` sets of standard normal numbers.
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
        if lower == 0:  # a step to zero ends at the clean points whatever the slope
            return clean
        slope = (x - clean) / raised
        ahead = x + (lower - raised) * slope
        slope_ahead = (ahead - denoise(ahead, lower)) / lower
        x = x + (lower - raised) * (slope + slope_ahead) / 2
    return x
