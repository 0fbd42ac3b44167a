"""3D Gaussians as torch parameters: the stored values and their activations.

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
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

from segdream_cli.splats import GROUPS, SH_C0, Splats
from segdream_cli.splats.bounds import DEVIATIONS, VISIBLE_OPACITY, center_of, radius_of
from segdream_cli.splats.sh import sh_basis

PAD_VALUES = {"log_scales": -math.inf, "opacity_logits": -math.inf}
"""Non-zero values of a padding Gaussian; its scales, opacity and gradients are 0."""
MIN_STACKED = 32
"""Fewest Gaussians per set of a stack: with fewer, gsplat 1.5.3's backward pass mixes the gradients of sets."""


class Gaussians:
    """A set of n Gaussians whose number may change, or a stack [a, n, ...] of `a` sets.

    Args:
        tensors: one tensor per name of `GROUPS`, all with the same first dimension.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.params = {name: Parameter(tensors[name].detach().float()) for name in GROUPS}

    def __len__(self) -> int:
        return len(self.params["means"])

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
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
        """Colours, at least 0: one set for all cameras without higher harmonics, else one per camera.

        Args:
            camera_positions: camera centres in the world.
        """
        base, rest = self.params["sh0"], self.params["shN"]
        if not rest.shape[-2]:
            return (0.5 + SH_C0 * base).clamp_min(0)
        away = self.means[..., None, :, :] - camera_positions[..., None, :]  # [*a, c, n, 3]
        directions = torch.nn.functional.normalize(away, dim=-1)
        basis = torch.stack(sh_basis(directions.unbind(-1), rest.shape[-2]), -1)
        higher = torch.einsum("...cnk,...nkd->...cnd", basis, rest)
        return (0.5 + SH_C0 * base[..., None, :, :] + higher).clamp_min(0)

    def to(self, device: torch.device) -> "Gaussians":
        """A copy on `device`, detached from any graph."""
        return Gaussians({name: value.detach().to(device, copy=True) for name, value in self.params.items()})

    def splats(self, provenance: Mapping[str, object]) -> Splats:
        """The stored values as numpy arrays, for a file."""
        arrays: dict[str, Any] = {name: value.detach().cpu().numpy() for name, value in self.params.items()}
        return Splats(**arrays, provenance=provenance)

    @classmethod
    def from_splats(cls, splats: Splats) -> "Gaussians":
        """Gaussians with the values of a file."""
        return cls({name: torch.from_numpy(np.ascontiguousarray(getattr(splats, name))) for name in GROUPS})


def stack(sets: Sequence[Gaussians]) -> Gaussians:
    """Several sets as one, [a, n, ...] with n that of the largest; smaller sets are padded with `PAD_VALUES`.

    The stack's parameters are leaves of their own: gradients gather in the stack, not in the sets.
    """
    if len(sets) == 1:  # no copy
        return Gaussians({name: value.detach()[None] for name, value in sets[0].params.items()})
    n = max(MIN_STACKED, *map(len, sets))
    tensors = {}
    for name in GROUPS:
        parts = [gaussians.params[name].detach() for gaussians in sets]
        filler = parts[0].new_full((n, *parts[0].shape[1:]), PAD_VALUES.get(name, 0.0))
        filled = torch.cat([piece for part in parts for piece in (part, filler[len(part) :])])
        tensors[name] = filled.unflatten(0, (len(sets), n))
    return Gaussians(tensors)


@torch.no_grad()
def bounds(gaussians: Gaussians) -> tuple[Float[Tensor, " 3"], float]:
    """Centre [3] and radius of the sphere that a view of the asset frames, by the rule of `splats.bounds`.

    The arithmetic is torch's, so that a render keeps its bits.
    """
    visible = gaussians.opacities > VISIBLE_OPACITY
    if not visible.any():
        visible = torch.ones_like(visible)
    means = gaussians.means[visible].cpu()
    reach = DEVIATIONS * gaussians.scales[visible].cpu().amax(-1)
    center = torch.from_numpy(center_of(means.numpy()))
    return center, radius_of(((means - center).norm(dim=-1) + reach).numpy())
