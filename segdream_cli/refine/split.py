"""The Gaussians with which a round begins: without the invisible ones, more, and smaller."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from segdream_cli.splats import GROUPS
from segdream_cli.splats.gaussians import Gaussians

SHIFT = 0.5
"""Distance of the halves from the centre, in standard deviations along the axis of the split."""


@torch.no_grad()
def prune(gaussians: Gaussians, opacity: float) -> Gaussians:
    """Those of at least this opacity, or all if there are none."""
    kept = gaussians.opacities >= opacity
    if not kept.any():
        return gaussians
    return Gaussians({name: gaussians.params[name][kept] for name in GROUPS})


@torch.no_grad()
def split(gaussians: Gaussians, target: int) -> Gaussians:
    """Splits the Gaussians with the longest axes, each at most once, until there are `target`.

    A Gaussian of standard deviation s along its longest axis becomes two at a distance of s / 2 from its centre. Their
    deviation √3 / 2 s keeps the second moment. Their opacity b = 1 - √(1 - a) keeps the opacity a where both lie on a
    ray (Rota Bulò et al., 2024).
    """
    count = min(max(target - len(gaussians), 0), len(gaussians))
    if not count:
        return gaussians
    largest, axis = gaussians.params["log_scales"].max(-1)
    chosen = largest.topk(count).indices
    parts = {name: gaussians.params[name][chosen] for name in GROUPS}
    along = F.one_hot(axis[chosen], 3).to(largest)
    reach = SHIFT * largest[chosen].exp()
    direction = _rotate(parts["quats"], along)
    parts["log_scales"] = parts["log_scales"] + along * math.log(1 - SHIFT**2) / 2
    opacity = 1 - (1 - parts["opacity_logits"].sigmoid()).sqrt()
    parts["opacity_logits"] = opacity.logit()
    rest = torch.ones(len(gaussians), dtype=torch.bool, device=gaussians.device).index_fill(0, chosen, value=False)
    halves = [{**parts, "means": parts["means"] + sign * reach[:, None] * direction} for sign in (1, -1)]
    return Gaussians(
        {name: torch.cat([gaussians.params[name][rest], *(half[name] for half in halves)]) for name in GROUPS}
    )


@torch.no_grad()
def shrink(gaussians: Gaussians, longest: Float[Tensor, " n"]) -> Gaussians:
    """The same with no axis above the `longest` of each: larger Gaussians keep their proportions."""
    log_scales = gaussians.params["log_scales"]
    excess = (log_scales.amax(-1) - longest.log()).clamp_min(0)
    return Gaussians({**gaussians.params, "log_scales": log_scales - excess[:, None]})


def _rotate(quats: Float[Tensor, "n 4"], vectors: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """The vectors in the world of quaternions w, x, y, z of any length; a zero quaternion is no rotation."""
    scalar, vector = F.normalize(quats, dim=-1).split([1, 3], -1)
    twice = 2 * torch.linalg.cross(vector, vectors)
    rotated: Tensor = vectors + scalar * twice + torch.linalg.cross(vector, twice)
    return rotated
