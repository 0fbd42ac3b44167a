"""Interval Score Matching (LucidDreamer, Liang et al., CVPR 2024), as its authors' code runs it.

1   draw t, which the views share, and fresh noise ε; s lies an interval δ below t          draw_times
2   z_1 = α_1 z_0 + σ_1 ε
3   carry z_1 up to z_s without text, in steps of `inversion_stride`                        invert
4   ε_s = ε(z_s, s, ∅), and z_t = Φ(z_s, s, t) under ε_s
5   gradient = w(t) (ε̂(z_t, t, y) - ε_s)                            the U-Net's Jacobian left out

ε̂ is the guided noise estimate, ∅ the empty text, and Φ one solver step (`NoiseSchedule.step`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli.config import Config
from segdream_cli.config.distill import IsmConfig
from segdream_cli.distill.guidance import Conditions, guided_noise, guided_rows
from segdream_cli.distill.method import Generators, Gradient, Shape, State, draw_noise, merge
from segdream_cli.distill.schedule import Latents, NoiseSchedule, PredictNoise, per_row
from segdream_cli.priors.protocol import Prior

FIRST_T = 1
"""Smallest timestep: LucidDreamer counts indices from 0, and index i is timestep i + 1."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Random numbers of one asset's step: t and s < t, shared by its views, and the noise of each view."""

    t: int
    s: int
    noise: Float[Tensor, "v c h w"]


class Ism:
    """ISM as a `Method`."""

    notes: Sequence[str] = ()
    decodes_per_view = 0.0

    def __init__(self, config: Config) -> None:
        self._config, self._distill, self._optim = config.distill.ism, config.distill, config.optim

    @property
    def rows_per_view(self) -> float:
        """Rows of the inversion, averaged over the draws of a run; of ε(z_s, s, ∅); and of the guidance."""
        return self._inversion_rows() + 1 + guided_rows(perp_neg=self._distill.perp_neg)

    def init_state(self, shape: Shape, generators: Generators) -> State:
        """The run's ε with `fixed_noise`; else nothing."""
        return {"noise": self._draw_noise(shape, generators)} if self._config.fixed_noise else {}

    def draw(self, step: int, shape: Shape, state: State, generators: Generators) -> Draw:
        """t, s, and fresh noise or, with `fixed_noise`, the run's."""
        low, high, interval = self._window(step)
        t = int(torch.randint(low, high + 1, (), generator=generators["times"]))
        noise = state["noise"] if self._config.fixed_noise else self._draw_noise(shape, generators)
        return Draw(t, max(t - interval, FIRST_T), noise)

    def describe(self, draw: Draw) -> Mapping[str, int]:
        """Timesteps t and s."""
        return {"t": draw.t, "s": draw.s}

    def gradient(
        self, prior: Prior, schedule: NoiseSchedule, latents: Latents, conditions: Conditions, draws: Sequence[Draw]
    ) -> Gradient:
        """`ism` of all views, each asset's under its own draw."""
        views = len(latents) // len(draws)
        t, s = torch.tensor([(draw.t, draw.s) for draw in draws]).repeat_interleave(views, 0).T
        noise = merge([draw.noise for draw in draws], latents.device)
        return Gradient(ism(prior.predict_noise, schedule, latents, noise, t, s, conditions, self._config))

    def _window(self, step: int) -> tuple[int, int, int]:
        """Smallest and largest t, and the interval t - s, in a step (1, 2, ...).

        Over the warm-up the largest t falls to `t_high` and the interval to `interval`; the smallest t stays.
        """
        config, left = self._config, 1 - self._distill.warmup(step)
        high = min(config.t_high + int(config.warmup_shift * left), config.t_max)
        widening = left * (config.interval_start - config.interval)
        # LucidDreamer rounds the widening up in its Perp-Neg function and down in the other
        interval = int(config.interval + (math.ceil(widening) if self._distill.perp_neg else widening))
        return *config.t_range(config.t_min + FIRST_T, high, self._optim.progress(step)), interval

    def _inversion_rows(self, samples: int = 100) -> float:
        """Steps from z_1 to z_s on average over a run, from that many of its steps."""
        total = 0.0
        for step in torch.linspace(1, max(self._optim.steps, 1), samples).long().tolist():
            low, high, interval = self._window(step)
            s = (torch.arange(low, high + 1) - interval).clamp_min(FIRST_T)
            total += float(((s - start(s, self._config)) / self._config.inversion_stride).ceil().mean())
        return total / samples

    def _draw_noise(self, shape: Shape, generators: Generators) -> Float[Tensor, "v c h w"]:
        return draw_noise(shape, self._config.noise_offset, generators["noise"])


def ism(
    predict_noise: PredictNoise,
    schedule: NoiseSchedule,
    latents: Latents,
    noise: Latents,
    t: Int[Tensor, " b"],
    s: Int[Tensor, " b"],
    conditions: Conditions,
    config: IsmConfig,
) -> Latents:
    """The ISM gradient of each row with respect to its latents z_0: w(t) (ε̂(z_t, t, y) - ε(z_s, s, ∅)).

    Args:
        predict_noise: the prior's noise estimate.
        schedule: its noise schedule.
        latents: encoded renders z_0.
        noise: ε, which takes z_0 to the start of the inversion.
        t: timestep of each row.
        s: timestep at the other end of the interval, below t.
        conditions: text embeddings of every row.
        config: the method's settings.

    Returns:
        the weighted gradient, not divided by the number of rows.
    """
    with torch.no_grad():
        z_s = invert(predict_noise, schedule, latents, noise, s, conditions.null, config)
        eps_s = predict_noise(z_s, s, conditions.null)
        z_t = schedule.step(z_s, eps_s, s, t)
        eps_t = guided_noise(predict_noise, z_t, t, conditions, config.guidance_scale)
        return per_row(config.grad_scale * schedule.weight(t, config.weight), latents) * (eps_t - eps_s)


def invert(
    predict_noise: PredictNoise,
    schedule: NoiseSchedule,
    latents: Latents,
    noise: Latents,
    s: Int[Tensor, " b"],
    null: Float[Tensor, "b l d"],
    config: IsmConfig,
) -> Latents:
    """Noises z_0 to the start of the inversion and carries it up to z_s without text, `inversion_stride` at a time.

    Rows with a smaller s need fewer steps, and leave the call of the network after them.
    """
    reached = start(s, config)
    z = schedule.add_noise(latents, noise, reached)
    while len(moving := (reached < s).nonzero(as_tuple=True)[0]):
        target = torch.minimum(reached + config.inversion_stride, s)
        rows = moving.to(z.device, non_blocking=True)
        eps = predict_noise(z[rows], reached[moving], null[rows])
        z = z.index_copy(0, rows, schedule.step(z[rows], eps, reached[moving], target[moving]))
        reached = target
    return z


def start(s: Int[Tensor, " b"], config: IsmConfig) -> Int[Tensor, " b"]:
    """Where the inversion to s starts: timestep 1, or as far below s as its largest number of steps reaches."""
    return (s - config.inversion_stride * config.inversion_steps).clamp_min(FIRST_T)
