"""The interface of a diffusion prior, which every distillation method and the pipeline use."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli.priors.profile import PriorProfile


@runtime_checkable
class Prior(Protocol):
    """A frozen text-to-image latent diffusion model.

    Attributes:
        profile: the model's view phrases, vocabulary and presets.
        alphas_cumprod: cumulative product of alpha at each timestep, float64, on the CPU.
        image_size: side in pixels of the images that the model was trained on.
        latent_shape: channels, height and width of the latents of such an image.
    """

    profile: PriorProfile
    alphas_cumprod: Float[Tensor, " T"]
    image_size: int
    latent_shape: tuple[int, int, int]

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "p l d"]:
        """Text embeddings: p texts, l tokens, d features."""

    def encode_image(
        self, rgb: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c hl wl"] | None
    ) -> Float[Tensor, "b c hl wl"]:
        """Latents of images in 0..1, differentiable; `noise` samples the posterior, None takes its mean."""

    def decode(self, latents: Float[Tensor, "b c hl wl"]) -> Float[Tensor, "b 3 h w"]:
        """Images of latents, nominally 0..1 and not clamped."""

    def predict_noise(
        self, latents: Float[Tensor, "b c hl wl"], timesteps: Int[Tensor, " b"], text: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b c hl wl"]:
        """The noise in noisy latents, differentiable."""
