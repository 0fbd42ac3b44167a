"""Assets optimised in lock step, and the transaction around each of their steps."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segdream_cli.config import Config, Range
from segdream_cli.distill.method import Method, Shape
from segdream_cli.errors import Diverged
from segdream_cli.optimize.adam import adam_step, clip_gradients, clip_limit, learning_rates
from segdream_cli.optimize.beg import equalize
from segdream_cli.optimize.density import accumulate, control_density, is_due
from segdream_cli.optimize.report import HostCopy, first_nonfinite
from segdream_cli.optimize.state import AssetState
from segdream_cli.render.raster import Rendering
from segdream_cli.splats.gaussians import Gaussians, stack


@dataclass(frozen=True, slots=True)
class QueuedStep:
    """A step given to the device. If its gradient turns out to be non-finite, it has moved nothing.

    Args:
        step: its number, from 1.
        timesteps: named timesteps of each asset's draw.
        norms: gradient norm of each asset.
        rng_states: states of each asset's random generators before the step.
        losses: the loss of a step of refinement, one number; None for a step that distils.
    """

    step: int
    timesteps: tuple[Mapping[str, Any], ...]
    norms: HostCopy
    rng_states: Sequence[Mapping[str, Tensor]]
    losses: HostCopy | None = None


class Batch:
    """Assets that take their steps together, each as if it were alone.

    Batching. A step calls the rasteriser, the prior and Adam once for all assets, which keeps a GPU busy with small
    priors. Gaussians are stacked and padded with transparent ones. Random generators, optimiser state and density
    control stay per asset, so each result equals its solo run up to rounding.

    Queueing. Reading a gradient norm would make the host wait for the GPU in every step. Instead the norms are copied
    asynchronously and checked in the next step, once the rasteriser has waited for the device anyway. Until then a
    flag on the device keeps a non-finite gradient from moving anything. Steps with density control, which reads the
    Gaussians, and steps on a CPU check before the update.

    Rollback. A step happens as a whole or not at all: if it fails, step number and random generators are restored,
    so the caller can save the assets, drop the one that diverged, and continue with the same bits.

    Args:
        assets: at the same step.
        config: settings of the run.
        queued: check each step's gradient in the next step.

    Raises:
        ValueError: the assets are not at the same step.
    """

    def __init__(self, assets: Sequence[AssetState], config: Config, *, queued: bool) -> None:
        if len({asset.step for asset in assets}) != 1:
            raise ValueError("the assets of a run must be at the same step")
        self.assets = assets
        self._config, self._queued = config, queued
        self._rng_states: Sequence[Mapping[str, Tensor]] = ()
        self._timesteps: tuple[Mapping[str, Any], ...] = ()
        self._last: QueuedStep | None = None

    def __len__(self) -> int:
        return len(self.assets)

    @property
    def step(self) -> int:
        """Number of the step to take, from 1."""
        return self.assets[0].step + 1

    @property
    def last(self) -> QueuedStep:
        """The step taken last."""
        if self._last is None:
            raise RuntimeError("no step has been taken")
        return self._last

    def generators(self, purpose: str) -> list[torch.Generator]:
        """Each asset's random generator for a purpose."""
        return [asset.generators[purpose] for asset in self.assets]

    def stack(self) -> Gaussians:
        """All Gaussians as leaves of one graph, [a, n, ...], padded with transparent ones."""
        return stack([asset.gaussians for asset in self.assets])

    def draw(self, method: Method, shape: Shape) -> list[Any]:
        """The method's random numbers for this step, one draw per asset."""
        draws = [method.draw(self.step, shape, asset.method_state, asset.generators) for asset in self.assets]
        self.describe([method.describe(draw) for draw in draws])
        return draws

    def describe(self, timesteps: Sequence[Mapping[str, Any]]) -> None:
        """Names the timesteps of each asset in this step, for reports and errors."""
        self._timesteps = tuple(timesteps)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Surrounds one step; any error in it rolls back to the state before the first step that was not applied."""
        self._rng_states = [asset.rng_states() for asset in self.assets]
        try:
            yield
        except Diverged:
            raise
        except BaseException:
            if self._last is not None and first_nonfinite(self._last.norms) is not None:
                self._rollback(self._last.step, self._last.rng_states)
            else:
                self._rollback(self.step, self._rng_states)
            raise

    def check_last(self) -> None:
        """Rolls the last step back if a gradient of it was non-finite.

        Raises:
            Diverged: naming the first such asset.
        """
        index = None if self._last is None else first_nonfinite(self._last.norms)
        if self._last is None or index is None:
            return
        timesteps = ", ".join(f"{name}={value}" for name, value in self._last.timesteps[index].items())
        message = f"the gradient of {self.assets[index].prompt!r} is not finite in step {self._last.step} ({timesteps})"
        self._diverge(index, message, self._last.step, self._last.rng_states)

    def diverge(self, index: int, message: str) -> NoReturn:
        """Rolls back the step that has begun.

        Raises:
            Diverged: always; `message` says which number of the asset at `index` is not finite.
        """
        self._diverge(index, message, self.step, self._rng_states)

    def _diverge(self, index: int, message: str, step: int, rng_states: Sequence[Mapping[str, Tensor]]) -> NoReturn:
        self._rollback(step, rng_states)
        raise Diverged(message, hint=f"--force {self._smaller_guidance(step)}", index=index)

    def _smaller_guidance(self, step: int) -> str:
        """An option that halves the guidance scale of a step."""
        distill = self._config.distill
        key, scale = f"distill.{distill.method}", getattr(distill, distill.method).guidance_scale
        if step > self._config.optim.steps:
            key, scale = "refine", self._config.refine.guidance_scale
        return f"--set {key}.guidance_scale={scale / 2:g}"

    def update(self, stacked: Gaussians, rendering: Rendering, bright: Bool[Tensor, " a"] | None = None) -> None:
        """Clips the gradients, takes a step of Adam, and controls the density of every asset.

        Args:
            stacked: the leaves that `stack` returned, with their gradients.
            rendering: the views they were rendered to, with the gradients of the projected centres.
            bright: assets whose colours fade instead of taking the step; None is none of them.

        Raises:
            Diverged: a gradient is non-finite, unless the step is queued.
        """
        config, step = self._config, self.step
        rates, limit = learning_rates(config.optim, step), clip_limit(config.optim, step)
        queued = self._queued and not is_due(step, config.densify)
        grads_finite = self._move(stacked, rates, limit, config.optim.scale_range, bright, queued=queued)
        if step < config.densify.stop and rendering.means2d.grad is not None:
            visible = rendering.radii > 0 if grads_finite is None else (rendering.radii > 0) & grads_finite
            stats = [asset.stats for asset in self.assets]
            accumulate(stats, rendering.means2d.grad, visible, rendering.rgb.shape[-2], config.densify.views)
        for asset in self.assets:
            asset.stats = control_density(
                asset.gaussians, asset.optimizers, asset.stats, step, config.densify, asset.generators["densify"]
            )
            asset.step = step

    def fit(self, stacked: Gaussians, rates: Mapping[str, float], scale_range: Range, loss: Float[Tensor, ""]) -> None:
        """Takes a step of Adam on every asset, as `update` does, with nothing clipped and without density control.

        Args:
            stacked: the leaves that `stack` returned, with their gradients.
            rates: learning rate of each group.
            scale_range: the scales are clamped to it.
            loss: the mean over the assets, for reports.

        Raises:
            Diverged: a gradient is non-finite, unless the step is queued.
        """
        step = self.step
        losses = HostCopy(loss.detach()[None])
        self._move(stacked, rates, math.inf, scale_range, losses=losses, queued=self._queued)
        for asset in self.assets:
            asset.step = step

    def _move(
        self,
        stacked: Gaussians,
        rates: Mapping[str, float],
        limit: float,
        scale_range: Range | None,
        bright: Bool[Tensor, " a"] | None = None,
        *,
        losses: HostCopy | None = None,
        queued: bool,
    ) -> Bool[Tensor, ""] | None:
        """Clips the gradients to `limit`, takes a step of Adam, clamps the scales, and fades the colours if `bright`.

        Returns:
            for a queued step, whether all gradients are finite, on the device; else None, and they are.
        """
        norms = clip_gradients(stacked, limit)
        self._last = QueuedStep(self.step, self._timesteps, HostCopy(norms), self._rng_states, losses)
        grads_finite = norms.isfinite().all() if queued else None
        if not queued:
            self.check_last()
        sets = [asset.gaussians for asset in self.assets]
        optimizers = [asset.optimizers for asset in self.assets]
        if bright is not None and grads_finite is not None:
            bright = bright & grads_finite
        with equalize(sets, optimizers, bright, self._config.optim.beg_factor):
            adam_step(sets, optimizers, stacked, self._config.optim, rates, grads_finite)
        if scale_range is not None:
            low, high = map(math.log, scale_range)
            for values in (gaussians.params["log_scales"].data for gaussians in sets):
                clamped = values.clamp(low, high)
                values.copy_(clamped if grads_finite is None else torch.where(grads_finite, clamped, values))
        return grads_finite

    def _rollback(self, step: int, rng_states: Sequence[Mapping[str, Tensor]]) -> None:
        for asset, states in zip(self.assets, rng_states, strict=True):
            asset.rollback(step, states)
