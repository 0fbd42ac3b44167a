"""Classifier Score Distillation (Yu et al., ICLR 2024), as its authors' code runs it.

1   draw t for each view, and fresh noise ε
2   z_t = α_t z_0 + σ_t ε
3   gradient = w(t) (ε(z_t, t, y) + u ε(z_t, t, neg) - (1 + u) ε(z_t, t, ∅)) / v     the U-Net's Jacobian left out

The weights of the three texts sum to 0, so no part of the gradient aims at the noise: it is the score of an implicit
classifier alone. u changes over the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli.config import Config
from segdream_cli.config.distill import CsdConfig
from segdream_cli.distill.guidance import Conditions, guided_rows, perpendicular, predict_branches
from segdream_cli.distill.method import Generators, Gradient, Shape, State, merge
from segdream_cli.distill.schedule import Latents, NoiseSchedule, PredictNoise, per_row
from segdream_cli.priors.protocol import Prior


@dataclass(frozen=True, slots=True)
class Draw:
    """Random numbers of one asset's step, and where it stands in the run.

    Args:
        t: timestep of each view.
        annealed: how far the weights of the texts have changed, 0..1.
        noise: ε of each view.
    """

    t: Int[Tensor, " v"]
    annealed: float
    noise: Float[Tensor, "v c h w"]


class Csd:
    """CSD as a `Method`."""

    notes: Sequence[str] = ()
    decodes_per_view = 0.0

    def __init__(self, config: Config) -> None:
        self._config, self._perp_neg, self._optim = config.distill.csd, config.distill.perp_neg, config.optim

    @property
    def rows_per_view(self) -> float:
        """Those of a guided estimate, and one of the empty text."""
        return guided_rows(perp_neg=self._perp_neg) + 1

    def init_state(self, shape: Shape, generators: Generators) -> State:
        """Nothing: all noise is fresh."""
        return {}

    def draw(self, step: int, shape: Shape, state: State, generators: Generators) -> Draw:
        """t, uniform from t_min to the largest of this part of the run, and standard normal noise, for each view."""
        config = self._config
        done = self._optim.progress(step - 1)  # threestudio counts steps from 0
        annealed = min(done / config.anneal, 1.0) if config.anneal else 1.0
        high = config.t_max if annealed == 1 or config.t_max_start is None else config.t_max_start
        low, high = config.t_range(config.t_min, high, self._optim.progress(step))
        t = torch.randint(low, high + 1, shape[:1], generator=generators["times"])
        return Draw(t, annealed, torch.randn(shape, generator=generators["noise"]))

    def describe(self, draw: Draw) -> Mapping[str, list[int]]:
        """Timestep of each view."""
        return {"t": draw.t.tolist()}

    def gradient(
        self, prior: Prior, schedule: NoiseSchedule, latents: Latents, conditions: Conditions, draws: Sequence[Draw]
    ) -> Gradient:
        """`csd` of all views, averaged over the views of each asset."""
        t = torch.cat([draw.t for draw in draws])
        noise = merge([draw.noise for draw in draws], latents.device)
        pull = csd(prior.predict_noise, schedule, latents, noise, t, conditions, self._config, draws[0].annealed)
        per_asset = pull.unflatten(0, (len(draws), -1))  # [a, v, c, h, w]
        if self._config.normalize:  # the original has one norm for the batch, which is a single asset
            per_asset = per_asset / (per_asset.square().sum((1, 2, 3, 4), keepdim=True).sqrt() + 1e-8)
        return Gradient(self._config.guidance_scale / per_asset.shape[1] * per_asset.flatten(0, 1))


def csd(
    predict_noise: PredictNoise,
    schedule: NoiseSchedule,
    latents: Latents,
    noise: Latents,
    t: Int[Tensor, " b"],
    conditions: Conditions,
    config: CsdConfig,
    annealed: float,
) -> Latents:
    """The classifier score of each row: w(t) (ε(z_t, y) + u ε(z_t, neg) - (1 + u) ε(z_t, ∅)).

    With Perp-Neg, p Σ_i w_i of the views' directions at a right angle to that of y is added, all of them from ε(neg).

    Args:
        predict_noise: the prior's noise estimate.
        schedule: its noise schedule.
        latents: encoded renders z_0.
        noise: ε, standard normal.
        t: timestep of each row.
        conditions: text embeddings of every row.
        config: the method's settings.
        annealed: how far u has moved from its start to its end, 0..1.
    """
    start, end = config.negative_weight
    u = start + (end - start) * annealed
    with torch.no_grad():
        z_t = schedule.add_noise(latents, noise, t)
        eps_neg, eps_y, eps_views = predict_branches(predict_noise, z_t, t, conditions)
        eps_null = predict_noise(z_t, t, conditions.null)
        score = (eps_y - eps_null) + u * (eps_neg - eps_null)
        if eps_views is not None:
            weights = conditions.weights.to(score.device, score.dtype, non_blocking=True)
            score = score + config.perp_neg_scale * perpendicular(eps_y - eps_neg, eps_views - eps_neg, weights)
        return per_row(schedule.weight(t, config.weight), latents) * score
