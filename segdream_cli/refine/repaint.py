"""SDEdit (Meng et al., ICLR 2022): an image is noised to t0 and denoised again, which repaints its details.

1   z = E(x)
2   z_t0 = α_t0 z + σ_t0 ε
3   z_e = Φ(z_t, ε̂(z_t, t, y), t, e) from t0 down to 0          DDIM (Song et al., ICLR 2021) with guidance
4   x' = D(z_0)
5   y = x' + w (x' - G(x'))                                     an unsharp mask, if w > 0
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

RADIUS = 1 / 128
"""Standard deviation of the unsharp mask's blur, over the side of the image: 2 px of 256."""


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
    """Line 5: images in 0..1 with the details below the scale of `RADIUS` enlarged by 1 + `weight`."""
    if not weight:
        return images
    deviation = RADIUS * images.shape[-1]
    reach = max(1, round(2 * deviation))
    smooth = blur(F.pad(images, (reach,) * 4, mode="replicate"), 2 * reach + 1, deviation)
    return (images + weight * (images - smooth)).clamp(0, 1)
