"""A latent diffusion prior: images to latents, and noisy latents to the noise in them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._triton import has_triton
from torch.utils.checkpoint import checkpoint as recomputed

from segdream_cli.accel.cuda_graphs import LOW_VRAM_ROWS, GraphedCalls, GraphedGradients, RowCalls, arithmetic, fastest
from segdream_cli.accel.estimate import Workload
from segdream_cli.accel.fast_layers import drop_separate_projections, rewrite_convolutions, rewrite_norms
from segdream_cli.config import Config, PriorConfig
from segdream_cli.priors.checkpoint import Checkpoint, check_keys, reading
from segdream_cli.priors.profile import PriorProfile
from segdream_cli.priors.text import TextEncoder

COMPILED_PARAMETERS, COMPILED_STEPS = 500_000_000, 1000
"""Size of a U-Net and length of a run from which compiling is taken to pay for the minutes it takes once."""


class DiffusionPrior:
    """A frozen Stable Diffusion 1.x or 2.x model, or any of the same layout.

    Args:
        unet: predicts epsilon or v from noisy latents.
        vae: encodes images in -1..1 to a Gaussian over latents, and decodes latents.
        text: encodes prompts.
        scheduler: holds the noise schedule and the kind of prediction.
        profile: what the model calls views, which words it knows, and its presets.
        config: how they compute; what speeds them up there acts on CUDA only.
        announce: receives a line before and after a compilation.
        batch: views of a step.
        steps: optimisation steps of the run, which decide whether to compile.

    Attributes:
        alphas_cumprod: cumulative product of alpha at timesteps 0..999, float64, on the CPU.
        image_size: side in pixels of the images the prior was trained on.
        latent_shape: channels, height and width of the latents of such an image.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text: TextEncoder,
        scheduler: DDIMScheduler,
        profile: PriorProfile,
        config: PriorConfig,
        *,
        announce: Callable[[str], None],
        batch: int = 1,
        steps: int = 0,
    ) -> None:
        self.profile = profile
        self.unet = unet.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.text = text
        self.device: torch.device = unet.device
        self.dtype: torch.dtype = unet.dtype
        self.alphas_cumprod: Float[Tensor, " 1000"] = scheduler.alphas_cumprod.to("cpu", torch.float64)
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        side = unet.config.sample_size
        self.latent_shape = (vae.config.latent_channels, side, side)
        self.image_size: int = side * factor
        self._scale: float = vae.config.scaling_factor
        self._shift: float = vae.config.get("shift_factor") or 0.0
        self._predicts_v = scheduler.config.prediction_type == "v_prediction"
        self._alphas = self.alphas_cumprod.sqrt().float().to(self.device)
        self._sigmas = (1 - self.alphas_cumprod).sqrt().float().to(self.device)
        self._encode: Callable[[Tensor], tuple[Tensor, ...]] = self._posterior
        self._predict: Callable[..., Tensor] = self._unet
        if self.device.type == "cuda":
            self._rewrite(config)
            self._speed_up(config, announce, batch, compiling=compiles(config, unet, steps))
        if config.low_vram:
            self._encode = partial(_by_views, self._encode)
            self._predict = RowCalls(self._predict, 1, LOW_VRAM_ROWS)

    def _rewrite(self, config: PriorConfig) -> None:
        """Puts layers that a GPU is slow at into other words."""
        if config.written_attention:
            self.vae.set_attn_processor(AttnProcessor())
        if config.forward_gradients:
            rewrite_convolutions(self.vae.encoder)
        if config.fused_projections:
            self.unet.fuse_qkv_projections()
            drop_separate_projections(self.unet)
        if config.tuned_convolutions:
            torch.backends.cudnn.benchmark = True

    def _speed_up(self, config: PriorConfig, announce: Callable[[str], None], batch: int, *, compiling: bool) -> None:
        """Compiles and captures the networks' calls; what a machine can't do it does in a slower way."""
        if compiling:
            for network in (self.unet, self.vae.encoder):
                network.to(memory_format=torch.channels_last)
                if config.channel_norms:
                    rewrite_norms(network)
        most = batch if compiling else None

        fast = partial(
            fastest,
            announce=announce,
            graphs=config.cuda_graphs,
            compiling=compiling,
            only=config.compile == "on",
            recomputing=config.recomputed_values,
        )
        self._encode = fast("the autoencoder", self._encode, partial(GraphedGradients, most=most))
        self._predict = fast("the U-Net", self._predict, GraphedCalls)
        if not config.low_vram and (compiling or config.cuda_graphs):
            self._predict = RowCalls(self._predict, batch, 2 * batch if compiling else None)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        device: torch.device | str,
        config: PriorConfig = PriorConfig(),  # noqa: B008 - it is frozen
        *,
        warn: Callable[[str], None],
        batch: int = 1,
        steps: int = 0,
    ) -> "DiffusionPrior":
        """Loads a verified checkpoint.

        Args:
            checkpoint: what `weights.resolve` returned.
            device: where the networks run.
            config: how they compute.
            warn: receives one line when a prompt is longer than the text encoder reads, and those about compiling.
            batch: views of a step.
            steps: optimisation steps of the run.

        Raises:
            WeightsUnavailable: a file can't be read, a weight is missing, or the vocabulary does not fit.
        """
        device = torch.device(device)
        kind = arithmetic(config.dtype, device)
        diffusers_logging.set_verbosity_error()
        diffusers_logging.disable_progress_bar()
        text = TextEncoder.load(checkpoint, device, kind, warn=warn)
        unet = _network(UNet2DConditionModel, checkpoint, "unet", device, kind)
        vae = _network(AutoencoderKL, checkpoint, "vae", device, kind)
        with reading(checkpoint, "scheduler"):
            scheduler = DDIMScheduler.from_pretrained(checkpoint.folder / "scheduler", local_files_only=True)
        return cls(unet, vae, text, scheduler, checkpoint.profile, config, announce=warn, batch=batch, steps=steps)

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "p l d"]:
        """The text embeddings of each prompt: p texts, l tokens, d features; see `TextEncoder.encode`."""
        return self.text.encode(texts)

    def encode_image(
        self, rgb: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c h8 w8"] | None = None
    ) -> Float[Tensor, "b c h8 w8"]:
        """Scaled latents of images, differentiable with respect to them.

        Args:
            rgb: colours, 0..1 where they can be shown; not clamped, so that gradients pass outside.
            noise: standard normal numbers that draw from the posterior; None takes its mean.

        Returns:
            float32 latents, (z - shift) * scale as the U-Net was trained on.
        """
        images = (2 * rgb - 1).to(self.dtype)
        differentiated = images.requires_grad and torch.is_grad_enabled()
        mean, std = (self._encode if differentiated else self._posterior)(images)
        latents: Tensor = mean.float()
        if noise is not None:
            latents = latents + std.float() * noise
        return (latents - self._shift) * self._scale

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the unscaled latents of images in -1..1."""
        posterior = self.vae.encode(images).latent_dist
        return posterior.mean, posterior.std

    def decode(self, latents: Float[Tensor, "b c h8 w8"]) -> Float[Tensor, "b 3 h w"]:
        """Images of scaled latents, float32, about 0..1 and not clamped."""
        rgb: Tensor = self.vae.decode((latents / self._scale + self._shift).to(self.dtype)).sample
        return (rgb.float() + 1) / 2

    def predict_noise(
        self, latents: Float[Tensor, "b c h w"], timesteps: Int[Tensor, " b"], text: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b c h w"]:
        """The noise epsilon in noisy latents, differentiable with respect to them.

        A model that predicts v (Salimans and Ho 2022, alpha eps - sigma x0) is converted:
        eps = alpha v + sigma z.

        Args:
            latents: z_t, float32.
            timesteps: t of each, 0..999.
            text: its embeddings.

        Returns:
            float32 epsilon.
        """
        timesteps = timesteps.to(self.device, non_blocking=True)
        if latents.requires_grad and torch.is_grad_enabled():
            output = self._unet(latents, timesteps, text)
        else:
            with torch.no_grad():
                output = self._predict(latents, timesteps, text)
        if not self._predicts_v:
            return output.float()
        alpha, sigma = (
            table.index_select(0, timesteps.long())[:, None, None, None] for table in (self._alphas, self._sigmas)
        )
        epsilon: Tensor = alpha * output.float() + sigma * latents
        return epsilon

    def _unet(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        output: Tensor = self.unet(latents.to(self.dtype), timesteps, text.to(self.dtype), return_dict=False)[0]
        return output


def _by_views(encode: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> tuple[Tensor, ...]:
    """What `encode` returns, one image at a time, each computed again on the way back instead of kept.

    Reentrant, so that the second computation is a whole call: a graph's way back needs what its way there just left.
    """
    parts = [recomputed(encode, image, use_reentrant=True, preserve_rng_state=False) for image in images.split(1)]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def compiles(config: PriorConfig, unet: torch.nn.Module, steps: int) -> bool:
    """Whether the networks are compiled: as the setting says, or where it pays and the compiler is there."""
    if config.compile != "auto":
        return config.compile == "on"
    return full_size(unet) and steps >= COMPILED_STEPS and has_triton()


def full_size(unet: torch.nn.Module) -> bool:
    """Whether a U-Net is so large that a run takes minutes and gigabytes."""
    return sum(parameter.numel() for parameter in unet.parameters()) >= COMPILED_PARAMETERS


def workload(prior: DiffusionPrior, config: Config, assets: int = 1) -> Workload:
    """What an estimate of a run of so many assets at once with this prior needs to know."""
    compiling = compiles(config.prior, prior.unet, config.optim.steps)
    return Workload(prior.unet, prior.vae, config, config.camera.image_size or prior.image_size, compiling, assets)


def _network(kind: Any, checkpoint: Checkpoint, part: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A diffusers network of a checkpoint, every weight of it from the file."""
    with reading(checkpoint, part):
        network, info = kind.from_pretrained(
            checkpoint.folder / part,
            dtype=dtype,
            variant=checkpoint.variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            low_cpu_mem_usage=False,  # the default asks for accelerate; initial values are skipped in either case
        )
    check_keys(checkpoint, part, info)
    if device.type == "cpu":  # convolutions are a fifth faster there with the channels innermost
        network = network.to(memory_format=torch.channels_last)
    return network.to(device)
