"""A latent diffusion prior in the Stable Diffusion layout: encodes texts and images, predicts the noise in latents."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli.accel.cuda_graphs import (
    LOW_VRAM_ROWS,
    Announce,
    FallbackChain,
    GraphedCalls,
    GraphedGradients,
    PaddedBatches,
    compute_dtype,
)
from segdream_cli.accel.estimate import Workload
from segdream_cli.accel.fast_layers import drop_separate_projections, replace_convolutions, replace_norms
from segdream_cli.accel.openvino_engine import OpenVinoCalls, choose_engine, computes_bf16
from segdream_cli.config import Config, PriorConfig
from segdream_cli.priors.checkpoint import Checkpoint, check_keys, read_errors
from segdream_cli.priors.profile import PriorProfile
from segdream_cli.priors.text import TextEncoder
from segdream_cli.util import compat

COMPILED_PARAMETERS, COMPILED_STEPS = 500_000_000, 1000
"""Numbers of U-Net parameters and of steps above which compilation saves more time than the minutes that it takes."""

LATENT_PIXELS = 1024
"""Most pixels of the latents of all rows in one call of OpenVINO."""


class DiffusionPrior:
    """A frozen Stable Diffusion 1.x or 2.x model, or any of the same layout.

    Args:
        unet: predicts epsilon or v from noisy latents.
        vae: encodes images in -1..1 to a Gaussian over latents, and decodes latents.
        text: encodes prompts.
        scheduler: holds the noise schedule and the prediction type.
        profile: the model's phrases for views, its vocabulary and its presets.
        config: how the networks compute; on a CPU only `engine`, `low_vram` and `dtype` have an effect.
        announce: receives lines about compilations and fallbacks.
        batch: views per step.
        steps: optimisation steps of the run, which decide whether to compile.
        decodes: images that a step decodes per view; the decoder is only compiled for these, since compiling takes
            longer than it saves in a refinement.

    Attributes:
        chains: on CUDA, the implementations of the encoder, the U-Net and a compiled decoder; with OpenVINO, those
            of its calls; else empty.
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
        announce: Announce,
        batch: int = 1,
        steps: int = 0,
        decodes: float = 0.0,
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
        self._encode_only: Callable[[Tensor], tuple[Tensor, ...]] = self._posterior
        self._decode: Callable[[Tensor], Tensor] = self._decoder_output
        self._predict: Callable[..., Tensor] = self._unet_output
        self.chains: tuple[FallbackChain, ...] = ()
        if self.device.type == "cuda":
            self._speed_up(config, announce, batch, decodes, compiling=compiles(config, unet, steps))
        if choose_engine(config, self.device, full_size=full_size(unet))[0] == "openvino":
            self._use_openvino(config, announce)
        if config.low_vram:
            self._encode = partial(_encode_one_by_one, self._encode)
            self._decode = partial(_decode_one_by_one, self._decode)
            self._predict = PaddedBatches(self._predict, 1, LOW_VRAM_ROWS)

    def _speed_up(
        self, config: PriorConfig, announce: Announce, batch: int, decodes: float, *, compiling: bool
    ) -> None:
        """Replaces layers and calls of the networks on CUDA by the fastest implementations that work here."""
        compiles_decoder = compiling and decodes > 0
        replace_layers(self.unet, self.vae, config, compiling=compiling, decoding=compiles_decoder)
        build = partial(
            FallbackChain.build,
            announce=announce,
            graphs=config.cuda_graphs,
            compiling=compiling,
            allow_fallback=config.compile != "on",
            recompute=config.recomputed_values,
        )
        # a compiled encoder is called with the views of one asset, so that several assets need no new compilation
        graphed = partial(GraphedGradients, largest=batch if compiling else None)
        self._encode = encoder = build("the autoencoder", self._posterior, graphed)
        self._predict = unet = build("the U-Net", self._unet_output, GraphedCalls)
        self.chains = encoder, unet
        if compiles_decoder:
            self._decode = decoder = build("the decoder", self._decoder_output, GraphedCalls)
            self.chains += (decoder,)
        if config.low_vram:
            return
        if compiling or config.cuda_graphs:
            self._predict = PaddedBatches(unet, batch, 2 * batch if compiling else None)
        if compiles_decoder:
            self._decode = PaddedBatches(decoder, batch, batch)

    def _use_openvino(self, config: PriorConfig, announce: Announce) -> None:
        """Moves the U-Net's calls without gradient to OpenVINO; where that is bf16, torch's autoencoder is too.

        OpenVINO is no faster with the autoencoder than torch in the same precision (`benchmarks/engine.py`).
        """
        bf16 = computes_bf16(config, self.device)
        latents = torch.zeros(2, *self.latent_shape)
        inputs = latents, torch.zeros(2, dtype=torch.long), torch.zeros(2, 2, self.unet.config.cross_attention_dim)
        calls: Callable[..., Any] = OpenVinoCalls(
            "the U-Net", self.unet, self._unet_output, inputs, largest=LATENT_PIXELS,
            multiple=2 ** (len(self.unet.config.block_out_channels) - 1), bf16=bf16,
        )  # fmt: skip
        chain = [("OpenVINO", calls), ("torch", self._unet_output)]
        self._predict = FallbackChain(chain[:1] if config.engine == "openvino" else chain, announce)
        self.chains = (self._predict,)
        if bf16:
            autocast = torch.autocast("cpu", torch.bfloat16)
            # with weights channels last, the backward pass of its group norms takes a quarter of a step (PyTorch 2.13)
            self.vae.encoder.to(memory_format=torch.contiguous_format)
            self._encode = self._encode_only = autocast(lambda images: self._posterior(images.contiguous()))
            self._decode = autocast(self._decoder_output)

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
        decodes: float = 0.0,
    ) -> "DiffusionPrior":
        """Loads a verified checkpoint.

        Args:
            checkpoint: the result of `checkpoint.resolve`.
            device: where the networks run.
            config: how they compute.
            warn: receives a line per text that is longer than the encoder's limit, and lines about compilations.
            batch: views per step.
            steps: optimisation steps of the run.
            decodes: images that a step decodes per view.

        Raises:
            WeightsUnavailable: a file can't be read, a weight is missing, or the vocabulary does not fit.
        """
        device = torch.device(device)
        choose_engine(config, device, full_size=False)  # refuses before the networks are read
        # for bf16, OpenVINO and autocast round at each call
        dtype = torch.float32 if config.engine == "openvino" else compute_dtype(config.dtype, device)
        diffusers_logging.set_verbosity_error()
        diffusers_logging.disable_progress_bar()
        text = TextEncoder.load(checkpoint, device, dtype, warn=warn)
        unet = _load_network(UNet2DConditionModel, checkpoint, "unet", device, dtype)
        vae = _load_network(AutoencoderKL, checkpoint, "vae", device, dtype)
        with read_errors(f"the scheduler of {checkpoint.name}"):
            scheduler = DDIMScheduler.from_pretrained(checkpoint.folder / "scheduler", local_files_only=True)
        return cls(
            unet, vae, text, scheduler, checkpoint.profile, config,
            announce=warn, batch=batch, steps=steps, decodes=decodes,
        )  # fmt: skip

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "p l d"]:
        """Text embeddings: p texts, l tokens, d features; see `TextEncoder.encode`."""
        return self.text.encode(texts)

    def encode_image(
        self, rgb: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c h8 w8"] | None = None
    ) -> Float[Tensor, "b c h8 w8"]:
        """Encodes images to scaled latents, differentiable with respect to the images.

        Args:
            rgb: colours, nominally 0..1; not clamped, so that gradients pass outside that range.
            noise: standard normal numbers that sample the posterior; None takes its mean.

        Returns:
            float32 latents, (z - shift) * scale as the U-Net was trained on.
        """
        images = (2 * rgb - 1).to(self.dtype)
        needs_grad = images.requires_grad and torch.is_grad_enabled()
        mean, std = (self._encode if needs_grad else self._encode_only)(images)
        latents: Tensor = mean.float()
        if noise is not None:
            latents = latents + std.float() * noise
        return (latents - self._shift) * self._scale

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the unscaled latents of images in -1..1."""
        posterior = self.vae.encode(images).latent_dist
        return posterior.mean, posterior.std

    def decode(self, latents: Float[Tensor, "b c h8 w8"]) -> Float[Tensor, "b 3 h w"]:
        """Decodes scaled latents to float32 images, nominally 0..1 and not clamped."""
        unscaled = (latents / self._scale + self._shift).to(self.dtype)
        needs_grad = unscaled.requires_grad and torch.is_grad_enabled()
        rgb = (self._decoder_output if needs_grad else self._decode)(unscaled)
        return (rgb.float() + 1) / 2

    def _decoder_output(self, latents: Tensor) -> Tensor:
        """Images in -1..1 of unscaled latents."""
        rgb: Tensor = self.vae.decode(latents).sample
        return rgb

    def predict_noise(
        self, latents: Float[Tensor, "b c h w"], timesteps: Int[Tensor, " b"], text: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b c h w"]:
        """Predicts the noise epsilon in noisy latents, differentiable with respect to the latents.

        A prediction of v = alpha eps - sigma x0 (Salimans and Ho 2022) is converted by eps = alpha v + sigma z.

        Args:
            latents: z_t, float32.
            timesteps: t of each row, 0..999.
            text: text embeddings of each row.

        Returns:
            float32 epsilon.
        """
        timesteps = timesteps.to(self.device, non_blocking=True)
        if latents.requires_grad and torch.is_grad_enabled():
            output = self._unet_output(latents, timesteps, text)
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

    def _unet_output(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The U-Net's epsilon or v in its own dtype."""
        output: Tensor = self.unet(latents.to(self.dtype), timesteps, text.to(self.dtype), return_dict=False)[0]
        return output


