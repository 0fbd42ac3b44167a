"""A diffusion prior whose noise estimate and probability-flow ODE are known in closed form.

Its data are Gaussian, N(mu, S) with one variance S per latent element. Noised to t they are N(α_t mu, v_t) with
v_t = α_t² S + σ_t², so that

    ε(z, t) = σ_t (z - α_t mu) / v_t        the exact noise estimate
    z_e = α_e mu + sqrt(v_e / v_t) (z_t - α_t mu)    the exact flow from t to e

The text selects mu: an embedding is the mean itself, as one token, which makes blended embeddings blended means.
"""

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from segdream_cli.priors.profile import PriorProfile


def stable_diffusion_alphas(n_timesteps: int = 1000) -> Tensor:
    """Stable Diffusion's `alphas_cumprod`, in float64; other lengths cut the same time more finely."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, n_timesteps, dtype=torch.float64) ** 2
    return (1 - betas * 1000 / n_timesteps).cumprod(0)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, the same for the same shape and seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class AnalyticPrior:
    """The `Prior` of a Gaussian data distribution.

    Args:
        means: mu of a text; every other text but the empty one, whose mean is 0, has a random one of its own.
        variance: S, a number or a tensor of the latents' shape.
        alphas_cumprod: the noise schedule.
        latent_shape: channels, height and width of the latents, at least 3 channels.
        image_size: side of the images, a multiple of the latents' side.
        profile: what the texts around the prompt are.
    """

    def __init__(
        self,
        means: Mapping[str, Tensor] | None = None,
        *,
        variance: Tensor | float = 0.25,
        alphas_cumprod: Tensor | None = None,
        latent_shape: tuple[int, int, int] = (4, 8, 8),
        image_size: int = 32,
        profile: PriorProfile | None = None,
    ) -> None:
        self.means = dict(means or {})
        self.variance = torch.as_tensor(variance, dtype=torch.float64)
        self.alphas_cumprod = stable_diffusion_alphas() if alphas_cumprod is None else alphas_cumprod
        self.latent_shape = latent_shape
        self.image_size = image_size
        self.profile = profile or PriorProfile()

    def mean(self, text: str) -> Tensor:
        """mu of a text, [c, h, w]."""
        if text in self.means:
            return self.means[text].double()
        if not text:
            return torch.zeros(self.latent_shape, dtype=torch.float64)
        generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        return torch.randn(self.latent_shape, generator=generator, dtype=torch.float64)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of one token, the flattened mean, [p, 1, c h w]."""
        return torch.stack([self.mean(text).reshape(1, -1) for text in texts])

    def encode_image(self, rgb: Tensor, noise: Tensor | None) -> Tensor:
        """Pooled colours in -1..1 and, for further channels, their mean; the posterior has a small constant spread."""
        c = self.latent_shape[0]
        pooled = torch.nn.functional.avg_pool2d(2 * rgb - 1, self._factor)
        latents = torch.cat([pooled, pooled.mean(1, keepdim=True).expand(-1, c - 3, -1, -1)], 1)
        return latents if noise is None else latents + 0.01 * noise.to(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """Images whose mean latents these are: the first three channels as colours, each latent a uniform square."""
        return torch.nn.functional.interpolate((latents[:, :3] + 1) / 2, scale_factor=self._factor, mode="nearest")

    @property
    def _factor(self) -> int:
        """Pixels per latent."""
        return self.image_size // self.latent_shape[1]

    def predict_noise(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The exact noise estimate, differentiable in the latents."""
        alpha, sigma, spread = self._coefficients(timesteps, latents)
        mean = text.reshape(-1, *self.latent_shape).to(latents)
        mean = torch.nn.functional.interpolate(mean, latents.shape[-2:], mode="nearest")  # other sizes of images
        return sigma * (latents - alpha * mean) / spread

    def flow(self, latents: Tensor, t_from: Tensor, t_to: Tensor, text: Tensor) -> Tensor:
        """The exact solution of the probability-flow ODE."""
        alpha_from, _, spread_from = self._coefficients(t_from, latents)
        alpha_to, _, spread_to = self._coefficients(t_to, latents)
        mean = text.reshape(-1, *self.latent_shape).to(latents)
        return alpha_to * mean + (spread_to / spread_from).sqrt() * (latents - alpha_from * mean)

    def _coefficients(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """α_t, σ_t and v_t of each row, [b, 1, 1, 1] or [b, c, h, w]."""
        squared = self.alphas_cumprod[timesteps.cpu()].double()[:, None, None, None]
        spread = squared * self.variance + 1 - squared
        alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
        return alpha.to(like), sigma.to(like), spread.to(like)
