"""From the text of a prompt to that of each camera: view phrases, and their weights by direction.

Shapes: b views, p phrases in the order of `phrase_texts`, l tokens of width d.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from segdream_cli.config import ViewConfig
from segdream_cli.distill.guidance import Conditions
from segdream_cli.priors.profile import ViewPhrases

FRONT, SIDE, BACK, OVERHEAD, RING = range(5)


def phrase_texts(prompt: str, views: ViewPhrases) -> list[str]:
    """The prompt with each view phrase: front, side, back, overhead, then the ring."""
    return [f"{prompt}, {phrase}" for phrase in (views.front, views.side, views.back, views.overhead, *views.ring)]


@dataclass(frozen=True, slots=True)
class ViewWeights:
    """Weight of each phrase in a view's text.

    Args:
        positive: weights of the phrases, each row summing to 1.
        negative: Perp-Neg's weights of the front and the side phrase, zero or below.
    """

    positive: Float[Tensor, "b p"]
    negative: Float[Tensor, "2 b"]


def view_weights(
    azimuth_deg: Float[Tensor, " b"],
    elevation_deg: Float[Tensor, " b"],
    views: ViewPhrases,
    config: ViewConfig,
    *,
    perp_neg: bool,
) -> ViewWeights:
    """Weights of the phrases for cameras at these angles, 0 azimuth being the front.

    Neighbouring phrases are blended linearly by azimuth, or the nearest one is taken; above
    `overhead_elevation_deg` it is the overhead phrase alone, without negative branches.
    """
    ring = torch.arange(RING, RING + len(views.ring)) if views.ring else torch.tensor([FRONT, SIDE, BACK, SIDE])
    position = azimuth_deg.remainder(360) * len(ring) / 360
    lower = position.floor()
    share = position - lower if config.blend else (position - lower).round()
    rows = torch.arange(len(position))
    positive = torch.zeros(len(position), RING + len(views.ring))
    positive.index_put_((rows, ring[lower.long() % len(ring)]), 1 - share, accumulate=True)
    positive.index_put_((rows, ring[(lower.long() + 1) % len(ring)]), share, accumulate=True)
    negative = perp_neg_weights(azimuth_deg, config) if perp_neg else torch.zeros(2, len(position))
    if config.overhead_elevation_deg is not None:
        overhead = elevation_deg > config.overhead_elevation_deg
        positive[overhead] = torch.eye(positive.shape[1])[OVERHEAD]
        negative = negative.masked_fill(overhead, 0)
    return ViewWeights(positive, negative)


def perp_neg_weights(azimuth_deg: Float[Tensor, " b"], config: ViewConfig) -> Float[Tensor, "2 b"]:
    """Perp-Neg's weights of the front and the side branch, as in LucidDreamer and the official release.

    With a the absolute azimuth: in front of the side, r = 1 - a / 90, the front weighs w exp(-f r) unless
    r > 0.8 and the side w exp(-s (1 - r)) unless r < 0.2; behind it, r = 2 - a / 90, the front weighs w and the
    side w / 2 exp(-s r) unless r > 0.8.
    """
    a = (azimuth_deg.remainder(360) - 360 * (azimuth_deg.remainder(360) > 180)).abs()
    w, f, s = config.negative_weight, config.front_decay, config.side_decay
    r = 1 - a / 90
    front = torch.where(r <= config.front_until, w * torch.exp(-f * r), 0.0)
    side = torch.where(r >= config.side_from, w * torch.exp(-s * (1 - r)), 0.0)
    r_back = 2 - a / 90
    side_back = torch.where(r_back <= config.front_until, w / 2 * torch.exp(-s * r_back), 0.0)
    weights = torch.where(a < 90, torch.stack([front, side]), torch.stack([torch.full_like(a, w), side_back]))
    return torch.where(weights.abs() > config.weight_floor, weights, 0.0)


@dataclass(frozen=True, slots=True)
class PromptEmbeddings:
    """Embeddings of one prompt: with each view phrase, of the negative prompt, and of the empty text."""

    phrases: Float[Tensor, "p l d"]
    uncond: Float[Tensor, "l d"]
    null: Float[Tensor, "l d"]


def conditions(embeddings: Sequence[PromptEmbeddings], weights: ViewWeights) -> Conditions:
    """The text of each view, blended by its weights, prompt by prompt."""
    phrases, uncond, null = (
        torch.stack([getattr(prompt, name) for prompt in embeddings]) for name in ("phrases", "uncond", "null")
    )
    a = len(embeddings)
    b, v = len(weights.positive), len(weights.positive) // a
    positive = weights.positive.to(phrases.device, phrases.dtype, non_blocking=True).unflatten(0, (a, v))
    negatives = phrases[:, FRONT : SIDE + 1].transpose(0, 1)  # [2, a, l, d]
    return Conditions(
        null=null[:, None].expand(-1, v, -1, -1).flatten(0, 1),
        uncond=uncond[:, None].expand(-1, v, -1, -1).flatten(0, 1),
        positive=torch.einsum("avp,apld->avld", positive, phrases).flatten(0, 1),
        negatives=negatives[:, :, None].expand(-1, -1, v, -1, -1).reshape(2, b, *phrases.shape[2:]),
        weights=weights.negative,
    )
