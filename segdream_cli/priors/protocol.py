"""What the pipeline needs of a text-to-image model."""

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli.priors.profile import PriorProfile


class Prior(Protocol):
    """A text-to-image latent diffusion model, as far as the pipeline needs it."""

    profile: PriorProfile
    alphas_cumprod: Float[Tensor, " T"]
    image_size: int
    latent_shape: tuple[int, int, int]

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "p l d"]:
        """Text embeddings."""

    def encode_image(
        self, rgb: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c hl wl"] | None
    ) -> Float[Tensor, "b c hl wl"]:
        """Latents of images in 0..1; `noise` draws them from the posterior, None takes its mean."""

    def predict_noise(
        self, latents: Float[Tensor, "b c hl wl"], timesteps: Int[Tensor, " b"], text: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b c hl wl"]:
        """Noise estimate."""