def replace_layers(
    unet: UNet2DConditionModel, vae: AutoencoderKL, config: PriorConfig, *, compiling: bool, decoding: bool = False
) -> None:
    """Replaces layers that are slow on a GPU with equivalent faster ones, as the settings request.

    `compiling` means the U-Net and the encoder, `decoding` the decoder too.
    """
    if config.written_attention:
        vae.set_attn_processor(AttnProcessor())
    if config.forward_gradients:
        replace_convolutions(vae.encoder)
    if config.fused_projections:
        unet.fuse_qkv_projections()
        drop_separate_projections(unet)
    if config.tuned_convolutions:
        torch.backends.cudnn.benchmark = True
    if compiling:
        for network in (unet, vae.encoder, *([vae.decoder] if decoding else [])):
            network.to(memory_format=torch.channels_last)
            if config.channel_norms:
                replace_norms(network)


def _encode_one_by_one(encode: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> tuple[Tensor, ...]:
    """Encodes one image at a time, and again in the backward pass instead of storing activations.

    The checkpoint is reentrant, so that the second computation is a whole call: the backward graph reads what the
    forward graph has just written.
    """
    parts = [
        torch.utils.checkpoint.checkpoint(encode, image, use_reentrant=True, preserve_rng_state=False)
        for image in images.split(1)
    ]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _decode_one_by_one(decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    """Decodes one image at a time."""
    return torch.cat([decode(each) for each in latents.split(1)])


def compiles(config: PriorConfig, unet: torch.nn.Module, steps: int) -> bool:
    """Whether to compile: as the setting says; "auto" compiles where it saves time and a compiler is available."""
    if config.compile != "auto":
        return config.compile == "on"
    return full_size(unet) and steps >= COMPILED_STEPS and compat.has_triton()


def full_size(unet: torch.nn.Module) -> bool:
    """Whether a U-Net is so large that a run takes minutes and gigabytes."""
    return sum(parameter.numel() for parameter in unet.parameters()) >= COMPILED_PARAMETERS


def workload(
    prior: DiffusionPrior, config: Config, rows_per_view: float, assets: int = 1, *, decodes_per_view: float = 0.0
) -> Workload:
    """The workload of a run that optimises `assets` assets at once with this prior, for an estimate.

    `rows_per_view` and `decodes_per_view` are the distillation method's.
    """
    compiling = compiles(config.prior, prior.unet, config.optim.steps)
    size = config.camera.image_size or prior.image_size
    return Workload(prior.unet, prior.vae, config, size, compiling, rows_per_view, assets, decodes_per_view)


def _load_network(kind: Any, checkpoint: Checkpoint, part: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Loads a diffusers network of a checkpoint; every weight must come from the file."""
    title = f"the {part} of {checkpoint.name}"
    with read_errors(title):
        network, info = kind.from_pretrained(
            checkpoint.folder / part,
            dtype=dtype,
            variant=checkpoint.variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            low_cpu_mem_usage=False,  # the default needs accelerate; initial values are skipped in either case
        )
    check_keys(title, info)
    if device.type == "cpu":  # convolutions are a fifth faster there with channels_last
        network = network.to(memory_format=torch.channels_last)
    return network.to(device)
