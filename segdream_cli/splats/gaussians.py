"""3D Gaussians: parameters as the optimiser holds them, and what they stand for.

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
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

from segdream_cli.splats import SH_C0, Splats

GROUPS = ("means", "quats", "log_scales", "opacity_logits", "sh0", "shN")
PADDING = {"log_scales": -math.inf, "opacity_logits": -math.inf}
"""What a Gaussian that is none is stored as, where that is not 0; scales, opacity and gradients of it are 0."""
LEAST = 32
"""Fewest Gaussians of each of several sets: with fewer, gsplat 1.5.3's backward pass mixes the gradients of sets."""


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
