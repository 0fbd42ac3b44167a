"""Adam over the parameter groups of one or several sets of Gaussians."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segdream_cli.config import OptimConfig
from segdream_cli.splats import GROUPS
from segdream_cli.splats.gaussians import Gaussians
from segdream_cli.util import compat


class Moments:
    """Adam's moments of a parameter, which are 0 at first, by the attributes under which gsplat edits an optimizer's.

    `torch.optim.Adam` would hold them too, but the first one imports PyTorch's compiler, which takes seconds.

    Attributes:
        param_groups: one group, whose "params" are the parameter.
        state: its "step" (on the parameter's device if that is CUDA), "exp_avg" and "exp_avg_sq".
    """

    def __init__(self, parameter: torch.nn.Parameter) -> None:
        values = parameter.detach()
        self.param_groups = [{"params": [parameter]}]
        self.state = {
            parameter: {
                "step": torch.zeros((), device=values.device if values.is_cuda else None),
                "exp_avg": torch.zeros_like(values),
                "exp_avg_sq": torch.zeros_like(values),
            }
        }


Optimizers = dict[str, Moments]
"""The moments of each parameter group; `adam_step` takes the steps."""


def build_optimizers(gaussians: Gaussians) -> Optimizers:
    """The moments of each group apart, since density control edits their rows one group at a time."""
    return {name: Moments(parameter) for name, parameter in gaussians.params.items()}


def learning_rates(config: OptimConfig, step: int) -> dict[str, float]:
    """Learning rate of each group in a step of the run, log-linear between its start and its end."""
    progress = config.progress(step)
    rates = (config.means_lr, config.quat_lr, config.scale_lr, config.opacity_lr, config.sh0_lr, config.shN_lr)
    return {name: start * (end / start) ** progress for name, (start, end) in zip(GROUPS, rates, strict=True)}


def clip_limit(config: OptimConfig, step: int) -> float:
    """Limit of the gradient norms in a step of the run; it grows over the first steps."""
    start, end = config.clip
    return start + (end - start) * (min(step / config.clip_steps, 1) if config.clip_steps else 1)


def clip_gradients(gaussians: Gaussians, limit: float) -> Float[Tensor, " a"]:
    """Clips the gradient norm of each group of each set of a stack to `limit`.

    A group without a gradient receives zeros.

    Returns:
        each set's norm over all groups before clipping.
    """
    for parameter in gaussians.params.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad.flatten(1) for parameter in gaussians.params.values() if parameter.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(gradient, dim=1) for gradient in gradients])  # [groups, a]
    factors = (limit / (norms + 1e-6)).clamp_max(1)
    for gradient, factor in zip(gradients, factors, strict=True):
        gradient.mul_(factor[:, None])
    total: Tensor = norms.norm(dim=0)
    return total


@torch.no_grad()
def adam_step(
    sets: Sequence[Gaussians],
    optimizers: Sequence[Optimizers],
    stacked: Gaussians,
    config: OptimConfig,
    rates: Mapping[str, float],
    usable: Bool[Tensor, ""] | None = None,
) -> None:
    """Takes one step of Adam on every set by the gradients of their stack, in a single call per group.

    Args:
        sets: their parameters are changed in place.
        optimizers: the moments of each set.
        stacked: holds the gradients.
        config: Adam's decay rates and epsilon.
        rates: learning rate of each group.
        usable: where it is false, on the device, nothing changes; None is true.
    """
    beta1, beta2 = config.betas
    found_inf = None if usable is None else usable.logical_not().float()
    for name, rate in rates.items():
        parameters = [gaussians.params[name] for gaussians in sets]
        states = [each[name].state[parameter] for each, parameter in zip(optimizers, parameters, strict=True)]
        gradients = stacked.params[name].grad
        if gradients is None or not gradients.numel():
            continue
        compat.adam(
            list(parameters),
            [gradient[: len(parameter)] for gradient, parameter in zip(gradients, parameters, strict=True)],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=False,
            fused=gradients.is_cuda or found_inf is not None,
            found_inf=found_inf,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=rate,
            weight_decay=0.0,
            eps=config.eps,
            maximize=False,
        )
