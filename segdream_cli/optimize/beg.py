"""Brightness-Equalised Generation (BEG; Connect3D, Li et al., ECCV 2024): colours that are too bright fade to grey.

1   v_i = Q_q of the channel means of view i that are above 0; 0 for an empty view                  is_bright
2   the asset is bright if Q_q(v_1, v_2, ...) > threshold                                           is_bright
3   its spherical harmonics are multiplied by factor; their Adam forgets its moments, and their     equalize
    step of this iteration is skipped

Q_q is the q-quantile, with linear interpolation. Nothing waits for the device.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segdream_cli.config import OptimConfig
from segdream_cli.optimize.adam import Optimizers
from segdream_cli.splats.gaussians import Gaussians


def is_due(step: int, config: OptimConfig) -> bool:
    """Whether step `step` (1, 2, ...) equalises."""
    return config.beg and config.beg_start < step < config.beg_stop


@torch.no_grad()
def is_bright(rgb: Float[Tensor, "b h w 3"], assets: int, config: OptimConfig) -> Bool[Tensor, " a"]:
    """Which assets are too bright.

    Args:
        rgb: views over their backgrounds, nominally 0..1, asset by asset; every asset has the same number.
        assets: number of assets.
        config: `beg_quantile` and `beg_threshold`.
    """
    means = rgb.mean(-1).flatten(1)
    views = torch.where(means > 0, means, torch.nan).nanquantile(config.beg_quantile, 1).nan_to_num(0)
    brightness: Tensor = views.unflatten(0, (assets, -1)).quantile(config.beg_quantile, 1)
    return brightness > config.beg_threshold


@contextmanager
def equalize(
    sets: Sequence[Gaussians], optimizers: Sequence[Optimizers], bright: Bool[Tensor, " a"] | None, factor: float
) -> Iterator[None]:
    """Surrounds a step of Adam: bright assets take `factor` times their colours from before it, and no colour step.

    Args:
        sets: changed in place, asset by asset.
        optimizers: their Adams; the moments of bright colours become 0, and their step count stays.
        bright: which assets are too bright; None is none of them.
        factor: on the coefficients of the spherical harmonics.
    """
    if bright is None:
        yield
        return
    before = []
    for gaussians, each, chosen in zip(sets, optimizers, bright, strict=True):
        for name in ("sh0", "shN"):
            parameter = gaussians.params[name]
            state = each[name].state[parameter]
            before.append((chosen, parameter.data, factor * parameter.data, state, state["step"].clone()))
    yield
    for chosen, values, faded, state, step in before:
        values.copy_(torch.where(chosen, faded, values))
        state["exp_avg"].masked_fill_(chosen, 0)
        state["exp_avg_sq"].masked_fill_(chosen, 0)
        state["step"].copy_(torch.where(chosen, step, state["step"]))
