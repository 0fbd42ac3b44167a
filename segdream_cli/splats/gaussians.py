"""3D Gaussians: parameters as the optimiser holds them, what they stand for, and their optimisers.

stored              activated
------------------  ------------------------------------------------------------
means           n 3     centres
quats           n 4     rotation as w, x, y, z of any length
log_scales      n 3     scales = exp: standard deviations along the axes
opacity_logits  n       opacities = sigmoid
sh0             n 3     base colour: 0.5 + C0 sh0, never below 0, not bounded above
shN             n k 3   higher spherical harmonics, k = 0, 3, 8 or 15
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import Parameter
from torch.optim import adam

from segdream_cli.config import OptimConfig
from segdream_cli.splats import SH_C0, Splats

GROUPS = ("means", "quats", "log_scales", "opacity_logits", "sh0", "shN")
PADDING = {"log_scales": -math.inf, "opacity_logits": -math.inf}
"""What a Gaussian that is none is stored as, where that is not 0; scales, opacity and gradients of it are 0."""
LEAST = 32
"""Fewest Gaussians of each of several sets: with fewer, gsplat 1.5.3's backward pass mixes the gradients of sets."""
Optimizers = dict[str, torch.optim.Adam]
"""One Adam a group, which holds its moments; the steps are taken by `adam_step`."""


class Gaussians:
    """A set of n Gaussians whose number may change, or with a dimension before n as many sets as `stack` put together.

    Args:
        tensors: one tensor a name of `GROUPS`, all with the same first dimension.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.params = {name: Parameter(tensors[name].detach().float()) for name in GROUPS}

    def __len__(self) -> int:
        return len(self.params["means"])

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.params["means"].device

    @property
    def means(self) -> Float[Tensor, "*a n 3"]:
        """Centres."""
        return self.params["means"]

    @property
    def quats(self) -> Float[Tensor, "*a n 4"]:
        """Rotations as w, x, y, z of any length."""
        return self.params["quats"]

    @property
    def scales(self) -> Float[Tensor, "*a n 3"]:
        """Standard deviations along the rotated axes."""
        return self.params["log_scales"].exp()

    @property
    def opacities(self) -> Float[Tensor, "*a n"]:
        """Opacities in 0..1."""
        return self.params["opacity_logits"].sigmoid()

    def colors(self, camera_positions: Float[Tensor, "*a c 3"]) -> Float[Tensor, "*a n 3"] | Float[Tensor, "*a c n 3"]:
        """Colours, one set for all cameras without higher harmonics, else one a camera."""
        base, rest = self.params["sh0"], self.params["shN"]
        if not rest.shape[-2]:
            return (0.5 + SH_C0 * base).clamp_min(0)
        away = self.means[..., None, :, :] - camera_positions[..., None, :]  # [*a, c, n, 3]
        basis = sh_basis(torch.nn.functional.normalize(away, dim=-1), rest.shape[-2])
        higher = torch.einsum("...cnk,...nkd->...cnd", basis, rest)
        return (0.5 + SH_C0 * base[..., None, :, :] + higher).clamp_min(0)

    def to(self, device: torch.device) -> "Gaussians":
        """A copy on `device`."""
        return Gaussians({name: value.to(device) for name, value in self.params.items()})

    def splats(self, provenance: Mapping[str, object]) -> Splats:
        """What a file holds: the stored values as arrays."""
        return Splats(
            **{name: value.detach().cpu().numpy() for name, value in self.params.items()}, provenance=provenance
        )

    @classmethod
    def from_splats(cls, splats: Splats) -> "Gaussians":
        """Gaussians with the values of a file."""
        return cls({name: torch.from_numpy(np.ascontiguousarray(getattr(splats, name))) for name in GROUPS})


def stack(sets: Sequence[Gaussians]) -> Gaussians:
    """Several sets as one, [a, n, ...] with n that of the largest; where a set has fewer there is `PADDING`.

    Leaves of a graph of their own: gradients gather in the stack, not in the sets.
    """
    if len(sets) == 1:  # without a copy
        return Gaussians({name: value.detach()[None] for name, value in sets[0].params.items()})
    n = max(LEAST, *map(len, sets))
    tensors = {}
    for name in GROUPS:
        parts = [gaussians.params[name].detach() for gaussians in sets]
        filler = parts[0].new_full((n, *parts[0].shape[1:]), PADDING.get(name, 0.0))
        filled = torch.cat([piece for part in parts for piece in (part, filler[len(part) :])])
        tensors[name] = filled.unflatten(0, (len(sets), n))
    return Gaussians(tensors)


def sh_basis(directions: Float[Tensor, "*c n 3"], k: int) -> Float[Tensor, "*c n k"]:
    """Real spherical harmonics of degree 1 to 3 with the Condon-Shortley phase, m from -l to l.

    Args:
        directions: unit vectors from the camera to the Gaussian.
        k: number of functions: 3, 8 or 15.
    """
    x, y, z = directions.unbind(-1)
    pi = math.pi
    values = [-math.sqrt(3 / (4 * pi)) * y, math.sqrt(3 / (4 * pi)) * z, -math.sqrt(3 / (4 * pi)) * x]
    if k > 3:
        a = math.sqrt(15 / pi) / 2
        values += [a * x * y, -a * y * z, math.sqrt(5 / pi) / 4 * (3 * z * z - 1), -a * x * z, a / 2 * (x * x - y * y)]
    if k > 8:
        b, c = math.sqrt(35 / (2 * pi)) / 4, math.sqrt(21 / (2 * pi)) / 4
        values += [
            -b * y * (3 * x * x - y * y),
            math.sqrt(105 / pi) / 2 * x * y * z,
            -c * y * (5 * z * z - 1),
            math.sqrt(7 / pi) / 4 * z * (5 * z * z - 3),
            -c * x * (5 * z * z - 1),
            math.sqrt(105 / pi) / 4 * z * (x * x - y * y),
            -b * x * (x * x - 3 * y * y),
        ]
    return torch.stack(values, -1)


def build_optimizers(gaussians: Gaussians, config: OptimConfig) -> Optimizers:
    """One Adam a parameter group, as density control needs them, its moments 0."""
    optimizers = {}
    for name, rate in learning_rates(config, 0).items():
        parameter = gaussians.params[name]
        optimizers[name] = torch.optim.Adam(
            [parameter], lr=rate, betas=config.betas, eps=config.eps, fused=parameter.is_cuda or None
        )
        optimizers[name].state[parameter] = {
            "step": torch.zeros((), device=parameter.device if parameter.is_cuda else None),
            "exp_avg": torch.zeros_like(parameter.detach()),
            "exp_avg_sq": torch.zeros_like(parameter.detach()),
        }
    return optimizers


def learning_rates(config: OptimConfig, step: int) -> dict[str, float]:
    """Each group's rate in a step of the run, log-linear between its start and its end."""
    progress = min(step / config.steps, 1)
    rates = (config.means_lr, config.quat_lr, config.scale_lr, config.opacity_lr, config.sh0_lr, config.shN_lr)
    return {name: start * (end / start) ** progress for name, (start, end) in zip(GROUPS, rates, strict=True)}


