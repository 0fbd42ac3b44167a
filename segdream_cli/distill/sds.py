"""Score Distillation Sampling (DreamFusion, Poole et al., ICLR 2023), as threestudio runs it on Stable Diffusion.

1   draw t for each view, and fresh noise ε
2   z_t = α_t z_0 + σ_t ε
3   gradient = w(t) (ε̂(z_t, y) - ε) / v                                 Eq. 3, the U-Net's Jacobian left out
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli.config import Config
from segdream_cli.config.distill import SdsConfig
from segdream_cli.distill.guidance import Conditions, guided_noise, guided_rows
from segdream_cli.distill.method import Generators, Gradient, Shape, State, merge
from segdream_cli.distill.schedule import Latents, NoiseSchedule, PredictNoise, per_row
from segdream_cli.priors.protocol import Prior


@dataclass(frozen=True, slots=True)
class Draw:
    """Random numbers of one asset's step: the timestep and the noise of each view."""

    t: Int[Tensor, " v"]
    noise: Float[Tensor, "v c h w"]


class Sds:
    """SDS as a `Method`."""

    notes: Sequence[str] = ()
    decodes_per_view = 0.0

    def __init__(self, config: Config) -> None:
        self._config, self._perp_neg, self._optim = config.distill.sds, config.distill.perp_neg, config.optim

    @property
    def rows_per_view(self) -> float:
        """Those of the guidance."""
        return guided_rows(perp_neg=self._perp_neg)

    def init_state(self, shape: Shape, generators: Generators) -> State:
        """Nothing: all noise is fresh."""
        return {}

    def draw(self, step: int, shape: Shape, state: State, generators: Generators) -> Draw:
        """t, uniform in the range of the step, and standard normal noise, for each view."""
        low, high = self._config.t_range(self._config.t_min, self._config.t_max, self._optim.progress(step))
        t = torch.randint(low, high + 1, shape[:1], generator=generators["times"])
        return Draw(t, torch.randn(shape, generator=generators["noise"]))

    def describe(self, draw: Draw) -> Mapping[str, list[int]]:
        """Timestep of each view."""
        return {"t": draw.t.tolist()}

    def gradient(
        self, prior: Prior, schedule: NoiseSchedule, latents: Latents, conditions: Conditions, draws: Sequence[Draw]
    ) -> Gradient:
        """`sds` of all views, averaged over the views of each asset."""
        t = torch.cat([draw.t for draw in draws])
        noise = merge([draw.noise for draw in draws], latents.device)
        views = len(latents) // len(draws)
        return Gradient(sds(prior.predict_noise, schedule, latents, noise, t, conditions, self._config) / views)


def sds(
    predict_noise: PredictNoise,
    schedule: NoiseSchedule,
    latents: Latents,
    noise: Latents,
    t: Int[Tensor, " b"],
    conditions: Conditions,
    config: SdsConfig,
) -> Latents:
    """The SDS gradient of each row with respect to its latents z_0: w(t) (ε̂(z_t, y) - ε).

    Args:
        predict_noise: the prior's noise estimate.
        schedule: its noise schedule.
        latents: encoded renders z_0.
        noise: ε, standard normal.
        t: timestep of each row.
        conditions: text embeddings of every row.
        config: the method's settings.
    """
    with torch.no_grad():
        z_t = schedule.add_noise(latents, noise, t)
        eps_t = guided_noise(predict_noise, z_t, t, conditions, config.guidance_scale)
        return per_row(config.grad_scale * schedule.weight(t, config.weight), latents) * (eps_t - noise)
