"""Density control: clone, split, prune, reset, under a hard limit on the number of Gaussians.

gsplat's operations edit parameters and optimiser state; this file decides when, and on which Gaussians, since
gsplat 1.5.3's own strategy never resets opacities and has no limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from gsplat.strategy import ops
from jaxtyping import Bool, Float
from torch import Tensor

from segdream_cli.config import DensifyConfig
from segdream_cli.optimize.adam import Optimizers
from segdream_cli.splats.gaussians import Gaussians

_GSPLAT_NAMES = {"log_scales": "scales", "opacity_logits": "opacities"}


@dataclass(slots=True)
class DensityStats:
    """Screen-space gradients accumulated since the last densification.

    Args:
        grad_sum: sum over views of each Gaussian's gradient norm, in normalised device units.
        count: number of views that show it.
    """

    grad_sum: Float[Tensor, " n"]
    count: Float[Tensor, " n"]

    @classmethod
    def empty(cls, gaussians: Gaussians) -> "DensityStats":
        """Statistics of no view yet."""
        zeros = torch.zeros(len(gaussians), device=gaussians.device)
        return cls(zeros, zeros.clone())


def accumulate(
    stats: Sequence[DensityStats],
    means2d_grad: Float[Tensor, "a c n 2"],
    visible: Bool[Tensor, "a c n"],
    size: int,
    views: str,
) -> None:
    """Adds the views of one step to the statistics of each asset.

    Args:
        stats: those of each asset, of at most n Gaussians.
        means2d_grad: gradient of the projected centres in pixels.
        visible: whether a Gaussian was drawn.
        size: side of the image in pixels.
        views: "all", or "last" for the step's last view alone.
    """
    chosen = slice(-1, None) if views == "last" else slice(None)
    visible = visible[:, chosen]
    norms = means2d_grad[:, chosen].norm(dim=-1) * (size / 2)
    sums, counts = torch.where(visible, norms, 0).sum(1), visible.sum(1)  # [a, n] each
    for each, grad_sum, count in zip(stats, sums, counts, strict=True):
        each.grad_sum += grad_sum[: len(each.grad_sum)]
        each.count += count[: len(each.count)]


def is_due(step: int, config: DensifyConfig) -> bool:
    """Whether `control_density` changes anything after optimisation step `step` (1, 2, ...)."""
    return _grows(step, config) or _resets(step, config)


def _grows(step: int, config: DensifyConfig) -> bool:
    return config.start < step < config.stop and step % config.every == 0


def _resets(step: int, config: DensifyConfig) -> bool:
    return bool(config.reset_every) and step < config.stop and step % config.reset_every == 0


@torch.no_grad()
def control_density(
    gaussians: Gaussians,
    optimizers: Optimizers,
    stats: DensityStats,
    step: int,
    config: DensifyConfig,
    generator: torch.Generator,
) -> DensityStats:
    """Densifies, prunes and resets as the schedule says after optimisation step `step` (1, 2, ...), in place.

    Parameters and optimiser state stay aligned; new Gaussians start without momentum.

    Returns:
        the statistics to continue with: empty ones after a densification.
    """
    if _grows(step, config):
        _grow_and_prune(gaussians, optimizers, stats, step, config, generator)
        stats = DensityStats.empty(gaussians)
    if _resets(step, config):
        _apply(gaussians, optimizers, ops.reset_opa, value=config.reset_opacity)
    return stats


def _grow_and_prune(
    gaussians: Gaussians,
    optimizers: Optimizers,
    stats: DensityStats,
    step: int,
    config: DensifyConfig,
    generator: torch.Generator,
) -> None:
    """Clones or splits the Gaussians with the strongest gradients, and prunes the faint and the huge."""
    gradient = stats.grad_sum / stats.count.clamp_min(1)
    faint = gaussians.opacities < config.prune_opacity
    chosen = (gradient >= config.grad_threshold) & ~faint
    if config.cap is not None:
        room = max(0, config.cap - int((~faint).sum()))
        if int(chosen.sum()) > room:
            strongest = torch.where(chosen, gradient, -1.0).topk(room).indices
            chosen = torch.zeros_like(chosen).index_fill_(0, strongest, value=True)
    small = gaussians.scales.amax(-1) <= config.clone_scale
    clones = chosen & small
    _apply(gaussians, optimizers, ops.duplicate, mask=clones)
    splits = torch.cat([chosen & ~small, clones.new_zeros(int(clones.sum()))])
    if splits.any():
        # gsplat draws from the global generator, so seed that from the run's own and restore it afterwards
        devices = [gaussians.device] if gaussians.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            _apply(gaussians, optimizers, ops.split, mask=splits)
    faint = gaussians.opacities < config.prune_opacity
    huge = gaussians.scales.amax(-1) > config.prune_scale
    dead = faint | huge if step > config.prune_scale_after else faint
    # if pruning would remove every Gaussian, keep the huge ones: the faint have made room for their halves
    for mask in (dead, faint):
        if mask.any() and not mask.all():
            _apply(gaussians, optimizers, ops.remove, mask=mask)
            break


def _apply(gaussians: Gaussians, optimizers: Optimizers, operation: object, **arguments: object) -> None:
    """Runs one of gsplat's operations under gsplat's parameter names."""
    params = {_GSPLAT_NAMES.get(name, name): value for name, value in gaussians.params.items()}
    renamed = {_GSPLAT_NAMES.get(name, name): value for name, value in optimizers.items()}
    operation(params=params, optimizers=renamed, state={}, **arguments)  # type: ignore[operator]
    gaussians.params = {name: params[_GSPLAT_NAMES.get(name, name)] for name in gaussians.params}