def clip_gradients(gaussians: Gaussians, config: OptimConfig, step: int) -> Float[Tensor, " a"]:
    """Limits the gradient norm of each group of each set of a stack, growing over the first steps.

    A group that has no gradient gets one of zeros.

    Returns:
        each set's norm over all groups before that.
    """
    start, end = config.clip
    limit = start + (end - start) * (min(step / config.clip_steps, 1) if config.clip_steps else 1)
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
    step: int,
    usable: Bool[Tensor, ""] | None = None,
) -> None:
    """One step of Adam on every set by the gradients of their stack, a single call for each group.

    Where `usable`, on the device, is false, nothing changes; None is true.
    """
    beta1, beta2 = config.betas
    found_inf = None if usable is None else usable.logical_not().float()
    for name, rate in learning_rates(config, step).items():
        parameters = [gaussians.params[name] for gaussians in sets]
        states = [each[name].state[parameter] for each, parameter in zip(optimizers, parameters, strict=True)]
        gradients = stacked.params[name].grad
        if gradients is None or not gradients.numel():
            continue
        adam.adam(
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


@torch.no_grad()
def bounds(gaussians: Gaussians) -> tuple[Float[Tensor, " 3"], float]:
    """Centre and radius of the sphere that holds an asset but for stray Gaussians.

    The centre is that of the box between the quantiles 0.005 and 0.995 of the visible centres; the radius is the
    quantile 0.995 of the distance that a visible Gaussian reaches with two standard deviations.
    """
    visible = gaussians.opacities > 0.1
    if not visible.any():
        visible = torch.ones_like(visible)
    means = gaussians.means[visible].cpu()
    reach = 2 * gaussians.scales[visible].cpu().amax(-1)
    low, high = np.quantile(means.numpy(), [0.005, 0.995], axis=0)
    center = torch.from_numpy((low + high) / 2).float()
    radius = np.quantile(((means - center).norm(dim=-1) + reach).numpy(), 0.995)
    return center, max(float(radius), 1e-3)
