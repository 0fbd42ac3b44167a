"""Classifier-free guidance and Perp-Neg, as functions of noise predictions.

Shapes: b rows of latents, k negative branches, l tokens of width d.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli.distill.schedule import PredictNoise


@dataclass(frozen=True, slots=True)
class Conditions:
    """Text embeddings that condition each row of latents.

    Args:
        null: embedding of the empty text, for the inversion and G(ẑ_s, s, e, ∅).
        uncond: embedding of the negative prompt, the base of the guidance.
        positive: embedding of the prompt as seen from the row's camera.
        negatives: embeddings of the views that Perp-Neg pushes away from.
        weights: their weights, zero or negative, on the CPU; a branch of weight zero is never evaluated.
    """

    null: Float[Tensor, "b l d"]
    uncond: Float[Tensor, "b l d"]
    positive: Float[Tensor, "b l d"]
    negatives: Float[Tensor, "k b l d"]
    weights: Float[Tensor, "k b"]

    def rows(self, chosen: slice) -> "Conditions":
        """Those of some of the rows."""
        return Conditions(
            self.null[chosen],
            self.uncond[chosen],
            self.positive[chosen],
            self.negatives[:, chosen],
            self.weights[:, chosen],
        )


def classifier_free(
    eps_uncond: Float[Tensor, "b c h w"], eps_cond: Float[Tensor, "b c h w"], guidance_scale: float
) -> Float[Tensor, "b c h w"]:
    """Classifier-free guidance (Ho and Salimans, 2021): ε_u + ω (ε_c - ε_u)."""
    return eps_uncond + guidance_scale * (eps_cond - eps_uncond)


def perp_neg(
    eps_uncond: Float[Tensor, "b c h w"],
    eps_cond: Float[Tensor, "b c h w"],
    eps_negatives: Float[Tensor, "k b c h w"],
    weights: Float[Tensor, "k b"],
    guidance_scale: float,
) -> Float[Tensor, "b c h w"]:
    """Perp-Neg (Armandpour et al., 2023): negative branches act only at a right angle to the positive one.

    With δ = ε - ε_u: ε_u + ω (δ_c + Σ_i w_i (δ_i - <δ_i, δ_c> / |δ_c|² δ_c)).
    """
    positive = eps_cond - eps_uncond
    return eps_uncond + guidance_scale * (positive + perpendicular(positive, eps_negatives - eps_uncond, weights))


def perpendicular(
    positive: Float[Tensor, "b c h w"], negatives: Float[Tensor, "k b c h w"], weights: Float[Tensor, "k b"]
) -> Float[Tensor, "b c h w"]:
    """The weighted parts of the negative directions at a right angle to the positive one, summed.

    Σ_i w_i (δ_i - <δ_i, δ_c> / |δ_c|² δ_c), inner products over all elements of a row.
    """
    length = positive.square().sum((1, 2, 3), keepdim=True).clamp_min(1e-6)  # [b, 1, 1, 1]
    along = (negatives * positive).sum((2, 3, 4), keepdim=True) / length  # [k, b, 1, 1, 1]
    return (weights[:, :, None, None, None] * (negatives - along * positive)).sum(0)


def guided_noise(
    predict_noise: PredictNoise,
    latents: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    conditions: Conditions,
    guidance_scale: float,
) -> Float[Tensor, "b c h w"]:
    """The guided noise estimate, with every active branch in one call of the network.

    Without negative branches this is classifier-free guidance, and at scale 1 the conditional estimate alone.
    """
    if guidance_scale == 1 and not conditions.weights.any():
        return predict_noise(latents, t, conditions.positive)
    eps_uncond, eps_cond, eps_negatives = predict_branches(predict_noise, latents, t, conditions)
    if eps_negatives is None:
        return classifier_free(eps_uncond, eps_cond, guidance_scale)
    weights = conditions.weights.to(eps_cond.device, eps_cond.dtype, non_blocking=True)
    return perp_neg(eps_uncond, eps_cond, eps_negatives, weights, guidance_scale)


def predict_branches(
    predict_noise: PredictNoise, latents: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], conditions: Conditions
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"], Float[Tensor, "k b c h w"] | None]:
    """Noise estimates under the negative prompt, the prompt and the active negative views, in one call of the network.

    Those of the views are zero where a branch is not active, and None if none is.
    """
    b = len(latents)
    branch, row = conditions.weights.nonzero(as_tuple=True)  # [m] each
    times = torch.cat([t, t, t[row]])
    branch, row = (index.to(latents.device, non_blocking=True) for index in (branch, row))
    text = torch.cat([conditions.uncond, conditions.positive, conditions.negatives[branch, row]])
    eps = predict_noise(torch.cat([latents, latents, latents[row]]), times, text)
    eps_uncond, eps_cond, eps_active = eps.split([b, b, len(row)])
    if not len(row):
        return eps_uncond, eps_cond, None
    eps_negatives = eps.new_zeros(len(conditions.weights), *latents.shape)
    eps_negatives[branch, row] = eps_active
    return eps_uncond, eps_cond, eps_negatives


def guided_rows(*, perp_neg: bool) -> float:
    """Rows of the U-Net that `guided_noise` evaluates per view; with Perp-Neg on average over the azimuths."""
    return 3.5 if perp_neg else 2.0
