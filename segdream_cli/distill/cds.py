"""Consistency Distillation Sampling (Consistent3D, Wu et al., CVPR 2024), as its authors' code runs it.

1   t' falls over the run, the same for all views; draw t > t' for each view             Cds.draw
2   z_t = α_t z_0 + σ_t ε*, with one noise ε* for all views and steps
3   z_t' = Φ(z_t, t, t') under the guided noise ε̂(z_t, t, y)
4   gradient = clip(w(t) (ε̂(z_t, t, y) - ε̂(z_t', t', y))) / v       the U-Net's Jacobian left out

Φ is one solver step (`NoiseSchedule.step`), and the symbol t' is `t_next`. Step 4 pulls z_0 towards the guided mean.
The printed loss, c(t) |F(z_t, t) - sg F(z_t', t')|² with F(z, t) = z / α_t - σ̃_t ε̂, has a slope of the opposite sign:
with the network held constant, that of half the loss is -σ̃_t' times step 4, before weight and clipping.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli.config import Config, Range
from segdream_cli.config.distill import CdsConfig
from segdream_cli.distill.guidance import Conditions, guided_noise, guided_rows
from segdream_cli.distill.method import Generators, Gradient, Shape, State, merge
from segdream_cli.distill.schedule import Latents, NoiseSchedule, PredictNoise, per_row
from segdream_cli.errors import UsageProblem
from segdream_cli.priors.protocol import Prior


@dataclass(frozen=True, slots=True)
class Draw:
    """Random numbers of one asset's step, and where it stands in the run.

    Args:
        t: upper timestep of each view.
        t_next: lower timestep, the same for all views.
        progress: share of the run that is done, 0 to below 1.
        noise: ε* of each view.
    """

    t: Int[Tensor, " v"]
    t_next: int
    progress: float
    noise: Float[Tensor, "v c h w"]


class Cds:
    """CDS as a `Method`.

    Raises:
        UsageProblem: Perp-Neg is on, which the method does not have.
    """

    notes: Sequence[str] = ()
    decodes_per_view = 0.0

    def __init__(self, config: Config) -> None:
        if config.distill.perp_neg:
            raise UsageProblem("the method cds can't be combined with Perp-Neg", hint="--set distill.perp_neg=false")
        self._config, self._optim = config.distill.cds, config.optim

    @property
    def rows_per_view(self) -> float:
        """Those of the guidance at t and at t'."""
        return 2 * guided_rows(perp_neg=False)

    def init_state(self, shape: Shape, generators: Generators) -> State:
        """ε*, which all views share, kept for the whole run."""
        return {"noise": torch.randn(1, *shape[1:], generator=generators["noise"])}

    def draw(self, step: int, shape: Shape, state: State, generators: Generators) -> Draw:
        """T' of the step, and t above it for each view, uniform between the gaps but at most t_max."""
        config, done = self._config, self._optim.progress(step - 1)  # Consistent3D counts steps from 0
        t_next = int(config.t_first + (config.t_last - config.t_first) * done**0.5)
        t_next = min(max(t_next, config.t_min), config.t_max - config.min_gap)
        gaps = torch.randint(config.min_gap, config.max_gap + 1, shape[:1], generator=generators["times"])
        return Draw((t_next + gaps).clamp_max(config.t_max), t_next, done, state["noise"].expand(shape))

    def describe(self, draw: Draw) -> Mapping[str, int | list[int]]:
        """Timesteps of each view, and t'."""
        return {"t": draw.t.tolist(), "t_next": draw.t_next}

    def gradient(
        self, prior: Prior, schedule: NoiseSchedule, latents: Latents, conditions: Conditions, draws: Sequence[Draw]
    ) -> Gradient:
        """`cds` of all views, averaged over the views of each asset."""
        views, done = len(latents) // len(draws), draws[0].progress
        t = torch.cat([draw.t for draw in draws])
        t_next = torch.tensor([draw.t_next for draw in draws]).repeat_interleave(views)
        noise = merge([draw.noise for draw in draws], latents.device)
        pull = cds(prior.predict_noise, schedule, latents, noise, t, t_next, conditions, self._config, done)
        return Gradient(pull / views)


def cds(
    predict_noise: PredictNoise,
    schedule: NoiseSchedule,
    latents: Latents,
    noise: Latents,
    t: Int[Tensor, " b"],
    t_next: Int[Tensor, " b"],
    conditions: Conditions,
    config: CdsConfig,
    progress: float,
) -> Latents:
    """The CDS gradient of each row with respect to its latents z_0: clip(w(t) (ε̂(z_t, t, y) - ε̂(z_t', t', y))).

    Args:
        predict_noise: the prior's noise estimate.
        schedule: its noise schedule.
        latents: encoded renders z_0.
        noise: ε*.
        t: upper timestep of each row.
        t_next: lower timestep t' of each row.
        conditions: text embeddings of every row.
        config: the method's settings.
        progress: share of the run that is done, which guidance scale and clipping depend on.
    """
    scale = config.guidance_scale * _interpolate((1.0, config.guidance_end), progress)
    with torch.no_grad():
        z_t = schedule.add_noise(latents, noise, t)
        eps_t = guided_noise(predict_noise, z_t, t, conditions, scale)
        z_next = schedule.step(z_t, eps_t, t, t_next)
        eps_next = guided_noise(predict_noise, z_next, t_next, conditions, scale)
        factor = schedule.weight(t, config.weight)
        if config.loss == "printed":  # half the squared norm; dF(z_t, t) / dz_0 is 1 for a constant network
            factor = -schedule.noise_ratio(t_next) * factor
        pull = per_row(factor, latents) * (eps_t - eps_next)
        limit = _interpolate(config.clip, progress)
        return config.grad_scale * pull.clamp(-limit, limit)


def _interpolate(ends: Range, share: float) -> float:
    """From the first of two numbers towards the second."""
    start, end = ends
    return start + (end - start) * share
