"""Stable Diffusion 2.1-base at full size with random weights, and a small model of the same layout.

Speed and memory do not depend on the weights' values. The U-Net's last layer is small, so that an optimisation against
it stays finite.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from segdream_cli.accel.cuda_graphs import compute_dtype
from segdream_cli.config import Config
from segdream_cli.distill import build_method
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.priors.profile import PriorProfile, preset
from segdream_cli.priors.stable_diffusion import DiffusionPrior

UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "norm_num_groups": 32,
}
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
SMALL_UNET = UNET | {
    "sample_size": 4,
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": (1, 1, 2, 2),
    "norm_num_groups": 4,
}
SMALL_VAE = VAE | {"block_out_channels": (4, 4, 8, 8), "layers_per_block": 1, "norm_num_groups": 2}
FIXED = {"optim.steps": 5000, "init.shape": "sphere"}
EAGER = {
    "prior.cuda_graphs": False,
    "prior.compile": "off",
    "prior.written_attention": False,
    "prior.forward_gradients": False,
    "prior.fused_projections": False,
}
SMALL = {"init.count": 300, "densify.cap": 400, "densify.start": 0, "densify.every": 2, "camera.batch": 2}


FAILED: list[list[str]] = []
"""Of every prior in this process, the implementations that failed: a slower one was measured."""


def announce(line: str) -> None:
    """Prints what a prior says."""
    print(line, flush=True)


class RandomText:
    """Embeddings that depend on the text and mean nothing, in the place of a text encoder."""

    def __init__(self, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self._width, self._kind = width, {"device": device, "dtype": dtype}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """One embedding a text, [p, 77, width]."""
        drawn = [
            torch.randn(77, self._width, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))
            for text in texts
        ]
        return torch.stack(drawn).to(**self._kind)


def networks(device: torch.device, dtype: torch.dtype, *, small: bool) -> tuple[Any, Any]:
    """U-Net and autoencoder, the same on every call."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            unet = UNet2DConditionModel(**(SMALL_UNET if small else UNET))
            vae = AutoencoderKL(**(SMALL_VAE if small else VAE), scaling_factor=0.18215)
            unet.conv_out.weight.data *= 0.02
    finally:
        torch.set_default_dtype(before)
    return unet, vae


def random_prior(config: Config, device: torch.device, made: tuple[Any, Any]) -> DiffusionPrior:
    """The prior of a configuration around U-Net and autoencoder."""
    unet, vae = made
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )
    text: Any = RandomText(unet.config.cross_attention_dim, device, unet.dtype)
    prior = DiffusionPrior(
        unet, vae, text, scheduler, PriorProfile(), config.prior,
        announce=announce, batch=config.camera.batch, steps=config.optim.steps,
        decodes=build_method(config).decodes_per_view,
    )  # fmt: skip
    FAILED.extend(chain.failed for chain in prior.chains)
    return prior


def random_pipeline(settings: dict[str, Any], device: torch.device, *, small: bool = False) -> Pipeline:
    """A pipeline of the `standard` preset with settings on top."""
    config = preset(PriorProfile(), "standard").set(FIXED | (SMALL if small else {}) | settings)
    dtype = compute_dtype(config.prior.dtype, device)
    return Pipeline(config, random_prior(config, device, networks(device, dtype, small=small)), device)
