"""SDEdit (Meng et al., ICLR 2022): an image is noised to t0 and denoised again, which repaints its details.

1   z = E(x)
2   z_t0 = α_t0 z + σ_t0 ε
3   z_e = Φ(z_t, ε̂(z_t, t, y), t, e) from t0 down to 0          DDIM (Song et al., ICLR 2021) with guidance
4   x' = D(z_0)
5   y' = clamp(x' + w (d + Y(d)) / 2, min x', max x'), d = x' - G(x')    an unsharp mask, if w > 0

Y is luma; min and max are those of each channel nearby, which prevents halos. The prior's decoder makes faint false
colours, so colour differences have half the weight.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli.distill.guidance import Conditions, guided_noise
from segdream_cli.distill.schedule import Latents, NoiseSchedule
from segdream_cli.priors.protocol import Prior
from segdream_cli.refine.blur import blur

DEVIATION = 3 / 256
"""Standard deviation of the unsharp mask's blur G, over the side of the image."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in Y (ITU-R BT.601)."""


def ddim_timesteps(t0: int, steps: int) -> Int[Tensor, " n"]:
    """The `steps` + 1 timesteps from t0 to 0, evenly spaced and rounded."""
    return torch.linspace(t0, 0, steps + 1, dtype=torch.float64).round().long()


@torch.no_grad()
def repaint(
    prior: Prior,
    schedule: NoiseSchedule,
    images: Float[Tensor, "b 3 h w"],
    noise: Float[Tensor, "b c hl wl"],
    conditions: Conditions,
    t0: int,
    steps: int,
    guidance_scale: float,
) -> Float[Tensor, "b 3 h w"]:
    """Images in 0..1 that look like `images` and like the prior's samples of their texts.

    Args:
        prior: encodes, predicts noise and decodes.
        schedule: its noise schedule.
        images: colours in 0..1.
        noise: ε, standard normal, of the shape of the latents.
        conditions: the text of each image.
        t0: timestep to which the latents are noised.
        steps: DDIM steps from t0 to 0.
        guidance_scale: ω of the guidance.
    """
    times = ddim_timesteps(t0, steps)[:, None].expand(-1, len(images))  # [n, b]
    latents: Latents = schedule.add_noise(prior.encode_image(images, None), noise, times[0])
    for t, e in pairwise(times):
        eps = guided_noise(prior.predict_noise, latents, t, conditions, guidance_scale)
        latents = schedule.step(latents, eps, t, e)
    return prior.decode(latents).clamp(0, 1)


def sharpen(images: Float[Tensor, "b 3 h w"], weight: float) -> Float[Tensor, "b 3 h w"]:
    """Line 5: images in 0..1 whose details below the scale of `DEVIATION` are enlarged, by 1 + `weight` in luma.

    No value leaves the range of its channel within two deviations, so edges become steeper without halos.
    """
    if not weight:
        return images
    deviation = DEVIATION * images.shape[-1]
    reach = max(1, round(2 * deviation))
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    details = images - blur(padded, 2 * reach + 1, deviation)
    luma = (details * details.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    highest, lowest = _maximum(padded, reach), -_maximum(-padded, reach)
    return (images + weight * (details + luma) / 2).clamp(lowest, highest)


def _maximum(images: Float[Tensor, "b 3 h w"], reach: int) -> Float[Tensor, "b 3 hv wv"]:
    """Maximum of each channel over the square of 2 `reach` + 1 pixels around each pixel; the border is cut off."""
    side = 2 * reach + 1
    return images.unfold(2, side, 1).amax(-1).unfold(3, side, 1).amax(-1)  # a fifth of F.max_pool2d's time on a CPU
